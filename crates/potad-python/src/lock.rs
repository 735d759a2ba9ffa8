//! A space that many threads share: one mutex each, and how a thread may wait for it.
//!
//! # Rules
//!
//! 1. No Python code runs under the lock: arguments are converted before, results after. So what
//!    a caller's `__index__`, a signal handler or a finaliser does, it never meets the lock of its
//!    own thread.
//! 2. A thread that is attached to the interpreter does not wait for a lock: that would stop all
//!    Python threads until the lock is free. It tries the lock. If another thread has it, it detaches
//!    and waits then. (Only a fork waits attached, see `fork`.)
//! 3. A thread that has a lock does not wait for the interpreter: it unlocks first. So every lock
//!    becomes free.
//! 4. A call of a few words ([`Shared::brief`]) tries the lock and stays attached: to detach would cost
//!    more than the call. A call that may take long ([`Shared::long`]) detaches, so other Python
//!    threads run.
//! 5. A call that needs the interpreter under the lock ([`Shared::attached`]) waits detached until the
//!    lock is free, attaches, and tries again. Meanwhile other threads may have taken the lock, again
//!    and again. So while a thread waits like this, a long call that gets the lock gives it back and
//!    lets that thread pass (`waiting`). It does so for [`PASS_MAX`] at most: a daemon thread that waits
//!    when the interpreter ends never attaches again.
//!
//! # The garbage collector
//!
//! The collector visits a space twice. First it subtracts the references that it is shown from the
//! objects' counts; then it follows them. If it is shown fewer the second time, it takes live objects
//! for garbage. It can neither wait nor detach.
//!
//! `away` counts the threads that have detached in order to lock the space. It changes only in attached
//! threads. While the collector visits, no other thread runs attached, so `away` is the same both times:
//!
//! - If it is 0, no thread has the lock and the state does not change. The collector is shown all.
//! - Otherwise a call of the space is under way, and its caller has a reference to the space. So
//!   the space and all that it refers to are alive. The collector is shown nothing, and takes what the
//!   space refers to for referenced from elsewhere.
//!
//! # Why the standard library's mutex
//!
//! It is one word of its own memory and a wait on that word by the kernel. Mutexes that keep their
//! waiters in a table of the whole process are no use after a fork: the child may inherit the
//! table locked by a thread it does not have. And it is poisoned by a panic: if a call should ever
//! stop half-way, no other works on what it left.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Condvar, LockResult, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use pyo3::PyTraverseError;
use pyo3::prelude::*;

use potad::{Error, Space};

use crate::arena::Memory;
use crate::counted::{Counted, Weak};
use crate::errors;
use crate::fork;
use crate::kind::Kind;
use crate::state::State;
use crate::trash::drop_object;

type Locked<'a> = LockResult<MutexGuard<'a, State>>;

/// How long a long call lets threads pass that need the interpreter as well.
const PASS_MAX: Duration = Duration::from_millis(200);

/// A space's state behind its lock.
pub struct Lock {
    state: Mutex<State>,
    /// Threads that have detached in order to lock.
    away: AtomicU32,
    /// Threads that need the interpreter under the lock, and did not get the lock at once. It goes down
    /// with the lock held, so a thread that has the lock can wait for that.
    waiting: AtomicU32,
    /// Notified when `waiting` goes down.
    passed: Condvar,
}

