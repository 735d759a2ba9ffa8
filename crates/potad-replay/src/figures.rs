//! What is measured of an allocator's free memory, by one method for all.
//!
//! The ground truth is the list of free **extents**: each range of free pages, as long as it is. From
//! it everything follows, whatever blocks the allocator itself keeps: a buddy allocator that stops at
//! 4 MiB and one without a largest block are asked the same question.
//!
//! * **Free blocks**: the blocks an extent falls into, each naturally aligned and as large as can be.
//! * **Unusable free index** of a size (M. Gorman): the share of the free memory that lies in blocks
//!   too small for it. 0: all of it could serve; 1: none. No free memory at all counts as 1, as in
//!   the kernel.
//! * **Run**: a range of any length in pages, at a multiple of an alignment, that spans blocks.
//! * **Map**: the memory in equal cells, each with the share of it that is occupied.

use std::ops::Range;

use crate::fallible::{filled, push};
use crate::stop::{Interrupts, Stop};
use crate::trace::PAGE_BYTES;

/// Orders a free block can have: page numbers are below 2^32.
pub const FIGURE_ORDERS: usize = 33;

/// Columns and the most rows of an address map.
pub(crate) const MAP_COLUMNS: u64 = 256;
const MAP_ROWS_MAX: u64 = 64;

/// A range of free pages, with no free page on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first page.
    pub start: u64,
    /// Its length in pages.
    pub pages: u64,
}

impl Extent {
    /// The page after the last.
    pub fn end(&self) -> u64 {
        self.start + self.pages
    }

    /// The blocks it falls into, each naturally aligned and as large as can be: first page and order,
    /// in address order.
    pub(crate) fn blocks(self) -> impl Iterator<Item = (u64, u32)> {
        let mut start = self.start;
        std::iter::from_fn(move || {
            let left = self.end() - start;
            (left > 0).then(|| {
                // The largest block that may start here, and that still fits.
                let block = (start, start.trailing_zeros().min(left.ilog2()));
                start += 1 << block.1;
                block
            })
        })
    }
}

/// The blocks a range of page numbers falls into, in the same way.
pub(crate) fn aligned_blocks(range: Range<u32>) -> impl Iterator<Item = (u32, u32)> {
    let pages = range.end.saturating_sub(range.start).into();
    let extent = Extent { start: range.start.into(), pages };
    extent.blocks().map(|(page, order)| (page as u32, order))
}

/// How many free blocks there are of each order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockCounts(pub [u64; FIGURE_ORDERS]);

impl Default for BlockCounts {
    fn default() -> Self {
        BlockCounts([0; FIGURE_ORDERS])
    }
}

impl BlockCounts {
    /// Adds the blocks a free extent falls into.
    pub fn add_extent(&mut self, extent: Extent) {
        for (_, order) in extent.blocks() {
            self.0[order as usize] += 1;
        }
    }

    /// Free pages in all.
    pub fn free_pages(&self) -> u64 {
        self.pages_from(0)
    }

    /// Pages of the largest free block, 0 if there is none.
    pub fn largest_pages(&self) -> u64 {
        self.0.iter().rposition(|&count| count > 0).map_or(0, |order| 1 << order)
    }

    /// The share of the free pages that lie in blocks below `order`.
    pub fn unusable_index(&self, order: u32) -> f64 {
        match self.free_pages() {
            0 => 1.0,
            free => 1.0 - self.pages_from(order as usize) as f64 / free as f64,
        }
    }

    fn pages_from(&self, order: usize) -> u64 {
        self.0.iter().enumerate().skip(order).map(|(order, count)| count << order).sum()
    }
}

/// Joins extents and blocks that adjoin. They come in address order.
pub(crate) fn coalesce(
    sorted: impl Iterator<Item = Extent>,
    interrupts: &mut Interrupts<'_>,
) -> Result<Vec<Extent>, Stop> {
    let mut joined: Vec<Extent> = Vec::new();
    for extent in sorted {
        match joined.last_mut() {
            Some(last) if last.end() == extent.start => last.pages += extent.pages,
            _ => push(&mut joined, extent)?,
        }
        interrupts.after(1)?;
    }
    Ok(joined)
}

/// Whether an extent has room for a run of `pages` at a multiple of `align`.
pub(crate) fn has_run(extent: Extent, pages: u64, align: u64) -> bool {
    extent.start.next_multiple_of(align) + pages <= extent.end()
}

