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
//! `R(first + n) - L(last)`: rows in which that is no better than what was found already are passed
//! over, which are nearly all.
//!
//! That the cheapest window can be emptied does not mean that there is room elsewhere for what is in it,
//! and then a start in between may do: it leaves other granules free. So whoever comes upon a window
//! without room asks for *every* start, and is spared those for which it can be seen at once. Where the tree has no rows these can be beyond number: of a
//! stretch that is in one state as a whole the outermost count.

use std::collections::BinaryHeap;

use crate::loose::{Bits, Loose};
use crate::pool::{NONE, Node};
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
    /// How many are wanted.
    pub(crate) count: usize,
}

/// Starts at either end of a stretch in one state that are looked at at least.
const OUTERMOST: usize = 64;

/// Stretch of the tree in which a cursor stands: a row, or a child that is in one state as a whole.
#[derive(Clone, Copy)]
enum Stretch {
    Row { used: u64, head: u64, loose: u64 },
    Free,
    Absent,
    Used { head: bool, loose: bool },
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
    sheet: Option<&'a Bits>,
}

/// Granules under a node of level 1, as a shift.
const OVER_SHIFT: u32 = 2 * ROW_ORDERS;

impl<'a, P: Probe> Reader<'a, P> {
    fn new(tree: &'a Tree<P>, loose: &'a Loose, origin: u64) -> Self {
        Reader { tree, loose, origin, over: u64::MAX, line: 0, section: NONE, sheet: None }
    }

    /// The stretch that a position lies in: its first and last position, and what it is.
    #[inline(always)]
    fn read(&mut self, position: u64) -> (u64, u64, Stretch) {
        if position >> OVER_SHIFT != self.over {
            let (level, state) = self.tree.state_with_level(position);
            if level > 1 {
                let span = low_bits(ROW_ORDERS * level);
                let first = position & !span;
                // Whether an allocation starts here is said of the first granule only.
                let state = if first == position { state } else { self.tree.state(first) };
                return (first, position | span, self.whole(first, state));
            }
            self.over = position >> OVER_SHIFT;
            self.section = self.tree.section(position);
            self.line = level1(self.section, position);
            self.sheet = self.loose.sheet(self.origin + position);
        }
        let (first, last) = (position & !63, position | 63);
        let child = child_of(position, 1);
        let bit = |word: usize| self.tree.pool.get(self.line, word) >> child & 1 == 1;
        if bit(DETAIL) {
            let (used, head) = self.tree.row(self.section, position);
            let loose = self.sheet.map_or(0, |bits| bits[child as usize]);
            return (first, last, Stretch::Row { used, head, loose });
        }
        let state = match (bit(OCCUPIED), bit(ABSENT)) {
            (false, _) => State::Free,
            (true, true) => State::Absent,
            (true, false) => State::Used { head: bit(HEAD) },
        };
        (first, last, self.whole(first, state))
    }

    fn whole(&self, first: u64, state: State) -> Stretch {
        match state {
            State::Free => Stretch::Free,
            State::Absent => Stretch::Absent,
            State::Used { head } => {
                Stretch::Used { head, loose: head && self.loose.get(self.origin + first) }
            }
        }
    }
}

/// A cursor's stretch, and what lies before it.
struct Cursor<'a, P> {
    reader: Reader<'a, P>,
    first: u64,
    last: u64,
    stretch: Stretch,
    /// `U(first)`, counted from where the cursor set out; all counts wrap.
    used: u64,
    /// Start of the allocation that runs into the stretch, and whether it is loose. Only meaningful
    /// where one does.
    run: u64,
    run_loose: bool,
    /// One more than the last bad granule before the stretch, 0 for none.
    bad_end: u64,
}

/// Granules of a row that an allocation goes on through.
#[inline(always)]
fn going_on(used: u64, head: u64) -> u64 {
    used & !head
}

impl<'a, P: Probe> Cursor<'a, P> {
    fn new(mut reader: Reader<'a, P>, position: u64) -> Self {
        let (first, last, stretch) = reader.read(position);
        let mut cursor = Cursor {
            reader,
            first,
            last,
            stretch,
            used: 0,
            run: first,
            run_loose: false,
            bad_end: 0,
        };
        let tree = cursor.reader.tree;
        if tree.state(first) == (State::Used { head: false }) {
            cursor.run = tree.first(first);
            cursor.run_loose = cursor.reader.loose.get(cursor.reader.origin + cursor.run);
        }
        cursor
    }

    /// Goes on until the stretch is that of a position, which must not lie before it.
    #[inline(always)]
    fn advance(&mut self, position: u64) {
        while self.last < position {
            self.step();
        }
    }

    #[inline(always)]
    fn step(&mut self) {
        self.bad_end = self.bad_end(self.last);
        match self.stretch {
            Stretch::Row { used, head, loose } => {
                self.used = self.used.wrapping_add(used.count_ones() as u64);
                let starts = used & head;
                if used >> 63 != 0 && starts != 0 {
                    let start = starts.ilog2();
                    self.run = self.first | start as u64;
                    self.run_loose = loose >> start & 1 == 1;
                }
            }
            Stretch::Used { head, loose } => {
                self.used = self.used.wrapping_add(self.last - self.first).wrapping_add(1);
                if head {
                    self.run = self.first;
                    self.run_loose = loose;
                }
            }
            Stretch::Free | Stretch::Absent => {}
        }
        (self.first, self.last, self.stretch) = self.reader.read(self.last + 1);
    }

