//! What a space tells about an allocation, and the walk over all of them.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyInt;

use crate::convert::integer;
use crate::space::Space;

/// What is known about one allocation: a snapshot, which does not follow later changes.
///
/// Spaces give descriptors out (`Space.lookup`, iteration); they are not made otherwise. Two are
/// equal if all they say is equal.
///
/// >>> import potad
/// >>> space = potad.Space(1 << 20)
/// >>> start = space.alloc_run(12288)
/// >>> descriptor = space.lookup(start + 5000)
/// >>> descriptor.size
/// 12288
/// >>> descriptor == space.lookup(start)
/// True
#[pyclass(frozen, eq, hash, module = "potad")]
#[derive(PartialEq, Eq, Hash)]
pub struct Descriptor {
    start: u64,
    size: u128,
}

// Python aligns its objects to 16 bytes and no further.
const _: () = assert!(align_of::<Descriptor>() <= 16);

impl From<potad::Descriptor> for Descriptor {
    fn from(found: potad::Descriptor) -> Self {
        Descriptor { start: found.start, size: found.size }
    }
}

#[pymethods]
impl Descriptor {
    /// The allocation's first address.
    #[getter]
    fn start(&self) -> u64 {
        self.start
    }

    /// Its size in address units.
    #[getter]
    fn size<'py>(&self, py: Python<'py>) -> Bound<'py, PyInt> {
        integer(py, self.size)
    }

    fn __repr__(&self) -> String {
        format!("Descriptor(start={:#x}, size={})", self.start, self.size)
    }
}

/// The live allocations of a space in address order, as they are when each is reached.
#[pyclass(frozen, module = "potad._core")]
pub struct SpaceIterator {
    space: Py<Space>,
    /// Where to go on; `None` at the end. Only touched with the space locked, so never waited for.
    from: Mutex<Option<u64>>,
}

impl SpaceIterator {
    pub fn new(space: Py<Space>) -> Self {
        SpaceIterator { space, from: Mutex::new(Some(0)) }
    }
}

#[pymethods]
impl SpaceIterator {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Descriptor>> {
        let found = self.space.get().shared.brief(py, |space| {
            let mut from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
            let found = from.and_then(|from| space.next_allocation(from));
            *from = found.and_then(|found| u64::try_from(found.start as u128 + found.size).ok());
            Ok(found)
        })?;
        Ok(found.map(Descriptor::from))
    }
}
