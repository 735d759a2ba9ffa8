//! Which pages are live while a trace is read, and so which allocation a free is of.
//!
//! The pages are kept as *live blocks*: an allocation is one block at first, and what is left of it
//! after a piece was freed is several. A block is aligned to its own size, so two of them are nested
//! or disjoint, and a freed range either lies inside one live block or has whole live blocks inside
//! it. That makes both questions cheap:
//!
//! * **Which block holds this page?** The machine's pages are cut into windows of 64. A window keeps
//!   one bit for each page a block starts at; the nearest bit at or below the page is the only
//!   candidate. A block of 64 pages or more starts in another window, at one of at most 13 places.
//! * **Which blocks lie in this range?** The bits set in the windows of the range.
//!
//! One look-up in a hash table finds a window, and none when it is the last one's again, as it mostly
//! is. Windows are made when a page of theirs is first seen, so a machine of any size costs only what
//! the trace names of it.

use rustc_hash::FxHashMap;

use crate::fallible::push;
use crate::stop::OutOfMemory;
use crate::trace::{ORDER_MAX, PackedStep, Step};

/// log2 of the pages of a window.
pub(crate) const WINDOW_ORDER: u32 = 6;
const ORDERS: usize = ORDER_MAX as usize + 1;
const NO_WINDOW: u32 = u32::MAX;

/// A live block: which allocation it belongs to and where in it.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    slot: u32,
    /// Distance from the allocation's start, in pages.
    offset: u32,
    order: u32,
}

struct Window {
    /// Bit `i` is set where a live block starts at the window's page `i`.
    starts: u64,
    /// The block that starts at each page; meaningful where the bit is set.
    blocks: [Block; 64],
}

/// An allocation that is live, wholly or in part.
#[derive(Clone, Copy)]
struct Allocation {
    order: u32,
    live_pages: u32,
}

/// What was freed by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    pub pages: u64,
    /// Allocations freed whole.
    pub wholes: u64,
    /// Pieces of allocations freed.
    pub pieces: u64,
}

/// The live pages, and the steps that led to them. Of no further use after a call that was refused
/// memory.
pub(crate) struct LivePages {
    /// Window number (pfn >> 6) to index into `windows`.
    index: FxHashMap<u64, u32>,
    windows: Vec<Window>,
    last_window: (u64, u32),
    /// Live blocks of each order, so that no order without any is searched for.
    blocks_of_order: [u32; ORDERS],
    allocations: Vec<Allocation>,
    free_slots: Vec<u32>,
    pub live_pages: u64,
    pub peak_pages: u64,
    pub peak_step: usize,
    pub steps: Vec<PackedStep>,
}

impl LivePages {
    pub(crate) fn new() -> LivePages {
        LivePages {
            index: FxHashMap::default(),
            windows: Vec::new(),
            last_window: (u64::MAX, NO_WINDOW),
            blocks_of_order: [0; ORDERS],
            allocations: Vec::new(),
            free_slots: Vec::new(),
            live_pages: 0,
            peak_pages: 0,
            peak_step: 0,
            steps: Vec::new(),
        }
    }

    /// Slots in use or used before.
    pub(crate) fn slots(&self) -> u32 {
        self.allocations.len() as u32
    }

    /// Records an allocation; first frees what is live in its range, and returns what that was.
    pub(crate) fn alloc(
        &mut self,
        pfn: u64,
        order: u32,
        migratetype: u32,
    ) -> Result<Released, OutOfMemory> {
        let lost = self.free(pfn, order)?;
        let allocation = Allocation { order, live_pages: 1 << order };
        let slot = match self.free_slots.pop() {
            Some(slot) => {
                self.allocations[slot as usize] = allocation;
                slot
            }
            None => {
                push(&mut self.allocations, allocation)?;
                (self.allocations.len() - 1) as u32
            }
        };
        self.insert(pfn, Block { slot, offset: 0, order })?;
        push(&mut self.steps, PackedStep::pack(Step::Alloc { slot, order, migratetype }))?;
        self.live_pages += 1 << order;
        if self.live_pages > self.peak_pages {
            self.peak_pages = self.live_pages;
            self.peak_step = self.steps.len();
        }
        Ok(lost)
    }

    /// Records the free of a range: a step for each live block or part of one in it.
    pub(crate) fn free(&mut self, pfn: u64, order: u32) -> Result<Released, OutOfMemory> {
        let mut released = Released::default();
        match self.block_holding(pfn) {
            Some((start, block)) if block.order >= order => {
                self.remove(start, block.order);
                let offset = (pfn - start) as u32;
                self.keep_rest(start, block, offset, order)?;
                self.release(
                    Block { slot: block.slot, offset: block.offset + offset, order },
                    &mut released,
                )?;
            }
            // Smaller than the range or not live at its first page: whatever is live inside it.
            _ => self.free_inside(pfn, order, &mut released)?,
        }
        Ok(released)
    }