impl Lock {
    /// Locks, if no other thread has the lock.
    #[inline(always)]
    fn at_once(&self) -> Option<Locked<'_>> {
        match self.state.try_lock() {
            Ok(state) => Some(Ok(state)),
            Err(TryLockError::Poisoned(poisoned)) => Some(Err(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Detaches, waits for the lock, and does something.
    fn detached<T: Send>(&self, py: Python<'_>, act: impl FnOnce(Locked<'_>) -> T + Send) -> T {
        self.away.fetch_add(1, Relaxed);
        let done = py.detach(|| act(self.state.lock()));
        self.away.fetch_sub(1, Relaxed);
        done
    }

    /// Waits detached, until it has locked while attached. Called attached.
    #[cold]
    fn attached(&self) -> Locked<'_> {
        Python::attach(|py| {
            self.waiting.fetch_add(1, Relaxed);
            loop {
                self.detached(py, |locked| drop(locked));
                if let Some(locked) = self.at_once() {
                    self.waiting.fetch_sub(1, Relaxed);
                    self.passed.notify_all();
                    return locked;
                }
            }
        })
    }

    /// Has threads pass that need the interpreter as well, if there are any.
    fn let_pass<'a>(&self, state: MutexGuard<'a, State>) -> Locked<'a> {
        let others_wait = |_: &mut State| self.waiting.load(Relaxed) != 0;
        if self.waiting.load(Relaxed) == 0 {
            // Nearly always: without a look at the clock.
            return Ok(state);
        }
        let passed = self.passed.wait_timeout_while(state, PASS_MAX, others_wait);
        let passed = passed.map(|(state, _)| state);
        passed.map_err(|poisoned| PoisonError::new(poisoned.into_inner().0))
    }

    /// Waits for the lock, attached or not: for a fork.
    pub fn for_fork(&self) -> Locked<'_> {
        self.state.lock()
    }

    /// The threads that were waiting or away are not there in a child process.
    pub fn forget_threads(&self) {
        self.away.store(0, Relaxed);
        self.waiting.store(0, Relaxed);
    }
}

/// A space behind its lock, on the heap: Python's objects are aligned to 16 bytes only, the space's
/// cache lines to 64.
pub struct Shared(Counted<Lock>);

/// Why a call did nothing, or stopped half-way.
enum Failure {
    Refused(Error),
    /// By a panic, with this.
    Stopped(Box<dyn Any + Send>),
    /// By a panic of a call before.
    Poisoned,
}

/// What a call leaves to do when the space is not locked any more. It lies in the caller's frame: what a
/// call returns fits in registers then, and it needs no memory.
struct Rest {
    failure: Option<Failure>,
    /// A reference to be dropped.
    gone: Option<Py<PyAny>>,
    /// Whether there are more, in the state.
    has_more: bool,
}

impl Rest {
    #[inline(always)]
    fn new() -> Self {
        Rest { failure: None, gone: None, has_more: false }
    }

    #[cold]
    fn fail(&mut self, failure: Failure) -> Failed {
        self.failure = Some(failure);
        Failed
    }
}

/// A call failed; its `Rest` says why.
struct Failed;

impl Shared {
    /// Shares a space, and tells `fork` that it is there.
    pub fn new(space: Space) -> Result<Self, Error> {
        Self::of(State::new(space))
    }

    /// The same for a space with memory behind it, and the kind of buffers that are given none.
    pub fn with_memory(space: Space, memory: Memory, kind: Py<Kind>) -> Result<Self, Error> {
        let mut state = State::new(space);
        state.memory = Some(memory);
        state.buffers = state.kind_number(&mut Some(kind))?;
        Self::of(state)
    }

    fn of(state: State) -> Result<Self, Error> {
        let lock = Lock {
            state: Mutex::new(state),
            away: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            passed: Condvar::new(),
        };
        let bytes = size_of::<Lock>();
        let lock = Counted::new(lock).map_err(|_| Error::Metadata { bytes })?;
        fork::register(&lock)?;
        Ok(Shared(lock))
    }

    /// The same lock, which keeps the space alive, but not the object that Python has of it.
    pub fn share(&self) -> Self {
        Shared(self.0.clone())
    }

    /// The same lock, if the space is still there.
    pub fn upgrade(weak: &Weak<Lock>) -> Option<Self> {
        weak.upgrade().map(Shared)
    }

    /// Whether only one has the lock.
    pub fn is_alone(&self) -> bool {
        self.0.is_alone()
    }

    /// The same lock, for what must not keep the space alive.
    pub fn weak(&self) -> Weak<Lock> {
        self.0.weak()
    }

    /// Does something that takes a few words of memory at most, if that needs no waiting and
    /// succeeds; otherwise has changed nothing. Called attached.
    #[inline(always)]
    pub fn at_once<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<T> {
        let mut rest = Rest::new();
        let done = apply(self.0.at_once()?, &mut rest, act);
        self.finish(&mut rest);
        done.ok()
    }

