//! Dropping references without using the stack for each.
//!
//! An owner may be a descriptor, or a space, whose own owners are such again, and so on for as long as
//! anybody likes. Each reference that is dropped may be the last and drop the next, so a chain of them
//! would be as many nested calls. What is dropped while something is being dropped goes on a list
//! instead, as CPython does for its own containers.

use std::cell::RefCell;

use pyo3::prelude::*;

thread_local! {
    /// What is still to be dropped, while this thread is at it.
    static WAITING: RefCell<Option<Vec<Py<PyAny>>>> = const { RefCell::new(None) };
}

/// Drops references, one after the other. May run any Python code; no lock may be held.
pub fn drop_all(objects: Vec<Py<PyAny>>) {
    if objects.is_empty() {
        return;
    }
    let mut objects = Some(objects);
    // A thread that is ending has no list any more: there the stack has to do.
    let begun = WAITING.try_with(|waiting| {
        let mut waiting = waiting.borrow_mut();
        let objects = objects.take().expect("taken once");
        match &mut *waiting {
            Some(list) => {
                list.extend(objects);
                false
            }
            none => {
                *none = Some(objects);
                true
            }
        }
    });
    if !matches!(begun, Ok(true)) {
        return;
    }
    loop {
        // The list is not borrowed while the reference is dropped.
        let next = WAITING.with(|waiting| {
            let mut waiting = waiting.borrow_mut();
            let next = waiting.as_mut().and_then(Vec::pop);
            if next.is_none() {
                *waiting = None;
            }
            next
        });
        if next.is_none() {
            return;
        }
    }
}
