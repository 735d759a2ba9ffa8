//! The tree: which granules are free, and where allocations start.
//!
//! # Representation
//!
//! Positions are granule numbers counted from the tree's origin, a multiple of the tree's span, so
//! that a block aligned in the tree is aligned at its absolute address. Level `L` of the tree cuts
//! positions into nodes of `64^(L+1)` granules with 64 children each; level 0 is the *rows*, whose
//! children are the granules themselves. A child is in one of these states:
//!
//! | state | level 0: `used head` | above: `occupied detail head absent` |
//! |---|---|---|
//! | free as a whole | `0 0` | `0 0 - -` |
//! | an allocation starts at its first granule and covers all of it | `1 1` | `1 0 1 0` |
//! | covered by an allocation that starts further left | `1 0` | `1 0 0 0` |
//! | absent: not in the space, or retired | `0 1` | `1 0 0 1` |
//! | anything else: ask its own node | | `1 1 - -` |
//!
//! Everything below a child that is not in the last state is zero, and most often not there at
//! all. So a block of any size is a few bits in one word, a space of any size is made by writing
//! a few words, and what is free is what is zero.
//!
//! A node above level 0 keeps the two words `occupied` and `detail`, and a word `has[order]` for
//! each order smaller than one of its children. For orders of 6 and above bit `c` says that child
//! `c` contains a maximal free block of exactly that order. For the small ones it says that some
//! row in child `c` has a free block of *at least* that order, up to 5: a row's largest block
//! changes far less often than the set of its orders, and which row can serve an order is still
//! one word a level. Only children with detail can, so for the others two of the words
//! are free to carry the states `head` (in `has[0]`) and `absent` (in `has[1]`), which makes a node
//! of level 1, with the state of 64 rows and the index over them, exactly one cache line.
//!
//! # Canonical form
//!
//! An allocation that covers a child as a whole is stored at that child and not below it. With
//! that rule the state is a function of the allocations alone, recent blocks (see `head`) among them:
//! undoing an operation restores every bit, and a walk towards an allocation's start or end moves in steps of whole children.
use crate::error::Error;
use crate::head::{Head, SECTIONS, Summit};
use crate::pool::{LEVEL1, NONE, Node, Pool, ROWS, Rows};
use crate::probe::Probe;
use crate::reach::Reach;
use crate::word::{ROW_ORDERS, low_bits};

/// Word of a node that says which children are not free as a whole.
pub(crate) const OCCUPIED: usize = 0;
/// Word of a node that says which children are described by a node of their own.
pub(crate) const DETAIL: usize = 1;
/// First of a node's `has` words.
pub(crate) const HAS: usize = 2;
/// The state `head` of children without detail, in the place of `has[0]`.
pub(crate) const HEAD: usize = HAS;
/// The state `absent` of children without detail, in the place of `has[1]`.
pub(crate) const ABSENT: usize = HAS + 1;

/// Level of the node that heads a section.
pub(crate) const SECTION_LEVEL: u32 = 2;
/// Granules a section covers, as a shift.
pub(crate) const SECTION_SHIFT: u32 = 18;
/// The highest level a tree can need: 64^11 is above 2^64.
pub(crate) const LEVEL_MAX: u32 = 10;

/// The word of a line that says which children reach a small order. Cut off so that the compiler sees
/// that the line has it.
#[inline(always)]
pub(crate) const fn has_small(order: u32) -> usize {
    (HAS + order as usize) & 7
}

/// What is done to granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Free,
    /// Covered by an allocation that starts at the first of them.
    Start,
    /// Covered by an allocation that starts further left.
    Continue,
    Absent,
}

/// The state of the place a position lies in; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Used { head: bool },
    Absent,
}

/// Free space and the bounds of allocations over positions `0..2^(6 * (top + 1))`.
pub(crate) struct Tree<P> {
    pub(crate) pool: Pool<P>,
    pub(crate) head: Head,
    pub(crate) summit: Summit,
    /// Ends of ranges that will be marked while something is freed, and so must not fail then:
    /// metadata for them is kept in reserve.
    pub(crate) pledged: usize,
}

#[inline(always)]
pub(crate) const fn child_of(position: u64, level: u32) -> u32 {
    (position >> (ROW_ORDERS * level) & 63) as u32
}

/// Line of node 1 over `position` in the section that starts at line `section`.
#[inline(always)]
pub(crate) const fn level1(section: Node, position: u64) -> usize {
    section as usize + LEVEL1 + child_of(position, SECTION_LEVEL) as usize
}

