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
//! fork, and a fork that is not Python's is seen as well. They are called with the interpreter
//! held, which is safe because whoever holds a space's lock finishes without it.

use std::cell::RefCell;
use std::mem::transmute;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::state::State;

type Registry = Vec<Weak<Mutex<State>>>;

/// Every space there is, and some that are no more.
static SPACES: Mutex<Registry> = Mutex::new(Vec::new());

/// Makes a new space known.
pub fn register(space: &Arc<Mutex<State>>) {
    let mut registry = registry();
    // Before the list grows, it is rid of those that are no more, and so never more than twice as
    // long as there were spaces at once.
    if registry.len() == registry.capacity() {
        registry.retain(|space| space.strong_count() != 0);
        let len = registry.len();
        registry.reserve(len + 1);
    }
    registry.push(Arc::downgrade(space));
}

/// The list; it is whole whenever it is not locked, whatever happened to who held it.
fn registry() -> MutexGuard<'static, Registry> {
    SPACES.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A space whose lock this thread holds.
struct Held {
    /// Whether no call has stopped half-way.
    whole: bool,
    /// Borrows from `space`; dropped before it, as fields are in the order they stand in.
    guard: MutexGuard<'static, State>,
    space: Arc<Mutex<State>>,
}

impl Held {
    /// Waits for a space's lock; one that is poisoned is held like any other.
    fn lock(space: Arc<Mutex<State>>) -> Self {
        let (guard, whole) = match space.lock() {
            Ok(guard) => (guard, true),
            Err(poisoned) => (poisoned.into_inner(), false),
        };
        // SAFETY: only the lifetime changes. The guard refers to what `space` keeps alive at an
        // address that does not change, and nothing but its own drop ever uses it.
        let guard =
            unsafe { transmute::<MutexGuard<'_, State>, MutexGuard<'static, State>>(guard) };
        Held { whole, guard, space }
    }
}

/// What a thread that is about to fork holds. The registry's lock is taken first and let go last,
/// so that two threads that fork at once do not take the others in different orders.
struct Hold {
    spaces: Vec<Held>,
    registry: MutexGuard<'static, Registry>,
}

thread_local! {
    static HOLD: RefCell<Option<Hold>> = const { RefCell::new(None) };
}

#[cfg(unix)]
extern "C" fn take() {
    let registry = registry();
    let spaces = registry.iter().filter_map(Weak::upgrade).map(Held::lock).collect();
    HOLD.set(Some(Hold { spaces, registry }));
}

#[cfg(unix)]
extern "C" fn let_go() {
    let Some(Hold { spaces, registry }) = HOLD.take() else { return };
    let unlock = |Held { guard, space, .. }| {
        drop(guard);
        space
    };
    let spaces: Vec<_> = spaces.into_iter().map(unlock).collect();
    drop(registry);
    // Any of these may be the last reference, and what its owners do then needs locks.
    drop(spaces);
}

/// Moves that other threads had under way go on in the parent only.
#[cfg(unix)]
extern "C" fn let_go_in_child() {
    HOLD.with_borrow_mut(|hold| {
        let spaces = hold.iter_mut().flat_map(|hold| &mut hold.spaces);
        spaces.filter(|held| held.whole).for_each(|held| held.guard.give_up_others());
    });
    let_go();
}
