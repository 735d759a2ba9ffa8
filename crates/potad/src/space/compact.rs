//! Compaction: free blocks of a size, made ahead of time by moving what is in the way.
//!
//! What is free of the size already counts, and is held. Of the rest the cheapest windows are chosen
//! together and held before the first home is found, so that what leaves one does not settle in another.
//! Where there is not room for what would have to leave a window, the next cheapest takes its place.

use std::collections::HashSet;

use super::draft::Draft;
use super::relocate::{Move, Relocation};
use super::{Space, Window};
use crate::error::Error;
use crate::pack;
use crate::probe::Probe;
use crate::run::Wanted;
use crate::tree::State;
use crate::window::Candidate;

/// What is drafted so far.
struct Drafted {
    /// Blocks that are free as it is.
    free: u64,
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

impl<P: Probe> Space<P> {
    /// Sees to it that there are `count` free blocks of at least `size`, or as many as can be had by
    /// moving at most `budget` address units: how many there are. `moved` hears of each move.
    ///
    /// Only allocations of movable kinds that are not pinned are moved, and nobody is asked; for owners
    /// who may refuse see [`Space::begin_compaction`].
    pub fn compact(
        &mut self,
        size: u128,
        count: usize,
        within: Window,
        budget: u128,
        mut moved: impl FnMut(&Move),
    ) -> Result<usize, Error> {
        let mut relocation = self.begin_compaction(size, count, within, budget, &[])?;
        self.make_moves(&mut relocation)?;
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
        let mut relocation = self.begin_compaction(size, count, within, budget, &[])?;
        self.give_up(&mut relocation);
        Ok((relocation.blocks(), relocation.moves().to_vec()))
    }

    /// Begins to make free blocks: chooses windows, and holds them, the new homes, and the blocks that are
    /// free already. Allocations at `refused`, by their starts, are not moved.
    ///
    /// Then make the moves, and [`finish_compaction`](Space::finish_compaction).
    pub fn begin_compaction(
        &mut self,
        size: u128,
        count: usize,
        within: Window,
        budget: u128,
        refused: &[u64],
    ) -> Result<Relocation, Error> {
        let order = self.order("size", size)?;
        let window = self.window(within)?;
        self.tree.settle();
        let mut drafted = Drafted {
            free: 0,
            windows: Vec::new(),
            holds: Vec::new(),
            homes: Vec::new(),
            olds: HashSet::new(),
            cost: 0,
            steps: pack::STEPS,
        };
        // A block of all 2^64 granules is free, or not to be had.
        let (Some((first, last)), 0..64) = (window, order) else {
            return self.begin_moves(&[], &[], &[]);
        };
        let (length, align, origin) = (1u64 << order, 1 << order, self.origin);
        let wanted = Wanted { length, align, origin, first, last };
        let done = self.draft_free(&wanted, count as u64, &mut drafted).and_then(|()| {
            // There is never more room than what is free.
            let most = (self.available() >> self.shift >> order).min(count as u128) as u64;
            let missing = most.saturating_sub(drafted.free) as usize;
            self.draft_windows(&wanted, missing, budget >> self.shift, refused, &mut drafted)
        });
        let Drafted { free, mut windows, holds, homes, .. } = drafted;
        windows.sort_unstable();
        let mut begun = done.and_then(|()| self.begin_moves(&windows, &holds, &homes));
        match &mut begun {
            Ok(relocation) => relocation.free = free.min(count as u64) as usize,
            Err(_) => self.undo_draft(homes.iter().map(Draft::home).chain(holds)),
        }
        begun
    }

    /// Holds the free blocks there are, as far as they are wanted.
    fn draft_free(
        &mut self,
        wanted: &Wanted,
        count: u64,
        drafted: &mut Drafted,
    ) -> Result<(), Error> {
        let &Wanted { length, align, first, last, .. } = wanted;
        let mut stretch = match self.tree.state(first) {
            State::Free => Some((first, self.tree.free_to(first))),
            _ => self.next_free(wanted, Some(first)),
        };
        while let Some((from, to)) =
            stretch.filter(|&(from, _)| from <= last && drafted.free < count)
        {
            if let Some(start) = wanted.start(from, to.min(last), align) {
                let granules = (to.min(last) - start) as u128 + 1;
                let most = (count - drafted.free) as u128;
                let blocks = (granules / length as u128).min(most) as u64;
                self.tree.ensure_detail(2)?;
                let held = (start, start + (blocks * length - 1));
                self.tree.occupy(held.0, held.1);
                drafted.holds.push(held);
                drafted.free += blocks;
            }
            stretch = self.next_free(wanted, to.checked_add(1));
        }
        Ok(())
    }

    /// The next free stretch from a position on that has a block of the length.
    fn next_free(&self, wanted: &Wanted, from: Option<u64>) -> Option<(u64, u64)> {
        let (first, _) = self.tree.next_block(u128::MAX << wanted.length.ilog2(), from?)?;
        Some((first, self.tree.free_to(first)))
    }

    /// Drafts as many windows as are wanted, cheapest first, and no more than may be moved.
    fn draft_windows(
        &mut self,
        wanted: &Wanted,
        count: usize,
        limit: u128,
        refused: &[u64],
        drafted: &mut Drafted,
    ) -> Result<(), Error> {
        let mut tries = count.saturating_mul(TRIES_FACTOR).max(TRIES_MIN);
        // What is free is held already, where it is wanted.
        let mut after = Some(Candidate { cost: 0, start: u64::MAX });
        while drafted.windows.len() < count && tries > 0 {
            let missing = (count - drafted.windows.len()).min(tries);
            let window = (wanted.first, wanted.last);
            let candidates = self.cheapest(wanted, window, refused, after, true, missing);
            tries -= candidates.len();
            after = candidates.last().copied();
            let all = candidates.len() == missing;
            let mut left = limit - drafted.cost;
            let affordable = candidates.into_iter().take_while(|candidate| {
                let afforded = candidate.cost as u128 <= left;
                left = left.saturating_sub(candidate.cost as u128);
                afforded
            });
            let affordable: Vec<Candidate> = affordable.collect();
            let more = all && affordable.len() == missing;
            self.draft_chosen(wanted, &affordable, drafted)?;
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
        // All are held before the first home is found. What is held for each are the holds up to here.
        let mut held = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            let window = (candidate.start, candidate.start + (wanted.length - 1));
            let from = drafted.holds.len();
            let victims = self.draft_holds(window, &mut drafted.holds)?;
            held.push((window, victims, from..drafted.holds.len(), candidate.cost));
        }
        let mut failed = Vec::new();
        for (window, mut victims, holds, cost) in held {
            victims.retain(|victim| !drafted.olds.contains(&victim.0));
            if self.draft_homes(&victims, &mut drafted.homes, &mut drafted.steps)? {
                drafted.olds.extend(victims.iter().map(|victim| victim.0));
                drafted.windows.push(window);
                drafted.cost += cost as u128;
            } else {
                self.undo_draft(drafted.holds[holds.clone()].iter().copied());
                failed.push(holds);
            }
        }
        for holds in failed.into_iter().rev() {
            drafted.holds.drain(holds);
        }
        Ok(())
    }

    /// Ends a compaction: how many free blocks there are now of those that were wanted.
    pub fn finish_compaction(&mut self, relocation: &mut Relocation) -> usize {
        let blocks = relocation.free + self.emptied(relocation);
        self.give_up(relocation);
        blocks
    }
}
