//! Choosing the window to empty: where a run costs the least to make room for.
//!
//! # The question
//!
//! A *window* is a place for a run: `n` granules from a start `s` at the alignment, up to `e = s + n`.
//! To empty it, every allocation that touches it has to go as a whole, so its cost is the sum of their
//! sizes. It can be emptied if all of them are loose (see [`loose`](crate::loose)) and none of its
//! granules is absent. Wanted are the cheapest such windows, exactly.
//!
//! # Two cursors
//!
//! Let `U(x)` be the granules in use below `x`, `A(x)` the start of the allocation that runs across the
//! boundary before `x`, and `B(x)` its end, both `x` where none does. What touches the window lies
//! between `A(s)` and `B(e)`, so the cost is `R(e) - L(s)` with `L(s) = U(s) - (s - A(s))` and
//! `R(e) = U(e) + (B(e) - e)`; and the window is good if the last *bad* granule below `e`, absent or in
//! an allocation that is not loose, lies below `s`. All of that is read off the words of a row by
//! counting bits and finding the nearest ones. One cursor walks with `s` and one with `e`, each from
//! row to row, and where the tree has no rows from child to child: the walk takes as long as the
//! metadata in use is large, whatever the sizes are, and needs no memory.
//!
//! # Which starts
//!
//! `L` only changes where an allocation ends, and `R` never falls. So the cheapest start is the first
//! at the alignment behind the end of some allocation or of what is absent, and within a row no start
//! is cheaper than
//! `U(first + n) - U(last + 1)`: rows in which that is no better than what was found already are passed
//! over, which are nearly all.
//!
//! That the cheapest window can be emptied does not mean that there is room elsewhere for what is in it,
//! and then a start in between may do: it leaves other granules free. So whoever comes upon a window
//! without room asks for *every* start, and is spared those for which it can be seen at once. Where the tree has no rows these can be beyond number: of a
//! stretch that is in one state as a whole the outermost count.

use std::collections::BinaryHeap;

use crate::loose::{Bits, Loose};
use crate::pool::{NONE, Node, Rows};
use crate::probe::Probe;
use crate::run::Wanted;
use crate::tree::{ABSENT, DETAIL, HEAD, OCCUPIED, State, Tree, child_of, level1};
use crate::word::{ROW_ORDERS, low_bits};

/// A window that can be emptied. The cheaper comes first, then the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    /// Granules in the allocations that would have to go.
    pub(crate) cost: u64,
    /// Position of the first granule.
    pub(crate) start: u64,
}

/// What is looked for besides the run itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Granules that are free in the space. What is moved out of a window goes outside it, so what the
    /// allocations that touch it cover beyond it must not be more than is free beside its length.
    pub(crate) available: u128,
    /// Only candidates that come after this one.
    pub(crate) after: Option<Candidate>,
    /// Also starts that are no cheaper than one before them.
    pub(crate) every: bool,
    /// Only those that cost at most so much.
    pub(crate) limit: u64,
    /// How many are wanted.
    pub(crate) count: usize,
}

/// Starts at either end of a stretch in one state that are looked at at least.
const OUTERMOST: usize = 64;

/// Starts in a row that are passed over together: rows are, and then parts of those that are not.
const PART: u64 = 16;

/// Stretch of the tree in which a cursor stands: a row, or a child that is in one state as a whole,
/// which looks like a row in that state, whatever it spans.
#[derive(Clone, Copy)]
struct Stretch {
    first: u64,
    last: u64,
    /// Granules in use, and those that allocations start at or that are absent, as in the tree.
    used: u64,
    head: u64,
    /// Granules that loose allocations start at.
    loose: u64,
}

impl Stretch {
    /// Whether it spans more than a row.
    #[inline(always)]
    fn is_wide(&self) -> bool {
        self.last - self.first != 63
    }

    /// Granules that an allocation goes on through.
    #[inline(always)]
    fn going_on(&self) -> u64 {
        self.used & !self.head
    }

    /// Granules that make a window bad, but for those that start bad allocations further left.
    #[inline(always)]
    fn bad_starts(&self) -> u64 {
        self.head & !(self.used & self.loose)
    }
}

