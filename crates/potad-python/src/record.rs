//! Records as NumPy sees them: bytes of the core's, written in place.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use numpy::PyArrayDescr;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::lock::Shared;
use crate::state::State;

/// A record that somebody looks at: as long as there is one of these, its bytes belong to no other
/// allocation than they did, also when that is freed.
pub struct Look {
    /// Not what keeps the space alive: the bytes outlive it.
    state: Weak<Mutex<State>>,
    record: Option<potad::Record>,
}

impl Look {
    pub fn new(shared: &Shared, record: potad::Record) -> Arc<Self> {
        Arc::new(Look { state: shared.weak(), record: Some(record) })
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        // On any thread, from a finaliser: it waits for the lock only while another thread has it, and
        // that needs nothing of this one.
        if let (Some(state), Some(record)) = (self.state.upgrade(), self.record.take()) {
            let mut locked = state.lock().unwrap_or_else(PoisonError::into_inner);
            locked.look_away(record);
        }
    }
}

/// What a view of a record is a view of.
#[pyclass(frozen, module = "potad._core")]
pub struct RecordBytes {
    look: Arc<Look>,
}

#[pymethods]
impl RecordBytes {
    /// Safety: as Python asks for a buffer.
    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let record = this.get().look.record.as_ref().expect("it is taken only when dropped");
        // SAFETY: the bytes live as long as `this`, which the view keeps alive. They are written from
        // outside only, see the core's `record`.
        let done = unsafe {
            let (bytes, len) = (record.as_ptr().cast(), record.len() as ffi::Py_ssize_t);
            ffi::PyBuffer_FillInfo(view, this.as_ptr(), bytes, len, 0, flags)
        };
        if done < 0 { Err(PyErr::fetch(this.py())) } else { Ok(()) }
    }
}

/// A view of a record: an array without dimensions, in place and writable.
pub fn view<'py>(
    py: Python<'py>,
    look: &Arc<Look>,
    dtype: Bound<'py, PyArrayDescr>,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = Bound::new(py, RecordBytes { look: look.clone() })?;
    let arguments = PyDict::new(py);
    arguments.set_item("shape", ())?;
    arguments.set_item("dtype", dtype)?;
    arguments.set_item("buffer", bytes)?;
    py.import("numpy")?.getattr("ndarray")?.call((), Some(&arguments))
}
