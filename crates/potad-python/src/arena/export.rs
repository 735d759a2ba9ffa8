//! What holds a buffer where it is: an [`Export`] while anything looks at its memory, and a [`BufferPin`]
//! while a caller has its address.
//!
//! Python's buffer protocol lets an exporter name another object as the one that was exported, and each
//! buffer names an `Export` that was made for it. Some libraries (`torch.frombuffer`) give the `Py_buffer`
//! back at once and keep only a reference to that object. So the object pins, not the `Py_buffer`: a view
//! ends when the last reference to its export goes.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::buffer::Buffer;
use crate::errors::raise;
use crate::objects::{joined, string};

/// One pin of a buffer. It keeps the buffer alive, whose memory would otherwise be left pinned with nothing
/// to free it.
struct Hold {
    buffer: Py<Buffer>,
    address: u64,
    /// Whether it was not ended yet.
    is_held: AtomicBool,
}

impl Hold {
    fn new(buffer: &Bound<'_, Buffer>) -> PyResult<Self> {
        let address = buffer.get().hold(buffer.py())?;
        Ok(Hold { buffer: buffer.clone().unbind(), address, is_held: AtomicBool::new(true) })
    }

    /// Ends it, unless that was done.
    fn end(&self) {
        if self.is_held.swap(false, Ordering::AcqRel) {
            self.buffer.get().let_go();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a view of a buffer is a view of: while it lives, the buffer is pinned.
#[pyclass(frozen, module = "potad._core")]
pub struct Export {
    hold: Hold,
}

impl Export {
    /// Pins a buffer. If the object cannot be made, the pin goes with what it was to be made of.
    pub fn new<'py>(buffer: &Bound<'py, Buffer>) -> PyResult<Bound<'py, Self>> {
        Bound::new(buffer.py(), Export { hold: Hold::new(buffer)? })
    }

    /// Fills in a view of the memory.
    ///
    /// Safety: as Python asks for a buffer.
    pub unsafe fn fill(
        this: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let hold = &this.get().hold;
        // SAFETY: the memory is mapped as long as there is the space, which the buffer keeps, and nothing
        // else comes to be there as long as it is pinned: both as long as `this`, which the view keeps.
        let done = unsafe {
            let (at, len) = (hold.address as *mut c_void, hold.buffer.get().nbytes);
            ffi::PyBuffer_FillInfo(view, this.as_ptr(), at, len as ffi::Py_ssize_t, 0, flags)
        };
        if done < 0 { Err(PyErr::fetch(this.py())) } else { Ok(()) }
    }
}

#[pymethods]
impl Export {
    /// Safety: as Python asks for a buffer.
    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: the caller's.
        unsafe {
            (*view).obj = std::ptr::null_mut();
            Export::fill(&this, view, flags)
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.hold.buffer)
    }
}

/// A pin of a buffer, made by `Buffer.pin`: while it lives, the buffer is neither freed nor moved.
///
/// It ends when it is collected, or at the end of a `with` block. To end it again does nothing.
///
/// >>> import potad
/// >>> buffer = potad.Arena(1 << 20).alloc(100)
/// >>> with buffer.pin() as pin:
/// ...     try:
/// ...         buffer.free()
/// ...     except potad.Busy as busy:
/// ...         busy.pins
/// 1
/// >>> buffer.free()
#[pyclass(frozen, weakref, module = "potad")]
pub struct BufferPin {
    hold: Hold,
}

impl BufferPin {
    pub fn new(buffer: &Bound<'_, Buffer>) -> PyResult<Self> {
        Hold::new(buffer).map(|hold| BufferPin { hold })
    }
}

#[pymethods]
impl BufferPin {
    fn __enter__(this: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        if !this.get().hold.is_held.load(Ordering::Acquire) {
            return Err(raise::<PyRuntimeError>(this.py(), "the pin has ended: take another one"));
        }
        Ok(this)
    }

    /// Ends the pin, unless that was done.
    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, _raised: &Bound<'_, PyTuple>) {
        self.hold.end();
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let ended = if self.hold.is_held.load(Ordering::Acquire) { ">" } else { ", ended>" };
        let buffer = self.hold.buffer.bind(py).repr()?;
        joined(joined(string(py, "<potad.BufferPin of ")?, buffer)?, string(py, ended)?)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.hold.buffer)
    }
}
