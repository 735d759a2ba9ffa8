//! The class `Kind`: what sort of thing an allocation is, and what record is kept about it.

use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

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
    name: String,
    record: Option<Py<PyArrayDescr>>,
    /// Bytes of a record.
    pub record_size: usize,
    pub movable: bool,
}

impl Kind {
    /// A kind without a record.
    pub fn plain(name: &str, movable: bool) -> Self {
        Kind { name: name.into(), record: None, record_size: 0, movable }
    }
}

#[pymethods]
impl Kind {
    #[new]
    #[pyo3(signature = (name, record = None, movable = false))]
    fn new(
        py: Python<'_>,
        name: String,
        record: Option<&Bound<'_, PyAny>>,
        movable: bool,
    ) -> PyResult<Self> {
        let record = record.map(|record| PyArrayDescr::new(py, record)).transpose()?;
        let record_size = record.as_ref().map_or(0, |record| record.itemsize());
        if let Some(record) = &record {
            if record.has_object() {
                let message = format!("record must not hold Python objects, as {record} does");
                return Err(PyTypeError::new_err(message));
            }
            if record_size > potad::RECORD_MAX {
                let message = format!(
                    "record must be of at most {} bytes, not {record_size}",
                    potad::RECORD_MAX
                );
                return Err(PyValueError::new_err(message));
            }
        }
        Ok(Kind { name, record: record.map(Bound::unbind), record_size, movable })
    }

    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        &self.name
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

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let movable = if self.movable { ", movable" } else { "" };
        let name = PyString::new(py, &self.name).repr()?;
        Ok(format!("<potad.Kind {name}, record of {} bytes{movable}>", self.record_size))
    }
}
