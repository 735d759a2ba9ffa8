//! Walks in address order: over the allocations of a range, and over what is free in it.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use potad::Window;
use potad::fallible::Grow;

use super::Space;
use crate::descriptor::Descriptor;
use crate::errors::raise;
use crate::objects::{integer, tuple};
use crate::{arrays, convert};

/// The live allocations of a space in address order, as they are when each is reached.
#[pyclass(frozen, module = "potad._core")]
pub struct SpaceIterator {
    space: Py<Space>,
    /// Only touched with the space locked, so never waited for.
    place: Mutex<Place>,
    /// The end of the range.
    high: u128,
}

/// Where a walk goes on.
#[derive(Clone, Copy)]
enum Place {
    /// With the allocation that this address lies in, or the first behind it.
    At(u64),
    /// With the first allocation that starts at this address or behind it.
    From(u64),
    /// Nowhere.
    End,
}

impl SpaceIterator {
    pub fn new(space: Py<Space>, within: Window) -> Self {
        let (low, high) = within.unwrap_or((0, 1 << 64));
        let place = if (low as u128) < high { Place::At(low) } else { Place::End };
        SpaceIterator { space, place: Mutex::new(place), high }
    }
}

#[pymethods]
impl SpaceIterator {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Descriptor>> {
        let shared = &self.space.get().shared;
        shared.attached(py, |state| {
            let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
            let found = match *place {
                Place::At(low) => state.lookup(low).or_else(|| state.next_allocation(low)),
                Place::From(low) => state.next_allocation(low),
                Place::End => None,
            };
            let found = found.filter(|found| (found.start as u128) < self.high);
            let next = found.and_then(|found| u64::try_from(found.start as u128 + found.size).ok());
            let found =
                found.map(|found| Descriptor::new(py, shared, state, found.start, found.size));
            let found = found.transpose()?;
            *place = next.map_or(Place::End, Place::From);
            Ok(found)
        })
    }
}

#[pymethods]
impl Space {
    /// Descriptors of the live allocations that touch a range, in address order, each as it is when it is
    /// reached.
    ///
    /// Arguments:
    ///     within: the range, as a pair `(low, high)`, with `low` in it and `high` not; by default all
    ///         addresses. An allocation that lies across `low` comes first, and has its own start.
    ///
    /// Returns: an iterator of `Descriptor`. What other threads, or the loop itself, allocate and free
    /// meanwhile is seen if it lies further on.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: `within` is not as above.
    ///
    /// Takes a look-up for each allocation that is reached.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> for start in (0, 8192, 65536):
    /// ...     _ = space.alloc_at(start, 8192)
    /// >>> [found.start for found in space.allocations(within=(10000, 65536))]
    /// [8192]
    #[pyo3(signature = (within = None))]
    fn allocations(
        this: &Bound<'_, Self>,
        within: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<SpaceIterator> {
        let within = convert::window(within)?;
        // The core's own words for bounds that make no sense.
        this.get().shared.brief(this.py(), |state| state.allocations_within(within).map(drop))?;
        Ok(SpaceIterator::new(this.clone().unbind(), within))
    }

    /// The maximal free ranges, in address order.
    ///
    /// Arguments:
    ///     within: only what lies in this range, a pair `(low, high)` with `low` in it and `high` not; ranges
    ///         across its ends are cut there, to whole granules.
    ///     min_size: only ranges in which a run of this size could be allocated, in address units; by
    ///         default one granule.
    ///     align: at a multiple of this; by default anywhere.
    ///
    /// Returns: an array of uint64 with two columns, start and size of each range. A range is as long as it
    /// can be: what is before and behind it is allocated, retired or not in the space. What is retired is in
    /// none.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: an argument is not as above; or all 2**64 addresses are one
    ///         range, whose size uint64 cannot hold.
    ///     MemoryError: there is no memory for the array.
    ///
    /// Takes time in proportion to the ranges that have room for half of `min_size`, and lets other threads
    /// run meanwhile.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 16)
    /// >>> space.alloc_at(4096, 4096)
    /// 4096
    /// >>> space.free_ranges().tolist()
    /// [[0, 4096], [8192, 57344]]
    /// >>> space.free_ranges(within=(0, 20000), min_size=8192).tolist()
    /// [[8192, 8192]]
    #[pyo3(signature = (within = None, min_size = None, align = None))]
    fn free_ranges<'py>(
        &self,
        py: Python<'py>,
        within: Option<&Bound<'py, PyAny>>,
        min_size: Option<&Bound<'py, PyAny>>,
        align: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let within = convert::window(within)?;
        let min_size = min_size.map_or(Ok(1), |size| convert::size("min_size", size))?;
        let align = align.map_or(Ok(1), |align| convert::size("align", align))?;
        let found = self.shared.long(py, |state| {
            let mut numbers = Vec::new();
            for (start, size) in state.free_ranges(within, min_size, align)? {
                let Ok(size) = u64::try_from(size) else { return Ok(None) };
                numbers.room(2)?;
                numbers.extend([start, size]);
            }
            Ok(Some(numbers))
        })?;
        let Some(mut numbers) = found else {
            let message = "all 2**64 addresses are free, a size that uint64 cannot hold";
            return Err(raise::<PyOverflowError>(py, message));
        };
        let rows = numbers.len() / 2;
        let shape = tuple(py, [integer(py, rows as u128)?.into_any(), integer(py, 2)?.into_any()])?;
        arrays::array(py, &mut numbers)?.call_method1(pyo3::intern!(py, "reshape"), shape)
    }
}
