//! Compaction: free blocks of a size, made ahead of time by moving what is in the way.
//!
//! What is free of the size already counts, and is kept from becoming anybody's home. Of the rest the
//! cheapest windows are chosen together and held before the first home is found, so that what leaves one
//! does not settle in another. Where there is not room for what would have to leave a window, the next
//! cheapest takes its place.

use std::collections::HashSet;

use super::draft::Draft;
use super::relocate::{Call, Move, Relocation};
use super::{Space, Window};
use crate::error::Error;
use crate::fallible::{Grow, no_memory};
use crate::pack;
use crate::probe::Probe;
use crate::run::Wanted;
use crate::tree::State;
use crate::window::{Candidate, Terms};

/// Blocks that are to be free.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    wanted: Wanted,
    count: u64,
    /// Those that were free when it was begun.
    pub(super) free: usize,
}

/// What is drafted so far.
struct Drafted {
    windows: Vec<(u64, u64)>,
    holds: Vec<(u64, u64)>,
    homes: Vec<Draft>,
    /// First positions of the allocations that have homes.
    olds: HashSet<u64>,
    /// Granules to be moved.
    cost: u128,
    steps: u32,
}

/// How many windows are tried, some of which may have no room for what would have to leave them: a
/// multiple of those that are wanted, and at least so many.
const TRIES_FACTOR: usize = 4;
const TRIES_MIN: usize = 64;

/// Blocks that are made at most by one relocation, so that what it keeps stays small.
const BATCH_MAX: usize = 1 << 18;

impl<P: Probe> Space<P> {
    /// Sees to it that there are `count` free blocks of at least `size`, or as many as can be had by
    /// moving at most `budget` address units: how many there are. `moved` hears of each move.
    ///
    /// Which blocks the budget is enough for is decided as if each were emptied alone: what lies across two
    /// of them is counted for both then, and moved once. Only allocations of movable kinds that are not
    /// pinned are moved, and no owner is asked; for owners that may refuse see
    /// [`Space::begin_compaction`].
    pub fn compact(
        &mut self,
        size: u128,
        count: usize,
        within: Window,
        budget: u128,
        mut moved: impl FnMut(&Move),
    ) -> Result<usize, Error> {
        let mut relocation = self.begin_compaction(size, count, within, budget, Call::NONE)?;
        self.make_moves(&mut relocation, |_| ())?;
        let blocks = self.finish_compaction(&mut relocation);
        relocation.moves().iter().for_each(&mut moved);
        Ok(blocks)
    }

    /// What [`Space::compact`] would move, and how many blocks there would be, without doing any of it.
    pub fn plan_compaction(
        &mut self,
        size: u128,
        count: usize,
        within: Window,
        budget: u128,
    ) -> Result<(usize, Vec<Move>), Error> {
        let mut relocation = self.begin_compaction(size, count, within, budget, Call::NONE)?;
        let blocks = self.count_as_if_made(&relocation);
        self.give_up(&mut relocation);
        Ok((blocks, relocation.into_moves()))
    }

    /// How many of the wanted blocks there would be if the moves of a relocation were made: what an
    /// emptied window leaves free beside it counts too.
    fn count_as_if_made(&mut self, relocation: &Relocation) -> usize {
        let olds = relocation.moves().iter().map(|it| (it.old, it.size));
        let left = || olds.clone().chain(relocation.holds().iter().copied());
        for (start, size) in left() {
            let (first, last) = self.stretch_at(start, size);
            self.tree.vacate(first, last);
        }
        let blocks = self.count_wanted(relocation);
        // The same allocations as before need the same metadata, which is there.
        for (start, size) in left() {
            let (first, last) = self.stretch_at(start, size);
            self.tree.occupy(first, last);
        }
        blocks
    }