/// Reads the tree stretch by stretch.
struct Reader<'a, P> {
    tree: &'a Tree<P>,
    loose: &'a Loose,
    /// Absolute granule number of position 0.
    origin: u64,
    /// The node of level 1 read last: its number, its line, its section, and the bits beside its rows.
    over: u64,
    line: usize,
    section: Node,
    sheet: &'a Bits,
    /// Whether there is a row for each of its children.
    all_rows: bool,
}

/// Granules under a node of level 1, as a shift.
const OVER_SHIFT: u32 = 2 * ROW_ORDERS;

static NOTHING_LOOSE: Bits = [0; 64];

impl<'a, P: Probe> Reader<'a, P> {
    fn new(tree: &'a Tree<P>, loose: &'a Loose, origin: u64) -> Self {
        let sheet = &NOTHING_LOOSE;
        let (over, line, section) = (u64::MAX, 0, NONE);
        Reader { tree, loose, origin, over, line, section, sheet, all_rows: false }
    }

    /// The stretch that a position lies in.
    #[inline(always)]
    fn read(&mut self, position: u64) -> Stretch {
        if position >> OVER_SHIFT != self.over
            && let Some(wide) = self.read_over(position)
        {
            return wide;
        }
        let (first, last) = (position & !63, position | 63);
        let child = child_of(position, 1);
        let line = self.tree.pool.line(self.line);
        let bit = |word: usize| line[word] >> child & 1 == 1;
        let loose = self.sheet[child as usize];
        if bit(DETAIL) {
            let (used, head) = self.tree.row(self.section, position);
            return Stretch { first, last, used, head, loose };
        }
        let (used, head) = match (bit(OCCUPIED), bit(ABSENT)) {
            (false, _) => (0, 0),
            (true, true) => (0, u64::MAX),
            (true, false) => (u64::MAX, bit(HEAD) as u64),
        };
        Stretch { first, last, used, head, loose }
    }

    /// Goes to the node of level 1 over a position; if there is none, the stretch that takes its place.
    #[inline(never)]
    fn read_over(&mut self, position: u64) -> Option<Stretch> {
        let (level, _) = self.tree.state_with_level(position);
        if level > 1 {
            let span = low_bits(ROW_ORDERS * level);
            let (first, last) = (position & !span, position | span);
            // Whether an allocation starts here is said of the first granule only.
            let (used, head) = match self.tree.state(first) {
                State::Free => (0, 0),
                State::Absent => (0, u64::MAX),
                State::Used { head } => (u64::MAX, head as u64),
            };
            let loose = head & used & self.loose.get(self.origin + first) as u64;
            return Some(Stretch { first, last, used, head, loose });
        }
        self.over = position >> OVER_SHIFT;
        self.section = self.tree.section(position);
        self.line = level1(self.section, position);
        self.sheet = self.loose.sheet(self.origin + position).unwrap_or(&NOTHING_LOOSE);
        self.all_rows = self.tree.pool.get(self.line, DETAIL) == u64::MAX;
        None
    }
}

/// A cursor's stretch, and what lies before it.
struct Cursor<'a, P> {
    reader: Reader<'a, P>,
    at: Stretch,
    /// `U(first)`, counted from where the cursor set out; all counts wrap.
    used: u64,
    /// Of the last stretch in which an allocation starts, which is where the one started that runs into
    /// this stretch, if one does: its first position, at which of its granules allocations start, and
    /// which of these are loose.
    run_first: u64,
    run_starts: u64,
    run_loose: u64,
    /// One more than the last bad granule before the stretch, 0 for none; perhaps 2^64.
    bad_end: u128,
}

impl<'a, P: Probe> Cursor<'a, P> {
    fn new(mut reader: Reader<'a, P>, position: u64) -> Self {
        let at = reader.read(position);
        let mut cursor =
            Cursor { reader, at, used: 0, run_first: 0, run_starts: 0, run_loose: 0, bad_end: 0 };
        if at.going_on() & 1 == 1 {
            let Reader { tree, loose, origin, .. } = &cursor.reader;
            cursor.run_first = tree.first(at.first);
            cursor.run_starts = 1;
            cursor.run_loose = loose.get(origin + cursor.run_first) as u64;
        }
        cursor
    }

    /// Start of the allocation that runs into the stretch.
    #[inline(always)]
    fn run_start(&self) -> u64 {
        self.run_first + self.run_starts.ilog2() as u64
    }

