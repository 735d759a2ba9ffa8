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
use std::sync::{Arc, LockResult, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use pyo3::prelude::*;

use potad::{Error, Space};

use crate::arena::Memory;
use crate::errors;
use crate::fork;
use crate::kind::Kind;
use crate::state::State;
use crate::trash::drop_all;

/// A space behind a lock, on the heap: Python's objects are aligned to 16 bytes only, the space's
/// cache lines to 64.
pub struct Shared(Arc<Mutex<State>>);

/// How often a call waits for a lock without the interpreter before it waits with it.
const WAITS_MAX: u32 = 8;

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
        let state = Arc::new(Mutex::new(State::new(space)));
        fork::register(&state);
        Shared(state)
    }

    /// The same for a space with memory behind it, and the kind of buffers that are given none.
    pub fn with_memory(space: Space, memory: Memory, kind: Py<Kind>) -> Result<Self, Error> {
        let mut state = State::new(space);
        state.memory = Some(memory);
        state.buffers = Some(state.kind_number(kind)?);
        let state = Arc::new(Mutex::new(state));
        fork::register(&state);
        Ok(Shared(state))
    }

    /// The same lock, which keeps the space alive, but not the object that Python has of it.
    pub fn share(&self) -> Self {
        Shared(self.0.clone())
    }

    /// Whether only one has the lock.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// The same lock, for what must not keep the space alive.
    pub fn weak(&self) -> Weak<Mutex<State>> {
        Arc::downgrade(&self.0)
    }

    /// Does something that takes a few words of memory at most, if that needs no waiting and
    /// succeeds; otherwise has changed nothing. With the interpreter held.
    #[inline(always)]
    pub fn at_once<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<T> {
        let mut gone = Vec::new();
        let outcome = apply(Ok(self.0.try_lock().ok()?), &mut gone, act);
        if !gone.is_empty() {
            // Called from Python directly: that the interpreter is held has to be said.
            Python::attach(|_| drop_all(gone));
        }
        outcome.ok()
    }

    /// Does something that takes a few words of memory at most.
    #[inline(always)]
    pub fn brief<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let mut gone = Vec::new();
        let outcome = match self.0.try_lock() {
            Ok(state) => apply(Ok(state), &mut gone, act),
            Err(TryLockError::Poisoned(poisoned)) => apply(Err(poisoned), &mut gone, act),
            Err(TryLockError::WouldBlock) => return self.long(py, act),
        };
        drop_all(gone);
        outcome.map_err(|failure| exception(py, failure))
    }

    /// Does something that may take long.
    pub fn long<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let mut gone = Vec::new();
        let outcome = py.detach(|| apply(self.0.lock(), &mut gone, act));
        drop_all(gone);
        outcome.map_err(|failure| exception(py, failure))
    }

    /// Does something of a few words that needs the interpreter: to take references to objects. No
    /// Python code may run in it.
    pub fn attached<T>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> PyResult<T> {
        let (mut gone, mut waits) = (Vec::new(), 0);
        let outcome = loop {
            match self.0.try_lock() {
                Ok(state) => break apply(Ok(state), &mut gone, act),
                Err(TryLockError::Poisoned(poisoned)) => {
                    break apply(Err(poisoned), &mut gone, act);
                }
                // Waits without the interpreter until the lock was free, and tries again; not for
                // ever, since whoever has the lock lets it go without the interpreter.
                Err(TryLockError::WouldBlock) if waits < WAITS_MAX => {
                    waits += 1;
                    py.detach(|| drop(self.0.lock()));
                }
                Err(TryLockError::WouldBlock) => break apply(self.0.lock(), &mut gone, act),
            }
        };
        drop_all(gone);
        outcome.map_err(|failure| exception(py, failure))
    }

    /// Does something of a few words with the interpreter held, and waits with it; `None` if it fails. For
    /// callers that have no way to raise.
    pub fn held<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<T> {
        let mut gone = Vec::new();
        let outcome = apply(self.0.lock(), &mut gone, act);
        if !gone.is_empty() {
            Python::attach(|_| drop_all(gone));
        }
        outcome.ok()
    }

    /// For the garbage collector, which looks twice and must see the same both times. It waits with
    /// the interpreter held: whoever has the lock lets it go without.
    pub fn visit<T>(&self, act: impl FnOnce(&State) -> T) -> T {
        act(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops the references to owners.
    pub fn clear(&self) {
        let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        drop_all(owners);
    }
}

/// Runs `act` on a locked space, and unlocks it. What is put into `gone` is to be dropped then, with
/// the interpreter held.
#[inline(always)]
fn apply<T>(
    locked: LockResult<MutexGuard<'_, State>>,
    gone: &mut Vec<Py<PyAny>>,
    act: impl FnOnce(&mut State) -> Result<T, Error>,
) -> Outcome<T> {
    match locked {
        // The guard belongs to what may panic, and so poisons the lock.
        Ok(mut state) => catch_unwind(AssertUnwindSafe(move || {
            let outcome = act(&mut state).map_err(refused);
            state.settle_memory();
            if state.has_gone() {
                *gone = state.take_gone();
            }
            outcome
        }))
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
