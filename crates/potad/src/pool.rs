//! The pool: every word of metadata a tree keeps, in one flat array of cache lines.
//!
//! A node is named by the index of its first line, never by a pointer, so the array can be moved,
//! copied or mapped elsewhere as it stands. Line 0 belongs to nobody: index 0 means "no node".
//!
//! Two sizes of node are handed out. An *upper node* (level 3 and above) is
//! [`UPPER_LINES`] lines, a *section* (levels 2, 1 and 0 of 2^18 granules together) is
//! [`SECTION_LINES`]. Both are handed out zeroed and must be zero again when they come back, which
//! costs nothing since a node goes back when all below it is free, and free is zero.
//!
//! Growing: memory is reserved ahead in one piece, as far as the whole space could need or
//! [`RESERVE_LINES_MAX`], whichever is less, but touched a node at a time, so what is resident
//! follows what is used. Freeing never takes memory; what allocates asks [`Pool::ensure`] first,
//! before it has changed anything.

use crate::error::Error;
use crate::fallible::{collect, repeat};
use crate::probe::Probe;

/// One cache line of metadata.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u64; 8]);

const ZERO: Line = Line([0; 8]);

const _: () = assert!(size_of::<Line>() == 64 && align_of::<Line>() == 64);

/// Index of a node's first line in the pool.
pub(crate) type Node = u32;

/// No node.
pub(crate) const NONE: Node = 0;

/// Lines of an upper node: `occupied`, `detail` and up to 60 words of `has` in the first eight,
/// then 64 children of 32 bits each.
pub(crate) const UPPER_LINES: usize = 12;

/// Line of an upper node at which its table of children starts.
pub(crate) const CHILDREN: usize = 8;

/// Line of a section at which its 64 nodes of level 1 start; its node of level 2 comes before.
pub(crate) const LEVEL1: usize = 2;

/// Line of a section at which its 4096 rows start, four to a line.
pub(crate) const ROWS: usize = LEVEL1 + 64;

/// Lines of a whole section.
pub(crate) const SECTION_LINES: usize = ROWS + 1024;

/// Most that is reserved ahead of use: 256 MiB of address space, of which only what is used
/// becomes resident. A larger pool doubles when it is full.
const RESERVE_LINES_MAX: usize = 1 << 22;

/// A pool is never so large that the index of a line would not fit.
const LINES_MAX: usize = u32::MAX as usize;

/// All nodes of one tree.
pub(crate) struct Pool<P> {
    lines: Vec<Line>,
    /// Nodes given back, newest first: each one's first word is the next, 0 ends the list.
    free_sections: Node,
    free_uppers: Node,
    /// How many these are.
    sections_given: usize,
    uppers_given: usize,
    /// What `lines` may come to if the whole space is used in single granules.
    lines_expected: usize,
    pub(crate) probe: P,
}

/// 64 rows next to each other.
pub(crate) struct Rows<'a, P> {
    lines: &'a [Line; 16],
    probe: &'a P,
}

impl<P: Probe> Rows<'_, P> {
    /// The words of one of them.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> (u64, u64) {
        let words = &self.lines[(row / 4) & 15].0;
        let at = (row % 4) * 2;
        self.probe.touch(&raw const words[at] as usize, 16);
        (words[at], words[at + 1])
    }
}

impl<P: Probe> Pool<P> {
    pub(crate) fn new(probe: P) -> Result<Self, Error> {
        Ok(Pool {
            lines: repeat(ZERO, 1)?,
            free_sections: NONE,
            free_uppers: NONE,
            sections_given: 0,
            uppers_given: 0,
            lines_expected: 0,
            probe,
        })
    }

    /// Says how many lines the tree may need at most, so that growing can reserve them at once.
    pub(crate) fn expect(&mut self, lines: usize) {
        self.lines_expected = lines;
    }

