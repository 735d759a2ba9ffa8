//! One pass of a trace's steps through one allocator.
//!
//! A pass is the loop that is timed, and the same loop is counted: what happens around an operation is
//! given as a [`Watch`], which for a timed pass is nothing and compiles to nothing.
//!
//! Besides the operation the loop reads a step of 8 bytes, in sequence, and reads or writes one slot
//! of 4 bytes, in an array as large as the trace's peak of live allocations. That is the loop's own
//! cost, the same for all allocators and about 2 ns a step, and it is part of the time reported.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crate::allocator::PageAllocator;
use crate::contender::Contender;
use crate::fallible::filled;
use crate::probe::CountingProbe;
use crate::stop::{Interrupts, OutOfMemory, Stop};
use crate::trace::{PackedStep, Step, Trace};

/// A slot whose allocation failed. No page has this number: [`PAGES_MAX`](crate::PAGES_MAX).
const FAILED: u32 = u32::MAX;

/// Steps that are done between two looks at the caller, and the work of one.
const SLICE_STEPS: usize = 1 << 13;
const UNITS_PER_STEP: u64 = 4;

/// What happens around each operation of an allocator.
pub(crate) trait Watch<A: PageAllocator> {
    #[inline(always)]
    fn begin(&self, _allocator: &A) {}
    #[inline(always)]
    fn end(&self, _allocator: &A) {}

    /// The allocation itself.
    #[inline(always)]
    fn alloc(&self, allocator: &mut A, order: u32, _type: u32) -> Result<Option<u32>, OutOfMemory> {
        allocator.alloc(order)
    }
}

/// Nothing: for passes that are timed.
pub(crate) struct Unwatched;

impl<A: PageAllocator> Watch<A> for Unwatched {}

/// Says of each allocation whether it is movable: for the measured pass, which is not timed.
pub(crate) struct Labelling;

/// The kernel's `MIGRATE_MOVABLE`.
pub(crate) const MOVABLE: u32 = 1;

impl<A: PageAllocator> Watch<A> for Labelling {
    fn alloc(&self, allocator: &mut A, order: u32, kind: u32) -> Result<Option<u32>, OutOfMemory> {
        allocator.alloc_as(order, kind == MOVABLE)
    }
}

/// Tells the allocator's probe of each operation.
pub(crate) struct Counting<C>(pub PhantomData<C>);

impl<C: Contender> Watch<C::With<CountingProbe>> for Counting<C> {
    #[inline]
    fn begin(&self, allocator: &C::With<CountingProbe>) {
        C::probe(allocator).begin();
    }
    #[inline]
    fn end(&self, allocator: &C::With<CountingProbe>) {
        C::probe(allocator).end();
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
    pub fn new(
        allocator: A,
        trace: &Trace,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Pass<A>, Stop> {
        let slots = filled(FAILED, trace.slots as usize, interrupts)?;
        Ok(Pass { allocator, progress: Progress::default(), at: 0, slots })
    }

    /// Does the steps up to `end`: how long that took, without looks at the caller.
    pub fn run(
        &mut self,
        steps: &[PackedStep],
        end: usize,
        watch: &impl Watch<A>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Duration, Stop> {
        let mut elapsed = Duration::ZERO;
        while self.at < end {
            let slice = self.at..end.min(self.at + SLICE_STEPS);
            let start = Instant::now();
            self.run_slice(&steps[slice.clone()], watch)?;
            elapsed += start.elapsed();
            self.at = slice.end;
            interrupts.after(slice.len() as u64 * UNITS_PER_STEP)?;
        }
        Ok(elapsed)
    }

    fn run_slice(
        &mut self,
        steps: &[PackedStep],
        watch: &impl Watch<A>,
    ) -> Result<(), OutOfMemory> {
        // A copy in registers: the allocator could alias the one behind the reference.
        let mut progress = self.progress;
        let slots = &mut self.slots[..];
        for step in steps {
            match step.unpack() {
                Step::Alloc { slot, order, migratetype } => {
                    watch.begin(&self.allocator);
                    let page = watch.alloc(&mut self.allocator, order, migratetype)?;
                    watch.end(&self.allocator);
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
                    watch.begin(&self.allocator);
                    self.allocator.free(page, order)?;
                    watch.end(&self.allocator);
                    progress.frees += 1;
                    progress.live_pages -= 1 << order;
                }
                Step::FreePiece { slot, order, offset } => {
                    let page = slots[slot as usize];
                    if page == FAILED {
                        progress.frees_of_failed += 1;
                        continue;
                    }
                    watch.begin(&self.allocator);
                    self.allocator.free_piece(page + offset, order)?;
                    watch.end(&self.allocator);
                    progress.frees += 1;
                    progress.live_pages -= 1 << order;
                }
            }
        }
        self.progress = progress;
        Ok(())
    }
}
