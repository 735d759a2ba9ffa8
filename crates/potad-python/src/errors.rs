//! Errors as Python exceptions. Their texts need no memory but Python's own.
//!
//! The classes of this package are written in Python (`potad.errors`), where they can have several
//! bases, carry attributes and be pickled; here they are looked up once and built from the core's
//! numbers. All of it is cold: nothing of an error is made before there is one.

use std::fmt::Display;

use pyo3::PyTypeInfo;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use potad::Error;

use crate::objects::{integer, string, tuple};

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
    fn raise<'py>(&self, py: Python<'py>, arguments: PyResult<Bound<'py, PyTuple>>) -> PyErr {
        let class = self.class.import(py, "potad.errors", self.name);
        let made = class.and_then(|class| class.call1(arguments?));
        made.map_or_else(|error| error, PyErr::from_value)
    }
}

/// An exception of one of Python's classes. PyO3's own functions for this put the text on the heap, and
/// end the process if there is no memory for it.
#[cold]
pub fn raise<E: PyTypeInfo>(py: Python<'_>, text: impl Display) -> PyErr {
    let text = match string(py, text) {
        Ok(text) => text,
        Err(error) => return error,
    };
    // SAFETY: a class and a text. It sets an exception, this one or another.
    unsafe { ffi::PyErr_SetObject(E::type_object_raw(py).cast(), text.as_ptr()) };
    PyErr::fetch(py)
}

/// The exception for an error of the core.
#[cold]
pub fn exception(py: Python<'_>, error: Error) -> PyErr {
    match error {
        Error::OutOfSpace { requested, available, largest, reason, .. } => {
            let arguments = out_of_space(py, &error, requested, available, largest, reason);
            OUT_OF_SPACE.raise(py, arguments.and_then(|arguments| tuple(py, arguments)))
        }
        Error::NotAllocated { address, .. } => NOT_ALLOCATED.raise(py, at(py, &error, address)),
        Error::Busy { address, pins } => BUSY.raise(py, busy_at(py, &error, address, pins)),
        Error::Argument { .. } => raise::<PyValueError>(py, &error),
        Error::Metadata { .. } => raise::<PyMemoryError>(py, &error),
        Error::Corrupt { .. } => corrupt(py, &error),
    }
}

/// What something comes to, with the core's error as an exception.
pub fn checked<T>(py: Python<'_>, outcome: Result<T, Error>) -> PyResult<T> {
    outcome.map_err(|error| exception(py, error))
}

/// What an `OutOfSpace` is made of.
pub fn out_of_space<'py>(
    py: Python<'py>,
    text: impl Display,
    requested: u128,
    available: u128,
    largest: u128,
    reason: potad::Reason,
) -> PyResult<[Bound<'py, PyAny>; 5]> {
    Ok([
        string(py, text)?.into_any(),
        integer(py, requested)?.into_any(),
        integer(py, available)?.into_any(),
        integer(py, largest)?.into_any(),
        string(py, reason.as_str())?.into_any(),
    ])
}

fn at<'py>(py: Python<'py>, text: impl Display, address: u64) -> PyResult<Bound<'py, PyTuple>> {
    tuple(py, [string(py, text)?.into_any(), integer(py, address.into())?.into_any()])
}

fn busy_at<'py>(
    py: Python<'py>,
    text: impl Display,
    address: u64,
    pins: u32,
) -> PyResult<Bound<'py, PyTuple>> {
    let (address, pins) = (integer(py, address.into())?, integer(py, pins.into())?);
    tuple(py, [string(py, text)?.into_any(), address.into_any(), pins.into_any()])
}

/// What a call needs was freed.
#[cold]
pub fn not_allocated(py: Python<'_>, text: impl Display, address: u64) -> PyErr {
    NOT_ALLOCATED.raise(py, at(py, text, address))
}

/// Something is in use that was to go.
#[cold]
pub fn busy(py: Python<'_>, text: impl Display, address: u64) -> PyErr {
    BUSY.raise(py, busy_at(py, text, address, 0))
}

/// The space is not what it should be, and the text says how that showed.
#[cold]
pub fn corrupt(py: Python<'_>, text: impl Display) -> PyErr {
    CORRUPT.raise(py, string(py, text).and_then(|text| tuple(py, [text.into_any()])))
}
