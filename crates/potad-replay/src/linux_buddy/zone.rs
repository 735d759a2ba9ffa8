//! The memory of the restated buddy allocator: page structures, the lists threaded through them, and
//! the two algorithms that walk them. **All `unsafe` code of this crate is in this
//! file**, but for `fallible::boxed`.
//!
//! # Why unsafe
//!
//! The peer has to cost what the C original costs, or a comparison with it is worth nothing. There a
//! list link is a pointer, a page's buddy is pointer arithmetic, and no access is checked. Indices with
//! bounds checks would double the instructions of exactly the loops that are compared.
//!
//! # Why it is sound
//!
//! Two invariants, kept by every public function against any sequence of calls:
//!
//! 1. A [`PageRef`] points into `memmap`, at a whole page structure. They are made from numbers below
//!    `pages` (checked) or their buddies (the map is rounded up, so that a buddy's structure
//!    exists even where its page does not: [`Zone::map_pages`]), or found on a list.
//! 2. A page carries the buddy type if and only if its links are in one list, and then all links it is
//!    reached by are valid. [`Zone::free`] refuses to free a page that is on a list.
//!
//! A free of pages that are not allocated, or in part free, can put a page on the lists twice as a
//! part of two blocks (as in C), never a structure.
//!
//! # Representation
//!
//! The page structure has the fields and the 64 bytes of the kernel's `struct page`, of which the free
//! lists use five: flags (whose upper bits name the zone), the two links, the order in `private`, and
//! the type, that says "on a free list". `memmap` is memory the system hands over zeroed and on demand:
//! a structure no block was ever split or freed at is never touched, and 2^28 pages cost what is used
//! of them. All zeroes is a page that is not free and has no users.
//!
//! Every access to a page structure, a list head or a count passes [`Zone::get`] or [`Zone::set`], and
//! these alone call the probe.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use potad::Probe;

use crate::error::BuildError;
use crate::stop::{Interrupts, Stop};
use potad::fallible::text;

/// A doubly linked list through heads and pages, as the kernel's `list_head`.
#[repr(C)]
struct ListHead {
    next: *mut ListHead,
    prev: *mut ListHead,
}

/// What the kernel keeps about a page. Fields the free lists do not use hold its size.
#[repr(C, align(64))]
struct Page {
    flags: u64,
    /// On a free list: its links. The kernel threads other lists through them while it is in use.
    lru: ListHead,
    mapping: u64,
    index: u64,
    /// On a free list: the order of the block.
    private: u64,
    /// [`BUDDY_TYPE`] on a free list.
    page_type: u32,
    refcount: u32,
    memcg_data: u64,
}

/// The free blocks of one order.
#[repr(C)]
struct FreeArea {
    list: ListHead,
    nr_free: u64,
}

const _: () = assert!(size_of::<Page>() == 64);
const _: () = assert!(size_of::<FreeArea>() == 24);
const _: () = assert!(size_of::<[FreeArea; ORDERS_END]>() <= MEMMAP_ALIGN);

/// Orders there is room for.
pub(super) const ORDERS_END: usize = 32;

/// Bytes of metadata of a page.
pub(super) const PAGE_STRUCT_BYTES: u64 = size_of::<Page>() as u64;
/// Bytes of metadata of an order.
pub(super) const FREE_AREA_BYTES: u64 = size_of::<FreeArea>() as u64;

/// The work of the first touch of a page.
pub(super) const FAULT_UNITS: u64 = 16;

const BUDDY_TYPE: u32 = 0xf000_0000;
const NO_TYPE: u32 = u32::MAX;
/// What a removed page's links are set to: addresses that fault.
const POISON_NEXT: *mut ListHead = 0x100 as *mut ListHead;
const POISON_PREV: *mut ListHead = 0x122 as *mut ListHead;
/// Free areas and map each start at a page of the system's, as the kernel's map does: lines and page
/// structures agree, and simulated caches see the same placement in every run.
const MEMMAP_ALIGN: usize = 4096;

