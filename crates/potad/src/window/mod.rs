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

mod cursor;

use std::collections::BinaryHeap;

use crate::error::Error;
use crate::fallible::no_memory;
use crate::loose::Loose;
use crate::probe::Probe;
use crate::run::Wanted;
use crate::tree::{Tree, child_of};
use crate::word::{ROW_ORDERS, low_bits};
use cursor::{Cursor, Reader};

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

/// The candidates found so far: as many as are wanted, the best ones.
struct Best {
    terms: Terms,
    /// The worst on top; with room for all that are wanted.
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
    ) -> Result<Vec<Candidate>, Error> {
        let mut found = BinaryHeap::new();
        let bytes = terms.count.saturating_mul(size_of::<Candidate>());
        found.try_reserve_exact(terms.count).map_err(|_| no_memory(bytes))?;
        let mut best = Best { terms, found };
        for (first, last) in stretches {
            self.sweep(&Wanted { first, last, ..*wanted }, loose, &mut best);
        }
        Ok(best.found.into_sorted_vec())
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
