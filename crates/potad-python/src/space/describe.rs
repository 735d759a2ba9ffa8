//! What allocations are and whose: pins, records, owners, and what happens when memory fails.

use std::sync::{Mutex, PoisonError};

use numpy::PyArray1;
use pyo3::exceptions::{PyException, PyOverflowError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use potad::Error;
use potad::fallible::Grow;

use super::Space;
use crate::arrays;
use crate::convert;
use crate::descriptor::Descriptor;
use crate::errors::{checked, raise};
use crate::kind::Kind;
use crate::objects::{bytes, integer, list, or_none, tuple};

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
    fn pin<'py>(
        &self,
        py: Python<'py>,
        address: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyInt>> {
        let address = convert::address("address", address)?;
        let pins = self.shared.brief(py, |space| space.pin(address))?;
        integer(py, pins.into()).inspect_err(|_| self.unpin_all(py, &[address]))
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
    fn unpin<'py>(
        &self,
        py: Python<'py>,
        address: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyInt>> {
        let address = convert::address("address", address)?;
        integer(py, self.shared.brief(py, |state| state.unpin_for_caller(address))?.into())
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
        Ok(Pinned { space: this, address, entered: Mutex::new(Vec::new()) })
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
        let mut starts = self.shared.long(py, |space| space.pin_range(start, size))?;
        arrays::array(py, &mut starts).inspect_err(|_| self.unpin_all(py, &starts))
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
    ///     MemoryError: there is no memory for metadata. Nothing was done, and no owner was told.
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
        // All that it takes to tell the owner is there before the granule is retired.
        let tell_owner = TELL_OWNER.import(py, "potad.failure", "tell_owner")?;
        let failed =
            OUTCOME.import(py, "potad.failure", "Outcome")?.getattr(intern!(py, "FAILED"))?;
        let number = integer(py, address.into())?;
        let mut found = None;
        self.shared.attached(py, |state| {
            if let Some(it) = state.lookup(address) {
                found = Some(Descriptor::new(py, &self.shared, state, it.start, it.size)?);
            }
            let granule = state.granule();
            let retired = state.retire(address & !(granule - 1), granule.into());
            retired.map_err(|error| match error {
                Error::Argument { expected, .. } => {
                    Error::argument("address", format_args!("{address:#x}"), expected)
                }
                other => other,
            })
        })?;
        tell_owner.call1((number, found)).or_else(|error| {
            // What is no plain error, such as an interrupt, is for the caller.
            if !error.is_instance_of::<PyException>(py) {
                return Err(error);
            }
            error.write_unraisable(py, None);
            Ok(failed)
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
        let mut owners = Vec::new();
        let (found, content) = self.shared.attached(py, |state| {
            let Some(number) = state.known_kind(pointer) else {
                return Ok((Vec::new(), Vec::new()));
            };
            let found = state.of_kind(number)?;
            owners.room(found.len())?;
            let content = state.read_records(found.iter().map(|described| described.start))?;
            owners.extend(found.iter().map(|described| state.objects(py, described.label).1));
            Ok((found, content))
        })?;
        let mut columns: [Vec<u64>; 3] = Default::default();
        let [starts, sizes, pins] = &mut columns;
        for column in [&mut *starts, sizes, pins] {
            checked(py, column.room(found.len()))?;
        }
        for described in &found {
            let Ok(size) = u64::try_from(described.size) else {
                let text = "an allocation has all 2**64 addresses, a size that uint64 cannot hold";
                return Err(raise::<PyOverflowError>(py, text));
            };
            starts.push(described.start);
            sizes.push(size);
            pins.push(described.pins.into());
        }
        let [starts, sizes, pins] = columns.each_mut().map(|column| arrays::array(py, column));
        let owners = list(py, owners.into_iter(), |owner| Ok(or_none(py, owner)))?;
        let make = RECORDS.import(py, "potad.usage", "records")?;
        make.call1((kind, starts?, sizes?, pins?, owners, bytes(py, &content)?))
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
    fn owned_by<'py>(
        &self,
        py: Python<'py>,
        owner: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyList>> {
        let pointer = owner.as_ptr() as usize;
        // Outside of what happens under the lock, where none may be dropped.
        let mut descriptors = Vec::new();
        self.shared.attached(py, |state| {
            let found = state.owned_by(pointer)?;
            descriptors.room(found.len())?;
            for it in found {
                descriptors.push(Descriptor::new(py, &self.shared, state, it.start, it.size)?);
            }
            Ok(())
        })?;
        list(py, descriptors.into_iter(), |descriptor| Ok(Bound::new(py, descriptor)?.into_any()))
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
        let mut rows = Vec::new();
        self.shared.attached(py, |state| {
            let tally = state.tally()?;
            rows.room(tally.len())?;
            rows.extend(tally.into_iter().map(|it| (state.objects(py, it.label), it)));
            Ok(())
        })?;
        let rows = list(py, rows.into_iter(), |((kind, owner), it)| {
            let (count, size) = (integer(py, it.count.into())?, integer(py, it.size)?);
            let (kind, owner) = (or_none(py, kind), or_none(py, owner));
            Ok(tuple(py, [kind, owner, count.into_any(), size.into_any()])?.into_any())
        })?;
        REPORT.import(py, "potad.usage", "Report")?.call1((rows,))
    }
}

impl Space {
    /// Takes back pins whose caller is not told of them.
    fn unpin_all(&self, py: Python<'_>, addresses: &[u64]) {
        let unpinned = self.shared.long(py, |state| {
            addresses.iter().for_each(|&address| drop(state.unpin_for_caller(address)));
            Ok(())
        });
        // Only a space that is of no further use refuses that.
        drop(unpinned);
    }
}

/// What `Space.pinned` returns.
#[pyclass(frozen, module = "potad._core")]
pub struct Pinned {
    space: Py<Space>,
    address: u64,
    /// Starts of the allocations that were pinned on entering, innermost last.
    entered: Mutex<Vec<u64>>,
}

#[pymethods]
impl Pinned {
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, Descriptor>> {
        let shared = &self.space.get().shared;
        let descriptor = shared.attached(py, |state| {
            let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
            entered.room(1)?;
            state.pin(self.address)?;
            let found = state.lookup(self.address).expect("it was just pinned");
            match Descriptor::new(py, shared, state, found.start, found.size) {
                Ok(descriptor) => {
                    entered.push(found.start);
                    Ok(descriptor)
                }
                Err(error) => {
                    state.unpin(found.start)?;
                    Err(error)
                }
            }
        })?;
        Bound::new(py, descriptor).inspect_err(|_| drop(self.leave(py)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.leave(py)
    }
}

impl Pinned {
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(start) = entered else {
            return Err(raise::<PyRuntimeError>(py, "left a context that was not entered"));
        };
        self.space.get().shared.brief(py, |state| state.unpin_for_caller(start).map(drop))
    }
}
