//! New Python objects; MemoryError where there is no memory for them, here and in the interpreter.
//!
//! PyO3's own constructors of these panic then, and a panic takes memory, or ends the process.

use std::fmt::{self, Display, Write};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyList, PyString, PyTuple};

/// Bytes of a text that is put together here. What is longer is cut off.
const TEXT_MAX: usize = 1024;

/// An object that a function of Python's has made, or its exception.
///
/// Safety: a new reference to a `T`, or null with an exception set.
unsafe fn made<T>(py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<Bound<'_, T>> {
    // SAFETY: the caller's.
    unsafe { Ok(Bound::from_owned_ptr_or_err(py, pointer)?.cast_into_unchecked()) }
}

/// A size or another number as a Python integer.
#[inline]
pub fn integer(py: Python<'_>, value: u128) -> PyResult<Bound<'_, PyInt>> {
    match u64::try_from(value) {
        // SAFETY: what it says.
        Ok(value) => unsafe { made(py, ffi::PyLong_FromUnsignedLongLong(value)) },
        Err(_) => large(py, value),
    }
}

#[cold]
fn large(py: Python<'_>, value: u128) -> PyResult<Bound<'_, PyInt>> {
    let mut text = Text::new();
    // All digits and the end fit.
    let _ = write!(text, "{value:x}\0");
    // SAFETY: a text of digits with an end.
    unsafe {
        made(py, ffi::PyLong_FromString(text.bytes.as_ptr().cast(), std::ptr::null_mut(), 16))
    }
}

/// A text that is put together on the stack.
struct Text {
    bytes: [u8; TEXT_MAX],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Text { bytes: [0; TEXT_MAX], len: 0 }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_MAX - self.len;
        let mut ends = (0..=text.len().min(room)).rev();
        let fits = ends.find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        self.bytes[self.len..][..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// A text as a Python string.
pub fn string(py: Python<'_>, text: impl Display) -> PyResult<Bound<'_, PyString>> {
    let mut buffer = Text::new();
    // It fails where the text is cut off.
    let _ = write!(buffer, "{text}");
    // SAFETY: so many bytes, which are UTF-8.
    unsafe {
        let bytes = buffer.bytes.as_ptr().cast();
        made(py, ffi::PyUnicode_FromStringAndSize(bytes, buffer.len as ffi::Py_ssize_t))
    }
}

/// Several texts as one.
pub fn joined<'py>(
    text: Bound<'py, PyString>,
    more: Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: both are strings.
    unsafe { made(text.py(), ffi::PyUnicode_Concat(text.as_ptr(), more.as_ptr())) }
}

/// A list of as many objects as there are items, each made of its item.
pub fn list<'py, T>(
    py: Python<'py>,
    items: impl ExactSizeIterator<Item = T>,
    make: impl Fn(T) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: what it says. No other code has the list until all items are set.
    let list: Bound<'py, PyList> =
        unsafe { made(py, ffi::PyList_New(items.len() as ffi::Py_ssize_t))? };
    for (at, item) in items.enumerate() {
        let object = make(item)?;
        // SAFETY: the place is in the list, and takes the reference.
        unsafe { ffi::PyList_SetItem(list.as_ptr(), at as ffi::Py_ssize_t, object.into_ptr()) };
    }
    Ok(list)
}

/// A tuple of objects.
pub fn tuple<'py, const N: usize>(
    py: Python<'py>,
    objects: [Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyTuple>> {
    // SAFETY: what it says. No other code has the tuple until all objects are set.
    let tuple: Bound<'py, PyTuple> = unsafe { made(py, ffi::PyTuple_New(N as ffi::Py_ssize_t))? };
    for (at, object) in objects.into_iter().enumerate() {
        // SAFETY: the place is in the tuple, and takes the reference.
        unsafe { ffi::PyTuple_SetItem(tuple.as_ptr(), at as ffi::Py_ssize_t, object.into_ptr()) };
    }
    Ok(tuple)
}

pub fn dict(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: what it says.
    unsafe { made(py, ffi::PyDict_New()) }
}

pub fn bytes<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    // SAFETY: so many bytes.
    unsafe {
        let len = bytes.len() as ffi::Py_ssize_t;
        made(py, ffi::PyBytes_FromStringAndSize(bytes.as_ptr().cast(), len))
    }
}

/// An object, or None.
pub fn or_none<'py, T>(py: Python<'py>, object: Option<Py<T>>) -> Bound<'py, PyAny> {
    object.map_or_else(|| py.None(), Py::into_any).into_bound(py)
}
