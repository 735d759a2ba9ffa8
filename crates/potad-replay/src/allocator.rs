//! What a replay asks of an allocator.
//!
//! Two groups of calls. The **operations** (`alloc`, `free`, `free_piece`) are timed, and in the
//! counting pass each of their accesses to metadata is counted. The **measurements** are neither:
//! they run between operations, and an allocator may answer them as slowly as it likes. They take the
//! allocator mutably, as one that puts work off may have to catch up before it can tell.

use crate::error::CheckError;
use crate::figures::{BlockCounts, Extent, has_run};

/// The most pages a replayed memory can have: a page number is 32 bits, of which one value is kept
/// for "the allocation failed".
pub const PAGES_MAX: u64 = u32::MAX as u64;

/// An allocator of pages, numbered from 0.
pub trait PageAllocator {
    /// Allocates a block of 2^`order` pages, aligned to its size, and gives its first page; `None`
    /// where there is none, or where the allocator serves no blocks of the order.
    fn alloc(&mut self, order: u32) -> Option<u32>;

    /// The same for pages that are movable or not, by an allocator that tells the two apart. Neither
    /// timed nor counted.
    fn alloc_as(&mut self, order: u32, _movable: bool) -> Option<u32> {
        self.alloc(order)
    }

    /// Where allocations that are not movable lie, in address order; `None` where the allocator does
    /// not know.
    fn unmovable_extents(&mut self) -> Option<Vec<Extent>> {
        None
    }

    /// Frees the whole of a live allocation of 2^`order` pages.
    ///
    /// # Panics
    ///
    /// May panic where this is not a live allocation, as far as the allocator can see that.
    fn free(&mut self, page: u32, order: u32);

    /// Frees 2^`order` pages inside a live allocation, aligned to their size.
    ///
    /// # Panics
    ///
    /// As [`free`](Self::free).
    fn free_piece(&mut self, page: u32, order: u32);

    /// Pages there are, free or not.
    fn pages(&self) -> u64;

    /// The free extents in address order.
    fn free_extents(&mut self) -> Vec<Extent>;

    /// Bytes of metadata in use now.
    fn metadata_bytes(&self) -> u64;

    /// Recounts everything.
    ///
    /// # Errors
    ///
    /// [`CheckError`] with what disagrees.
    fn check(&self) -> Result<(), CheckError>;

    /// The free blocks. An allocator that answers faster from its books must answer the same.
    fn free_blocks(&mut self) -> BlockCounts {
        let mut counts = BlockCounts::default();
        for extent in self.free_extents() {
            counts.add_extent(extent);
        }
        counts
    }

    /// Whether a run of `pages` free pages, at least one, starts at some multiple of `align` pages, a
    /// power of two.
    fn can_run(&mut self, pages: u64, align: u64) -> bool {
        self.free_extents().into_iter().any(|extent| has_run(extent, pages, align))
    }
}
