//! Whether a run could have been made by moving blocks: a count that knows nothing of any allocator.
//!
//! Every window at a multiple of the alignment is looked at. It can be emptied if nothing in it must
//! stay (what cannot be moved, and what is pinned) and all blocks that touch it, its **victims**,
//! have homes in the memory that is free outside it. Blocks are powers of two, aligned to their size, and
//! so are the blocks that free memory falls into, so whether there are homes for all of them at once is
//! a matter of counting: from the largest order down, what is needed is taken from what is free
//! of that order, and each block left over is two of the next.

use super::pieces::Pieces;
use crate::figures::{BlockCounts, Extent, FIGURE_ORDERS};

/// Whether some window of `pages` at a multiple of `align` can be emptied. `free` is all free memory;
/// `stays` names the slots whose allocations are pinned.
pub(crate) fn can_be_emptied(
    pieces: &Pieces,
    free: &[Extent],
    stays: impl Fn(u32) -> bool,
    memory_pages: u64,
    pages: u32,
    align: u32,
) -> bool {
    // For each page, how many before it must stay.
    let mut staying = vec![0_u32];
    for page in 0..memory_pages as u32 {
        let stay = pieces.over(page).is_some_and(|(slot, _, movable)| !movable || stays(slot));
        staying.push(staying[page as usize] + u32::from(stay));
    }
    (0..=memory_pages.saturating_sub(pages.into()))
        .step_by(align as usize)
        .filter(|start| start + u64::from(pages) <= memory_pages)
        .map(|start| start as u32..start as u32 + pages)
        .filter(|window| staying[window.start as usize] == staying[window.end as usize])
        .any(|window| {
            let (mut needed, mut homes) = (BlockCounts::default(), BlockCounts::default());
            let mut page = window.start;
            while page < window.end {
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
                let below = extent.end().min(start).saturating_sub(extent.start);
                homes.add_extent(Extent { start: extent.start, pages: below });
                let above = extent.start.max(end);
                homes.add_extent(Extent { start: above, pages: extent.end().saturating_sub(above) });
            }
            have_homes(&needed, &homes)
        })
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
