//! What allocations are and whose: pins, records, owners, and what happens when memory fails.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyException, PyOverflowError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList};
use pyo3::{PyTraverseError, PyVisit};

use potad::{Described, Error};

use super::Space;
use crate::arrays;
use crate::convert::{self, integer};
use crate::descriptor::Descriptor;
use crate::kind::Kind;

static TELL_OWNER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static OUTCOME: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static REPORT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static RECORDS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

#[pymethods]
impl Space {
    /// Pins the allocation that an address lies in: while it is pinned, it is not freed, split or
    /// moved. Pins are counted.
    ///
    /// Arguments:
    ///     address: from 0 to 2**64 - 1, inside an allocation, not only at its start.
    ///
    /// Returns: how often the allocation is pinned now.
    ///
    /// Raises:
    ///     NotAllocated: nothing is allocated there.
    ///     ValueError, TypeError, OverflowError: `address` is not as above.
    ///     MemoryError: there is no memory for one pin more.
    ///
    /// Takes as long as a look-up.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> block = space.alloc(65536)
    /// >>> space.pin(block + 5000), space.pin(block)
    /// (1, 2)
    /// >>> space.free(block)
    /// Traceback (most recent call last):
    ///     ...
    /// potad.errors.Busy: the allocation at 0x0 is pinned 2 times
    ///
    /// What `get_user_pages` does to pages in Linux.
    #[pyo3(signature = (address))]
    fn pin(&self, py: Python<'_>, address: &Bound<'_, PyAny>) -> PyResult<u32> {
        let address = convert::address("address", address)?;
        self.shared.brief(py, |space| space.pin(address))
    }

    /// Takes one pin back of the allocation that an address lies in.
    ///
    /// Arguments:
    ///     address: as for `pin`.
    ///
    /// Returns: how often the allocation is pinned still.
    ///
    /// Raises:
    ///     NotAllocated: nothing is allocated there.
    ///     ValueError: the allocation is not pinned; or, as TypeError and OverflowError, `address` is
    ///         not as above.
    ///
    /// Takes as long as a look-up.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> block = space.alloc(65536)
    /// >>> space.pin(block), space.unpin(block)
    /// (1, 0)
    #[pyo3(signature = (address))]
    fn unpin(&self, py: Python<'_>, address: &Bound<'_, PyAny>) -> PyResult<u32> {
        let address = convert::address("address", address)?;
        self.shared.brief(py, |state| state.unpin_for_caller(address))
    }

    /// A context in which the allocation that an address lies in is pinned.
    ///
    /// Arguments:
    ///     address: as for `pin`; what is pinned is the allocation that it lies in on entering.
    ///
    /// Returns: a context manager, which can be entered again and again; it gives the allocation's
    /// descriptor.
    ///
    /// Raises:
    ///     NotAllocated: on entering, nothing is allocated there.
    ///     ValueError, TypeError, OverflowError: `address` is not as above.
    ///
    /// Takes as long as a look-up, on entering and on leaving.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> block = space.alloc(65536)
    /// >>> with space.pinned(block + 5000) as descriptor:
    /// ...     descriptor.pins
    /// 1
    /// >>> space.free(block)
    #[pyo3(signature = (address))]
    fn pinned(this: Py<Self>, address: &Bound<'_, PyAny>) -> PyResult<Pinned> {
        let address = convert::address("address", address)?;
        Ok(Pinned { space: this, address, entered: std::sync::Mutex::new(Vec::new()) })
    }

