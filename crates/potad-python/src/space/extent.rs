//! What belongs to a space: spans that are added and removed, granules that are retired.

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyList;

use potad::Error;
use potad::fallible::collect;

use super::Space;
use super::allocate::ranges;
use crate::arrays;
use crate::convert;
use crate::state::State;

#[pymethods]
impl Space {
    /// Adds a span of addresses, anywhere that is not yet in the space.
    ///
    /// Spans need not adjoin; those that do are one. What of the span was retired before it was
    /// removed stays out of service.
    ///
    /// Arguments:
    ///     start: the first address, a multiple of the granule.
    ///     size: in address units, a multiple of the granule, above 0.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: an argument is not as above, or a part of the
    ///         span is in the space already.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes time in proportion to the number of spans.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(0)
    /// >>> space.add(1 << 40, 1 << 20)
    /// >>> space.alloc(1 << 20) == 1 << 40
    /// True
    #[pyo3(signature = (start, size))]
    fn add(
        &self,
        py: Python<'_>,
        start: &Bound<'_, PyAny>,
        size: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let start = convert::address("start", start)?;
        let size = convert::size("size", size)?;
        self.shared.long(py, |state| {
            if !state.is_memory(start, size) {
                let expected = "that of a range in the arena's memory";
                return Err(Error::argument("start", format_args!("{start:#x}"), expected));
            }
            state.add(start, size)
        })
    }

    /// Takes a span of addresses away, none of which may be allocated.
    ///
    /// It may be any part of the space, and need not be a span as it was added.
    ///
    /// Arguments:
    ///     start: the first address, a multiple of the granule.
    ///     size: in address units, a multiple of the granule, above 0.
    ///
    /// Raises:
    ///     OutOfSpace: a part of it is allocated; `reason` is "occupied".
    ///     ValueError, TypeError, OverflowError: an argument is not as above, or a part of the
    ///         range is not in the space.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes time in proportion to the number of spans and of retired ranges.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.remove(65536, 65536)
    /// >>> space.spans()
    /// [(0, 65536), (131072, 917504)]
    #[pyo3(signature = (start, size))]
    fn remove(
        &self,
        py: Python<'_>,
        start: &Bound<'_, PyAny>,
        size: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let start = convert::address("start", start)?;
        let size = convert::size("size", size)?;
        self.shared.long(py, |state| {
            state.remove(start, size)?;
            state.leave_range(start, size);
            Ok(())
        })
    }

    /// The spans that make up the space, ascending: a list of start and size.
    ///
    /// Takes time in proportion to their number.
    ///
    /// >>> import potad
    /// >>> potad.Space(1 << 20, base=4096).spans()
    /// [(4096, 1048576)]
    fn spans<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        ranges(py, &self.shared.long(py, |space| collect(space.spans()))?)
    }

    /// Takes granules out of service for good: at once where free, when freed where in use.
    ///
    /// Retired twice is the same as once.
    ///
    /// Arguments:
    ///     start: the first address, a multiple of the granule.
    ///     size: in address units, a multiple of the granule, above 0; by default one granule.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: an argument is not as above, or a part of the
    ///         range is not in the space.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes time in proportion to the allocations in the range and to the number of retired
    /// ranges.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(4 * 4096)
    /// >>> space.retire(4096)
    /// >>> space.available // 4096, space.largest_free // 4096
    /// (3, 2)
    #[pyo3(signature = (start, size = None))]
    fn retire(
        &self,
        py: Python<'_>,
        start: &Bound<'_, PyAny>,
        size: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let start = convert::address("start", start)?;
        let size = size.map(|size| convert::size("size", size)).transpose()?;
        self.shared.long(py, |space| {
            let size = size.unwrap_or(space.granule().into());
            space.retire(start, size)
        })
    }

    /// Puts retired granules back into service; others in the range stay as they are.
    ///
    /// Arguments and errors are those of `retire`.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(4 * 4096)
    /// >>> space.retire(0, 4 * 4096)
    /// >>> space.restore(4096)
    /// >>> space.alloc(4096)
    /// 4096
    #[pyo3(signature = (start, size = None))]
    fn restore(
        &self,
        py: Python<'_>,
        start: &Bound<'_, PyAny>,
        size: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let start = convert::address("start", start)?;
        let size = size.map(|size| convert::size("size", size)).transpose()?;
        self.shared.long(py, |space| {
            let size = size.unwrap_or(space.granule().into());
            space.restore(start, size)
        })
    }

    /// The granules that are out of service, or will be when they are freed.
    ///
    /// Returns: the address of each, ascending, an array of uint64. Where whole ranges are retired,
    /// `retired_ranges` says the same in less.
    ///
    /// Raises:
    ///     MemoryError: there is no memory for the array, which has 8 bytes a retired granule.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.retire(8192, 8192)
    /// >>> space.retired().tolist()
    /// [8192, 12288]
    fn retired<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let look = |space: &mut State| Ok((collect(space.retired())?, space.granule()));
        let (ranges, granule) = self.shared.long(py, look)?;
        let count: u128 = ranges.iter().map(|(_, size)| size / granule as u128).sum();
        let mut addresses = arrays::room(py, usize::try_from(count).unwrap_or(usize::MAX))?;
        py.detach(|| {
            for (start, size) in ranges {
                let last = start + (size - granule as u128) as u64;
                let shift = granule.trailing_zeros();
                addresses.extend((start >> shift..=last >> shift).map(|number| number << shift));
            }
        });
        arrays::array(py, &mut addresses)
    }

    /// The ranges that are out of service, or will be when they are freed, ascending: a list of
    /// start and size.
    ///
    /// Takes time in proportion to their number.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.retire(8192, 8192)
    /// >>> space.retired_ranges()
    /// [(8192, 8192)]
    fn retired_ranges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        ranges(py, &self.shared.long(py, |space| collect(space.retired()))?)
    }
}
