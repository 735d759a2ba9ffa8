//! What the relocation pass asks of an allocator beside the calls of every replay.

use crate::allocator::PageAllocator;
use crate::figures::aligned_blocks;
use crate::stop::{Interrupts, OutOfMemory, Stop};

/// A live block that was moved, or a naturally aligned part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its first page, until now.
    pub old: u32,
    /// Its first page, from now on.
    pub new: u32,
    /// log2 of its pages.
    pub order: u32,
}

impl Move {
    /// How many pages were moved.
    pub fn pages(&self) -> u64 {
        1 << self.order
    }
}

/// What a part of the memory that is kept for runs takes from everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Pages of the reserve.
    pub pages: u64,
    /// Of these, free now: no page that cannot be moved may have them.
    pub free_pages: u64,
    /// Allocations refused so far that a free block in the reserve would have served.
    pub failures: u64,
}

/// An allocator of pages that moves live ones to make room for a run.
///
/// Its blocks are naturally aligned: an allocation is one, and so is all that is left of it when a
/// part of it is freed or moved.
pub trait Relocator: PageAllocator {
    /// Keeps the live block that starts at `page` from being moved.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for metadata; also for `free_part`.
    fn pin(&mut self, page: u32) -> Result<(), OutOfMemory>;

    /// Lets it be moved again.
    fn unpin(&mut self, page: u32);

    /// Frees the 2^`order` pages from `page` on inside the live block of 2^`whole` pages that starts
    /// at `first`. What is left of that are the blocks [`remainder`] names.
    fn free_part(
        &mut self,
        first: u32,
        whole: u32,
        page: u32,
        order: u32,
    ) -> Result<(), OutOfMemory>;

    /// Allocates a run of so many pages at a multiple of `align`, a power of two, moving movable
    /// blocks that are not pinned out of its way. What was moved is added to `moves`, in order, also
    /// where there is no run in the end.
    ///
    /// # Errors
    ///
    /// [`Stop`] where memory runs out or the caller wants to stop. The relocator is of no further use
    /// then. Also for `free_run`.
    fn alloc_run(
        &mut self,
        pages: u32,
        align: u32,
        moves: &mut Vec<Move>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Option<u32>, Stop>;

    /// Frees a run.
    fn free_run(
        &mut self,
        page: u32,
        pages: u32,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<(), Stop>;

    /// What is kept for runs; nothing by default.
    fn reserve(&self) -> Reserve {
        Reserve::default()
    }
}

/// What is left of the block of 2^`whole` pages at `first` without the 2^`order` pages at `page`: the
/// buddies on the way down to it, first page and order, in address order.
pub fn remainder(
    first: u32,
    whole: u32,
    page: u32,
    order: u32,
) -> impl Iterator<Item = (u32, u32)> {
    aligned_blocks(first..page).chain(aligned_blocks(page + (1 << order)..first + (1 << whole)))
}