    /// Does something that takes a few words of memory at most.
    #[inline(always)]
    pub fn brief<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let Some(locked) = self.0.at_once() else { return self.long(py, act) };
        let mut rest = Rest::new();
        let done = apply(locked, &mut rest, act);
        self.finish(&mut rest);
        done.map_err(|Failed| exception(py, rest))
    }

    /// Does something that may take long.
    pub fn long<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let lock = &*self.0;
        let mut rest = Rest::new();
        let done = lock.detached(py, |locked| {
            apply(locked.and_then(|state| lock.let_pass(state)), &mut rest, act)
        });
        self.finish(&mut rest);
        done.map_err(|Failed| exception(py, rest))
    }

    /// Does something of a few words that needs the interpreter: to take references to objects. No
    /// Python code may run in it.
    pub fn attached<T>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> PyResult<T> {
        let mut rest = Rest::new();
        let done = self.apply_attached(&mut rest, act);
        done.map_err(|Failed| exception(py, rest))
    }

    /// Does something of a few words attached; `None` if it fails. For callers that have no way to
    /// raise, such as finalisers.
    pub fn held<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<T> {
        self.apply_attached(&mut Rest::new(), act).ok()
    }

    fn apply_attached<T>(
        &self,
        rest: &mut Rest,
        act: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<T, Failed> {
        let locked = self.0.at_once().unwrap_or_else(|| self.0.attached());
        let done = apply(locked, rest, act);
        self.finish(rest);
        done
    }

    /// For the garbage collector.
    pub fn visit(
        &self,
        act: impl FnOnce(&State) -> Result<(), PyTraverseError>,
    ) -> Result<(), PyTraverseError> {
        if self.0.away.load(Relaxed) != 0 {
            return Ok(());
        }
        // It is free, but for a moment of a fork that a detached thread makes.
        act(&self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops the references to owners.
    pub fn clear(&self) {
        let mut at = 0;
        loop {
            let locked = self.0.at_once().unwrap_or_else(|| self.0.attached());
            let owner = locked.unwrap_or_else(PoisonError::into_inner).clear_one(&mut at);
            match owner {
                Some(owner) => drop_object(owner),
                None => return,
            }
        }
    }

    /// Drops the references that a call has left, with the space unlocked. Called attached.
    #[inline(always)]
    fn finish(&self, rest: &mut Rest) {
        if let Some(gone) = rest.gone.take() {
            self.drop_all(gone, rest.has_more);
        }
    }

    #[inline(never)]
    fn drop_all(&self, first: Py<PyAny>, has_more: bool) {
        // Called from Python directly: that the thread is attached has to be said.
        Python::attach(|_| {
            drop_object(first);
            let mut has_more = has_more;
            while has_more {
                let locked = self.0.at_once().unwrap_or_else(|| self.0.attached());
                let Ok(mut state) = locked else { return };
                let gone = state.take_gone();
                has_more = state.has_gone();
                drop(state);
                gone.into_iter().for_each(drop_object);
            }
        });
    }
}

/// Runs `act` on a locked space, and unlocks it.
#[inline(always)]
fn apply<T>(
    locked: Locked<'_>,
    rest: &mut Rest,
    act: impl FnOnce(&mut State) -> Result<T, Error>,
) -> Result<T, Failed> {
    let Ok(state) = locked else {
        return Err(rest.fail(Failure::Poisoned));
    };
    // The guard belongs to what may panic, and so poisons the lock.
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut state = state;
        let done = act(&mut state).map_err(|error| rest.fail(Failure::Refused(error)));
        state.settle_memory();
        if state.has_gone() {
            rest.gone = state.take_gone();
            rest.has_more = state.has_gone();
        }
        done
    }));
    done.unwrap_or_else(|panic| Err(rest.fail(Failure::Stopped(panic))))
}

#[cold]
fn exception(py: Python<'_>, rest: Rest) -> PyErr {
    match rest.failure {
        Some(Failure::Refused(error)) => errors::exception(py, error),
        Some(Failure::Stopped(panic)) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            let message = message.unwrap_or("no message");
            errors::corrupt(py, format_args!("internal error: {message}"))
        }
        Some(Failure::Poisoned) | None => {
            errors::corrupt(py, format_args!("an earlier call stopped half-way"))
        }
    }
}
