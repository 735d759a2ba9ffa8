//! One pass of a trace's steps through one allocator.
//!
//! A pass is the loop that is timed, and the same loop is counted: what happens around an operation is
//! given as a [`Watch`], which for a timed pass is nothing and compiles to nothing.
//!
//! Besides the operation the loop reads a step of 8 bytes, in sequence, and reads or writes one slot
//! of 4 bytes, in an array as large as the trace's peak of live allocations. That is the loop's own
//! cost, the same for all allocators and about 2 ns a step, and it is part of the time reported.

use crate::allocator::PageAllocator;
use crate::probe::CountingProbe;
use crate::trace::{PackedStep, Step, Trace};

/// A slot whose allocation failed. No page has this number: [`PAGES_MAX`](crate::PAGES_MAX).
const FAILED: u32 = u32::MAX;

/// What happens around each operation.
pub(crate) trait Watch {
    fn begin(&self);
    fn end(&self);

    /// The allocation itself.
    #[inline(always)]
    fn alloc<A: PageAllocator>(&self, allocator: &mut A, order: u32, _type: u32) -> Option<u32> {
        allocator.alloc(order)
    }
}

/// Nothing: for passes that are timed.
pub(crate) struct Unwatched;

impl Watch for Unwatched {
    #[inline(always)]
    fn begin(&self) {}
    #[inline(always)]
    fn end(&self) {}
}

/// Says of each allocation whether it is movable: for the measured pass, which is not timed.
pub(crate) struct Labelling;

/// The kernel's `MIGRATE_MOVABLE`.
pub(crate) const MOVABLE: u32 = 1;

impl Watch for Labelling {
    fn begin(&self) {}
    fn end(&self) {}

    fn alloc<A: PageAllocator>(&self, allocator: &mut A, order: u32, kind: u32) -> Option<u32> {
        allocator.alloc_as(order, kind == MOVABLE)
    }
}

impl Watch for CountingProbe {
    #[inline]
    fn begin(&self) {
        CountingProbe::begin(self);
    }
    #[inline]
    fn end(&self) {
        CountingProbe::end(self);
    }
}

/// What a pass has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Allocations asked for.
    pub allocations: u64,
    /// Of these, refused.
    pub failures: u64,
    /// Frees done, of wholes and of pieces.
    pub frees: u64,
    /// Frees of allocations that had failed: ignored.
    pub frees_of_failed: u64,
    pub live_pages: u64,
    pub peak_pages: u64,
}

impl Progress {
    /// Calls made of the allocator.
    pub fn operations(&self) -> u64 {
        self.allocations + self.frees
    }
}

/// A pass under way.
pub(crate) struct Pass<A> {
    pub allocator: A,
    pub progress: Progress,
    /// Steps done.
    pub at: usize,
    /// The page number each slot's allocation got, or [`FAILED`].
    slots: Vec<u32>,
}

impl<A: PageAllocator> Pass<A> {
    pub fn new(allocator: A, trace: &Trace) -> Pass<A> {
        let slots = vec![FAILED; trace.slots as usize];
        Pass { allocator, progress: Progress::default(), at: 0, slots }
    }

    /// Does the steps up to `end`.
    pub fn run(&mut self, steps: &[PackedStep], end: usize, watch: &impl Watch) {
        // A copy in registers: the allocator could alias the one behind the reference.
        let mut progress = self.progress;
        let slots = &mut self.slots[..];
        for step in &steps[self.at..end] {
            match step.unpack() {
                Step::Alloc { slot, order, migratetype } => {
                    watch.begin();
                    let page = watch.alloc(&mut self.allocator, order, migratetype);
                    watch.end();
                    progress.allocations += 1;
                    slots[slot as usize] = match page {
                        Some(page) => {
                            progress.live_pages += 1 << order;
                            progress.peak_pages = progress.peak_pages.max(progress.live_pages);
                            page
                        }
                        None => {
                            progress.failures += 1;
                            FAILED
                        }
                    };
                }
                Step::Free { slot, order } => {
                    let page = slots[slot as usize];
                    if page == FAILED {
                        progress.frees_of_failed += 1;
                        continue;
                    }
                    watch.begin();
                    self.allocator.free(page, order);
                    watch.end();
                    progress.frees += 1;
                    progress.live_pages -= 1 << order;
                }
                Step::FreePiece { slot, order, offset } => {
                    let page = slots[slot as usize];
                    if page == FAILED {
                        progress.frees_of_failed += 1;
                        continue;
                    }
                    watch.begin();
                    self.allocator.free_piece(page + offset, order);
                    watch.end();
                    progress.frees += 1;
                    progress.live_pages -= 1 << order;
                }
            }
        }
        self.progress = progress;
        self.at = end;
    }
}
