//! Linux's contiguous memory allocator (CMA), restated in user space over the restated buddy.
//!
//! # What it is
//!
//! An **area** at the end of the memory is reserved at boot. Movable allocations may use it as long as
//! nobody wants it; others never do. Who wants a run gets it from there: the pages that are in its
//! place are migrated to others first.
//!
//! # What is restated
//!
//! * Serving a request, from `__rmqueue` in `mm/page_alloc.c`: a movable one is served from the area
//!   if more than half of the free pages lie there, or if there is nothing for it elsewhere. Free blocks
//!   of the area and others do not merge.
//! * A request for a run, `cma_alloc` in `mm/cma.c`: **windows** of the area in address order, at
//!   multiples of the alignment, less what has been handed out as runs. If one comes out busy, the next
//!   multiple of the alignment behind it is tried, until there are no more.
//! * Emptying a window, `alloc_contig_range`: its free pages are isolated, so that nothing is allocated
//!   there, then what is in use in it is migrated in address order. The home of a migrated block is
//!   what any movable allocation of its order would get, which may be in the area. A block that has no
//!   home as a whole is split, as `migrate_pages` splits a huge page. The first page that cannot
//!   be migrated makes the window busy: what is free in it is given back, and what was migrated has been
//!   migrated for nothing.
//!
//! # What is left out, in favour of this peer
//!
//! Migration goes on in batches of 32 pages, so the kernel also moves what follows a busy page in its
//! batch, and asks five times; here it stops at the page. The kernel isolates whole page blocks
//! of 2 MiB around the window; here the window. Blocks that reach over the window's ends are moved. The
//! lists for each migrate type, watermarks and per-CPU lists are left out as in the buddy itself. Also
//! left out, and in nobody's favour: clean page cache that is dropped where it could be migrated, as a
//! trace does not say what is clean.
//!
//! # Representation
//!
//! Two buddies, one over the area and one over the rest, and beside them what a page structure says of
//! the block that starts at its page. The area begins at a multiple of the buddy's largest block, so
//! what is aligned in it is aligned in the memory.

use std::ops::Range;

use potad::NoProbe;

use super::relocator::{Move, Relocator, Reserve, remainder};
use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::error::{BuildError, CheckError};
use crate::fallible::{copied, extend, filled, push};
use crate::figures::{Extent, aligned_blocks, coalesce};
use crate::linux_buddy::LinuxBuddy;
use crate::stop::{Interrupts, OutOfMemory, Stop};

pub(crate) const ALLOCATOR: &str = "cma";

/// The buddy's largest order, and pages of such a block.
const MAX_ORDER: u32 = 10;
const MAX_ORDER_PAGES: u64 = 1 << MAX_ORDER;

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InUse {
    order: u8,
    movable: bool,
    pinned: bool,
}

/// Pages that are looked through for one that is handed out in the time of a unit of work.
const TAKEN_PER_UNIT: u64 = 16;

/// The work of a block that is migrated.
const UNITS_PER_BLOCK: u64 = 64;

/// The contiguous memory allocator restated.
pub struct Cma {
    rest: LinuxBuddy,
    /// Numbers its pages from 0, as `handed_out` does.
    area: LinuxBuddy,
    /// The area's first page; a multiple of [`MAX_ORDER_PAGES`].
    base: u32,
    /// The live block that starts at each page; pages of runs have none.
    in_use: Vec<Option<InUse>>,
    /// Pages of the area that are parts of runs.
    handed_out: Vec<bool>,
    failures_beside_area: u64,
}

impl Cma {
    /// A memory of so many pages, all free, the last `reserved` of them reserved for runs: or a few
    /// more, as the area begins where a largest block would.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where the number of pages is out of range, nothing would be reserved or all, or
    /// the system refuses the metadata.
    pub fn new(pages: u64, reserved: u64) -> Result<Self, BuildError> {
        Cma::with_interrupts(pages, reserved, &mut Interrupts::none())
    }

