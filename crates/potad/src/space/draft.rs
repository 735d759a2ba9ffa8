//! Drafting: windows that are to be emptied, and a new home for each allocation in the way.
//!
//! A draft is made on the tree itself: what is free in the windows and the homes are allocated, so that
//! no home lies in a window and nobody takes either, and what does not work out is freed again, which
//! brings the same state back.
//!
//! Homes are found largest first, by the same policy as any block, which spares the large ones. That
//! finds homes for blocks whenever there are any; for runs of other lengths a search comes after it
//! ([`pack`](crate::pack)).

use super::Space;
use crate::error::Error;
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
        let range = self.origin as u128 + first as u128..self.origin as u128 + last as u128 + 1;
        let (mut free, mut victims) = (Vec::new(), Vec::new());
        for (first, last, state) in self.parts(&range) {
            match state {
                State::Free => free.push((first, last)),
                State::Used { .. } => victims.push((first, last)),
                State::Absent => {}
            }
        }
        // The outermost may reach beyond the window.
        if let Some(victim) = victims.first_mut() {
            victim.0 = self.tree.first(victim.0);
        }
        if let Some(victim) = victims.last_mut() {
            victim.1 = self.tree.last(victim.1);
        }
        for (first, last) in free {
            self.tree.ensure_detail(2)?;
            self.tree.occupy(first, last);
            holds.push((first, last));
        }
        Ok(victims)
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
            victims.iter().map(|&old| (old, self.home_of(old))).collect();
        victims.sort_by_key(|(_, home)| std::cmp::Reverse((home.length, home.align)));
        let before = drafts.len();
        for (old, home) in &victims {
            let found = self.draft_home(home);
            if let Ok(Some(new)) = found {
                drafts.push(Draft { old: *old, new });
                continue;
            }
            let undone: Vec<Draft> = drafts.drain(before..).collect();
            self.undo_draft(undone.iter().map(Draft::home));
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
        let mut gaps = self.free_stretches(shortest, *steps as usize);
        *steps = steps.saturating_sub(gaps.len() as u32 + 1);
        gaps.sort_by_key(|&(first, last)| (last - first, first));
        let items: Vec<Wanted> = victims.iter().map(|(_, home)| *home).collect();
        let Some(placed) = pack(&items, &gaps, steps) else { return Ok(false) };
        let before = drafts.len();
        for ((old, _), new) in victims.iter().zip(placed) {
            if let Err(error) = self.tree.ensure_detail(2) {
                let undone: Vec<Draft> = drafts.drain(before..).collect();
                self.undo_draft(undone.iter().map(Draft::home));
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
    fn free_stretches(&self, shortest: u64, most: usize) -> Vec<Stretch> {
        let mut stretches = Vec::new();
        // A stretch of so many has a block of about half of that in it.
        let orders = u128::MAX << (shortest.saturating_add(1).ilog2() - 1);
        let mut from = Some(0);
        while stretches.len() < most
            && let Some((first, _)) = from.and_then(|from| self.tree.next_block(orders, from))
        {
            let (first, last) = (self.tree.free_from(first), self.tree.free_to(first));
            if last - first >= shortest - 1 {
                stretches.push((first, last));
            }
            from = last.checked_add(1);
        }
        stretches
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

/// The stretches of `first..=last` that lie in none of `barriers`, ranges of absolute granules.
pub(super) fn between(
    (first, last): Stretch,
    origin: u64,
    barriers: impl Iterator<Item = std::ops::Range<u128>>,
) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let mut from = first as u128;
    for barrier in barriers {
        let start = barrier.start.saturating_sub(origin as u128);
        let end = barrier.end.saturating_sub(origin as u128);
        if start > from {
            stretches.push((from as u64, (start - 1).min(last as u128) as u64));
        }
        from = from.max(end);
        if from > last as u128 {
            return stretches;
        }
    }
    stretches.push((from as u64, last));
    stretches
}
