//! Dropping references without using the stack for each, and without memory for it.
//!
//! An owner may be a descriptor, or a space, whose own owners are such again, and so on for as long as
//! anybody likes. Each reference that is dropped may be the last and drop the next, so a chain of them
//! would be as many nested calls. What is dropped while something is being dropped goes on a list
//! instead, as CPython does for its own containers.
//!
//! The list has room for a few references. A chain needs one place at a time, however long it is. More
//! places are on the heap; if there is no memory for them the reference is dropped at once, on the
//! stack.

use std::cell::RefCell;
use std::mem::{self, ManuallyDrop};

use pyo3::prelude::*;

/// References that wait without memory from the heap.
const ROOM: usize = 16;

/// What is still to be dropped by this thread.
struct Waiting {
    /// Whether this thread is dropping something.
    at_it: bool,
    first: [Option<Py<PyAny>>; ROOM],
    more: Vec<Py<PyAny>>,
}

thread_local! {
    /// Empty, and without memory, whenever the thread is not at it. So nothing has to be done at the
    /// thread's end, and the system need not note that, for which it takes memory that it insists on.
    static WAITING: RefCell<ManuallyDrop<Waiting>> = const {
        let first = [const { None }; ROOM];
        RefCell::new(ManuallyDrop::new(Waiting { at_it: false, first, more: Vec::new() }))
    };
}

impl Waiting {
    /// Puts a reference on the list; gives it back if there is no room.
    fn push(&mut self, object: Py<PyAny>) -> Option<Py<PyAny>> {
        if let Some(place) = self.first.iter_mut().find(|place| place.is_none()) {
            *place = Some(object);
            return None;
        }
        if self.more.try_reserve(1).is_err() {
            return Some(object);
        }
        self.more.push(object);
        None
    }

    fn pop(&mut self) -> Option<Py<PyAny>> {
        self.more.pop().or_else(|| self.first.iter_mut().find_map(Option::take))
    }
}

/// Drops a reference. May run any Python code; no lock may be held.
pub fn drop_object(object: Py<PyAny>) {
    // The list is never borrowed while a reference is dropped.
    let (object, is_first) = WAITING.with_borrow_mut(|waiting| match waiting.at_it {
        true => (waiting.push(object), false),
        false => {
            waiting.at_it = true;
            (Some(object), true)
        }
    });
    drop(object);
    if !is_first {
        return;
    }
    while let Some(next) = WAITING.with_borrow_mut(|waiting| waiting.pop()) {
        drop(next);
    }
    WAITING.with_borrow_mut(|waiting| {
        waiting.at_it = false;
        // Nothing is on it any more; only its memory goes.
        drop(mem::take(&mut waiting.more));
    });
}