    fn run_is_loose(&self) -> bool {
        self.run_loose >> self.run_starts.ilog2() & 1 == 1
    }

    /// Goes on until the stretch is that of a position, which must not lie before it. Only the cursor at
    /// a window's end keeps count of what is `BAD`.
    #[inline(always)]
    fn advance<const BAD: bool>(&mut self, position: u64) {
        while self.at.last < position {
            if position - self.at.last > 64 && self.skip_rows(position) {
                continue;
            }
            if BAD {
                self.bad_end = self.bad_end(self.at.last);
            }
            self.used = self.used.wrapping_add(self.used_in_stretch());
            let starts = self.at.used & self.at.head;
            if starts != 0 {
                self.run_first = self.at.first;
                self.run_starts = starts;
                self.run_loose = starts & self.at.loose;
            }
            self.at = self.reader.read(self.at.last + 1);
        }
    }

    /// Whether it stands in a row under a node that has nothing but rows.
    #[inline(always)]
    fn has_rows(&self) -> bool {
        self.reader.all_rows && self.at.last >> OVER_SHIFT == self.reader.over
    }

    /// These rows.
    #[inline(always)]
    fn rows(&self) -> Rows<'a, P> {
        self.reader.tree.rows(self.reader.section, self.at.first)
    }

    /// Goes on to a row under the same node, of which these are the words, over rows that nothing runs
    /// into; those of the row before are where allocations start in it, and which are loose.
    #[inline(always)]
    fn enter(&mut self, row: usize, used: u64, head: u64, starts: u64, loose: u64) {
        let first = self.at.first & !low_bits(OVER_SHIFT) | (row as u64) << ROW_ORDERS;
        if starts != 0 {
            (self.run_first, self.run_starts, self.run_loose) =
                (first - 64, starts, starts & loose);
        }
        let loose = self.reader.sheet[row];
        self.at = Stretch { first, last: first | 63, used, head, loose };
    }

    /// Goes over rows in which nothing is bad and nothing runs in from before, as far as they are under
    /// one node; whether there was any.
    #[inline(always)]
    fn skip_rows(&mut self, position: u64) -> bool {
        if !self.has_rows() {
            return false;
        }
        let sheet = self.reader.sheet;
        let from = child_of(self.at.first, 1) as usize;
        let here = position >> OVER_SHIFT == self.reader.over;
        let to = if here { child_of(position, 1) as usize } else { 63 };
        let rows = self.rows();
        let (mut row, mut starts) = (from, 0);
        let (mut used, mut head) = (self.at.used, self.at.head);
        while row < to {
            let bad = head & !(used & sheet[row]);
            if bad | used & !head & 1 != 0 {
                break;
            }
            self.used = self.used.wrapping_add(used.count_ones() as u64);
            starts = used & head;
            row += 1;
            (used, head) = rows.row(row);
        }
        if row != from {
            self.enter(row, used, head, starts, sheet[row - 1]);
        }
        row != from
    }

    /// Granules in use in all of the stretch.
    #[inline(always)]
    fn used_in_stretch(&self) -> u64 {
        if self.at.is_wide() && self.at.used != 0 {
            return (self.at.last - self.at.first).wrapping_add(1);
        }
        self.at.used.count_ones() as u64
    }

    /// One more than the last bad granule at or before a position in the stretch, 0 for none.
    #[inline(always)]
    fn bad_end(&self, position: u64) -> u128 {
        let (on, bad) = (self.at.going_on(), self.at.bad_starts());
        if bad | on & 1 == 0 { self.bad_end } else { self.bad_end_here(position) }
    }

    #[inline(never)]
    fn bad_end_here(&self, position: u64) -> u128 {
        let runs_in = self.at.going_on() & 1 == 1;
        let run_is_bad = runs_in && !self.run_is_loose();
        if self.at.is_wide() {
            let bad = self.at.bad_starts() != 0 || run_is_bad;
            return if bad { position as u128 + 1 } else { self.bad_end };
        }
        let upto = (position & 63) as u32;
        let bad = self.at.bad_starts() & low_bits(upto + 1);
        // Of an allocation its last granule up to the position: all before the next stop.
        let end_of = |start: u32| {
            let stops = !self.at.going_on() & (u64::MAX << start << 1);
            stops.trailing_zeros().min(upto + 1)
        };
        let end = match bad.checked_ilog2() {
            Some(last) => end_of(last),
            None if run_is_bad => end_of(0),
            None => return self.bad_end,
        };
        self.at.first as u128 + end as u128
    }

    /// `U(s)` and `A(s)` of a position in the stretch.
    #[inline(always)]
    fn before(&self, position: u64) -> (u64, u64) {
        if self.at.is_wide() {
            let inside = if self.at.used == 0 { 0 } else { position - self.at.first };
            let start = match (self.at.going_on() & 1, self.at.used) {
                (_, 0) => position,
                (0, _) => self.at.first,
                _ => self.run_start(),
            };
            return (self.used.wrapping_add(inside), start);
        }
        let at = (position & 63) as u32;
        let below = self.at.used & low_bits(at);
        let used_before = self.used.wrapping_add(below.count_ones() as u64);
        if self.at.going_on() >> at & 1 == 0 {
            return (used_before, position);
        }
        let start = match (below & self.at.head).checked_ilog2() {
            Some(start) => self.at.first | start as u64,
            None => self.run_start(),
        };
        (used_before, start)
    }

    /// `U(e)` for the `e` after a position in the stretch.
    #[inline(always)]
    fn used_upto(&self, position: u64) -> u64 {
        if self.at.is_wide() {
            let inside = if self.at.used == 0 { 0 } else { position - self.at.first + 1 };
            return self.used.wrapping_add(inside);
        }
        let used = self.at.used & low_bits((position & 63) as u32 + 1);
        self.used.wrapping_add(used.count_ones() as u64)
    }

    /// `U(e)` and `B(e) - e` for the `e` after a position in the stretch.
    #[inline(always)]
    fn upto(&self, position: u64) -> (u64, u64) {
        let used_upto = self.used_upto(position);
        if self.at.is_wide() {
            let beyond = self.at.used != 0;
            let end = if beyond { self.reader.tree.last(position) } else { position };
            return (used_upto, end - position);
        }
        let at = (position & 63) as u32;
        if self.at.used >> at & 1 == 0 {
            return (used_upto, 0);
        }
        let stops = !self.at.going_on() & (u64::MAX << at << 1);
        if stops != 0 {
            return (used_upto, (stops.trailing_zeros() - at - 1) as u64);
        }
        // Used to the end of the row, and perhaps beyond.
        let last = self.at.last;
        let beyond = self.reader.tree.goes_on_after_row(self.reader.section, last);
        let end = if beyond { self.reader.tree.last(last) } else { last };
        (used_upto, end - position)
    }
}

