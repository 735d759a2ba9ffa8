//! What belongs to a space, and what of it is out of service.

use std::ops::Range;

use super::Space;
use crate::error::Error;
use crate::fallible::text;
use crate::probe::Probe;
use crate::tree::{Mark, SECTION_LEVEL, State};
use crate::word::low_bits;

impl<P: Probe> Space<P> {
    /// Adds the span of `size` from `start` on, anywhere that is not yet in the space.
    ///
    /// What of it was retired before it was removed stays out of service.
    pub fn add(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        if let Some(taken) = self.spans.overlap(range.clone()).next() {
            let (at, size) = self.range_of(taken);
            let expected =
                format_args!("that of a span not in the space yet ({size} at {at:#x} is)");
            return Err(Error::argument("start", format_args!("{start:#x}"), expected));
        }
        // Positions may change, which recent blocks are kept by.
        self.tree.settle();
        self.cover(&range)?;
        self.admit(range)
    }

    /// Makes the tree span a range.
    fn cover(&mut self, range: &Range<u128>) -> Result<(), Error> {
        let (first, last) = Self::bounds(range);
        let top = self.tree.top();
        let tree_last = self.origin | low_bits(6 * (top + 1));
        // A root is never free as a whole, so a tree that would be filled grows too.
        let total = self.total + (range.end - range.start);
        let fills = total == 1 << (6 * (top + 1));
        let within = self.origin <= first && last <= tree_last && !fills;
        if !within || last - self.origin > self.last {
            let extent = self.spans.iter().chain([range.clone()]).map(|r| r.end - r.start).sum();
            self.tree.pool.expect(Self::lines_expected(&(0..extent)));
            if top == SECTION_LEVEL {
                self.tree.complete_section()?;
            }
        }
        if !within {
            let wanted = Self::top_for(first.min(self.origin), last.max(tree_last), top + 1);
            let origin = self.origin & !low_bits(6 * (wanted + 1));
            self.tree.grow(wanted, self.origin - origin)?;
            self.last += self.origin - origin;
            self.origin = origin;
        }
        self.last = self.last.max(last - self.origin);
        Ok(())
    }

    /// Makes absent granules, which the tree spans, part of the space.
    pub(super) fn admit(&mut self, range: Range<u128>) -> Result<(), Error> {
        let retired = self.retired.overlap(range.clone()).count();
        self.tree.ensure_detail(2 + 2 * retired)?;
        self.spans.room(1)?;
        let (first, last) = self.positions(&range);
        self.tree.mark(first, last, Mark::Free);
        for part in self.retired.overlap(range.clone()) {
            let (first, last) = self.positions(&part);
            self.tree.mark(first, last, Mark::Absent);
            self.absent += part.end - part.start;
        }
        self.total += range.end - range.start;
        self.spans.insert(range);
        self.tree.set_size(self.total);
        Ok(())
    }

    /// Takes away the span of `size` from `start` on, none of which may be allocated.
    pub fn remove(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        if !self.spans.covers(range.clone()) {
            let expected = format_args!("that of a span of {size} in the space");
            return Err(Error::argument("start", format_args!("{start:#x}"), expected));
        }
        self.tree.settle();
        let (first, last) = self.positions(&range);
        if let Some(used) = self.tree.next_used(first).filter(|&used| used <= last) {
            let used = self.address(used);
            return Err(self.occupied(size, text(format_args!("{used:#x} is allocated"))));
        }
        let retired = self.retired.overlap(range.clone()).count();
        self.tree.ensure_detail(2 + 2 * retired)?;
        self.spans.room(1)?;
        // What is retired is absent already: the stretches between are not.
        let mut from = range.start;
        let end = range.end..range.end;
        for part in self.retired.overlap(range.clone()).chain(std::iter::once(end)) {
            if from < part.start {
                let (first, last) = self.positions(&(from..part.start));
                self.tree.mark(first, last, Mark::Absent);
            }
            from = part.end;
            self.absent -= part.end - part.start;
        }
        self.total -= range.end - range.start;
        self.spans.remove(range);
        self.tree.set_size(self.total);
        Ok(())
    }

    /// Takes granules out of service: at once where free, when freed where in use.
    pub fn retire(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        self.must_be_present(start, &range)?;
        self.tree.settle();
        // A retired range in use needs detail at both ends when it is freed, and must not fail then.
        self.ensure_service(&range, State::Free)?;
        self.tree.pledged -= self.pledge_near(&range);
        let (mut from, last) = self.positions(&range);
        while let Some((first, end)) = self.next_part((from, last), State::Free) {
            self.tree.mark(first, end, Mark::Absent);
            self.absent += (end - first) as u128 + 1;
            from = end;
        }
        self.retired.insert(range.clone());
        self.tree.pledged += self.pledge_near(&range);
        Ok(())
    }

