//! What a swap file needs and Python has no call for: checksums, and giving blocks of a file back.
//!
//! Both let the interpreter go, so that other threads run meanwhile.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use twox_hash::XxHash3_64;

/// Below this many bytes a checksum takes less time than letting the interpreter go and taking it up again.
const DETACHED_MIN: usize = 16 << 10;

/// The checksum of some bytes: XXH3 of 64 bits, without a seed.
///
/// Somebody who writes to them meanwhile gets the checksum of neither state.
#[pyfunction]
#[pyo3(signature = (data, /))]
fn xxh3(py: Python<'_>, data: PyBuffer<u8>) -> PyResult<u64> {
    if !data.is_c_contiguous() {
        return Err(PyValueError::new_err("the bytes must be contiguous"));
    }
    let len = data.len_bytes();
    if len == 0 {
        return Ok(XxHash3_64::oneshot(&[]));
    }
    // SAFETY: the buffer is contiguous, of so many bytes, and exported until `data` is dropped. That
    // nobody else writes to it is what every such function of Python's relies on.
    let bytes = unsafe { std::slice::from_raw_parts(data.buf_ptr().cast::<u8>(), len) };
    if len < DETACHED_MIN {
        Ok(XxHash3_64::oneshot(bytes))
    } else {
        Ok(py.detach(|| XxHash3_64::oneshot(bytes)))
    }
}

/// Gives a range of a file back to the file system: it reads as zeros from now on, and takes no blocks
/// as far as whole ones lie in it. The file stays as long as it is.
#[pyfunction]
#[pyo3(signature = (descriptor, offset, size, /))]
fn punch_hole(py: Python<'_>, descriptor: i32, offset: u64, size: u64) -> PyResult<()> {
    let Err(error) = py.detach(|| punch(descriptor, offset, size)) else { return Ok(()) };
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    let text = py.import("os")?.call_method1("strerror", (number,))?;
    Err(PyOSError::new_err((number, text.unbind())))
}

#[cfg(target_os = "linux")]
fn punch(descriptor: i32, offset: u64, size: u64) -> std::io::Result<()> {
    let too_large = || std::io::Error::from_raw_os_error(libc::EFBIG);
    let offset = i64::try_from(offset).map_err(|_| too_large())?;
    let size = i64::try_from(size).map_err(|_| too_large())?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    loop {
        // SAFETY: a system call on numbers; whatever the descriptor is, it says so.
        if unsafe { libc::fallocate64(descriptor, mode, offset, size) } == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_descriptor: i32, _offset: u64, _size: u64) -> std::io::Result<()> {
    Err(std::io::Error::from_raw_os_error(libc::ENOTSUP))
}

/// Adds the functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(xxh3, module)?)?;
    module.add_function(wrap_pyfunction!(punch_hole, module)?)
}