    /// Pins every allocation that a range touches, or none.
    ///
    /// Arguments:
    ///     start: the first address, a multiple of the granule.
    ///     size: in address units, a multiple of the granule, above 0.
    ///
    /// Returns: the starts of the allocations, ascending; each is to be unpinned once.
    ///
    /// Raises:
    ///     NotAllocated: nothing in the range is allocated.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for so many pins.
    ///
    /// Takes time in proportion to the allocations that are touched.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.alloc_at(0, 8192), space.alloc_at(8192, 4096), space.alloc_at(65536, 4096)
    /// (0, 8192, 65536)
    /// >>> space.pin_range(4096, 8192).tolist()
    /// [0, 8192]
    #[pyo3(signature = (start, size))]
    fn pin_range<'py>(
        &self,
        py: Python<'py>,
        start: &Bound<'py, PyAny>,
        size: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let start = convert::address("start", start)?;
        let size = convert::size("size", size)?;
        let starts = self.shared.long(py, |space| space.pin_range(start, size))?;
        Ok(arrays::array(py, starts))
    }

    /// Takes a granule out of service whose memory has failed, and tells whom it belongs to.
    ///
    /// The granule is retired, whatever the owner answers: at once if it is free, otherwise when it is
    /// freed; see `retire`. If it lies in an allocation whose owner has a method
    /// `on_memory_failure(failure)`, that is called, without the space being locked: it may free the
    /// allocation, allocate another, or do anything else with the space. `failure` has the address that
    /// failed, and `start`, `size`, `kind`, `owner` and `record` of the allocation.
    ///
    /// Arguments:
    ///     address: from 0 to 2**64 - 1, in the space; any address in the granule.
    ///
    /// Returns: an `Outcome`. RECOVERED if the granule was free; what the owner answered; FAILED if
    /// there is no owner, it has no such method, answers None, or raises. What it raises, and an
    /// answer that is no `Outcome`, is passed to `sys.unraisablehook`, as the cause of a `PotadError`.
    ///
    /// Raises:
    ///     ValueError: the address is not in the space; or, as TypeError and OverflowError, it is not as
    ///         above.
    ///     MemoryError: there is no memory for metadata. Nothing was done, and nobody told.
    ///     KeyboardInterrupt, SystemExit: the owner was interrupted; the granule is retired.
    ///
    /// Takes as long as a look-up and what the owner does.
    ///
    /// >>> import potad
    /// >>> class Cache:
    /// ...     def on_memory_failure(self, failure):
    /// ...         space.free(failure.start)  # read again when it is needed
    /// ...         return potad.Outcome.RECOVERED
    /// >>> space = potad.Space(1 << 20)
    /// >>> block = space.alloc(65536, owner=Cache())
    /// >>> space.memory_failure(block + 5000)
    /// <Outcome.RECOVERED: 3>
    /// >>> space.retired().tolist()
    /// [4096]
    ///
    /// What memory-failure.c does in Linux; the outcomes are the kernel's.
    #[pyo3(signature = (address))]
    fn memory_failure<'py>(
        &self,
        py: Python<'py>,
        address: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let address = convert::address("address", address)?;
        let found = self.shared.attached(py, |state| {
            let granule = state.granule();
            let retired = state.retire(address & !(granule - 1), granule.into());
            retired.map_err(|error| match error {
                Error::Argument { value: _, expected, .. } => {
                    let value = format!("{address:#x}");
                    Error::Argument { name: "address", value, expected }
                }
                other => other,
            })?;
            let found = state.lookup(address);
            let found = found
                .map(|found| Descriptor::new(py, &self.shared, state, found.start, found.size));
            found.transpose()
        })?;
        let tell = TELL_OWNER.import(py, "potad.failure", "tell_owner")?;
        tell.call1((address, found)).or_else(|error| {
            // What is no plain error, such as an interrupt, is for the caller.
            if !error.is_instance_of::<PyException>(py) {
                return Err(error);
            }
            error.write_unraisable(py, None);
            OUTCOME.import(py, "potad.failure", "Outcome")?.getattr("FAILED")
        })
    }

    /// All live records of a kind, in one structured array, ascending by start.
    ///
    /// Arguments:
    ///     kind: a `Kind`; one the space has not met has no records.
    ///
    /// Returns: an array with the fields `start`, `size`, `pins`, `owner` and, if the kind has records,
    /// `record`: a copy, of all at one moment.
    ///
    /// Raises:
    ///     TypeError: `kind` is no `Kind`.
    ///     OverflowError: an allocation has all 2**64 addresses, a size that uint64 cannot hold.
    ///     MemoryError: there is no memory for the array.
    ///
    /// Takes time in proportion to the descriptors of all kinds.
    ///
    /// >>> import potad
    /// >>> import numpy
    /// >>> buffer = potad.Kind("buffer", record=numpy.dtype([("dirty", "?")]))
    /// >>> space = potad.Space(1 << 20)
    /// >>> blocks = [space.alloc(4096, kind=buffer) for _ in range(3)]
    /// >>> space.lookup(blocks[1]).record["dirty"] = True
    /// >>> records = space.records(buffer)
    /// >>> records["start"][records["record"]["dirty"]].tolist() == blocks[1:2]
    /// True
    #[pyo3(signature = (kind))]
    fn records<'py>(
        &self,
        py: Python<'py>,
        kind: &Bound<'py, Kind>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let pointer = kind.as_ptr() as usize;
        let (found, owners, bytes) = self.shared.attached(py, |state| {
            let Some(number) = state.known_kind(pointer) else {
                return Ok((Vec::new(), Vec::new(), Vec::new()));
            };
            let found = state.of_kind(number)?;
            let owners: Vec<_> = found.iter().map(|d| state.objects(py, d.label).1).collect();
            let bytes = state.read_records(found.iter().map(|described| described.start))?;
            Ok((found, owners, bytes))
        })?;
        let sizes = found.iter().map(|described| u64::try_from(described.size));
        let Ok(sizes) = sizes.collect::<Result<Vec<u64>, _>>() else {
            let message = "an allocation has all 2**64 addresses, a size that uint64 cannot hold";
            return Err(PyOverflowError::new_err(message));
        };
        let starts = arrays::array(py, found.iter().map(|described| described.start).collect());
        let pins: Vec<u32> = found.iter().map(|described| described.pins).collect();
        let pins = PyArray1::from_vec(py, pins).to_dyn().clone();
        let owners = PyList::new(py, owners)?;
        let make = RECORDS.import(py, "potad.usage", "records")?;
        make.call1((kind, starts, arrays::array(py, sizes), pins, owners, PyBytes::new(py, &bytes)))
    }

    /// The live allocations of an owner.
    ///
    /// Arguments:
    ///     owner: the object, not one that is equal to it.
    ///
    /// Returns: a list of their descriptors, ascending by start; empty for an object that owns nothing.
    ///
    /// Takes time in proportion to the descriptors of all owners.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> owner = object()
    /// >>> block = space.alloc(8192, owner=owner)
    /// >>> [descriptor.size for descriptor in space.owned_by(owner)]
    /// [8192]
    #[pyo3(signature = (owner))]
    fn owned_by(&self, py: Python<'_>, owner: &Bound<'_, PyAny>) -> PyResult<Vec<Descriptor>> {
        let pointer = owner.as_ptr() as usize;
        self.shared.attached(py, |state| {
            let found = state.owned_by(pointer)?;
            let descriptor = |found: Described| {
                Descriptor::new(py, &self.shared, state, found.start, found.size)
            };
            found.into_iter().map(descriptor).collect()
        })
    }

    /// How much of the space is in use, by kind and owner.
    ///
    /// Returns: a `Report`: rows with `kind`, `owner`, `allocations` and `size`, largest first, which
    /// prints as a table. What has no kind or owner has None there.
    ///
    /// Takes time in proportion to the allocations.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> blocks = [space.alloc(65536, owner="cache"), space.alloc(4096, owner="cache")]
    /// >>> block = space.alloc(8192, kind=potad.Kind("page"))
    /// >>> print(space.report())
    /// kind   owner    allocations    size   share
    /// -      'cache'            2  69,632   89.5%
    /// page   -                  1   8,192   10.5%
    /// total                     3  77,824  100.0%
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let rows = self.shared.attached(py, |state| {
            let tally = state.tally()?.into_iter();
            Ok(tally
                .map(|(label, count, size)| (state.objects(py, label), count, size))
                .collect::<Vec<_>>())
        })?;
        let rows = rows
            .into_iter()
            .map(|((kind, owner), count, size)| (kind, owner, count, integer(py, size)));
        let rows = PyList::new(py, rows.collect::<Vec<_>>())?;
        REPORT.import(py, "potad.usage", "Report")?.call1((rows,))
    }
}

/// What `Space.pinned` returns.
#[pyclass(frozen, module = "potad._core")]
pub struct Pinned {
    space: Py<Space>,
    address: u64,
    /// Starts of the allocations that were pinned on entering, innermost last.
    entered: std::sync::Mutex<Vec<u64>>,
}

#[pymethods]
impl Pinned {
    fn __enter__(&self, py: Python<'_>) -> PyResult<Descriptor> {
        let shared = &self.space.get().shared;
        shared.attached(py, |state| {
            state.pin(self.address)?;
            let found = state.lookup(self.address).expect("it was just pinned");
            let mut entered = self.entered.lock().unwrap_or_else(|error| error.into_inner());
            entered.push(found.start);
            Descriptor::new(py, shared, state, found.start, found.size)
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        let entered = self.entered.lock().unwrap_or_else(|error| error.into_inner()).pop();
        let Some(start) = entered else {
            return Err(PyRuntimeError::new_err("left a context that was not entered"));
        };
        self.space.get().shared.brief(py, |state| state.unpin_for_caller(start).map(drop))
    }
}
