//! Python's integers as addresses and sizes.
//!
//! An argument may be anything with `__index__`: `int`, its subclasses (so `bool` as well), NumPy
//! integers. Floats have none, not even whole ones. Every error names the argument and its value.
//!
//! Addresses are below 2^64 and sizes at most 2^64, so nearly every number fits in 64 bits, which
//! is the path kept short; only a size of exactly 2^64 does not.
//!
//! Converting may run Python code (`__index__`, `__getitem__`), so it is over before a space is
//! locked.

use std::fmt::{self, Display};

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};

use potad::{Fit, Window};

use crate::errors::raise;

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
    pub fn address(&self, name: &'static str) -> PyResult<Option<u64>> {
        self.0.as_ref().map(|object| address(name, object)).transpose()
    }

    /// True or False; False where it is not given.
    pub fn flag(&self, name: &str) -> PyResult<bool> {
        self.0.as_ref().map_or(Ok(false), |object| flag(name, object))
    }

    /// Which of several possible runs to take.
    pub fn fit(&self) -> PyResult<Fit> {
        let Some(object) = &self.0 else { return Ok(Fit::default()) };
        let (py, value) = (object.py(), describe(object));
        let Ok(word) = object.cast::<PyString>() else {
            return Err(raise::<PyTypeError>(
                py,
                format_args!("fit must be 'aligned' or 'first', not {value}"),
            ));
        };
        match word.to_str() {
            Ok("aligned") => Ok(Fit::Aligned),
            Ok("first") => Ok(Fit::First),
            _ => Err(raise::<PyValueError>(
                py,
                format_args!("fit must be 'aligned' or 'first', not {value}"),
            )),
        }
    }
}

/// An address, or another number from 0 to 2^64 - 1.
#[inline(always)]
pub fn address(name: impl Display, object: &Bound<'_, PyAny>) -> PyResult<u64> {
    match small(object) {
        Some(value) => Ok(value),
        None => match large(&name, object)? {
            value if value < ADDRESS_END => Ok(value as u64),
            value => Err(too_large(object.py(), &name, "below 2**64", value)),
        },
    }
}

/// A size: from 0 to 2^64. That 0 is no size for most purposes is for the core to say.
#[inline(always)]
pub fn size(name: &'static str, object: &Bound<'_, PyAny>) -> PyResult<u128> {
    match small(object) {
        Some(value) => Ok(value as u128),
        None => large(&name, object),
    }
}

/// True or False.
pub fn flag(name: &str, object: &Bound<'_, PyAny>) -> PyResult<bool> {
    object.extract().map_err(|_| {
        let value = describe(object);
        raise::<PyTypeError>(object.py(), format_args!("{name} must be True or False, not {value}"))
    })
}

/// The addresses a call is confined to.
pub fn window(within: Option<&Bound<'_, PyAny>>) -> PyResult<Window> {
    let Some(within) = within else { return Ok(None) };
    let Ok((low, high)) = pair(within) else {
        let value = describe(within);
        return Err(raise::<PyTypeError>(
            within.py(),
            format_args!("within must be a tuple (low, high) of integers, not {value}"),
        ));
    };
    let (low, high) = (size("within[0]", &low)?, size("within[1]", &high)?);
    match u64::try_from(low) {
        Ok(low) => Ok(Some((low, high))),
        // Nothing is at or beyond 2^64: the window that is empty up there.
        Err(_) if high == low => Ok(Some((u64::MAX, u64::MAX as u128))),
        Err(_) => Err(raise::<PyValueError>(
            within.py(),
            format_args!(
                "within must be (low, high) with low <= high <= 2**64, not ({low}, {high})"
            ),
        )),
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

/// An integer from 0 to 2^128 - 1, if it is one.
fn number(integer: &Bound<'_, PyAny>) -> PyResult<Option<u128>> {
    match integer.extract() {
        Ok(number) => Ok(Some(number)),
        Err(error) if error.is_instance_of::<PyOverflowError>(integer.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Any integer from 0 to 2^64.
#[cold]
fn large(name: &dyn Display, object: &Bound<'_, PyAny>) -> PyResult<u128> {
    let integer = index(name, object)?;
    let value = describe(&integer);
    if let Some(number) = number(&integer)? {
        if number <= ADDRESS_END {
            return Ok(number);
        }
    } else if integer.lt(0)? {
        return Err(raise::<PyValueError>(
            object.py(),
            format_args!("{name} must be at least 0, not {value}"),
        ));
    }
    Err(too_large(object.py(), name, "at most 2**64", value))
}

/// An address, or `None` for an integer that cannot be one: for calls that only ask about it.
pub fn address_if_any(name: &'static str, object: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    match small(object) {
        Some(value) => Ok(Some(value)),
        None => Ok(number(&index(&name, object)?)?.and_then(|number| number.try_into().ok())),
    }
}

fn too_large(py: Python<'_>, name: &dyn Display, limit: &str, value: impl Display) -> PyErr {
    raise::<PyOverflowError>(py, format_args!("{name} must be {limit}, not {value}"))
}

/// The integer that an object stands for.
fn index<'py>(name: &dyn Display, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
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
        let wrong =
            raise::<PyTypeError>(py, format_args!("{name} must be an integer, not {value}"));
        wrong.set_cause(py, Some(error));
        wrong
    })
}

/// Larger whole numbers are told by their length: Python gives those of thousands of digits no decimal
/// form, and what it says instead depends on its version.
const DECIMAL_BITS_MAX: u64 = 256;

/// A value as an error message shows it: shortened, and with its type where that is not obvious.
pub fn describe<'a, 'py>(object: &'a Bound<'py, PyAny>) -> Shown<'a, 'py> {
    Shown(object)
}

pub struct Shown<'a, 'py>(&'a Bound<'py, PyAny>);

impl Display for Shown<'_, '_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (py, object) = (self.0.py(), self.0);
        if object.is_none() {
            return to.write_str("None");
        }
        if object.is_exact_instance_of::<PyInt>()
            && let Ok(bits) = object.call_method0(intern!(py, "bit_length"))
            && let Ok(bits) = bits.extract::<u64>()
        {
            return match bits > DECIMAL_BITS_MAX {
                true => write!(to, "a number of {bits} bits"),
                false => write!(to, "{object}"),
            };
        }
        let kind = object.get_type().name();
        let kind = kind.as_ref().ok().and_then(|kind| kind.to_str().ok()).unwrap_or("?");
        let shown = py.import(intern!(py, "reprlib"));
        let shown = shown.and_then(|it| it.call_method1(intern!(py, "repr"), (object,)));
        let shown = shown.and_then(|shown| Ok(shown.cast_into::<PyString>()?));
        match shown.as_ref().ok().and_then(|shown| shown.to_str().ok()) {
            Some(text) => write!(to, "{text} ({kind})"),
            None => write!(to, "a value of type {kind}"),
        }
    }
}
