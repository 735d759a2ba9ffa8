//! The Linux page allocator's core, restated in user space.
//!
//! # What it is
//!
//! A binary buddy allocator. Free blocks of each order are in a list, threaded through the page
//! structure of their first page. An allocation takes the first block of the smallest order that will
//! do and splits it, the upper halves going to the front of the lists below. A free merges with its
//! buddy, found by flipping one bit of the page number, while that is free and of the same order; the
//! result goes to the front of its list. The caller says what order it frees, as callers of the kernel
//! do (or a compound page's head says it for them).
//!
//! # What is restated and what is not
//!
//! From `mm/page_alloc.c`: `__rmqueue_smallest`, `expand`, `__free_one_page`, `page_is_buddy`, and the
//! page structure with its links, order, type and reference count. Left out, all in favour of the peer:
//! the zone's lock and atomic operations, the counters of free pages, the preparation of the tail pages
//! of compound pages (a write to each of their structures), `split_page` before a piece is freed.
//! Also left out are the per-CPU lists in front of it, which answer orders 0 to 3 and 9 without
//! coalescing until they overflow, and the separate lists for each migrate type: the design that is
//! compared is the one behind them.
//!
//! With `TAIL`, a freed block goes to the end of its list when the block it could merge into after its
//! own buddy has a free buddy itself, as `__free_one_page` has done since 2.6.35. That costs one more
//! page structure for each free and keeps more large blocks. Off, lists are last in first out.
//!
//! # Limits
//!
//! `MAX_ORDER` below 32 (the kernel's is 10), page numbers below 2^32. 64 bytes of metadata a page,
//! resident where blocks were split or freed.

#[allow(unsafe_code)]
mod zone;

use std::ops::Range;

use potad::{NoProbe, Probe};

use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::error::{BuildError, CheckError};
use crate::fallible::{extend, filled, push};
use crate::figures::{BlockCounts, Extent, aligned_blocks, coalesce, has_run};
use crate::stop::{Interrupts, OutOfMemory, Stop};
use zone::{FAULT_UNITS, FREE_AREA_BYTES, PAGE_STRUCT_BYTES, Zone};

/// The Linux buddy allocator restated: per-order lists through 64-byte page structures.
///
/// ```
/// let mut buddy: potad_replay::LinuxBuddy = potad_replay::LinuxBuddy::new(1 << 20)?;
/// let page = buddy.alloc(3).expect("an empty memory has a block of order 3");
/// buddy.free(page, 3);
/// # Ok::<(), potad_replay::BuildError>(())
/// ```
pub struct LinuxBuddy<P = NoProbe, const MAX_ORDER: u32 = 10, const TAIL: bool = false> {
    zone: Zone<P, MAX_ORDER, TAIL>,
}

impl<const MAX_ORDER: u32, const TAIL: bool> LinuxBuddy<NoProbe, MAX_ORDER, TAIL> {
    /// A memory of so many pages, all free, in blocks as large as can be.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where the number of pages is out of range or the system refuses the metadata.
    pub fn new(pages: u64) -> Result<Self, BuildError> {
        LinuxBuddy::with_probe(pages, NoProbe, &mut Interrupts::none())
    }
}

