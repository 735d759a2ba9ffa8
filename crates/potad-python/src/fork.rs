//! Spaces across `fork`.
//!
//! A child process has a copy of all memory and only the thread that forked. A lock that another
//! thread held at that moment would be locked in the child for good, and what it protects half
//! changed. So before a fork this thread takes the locks of all spaces, which waits for the calls
//! that are under way, and after it lets them go, in the parent and in the child alike.
//!
//! The system calls us (`pthread_atfork`), not Python (`os.register_at_fork`): between Python's
//! hooks other Python code runs, other modules' hooks and finalisers among it, which may use a
//! space or wait for a thread that does. The system's handlers have nothing between them and the
//! fork, and a fork that is not Python's is seen as well. They are called attached to the
//! interpreter, and wait like that: a thread that has a space's lock finishes without the interpreter.

use std::cell::RefCell;
use std::mem::{ManuallyDrop, transmute};
use std::sync::{Mutex, MutexGuard, PoisonError};

use potad::Error;
use potad::fallible::Grow;

use crate::counted::{Counted, Weak};
use crate::lock::Lock;
use crate::state::State;

#[derive(Default)]
struct Registry {
    /// Every space there is, and some that are no more.
    spaces: Vec<Weak<Lock>>,
    /// The spaces whose locks a thread that forks has taken. There is room for all, so that a fork needs no memory.
    held: Vec<Held>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { spaces: Vec::new(), held: Vec::new() });

/// Makes a new space known.
pub fn register(space: &Counted<Lock>) -> Result<(), Error> {
    let mut registry = registry();
    let Registry { spaces, held } = &mut *registry;
    // Before the list grows, it is rid of those that are no more, and so never more than twice as
    // long as there were spaces at once.
    if spaces.len() == spaces.capacity() {
        spaces.retain(|space| !space.is_dead());
        let len = spaces.len();
        spaces.room(len + 1)?;
    }
    let capacity = spaces.capacity();
    held.room(capacity.saturating_sub(held.len()))?;
    spaces.push(space.weak());
    Ok(())
}

/// The list; it is whole whenever it is not locked, whatever happened to who held it.
fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the locks taken before each fork from now on, and let go after it.
#[cfg(unix)]
pub fn install() -> std::io::Result<()> {
    // SAFETY: three functions that live as long as the process; extension modules are not unloaded.
    match unsafe { libc::pthread_atfork(Some(take), Some(let_go), Some(let_go_in_child)) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

/// There is no fork.
#[cfg(not(unix))]
pub fn install() -> std::io::Result<()> {
    Ok(())
}

/// A space whose lock this thread holds, or has held.
struct Held {
    /// Whether no call has stopped half-way.
    whole: bool,
    /// Borrows from `space`; dropped before it, as fields are in the order they stand in.
    guard: Option<MutexGuard<'static, State>>,
    space: Counted<Lock>,
}

// SAFETY: a guard has to be dropped by the thread that has locked. The list it is in is locked by the
// thread that forks from before the guard is put there until it is dropped.
unsafe impl Send for Held {}

impl Held {
    /// Waits for a space's lock; one that is poisoned is held like any other.
    fn lock(space: Counted<Lock>) -> Self {
        let (guard, whole) = match space.for_fork() {
            Ok(guard) => (guard, true),
            Err(poisoned) => (poisoned.into_inner(), false),
        };
        // SAFETY: only the lifetime changes. The guard refers to what `space` keeps alive at an
        // address that does not change, and nothing but its own drop ever uses it.
        let guard =
            unsafe { transmute::<MutexGuard<'_, State>, MutexGuard<'static, State>>(guard) };
        Held { whole, guard: Some(guard), space }
    }
}

thread_local! {
    /// The registry, while this thread forks. It is locked first and unlocked last, so that two threads
    /// that fork at once do not take the others in different orders. Nothing is left here to be dropped
    /// at the thread's end.
    static FORKING: RefCell<ManuallyDrop<Option<MutexGuard<'static, Registry>>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

#[cfg(unix)]
extern "C" fn take() {
    let mut registry = registry();
    let Registry { spaces, held } = &mut *registry;
    held.extend(spaces.iter().filter_map(Weak::upgrade).map(Held::lock));
    FORKING.with_borrow_mut(|forking| **forking = Some(registry));
}

#[cfg(unix)]
extern "C" fn let_go() {
    let registry = FORKING.with_borrow_mut(|forking| forking.take());
    let Some(mut registry) = registry else { return };
    registry.held.iter_mut().for_each(|held| drop(held.guard.take()));
    drop(registry);
    // Any of these may be the last reference, and what its owners do then needs locks.
    loop {
        let held = self::registry().held.pop();
        if held.is_none() {
            return;
        }
    }
}

/// What other threads had under way goes on in the parent only.
#[cfg(unix)]
extern "C" fn let_go_in_child() {
    FORKING.with_borrow_mut(|forking| {
        let held = forking.iter_mut().flat_map(|registry| &mut registry.held);
        for Held { whole, guard, space } in held {
            space.forget_threads();
            if let (true, Some(state)) = (*whole, guard) {
                state.give_up_others();
            }
        }
    });
    let_go();
}