    /// Puts back what is left of a block when its `order` pages at `offset` are taken out: the other
    /// half, then the other half of the half, as a buddy allocator splits.
    fn keep_rest(
        &mut self,
        start: u64,
        block: Block,
        offset: u32,
        order: u32,
    ) -> Result<(), OutOfMemory> {
        for half in order..block.order {
            let rest = (offset & !((1 << half) - 1)) ^ (1 << half);
            let kept = Block { slot: block.slot, offset: block.offset + rest, order: half };
            self.insert(start + u64::from(rest), kept)?;
        }
        Ok(())
    }

    fn free_inside(
        &mut self,
        pfn: u64,
        order: u32,
        released: &mut Released,
    ) -> Result<(), OutOfMemory> {
        let end = pfn + (1 << order);
        let mut base = pfn & !63;
        while base < end {
            if let Some(window) = self.window(base >> WINDOW_ORDER) {
                let low = pfn.saturating_sub(base).min(63) as u32;
                let high = (end - base).min(64) as u32;
                let mut starts =
                    self.windows[window].starts & (u64::MAX << low) & (u64::MAX >> (64 - high));
                while starts != 0 {
                    let bit = starts.trailing_zeros() as usize;
                    starts &= starts - 1;
                    let block = self.windows[window].blocks[bit];
                    self.remove(base + bit as u64, block.order);
                    self.release(block, released)?;
                }
            }
            base += 64;
        }
        Ok(())
    }

    /// Writes the step that frees a block already taken out of the windows.
    fn release(&mut self, block: Block, released: &mut Released) -> Result<(), OutOfMemory> {
        let Block { slot, offset, order } = block;
        let allocation = &mut self.allocations[slot as usize];
        let whole = order == allocation.order;
        allocation.live_pages -= 1 << order;
        if allocation.live_pages == 0 {
            push(&mut self.free_slots, slot)?;
        }
        self.live_pages -= 1 << order;
        released.pages += 1 << order;
        let step = if whole {
            released.wholes += 1;
            Step::Free { slot, order }
        } else {
            released.pieces += 1;
            Step::FreePiece { slot, order, offset }
        };
        push(&mut self.steps, PackedStep::pack(step))
    }

    /// The live block that holds this page, with the page it starts at.
    #[inline]
    fn block_holding(&mut self, pfn: u64) -> Option<(u64, Block)> {
        let bit = (pfn & 63) as u32;
        let base = pfn & !63;
        if let Some(window) = self.window(pfn >> WINDOW_ORDER) {
            let window = &self.windows[window];
            let below = window.starts & (u64::MAX >> (63 - bit));
            if below != 0 {
                let start = 63 - below.leading_zeros();
                let block = window.blocks[start as usize];
                // Where it ends before the page, nothing larger can hold the page either: that
                // would hold this block too.
                return (u64::from(bit) < u64::from(start) + (1 << block.order))
                    .then_some((base + u64::from(start), block));
            }
        }
        for order in WINDOW_ORDER + 1..=ORDER_MAX {
            let start = pfn & !((1 << order) - 1);
            if self.blocks_of_order[order as usize] == 0 || start == base {
                continue;
            }
            if let Some(window) = self.window(start >> WINDOW_ORDER) {
                let window = &self.windows[window];
                if window.starts & 1 == 1 && window.blocks[0].order >= order {
                    return Some((start, window.blocks[0]));
                }
            }
        }
        None
    }

    fn insert(&mut self, pfn: u64, block: Block) -> Result<(), OutOfMemory> {
        let number = pfn >> WINDOW_ORDER;
        let window = match self.window(number) {
            Some(window) => window,
            None => {
                let new = self.windows.len();
                push(&mut self.windows, Window { starts: 0, blocks: [Block::default(); 64] })?;
                self.index.try_reserve(1)?;
                self.index.insert(number, new as u32);
                self.last_window = (number, new as u32);
                new
            }
        };
        let bit = (pfn & 63) as usize;
        debug_assert_eq!(
            self.windows[window].starts >> bit & 1,
            0,
            "a block starts at {pfn:#x} already"
        );
        self.windows[window].starts |= 1 << bit;
        self.windows[window].blocks[bit] = block;
        self.blocks_of_order[block.order as usize] += 1;
        Ok(())
    }