/// The candidates found so far: as many as are wanted, the best ones.
struct Best {
    terms: Terms,
    /// The worst on top.
    found: BinaryHeap<Candidate>,
}

impl Best {
    /// Only what costs less than this is of interest: later windows have higher starts.
    #[inline(always)]
    fn bound(&self) -> u64 {
        match self.found.peek() {
            Some(worst) if self.found.len() == self.terms.count => worst.cost,
            _ => self.terms.limit.saturating_add(1),
        }
    }

    fn offer(&mut self, candidate: Candidate) {
        if candidate.cost >= self.bound() || self.terms.after.is_some_and(|it| candidate <= it) {
            return;
        }
        if self.found.len() == self.terms.count {
            self.found.pop();
        }
        self.found.push(candidate);
    }
}

impl<P: Probe> Tree<P> {
    /// The cheapest windows for a run that can be emptied, best first, in each of some stretches of
    /// positions, ascending and disjoint. `wanted` says length and alignment only.
    pub(crate) fn cheapest(
        &self,
        wanted: &Wanted,
        stretches: impl Iterator<Item = (u64, u64)>,
        loose: &Loose,
        terms: Terms,
    ) -> Vec<Candidate> {
        let mut best = Best { terms, found: BinaryHeap::new() };
        for (first, last) in stretches {
            self.sweep(&Wanted { first, last, ..*wanted }, loose, &mut best);
        }
        best.found.into_sorted_vec()
    }