impl<P: Probe, const MAX_ORDER: u32, const TAIL: bool> LinuxBuddy<P, MAX_ORDER, TAIL> {
    /// As [`new`](LinuxBuddy::new), with a probe that sees every access to metadata.
    ///
    /// # Errors
    ///
    /// As [`new`](LinuxBuddy::new), or where the caller wants to stop.
    pub fn with_probe(
        pages: u64,
        probe: P,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self, BuildError> {
        if pages == 0 || pages > PAGES_MAX {
            return Err(BuildError::Pages { pages, max: PAGES_MAX });
        }
        let mut zone = Zone::new(pages, probe)?;
        // Blocks are freed from the last to the first, so that the lists begin at the lowest: the
        // kernel's boot allocator hands its memory over with the same result.
        let mut end = pages;
        while end > 0 {
            let order = end.trailing_zeros().min(MAX_ORDER);
            end -= 1 << order;
            interrupts.after(FAULT_UNITS)?;
            zone.free(end as u32, order);
        }
        Ok(LinuxBuddy { zone })
    }

    /// Allocates a block of 2^`order` pages and gives its first page.
    #[inline]
    pub fn alloc(&mut self, order: u32) -> Option<u32> {
        self.zone.alloc(order)
    }

    /// Frees a block of 2^`order` pages: an allocation, or a naturally aligned piece of one.
    ///
    /// # Panics
    ///
    /// Where the block reaches out of the memory, or a free block starts at its first page. Other
    /// frees of what is not allocated go unseen, as in the kernel.
    #[inline]
    pub fn free(&mut self, page: u32, order: u32) {
        debug_assert_eq!(
            page & ((1 << order) - 1),
            0,
            "page {page} is not aligned to order {order}"
        );
        self.zone.free(page, order);
    }

    /// Free pages.
    pub(crate) fn free_pages(&self) -> u64 {
        (0..=MAX_ORDER).map(|order| self.zone.nr_free(order) << order).sum()
    }

    /// Whether [`alloc`](Self::alloc) would find a block.
    pub(crate) fn has_block(&self, order: u32) -> bool {
        (order..=MAX_ORDER).any(|order| self.zone.nr_free(order) > 0)
    }

    /// Takes all free pages of a range off the lists, as isolating a range does in the kernel, and adds
    /// the blocks they make, in address order. What a free block has outside the range stays free.
    pub(crate) fn isolate(
        &mut self,
        range: Range<u32>,
        isolated: &mut Vec<(u32, u32)>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<(), Stop> {
        // A free block that the range begins in may begin before it.
        let over = |page: u32, order: u32| page & !((1 << order) - 1);
        let mut page = (0..=MAX_ORDER)
            .map(|order| (over(range.start, order), order))
            .find(|&(first, order)| self.zone.order_of_free(first).is_some_and(|is| is >= order))
            .map_or(range.start, |(first, _)| first);
        while page < range.end {
            interrupts.after(1)?;
            let Some(order) = self.zone.take(page) else {
                page += 1;
                continue;
            };
            let end = page + (1 << order);
            let inside = page.max(range.start)..end.min(range.end);
            extend(isolated, aligned_blocks(inside.clone()))?;
            let below = aligned_blocks(page..inside.start);
            for (outside, order) in below.chain(aligned_blocks(inside.end..end)) {
                self.zone.free(outside, order);
            }
            page = end;
        }
        Ok(())
    }

    /// Has the system back the metadata now, 64 bytes a page, as a running kernel's is.
    ///
    /// # Errors
    ///
    /// [`Stop::Interrupted`] where the caller wants to stop.
    pub fn populate(&mut self, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        self.zone.populate(interrupts)
    }

    pub(crate) fn probe(&self) -> &P {
        self.zone.probe()
    }

    /// The free blocks of `low..=MAX_ORDER`, in address order.
    fn blocks_from(&self, low: u32, interrupts: &mut Interrupts<'_>) -> Result<Vec<Extent>, Stop> {
        let mut blocks = Vec::new();
        for order in low..=MAX_ORDER {
            for page in self.zone.free_list(order) {
                interrupts.after(1)?;
                push(&mut blocks, Extent { start: page.into(), pages: 1 << order })?;
            }
        }
        sort_by_start(&mut blocks, interrupts)?;
        Ok(blocks)
    }

    fn corrupt(what: std::fmt::Arguments<'_>) -> CheckError {
        CheckError::corrupt("linux-buddy", what)
    }
}

impl<P: Probe, const MAX_ORDER: u32, const TAIL: bool> PageAllocator
    for LinuxBuddy<P, MAX_ORDER, TAIL>
{
    #[inline]
    fn alloc(&mut self, order: u32) -> Result<Option<u32>, OutOfMemory> {
        Ok(self.zone.alloc(order))
    }

    #[inline]
    fn free(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        self.zone.free(page, order);
        Ok(())
    }

    #[inline]
    fn free_piece(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        self.zone.free(page, order);
        Ok(())
    }

    fn pages(&self) -> u64 {
        self.zone.pages()
    }

    fn free_extents(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<Extent>, Stop> {
        coalesce(self.blocks_from(0, interrupts)?.into_iter(), interrupts)
    }

    /// Below the largest order every block is merged already, so the list lengths are the counts; only
    /// the blocks of the largest order can adjoin.
    fn free_blocks(&mut self, interrupts: &mut Interrupts<'_>) -> Result<BlockCounts, Stop> {
        let mut counts = BlockCounts::default();
        for order in 0..MAX_ORDER {
            counts.0[order as usize] = self.zone.nr_free(order);
        }
        let largest = self.blocks_from(MAX_ORDER, interrupts)?;
        for extent in coalesce(largest.into_iter(), interrupts)? {
            counts.add_extent(extent);
            interrupts.after(1)?;
        }
        Ok(counts)
    }

    /// A run is made of aligned blocks of the largest power of two that divides both its length and
    /// its alignment, and each of these lies in one free block: smaller ones need not be looked at.
    fn can_run(
        &mut self,
        pages: u64,
        align: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<bool, Stop> {
        let unit = (pages | align).trailing_zeros().min(MAX_ORDER);
        let blocks = self.blocks_from(unit, interrupts)?;
        let extents = coalesce(blocks.into_iter(), interrupts)?;
        Ok(extents.into_iter().any(|extent| has_run(extent, pages, align)))
    }

    fn metadata_bytes(&self) -> u64 {
        self.zone.pages() * PAGE_STRUCT_BYTES + u64::from(MAX_ORDER + 1) * FREE_AREA_BYTES
    }

    fn check(&self, interrupts: &mut Interrupts<'_>) -> Result<(), CheckError> {
        for order in 0..=MAX_ORDER {
            let mut listed = 0;
            for page in self.zone.free_list(order) {
                interrupts.after(1)?;
                if let Some(fault) = self.zone.fault_of(page, order) {
                    return Err(Self::corrupt(format_args!("{fault}")));
                }
                listed += 1;
                if listed > self.zone.pages() {
                    return Err(Self::corrupt(format_args!(
                        "the list of order {order} runs in a circle"
                    )));
                }
            }
            if listed != self.zone.nr_free(order) {
                let said = self.zone.nr_free(order);
                return Err(Self::corrupt(format_args!(
                    "{listed} blocks of order {order} in the list, {said} by its count"
                )));
            }
        }
        for pair in self.blocks_from(0, interrupts)?.windows(2) {
            interrupts.after(1)?;
            let (block, next) = (pair[0], pair[1]);
            if next.start < block.end() {
                return Err(Self::corrupt(format_args!(
                    "the free blocks {block:?} and {next:?} overlap"
                )));
            }
            let mergeable = block.pages == next.pages
                && block.pages < 1 << MAX_ORDER
                && block.start ^ block.pages == next.start;
            if mergeable {
                return Err(Self::corrupt(format_args!(
                    "the free buddies {block:?} and {next:?} are not merged"
                )));
            }
        }
        Ok(())
    }
}

/// Sorts blocks by their first page, which is below 2^32: from the lowest byte to the highest, as the
/// standard library's sort does not look for interrupts.
fn sort_by_start(blocks: &mut Vec<Extent>, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
    let mut sorted = filled(Extent { start: 0, pages: 0 }, blocks.len(), interrupts)?;
    for shift in (0..u32::BITS).step_by(8) {
        let byte = |block: &Extent| (block.start >> shift) as usize & 0xff;
        let mut places = [0; 256];
        for block in &*blocks {
            places[byte(block)] += 1;
        }
        let mut place = 0;
        for count in &mut places {
            place += std::mem::replace(count, place);
        }
        for block in &*blocks {
            interrupts.after(1)?;
            let place = &mut places[byte(block)];
            sorted[*place] = *block;
            *place += 1;
        }
        std::mem::swap(blocks, &mut sorted);
    }
    Ok(())
}