/// Line and word of the row of `position` in its section: `used`; `head` is the word after.
#[inline(always)]
const fn row(section: Node, position: u64) -> (usize, usize) {
    let row = (position >> ROW_ORDERS & 4095) as usize;
    (section as usize + ROWS + row / 4, row % 4 * 2)
}

impl<P: Probe> Tree<P> {
    /// A tree of `top + 1` levels in which every granule is absent. With `rows`, a section cut
    /// short after so many rows: nothing at or beyond it will ever be asked for detail.
    pub(crate) fn new(top: u32, rows: Option<usize>, probe: P) -> Result<Self, Error> {
        debug_assert!((SECTION_LEVEL..=LEVEL_MAX).contains(&top));
        let mut pool = Pool::new(probe)?;
        let root = match rows {
            Some(rows) => {
                debug_assert!(top == SECTION_LEVEL);
                pool.take_short_section(rows)?
            }
            None if top == SECTION_LEVEL => {
                pool.ensure(1, 0)?;
                pool.take_section()
            }
            None => {
                pool.ensure(0, 1)?;
                pool.take_upper()
            }
        };
        pool.set(root as usize, OCCUPIED, u64::MAX);
        pool.set(root as usize, ABSENT, u64::MAX);
        let mut tree = Tree { pool, head: Head::new(), summit: Summit::new(top, root), pledged: 0 };
        tree.note_sections(top <= SECTION_LEVEL + 1);
        Ok(tree)
    }

    /// Adds levels on top until the root's is `top`. Positions are counted from another origin
    /// after that: what was position 0 becomes `offset`, a multiple of the span so far.
    pub(crate) fn grow(&mut self, top: u32, offset: u64) -> Result<(), Error> {
        debug_assert!(top > self.top() && top <= LEVEL_MAX);
        self.ensure(0, (top - self.top()) as usize, top)?;
        let flat = self.summit.flat && offset == 0 && top <= SECTION_LEVEL + 1;
        self.unflatten();
        while self.top() < top {
            let below = self.summit.root;
            let level = self.top() + 1;
            let child = child_of(offset, level);
            let bit = 1u64 << child;
            let root = self.pool.take_upper();
            let line = root as usize;
            self.pool.set(line, OCCUPIED, u64::MAX);
            self.pool.set(line, ABSENT, u64::MAX);
            let absents = self.pool.get(below as usize, ABSENT);
            if self.pool.get(below as usize, DETAIL) == 0 && absents == u64::MAX {
                self.pool.set(below as usize, OCCUPIED, 0);
                self.pool.set(below as usize, ABSENT, 0);
                if self.top() == SECTION_LEVEL {
                    self.pool.give_section(below);
                } else {
                    self.pool.give_upper(below);
                }
            } else {
                self.pool.set(line, DETAIL, bit);
                self.pool.set(line, ABSENT, !bit);
                self.pool.set_child(root, child, below);
                for order in ROW_ORDERS..ROW_ORDERS * level {
                    if self.summit.orders >> order & 1 == 1 {
                        self.gain_at(line, child, order);
                    }
                }
                let reach = Reach::of_node(self.pool.line(below as usize));
                reach.set(self.pool.line_mut(line), child);
            }
            self.summit.root = root;
            self.summit.top = level as u8;
        }
        self.note_sections(flat);
        Ok(())
    }

    /// Makes a root that is a section cut short a whole one.
    pub(crate) fn complete_section(&mut self) -> Result<(), Error> {
        self.pool.complete_section(self.summit.root)
    }

    /// Level of the root.
    #[inline(always)]
    pub(crate) fn top(&self) -> u32 {
        self.summit.top as u32
    }

    #[inline(always)]
    pub(crate) fn root(&self) -> Node {
        self.touch_summit();
        self.summit.root
    }

    /// Fills in what the head knows of the first sections; whether there are no others is known.
    fn note_sections(&mut self, flat: bool) {
        for at in 0..SECTIONS {
            let position = (at as u64) << SECTION_SHIFT;
            let beyond = position & !low_bits(ROW_ORDERS * (self.top() + 1)) != 0;
            let section = if beyond { NONE } else { self.find_section(position) };
            self.head.sections[at] = section;
            let reach = if flat && section != NONE { self.small_reach(section) } else { 0 };
            self.summit.reach.set(at, reach);
        }
        if flat && self.top() > SECTION_LEVEL {
            let root = self.pool.line_mut(self.summit.root as usize);
            let detail = root[DETAIL];
            root[HAS..].iter_mut().for_each(|word| *word &= !detail);
        }
        self.summit.flat = flat;
    }

