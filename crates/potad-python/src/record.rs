//! Records as NumPy sees them: bytes of the core's, written in place.

use std::ffi::c_int;

use numpy::PyArrayDescr;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

use potad::Error;

use crate::counted::{Counted, Weak};
use crate::lock::{Lock, Shared};
use crate::objects::{dict, tuple};
use crate::state::State;

/// A record that somebody looks at: as long as there is one of these, its bytes belong to no other
/// allocation than they did, also when that is freed.
pub struct Look {
    /// Not what keeps the space alive: the bytes outlive it.
    lock: Weak<Lock>,
    record: Option<potad::Record>,
}

impl Look {
    /// A look at the record of the allocation that starts at `start`, if it has one. With the space locked.
    pub fn new(
        shared: &Shared,
        state: &mut State,
        start: u64,
    ) -> Result<Option<Counted<Self>>, Error> {
        let Some(record) = state.look(start)? else { return Ok(None) };
        let look = Counted::new(Look { lock: shared.weak(), record: Some(record) });
        let look = look.map_err(|mut look| {
            look.record.take().into_iter().for_each(|record| state.look_away(record));
            Error::Metadata { bytes: size_of::<Look>() }
        });
        look.map(Some)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if let (Some(shared), Some(record)) = (Shared::upgrade(&self.lock), self.record.take()) {
            shared.held(|state| {
                state.look_away(record);
                Ok(())
            });
        }
    }
}

/// What a view of a record is a view of.
#[pyclass(frozen, module = "potad._core")]
pub struct RecordBytes {
    look: Counted<Look>,
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
    look: &Counted<Look>,
    dtype: Bound<'py, PyArrayDescr>,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = Bound::new(py, RecordBytes { look: look.clone() })?;
    let arguments = dict(py)?;
    arguments.set_item(intern!(py, "shape"), tuple(py, [])?)?;
    arguments.set_item(intern!(py, "dtype"), dtype)?;
    arguments.set_item(intern!(py, "buffer"), bytes)?;
    let numpy = py.import(intern!(py, "numpy"))?;
    numpy.getattr(intern!(py, "ndarray"))?.call((), Some(&arguments))
}