    /// One more than the last bad granule at or before a position in the stretch, 0 for none.
    #[inline(always)]
    fn bad_end(&self, position: u64) -> u64 {
        match self.stretch {
            Stretch::Row { used, head, loose } => {
                let (on, upto) = (going_on(used, head), low_bits((position & 63) as u32 + 1));
                let absent = head & !used & upto;
                let fixed = used & head & !loose & upto;
                let runs_in = on & 1 & !self.run_loose as u64;
                if absent | fixed | runs_in == 0 {
                    return self.bad_end;
                }
                // Of an allocation its last granule up to the position: all before the next stop.
                let end_of = |start: u32| {
                    let stops = !on & (u64::MAX << start << 1);
                    stops.trailing_zeros().min((position & 63) as u32 + 1)
                };
                let mut end = 64 - absent.leading_zeros();
                if fixed != 0 {
                    end = end.max(end_of(fixed.ilog2()));
                }
                if runs_in != 0 {
                    end = end.max(end_of(0));
                }
                self.first + end as u64
            }
            Stretch::Free => self.bad_end,
            Stretch::Absent => position.saturating_add(1),
            Stretch::Used { head, loose } => {
                let good = if head { loose } else { self.run_loose };
                if good { self.bad_end } else { position.saturating_add(1) }
            }
        }
    }

    /// `U(s)` and `A(s)` of a position in the stretch.
    #[inline(always)]
    fn before(&self, position: u64) -> (u64, u64) {
        match self.stretch {
            Stretch::Row { used, head, .. } => {
                let at = (position & 63) as u32;
                let below = used & low_bits(at);
                let used_before = self.used.wrapping_add(below.count_ones() as u64);
                if going_on(used, head) >> at & 1 == 0 {
                    return (used_before, position);
                }
                let starts = below & head;
                let start = if starts == 0 { self.run } else { self.first | starts.ilog2() as u64 };
                (used_before, start)
            }
            Stretch::Used { head, .. } => {
                let used_before = self.used.wrapping_add(position - self.first);
                let start = match head {
                    true => self.first,
                    false => self.run,
                };
                (used_before, start)
            }
            Stretch::Free | Stretch::Absent => (self.used, position),
        }
    }

    /// `U(e)` and `B(e) - e` for the `e` after a position in the stretch.
    #[inline(always)]
    fn upto(&self, position: u64) -> (u64, u64) {
        match self.stretch {
            Stretch::Row { used, head, .. } => {
                let at = (position & 63) as u32;
                let used_upto =
                    self.used.wrapping_add((used & low_bits(at + 1)).count_ones() as u64);
                if used >> at & 1 == 0 {
                    return (used_upto, 0);
                }
                let stops = !going_on(used, head) & (u64::MAX << at << 1);
                if stops != 0 {
                    return (used_upto, (stops.trailing_zeros() - at - 1) as u64);
                }
                // Used to the end of the row, and perhaps beyond.
                let beyond = self.reader.tree.goes_on_after_row(self.reader.section, self.last);
                let end = if beyond { self.reader.tree.last(self.last) } else { self.last };
                (used_upto, end - position)
            }
            Stretch::Used { .. } => {
                let used_upto = self.used.wrapping_add(position - self.first).wrapping_add(1);
                (used_upto, self.reader.tree.last(position) - position)
            }
            Stretch::Free | Stretch::Absent => (self.used, 0),
        }
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
            _ => u64::MAX,
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
            pair.left.advance(from);
            pair.right.advance(from + pair.more);
            let last = pair.left.last.min(pair.starts.last);
            // No start below this is good.
            let bad_end = pair.right.bad_end(from + pair.more);
            if bad_end <= last
                && let Some(first) = pair.starts.next(Some(from.max(bad_end)))
                && first <= last
            {
                pair.sweep_stretch(first, last, best);
            }
            match pair.starts.next(last.max(bad_end.saturating_sub(1)).checked_add(1)) {
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
    /// Offers the cheapest windows that start in the left cursor's stretch, from a start on and up to a
    /// position.
    #[inline(always)]
    fn sweep_stretch(&mut self, first: u64, last: u64, best: &mut Best) {
        let Stretch::Row { used, head, .. } = self.left.stretch else {
            return self.sweep_whole(first, last, best);
        };
        if self.starts.next(first.checked_add(1)).is_none_or(|second| second > last) {
            return self.weigh(first, best);
        }
        if self.more >= 63 {
            let (used_upto, beyond) = self.right.upto(first + self.more);
            let used_before_next = self.left.used.wrapping_add(used.count_ones() as u64);
            let least = used_upto.wrapping_add(beyond).wrapping_sub(used_before_next);
            if least >= best.bound() {
                return;
            }
        }
        self.weigh(first, best);
        if best.terms.every {
            let mut from = first;
            while let Some(start) = self.starts.next(Some(from + 1)).filter(|&start| start <= last)
            {
                self.weigh(start, best);
                from = start;
            }
            return;
        }
        let absent = head & !used;
        let mut ends = ((used | head) << 1) & !(going_on(used, head) | absent);
        let mut weighed = first;
        while ends != 0 {
            let end = self.left.first | ends.trailing_zeros() as u64;
            ends &= ends - 1;
            if end > weighed {
                weighed = match self.starts.next(Some(end)) {
                    Some(start) if start <= last => start,
                    _ => return,
                };
                self.weigh(weighed, best);
            }
        }
    }

    /// The same where the stretch is in one state as a whole: the later starts cost no less.
    fn sweep_whole(&mut self, first: u64, last: u64, best: &mut Best) {
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
        self.right.advance(last);
        if self.right.bad_end(last) > start {
            return;
        }
        let (used_before, run) = self.left.before(start);
        let (used_upto, beyond) = self.right.upto(last);
        let outside = (start - run) + beyond;
        if best.terms.every && outside as u128 + self.more as u128 >= best.terms.available {
            return;
        }
        let cost = used_upto.wrapping_sub(used_before) + outside;
        best.offer(Candidate { cost, start });
    }
}
