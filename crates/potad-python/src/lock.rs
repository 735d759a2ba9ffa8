//! A space that many threads share: one mutex each, and who may wait for it how.
//!
//! # Rules
//!
//! 1. No Python code runs under the lock: arguments are converted before, results after. So what
//!    a caller's `__index__`, a signal handler or a finaliser does, it never meets the lock of its
//!    own thread.
//! 2. Nobody waits for the interpreter while holding a lock: a call lets go of the lock first. So
//!    every lock is let go in the end, whoever waits for it and whatever they hold.
//! 3. A call of a few words ([`Shared::brief`]) tries the lock and keeps the interpreter: letting
//!    it go would cost more than the call. A call that may take long ([`Shared::long`]) lets other
//!    Python threads run.
//!
//! # Why the standard library's mutex
//!
//! It is one word of its own memory and a wait on that word by the kernel. Mutexes that keep their
//! waiters in a table of the whole process are no use after a fork: the child may inherit the
//! table locked by a thread it does not have. And it is poisoned by a panic: if a call should ever
//! stop half-way, no other works on what it left.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LockResult, Mutex, MutexGuard, TryLockError};

use pyo3::prelude::*;

use potad::{Error, Space};

use crate::errors;
use crate::fork;

/// A space behind a lock, on the heap: Python's objects are aligned to 16 bytes only, the space's
/// cache lines to 64.
pub struct Shared(Arc<Mutex<Space>>);

/// Why a call did nothing, or stopped half-way. Behind a pointer, so that what a call comes to fits
/// in two registers: most calls are shorter than a detour of their result through memory.
enum Failure {
    Refused(Error),
    Stopped(String),
}

type Outcome<T> = Result<T, Box<Failure>>;

impl Shared {
    /// Shares a space, and tells `fork` that it is there.
    pub fn new(space: Space) -> Self {
        let space = Arc::new(Mutex::new(space));
        fork::register(&space);
        Shared(space)
    }

    /// Does something that takes a few words of memory at most, if that needs no waiting and
    /// succeeds; otherwise has changed nothing.
    #[inline(always)]
    pub fn at_once<T>(&self, act: impl FnOnce(&mut Space) -> Result<T, Error>) -> Option<T> {
        apply(Ok(self.0.try_lock().ok()?), act).ok()
    }

    /// Does something that takes a few words of memory at most.
    #[inline(always)]
    pub fn brief<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut Space) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let outcome = match self.0.try_lock() {
            Ok(space) => apply(Ok(space), act),
            Err(TryLockError::Poisoned(poisoned)) => apply(Err(poisoned), act),
            Err(TryLockError::WouldBlock) => return self.long(py, act),
        };
        outcome.map_err(|failure| exception(py, failure))
    }

    /// Does something that may take long.
    pub fn long<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut Space) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let outcome = py.detach(|| apply(self.0.lock(), act));
        outcome.map_err(|failure| exception(py, failure))
    }
}

/// Runs `act` on a locked space, and unlocks it.
#[inline(always)]
fn apply<T>(
    locked: LockResult<MutexGuard<'_, Space>>,
    act: impl FnOnce(&mut Space) -> Result<T, Error>,
) -> Outcome<T> {
    match locked {
        // The guard belongs to what may panic, and so poisons the lock.
        Ok(mut space) => catch_unwind(AssertUnwindSafe(move || act(&mut space).map_err(refused)))
            .unwrap_or_else(|panic| Err(stopped(panic))),
        Err(_) => Err(Box::new(Failure::Stopped("an earlier call stopped half-way".into()))),
    }
}

#[cold]
fn refused(error: Error) -> Box<Failure> {
    Box::new(Failure::Refused(error))
}

#[cold]
fn stopped(panic: Box<dyn Any + Send>) -> Box<Failure> {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = message.unwrap_or("no message");
    Box::new(Failure::Stopped(format!("internal error: {message}")))
}

#[cold]
#[expect(clippy::boxed_local, reason = "boxed by its callers, to keep their results small")]
fn exception(py: Python<'_>, failure: Box<Failure>) -> PyErr {
    match *failure {
        Failure::Refused(error) => errors::exception(py, error),
        Failure::Stopped(what) => errors::corrupt(py, what),
    }
}