    /// Says in the root what the head says of the sections, where it is in place of that.
    pub(crate) fn unflatten(&mut self) {
        if self.summit.flat && self.top() > SECTION_LEVEL {
            for at in 0..SECTIONS {
                if self.head.sections[at] != NONE {
                    let root = self.pool.line_mut(self.summit.root as usize);
                    Reach::new(self.summit.reach.get(at)).set(root, at as u32);
                }
            }
        }
        self.summit.flat = false;
    }

    /// How many small orders a node reaches.
    fn small_reach(&self, node: Node) -> u32 {
        Reach::of_node(self.pool.line(node as usize)).orders()
    }

    /// Word of a node of level `level` that says which children have an order.
    pub(crate) fn has(&self, line: usize, level: u32, order: u32) -> u64 {
        if self.summit.flat && level > SECTION_LEVEL && order < ROW_ORDERS {
            self.touch_summit();
            let reaching = |at: usize| ((self.summit.reach.get(at) > order) as u64) << at;
            return (0..SECTIONS).fold(0, |word, at| word | reaching(at));
        }
        self.pool.get(line, HAS + order as usize) & self.pool.get(line, DETAIL)
    }

    /// The orders of free blocks: those of 6 and above, and below those up to the largest.
    #[inline(always)]
    pub(crate) fn orders(&self) -> u128 {
        self.touch_summit();
        let small = match self.summit.flat {
            true => self.summit.reach.most(),
            false => self.small_reach(self.summit.root),
        };
        self.summit.large_orders() | low_bits(small) as u128
    }

    /// Granules in allocations.
    pub(crate) fn used(&self) -> u128 {
        self.head.used()
    }

    /// Live allocations.
    pub(crate) fn allocations(&self) -> u64 {
        self.head.allocations
    }

    #[inline(always)]
    pub(crate) fn touch_head(&self) {
        self.pool.probe.touch(&raw const self.head as usize, size_of::<Head>());
    }

    #[inline(always)]
    pub(crate) fn touch_summit(&self) {
        self.pool.probe.touch(&raw const self.summit as usize, size_of::<Summit>());
    }

    /// Makes sure that marking one range cannot run out of metadata half-way: opening its two ends
    /// may take a node a level each.
    #[inline]
    pub(crate) fn ensure_detail(&mut self, ends: usize) -> Result<(), Error> {
        if self.top() == SECTION_LEVEL {
            return Ok(());
        }
        self.ensure(ends, 0, self.top())
    }

    /// Room for so many ends and `uppers` nodes besides, and still for all that is pledged, in a
    /// tree whose root is at level `top`.
    fn ensure(&mut self, ends: usize, uppers: usize, top: u32) -> Result<(), Error> {
        let ends = ends + self.pledged;
        self.pool.ensure(ends, uppers + ends * (top - SECTION_LEVEL) as usize)
    }

    /// The section over `position`, if there is one.
    #[inline(always)]
    pub(crate) fn section(&self, position: u64) -> Node {
        match self.head.sections.get((position >> SECTION_SHIFT) as usize) {
            Some(&section) if section != NONE => section,
            _ => self.find_section(position),
        }
    }

    #[inline(never)]
    pub(crate) fn find_section(&self, position: u64) -> Node {
        let mut node = self.root();
        let mut level = self.top();
        while level > SECTION_LEVEL && node != NONE {
            node = self.pool.child(node, child_of(position, level));
            level -= 1;
        }
        node
    }

    /// Line of the node of level `level` (1 or above) over `position`, which must exist.
    #[inline]
    pub(crate) fn node(&self, position: u64, level: u32) -> Node {
        if level <= SECTION_LEVEL {
            let section = self.section(position);
            return if level == 1 { level1(section, position) as Node } else { section };
        }
        let mut node = self.root();
        let mut at = self.top();
        while at > level {
            node = self.pool.child(node, child_of(position, at));
            at -= 1;
        }
        node
    }

