//! What a space tells about an allocation, and the walk over all of them.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};
use pyo3::{PyTraverseError, PyVisit};

use potad::Error;

use crate::counted::Counted;
use crate::kind::Kind;
use crate::lock::Shared;
use crate::objects::{integer, joined, string};
use crate::record::{Look, view};
use crate::state::State;
use crate::trash::drop_object;

/// What is known about one allocation: a snapshot, which does not follow later changes, but for the
/// record, which is the allocation's own.
///
/// Spaces give descriptors out (`Space.lookup`, iteration); they are not made otherwise. Two are
/// equal if all they say is equal, records left aside.
///
/// >>> import potad
/// >>> space = potad.Space(1 << 20)
/// >>> start = space.alloc_run(12288, owner="me")
/// >>> descriptor = space.lookup(start + 5000)
/// >>> descriptor.size, descriptor.owner, descriptor.kind
/// (12288, 'me', None)
/// >>> descriptor == space.lookup(start)
/// True
#[pyclass(frozen, module = "potad")]
pub struct Descriptor {
    start: u64,
    size: u128,
    kind: Option<Py<Kind>>,
    owner: Option<Py<PyAny>>,
    pins: u32,
    retiring: bool,
    held: bool,
    look: Option<Counted<Look>>,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.owner.take().into_iter().for_each(drop_object);
    }
}

// Python aligns its objects to 16 bytes and no further.
const _: () = assert!(align_of::<Descriptor>() <= 16);

impl Descriptor {
    /// Of the allocation that starts at `start`. With the space locked.
    pub fn new(
        py: Python<'_>,
        shared: &Shared,
        state: &mut State,
        start: u64,
        size: u128,
    ) -> Result<Self, Error> {
        let (known, retiring) = state.known(start, size);
        let (kind, owner) = state.objects(py, known.label);
        let has_record = kind.as_ref().is_some_and(|kind| kind.get().record_size != 0);
        // Nothing fails after this: to drop a look takes the space's lock.
        let look = if has_record { Look::new(shared, state, start)? } else { None };
        Ok(Descriptor {
            start,
            size,
            kind,
            owner,
            pins: known.pins,
            retiring,
            held: known.held,
            look,
        })
    }
}

impl Descriptor {
    /// Its kind and its owner.
    pub fn objects(&self, py: Python<'_>) -> (Option<Py<Kind>>, Option<Py<PyAny>>) {
        (self.kind(py), self.owner(py))
    }
}

#[pymethods]
impl Descriptor {
    /// The allocation's first address.
    #[getter]
    fn start<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.start.into())
    }

    /// Its size in address units.
    #[getter]
    fn size<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.size)
    }

    /// Its kind, or None.
    #[getter]
    fn kind(&self, py: Python<'_>) -> Option<Py<Kind>> {
        self.kind.as_ref().map(|kind| kind.clone_ref(py))
    }

    /// Its owner, or None.
    #[getter]
    fn owner(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.owner.as_ref().map(|owner| owner.clone_ref(py))
    }

    /// How often it was pinned.
    #[getter]
    fn pins<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.pins.into())
    }

    /// "live", or "retiring" if some of it is retired and goes out of service when it is freed, or "held"
    /// if it is no allocation of a caller's, but kept by the space while others are moved.
    #[getter]
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let state = match (self.held, self.retiring) {
            (true, _) => "held",
            (_, true) => "retiring",
            _ => "live",
        };
        string(py, state)
    }

    /// Its record: a NumPy array that can be written, in place and without a copy, of no dimensions but
    /// those of the dtype itself; None where the kind has no record, or one of no bytes.
    ///
    /// It stays what it is when the allocation is freed, and never shows another allocation's.
    #[getter]
    fn record<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (Some(look), Some(kind)) = (&self.look, &self.kind) else { return Ok(None) };
        kind.get().record(py).map(|dtype| view(py, look, dtype)).transpose()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let Ok(other) = other.cast::<Descriptor>() else { return false };
        let other = other.get();
        let same_kind = self.kind.as_ref().map(|kind| kind.as_ptr())
            == other.kind.as_ref().map(|kind| kind.as_ptr());
        let same_owner = self.owner.as_ref().map(|owner| owner.as_ptr())
            == other.owner.as_ref().map(|owner| owner.as_ptr());
        let figures = |of: &Descriptor| (of.start, of.size, of.pins, of.retiring, of.held);
        same_kind && same_owner && figures(self) == figures(other)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.start, self.size).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let (start, size) = (self.start, self.size);
        let mut text = string(py, format_args!("Descriptor(start={start:#x}, size={size}"))?;
        if let Some(kind) = &self.kind {
            text = joined(joined(text, string(py, ", kind=")?)?, kind.bind(py).repr()?)?;
        }
        if let Some(owner) = &self.owner {
            text = joined(joined(text, string(py, ", owner=")?)?, owner.bind(py).repr()?)?;
        }
        if self.pins != 0 {
            text = joined(text, string(py, format_args!(", pins={}", self.pins))?)?;
        }
        joined(text, string(py, ")")?)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.kind)?;
        visit.call(&self.owner)
    }
}
