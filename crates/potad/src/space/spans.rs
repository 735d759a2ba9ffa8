//! What belongs to a space, and what of it is out of service.

use std::ops::Range;

use super::Space;
use crate::error::Error;
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
            return Err(Error::Argument {
                name: "start",
                value: format!("{start:#x}"),
                expected: format!("that of a span not in the space yet ({size} at {at:#x} is)"),
            });
        }
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
        let retired: Vec<_> = self.retired.overlap(range.clone()).collect();
        self.tree.ensure_detail(2 + 2 * retired.len())?;
        let (first, last) = self.positions(&range);
        self.tree.mark(first, last, Mark::Free);
        for part in retired {
            let (first, last) = self.positions(&part);
            self.tree.mark(first, last, Mark::Absent);
            self.absent += part.end - part.start;
        }
        self.total += range.end - range.start;
        self.spans.insert(range);
        self.tree.head.set_size(self.total);
        Ok(())
    }

    /// Takes away the span of `size` from `start` on, none of which may be allocated.
    pub fn remove(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        if !self.spans.covers(range.clone()) {
            return Err(Error::Argument {
                name: "start",
                value: format!("{start:#x}"),
                expected: format!("that of a span of {size} in the space"),
            });
        }
        let (first, last) = self.positions(&range);
        if let Some(used) = self.tree.next_used(first).filter(|&used| used <= last) {
            return Err(self.occupied(size, format!("{:#x} is allocated", self.address(used))));
        }
        let retired: Vec<_> = self.retired.overlap(range.clone()).collect();
        self.tree.ensure_detail(2 + 2 * retired.len())?;
        // What is retired is absent already: the stretches between are not.
        let mut from = range.start;
        let end = range.end..range.end;
        for part in retired.iter().cloned().chain(std::iter::once(end)) {
            if from < part.start {
                let (first, last) = self.positions(&(from..part.start));
                self.tree.mark(first, last, Mark::Absent);
            }
            from = part.end;
            self.absent -= part.end - part.start;
        }
        self.total -= range.end - range.start;
        self.spans.remove(range);
        self.tree.head.set_size(self.total);
        Ok(())
    }

    /// Takes granules out of service: at once where free, when freed where in use.
    pub fn retire(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        self.must_be_present(start, &range)?;
        // What is in use will need detail at both ends when it is freed, and must not fail then.
        let parts: Vec<Part> = self.parts(&range).collect();
        let pledged = self.tree.pledged;
        self.tree.pledged += 2 * parts.iter().filter(|part| is_used(part)).count();
        if let Err(error) = self.tree.ensure_detail(2 * parts.len()) {
            self.tree.pledged = pledged;
            return Err(error);
        }
        for (first, last, state) in parts {
            if state == State::Free {
                self.tree.mark(first, last, Mark::Absent);
                self.absent += (last - first) as u128 + 1;
            }
        }
        self.retired.insert(range);
        self.pledge();
        Ok(())
    }

    /// Puts retired granules back into service; others of the range stay as they are.
    pub fn restore(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        self.must_be_present(start, &range)?;
        let parts: Vec<Part> = self.parts(&range).collect();
        self.tree.ensure_detail(2 * parts.len())?;
        for (first, last, state) in parts {
            if state == State::Absent {
                self.tree.mark(first, last, Mark::Free);
                self.absent -= (last - first) as u128 + 1;
            }
        }
        self.retired.remove(range);
        self.pledge();
        Ok(())
    }

    /// Keeps metadata in reserve for what is retired and still in use: its two ends.
    fn pledge(&mut self) {
        let retired = self.spans.iter().flat_map(|span| self.retired.overlap(span));
        let in_use = retired.map(|range| self.parts(&range).filter(is_used).count());
        self.tree.pledged = 2 * in_use.sum::<usize>();
    }

    fn must_be_present(&self, start: u64, range: &Range<u128>) -> Result<(), Error> {
        if self.spans.covers(range.clone()) {
            return Ok(());
        }
        Err(Error::Argument {
            name: "start",
            value: format!("{start:#x}"),
            expected: "that of a range in the space".into(),
        })
    }

    /// The range cut into stretches that are free, used or absent.
    pub(crate) fn parts(&self, range: &Range<u128>) -> impl Iterator<Item = Part> + '_ {
        let (first, last) = self.positions(range);
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let at = next?;
            let (state, end) = match self.tree.state(at) {
                State::Used { .. } => (State::Used { head: false }, self.tree.next_unused(at)),
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
        let freed = start..start + (last - first) as u128 + 1;
        // One after the other, since to collect them could need memory.
        let mut rest = freed;
        while let Some(part) = self.retired.overlap(rest.clone()).next() {
            let (first, last) = self.positions(&part);
            self.tree.mark(first, last, Mark::Absent);
            self.absent += part.end - part.start;
            rest.start = part.end;
        }
        if rest.start != start {
            self.pledge();
        }
    }
}

/// A stretch of granules as [`Space::parts`] gives it.
pub(crate) type Part = (u64, u64, State);

pub(crate) fn is_used(part: &Part) -> bool {
    matches!(part.2, State::Used { .. })
}
