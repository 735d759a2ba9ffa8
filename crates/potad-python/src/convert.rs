//! Python's integers as addresses and sizes, and back.
//!
//! An argument may be anything with `__index__`: `int`, its subclasses (so `bool` as well), NumPy
//! integers. Floats have none, not even whole ones. Every error names the argument and its value.
//!
//! Addresses are below 2^64 and sizes at most 2^64, so nearly every number fits in 64 bits, which
//! is the path kept short; only a size of exactly 2^64 does not.
//!
//! Converting may run Python code (`__index__`, `__getitem__`), so it is over before a space is
//! locked.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};

use potad::{Fit, Window};

/// An argument that has a default but no meaning for `None`, so that `None` is not taken for the
/// default as it would be with `Option`.
pub struct Given<'py>(Option<Bound<'py, PyAny>>);

impl Given<'_> {
    /// Not given.
    pub const DEFAULT: Self = Given(None);
}

impl<'py> FromPyObject<'_, 'py> for Given<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Given(Some(object.to_owned())))
    }
}

impl<'py> Given<'py> {
    /// The address, or another number below 2^64, that was given, if any.
    pub fn address(&self, name: &str) -> PyResult<Option<u64>> {
        self.0.as_ref().map(|object| address(name, object)).transpose()
    }

    /// True or False; False where it is not given.
    pub fn flag(&self, name: &str) -> PyResult<bool> {
        self.0.as_ref().map_or(Ok(false), |object| flag(name, object))
    }

    /// Which of several possible runs to take.
    pub fn fit(&self) -> PyResult<Fit> {
        let Some(object) = &self.0 else { return Ok(Fit::default()) };
        let message = || format!("fit must be 'aligned' or 'first', not {}", describe(object));
        let Ok(word) = object.cast::<PyString>() else {
            return Err(PyTypeError::new_err(message()));
        };
        match word.to_str() {
            Ok("aligned") => Ok(Fit::Aligned),
            Ok("first") => Ok(Fit::First),
            _ => Err(PyValueError::new_err(message())),
        }
    }
}

/// An address, or another number from 0 to 2^64 - 1.
#[inline(always)]
pub fn address(name: &str, object: &Bound<'_, PyAny>) -> PyResult<u64> {
    match small(object) {
        Some(value) => Ok(value),
        None => match large(name, object)? {
            value if value < ADDRESS_END => Ok(value as u64),
            value => Err(too_large(name, "below 2**64", &value.to_string())),
        },
    }
}

/// A size: from 0 to 2^64. That 0 is no size for most purposes is for the core to say.
#[inline(always)]
pub fn size(name: &str, object: &Bound<'_, PyAny>) -> PyResult<u128> {
    match small(object) {
        Some(value) => Ok(value as u128),
        None => large(name, object),
    }
}

/// True or False.
pub fn flag(name: &str, object: &Bound<'_, PyAny>) -> PyResult<bool> {
    object.extract().map_err(|_| {
        PyTypeError::new_err(format!("{name} must be True or False, not {}", describe(object)))
    })
}

/// The addresses a call is confined to.
pub fn window(within: Option<&Bound<'_, PyAny>>) -> PyResult<Window> {
    let Some(within) = within else { return Ok(None) };
    let Ok((low, high)) = pair(within) else {
        let value = describe(within);
        let message = format!("within must be a tuple (low, high) of integers, not {value}");
        return Err(PyTypeError::new_err(message));
    };
    let (low, high) = (size("within[0]", &low)?, size("within[1]", &high)?);
    match u64::try_from(low) {
        Ok(low) => Ok(Some((low, high))),
        // Nothing is at or beyond 2^64: the window that is empty up there.
        Err(_) if high == low => Ok(Some((u64::MAX, u64::MAX as u128))),
        Err(_) => Err(PyValueError::new_err(format!(
            "within must be (low, high) with low <= high <= 2**64, not ({low}, {high})"
        ))),
    }
}

