//! The yardstick of the benchmarks: what a call costs before it does anything.

use pyo3::prelude::*;

/// Does nothing, as fast as a class of this module can.
#[pyclass(frozen, name = "_Nothing", module = "potad._core")]
pub struct Nothing;

#[pymethods]
impl Nothing {
    #[new]
    fn new() -> Self {
        Nothing
    }

    /// Takes an integer and returns it.
    fn identity(&self, number: u64) -> u64 {
        number
    }
}