    /// Makes sure that `sections` and `uppers` more nodes can be had without fail.
    #[inline]
    pub(crate) fn ensure(&mut self, sections: usize, uppers: usize) -> Result<(), Error> {
        let sections = sections.saturating_sub(self.sections_given);
        let uppers = uppers.saturating_sub(self.uppers_given);
        let lines = sections * SECTION_LINES + uppers * UPPER_LINES;
        if self.lines.capacity() - self.lines.len() >= lines { Ok(()) } else { self.grow(lines) }
    }

    #[cold]
    fn grow(&mut self, lines: usize) -> Result<(), Error> {
        let len = self.lines.len();
        let needed = len + lines;
        if needed > LINES_MAX {
            return Err(Error::Metadata { bytes: needed * size_of::<Line>() });
        }
        // A first small step keeps a space that is hardly used from reserving for all of it.
        let ahead = match len {
            0..=64 => 0,
            _ => self.lines_expected.min(RESERVE_LINES_MAX).max(2 * len).min(LINES_MAX),
        };
        let reserved = ahead > needed && self.lines.try_reserve_exact(ahead - len).is_ok();
        if !reserved && self.lines.try_reserve_exact(lines).is_err() {
            return Err(Error::Metadata { bytes: needed * size_of::<Line>() });
        }
        Ok(())
    }

    /// A zeroed node of `lines` lines at the end of the pool; room was ensured.
    fn push(&mut self, lines: usize) -> Node {
        let node = self.lines.len();
        self.lines.resize(node + lines, ZERO);
        node as Node
    }

    /// A zeroed section; room for it was ensured before.
    pub(crate) fn take_section(&mut self) -> Node {
        match self.free_sections {
            NONE => self.push(SECTION_LINES),
            node => {
                self.free_sections = self.unlink(node);
                self.sections_given -= 1;
                node
            }
        }
    }

    /// A zeroed section cut short after its first `rows` rows: the root of a small space.
    pub(crate) fn take_short_section(&mut self, rows: usize) -> Result<Node, Error> {
        let lines = ROWS + rows.div_ceil(4);
        if self.lines.capacity() - self.lines.len() < lines {
            self.grow(lines)?;
        }
        Ok(self.push(lines))
    }

    /// Completes the root's section if it was cut short; nothing else is in the pool then.
    pub(crate) fn complete_section(&mut self, root: Node) -> Result<(), Error> {
        let end = root as usize + SECTION_LINES;
        if self.lines.len() < end {
            let lines = end - self.lines.len();
            if self.lines.capacity() - self.lines.len() < lines {
                self.grow(lines)?;
            }
            self.lines.resize(end, ZERO);
        }
        Ok(())
    }

    /// A zeroed upper node; room for it was ensured before.
    pub(crate) fn take_upper(&mut self) -> Node {
        match self.free_uppers {
            NONE => self.push(UPPER_LINES),
            node => {
                self.free_uppers = self.unlink(node);
                self.uppers_given -= 1;
                node
            }
        }
    }

    fn unlink(&mut self, node: Node) -> Node {
        let next = self.get(node as usize, 0) as Node;
        self.set(node as usize, 0, 0);
        next
    }

    /// Takes back a section, whose words must all be zero again.
    pub(crate) fn give_section(&mut self, node: Node) {
        debug_assert!(self.is_zero(node as usize, SECTION_LINES));
        self.set(node as usize, 0, self.free_sections as u64);
        self.free_sections = node;
        self.sections_given += 1;
    }

    /// Takes back an upper node, whose words must all be zero again.
    pub(crate) fn give_upper(&mut self, node: Node) {
        debug_assert!(self.is_zero(node as usize, UPPER_LINES));
        self.set(node as usize, 0, self.free_uppers as u64);
        self.free_uppers = node;
        self.uppers_given += 1;
    }

    fn is_zero(&self, line: usize, lines: usize) -> bool {
        self.lines[line..line + lines].iter().all(|line| line.0 == [0; 8])
    }