type Pair<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The two elements of a sequence of two.
fn pair<'py>(sequence: &Bound<'py, PyAny>) -> PyResult<Pair<'py>> {
    if let Ok(tuple) = sequence.cast::<PyTuple>() {
        return tuple.extract();
    }
    if sequence.len()? != 2 {
        return Err(PyValueError::new_err("not of length 2"));
    }
    Ok((sequence.get_item(0)?, sequence.get_item(1)?))
}

/// A size or another number up to 2^64 as a Python integer.
#[inline]
pub fn integer(py: Python<'_>, value: u128) -> Bound<'_, PyInt> {
    let Ok(object) = match u64::try_from(value) {
        Ok(value) => value.into_pyobject(py),
        Err(_) => value.into_pyobject(py),
    };
    object
}

const ADDRESS_END: u128 = 1 << 64;

/// A plain Python integer that fits in 64 bits; anything else is for [`large`] to look at.
#[inline(always)]
pub fn small(object: &Bound<'_, PyAny>) -> Option<u64> {
    if !object.is_exact_instance_of::<PyInt>() {
        return None;
    }
    // SAFETY: the object is alive, an integer, and the interpreter attached. An error is possible
    // with one value only.
    unsafe {
        let value = ffi::PyLong_AsUnsignedLongLong(object.as_ptr());
        if value == u64::MAX && !ffi::PyErr_Occurred().is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        Some(value)
    }
}

/// Any integer from 0 to 2^64.
#[cold]
fn large(name: &str, object: &Bound<'_, PyAny>) -> PyResult<u128> {
    let integer = index(name, object)?;
    if let Ok(value) = integer.extract::<u128>() {
        if value <= ADDRESS_END {
            return Ok(value);
        }
    } else if integer.lt(0)? {
        let value = describe(&integer);
        return Err(PyValueError::new_err(format!("{name} must be at least 0, not {value}")));
    }
    Err(too_large(name, "at most 2**64", &describe(&integer)))
}

/// An address, or `None` for an integer that cannot be one: for calls that only ask about it.
pub fn address_if_any(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    match small(object) {
        Some(value) => Ok(Some(value)),
        None => Ok(index(name, object)?.extract().ok()),
    }
}

fn too_large(name: &str, limit: &str, value: &str) -> PyErr {
    PyOverflowError::new_err(format!("{name} must be {limit}, not {value}"))
}

/// The integer that an object stands for.
fn index<'py>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    // SAFETY: the object is alive and the interpreter attached; what comes back is a new reference
    // or null with an exception set.
    let found = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_Index(object.as_ptr())) };
    found.map_err(|error| {
        if !error.is_instance_of::<PyTypeError>(py) {
            // Raised by the object's own `__index__`.
            return error;
        }
        let value = describe(object);
        let wrong = PyTypeError::new_err(format!("{name} must be an integer, not {value}"));
        wrong.set_cause(py, Some(error));
        wrong
    })
}

/// Larger whole numbers are told by their length: Python gives those of thousands of digits no decimal
/// form, and what it says instead depends on its version.
const DECIMAL_BITS_MAX: u64 = 256;

/// A value as an error message shows it: shortened, and with its type where that is not obvious.
#[cold]
pub fn describe(object: &Bound<'_, PyAny>) -> String {
    let py = object.py();
    if object.is_none() {
        return "None".into();
    }
    if object.is_exact_instance_of::<PyInt>()
        && let Ok(bits) = object.call_method0("bit_length").and_then(|bits| bits.extract::<u64>())
    {
        return if bits > DECIMAL_BITS_MAX {
            format!("a number of {bits} bits")
        } else {
            object.to_string()
        };
    }
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    let shown = py.import("reprlib").and_then(|module| module.call_method1("repr", (object,)));
    match shown.and_then(|text| text.extract::<String>()) {
        Ok(text) => format!("{text} ({kind})"),
        Err(_) => format!("a value of type {kind}"),
    }
}
