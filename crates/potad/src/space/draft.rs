//! Drafting: windows that are to be emptied, and a new home for each allocation in the way.
//!
//! A draft is made on the tree itself: what is free in the windows and the homes are allocated, so that
//! no home lies in a window and nobody takes either, and what does not work out is freed again, which
//! brings the same state back.
//!
//! Homes are found largest first, by the same policy as any block, which spares the large ones. That
//! finds homes for blocks whenever there are any; for runs of other lengths a search comes after it
//! ([`pack`](crate::pack)).

use std::cmp::Reverse;
use std::ops::Range;

use super::Space;
use crate::error::Error;
use crate::fallible::{Grow, collect};
use crate::pack::{self, pack};
use crate::probe::Probe;
use crate::run::{Fit, Wanted};
use crate::tree::State;

/// First and last position.
type Stretch = (u64, u64);

/// An allocation and where it is to go.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    pub(super) old: Stretch,
    /// First position of the home.
    pub(super) new: u64,
}

impl Draft {
    pub(super) fn home(&self) -> Stretch {
        (self.new, self.new + (self.old.1 - self.old.0))
    }
}

/// An allocation in the way: where it lies, and what its home has to be like.
type Victim = (Stretch, Wanted);

impl<P: Probe> Space<P> {
    /// Allocates what is free between two positions, and gives the allocations that touch it. Where it
    /// fails, `holds` has what was allocated all the same.
    pub(super) fn draft_holds(
        &mut self,
        window: Stretch,
        holds: &mut Vec<Stretch>,
    ) -> Result<Vec<Stretch>, Error> {
        let (first, last) = window;
        let mut victims = Vec::new();
        for (first, last, state) in self.parts(&self.absolute(window)) {
            if let State::Used { .. } = state {
                victims.add((first, last))?;
            }
        }
        // The outermost may reach beyond the window.
        if let Some(victim) = victims.first_mut() {
            victim.0 = self.tree.first(victim.0);
        }
        if let Some(victim) = victims.last_mut() {
            victim.1 = self.tree.last(victim.1);
        }
        let mut from = Some(first);
        while let Some(free) = from.and_then(|from| self.next_part((from, last), State::Free)) {
            holds.room(1)?;
            self.tree.ensure_detail(2)?;
            self.tree.occupy(free.0, free.1);
            holds.push(free);
            from = free.1.checked_add(1);
        }
        Ok(victims)
    }

    /// A stretch of positions in absolute granules.
    pub(super) fn absolute(&self, (first, last): Stretch) -> Range<u128> {
        let origin = self.origin as u128;
        origin + first as u128..origin + last as u128 + 1
    }

    /// Frees what was drafted.
    pub(super) fn undo_draft(&mut self, stretches: impl Iterator<Item = Stretch>) {
        for (first, last) in stretches {
            self.tree.vacate(first, last);
        }
    }

    /// Finds homes for allocations, all of which are loose: false if there is not room for all, and
    /// then nothing is drafted. `steps` is what searches may still take.
    pub(super) fn draft_homes(
        &mut self,
        victims: &[Stretch],
        drafts: &mut Vec<Draft>,
        steps: &mut u32,
    ) -> Result<bool, Error> {
        let mut victims: Vec<Victim> =
            collect(victims.iter().map(|&old| (old, self.home_of(old))))?;
        victims.sort_unstable_by_key(|(old, home)| (Reverse((home.length, home.align)), old.0));
        drafts.room(victims.len())?;
        let before = drafts.len();
        for (old, home) in &victims {
            let found = self.draft_home(home);
            if let Ok(Some(new)) = found {
                drafts.push(Draft { old: *old, new });
                continue;
            }
            self.undo_draft(drafts.drain(before..).map(|draft| draft.home()));
            found?;
            return self.pack_homes(&victims, drafts, steps);
        }
        Ok(true)
    }

    /// What a home for the allocation at a stretch has to be like.
    fn home_of(&self, (first, last): Stretch) -> Wanted {
        let descriptors = self.descriptors.as_ref();
        let align = descriptors.and_then(|them| them.align(self.origin + first)).unwrap_or(1);
        // A loose allocation is never all of 2^64 granules: it is to be moved beside itself.
        let length = last - first + 1;
        Wanted { length, align, origin: self.origin, first: 0, last: self.last }
    }