    /// Reads word `word` of a node that starts at `line`; `word` may lie in a later line of it.
    #[inline(always)]
    pub(crate) fn get(&self, line: usize, word: usize) -> u64 {
        let at = &self.lines[line + word / 8].0[word % 8];
        self.probe.touch(at as *const u64 as usize, 8);
        *at
    }

    /// Writes word `word` of a node that starts at `line`.
    #[inline(always)]
    pub(crate) fn set(&mut self, line: usize, word: usize, value: u64) {
        let at = &mut self.lines[line + word / 8].0[word % 8];
        self.probe.touch(at as *const u64 as usize, 8);
        *at = value;
    }

    /// Reads words `word` and `word + 1`, the first of them even, of line `line`.
    #[inline(always)]
    pub(crate) fn pair(&self, line: usize, word: usize) -> (u64, u64) {
        let words = &self.lines[line].0;
        self.probe.touch(&raw const words[word & 6] as usize, 16);
        (words[word & 6], words[word & 6 | 1])
    }

    /// Writes words `word` and `word + 1`, the first of them even, of line `line`.
    #[inline(always)]
    pub(crate) fn set_pair(&mut self, line: usize, word: usize, first: u64, second: u64) {
        let words = &mut self.lines[line].0;
        self.probe.touch(&raw const words[word & 6] as usize, 16);
        words[word & 6] = first;
        words[word & 6 | 1] = second;
    }

    /// The rows under a node of level 1, all of which there must be, from the line of the first.
    #[inline(always)]
    pub(crate) fn rows(&self, line: usize) -> Rows<'_, P> {
        let lines = self.lines[line..].first_chunk().expect("a node of level 1 has 64 rows");
        Rows { lines, probe: &self.probe }
    }

    /// The first line of a node, to read some words of it.
    #[inline(always)]
    pub(crate) fn line(&self, line: usize) -> &[u64; 8] {
        let line = &self.lines[line].0;
        self.probe.touch(line.as_ptr() as usize, 64);
        line
    }

    /// The first line of a node, all words of it to be written.
    #[inline(always)]
    pub(crate) fn line_mut(&mut self, line: usize) -> &mut [u64; 8] {
        let line = &mut self.lines[line].0;
        self.probe.touch(line.as_ptr() as usize, 64);
        line
    }

    /// Child `child` of an upper node.
    #[inline(always)]
    pub(crate) fn child(&self, node: Node, child: u32) -> Node {
        let pair = self.get(node as usize + CHILDREN, child as usize / 2);
        (pair >> (child % 2 * 32)) as Node
    }

    /// Sets child `child` of an upper node.
    pub(crate) fn set_child(&mut self, node: Node, child: u32, to: Node) {
        let shift = child % 2 * 32;
        let pair = self.get(node as usize + CHILDREN, child as usize / 2);
        let pair = pair & !((u32::MAX as u64) << shift) | (to as u64) << shift;
        self.set(node as usize + CHILDREN, child as usize / 2, pair);
    }

    /// Bytes of metadata in the array: all that is ever touched.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Nodes given back and not handed out again, for the recount: (sections, upper nodes).
    pub(crate) fn given_back(&self) -> Result<(Vec<Node>, Vec<Node>), Error> {
        let next = |node: Node| (node != NONE).then_some(node);
        let walk = |first: Node| {
            let after = |&node: &Node| next(self.lines[node as usize].0[0] as Node);
            // A list that has become a ring ends all the same.
            collect(std::iter::successors(next(first), after).take(self.lines.len() + 1))
        };
        Ok((walk(self.free_sections)?, walk(self.free_uppers)?))
    }

    /// How many sections and upper nodes were given back.
    pub(crate) fn counts_given_back(&self) -> (usize, usize) {
        (self.sections_given, self.uppers_given)
    }

    /// Lines in the array, the unowned line 0 included.
    pub(crate) fn lines(&self) -> usize {
        self.lines.len()
    }
}
