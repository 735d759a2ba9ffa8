//! What a replay asks of an allocator.
//!
//! Two groups of calls. The **operations** (`alloc`, `free`, `free_piece`) are timed, and in the
//! counting pass each of their accesses to metadata is counted. The **measurements** are neither:
//! they run between operations, and an allocator may answer them as slowly as it likes. They take the
//! allocator mutably, as one that puts work off may have to catch up before it can tell.
//!
//! An operation that is refused memory has done nothing. Measurements look for interrupts, as they may
//! take long; operations do not, as they are short.

use crate::error::CheckError;
use crate::figures::{BlockCounts, Extent, has_run};
use crate::stop::{Interrupts, OutOfMemory, Stop};

/// The most pages a replayed memory can have: a page number is 32 bits, of which one value is kept
/// for "the allocation failed".
pub const PAGES_MAX: u64 = u32::MAX as u64;

/// An allocator of pages, numbered from 0.
pub trait PageAllocator {
    /// Allocates a block of 2^`order` pages, aligned to its size, and gives its first page; `None`
    /// where there is none, or where the allocator serves no blocks of the order.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for metadata; also for the other operations.
    fn alloc(&mut self, order: u32) -> Result<Option<u32>, OutOfMemory>;

    /// The same for pages that are movable or not, by an allocator that tells the two apart. Neither
    /// timed nor counted.
    fn alloc_as(&mut self, order: u32, _movable: bool) -> Result<Option<u32>, OutOfMemory> {
        self.alloc(order)
    }

    /// Where allocations that are not movable lie, in address order; `None` where the allocator does
    /// not know.
    ///
    /// # Errors
    ///
    /// [`Stop`] where memory runs out or the caller wants to stop; also for the other measurements.
    fn unmovable_extents(
        &mut self,
        _interrupts: &mut Interrupts<'_>,
    ) -> Result<Option<Vec<Extent>>, Stop> {
        Ok(None)
    }

    /// Frees the whole of a live allocation of 2^`order` pages.
    ///
    /// # Panics
    ///
    /// May panic where this is not a live allocation, as far as the allocator can see that.
    fn free(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory>;

    /// Frees 2^`order` pages inside a live allocation, aligned to their size.
    ///
    /// # Panics
    ///
    /// As [`free`](Self::free).
    fn free_piece(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory>;

    /// Pages there are, free or not.
    fn pages(&self) -> u64;

    /// The free extents in address order.
    fn free_extents(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<Extent>, Stop>;

    /// Bytes of metadata in use now.
    fn metadata_bytes(&self) -> u64;

    /// Recounts everything.
    ///
    /// # Errors
    ///
    /// [`CheckError`] with what disagrees.
    fn check(&self, interrupts: &mut Interrupts<'_>) -> Result<(), CheckError>;

    /// The free blocks. An allocator that answers faster from its books must answer the same.
    fn free_blocks(&mut self, interrupts: &mut Interrupts<'_>) -> Result<BlockCounts, Stop> {
        let mut counts = BlockCounts::default();
        for extent in self.free_extents(interrupts)? {
            counts.add_extent(extent);
            interrupts.after(1)?;
        }
        Ok(counts)
    }

    /// Whether a run of `pages` free pages, at least one, starts at some multiple of `align` pages, a
    /// power of two.
    fn can_run(
        &mut self,
        pages: u64,
        align: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<bool, Stop> {
        let extents = self.free_extents(interrupts)?;
        Ok(extents.into_iter().any(|extent| has_run(extent, pages, align)))
    }
}
