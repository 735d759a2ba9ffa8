//! `potad` itself as an allocator under replay: pages are granules of a [`Space`] at base 0.

use potad::{Error, Fit, Kind, Label, NoProbe, Probe, Space};

use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::error::{BuildError, CheckError};
use crate::fallible::push;
use crate::figures::{BlockCounts, Extent};
use crate::stop::{Interrupts, OutOfMemory, Stop};
use crate::trace::PAGE_BYTES;

pub(crate) const ALLOCATOR: &str = "potad";

/// A space of pages.
pub struct PotadSpace<P: Probe = NoProbe> {
    pub(crate) space: Space<P>,
    /// Of unmovable and of movable pages; known to the space when it is first told of either.
    kinds: Option<[Kind; 2]>,
}

impl<P: Probe> PotadSpace<P> {
    /// A space of so many pages, all free, with a probe that sees every access to metadata.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where the number of pages is out of range or the space refuses it.
    pub fn with_probe(pages: u64, probe: P) -> Result<Self, BuildError> {
        if pages == 0 || pages > PAGES_MAX {
            return Err(BuildError::Pages { pages, max: PAGES_MAX });
        }
        match Space::with_probe(0, bytes(pages), PAGE_BYTES, probe) {
            Ok(space) => Ok(PotadSpace { space, kinds: None }),
            Err(Error::Metadata { bytes }) => {
                Err(BuildError::Metadata { pages, bytes: bytes as u64 })
            }
            Err(reason) => Err(BuildError::Refused { allocator: ALLOCATOR, reason }),
        }
    }

    /// The kinds of unmovable and of movable pages.
    fn kinds(&mut self) -> Result<[Kind; 2], OutOfMemory> {
        if let Some(kinds) = self.kinds {
            return Ok(kinds);
        }
        let mut kind = |movable| match self.space.add_kind(0, movable) {
            Ok(kind) => Ok(kind),
            Err(error) => Err(out_of_memory(error, "a kind without a record")),
        };
        Ok(*self.kinds.insert([kind(false)?, kind(true)?]))
    }
}

/// The only error that a call for what there is can end with.
///
/// # Panics
///
/// Where it is another.
#[cold]
pub(crate) fn out_of_memory(error: Error, what: &str) -> OutOfMemory {
    match error {
        Error::Metadata { .. } => OutOfMemory,
        error => panic!("{what}: {error}"),
    }
}

fn pages_of(size: u128) -> u64 {
    (size / u128::from(PAGE_BYTES)) as u64
}

pub(crate) fn bytes(pages: u64) -> u128 {
    u128::from(pages) * u128::from(PAGE_BYTES)
}

pub(crate) fn address(page: u32) -> u64 {
    u64::from(page) * PAGE_BYTES
}

impl<P: Probe> PageAllocator for PotadSpace<P> {
    #[inline]
    fn alloc(&mut self, order: u32) -> Result<Option<u32>, OutOfMemory> {
        match self.space.alloc(bytes(1 << order)) {
            Ok(address) => Ok(Some((address / PAGE_BYTES) as u32)),
            Err(Error::OutOfSpace { .. }) => Ok(None),
            Err(error) => Err(out_of_memory(error, "an allocation")),
        }
    }

    fn alloc_as(&mut self, order: u32, movable: bool) -> Result<Option<u32>, OutOfMemory> {
        let kinds = self.kinds()?;
        let label = Label { kind: Some(kinds[usize::from(movable)]), owner: 0 };
        match self.space.alloc_described(bytes(1 << order), None, label) {
            Ok(address) => Ok(Some((address / PAGE_BYTES) as u32)),
            Err(Error::OutOfSpace { .. }) => Ok(None),
            Err(error) => Err(out_of_memory(error, "an allocation")),
        }
    }

    fn unmovable_extents(
        &mut self,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Option<Vec<Extent>>, Stop> {
        let Some([unmovable, _]) = self.kinds else { return Ok(None) };
        let mut extents = Vec::new();
        for found in self.space.allocations() {
            interrupts.after(1)?;
            if self.space.label_at(found.start).kind == Some(unmovable) {
                let (start, pages) = (found.start / PAGE_BYTES, pages_of(found.size));
                push(&mut extents, Extent { start, pages })?;
            }
        }
        Ok(Some(extents))
    }

    #[inline]
    fn free(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        match self.space.free(address(page)) {
            Ok(size) => debug_assert_eq!(size, bytes(1 << order)),
            Err(error) => return Err(out_of_memory(error, "a free")),
        }
        Ok(())
    }

    #[inline]
    fn free_piece(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        let freed = self.space.free_range(address(page), bytes(1 << order));
        freed.map_err(|error| out_of_memory(error, "a free of a piece"))
    }

    fn pages(&self) -> u64 {
        pages_of(self.space.size())
    }

    fn free_extents(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<Extent>, Stop> {
        let mut extents = Vec::new();
        for (start, size) in self.space.free_extents() {
            interrupts.after(1)?;
            push(&mut extents, Extent { start: start / PAGE_BYTES, pages: pages_of(size) })?;
        }
        Ok(extents)
    }

    /// From the tree's own counts, which are of the same blocks: it merges without a largest order.
    fn free_blocks(&mut self, _: &mut Interrupts<'_>) -> Result<BlockCounts, Stop> {
        let mut counts = BlockCounts::default();
        for (size, count) in self.space.free_blocks() {
            counts.0[pages_of(size).ilog2() as usize] = count;
        }
        Ok(counts)
    }

    fn can_run(&mut self, pages: u64, align: u64, _: &mut Interrupts<'_>) -> Result<bool, Stop> {
        match self.space.find_run(bytes(pages), bytes(align), None, Fit::First) {
            Ok(_) => Ok(true),
            Err(Error::OutOfSpace { .. } | Error::Argument { .. }) => Ok(false),
            Err(error) => Err(out_of_memory(error, "a search for a run").into()),
        }
    }

    fn metadata_bytes(&self) -> u64 {
        // Only the measured pass has descriptors: what the others are timed with is the same for all.
        (self.space.metadata_bytes() - self.space.descriptor_bytes()) as u64
    }

    fn check(&self, _: &mut Interrupts<'_>) -> Result<(), CheckError> {
        self.space.check().map_err(|error| match error {
            Error::Metadata { .. } => CheckError::Stopped(OutOfMemory.into()),
            error => CheckError::corrupt(ALLOCATOR, format_args!("{error}")),
        })
    }
}