/// A page structure of a [`Zone`], valid as long as the zone. Used only with the zone it came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PageRef(NonNull<Page>);

/// Page structures and free lists. `MAX_ORDER` is the largest order of a block; with `TAIL`, a block
/// whose buddy is likely to come back soon goes to the end of its list.
pub(super) struct Zone<P, const MAX_ORDER: u32, const TAIL: bool> {
    memmap: NonNull<Page>,
    /// `ORDERS_END` of them, in the page before the map.
    areas: NonNull<FreeArea>,
    pages: u64,
    allocated: NonNull<u8>,
    layout: Layout,
    probe: P,
}

// SAFETY: all pointers lead into memory this zone owns alone, and it has no interior mutability: what
// writes takes `&mut self`.
unsafe impl<P: Send, const MAX_ORDER: u32, const TAIL: bool> Send for Zone<P, MAX_ORDER, TAIL> {}
// SAFETY: as above; shared references only read.
unsafe impl<P: Sync, const MAX_ORDER: u32, const TAIL: bool> Sync for Zone<P, MAX_ORDER, TAIL> {}

impl<P: Probe, const MAX_ORDER: u32, const TAIL: bool> Zone<P, MAX_ORDER, TAIL> {
    /// A zone of so many pages, none of them free.
    pub(super) fn new(pages: u64, probe: P) -> Result<Self, BuildError> {
        const { assert!((MAX_ORDER as usize) < ORDERS_END) };
        let bytes = Self::map_pages(pages) * PAGE_STRUCT_BYTES;
        let refused = BuildError::Metadata { pages, bytes };
        // The system allocator has zeroed memory on demand only for alignments up to 16, for larger
        // ones it writes the zeroes: so the alignment is made here.
        let Some(layout) = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| bytes.checked_add(2 * MEMMAP_ALIGN))
            .and_then(|bytes| Layout::from_size_align(bytes, 16).ok())
        else {
            return Err(refused);
        };
        // SAFETY: the layout's size is not zero.
        let Some(allocated) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            return Err(refused);
        };
        let skip = allocated.align_offset(MEMMAP_ALIGN);
        // SAFETY: `skip` is below MEMMAP_ALIGN, and the allocation is twice that larger than the map.
        let (areas, memmap) = unsafe {
            let areas = allocated.add(skip);
            (areas.cast::<FreeArea>(), areas.add(MEMMAP_ALIGN).cast::<Page>())
        };
        for order in 0..ORDERS_END {
            // SAFETY: within the page kept for the areas, which is zeroed and owned by nobody else.
            let list = unsafe { &raw mut (*areas.add(order).as_ptr()).list };
            // SAFETY: as above.
            unsafe { list.write(ListHead { next: list, prev: list }) };
        }
        Ok(Zone { memmap, areas, pages, allocated, layout, probe })
    }

    /// Page structures in the map. Whatever block lies within `pages`, its buddy's structure is there:
    /// both lie in a block of the largest order, or, where that is larger than the zone, in twice the
    /// power of two that holds the zone.
    fn map_pages(pages: u64) -> u64 {
        pages.next_multiple_of((1 << MAX_ORDER).min(2 * pages.next_power_of_two()))
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes a block off the free lists, the first of the smallest order that will do, and puts back
    /// the halves it does not need.
    #[inline]
    pub(super) fn alloc(&mut self, order: u32) -> Option<u32> {
        let mut high = order;
        while high <= MAX_ORDER {
            if let Some(page) = self.first(high) {
                self.remove_from_list(page, high);
                self.expand(page, order, high);
                // What the kernel prepares in a new page's own structure.
                self.set(page.private(), 0);
                self.set(page.refcount(), 1);
                return Some(self.number(page));
            }
            high += 1;
        }
        None
    }

    /// Frees a block and merges it with its buddy for as long as that is free too.
    ///
    /// # Panics
    ///
    /// Where the block does not lie in the zone, or its first page is on a free list.
    #[inline]
    pub(super) fn free(&mut self, number: u32, order: u32) {
        let mut pfn = u64::from(number);
        assert!(
            order <= MAX_ORDER && pfn + (1 << order) <= self.pages,
            "free of {number} at order {order} in a zone of {} pages and orders up to {MAX_ORDER}",
            self.pages
        );
        // SAFETY: checked to lie in the zone.
        let mut page = unsafe { self.page(pfn) };
        assert!(self.get(page.page_type()) != BUDDY_TYPE, "double free of page {number}");
        self.set(page.refcount(), 0);
        let mut order = order;
        let mut buddy_pfn = 0;
        while order < MAX_ORDER {
            buddy_pfn = pfn ^ (1 << order);
            // SAFETY: the buddy of a block in the zone: invariant 1.
            let buddy = unsafe { self.page(buddy_pfn) };
            if !self.is_buddy(page, buddy, order) {
                break;
            }
            self.remove_from_list(buddy, order);
            if buddy_pfn < pfn {
                pfn = buddy_pfn;
                page = buddy;
            }
            order += 1;
        }
        self.set(page.private(), u64::from(order));
        self.set(page.page_type(), BUDDY_TYPE);
        if TAIL && self.merge_is_likely(pfn, buddy_pfn, order) {
            self.add_to_list_tail(page, order);
        } else {
            self.add_to_list(page, order);
        }
    }

    /// The order of the free block that starts at a page, if one does.
    pub(super) fn order_of_free(&self, number: u32) -> Option<u32> {
        if u64::from(number) >= self.pages {
            return None;
        }
        // SAFETY: checked to lie in the zone.
        let page = unsafe { self.page(u64::from(number)) };
        // On a list, and only there, the order is one that a list exists for.
        (self.get(page.page_type()) == BUDDY_TYPE).then(|| self.get(page.private()) as u32)
    }

    /// Takes the free block that starts at a page off its list, whole: its order.
    pub(super) fn take(&mut self, number: u32) -> Option<u32> {
        let order = self.order_of_free(number)?;
        // SAFETY: a free block starts there, so it lies in the zone.
        let page = unsafe { self.page(u64::from(number)) };
        self.remove_from_list(page, order);
        Some(order)
    }

    /// Whether the buddy of the block one order up is free: then, if this block's own buddy comes
    /// free, both merge further, and it is worth not handing this block out soon.
    fn merge_is_likely(&self, pfn: u64, buddy_pfn: u64, order: u32) -> bool {
        if order + 1 >= MAX_ORDER {
            return false;
        }
        let higher = pfn & buddy_pfn;
        // SAFETY: the block of the higher order that holds this one, and its buddy, both below `pages`.
        let (page, buddy) = match higher ^ (1 << (order + 1)) {
            buddy if buddy < self.pages => unsafe { (self.page(higher), self.page(buddy)) },
            _ => return false,
        };
        self.is_buddy(page, buddy, order + 1)
    }

    /// Puts the upper halves of a block of order `high` on the free lists until `low` is left.
    #[inline]
    fn expand(&mut self, page: PageRef, low: u32, mut high: u32) {
        while high > low {
            high -= 1;
            // SAFETY: inside the block, which lies in the zone.
            let half = PageRef(unsafe { page.0.add(1 << high) });
            self.add_to_list(half, high);
            self.set(half.private(), u64::from(high));
            self.set(half.page_type(), BUDDY_TYPE);
        }
    }

    /// Whether `buddy` is a free block of this order and of the same zone as `page`.
    #[inline]
    fn is_buddy(&self, page: PageRef, buddy: PageRef, order: u32) -> bool {
        self.get(buddy.page_type()) == BUDDY_TYPE
            && self.get(buddy.private()) == u64::from(order)
            && self.get(buddy.flags()) == self.get(page.flags())
    }

    #[inline]
    fn first(&self, order: u32) -> Option<PageRef> {
        let head = self.head(order);
        let first = self.get(next_of(head));
        (first != head).then(|| PageRef::of_link(first))
    }

    #[inline]
    fn add_to_list(&mut self, page: PageRef, order: u32) {
        let head = self.head(order);
        let next = self.get(next_of(head));
        self.link(page, head, next);
        self.count(order, 1);
    }

    fn add_to_list_tail(&mut self, page: PageRef, order: u32) {
        let head = self.head(order);
        let prev = self.get(prev_of(head));
        self.link(page, prev, head);
        self.count(order, 1);
    }

    #[inline]
    fn link(&mut self, page: PageRef, prev: *mut ListHead, next: *mut ListHead) {
        let link = page.link();
        self.set(prev_of(next), link);
        self.set(next_of(link), next);
        self.set(prev_of(link), prev);
        self.set(next_of(prev), link);
    }

    #[inline]
    fn remove_from_list(&mut self, page: PageRef, order: u32) {
        let link = page.link();
        let next = self.get(next_of(link));
        let prev = self.get(prev_of(link));
        self.set(prev_of(next), prev);
        self.set(next_of(prev), next);
        self.set(next_of(link), POISON_NEXT);
        self.set(prev_of(link), POISON_PREV);
        self.set(page.page_type(), NO_TYPE);
        self.set(page.private(), 0);
        self.count(order, -1);
    }

    #[inline]
    fn count(&mut self, order: u32, change: i64) {
        let nr_free = self.nr_free_of(order);
        self.set(nr_free, self.get(nr_free).wrapping_add_signed(change));
    }

    // Where things are.

    #[inline]
    fn area(&self, order: u32) -> *mut FreeArea {
        assert!((order as usize) < ORDERS_END);
        // SAFETY: checked. The callers pass no larger order, which the compiler mostly sees.
        unsafe { self.areas.add(order as usize).as_ptr() }
    }

    #[inline]
    fn head(&self, order: u32) -> *mut ListHead {
        // SAFETY: a field of an area that exists.
        unsafe { &raw mut (*self.area(order)).list }
    }

    #[inline]
    fn nr_free_of(&self, order: u32) -> *mut u64 {
        // SAFETY: a field of an area that exists.
        unsafe { &raw mut (*self.area(order)).nr_free }
    }

    /// # Safety
    ///
    /// `pfn` is below `pages`, or the buddy of a block that lies there.
    #[inline]
    unsafe fn page(&self, pfn: u64) -> PageRef {
        debug_assert!(pfn < Self::map_pages(self.pages), "page {pfn} of {}", self.pages);
        // SAFETY: the caller's.
        PageRef(unsafe { self.memmap.add(pfn as usize) })
    }

    #[inline]
    fn number(&self, page: PageRef) -> u32 {
        ((page.0.addr().get() - self.memmap.addr().get()) / size_of::<Page>()) as u32
    }

    // The two ways to metadata.

    #[inline(always)]
    fn get<T: Copy>(&self, field: *mut T) -> T {
        self.probe.touch(field.addr(), size_of::<T>());
        // SAFETY: fields come from `PageRef`s and links, valid by the invariants, and from heads.
        unsafe { field.read() }
    }

    #[inline(always)]
    fn set<T: Copy>(&mut self, field: *mut T, value: T) {
        self.probe.touch(field.addr(), size_of::<T>());
        // SAFETY: as in `get`; and this zone is borrowed for writing.
        unsafe { field.write(value) }
    }

    // Measurements: not counted, as no operation is under way when they run.

    /// The blocks on an order's free list, from its first.
    pub(super) fn free_list(&self, order: u32) -> impl Iterator<Item = u32> + '_ {
        let head = self.head(order);
        let mut link = self.get(next_of(head));
        std::iter::from_fn(move || {
            (link != head).then(|| {
                let page = PageRef::of_link(link);
                link = self.get(next_of(link));
                self.number(page)
            })
        })
    }

    /// The blocks an order's free list is said to hold.
    pub(super) fn nr_free(&self, order: u32) -> u64 {
        self.get(self.nr_free_of(order))
    }

    /// What is wrong with a block that stands on a free list, if anything.
    pub(super) fn fault_of(&self, number: u32, order: u32) -> Option<String> {
        if u64::from(number) + (1 << order) > self.pages {
            return Some(text(format_args!(
                "page {number} of order {order} reaches past {} pages",
                self.pages
            )));
        }
        // SAFETY: checked to lie in the zone.
        let page = unsafe { self.page(u64::from(number)) };
        let link = page.link();
        let (next, prev) = (self.get(next_of(link)), self.get(prev_of(link)));
        if self.get(prev_of(next)) != link || self.get(next_of(prev)) != link {
            return Some(text(format_args!(
                "page {number} is not between its neighbours in the list of order {order}"
            )));
        }
        let (page_type, private) = (self.get(page.page_type()), self.get(page.private()));
        if page_type != BUDDY_TYPE || private != u64::from(order) || self.get(page.refcount()) != 0
        {
            return Some(text(format_args!(
                "page {number} in the list of order {order} has type {page_type:#x}, order {private}, {} users",
                self.get(page.refcount())
            )));
        }
        None
    }

    /// Has the system back the whole map now, as a kernel's is from boot, so that a first touch is
    /// not charged to whoever comes by.
    pub(super) fn populate(&mut self, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        for pfn in (0..self.pages).step_by(MEMMAP_ALIGN / size_of::<Page>()) {
            // A page fault each.
            interrupts.after(FAULT_UNITS)?;
            // SAFETY: below `pages`.
            let flags = unsafe { self.page(pfn) }.flags();
            // SAFETY: a field of a page structure; volatile as what is written is there already.
            unsafe { flags.write_volatile(flags.read_volatile()) };
        }
        Ok(())
    }

    /// The probe.
    pub(super) fn probe(&self) -> &P {
        &self.probe
    }
}