    /// The same, unless the caller wants to stop.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`BuildError::Stopped`].
    pub fn with_interrupts(
        pages: u64,
        reserved: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self, BuildError> {
        if pages == 0 || pages > PAGES_MAX {
            return Err(BuildError::Pages { pages, max: PAGES_MAX });
        }
        let base = pages.saturating_sub(reserved) / MAX_ORDER_PAGES * MAX_ORDER_PAGES;
        if base == 0 || base == pages {
            return Err(BuildError::Reserve { pages, reserved, block: MAX_ORDER_PAGES });
        }
        Ok(Cma {
            rest: LinuxBuddy::with_probe(base, NoProbe, interrupts)?,
            area: LinuxBuddy::with_probe(pages - base, NoProbe, interrupts)?,
            base: base as u32,
            in_use: filled(None, pages as usize, interrupts)?,
            handed_out: filled(false, (pages - base) as usize, interrupts)?,
            failures_beside_area: 0,
        })
    }

    /// The first page of the reserved area.
    pub fn base(&self) -> u32 {
        self.base
    }

    /// A home for a movable block.
    fn alloc_movable(&mut self, order: u32) -> Option<u32> {
        let (area, rest) = (self.area.free_pages(), self.rest.free_pages());
        let area_first = area > (area + rest) / 2;
        let from_area = |cma: &mut Cma| cma.area.alloc(order).map(|page| cma.base + page);
        let first = if area_first { from_area(self) } else { None };
        first.or_else(|| self.rest.alloc(order)).or_else(|| from_area(self))
    }

    /// Puts a block on the free lists, in use or isolated until now.
    fn give_back(&mut self, page: u32, order: u32) {
        match page.checked_sub(self.base) {
            Some(in_area) => self.area.free(in_area, order),
            None => self.rest.free(page, order),
        }
    }

    /// The live block that a page lies in: its first page, and what it is.
    fn block_over(&self, page: u32) -> Option<(u32, InUse)> {
        (0..=MAX_ORDER).find_map(|order| {
            let first = page & !((1 << order) - 1);
            let block = self.in_use[first as usize]?;
            (u32::from(block.order) >= order).then_some((first, block))
        })
    }

    /// The lowest window at or after `from` in which nothing is handed out. `from`, a multiple of
    /// `align` or the area's first page, and the window are numbered in the area.
    fn next_window(
        &self,
        mut from: u64,
        pages: u32,
        align: u32,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Option<Range<u32>>, Stop> {
        let base = u64::from(self.base);
        loop {
            let start = (base + from).next_multiple_of(align.into()) - base;
            let end = start + u64::from(pages);
            let Some(window) = self.handed_out.get(start as usize..end as usize) else {
                return Ok(None);
            };
            interrupts.after(1 + u64::from(pages) / TAKEN_PER_UNIT)?;
            match window.iter().rposition(|&taken| taken) {
                None => return Ok(Some(start as u32..end as u32)),
                Some(taken) => from = start + taken as u64 + 1,
            }
        }
    }

    /// Migrates what is in use in a window, numbered in the area, and keeps all of it off the free
    /// lists. Whether it could: if a page of it cannot be migrated, what is free in it is given back.
    fn empty(
        &mut self,
        window: Range<u32>,
        moves: &mut Vec<Move>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<bool, Stop> {
        let mut isolated = Vec::new();
        self.area.isolate(window.clone(), &mut isolated, interrupts)?;
        let end = self.base + window.end;
        let mut page = self.base + window.start;
        // Only the first block can begin before the window.
        if let Some((first, _)) = self.block_over(page) {
            page = first;
        }
        let mut free = copied(&isolated)?.into_iter().peekable();
        let mut emptied = true;
        while page < end && emptied {
            page += match (self.in_use[page as usize], free.peek()) {
                (Some(block), _) => {
                    emptied =
                        self.migrate(page, block, &window, &mut isolated, moves, interrupts)?;
                    1 << block.order
                }
                (None, Some(&(at, order))) if self.base + at == page => {
                    free.next();
                    1 << order
                }
                (None, _) => unreachable!("page {page} is neither free nor in use"),
            };
        }
        if !emptied {
            for (page, order) in isolated {
                interrupts.after(1)?;
                self.area.free(page, order);
            }
        }
        Ok(emptied)
    }

    /// Migrates one block, if it can be; what it leaves in the window is isolated.
    fn migrate(
        &mut self,
        page: u32,
        block: InUse,
        window: &Range<u32>,
        isolated: &mut Vec<(u32, u32)>,
        moves: &mut Vec<Move>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<bool, Stop> {
        if block.pinned || !block.movable {
            return Ok(false);
        }
        // Halves that are still to be moved, the lower ones last.
        let mut parts = Vec::new();
        push(&mut parts, (page, u32::from(block.order)))?;
        while let Some((old, order)) = parts.pop() {
            interrupts.after(UNITS_PER_BLOCK)?;
            match self.alloc_movable(order) {
                Some(new) => {
                    self.carve(old, order);
                    self.in_use[new as usize] = self.in_use[old as usize].take();
                    push(moves, Move { old, new, order })?;
                    let old = old - self.base;
                    self.area.free(old, order);
                    let end = old + (1 << order);
                    // A half of a block that was split may lie outside as a whole.
                    let left = window.start.clamp(old, end)..window.end.clamp(old, end);
                    self.area.isolate(left, isolated, interrupts)?;
                }
                None if order == 0 => return Ok(false),
                None => {
                    let half = order - 1;
                    extend(&mut parts, [(old + (1 << half), half), (old, half)])?;
                }
            }
        }
        Ok(true)
    }

    /// Makes the 2^`order` pages from `page` on a live block of their own, if they are not.
    fn carve(&mut self, page: u32, order: u32) {
        let (first, block) = self.block_over(page).expect("only what is live is carved");
        for (part, order) in remainder(first, block.order.into(), page, order) {
            self.in_use[part as usize] = Some(InUse { order: order as u8, ..block });
        }
        self.in_use[page as usize] = Some(InUse { order: order as u8, ..block });
    }

    fn set_pinned(&mut self, page: u32, pinned: bool) {
        self.in_use[page as usize].as_mut().expect("only live blocks are pinned").pinned = pinned;
    }

    fn corrupt(what: std::fmt::Arguments<'_>) -> CheckError {
        CheckError::corrupt(ALLOCATOR, what)
    }
}

impl PageAllocator for Cma {
    fn alloc(&mut self, order: u32) -> Result<Option<u32>, OutOfMemory> {
        self.alloc_as(order, false)
    }

    fn alloc_as(&mut self, order: u32, movable: bool) -> Result<Option<u32>, OutOfMemory> {
        let page = if movable { self.alloc_movable(order) } else { self.rest.alloc(order) };
        match page {
            Some(page) => {
                let block = InUse { order: order as u8, movable, pinned: false };
                self.in_use[page as usize] = Some(block);
            }
            None => self.failures_beside_area += u64::from(self.area.has_block(order)),
        }
        Ok(page)
    }

    fn free(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        let block = self.in_use[page as usize].take().expect("only live blocks are freed");
        assert_eq!(u32::from(block.order), order, "free of page {page}");
        self.give_back(page, order);
        Ok(())
    }

    fn free_piece(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        self.carve(page, order);
        self.free(page, order)
    }

    fn pages(&self) -> u64 {
        self.rest.pages() + self.area.pages()
    }

    fn free_extents(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<Extent>, Stop> {
        let base = u64::from(self.base);
        let rest = self.rest.free_extents(interrupts)?.into_iter();
        let area = self.area.free_extents(interrupts)?.into_iter();
        let area = area.map(|extent| Extent { start: base + extent.start, ..extent });
        coalesce(rest.chain(area), interrupts)
    }

    fn metadata_bytes(&self) -> u64 {
        self.rest.metadata_bytes() + self.area.metadata_bytes()
    }

    fn check(&self, interrupts: &mut Interrupts<'_>) -> Result<(), CheckError> {
        self.rest.check(interrupts)?;
        self.area.check(interrupts)?;
        let mut live = 0;
        let mut end = 0;
        for (page, block) in self.in_use.iter().enumerate() {
            interrupts.after(1)?;
            let Some(block) = block else { continue };
            if page < end {
                return Err(Self::corrupt(format_args!(
                    "the live block at {page} lies in another"
                )));
            }
            end = page + (1 << block.order);
            live += 1_u64 << block.order;
            let Some(in_area) = page.checked_sub(self.base as usize) else { continue };
            if !block.movable {
                return Err(Self::corrupt(format_args!("page {page} of the area is not movable")));
            }
            if self.handed_out[in_area..end - self.base as usize].contains(&true) {
                return Err(Self::corrupt(format_args!(
                    "the live block at {page} is part of a run"
                )));
            }
        }
        let handed_out = self.handed_out.iter().filter(|&&taken| taken).count() as u64;
        let free = self.rest.free_pages() + self.area.free_pages();
        if live + handed_out + free != self.pages() {
            return Err(Self::corrupt(format_args!(
                "{live} pages live, {handed_out} in runs and {free} free are not all {}",
                self.pages()
            )));
        }
        Ok(())
    }
}

impl Relocator for Cma {
    fn pin(&mut self, page: u32) -> Result<(), OutOfMemory> {
        self.set_pinned(page, true);
        Ok(())
    }

    fn unpin(&mut self, page: u32) {
        self.set_pinned(page, false);
    }

    fn free_part(
        &mut self,
        _first: u32,
        _whole: u32,
        page: u32,
        order: u32,
    ) -> Result<(), OutOfMemory> {
        self.free_piece(page, order)
    }

    fn alloc_run(
        &mut self,
        pages: u32,
        align: u32,
        moves: &mut Vec<Move>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Option<u32>, Stop> {
        let mut from = 0;
        loop {
            let Some(window) = self.next_window(from, pages, align, interrupts)? else {
                return Ok(None);
            };
            if self.empty(window.clone(), moves, interrupts)? {
                self.handed_out[window.start as usize..window.end as usize].fill(true);
                return Ok(Some(self.base + window.start));
            }
            from = u64::from(window.start) + u64::from(align);
        }
    }

    fn free_run(
        &mut self,
        page: u32,
        pages: u32,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<(), Stop> {
        let start = page - self.base;
        self.handed_out[start as usize..(start + pages) as usize].fill(false);
        for (page, order) in aligned_blocks(start..start + pages) {
            // A run may hold blocks that are larger than the buddy's largest.
            for part in 0..1 << order.saturating_sub(MAX_ORDER) {
                interrupts.after(1)?;
                self.area.free(page + (part << MAX_ORDER), order.min(MAX_ORDER));
            }
        }
        Ok(())
    }

    fn reserve(&self) -> Reserve {
        Reserve {
            pages: self.area.pages(),
            free_pages: self.area.free_pages(),
            failures: self.failures_beside_area,
        }
    }
}