    /// Begins to make free blocks: chooses windows, and holds them and the new homes. What was refused in
    /// the same call is not moved.
    ///
    /// Then make the moves, and [`finish_compaction`](Space::finish_compaction).
    pub fn begin_compaction(
        &mut self,
        size: u128,
        count: usize,
        within: Window,
        budget: u128,
        call: Call,
    ) -> Result<Relocation, Error> {
        let order = self.order("size", size)?;
        let window = self.window(within)?;
        self.tree.settle();
        let (Some((first, last)), 0..64) = (window, order) else {
            // The block of all 2^64 granules is free, or not to be had.
            let mut relocation = self.begin_moves(&[], &[], &[], call)?;
            let all = order == 64 && within.is_none() && self.tree.next_block(1 << 64, 0).is_some();
            let wanted = Wanted { length: 1, align: 1, origin: 0, first: 0, last: 0 };
            relocation.wanted =
                Some(Blocks { wanted, count: 0, free: (all && count > 0) as usize });
            return Ok(relocation);
        };
        let (length, align, origin) = (1u64 << order, 1 << order, self.origin);
        let wanted = Wanted { length, align, origin, first, last };
        // There is never room for more than what is free.
        let most = (self.available() >> self.shift >> order).min(count as u128) as u64;
        let mut free = Vec::new();
        let mut drafted = Drafted {
            windows: Vec::new(),
            holds: Vec::new(),
            homes: Vec::new(),
            olds: HashSet::new(),
            cost: 0,
            steps: pack::STEPS,
        };
        let done = self.draft_free(&wanted, count as u64, &mut free).and_then(|blocks| {
            // Nor more than there are windows.
            let windows = (((last - first) as u128 + 1) >> order).min(BATCH_MAX as u128) as u64;
            let missing = most.saturating_sub(blocks).min(windows) as usize;
            let limit = budget >> self.shift;
            self.draft_windows(&wanted, missing, limit, call, &mut drafted).map(|()| blocks)
        });
        // Nobody has made a home of what was free: from here on others may have it.
        self.undo_draft(free.into_iter());
        let Drafted { mut windows, holds, homes, .. } = drafted;
        windows.sort_unstable();
        let begun = done.and_then(|free| {
            let mut begun = self.begin_moves(&windows, &holds, &homes, call)?;
            begun.wanted = Some(Blocks { wanted, count: count as u64, free: free as usize });
            Ok(begun)
        });
        if begun.is_err() {
            self.undo_draft(homes.iter().map(Draft::home).chain(holds));
        }
        begun
    }

    /// Allocates the free blocks there are, as far as they are wanted: how many.
    fn draft_free(
        &mut self,
        wanted: &Wanted,
        count: u64,
        drafted: &mut Vec<(u64, u64)>,
    ) -> Result<u64, Error> {
        let mut blocks = 0;
        let mut from = Some(wanted.first);
        while blocks < count
            && let Some((first, some)) = self.free_from_on(wanted, from, count - blocks)
        {
            let last = first + ((some - 1) * wanted.length + (wanted.length - 1));
            drafted.room(1)?;
            self.tree.ensure_detail(2)?;
            self.tree.occupy(first, last);
            drafted.push((first, last));
            blocks += some;
            from = last.checked_add(1);
        }
        Ok(blocks)
    }

    /// How many of the wanted blocks are free now.
    fn count_free(&mut self, wanted: &Wanted, count: u64) -> u64 {
        self.tree.settle();
        let mut blocks = 0;
        let mut from = Some(wanted.first);
        while blocks < count
            && let Some((first, some)) = self.free_from_on(wanted, from, count - blocks)
        {
            blocks += some;
            from = (first + ((some - 1) * wanted.length + (wanted.length - 1))).checked_add(1);
        }
        blocks
    }

    /// The next wanted blocks in a row that are free, from a position on: where they start and how many
    /// they are, at most so many.
    fn free_from_on(&self, wanted: &Wanted, from: Option<u64>, most: u64) -> Option<(u64, u64)> {
        let mut from = from;
        loop {
            let at = from.filter(|&at| at <= wanted.last)?;
            let (first, last) = match self.tree.state(at) {
                State::Free => (at, self.tree.free_to(at)),
                _ => self.next_free(wanted, at).filter(|it| it.0 <= wanted.last)?,
            };
            let mut last = last.min(wanted.last);
            // What was vacated on trial may be retired in part.
            if let Some(retired) = self.first_retired((first, last)) {
                if retired.0 == first {
                    from = retired.1.checked_add(1);
                    continue;
                }
                last = retired.0 - 1;
            }
            if let Some(start) = wanted.start(first, last, wanted.align) {
                let blocks = ((last - start) as u128 + 1) / wanted.length as u128;
                return Some((start, blocks.min(most as u128) as u64));
            }
            from = last.checked_add(1);
        }
    }

    /// The next free stretch from a position on that has a block of the length.
    fn next_free(&self, wanted: &Wanted, from: u64) -> Option<(u64, u64)> {
        let (first, _) = self.tree.next_block(u128::MAX << wanted.length.ilog2(), from)?;
        Some((first, self.tree.free_to(first)))
    }

