//! Giving space back, and cutting an allocation so that a part can be.

use pyo3::prelude::*;

use super::Space;
use crate::{arrays, convert};

#[pymethods]
impl Space {
    /// Frees the allocation that starts at `address`.
    ///
    /// Arguments:
    ///     address: what `alloc` or another call returned.
    ///
    /// Raises:
    ///     NotAllocated: no allocation starts there; where one lies around it, the message says
    ///         which.
    ///     Busy: the allocation is pinned; `pins` says how often.
    ///     ValueError, TypeError, OverflowError: `address` is not an integer from 0 to 2**64 - 1.
    ///
    /// Takes a few words of memory at each of the tree's levels that change, most often one or
    /// two of at most eleven. Neighbouring free blocks need no merging: they are one as soon as
    /// nothing lies between them.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> block = space.alloc(4096)
    /// >>> space.free(block)
    /// >>> len(space)
    /// 0
    #[pyo3(signature = (address))]
    fn free(&self, py: Python<'_>, address: &Bound<'_, PyAny>) -> PyResult<()> {
        let address = convert::address("address", address)?;
        self.shared.brief(py, |space| space.free(address).map(drop))
    }

    /// Frees the granules of a range wherever they lie: parts of allocations, or many of them.
    ///
    /// What is left of an allocation on either side stays one; an allocation that loses its middle
    /// becomes two, which both have the kind, the owner and a copy of the record.
    ///
    /// Arguments:
    ///     start: the first address, a multiple of the granule.
    ///     size: in address units, a multiple of the granule, above 0.
    ///
    /// Raises:
    ///     NotAllocated: not every granule is allocated; `address` is the first that is not, and
    ///         nothing is freed.
    ///     Busy: an allocation that the range touches is pinned, and nothing is freed.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata about what is left.
    ///
    /// Takes time in proportion to the allocations that are touched.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> run = space.alloc_run(10 * 4096)
    /// >>> space.free_range(run + 4 * 4096, 2 * 4096)
    /// >>> [left.size // 4096 for left in space]
    /// [4, 4]
    #[pyo3(signature = (start, size))]
    fn free_range(
        &self,
        py: Python<'_>,
        start: &Bound<'_, PyAny>,
        size: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let start = convert::address("start", start)?;
        let size = convert::size("size", size)?;
        self.shared.long(py, |state| {
            let first = state.lookup(start);
            state.free_range(start, size)?;
            // What is left of an allocation before the range is not what it was.
            if let Some(first) = first.filter(|first| first.start < start) {
                state.cut(first.start);
            }
            state.cut_behind(start as u128 + size);
            Ok(())
        })
    }

    /// Frees the allocations that start at these addresses: all of them or none.
    ///
    /// Arguments:
    ///     addresses: a one-dimensional array of any integer type, or an iterable of integers; an
    ///         array of uint64 is fastest.
    ///
    /// Raises:
    ///     NotAllocated: `address` is the first that is not the start of an allocation, or that
    ///         stands in the list a second time.
    ///     Busy: an allocation is pinned; `address` is the first such.
    ///     ValueError, TypeError, OverflowError: `addresses` is not as above.
    ///     MemoryError: there is no memory for a copy of the list.
    ///
    /// Takes nanoseconds an address, and lets other threads run meanwhile.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> blocks = space.alloc_many(4096, 10)
    /// >>> space.free_many(blocks[::2])
    /// >>> len(space)
    /// 5
    #[pyo3(signature = (addresses))]
    fn free_many(&self, py: Python<'_>, addresses: &Bound<'_, PyAny>) -> PyResult<()> {
        let addresses = arrays::addresses("addresses", addresses)?;
        self.shared.long(py, |space| space.free_many(&addresses))
    }

    /// Cuts an allocation in two, which are then freed each for itself. Both have the kind, the owner and
    /// a copy of the record.
    ///
    /// Arguments:
    ///     address: where the allocation starts.
    ///     size: of the first part in address units, a multiple of the granule, above 0 and less
    ///         than the allocation's; the second part starts at `address + size`.
    ///
    /// Raises:
    ///     NotAllocated: no allocation starts at `address`.
    ///     Busy: the allocation is pinned.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes a few words of memory at each of the tree's levels.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> run = space.alloc_run(3 * 4096)
    /// >>> space.split(run, 4096)
    /// >>> [part.size // 4096 for part in space]
    /// [1, 2]
    #[pyo3(signature = (address, size))]
    fn split(
        &self,
        py: Python<'_>,
        address: &Bound<'_, PyAny>,
        size: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let address = convert::address("address", address)?;
        let size = convert::size("size", size)?;
        self.shared.brief(py, |state| {
            state.split(address, size)?;
            state.cut(address);
            Ok(())
        })
    }
}
