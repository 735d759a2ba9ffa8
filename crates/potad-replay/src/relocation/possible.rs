//! Whether a run could have been made by moving blocks: a count that knows nothing of any allocator.
//!
//! Every window at a multiple of the alignment is looked at. It can be emptied if nothing in it must
//! stay (what cannot be moved, and what is pinned) and all blocks that touch it, its **victims**,
//! have homes in the memory that is free outside it. Blocks are powers of two, aligned to their size, and
//! so are the blocks that free memory falls into, so whether there are homes for all of them at once is
//! a matter of counting: from the largest order down, what is needed is taken from what is free
//! of that order, and each block left over is two of the next.

use std::ops::Range;

use super::pieces::Pieces;
use crate::fallible::with_room;
use crate::figures::{BlockCounts, Extent, FIGURE_ORDERS};
use crate::stop::{Interrupts, Stop};

/// Whether some window of `pages` at a multiple of `align` can be emptied. `free` is all free memory;
/// `stays` names the slots whose allocations are pinned.
pub(crate) fn can_be_emptied(
    pieces: &Pieces,
    free: &[Extent],
    stays: impl Fn(u32) -> bool,
    memory_pages: u64,
    pages: u32,
    align: u32,
    interrupts: &mut Interrupts<'_>,
) -> Result<bool, Stop> {
    // For each page, how many before it must stay: all but what is free or may be moved.
    let mut stays_before = with_room(memory_pages as usize + 1)?;
    let mut before = 0_u32;
    stays_before.push(before);
    let mut extents = free.iter().peekable();
    for page in 0..memory_pages as u32 {
        interrupts.after(1)?;
        let at = u64::from(page);
        while extents.next_if(|extent| extent.end() <= at).is_some() {}
        let is_free = extents.peek().is_some_and(|extent| extent.start <= at);
        let may_go = pieces.over(page).is_some_and(|(slot, _, movable)| movable && !stays(slot));
        before += u32::from(!is_free && !may_go);
        stays_before.push(before);
    }
    for start in (0..=memory_pages.saturating_sub(pages.into())).step_by(align as usize) {
        interrupts.after(1)?;
        let end = start + u64::from(pages);
        if end <= memory_pages
            && stays_before[start as usize] == stays_before[end as usize]
            && has_homes(pieces, free, start as u32..end as u32, interrupts)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether all blocks that touch a window have homes in what is free outside it.
fn has_homes(
    pieces: &Pieces,
    free: &[Extent],
    window: Range<u32>,
    interrupts: &mut Interrupts<'_>,
) -> Result<bool, Stop> {
    let (mut needed, mut homes) = (BlockCounts::default(), BlockCounts::default());
    let mut page = window.start;
    while page < window.end {
        interrupts.after(1)?;
        page = match pieces.over(page) {
            Some((_, victim, _)) => {
                needed.0[victim.order as usize] += 1;
                victim.pages().end
            }
            None => page + 1,
        };
    }
    let (start, end) = (u64::from(window.start), u64::from(window.end));
    for &extent in free {
        interrupts.after(1)?;
        let below = extent.end().min(start).saturating_sub(extent.start);
        homes.add_extent(Extent { start: extent.start, pages: below });
        let above = extent.start.max(end);
        homes.add_extent(Extent { start: above, pages: extent.end().saturating_sub(above) });
    }
    Ok(have_homes(&needed, &homes))
}

/// Whether blocks find places in other blocks, all at once.
fn have_homes(needed: &BlockCounts, homes: &BlockCounts) -> bool {
    let mut left = 0;
    (0..FIGURE_ORDERS).rev().all(|order| {
        let have = 2 * left + homes.0[order];
        let enough = needed.0[order] <= have;
        left = have.saturating_sub(needed.0[order]);
        enough
    })
}

#[cfg(test)]
mod tests {
    use super::super::pieces::Freed;
    use super::super::relocator::Relocator;
    use super::*;
    use crate::allocator::PageAllocator;
    use crate::potad_space::PotadSpace;
    use proptest::prelude::*;

    /// Whether blocks have homes, by trying every one for every block.
    fn brute(needed: &mut [u32], homes: &mut Vec<u32>) -> bool {
        let Some((&mut order, rest)) = needed.split_first_mut() else { return true };
        (0..homes.len()).any(|at| {
            let home = homes[at];
            if home < order {
                return false;
            }
            let before = homes.clone();
            homes.swap_remove(at);
            homes.extend(order..home);
            let found = brute(rest, homes);
            *homes = before;
            found
        })
    }

    proptest! {
        #[test]
        fn homes_as_by_trying_all(
            mut needed in prop::collection::vec(0_u32..4, 0..6),
            mut homes in prop::collection::vec(0_u32..5, 0..5),
        ) {
            let count = |orders: &[u32]| {
                let mut counts = BlockCounts::default();
                orders.iter().for_each(|&order| counts.0[order as usize] += 1);
                counts
            };
            let said = have_homes(&count(&needed), &count(&homes));
            prop_assert_eq!(said, brute(&mut needed, &mut homes));
        }

        /// Whatever this says can be done, potad does, and nothing else: whole and part frees, pins,
        /// pages that cannot be moved and runs that stay included.
        #[test]
        fn potad_grants_every_run_that_is_possible(
            memory in 64_u32..300,
            steps in prop::collection::vec((0_u32..8, any::<u32>(), any::<u32>()), 1..120),
            pinned in prop::collection::vec(any::<bool>(), 64),
        ) {
            let mut space = PotadSpace::with_probe(memory.into(), potad::NoProbe).unwrap();
            let go_on = &mut Interrupts::none();
            let mut pieces = Pieces::new(64, memory.into(), go_on).unwrap();
            let mut live = [None; 64];
            for (what, which, how) in steps {
                let slot = which % 64;
                match (what, live[slot as usize]) {
                    (0..=3, None) => {
                        let (order, movable) = (how % 5, how % 7 != 0);
                        if let Some(page) = space.alloc_as(order, movable).unwrap() {
                            pieces.put(slot, page, order, movable).unwrap();
                            live[slot as usize] = Some(order);
                        }
                    }
                    (0..=5, Some(order)) => {
                        let part = order.saturating_sub(how % 3);
                        let offset = ((how >> 8) % (1 << (order - part))) << part;
                        for freed in pieces.take(slot, offset, part).unwrap() {
                            match freed {
                                Freed::Whole(piece) => space.free(piece.page, piece.order),
                                Freed::Part(of, part) => {
                                    space.free_part(of.page, of.order, part.page, part.order)
                                }
                            }
                            .unwrap();
                        }
                        if part == order {
                            live[slot as usize] = None;
                        }
                    }
                    (6..=7, _) => {
                        let (pages, align) = (1 + how % 40, 1 << (which % 5));
                        let stays = |slot: u32| pinned[slot as usize] && what == 6;
                        let all: Vec<_> =
                            pieces.movable().filter(|&(slot, _)| stays(slot)).collect();
                        all.iter().for_each(|(_, piece)| space.pin(piece.page).unwrap());
                        let free = space.free_extents(go_on).unwrap();
                        let possible =
                            can_be_emptied(&pieces, &free, stays, memory.into(), pages, align, go_on)
                                .unwrap();
                        let mut moves = Vec::new();
                        let run = space.alloc_run(pages, align, &mut moves, go_on).unwrap();
                        prop_assert_eq!(run.is_some(), possible);
                        all.iter().for_each(|(_, piece)| space.unpin(piece.page));
                        moves.into_iter().for_each(|made| pieces.moved(made).unwrap());
                        if let Some(run) = run.filter(|_| how & 1 << 16 != 0) {
                            space.free_run(run, pages, go_on).unwrap();
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(space.check(go_on), Ok(()));
                for (_, piece) in pieces.movable() {
                    let found = space.space.lookup(u64::from(piece.page) * 4096).unwrap();
                    prop_assert_eq!(
                        (found.start, found.size),
                        (u64::from(piece.page) * 4096, 4096 << piece.order)
                    );
                }
            }
        }
    }
}
