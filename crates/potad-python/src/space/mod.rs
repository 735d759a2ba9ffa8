//! The class `Space`: what it is made of, its figures, and what Python's own operators do on it.
//!
//! Each file of this folder has one group of methods: `allocate`, `free`, `look_up`, `walk`, `describe` for
//! what allocations are and whose, `relocate` for moving them, and `extent` for what belongs to a space
//! at all. A method converts its arguments, makes one call of the core under the lock, and converts
//! what comes back.

mod allocate;
pub mod describe;
mod extent;
mod free;
mod look_up;
mod relocate;
pub mod walk;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString};
use pyo3::{PyTraverseError, PyVisit};

use crate::convert::{self, Given};
use crate::errors::{checked, raise};
use crate::lock::Shared;
use crate::objects::{dict, integer, string};
use crate::state::State;
use walk::SpaceIterator;

/// Address units that `Space` hands out at least, where it is not told.
const DEFAULT_GRANULE: u64 = 4096;

/// A range of integers from which blocks and runs are allocated.
///
/// A space hands out numbers and keeps count of them; it never touches what they stand for. They
/// are bytes of memory or of a file, slots, network prefixes: *address units*. Any number of
/// threads may use a space at once.
///
/// Arguments:
///     size: address units in the space, a multiple of `granule`; may be 0, see `add`.
///     granule: the smallest amount handed out, in address units; a power of two.
///     base: the first address, a multiple of `granule`. `base + size` may be 2**64, and neither
///         has to be a power of two.
///
/// Raises:
///     ValueError, TypeError, OverflowError: an argument is not as above.
///     MemoryError: there is no memory for the first few hundred bytes of metadata.
///
/// Takes the same time and memory whatever the size; metadata grows with what is in use.
///
/// >>> import potad
/// >>> space = potad.Space(1 << 30)
/// >>> block = space.alloc(1 << 20)
/// >>> space.lookup(block + 5000).size
/// 1048576
/// >>> space.free(block)
/// >>> space.available == space.size
/// True
///
/// What is free is kept in a tree of 64 children a node, apart from what it describes: Matthew
/// Wilcox's idea of a power-of-two allocator with descriptors. Blocks of powers of two that halve
/// and merge are the buddy system, see Knuth, The Art of Computer Programming, volume 1, section
/// 2.5.
#[pyclass(frozen, weakref, module = "potad")]
pub struct Space {
    pub shared: Shared,
}

impl Drop for Space {
    fn drop(&mut self) {
        // Arrays may need the memory still; nobody can ask for owners any more.
        if !self.shared.is_alone() {
            self.shared.clear();
        }
    }
}