    /// Allocates one home.
    fn draft_home(&mut self, home: &Wanted) -> Result<Option<u64>, Error> {
        if home.length.is_power_of_two() && home.align == home.length as u128 {
            return self.tree.alloc_block(home.length.ilog2());
        }
        let Some(first) = self.tree.find_run(home, Fit::Aligned) else { return Ok(None) };
        self.tree.ensure_detail(2)?;
        self.tree.occupy(first, first + (home.length - 1));
        Ok(Some(first))
    }

    /// Homes by search, for when largest first has failed.
    fn pack_homes(
        &mut self,
        victims: &[Victim],
        drafts: &mut Vec<Draft>,
        steps: &mut u32,
    ) -> Result<bool, Error> {
        let is_block =
            |home: &Wanted| home.length.is_power_of_two() && home.align == home.length as u128;
        let hopeless = victims.iter().all(|(_, home)| is_block(home));
        if hopeless || victims.len() > pack::ITEMS_MAX || *steps == 0 {
            return Ok(false);
        }
        self.tree.settle();
        let shortest = victims.last().map_or(1, |(_, home)| home.length);
        let mut gaps = self.free_stretches(shortest, *steps as usize)?;
        *steps = steps.saturating_sub(gaps.len() as u32 + 1);
        gaps.sort_unstable_by_key(|&(first, last)| (last - first, first));
        let items: Vec<Wanted> = collect(victims.iter().map(|(_, home)| *home))?;
        let Some(placed) = pack(&items, &gaps, steps)? else { return Ok(false) };
        let before = drafts.len();
        for ((old, _), new) in victims.iter().zip(placed) {
            if let Err(error) = self.tree.ensure_detail(2) {
                self.undo_draft(drafts.drain(before..).map(|draft| draft.home()));
                return Err(error);
            }
            let draft = Draft { old: *old, new };
            let (first, last) = draft.home();
            self.tree.occupy(first, last);
            drafts.push(draft);
        }
        Ok(true)
    }

    /// The maximal free stretches of at least so many granules, the lowest if they are more than `most`.
    fn free_stretches(&self, shortest: u64, most: usize) -> Result<Vec<Stretch>, Error> {
        let mut stretches = Vec::new();
        // A stretch of so many has a block of about half of that in it.
        let orders = u128::MAX << (shortest.saturating_add(1).ilog2() - 1);
        let mut from = Some(0);
        while stretches.len() < most
            && let Some((first, _)) = from.and_then(|from| self.tree.next_block(orders, from))
        {
            let (first, last) = (self.tree.free_from(first), self.tree.free_to(first));
            if last - first >= shortest - 1 {
                stretches.add((first, last))?;
            }
            from = last.checked_add(1);
        }
        Ok(stretches)
    }

    /// Exponent of the alignment that a piece keeps to which is cut from an allocation, and starts at an
    /// absolute granule: what the whole kept to, as far as the piece's size and place need it. `None` for
    /// a piece at the start of one that keeps to more than its own size: it goes on doing so.
    pub(super) fn piece_align(
        align: u128,
        whole: u128,
        piece: u128,
        start: Option<u64>,
    ) -> Option<u32> {
        let needed = |length: u128| length.next_power_of_two().trailing_zeros();
        let kept = if align.is_power_of_two() { align.trailing_zeros() } else { 0 };
        match start {
            None if !align.is_power_of_two() || kept > needed(whole) => None,
            None => Some(kept.min(needed(piece))),
            Some(start) => Some(kept.min(needed(piece)).min(start.trailing_zeros())),
        }
    }
}

/// The stretches of `first..=last` that lie in none of `barriers`, ascending ranges of absolute granules.
pub(super) fn between(
    (first, last): Stretch,
    origin: u64,
    barriers: impl Iterator<Item = Range<u128>>,
) -> impl Iterator<Item = Stretch> {
    let (origin, last) = (origin as u128, last as u128);
    let position = move |granule: u128| granule.saturating_sub(origin);
    // Behind the last position another barrier, so that each stretch ends at one.
    let end = std::iter::once((last + 1, u128::MAX));
    let barriers = barriers.map(move |range| (position(range.start), position(range.end)));
    let mut from = first as u128;
    barriers.chain(end).filter_map(move |(start, end)| {
        let stretch = (from, start.min(last + 1));
        from = from.max(end);
        (stretch.0 < stretch.1).then(|| (stretch.0 as u64, (stretch.1 - 1) as u64))
    })
}