/// Bytes of a map's cell: a power of two, and the smallest that keeps the map within its rows.
pub(crate) fn map_cell_bytes(pages: u64) -> u64 {
    pages.div_ceil(MAP_COLUMNS * MAP_ROWS_MAX).next_power_of_two() * PAGE_BYTES
}

/// How much of each cell is occupied, 0 to 255, by the extents that are free. 0 is wholly free and 255
/// wholly occupied, nothing else is.
pub(crate) fn occupancy_map(
    pages: u64,
    free: &[Extent],
    interrupts: &mut Interrupts<'_>,
) -> Result<Vec<u8>, Stop> {
    map_of(pages, free, |free, size| share(size - free, size), interrupts)
}

/// How much of each cell some extents cover, in the same way.
pub(crate) fn coverage_map(
    pages: u64,
    extents: &[Extent],
    interrupts: &mut Interrupts<'_>,
) -> Result<Vec<u8>, Stop> {
    map_of(pages, extents, share, interrupts)
}

/// Pages in some extents.
pub(crate) fn pages_of(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.pages).sum()
}

fn share(part: u64, size: u64) -> u8 {
    match part {
        0 => 0,
        part if part == size => 255,
        part => (part * 255 / size).clamp(1, 254) as u8,
    }
}

/// A value for each cell, from the pages of it that extents cover and those that it has: the last cell may
/// reach past the memory.
fn map_of(
    pages: u64,
    extents: &[Extent],
    value: impl Fn(u64, u64) -> u8,
    interrupts: &mut Interrupts<'_>,
) -> Result<Vec<u8>, Stop> {
    let cell_pages = map_cell_bytes(pages) / PAGE_BYTES;
    let mut covered = filled(0_u64, pages.div_ceil(cell_pages) as usize, interrupts)?;
    for extent in extents {
        let mut start = extent.start;
        interrupts.after(1 + extent.pages / cell_pages)?;
        while start < extent.end() {
            let cell = start / cell_pages;
            let end = extent.end().min((cell + 1) * cell_pages);
            covered[cell as usize] += end - start;
            start = end;
        }
    }
    let mut map = filled(0, covered.len(), interrupts)?;
    for ((cell, covered), value_of) in (0..).zip(covered).zip(&mut map) {
        *value_of = value(covered, cell_pages.min(pages - cell * cell_pages));
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_an_extent() {
        let mut counts = BlockCounts::default();
        // 3, 4..8, 8..16, 16..17
        counts.add_extent(Extent { start: 3, pages: 14 });
        assert_eq!(counts.0[..4], [2, 0, 1, 1]);
        assert_eq!((counts.free_pages(), counts.largest_pages()), (14, 8));
        assert_eq!(counts.unusable_index(0), 0.0);
        assert_eq!(counts.unusable_index(3), 1.0 - 8.0 / 14.0);
        assert_eq!(counts.unusable_index(4), 1.0);
        assert_eq!(BlockCounts::default().unusable_index(0), 1.0);
        assert_eq!(BlockCounts::default().largest_pages(), 0);
        // Start 0 is aligned to everything: the length decides.
        let mut counts = BlockCounts::default();
        counts.add_extent(Extent { start: 0, pages: (1 << 32) - 1 });
        assert_eq!(counts.0[..32], [1; 32]);
    }

    #[test]
    fn runs_in_an_extent() {
        let extent = Extent { start: 5, pages: 11 };
        assert!(has_run(extent, 8, 8) && has_run(extent, 11, 1) && has_run(extent, 10, 2));
        assert!(!has_run(extent, 9, 8) && !has_run(extent, 1, 16) && !has_run(extent, 12, 1));
    }

    #[test]
    fn map_of_a_ragged_memory() {
        // 16,384 cells at most: 20,000 pages need two pages a cell.
        assert_eq!(map_cell_bytes(16_384), 4096);
        assert_eq!(map_cell_bytes(20_000), 8192);
        let map = occupancy_map(
            20_001,
            &[Extent { start: 1, pages: 3 }, Extent { start: 20_000, pages: 1 }],
            &mut Interrupts::none(),
        )
        .unwrap();
        assert_eq!(map.len(), 10_001);
        assert_eq!(map[..3], [127, 0, 255]);
        assert_eq!(map[10_000], 0);
        assert_eq!(occupancy_map(20_001, &[], &mut Interrupts::none()).unwrap()[10_000], 255);
        let map = coverage_map(20_001, &[Extent { start: 1, pages: 3 }], &mut Interrupts::none())
            .unwrap();
        assert_eq!((map.len(), &map[..3], map[10_000]), (10_001, &[127, 255, 0][..], 0));
    }
}
