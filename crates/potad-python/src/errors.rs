//! Errors of the core as Python exceptions.
//!
//! The classes are written in Python (`potad.errors`), where they can have several bases, carry
//! attributes and be pickled; here they are looked up once and built from the core's numbers. All
//! of it is cold: nothing of an error is made before there is one.

use pyo3::call::PyCallArgs;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use potad::Error;

/// A class of `potad.errors`, looked up when it is first needed.
struct Class {
    name: &'static str,
    class: PyOnceLock<Py<PyType>>,
}

static OUT_OF_SPACE: Class = Class::new("OutOfSpace");
static NOT_ALLOCATED: Class = Class::new("NotAllocated");
static BUSY: Class = Class::new("Busy");
static CORRUPT: Class = Class::new("Corrupt");

impl Class {
    const fn new(name: &'static str) -> Self {
        Class { name, class: PyOnceLock::new() }
    }

    /// An exception of this class; if it cannot be made, what was raised instead.
    fn raise<'py>(&self, py: Python<'py>, arguments: impl PyCallArgs<'py>) -> PyErr {
        let class = self.class.import(py, "potad.errors", self.name);
        let made = class.and_then(|class| class.call1(arguments));
        made.map_or_else(|error| error, PyErr::from_value)
    }
}

/// The exception for an error of the core.
#[cold]
pub fn exception(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::OutOfSpace { requested, available, largest, reason, .. } => {
            OUT_OF_SPACE.raise(py, (message, requested, available, largest, reason.as_str()))
        }
        Error::NotAllocated { address, .. } => NOT_ALLOCATED.raise(py, (message, address)),
        Error::Busy { address, pins } => BUSY.raise(py, (message, address, pins)),
        Error::Argument { .. } => PyValueError::new_err(message),
        Error::Metadata { .. } => PyMemoryError::new_err(message),
        Error::Corrupt { .. } => corrupt(py, message),
    }
}

/// What a call needs was freed.
#[cold]
pub fn not_allocated(py: Python<'_>, message: String, address: u64) -> PyErr {
    NOT_ALLOCATED.raise(py, (message, address))
}

/// Something is in use that was to go.
#[cold]
pub fn busy(py: Python<'_>, message: String, address: u64) -> PyErr {
    BUSY.raise(py, (message, address, 0))
}

/// The space is not what it should be, and `what` says how that showed.
#[cold]
pub fn corrupt(py: Python<'_>, what: String) -> PyErr {
    CORRUPT.raise(py, (what,))
}
