//! `potad` itself as an allocator under replay: pages are granules of a [`Space`] at base 0.

use potad::{Described, Error, Fit, Kind, Label, NoProbe, Probe, Space};

use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::error::{BuildError, CheckError};
use crate::figures::{BlockCounts, Extent};
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
            Err(error) => {
                Err(BuildError::Refused { allocator: ALLOCATOR, reason: error.to_string() })
            }
        }
    }
}

pub(crate) fn bytes(pages: u64) -> u128 {
    u128::from(pages) * u128::from(PAGE_BYTES)
}

pub(crate) fn address(page: u32) -> u64 {
    u64::from(page) * PAGE_BYTES
}

impl<P: Probe> PageAllocator for PotadSpace<P> {
    #[inline]
    fn alloc(&mut self, order: u32) -> Option<u32> {
        match self.space.alloc(bytes(1 << order)) {
            Ok(address) => Some((address / PAGE_BYTES) as u32),
            Err(Error::OutOfSpace { .. }) => None,
            Err(error) => panic!("alloc of order {order}: {error}"),
        }
    }

    fn alloc_as(&mut self, order: u32, movable: bool) -> Option<u32> {
        let space = &mut self.space;
        let kinds = *self.kinds.get_or_insert_with(|| {
            [false, true].map(|movable| {
                space.add_kind(0, movable).expect("a record of no bytes is small enough")
            })
        });
        let label = Label { kind: Some(kinds[usize::from(movable)]), owner: 0 };
        match space.alloc_described(bytes(1 << order), None, label) {
            Ok(address) => Some((address / PAGE_BYTES) as u32),
            Err(Error::OutOfSpace { .. }) => None,
            Err(error) => panic!("alloc of order {order}: {error}"),
        }
    }

    fn unmovable_extents(&mut self) -> Option<Vec<Extent>> {
        let [unmovable, _] = self.kinds?;
        let extent = |found: Described| Extent {
            start: found.start / PAGE_BYTES,
            pages: (found.size / u128::from(PAGE_BYTES)) as u64,
        };
        let found = self.space.of_kind(unmovable).expect("memory for a list");
        Some(found.into_iter().map(extent).collect())
    }

    #[inline]
    fn free(&mut self, page: u32, order: u32) {
        match self.space.free(address(page)) {
            Ok(size) => debug_assert_eq!(size, bytes(1 << order)),
            Err(error) => panic!("free of page {page} at order {order}: {error}"),
        }
    }

    #[inline]
    fn free_piece(&mut self, page: u32, order: u32) {
        if let Err(error) = self.space.free_range(address(page), bytes(1 << order)) {
            panic!("free of a piece, page {page} at order {order}: {error}");
        }
    }

    fn pages(&self) -> u64 {
        (self.space.size() / u128::from(PAGE_BYTES)) as u64
    }

    fn free_extents(&mut self) -> Vec<Extent> {
        self.space
            .free_extents()
            .map(|(start, size)| Extent {
                start: start / PAGE_BYTES,
                pages: (size / u128::from(PAGE_BYTES)) as u64,
            })
            .collect()
    }

    /// From the tree's own counts, which are of the same blocks: it merges without a largest order.
    fn free_blocks(&mut self) -> BlockCounts {
        let mut counts = BlockCounts::default();
        for (size, count) in self.space.free_blocks() {
            counts.0[(size / u128::from(PAGE_BYTES)).ilog2() as usize] = count;
        }
        counts
    }

    fn can_run(&mut self, pages: u64, align: u64) -> bool {
        self.space.find_run(bytes(pages), bytes(align), None, Fit::First).is_ok()
    }

    fn metadata_bytes(&self) -> u64 {
        // Only the measured pass has descriptors: what the others are timed with is the same for all.
        (self.space.metadata_bytes() - self.space.descriptor_bytes()) as u64
    }

    fn check(&self) -> Result<(), CheckError> {
        let corrupt = |error: Error| CheckError { allocator: ALLOCATOR, what: error.to_string() };
        self.space.check().map_err(corrupt)
    }
}