    fn sweep(&self, wanted: &Wanted, loose: &Loose, best: &mut Best) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("bmi1") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.sweep_counting(wanted, loose, best) };
        }
        self.sweep_anywhere(wanted, loose, best);
    }

    /// The same, for processors that count bits in one step.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "popcnt,bmi1")]
    fn sweep_counting(&self, wanted: &Wanted, loose: &Loose, best: &mut Best) {
        self.sweep_anywhere(wanted, loose, best);
    }

    #[inline(always)]
    fn sweep_anywhere(&self, wanted: &Wanted, loose: &Loose, best: &mut Best) {
        let Some(starts) = Starts::new(wanted) else { return };
        let Some(mut from) = starts.next(Some(wanted.first)) else { return };
        let reader = || Reader::new(self, loose, wanted.origin);
        let mut pair = Pair {
            left: Cursor::new(reader(), from),
            right: Cursor::new(reader(), from),
            starts,
            more: wanted.length - 1,
        };
        loop {
            pair.left.advance::<false>(from);
            pair.right.advance::<true>(from + pair.more);
            let passed = pair.pass_over(from, best.bound());
            if passed != 0 {
                match pair.starts.next(Some(from + passed)) {
                    Some(next) => from = next,
                    None => return,
                }
                pair.left.advance::<false>(from);
                pair.right.advance::<true>(from + pair.more);
            }
            let last = pair.left.at.last.min(pair.starts.last);
            // No start below this is good.
            let bad_end = pair.right.bad_end(from + pair.more);
            if bad_end <= last as u128
                && let Some(first) = pair.starts.next(Some(from.max(bad_end as u64)))
                && first <= last
            {
                pair.sweep_stretch(first, last, best);
            }
            let next = (last as u128 + 1).max(bad_end);
            match pair.starts.next(u64::try_from(next).ok()) {
                Some(next) => from = next,
                None => return,
            }
        }
    }
}

/// The starts a run may have.
struct Starts {
    align: u128,
    /// One less than the alignment, where that is a power of two that a word can hold.
    mask: Option<u64>,
    origin: u64,
    /// The highest.
    last: u64,
}

impl Starts {
    fn new(wanted: &Wanted) -> Option<Self> {
        let &Wanted { length, align, origin, first, last } = wanted;
        let mask = align.is_power_of_two().then(|| u64::try_from(align - 1).ok()).flatten();
        let fits = first <= last && last - first >= length - 1;
        fits.then(|| Starts { align, mask, origin, last: last - (length - 1) })
    }

    /// The lowest at or after a position.
    #[inline(always)]
    fn next(&self, from: Option<u64>) -> Option<u64> {
        let absolute = self.origin + from.filter(|&from| from <= self.last)?;
        let start = match self.mask {
            Some(mask) => absolute.checked_add(mask)? & !mask,
            None => (absolute as u128).next_multiple_of(self.align).try_into().ok()?,
        };
        Some(start - self.origin).filter(|&start| start <= self.last)
    }
}

/// The cursors at both ends of a window.
struct Pair<'a, P> {
    left: Cursor<'a, P>,
    right: Cursor<'a, P>,
    starts: Starts,
    /// The length of the run, less one.
    more: u64,
}