impl<P, const MAX_ORDER: u32, const TAIL: bool> Drop for Zone<P, MAX_ORDER, TAIL> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and no reference outlives the zone.
        unsafe { dealloc(self.allocated.as_ptr(), self.layout) }
    }
}

impl PageRef {
    /// The page whose link this is. The link is a page's, never a head.
    #[inline(always)]
    fn of_link(link: *mut ListHead) -> PageRef {
        // SAFETY: a page's `lru` lies this far inside the page (invariant 2).
        PageRef(unsafe {
            NonNull::new_unchecked(link.byte_sub(std::mem::offset_of!(Page, lru)).cast())
        })
    }

    #[inline(always)]
    fn link(self) -> *mut ListHead {
        // SAFETY: a field of a page structure that exists (invariant 1). So for all below.
        unsafe { &raw mut (*self.0.as_ptr()).lru }
    }

    #[inline(always)]
    fn flags(self) -> *mut u64 {
        unsafe { &raw mut (*self.0.as_ptr()).flags }
    }

    #[inline(always)]
    fn private(self) -> *mut u64 {
        unsafe { &raw mut (*self.0.as_ptr()).private }
    }

    #[inline(always)]
    fn page_type(self) -> *mut u32 {
        unsafe { &raw mut (*self.0.as_ptr()).page_type }
    }

    #[inline(always)]
    fn refcount(self) -> *mut u32 {
        unsafe { &raw mut (*self.0.as_ptr()).refcount }
    }
}

#[inline(always)]
fn next_of(link: *mut ListHead) -> *mut *mut ListHead {
    // SAFETY: a field; links are valid by invariant 2.
    unsafe { &raw mut (*link).next }
}

#[inline(always)]
fn prev_of(link: *mut ListHead) -> *mut *mut ListHead {
    // SAFETY: a field; links are valid by invariant 2.
    unsafe { &raw mut (*link).prev }
}