    /// Puts retired granules back into service; others of the range stay as they are.
    pub fn restore(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        self.must_be_present(start, &range)?;
        self.tree.settle();
        // What is left of a range that loses its middle is two.
        self.ensure_service(&range, State::Absent)?;
        self.tree.pledged -= self.pledge_near(&range);
        let (mut from, last) = self.positions(&range);
        while let Some((first, end)) = self.next_part((from, last), State::Absent) {
            self.tree.mark(first, end, Mark::Free);
            self.absent -= (end - first) as u128 + 1;
            from = end;
        }
        self.retired.remove(range.clone());
        self.tree.pledged += self.pledge_near(&range);
        Ok(())
    }

    /// Makes sure that the stretches of a range that are in a state can be taken into or out of service,
    /// and that two more ends can be pledged.
    fn ensure_service(&mut self, range: &Range<u128>, state: State) -> Result<(), Error> {
        let parts = self.parts(range).filter(|part| part.2 == state).count();
        self.retired.room(1)?;
        self.tree.pledged += 2;
        let ensured = self.tree.ensure_detail(2 * parts);
        self.tree.pledged -= 2;
        ensured
    }

    /// The ends that retired ranges at or beside `range` pledge: two for each not wholly absent.
    pub(crate) fn pledge_near(&self, range: &Range<u128>) -> usize {
        2 * self.retired.touching(range).filter(|retired| self.is_present(retired)).count()
    }

    /// Whether any granule of a range, parts of which may lie outside the space, is not absent.
    fn is_present(&self, range: &Range<u128>) -> bool {
        self.spans.overlap(range.clone()).any(|part| {
            let (first, last) = self.positions(&part);
            self.tree.next_present(first).is_some_and(|present| present <= last)
        })
    }

    fn must_be_present(&self, start: u64, range: &Range<u128>) -> Result<(), Error> {
        if self.spans.covers(range.clone()) {
            return Ok(());
        }
        let expected = "that of a range in the space";
        Err(Error::argument("start", format_args!("{start:#x}"), expected))
    }

    /// The first stretch between two positions that is in a state, cut to what lies between them.
    pub(super) fn next_part(&self, (first, last): (u64, u64), wanted: State) -> Option<(u64, u64)> {
        if first > last {
            return None;
        }
        let range = self.absolute((first, last));
        let mut parts = self.parts(&range);
        parts.find(|part| part.2 == wanted).map(|(first, last, _)| (first, last))
    }

    /// The range cut into what is free, what is absent, and each allocation.
    pub(crate) fn parts(&self, range: &Range<u128>) -> impl Iterator<Item = Part> + '_ {
        let (first, last) = self.positions(range);
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let at = next?;
            let (state, end) = match self.tree.state(at) {
                used @ State::Used { .. } => (used, self.tree.last(at).checked_add(1)),
                State::Free => (State::Free, self.tree.next_occupied(at)),
                State::Absent => (State::Absent, self.tree.next_present(at)),
            };
            let end = end.map_or(last, |next| (next - 1).min(last));
            next = (end < last).then(|| end + 1);
            Some((at, end, state))
        })
    }

    /// Makes the retired granules among those just freed absent; room for that was pledged.
    #[cold]
    pub(super) fn withdraw(&mut self, first: u64, last: u64) {
        let start = self.origin as u128 + first as u128;
        // One after the other, since to collect them could need memory.
        let mut rest = start..start + (last - first) as u128 + 1;
        while let Some(part) = self.retired.overlap(rest.clone()).next() {
            let (first, last) = self.positions(&part);
            self.tree.mark(first, last, Mark::Absent);
            self.absent += part.end - part.start;
            let whole = self.retired.touching(&part).next().expect("it was just found");
            if !self.is_present(&whole) {
                self.tree.pledged -= 2;
            }
            rest.start = part.end;
        }
    }

    /// Makes the retired granules between two positions free again, for the allocation that they are
    /// about to be in again: what [`withdraw`](Self::withdraw) did is undone.
    #[cold]
    pub(super) fn put_back(&mut self, first: u64, last: u64) {
        let mut rest = self.absolute((first, last));
        while let Some(part) = self.retired.overlap(rest.clone()).next() {
            let whole = self.retired.touching(&part).next().expect("it was just found");
            if !self.is_present(&whole) {
                self.tree.pledged += 2;
            }
            let (first, last) = self.positions(&part);
            self.tree.mark(first, last, Mark::Free);
            self.absent -= part.end - part.start;
            rest.start = part.end;
        }
    }
}

/// A stretch of granules as [`Space::parts`] gives it.
pub(crate) type Part = (u64, u64, State);