#[pymethods]
impl Space {
    #[new]
    #[pyo3(
        signature = (size, *, granule = Given::DEFAULT, base = Given::DEFAULT),
        text_signature = "(size, *, granule=4096, base=0)"
    )]
    fn new(
        py: Python<'_>,
        size: &Bound<'_, PyAny>,
        granule: Given<'_>,
        base: Given<'_>,
    ) -> PyResult<Self> {
        let size = convert::size("size", size)?;
        let granule = granule.address("granule")?.unwrap_or(DEFAULT_GRANULE);
        let base = base.address("base")?.unwrap_or(0);
        let space = potad::Space::new(base, size, granule);
        Ok(Space { shared: checked(py, space.and_then(Shared::new))? })
    }

    /// Address units in the space: what is free, allocated or retired.
    #[getter]
    fn size<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.size()))?)
    }

    /// The smallest amount handed out, in address units.
    #[getter]
    fn granule<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.granule()))?.into())
    }

    /// The address the space was made with; a span added later may lie below it.
    #[getter]
    fn base<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.base()))?.into())
    }

    /// Address units that are free. With `used` and what is retired and free they come to `size`.
    #[getter]
    fn available<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.available()))?)
    }

    /// Address units in allocations.
    #[getter]
    fn used<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.used()))?)
    }

    /// Size of the largest block that `alloc` could return now; 0 if nothing is free.
    #[getter]
    fn largest_free<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.largest_free()))?)
    }

    /// Bytes of memory that the space keeps its records in, besides this object.
    #[getter]
    fn metadata_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.shared.brief(py, |space| Ok(space.metadata_bytes()))? as u128)
    }

    /// How many blocks of which size are free: a dict from block size to number, ascending.
    ///
    /// Counted are the largest blocks that the free space falls into, as /proc/buddyinfo does:
    /// each is aligned to its size, and no two of them are halves of a free block.
    ///
    /// Takes time in proportion to the metadata in use.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(7 * 4096)
    /// >>> space.free_blocks()
    /// {4096: 1, 8192: 1, 16384: 1}
    fn free_blocks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.shared.long(py, |space| Ok(space.free_blocks()))?;
        let blocks = dict(py)?;
        for (size, count) in counts {
            blocks.set_item(integer(py, size)?, integer(py, count.into())?)?;
        }
        Ok(blocks)
    }

    /// The share of the free space that a block of this size cannot use.
    ///
    /// Arguments:
    ///     size: of the block that would be allocated, in address units.
    ///
    /// Returns: 0.0 where all free space lies in blocks at least that large, 1.0 where none does;
    /// 0.0 for a space in which nothing is free.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: `size` is not an integer from 1 to 2**64.
    ///
    /// Takes time in proportion to the metadata in use.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.alloc_at(512 << 10, 4096)
    /// 524288
    /// >>> round(space.unusable_free_index(512 << 10), 3)
    /// 0.498
    ///
    /// The index is Mel Gorman's, as in the Linux kernel's extfrag statistics.
    #[pyo3(signature = (size))]
    fn unusable_free_index(&self, py: Python<'_>, size: &Bound<'_, PyAny>) -> PyResult<f64> {
        let size = convert::size("size", size)?;
        self.shared.long(py, |space| space.unusable_free_index(size))
    }

    /// Recounts everything from the ground truth.
    ///
    /// For tests, and for doubt. Nothing a caller does makes it fail.
    ///
    /// Raises:
    ///     Corrupt: what was recounted is not what the space keeps; the message says what.
    ///
    /// Takes time in proportion to the metadata in use.
    ///
    /// >>> import potad
    /// >>> potad.Space(1 << 30).check()
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.long(py, |space| space.check())
    }

    /// Live allocations.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let len = self.shared.brief(py, |space| Ok(space.len()))?;
        Ok(usize::try_from(len)?)
    }

    /// True: a space is one even when nothing is allocated.
    fn __bool__(&self) -> bool {
        true
    }

    /// Whether an address lies inside a live allocation.
    fn __contains__(&self, py: Python<'_>, address: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(address) = convert::address_if_any("address", address)? else { return Ok(false) };
        self.shared.brief(py, |space| Ok(space.lookup(address).is_some()))
    }

    /// Descriptors of the live allocations in address order, each as it is when it is reached:
    /// what other threads, or the loop itself, allocate and free meanwhile is seen if it lies
    /// further on.
    fn __iter__(this: Py<Self>) -> SpaceIterator {
        SpaceIterator::new(this, None)
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let figures = |space: &mut State| {
            Ok((space.base(), space.size(), space.granule(), space.used(), space.len()))
        };
        let (base, size, granule, used, len) = self.shared.brief(py, figures)?;
        string(
            py,
            format_args!(
                "<potad.Space base={base:#x} size={size} granule={granule} used={used} \
                 allocations={len}>"
            ),
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.shared.visit(|state| state.traverse(&visit))
    }

    fn __clear__(&self) {
        self.shared.clear();
    }

    fn __reduce__(&self, py: Python<'_>) -> PyResult<()> {
        Err(raise::<PyTypeError>(py, "a Space cannot be pickled or copied"))
    }
}