    /// Hangs a node under the node of level `level` over `position`.
    pub(crate) fn attach(&mut self, node: Node, level: u32, position: u64) -> Node {
        let is_section = level == SECTION_LEVEL + 1;
        let below = if is_section { self.pool.take_section() } else { self.pool.take_upper() };
        self.pool.set_child(node, child_of(position, level), below);
        if is_section {
            match self.head.sections.get_mut((position >> SECTION_SHIFT) as usize) {
                Some(section) => *section = below,
                None => self.unflatten(),
            }
        }
        below
    }

    /// Takes back the node under the node of level `level` over `position`.
    pub(crate) fn detach(&mut self, node: Node, level: u32, position: u64) {
        let child = child_of(position, level);
        let below = self.pool.child(node, child);
        self.pool.set_child(node, child, NONE);
        if level > SECTION_LEVEL + 1 {
            return self.pool.give_upper(below);
        }
        self.pool.give_section(below);
        if let Some(section) = self.head.sections.get_mut((position >> SECTION_SHIFT) as usize) {
            *section = NONE;
            self.summit.reach.set((position >> SECTION_SHIFT) as usize, 0);
        }
    }

    /// Child of a node of level `level` above 0; for level 1 the section is passed through, since
    /// rows are found from it.
    #[inline(always)]
    pub(crate) fn child_node(&self, node: Node, level: u32, position: u64) -> Node {
        match level {
            1 => node,
            2 => node, // A section stands for its nodes of level 1 and its rows.
            _ => self.pool.child(node, child_of(position, level)),
        }
    }

    /// Line of the node of level `level` over `position`, given its section or upper node.
    #[inline(always)]
    pub(crate) fn line(&self, node: Node, level: u32, position: u64) -> usize {
        if level == 1 { level1(node, position) } else { node as usize }
    }

    /// `used` and `head` of the row of `position`.
    #[inline(always)]
    pub(crate) fn row(&self, section: Node, position: u64) -> (u64, u64) {
        let (line, word) = row(section, position);
        self.pool.pair(line, word)
    }