impl<P: Probe> Pair<'_, P> {
    /// Takes both cursors over rows in which no start is cheaper than the bound: by how many positions.
    /// It is what [`sweep_stretch`](Self::sweep_stretch) would do with each of these rows, for rows in
    /// which nothing is bad and nothing runs in from before, as nearly all are.
    #[inline(always)]
    fn pass_over(&mut self, from: u64, bound: u64) -> u64 {
        let (left, right) = (&mut self.left, &mut self.right);
        let row_by_row = from & 63 == 0 && self.more >= 63;
        if !(row_by_row && left.has_rows() && right.has_rows()) {
            return 0;
        }
        let (mut at, mut to) =
            (child_of(left.at.first, 1) as usize, child_of(right.at.first, 1) as usize);
        let room = (self.starts.last - from) >> ROW_ORDERS;
        let end = at + (63 - at).min(63 - to).min(usize::try_from(room).unwrap_or(63));
        let (left_rows, right_rows) = (left.rows(), right.rows());
        let upto = low_bits(((from + self.more) & 63) as u32 + 1);
        let ((mut used, mut head), (mut far_used, mut far_head)) =
            ((left.at.used, left.at.head), (right.at.used, right.at.head));
        let (mut starts, mut far_starts) = (0, 0);
        let first = at;
        while at < end {
            let bad = far_head & !(far_used & right.reader.sheet[to]);
            let runs_in = (used & !head | far_used & !far_head) & 1;
            let below = left.used.wrapping_add(used.count_ones() as u64);
            let least = right.used.wrapping_add((far_used & upto).count_ones() as u64);
            if bad | runs_in != 0 || least.wrapping_sub(below) < bound {
                break;
            }
            left.used = below;
            right.used = right.used.wrapping_add(far_used.count_ones() as u64);
            (starts, far_starts) = (used & head, far_used & far_head);
            (at, to) = (at + 1, to + 1);
            (used, head) = left_rows.row(at);
            (far_used, far_head) = right_rows.row(to);
        }
        if at != first {
            left.enter(at, used, head, starts, left.reader.sheet[at - 1]);
            right.enter(to, far_used, far_head, far_starts, right.reader.sheet[to - 1]);
        }
        ((at - first) as u64) << ROW_ORDERS
    }

    /// Offers the cheapest windows that start in the left cursor's stretch, from a start on and up to a
    /// position.
    #[inline(always)]
    fn sweep_stretch(&mut self, first: u64, last: u64, best: &mut Best) {
        let at = self.left.at;
        if at.is_wide() {
            return self.sweep_wide(first, last, best);
        }
        if self.starts.next(first.checked_add(1)).is_none_or(|second| second > last) {
            return self.weigh(first, best);
        }
        if self.least(first, last) >= best.bound() {
            return;
        }
        let mut from = first;
        while from <= last {
            let part_last = last.min(from | (PART - 1));
            if self.least(from, part_last) < best.bound() {
                self.sweep_part(from, part_last, best);
            }
            match part_last.checked_add(1) {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    /// What windows that start in a part of a row cost at least.
    #[inline(always)]
    fn least(&mut self, first: u64, last: u64) -> u64 {
        if self.more < 63 {
            return 0;
        }
        self.right.advance::<true>(first + self.more);
        self.right.used_upto(first + self.more).wrapping_sub(self.left.used_upto(last))
    }

    /// Offers the cheapest windows that start in a part of a row.
    fn sweep_part(&mut self, first: u64, last: u64, best: &mut Best) {
        let at = self.left.at;
        let behind = (at.used | at.head) << 1 & !(at.going_on() | at.head & !at.used);
        let mut next = self.starts.next(Some(first));
        while let Some(start) = next.filter(|&start| start <= last) {
            self.weigh(start, best);
            let ends = behind & u64::MAX << (start & 63) << 1;
            next = match (best.terms.every, ends) {
                (true, _) => self.starts.next(start.checked_add(1)),
                (false, 0) => None,
                (false, _) => self.starts.next(Some(at.first | ends.trailing_zeros() as u64)),
            };
        }
    }

    /// The same where the stretch is in one state as a whole: the later starts cost no less.
    fn sweep_wide(&mut self, first: u64, last: u64, best: &mut Best) {
        self.weigh(first, best);
        if !best.terms.every {
            return;
        }
        let (mut from, mut left) = (first, best.terms.count.max(OUTERMOST));
        while let Some(start) = self.starts.next(from.checked_add(1)).filter(|&start| start <= last)
        {
            if left == 0 {
                // From here on the last ones.
                let reach = (self.starts.align).saturating_mul(OUTERMOST as u128);
                let rest = u64::try_from(reach).map_or(start, |reach| last.saturating_sub(reach));
                from = from.max(rest);
                left = usize::MAX;
                continue;
            }
            left -= 1;
            self.weigh(start, best);
            from = start;
        }
    }

    /// Offers the window that starts at a position of the left cursor's stretch.
    #[inline(always)]
    fn weigh(&mut self, start: u64, best: &mut Best) {
        let last = start + self.more;
        self.right.advance::<true>(last);
        if self.right.bad_end(last) > start as u128 {
            return;
        }
        let (used_before, run) = self.left.before(start);
        let (used_upto, beyond) = self.right.upto(last);
        let outside = (start - run) + beyond;
        if outside.checked_add(self.more).is_none_or(|all| all == u64::MAX) {
            // One allocation of all 2^64 granules cannot be moved.
            return;
        }
        if best.terms.every && outside as u128 + self.more as u128 >= best.terms.available {
            return;
        }
        let cost = used_upto.wrapping_sub(used_before) + outside;
        best.offer(Candidate { cost, start });
    }
}
