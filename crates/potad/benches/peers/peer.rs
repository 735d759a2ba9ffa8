//! The allocators that are compared, behind one trait so that all run the same loop.

use buddy_system_allocator::FrameAllocator;
use offset_allocator::{Allocation, Allocator};
use potad::Space;
use potad_replay::{Interrupts, LinuxBuddy};

/// 2^12: what a page is, and what shifts an address to a granule.
const GRANULE: u64 = 4096;

pub trait Peer: Sized {
    const NAME: &'static str;
    /// What the caller keeps to free a block: some need more than where it starts.
    type Handle: Copy;

    fn new(granules: u32) -> Self;
    fn alloc(&mut self, order: u32) -> Option<Self::Handle>;
    fn free(&mut self, handle: Self::Handle, order: u32);
    fn start(handle: Self::Handle) -> u32;
    fn check(&self) {}
}

pub struct Potad(pub Space);

impl Peer for Potad {
    const NAME: &'static str = "potad";
    type Handle = u32;

    fn new(granules: u32) -> Self {
        Potad(Space::new(0, granules as u128 * GRANULE as u128, GRANULE).expect("a space"))
    }

    #[inline(always)]
    fn alloc(&mut self, order: u32) -> Option<u32> {
        self.0.alloc((GRANULE << order) as u128).ok().map(|at| (at / GRANULE) as u32)
    }

    #[inline(always)]
    fn free(&mut self, handle: u32, _order: u32) {
        self.0.free(handle as u64 * GRANULE).expect("it is allocated");
    }

    fn start(handle: u32) -> u32 {
        handle
    }

    fn check(&self) {
        self.0.check().expect("the recount agrees");
    }
}

pub struct Linux(LinuxBuddy);

impl Peer for Linux {
    const NAME: &'static str = "Linux buddy, restated";
    type Handle = u32;

    fn new(granules: u32) -> Self {
        let mut buddy = LinuxBuddy::new(granules as u64).expect("page structures");
        // A running kernel's page structures have been touched before.
        buddy.populate(&mut Interrupts::none()).expect("it is not interrupted");
        Linux(buddy)
    }

    #[inline(always)]
    fn alloc(&mut self, order: u32) -> Option<u32> {
        self.0.alloc(order)
    }

    #[inline(always)]
    fn free(&mut self, handle: u32, order: u32) {
        self.0.free(handle, order);
    }

    fn start(handle: u32) -> u32 {
        handle
    }
}

pub struct Offset(Allocator<u32>);

impl Peer for Offset {
    const NAME: &'static str = "offset-allocator";
    type Handle = Allocation<u32>;

    fn new(granules: u32) -> Self {
        // A node for each allocation and each free range, and a few it never hands out.
        Offset(Allocator::with_max_allocs(granules, granules + 64))
    }

    #[inline(always)]
    fn alloc(&mut self, order: u32) -> Option<Self::Handle> {
        self.0.allocate(1 << order)
    }

    #[inline(always)]
    fn free(&mut self, handle: Self::Handle, _order: u32) {
        self.0.free(handle);
    }

    fn start(handle: Self::Handle) -> u32 {
        handle.offset
    }
}

pub struct Frames(FrameAllocator<33>);

impl Peer for Frames {
    const NAME: &'static str = "buddy_system_allocator";
    type Handle = u32;

    fn new(granules: u32) -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(0, granules as usize);
        Frames(frames)
    }

    #[inline(always)]
    fn alloc(&mut self, order: u32) -> Option<u32> {
        self.0.alloc(1 << order).map(|at| at as u32)
    }

    #[inline(always)]
    fn free(&mut self, handle: u32, order: u32) {
        self.0.dealloc(handle as usize, 1 << order);
    }

    fn start(handle: u32) -> u32 {
        handle
    }
}