    fn remove(&mut self, pfn: u64, order: u32) {
        let window = self.window(pfn >> WINDOW_ORDER).expect("a live block lies in a window");
        self.windows[window].starts &= !(1 << (pfn & 63));
        self.blocks_of_order[order as usize] -= 1;
    }

    #[inline]
    fn window(&mut self, number: u64) -> Option<usize> {
        if self.last_window.0 == number {
            return Some(self.last_window.1 as usize);
        }
        let found = *self.index.get(&number)?;
        self.last_window = (number, found);
        Some(found as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn steps(live: &LivePages) -> Vec<Step> {
        live.steps.iter().map(|step| step.unpack()).collect()
    }

    #[test]
    fn a_page_out_of_the_middle() {
        let mut live = LivePages::new();
        live.alloc(0x200, 9, 1).unwrap();
        assert_eq!(live.free(0x2c3, 0).unwrap(), Released { pages: 1, wholes: 0, pieces: 1 });
        // The rest, freed as the one block it was: 511 pages in nine pieces.
        assert_eq!(live.free(0x200, 9).unwrap(), Released { pages: 511, wholes: 0, pieces: 9 });
        assert_eq!(live.live_pages, 0);
        assert_eq!(steps(&live)[1], Step::FreePiece { slot: 0, order: 0, offset: 0xc3 });
        // The slot is free again.
        live.alloc(7, 0, 0).unwrap();
        assert_eq!(live.slots(), 1);
    }

    #[test]
    fn a_range_over_several_allocations() {
        let mut live = LivePages::new();
        live.alloc(0x40, 0, 0).unwrap();
        live.alloc(0x42, 1, 0).unwrap();
        live.alloc(0x80, 6, 0).unwrap();
        assert_eq!(live.free(0, 8).unwrap(), Released { pages: 67, wholes: 3, pieces: 0 });
        assert_eq!(live.free(0, 8).unwrap(), Released::default());
    }

    #[test]
    fn allocated_while_live() {
        let mut live = LivePages::new();
        live.alloc(0x40, 3, 0).unwrap();
        assert_eq!(live.alloc(0x44, 0, 0).unwrap(), Released { pages: 1, wholes: 0, pieces: 1 });
        assert_eq!(live.alloc(0x40, 3, 0).unwrap(), Released { pages: 8, wholes: 1, pieces: 3 });
        assert_eq!(live.live_pages, 8);
        assert_eq!(live.peak_pages, 8);
    }

    proptest! {
        /// Against a map of every single page to its allocation and place in it.
        #[test]
        fn as_page_by_page(events in prop::collection::vec((any::<bool>(), 0_u64..1024, 0_u32..=10), 1..200)) {
            let mut live = LivePages::new();
            let mut pages: BTreeMap<u64, (usize, u32)> = BTreeMap::new();
            // What each slot holds now: which allocation, counted from the first.
            let mut holder: BTreeMap<u32, usize> = BTreeMap::new();
            for (number, (alloc, pfn, order)) in events.into_iter().enumerate() {
                let pfn = pfn & !((1 << order) - 1);
                let range = pfn..pfn + (1 << order);
                let mut expected: Vec<(usize, u32)> = pages.range(range.clone()).map(|(_, &page)| page).collect();
                let before = live.steps.len();
                let released = if alloc { live.alloc(pfn, order, 3).unwrap() } else { live.free(pfn, order).unwrap() };
                prop_assert_eq!(released.pages as usize, expected.len());
                let mut freed = Vec::new();
                for step in &live.steps[before..] {
                    match step.unpack() {
                        Step::Free { slot, order } => {
                            let of = holder.remove(&slot).expect("a slot in use");
                            freed.extend((0..1 << order).map(|offset| (of, offset)));
                        }
                        Step::FreePiece { slot, order, offset } => {
                            prop_assert_eq!(offset & ((1 << order) - 1), 0);
                            freed.extend((offset..offset + (1 << order)).map(|offset| (holder[&slot], offset)));
                        }
                        Step::Alloc { slot, order: of_order, migratetype } => {
                            prop_assert_eq!((of_order, migratetype), (order, 3));
                            holder.insert(slot, number);
                        }
                    }
                }
                expected.sort_unstable();
                freed.sort_unstable();
                prop_assert_eq!(freed, expected);
                pages.retain(|page, _| !range.contains(page));
                if alloc {
                    pages.extend(range.enumerate().map(|(offset, page)| (page, (number, offset as u32))));
                }
                prop_assert_eq!(live.live_pages as usize, pages.len());
            }
        }
    }
}
