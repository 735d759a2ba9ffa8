//! The class `Kind`: what sort of thing an allocation is, and what record is kept about it.

use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::errors::raise;
use crate::objects::{joined, string};

/// What sort of thing allocations are, and what is recorded about each.
///
/// Kinds are told apart by which object they are, not by their names: make each once, and use it
/// with any number of spaces.
///
/// Arguments:
///     name: for people to read.
///     record: the dtype of the record that each allocation of the kind has beside its memory, of up
///         to 65,536 bytes and without Python objects in it; anything that `numpy.dtype` takes. By
///         default none.
///     movable: whether allocations of the kind may be moved to another address.
///
/// Raises:
///     TypeError: `record` is no dtype or holds Python objects, or `name` is no string.
///     ValueError: `record` is larger than 65,536 bytes.
///
/// >>> import numpy, potad
/// >>> buffer = potad.Kind("buffer", record=numpy.dtype([("flags", "u4"), ("uses", "u4")]))
/// >>> space = potad.Space(1 << 20)
/// >>> block = space.alloc(65536, kind=buffer)
/// >>> record = space.lookup(block + 5000).record
/// >>> record["uses"] += 1
/// >>> space.lookup(block).record
/// array((0, 1), dtype=[('flags', '<u4'), ('uses', '<u4')])
///
/// The idea of a descriptor of its own size for each kind is Matthew Wilcox's; in Linux every page
/// has one of 64 bytes, whatever it is used for.
#[pyclass(frozen, weakref, module = "potad")]
pub struct Kind {
    /// Of the class `str` itself.
    name: Py<PyString>,
    record: Option<Py<PyArrayDescr>>,
    /// Bytes of a record.
    pub record_size: usize,
    pub movable: bool,
}

impl Kind {
    /// A kind without a record.
    pub fn plain(py: Python<'_>, name: &str, movable: bool) -> PyResult<Self> {
        Ok(Kind { name: string(py, name)?.unbind(), record: None, record_size: 0, movable })
    }
}

#[pymethods]
impl Kind {
    #[new]
    #[pyo3(signature = (name, record = None, movable = false))]
    fn new(
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        record: Option<&Bound<'_, PyAny>>,
        movable: bool,
    ) -> PyResult<Self> {
        // Text that has no UTF-8 is refused; the copy is not of a subclass.
        name.to_str()?;
        // SAFETY: a string; what comes back is one too, a new reference, or null with an exception set.
        let name = unsafe {
            let copy = ffi::PyUnicode_FromObject(name.as_ptr());
            Bound::from_owned_ptr_or_err(py, copy)?.cast_into_unchecked().unbind()
        };
        let record = record.map(|record| PyArrayDescr::new(py, record)).transpose()?;
        let record_size = record.as_ref().map_or(0, |record| record.itemsize());
        if let Some(record) = &record {
            if record.has_object() {
                return Err(raise::<PyTypeError>(
                    py,
                    format_args!("record must not hold Python objects, as {record} does"),
                ));
            }
            if record_size > potad::RECORD_MAX {
                let max = potad::RECORD_MAX;
                return Err(raise::<PyValueError>(
                    py,
                    format_args!("record must be of at most {max} bytes, not {record_size}"),
                ));
            }
        }
        Ok(Kind { name, record: record.map(Bound::unbind), record_size, movable })
    }

    /// Its name.
    #[getter]
    fn name(&self, py: Python<'_>) -> Py<PyString> {
        self.name.clone_ref(py)
    }

    /// The dtype of its records, or None.
    #[getter]
    pub fn record<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArrayDescr>> {
        self.record.as_ref().map(|record| record.bind(py).clone())
    }

    /// Whether its allocations may be moved.
    #[getter]
    fn movable(&self) -> bool {
        self.movable
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let movable = if self.movable { ", movable" } else { "" };
        let size = self.record_size;
        let text = joined(string(py, "<potad.Kind ")?, self.name.bind(py).repr()?)?;
        joined(text, string(py, format_args!(", record of {size} bytes{movable}>"))?)
    }
}
