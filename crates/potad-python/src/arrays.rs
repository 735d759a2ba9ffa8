//! NumPy arrays as lists of addresses, and back.
//!
//! Addresses come as a one-dimensional array of any integer type, as anything that NumPy sees as
//! one (`array.array`, `memoryview`), or as an iterable of integers. They are copied before the
//! space is locked: what a caller's other threads do to the array meanwhile changes nothing, and
//! the interpreter can be let go.
//!
//! Python lists are not given to NumPy to convert: it would turn one that holds both large and
//! negative numbers into floats.

use std::ffi::c_int;
use std::fmt::{self, Display};
use std::mem;
use std::sync::OnceLock;

use numpy::npyffi::{NPY_ARRAY_CARRAY, NpyTypes, PY_ARRAY_API};
use numpy::{Element, PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use potad::fallible::{Grow, collect, with_room};

use crate::convert::{address, describe, small};
use crate::errors::{checked, raise};

/// The addresses an argument lists.
pub fn addresses(name: &'static str, object: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
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

/// What an array's numbers lie in.
#[pyclass(frozen, module = "potad._core")]
pub struct Numbers(OnceLock<Vec<u64>>);

/// A list of numbers as a new array, which takes the list's memory. If there is no memory for the array
/// itself, the list stays as it is.
pub fn array<'py>(py: Python<'py>, numbers: &mut Vec<u64>) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let base = Bound::new(py, Numbers(OnceLock::new()))?;
    let mut len = numbers.len() as isize;
    // SAFETY: the array is of so many numbers, which stay where they are when the list moves into `base`,
    // and nothing else writes them from then on. Both functions take a reference to their last but
    // one argument's kind, as they document: the first to the type of numbers, the second to `base`.
    unsafe {
        let class = numpy::npyffi::get_type_object(py, NpyTypes::PyArray_Type);
        let dtype = numpy::dtype::<u64>(py).into_ptr().cast();
        let data = numbers.as_mut_ptr().cast();
        let (strides, flags) = (std::ptr::null_mut(), NPY_ARRAY_CARRAY);
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            class,
            dtype,
            1 as c_int,
            &mut len,
            strides,
            data,
            flags,
            std::ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        let base_ptr = base.clone().into_ptr();
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), base_ptr) < 0 {
            return Err(PyErr::fetch(py));
        }
        let _ = base.get().0.set(mem::take(numbers));
        Ok(array.cast_into_unchecked())
    }
}

/// An empty list with room for so many numbers.
pub fn room<T>(py: Python<'_>, count: usize) -> PyResult<Vec<T>> {
    checked(py, with_room(count))
}

/// The elements of an array, if they lie one after the other.
fn contiguous<T: Element + Copy>(array: &Bound<'_, PyArray1<T>>) -> PyResult<Option<Vec<T>>> {
    let (len, data) = (array.len(), array.data());
    if !array.is_c_contiguous() || !data.is_aligned() {
        return Ok(None);
    }
    let mut copy: Vec<T> = room(array.py(), len)?;
    // SAFETY: so many elements lie there, and there is room for them. Python code that writes to the array
    // waits for the interpreter; whatever else does is a race that the caller has made.
    unsafe {
        copy.as_mut_ptr().copy_from_nonoverlapping(data, len);
        copy.set_len(len);
    }
    Ok(Some(copy))
}

/// What NumPy makes of an object that is not simply a sequence of Python objects.
fn as_array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: the object is alive and the interpreter attached.
    let is_buffer = unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } == 1;
    let py = object.py();
    if !is_buffer && !object.get_type().hasattr(intern!(py, "__array__"))? {
        return Ok(None);
    }
    let numpy = py.import(intern!(py, "numpy"))?;
    numpy.call_method1(intern!(py, "asarray"), (object,)).map(Some)
}

fn from_array(name: &'static str, array: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    let py = array.py();
    let dtype = array.getattr(intern!(py, "dtype"))?;
    let kind = dtype.getattr(intern!(py, "kind"))?.cast_into::<PyString>()?;
    let kind = kind.to_str()?;
    if !matches!(kind, "u" | "i" | "O") {
        return Err(raise::<PyTypeError>(
            py,
            format_args!("{name} must be integers, not of type {dtype}"),
        ));
    }
    let dimensions: usize = array.getattr(intern!(py, "ndim"))?.extract()?;
    if dimensions != 1 {
        return Err(raise::<PyValueError>(
            py,
            format_args!("{name} must have one dimension, not {dimensions}"),
        ));
    }
    let astype = |dtype| array.call_method1(intern!(py, "astype"), (dtype,));
    match kind {
        // Copies are in native byte order, aligned and contiguous whatever the original is.
        "u" => elements(&astype(intern!(py, "=u8"))?),
        "i" => {
            let numbers: Vec<i64> = elements(&astype(intern!(py, "=i8"))?)?;
            match numbers.iter().position(|&number| number < 0) {
                None => checked(py, collect(numbers.iter().map(|&number| number as u64))),
                Some(at) => Err(raise::<PyValueError>(
                    py,
                    format_args!("{name}[{at}] must be at least 0, not {}", numbers[at]),
                )),
            }
        }
        _ => from_iterable(name, array),
    }
}

fn elements<T: Element + Copy>(array: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    let array = array.cast::<PyArray1<T>>()?;
    let elements = contiguous(array)?;
    let text = "a copy of an array is not contiguous";
    elements.ok_or_else(|| raise::<PyTypeError>(array.py(), text))
}

fn from_iterable(name: &'static str, object: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    let py = object.py();
    let iterator = object.try_iter().map_err(|error| {
        if !error.is_instance_of::<PyTypeError>(py) {
            return error;
        }
        let value = describe(object);
        raise::<PyTypeError>(
            py,
            format_args!("{name} must be an array or sequence of integers, not {value}"),
        )
    })?;
    let mut list = Vec::new();
    for (at, item) in iterator.enumerate() {
        let item = item?;
        let number = match small(&item) {
            Some(number) => number,
            None => address(Item { name, at }, &item)?,
        };
        checked(py, list.room(1))?;
        list.push(number);
    }
    Ok(list)
}

/// The name of an element of an argument.
struct Item {
    name: &'static str,
    at: usize,
}

impl Display for Item {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}[{}]", self.name, self.at)
    }
}
