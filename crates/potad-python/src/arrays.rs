//! NumPy arrays as lists of addresses, and back.
//!
//! Addresses come as a one-dimensional array of any integer type, as anything that NumPy sees as
//! one (`array.array`, `memoryview`), or as an iterable of integers. They are copied before the
//! space is locked: what a caller's other threads do to the array meanwhile changes nothing, and
//! the interpreter can be let go.
//!
//! Python lists are not given to NumPy to convert: it would turn one that holds both large and
//! negative numbers into floats.

use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::convert::{address, describe, small};

/// The addresses an argument lists.
pub fn addresses(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    if let Ok(array) = object.cast::<PyArray1<u64>>()
        && let Some(addresses) = contiguous(array)?
    {
        return Ok(addresses);
    }
    match as_array(object)? {
        Some(array) => from_array(name, &array),
        None => from_iterable(name, object),
    }
}

/// A list of numbers as a new array.
pub fn array(py: Python<'_>, numbers: Vec<u64>) -> Bound<'_, PyArray1<u64>> {
    PyArray1::from_vec(py, numbers)
}

/// An empty list with room for so many numbers.
pub fn room<T>(count: usize) -> PyResult<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| {
        PyMemoryError::new_err(format!("no memory for an array of {count} numbers"))
    })?;
    Ok(list)
}

/// The elements of an array, if they lie one after the other.
fn contiguous<T: Element + Copy>(array: &Bound<'_, PyArray1<T>>) -> PyResult<Option<Vec<T>>> {
    let Ok(array) = array.try_readonly() else { return Ok(None) };
    let Ok(elements) = array.as_slice() else { return Ok(None) };
    let mut copy = room(elements.len())?;
    copy.extend_from_slice(elements);
    Ok(Some(copy))
}

/// What NumPy makes of an object that is not simply a sequence of Python objects.
fn as_array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: the object is alive and the interpreter attached.
    let is_buffer = unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } == 1;
    if !is_buffer && !object.get_type().hasattr("__array__")? {
        return Ok(None);
    }
    object.py().import("numpy")?.call_method1("asarray", (object,)).map(Some)
}

fn from_array(name: &str, array: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    let kind: String = array.getattr("dtype")?.getattr("kind")?.extract()?;
    if !matches!(kind.as_str(), "u" | "i" | "O") {
        let kind = array.getattr("dtype")?;
        return Err(PyTypeError::new_err(format!("{name} must be integers, not of type {kind}")));
    }
    let dimensions: usize = array.getattr("ndim")?.extract()?;
    if dimensions != 1 {
        let message = format!("{name} must have one dimension, not {dimensions}");
        return Err(PyValueError::new_err(message));
    }
    match kind.as_str() {
        // Copies are in native byte order, aligned and contiguous whatever the original is.
        "u" => elements(&array.call_method1("astype", ("=u8",))?),
        "i" => {
            let numbers: Vec<i64> = elements(&array.call_method1("astype", ("=i8",))?)?;
            match numbers.iter().position(|&number| number < 0) {
                None => Ok(numbers.into_iter().map(|number| number as u64).collect()),
                Some(at) => Err(PyValueError::new_err(format!(
                    "{name}[{at}] must be at least 0, not {}",
                    numbers[at]
                ))),
            }
        }
        _ => from_iterable(name, array),
    }
}

fn elements<T: Element + Copy>(array: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    let array = array.cast::<PyArray1<T>>()?;
    let elements = contiguous(array)?;
    elements.ok_or_else(|| PyTypeError::new_err("a copy of an array is not contiguous"))
}

fn from_iterable(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    let Ok(iterator) = object.try_iter() else {
        let value = describe(object);
        let message = format!("{name} must be an array or sequence of integers, not {value}");
        return Err(PyTypeError::new_err(message));
    };
    let mut list = Vec::new();
    for (at, item) in iterator.enumerate() {
        let item = item?;
        let number = match small(&item) {
            Some(number) => number,
            None => address(&format!("{name}[{at}]"), &item)?,
        };
        list.try_reserve(1).map_err(|_| PyMemoryError::new_err("no memory for the addresses"))?;
        list.push(number);
    }
    Ok(list)
}