    /// The first stretch that is retired of those between two positions.
    fn first_retired(&self, (first, last): (u64, u64)) -> Option<(u64, u64)> {
        if self.retired.is_empty() {
            return None;
        }
        let retired = self.retired.overlap(self.absolute((first, last))).next()?;
        Some(self.positions(&retired))
    }

    /// Drafts as many windows as are wanted, cheapest first, and no more than may be moved.
    fn draft_windows(
        &mut self,
        wanted: &Wanted,
        count: usize,
        limit: u128,
        call: Call,
        drafted: &mut Drafted,
    ) -> Result<(), Error> {
        let mut tries = count.saturating_mul(TRIES_FACTOR).max(TRIES_MIN);
        // What is free is held already, where it is wanted.
        let mut after = Some(Candidate { cost: 0, start: u64::MAX });
        while drafted.windows.len() < count && tries > 0 {
            let missing = (count - drafted.windows.len()).min(tries);
            let window = (wanted.first, wanted.last);
            let available = self.available() >> self.shift;
            let left = u64::try_from(limit - drafted.cost).unwrap_or(u64::MAX);
            let terms = Terms { available, after, every: true, limit: left, count: missing };
            let candidates = self.cheapest(wanted, window, call, terms)?;
            tries -= candidates.len();
            after = candidates.last().copied();
            let mut left = limit - drafted.cost;
            let afforded = candidates.iter().take_while(|candidate| {
                let afforded = candidate.cost as u128 <= left;
                left = left.saturating_sub(candidate.cost as u128);
                afforded
            });
            let affordable = &candidates[..afforded.count()];
            let more = affordable.len() == missing;
            self.draft_chosen(wanted, affordable, drafted)?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Drafts those of some windows for which there is room.
    fn draft_chosen(
        &mut self,
        wanted: &Wanted,
        chosen: &[Candidate],
        drafted: &mut Drafted,
    ) -> Result<(), Error> {
        let mut held = Vec::new();
        held.room(chosen.len())?;
        // All are held before the first home is found.
        let mut done = Ok(());
        for candidate in chosen {
            let window = (candidate.start, candidate.start + (wanted.length - 1));
            let mut holds = Vec::new();
            let victims = self.draft_holds(window, &mut holds);
            let (victims, error) = match victims {
                Ok(victims) => (victims, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            held.push((window, victims, holds));
            if let Some(error) = error {
                done = Err(error);
                break;
            }
        }
        for (window, mut victims, mut holds) in held {
            // What lies across two windows has its home already.
            victims.retain(|victim| !drafted.olds.contains(&victim.0));
            let found = match done {
                Ok(()) => self.draft_left(&victims, holds.len(), drafted),
                Err(_) => Ok(false),
            };
            if let Ok(true) = found {
                drafted.cost += victims.iter().map(|it| (it.1 - it.0) as u128 + 1).sum::<u128>();
                drafted.olds.extend(victims.iter().map(|victim| victim.0));
                drafted.windows.push(window);
                drafted.holds.append(&mut holds);
            } else {
                self.undo_draft(holds.into_iter());
                done = done.and(found.map(drop));
            }
        }
        done
    }

    /// Finds homes for what is in one more window, and makes room to note it, with so many holds.
    fn draft_left(
        &mut self,
        victims: &[(u64, u64)],
        holds: usize,
        drafted: &mut Drafted,
    ) -> Result<bool, Error> {
        drafted.windows.room(1)?;
        drafted.holds.room(holds)?;
        let olds = drafted.olds.try_reserve(victims.len());
        olds.map_err(|_| no_memory(victims.len() * size_of::<u64>()))?;
        self.draft_homes(victims, &mut drafted.homes, &mut drafted.steps)
    }

    /// Ends a compaction: how many free blocks there are now of those that were wanted.
    pub fn finish_compaction(&mut self, relocation: &mut Relocation) -> usize {
        self.give_up(relocation);
        self.count_wanted(relocation)
    }

    /// How many blocks are free now of those that a relocation is to make.
    fn count_wanted(&mut self, relocation: &Relocation) -> usize {
        match &relocation.wanted {
            Some(Blocks { count: 0, free, .. }) => *free,
            Some(Blocks { wanted, count, .. }) => {
                // Positions may be others than when it was begun.
                let Wanted { length, align, origin, first, last } = *wanted;
                let first = (origin + first).saturating_sub(self.origin);
                let last = (origin + last).saturating_sub(self.origin).min(self.last);
                let wanted = Wanted { length, align, origin: self.origin, first, last };
                self.count_free(&wanted, *count) as usize
            }
            None => 0,
        }
    }
}
