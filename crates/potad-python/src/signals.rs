//! Signals of the process as messages in a pipe, with where each came from, for `potad.trace.record`.
//!
//! The kernel gives a signal of the process to any thread that does not block it, and a library that
//! Python loads may have started threads that block none. So to block signals in the thread that waits
//! for them is not enough. A handler runs in whichever thread the signal is given to. Python's own
//! handlers are not told whether a signal came from the terminal, which has then sent it to the whole
//! process group, or from a process, which has sent it to this process alone; these here are told.

use pyo3::prelude::*;

/// Has each of these signals write two bytes to `descriptor` from now on: its number, and 1 if the
/// kernel sent it (as it does for a terminal) or 0 if a process did. What does not fit in the pipe is
/// dropped, so it should not block. One caller at a time: a second one is a `RuntimeError`. What
/// Python's handlers raise for signals that came before is raised here, and then none is caught.
#[pyfunction]
#[pyo3(signature = (descriptor, numbers, /))]
fn catch_signals(py: Python<'_>, descriptor: i32, numbers: Vec<i32>) -> PyResult<()> {
    handler::install(descriptor, &numbers)?;
    // Otherwise it would be raised as soon as this has returned, and the caller could not tell
    // whether signals are caught.
    py.check_signals().inspect_err(|_| handler::remove())
}

/// Has signals do again what they did before `catch_signals`; nothing is written when this returns.
#[pyfunction]
fn release_signals() {
    handler::remove();
}

#[cfg(target_os = "linux")]
mod handler {
    use std::ffi::{c_int, c_void};
    use std::io::Error;
    use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::{mem, ptr, thread};

    use libc::{sigaction, siginfo_t};
    use pyo3::PyResult;
    use pyo3::exceptions::PyRuntimeError;

    const NONE: i32 = -1;

    /// Where handlers write.
    static DESCRIPTOR: AtomicI32 = AtomicI32::new(NONE);

    /// Handlers that may still write, so that the descriptor is not closed, and its number given to
    /// another file, under one that another thread runs.
    static RUNNING: AtomicUsize = AtomicUsize::new(0);

    /// What the caught signals did before.
    static BEFORE: Mutex<Vec<(c_int, sigaction)>> = Mutex::new(Vec::new());

    fn before() -> MutexGuard<'static, Vec<(c_int, sigaction)>> {
        BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn install(descriptor: i32, numbers: &[c_int]) -> PyResult<()> {
        let mut before = before();
        if DESCRIPTOR.compare_exchange(NONE, descriptor, SeqCst, SeqCst).is_err() {
            return Err(PyRuntimeError::new_err("signals are caught already"));
        }
        for &number in numbers {
            // SAFETY: all zeros is a valid `sigaction`. The handler calls nothing but `write`, which
            // may be called in a handler, and lives as long as the process.
            let result = unsafe {
                let mut action: sigaction = mem::zeroed();
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = tell;
                action.sa_sigaction = handler as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
                let mut old: sigaction = mem::zeroed();
                let result = libc::sigaction(number, &raw const action, &raw mut old);
                before.push((number, old));
                result
            };
            if result != 0 {
                let error = Error::last_os_error();
                before.pop();
                restore(&mut before);
                return Err(error.into());
            }
        }
        Ok(())
    }

    pub fn remove() {
        restore(&mut before());
    }

    fn restore(before: &mut Vec<(c_int, sigaction)>) {
        for (number, old) in before.drain(..) {
            // SAFETY: `old` is what this call gave for this number; so it cannot fail.
            unsafe { libc::sigaction(number, &raw const old, ptr::null_mut()) };
        }
        DESCRIPTOR.store(NONE, SeqCst);
        while RUNNING.load(SeqCst) != 0 {
            thread::yield_now();
        }
    }

    extern "C" fn tell(number: c_int, info: *mut siginfo_t, _context: *mut c_void) {
        RUNNING.fetch_add(1, SeqCst);
        let descriptor = DESCRIPTOR.load(SeqCst);
        if descriptor != NONE {
            // SAFETY: the kernel gives a handler with SA_SIGINFO the signal's description, and a call
            // that the handler interrupted must find its own `errno`. A signal's number is at most 64.
            unsafe {
                let errno = *libc::__errno_location();
                let message = [number as u8, u8::from((*info).si_code > 0)];
                libc::write(descriptor, message.as_ptr().cast(), message.len());
                *libc::__errno_location() = errno;
            }
        }
        RUNNING.fetch_sub(1, SeqCst);
    }
}

#[cfg(not(target_os = "linux"))]
mod handler {
    use pyo3::PyResult;

    pub fn install(_descriptor: i32, _numbers: &[i32]) -> PyResult<()> {
        Err(pyo3::exceptions::PyNotImplementedError::new_err("signals are caught on Linux only"))
    }

    pub fn remove() {}
}

/// Adds the functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(catch_signals, module)?)?;
    module.add_function(wrap_pyfunction!(release_signals, module)?)
}