    /// The rows under the node of level 1 over a position, all of whose children must have one.
    #[inline(always)]
    pub(crate) fn rows(&self, section: Node, position: u64) -> Rows<'_, P> {
        let (line, _) = row(section, position & !low_bits(2 * ROW_ORDERS));
        self.pool.rows(line)
    }

    #[inline(always)]
    pub(crate) fn set_row(&mut self, section: Node, position: u64, used: u64, head: u64) {
        let (line, word) = row(section, position);
        self.pool.set_pair(line, word, used, head);
    }

    // ---- marking ---------------------------------------------------------------------------

    /// Makes the child over `position` detail in every node above `level`, pushing down the state
    /// of children that were in one state as a whole. Room must have been ensured.
    pub(crate) fn open(&mut self, position: u64, level: u32) {
        let mut node = self.root();
        let mut at = self.top();
        while at > level {
            let line = self.line(node, at, position);
            let child = child_of(position, at);
            let bit = 1u64 << child;
            let detail = self.pool.get(line, DETAIL);
            if detail & bit == 0 {
                let below = if at > SECTION_LEVEL { self.attach(node, at, position) } else { node };
                let occupied = self.pool.get(line, OCCUPIED);
                let (heads, absents) = (self.pool.get(line, HEAD), self.pool.get(line, ABSENT));
                self.pool.set(line, DETAIL, detail | bit);
                if occupied & bit == 0 {
                    self.pool.set(line, OCCUPIED, occupied | bit);
                    self.tell(position, at, occupied, occupied | bit);
                } else {
                    self.pool.set(line, HEAD, heads & !bit);
                    self.pool.set(line, ABSENT, absents & !bit);
                    let head = (heads & bit != 0) as u64;
                    let absent = if absents & bit != 0 { u64::MAX } else { 0 };
                    if at == 1 {
                        self.set_row(below, position, !absent, head | absent);
                    } else {
                        let line = self.line(below, at - 1, position);
                        self.pool.set(line, OCCUPIED, u64::MAX);
                        self.pool.set(line, HEAD, head);
                        self.pool.set(line, ABSENT, absent);
                    }
                }
            }
            node = self.child_node(node, at, position);
            at -= 1;
        }
    }

    /// Marks children of one open node or row, none of which may have detail. `heads` are those at
    /// whose first granule an allocation starts.
    pub(crate) fn set_children(
        &mut self,
        position: u64,
        level: u32,
        children: u64,
        heads: u64,
        mark: Mark,
    ) {
        let used = matches!(mark, Mark::Start | Mark::Continue);
        let absent = if mark == Mark::Absent { children } else { 0 };
        let (before, after, absents);
        if level == 0 {
            let section = self.section(position);
            let (row_used, row_head) = self.row(section, position);
            let used = if used { row_used | children } else { row_used & !children };
            let head = row_head & !children | heads | absent;
            self.set_row(section, position, used, head);
            before = row_used | row_head;
            after = used | head;
            absents = head & !used;
        } else {
            let line = self.node(position, level) as usize;
            before = self.pool.get(line, OCCUPIED);
            after = if mark == Mark::Free { before & !children } else { before | children };
            let head = self.pool.get(line, HEAD) & !children | heads;
            let absent = self.pool.get(line, ABSENT) & !children | absent;
            self.pool.set(line, OCCUPIED, after);
            self.pool.set(line, HEAD, head);
            self.pool.set(line, ABSENT, absent);
            absents = absent & !self.pool.get(line, DETAIL);
        }
        if level == self.top() || (after != 0 && absents != u64::MAX) {
            self.tell(position, level, before, after);
        } else {
            if after != 0 {
                self.clear(position, level);
            }
            self.collapse(position, level + 1, if after == 0 { Mark::Free } else { Mark::Absent });
        }
    }

    /// Makes a row or node zero all of whose children are absent.
    fn clear(&mut self, position: u64, level: u32) {
        if level == 0 {
            let section = self.section(position);
            self.set_row(section, position, 0, 0);
        } else {
            let line = self.node(position, level) as usize;
            self.pool.set(line, OCCUPIED, 0);
            self.pool.set(line, ABSENT, 0);
        }
    }

    /// Marks the granules `first..=last`, all of which must be in one and the same kind of state:
    /// free, absent, or one allocation. Room must have been ensured for two ends.
    pub(crate) fn mark(&mut self, first: u64, last: u64, mark: Mark) {
        let mut mark = mark;
        let mut at = first;
        loop {
            // The highest level at which a whole child starts here and ends in the range.
            let mut level = 0;
            while level < self.top() {
                let span = low_bits(ROW_ORDERS * (level + 1));
                if at & span != 0 || last - at < span {
                    break;
                }
                level += 1;
            }
            let shift = ROW_ORDERS * level;
            let child = child_of(at, level);
            // Children that fit, less one: the range may end at the last position there is.
            let more = ((last - at - low_bits(shift)) >> shift).min(63 - child as u64);
            let children = low_bits(more as u32 + 1) << child;
            self.open(at, level);
            let heads = if mark == Mark::Start { children & children.wrapping_neg() } else { 0 };
            self.set_children(at, level, children, heads, mark);
            let end = at + (more << shift) + low_bits(shift);
            if end == last {
                return;
            }
            at = end + 1;
            if mark == Mark::Start {
                mark = Mark::Continue;
            }
        }
    }

    /// Marks the free granules `first..=last` as one allocation.
    pub(crate) fn occupy(&mut self, first: u64, last: u64) {
        self.mark(first, last, Mark::Start);
        self.head.used = self.head.used.wrapping_add((last - first).wrapping_add(1));
        self.head.allocations += 1;
    }

    /// Frees the allocation `first..=last`. It was stored child by child as marking goes through
    /// it now, so nothing is opened and no metadata is needed.
    pub(crate) fn vacate(&mut self, first: u64, last: u64) {
        self.mark(first, last, Mark::Free);
        self.head.used = self.head.used.wrapping_sub((last - first).wrapping_add(1));
        self.head.allocations -= 1;
    }

    /// Makes an allocation start at `position`, which lies inside one. Room must have been ensured
    /// for one end.
    pub(crate) fn split(&mut self, position: u64) {
        let mut level = self.top();
        let mut node = self.root();
        loop {
            let bit = 1u64 << child_of(position, level);
            if level == 0 {
                let (used, heads) = self.row(node, position);
                self.set_row(node, position, used, heads | bit);
                break;
            }
            let line = self.line(node, level, position);
            if self.pool.get(line, DETAIL) & bit == 0 {
                if position & low_bits(ROW_ORDERS * level) == 0 {
                    let heads = self.pool.get(line, HEAD);
                    self.pool.set(line, HEAD, heads | bit);
                    break;
                }
                self.open(position, level - 1);
            }
            node = self.child_node(node, level, position);
            level -= 1;
        }
        self.head.allocations += 1;
    }
}
