//! The objects that the core's numbers of owners stand for.
//!
//! An owner has its number for as long as it has an allocation, a buffer for as long as it is one. A
//! number that is given back needs no memory: what is to be dropped, and which numbers are not in use,
//! are chains through the table itself.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use potad::Error;
use potad::fallible::{Grow, room_in_table};

use crate::arena::Place;
use crate::counted::Counted;

/// What an owner's number stands for. Each buffer has a number of its own, with or without an owner: so it
/// is known when any call frees or moves it.
pub struct Owner {
    pub object: Option<Py<PyAny>>,
    pub buffer: Option<Counted<Place>>,
}

/// A number's entry.
enum Entry {
    Used(Owner),
    /// The number is given back, its object is still to be dropped. And the next such number, or 0.
    Gone(Py<PyAny>, u32),
    /// The next number that is not in use, or 0.
    Unused(u32),
}

#[derive(Default)]
pub struct Owners {
    /// By the core's number, less one.
    entries: Vec<Entry>,
    /// Numbers by object, but for those of buffers.
    numbers: HashMap<usize, u32>,
    /// The first number of the chain of those not in use, or 0.
    unused: u32,
    /// The first number of the chain of those whose object is to be dropped, or 0.
    gone: u32,
    /// How many numbers have been given back.
    pub forgotten: u64,
}

impl Owners {
    /// What a number stands for.
    pub fn get(&self, number: u32) -> Option<&Owner> {
        match self.entries.get((number as usize).checked_sub(1)?)? {
            Entry::Used(owner) => Some(owner),
            _ => None,
        }
    }

    /// The number of an object, if it has one.
    pub fn number(&self, object: usize) -> Option<u32> {
        self.numbers.get(&object).copied()
    }

    /// The number of an object, and whether it is new. A reference is taken out of `object` if so.
    pub fn add_object(&mut self, object: &mut Option<Py<PyAny>>) -> Result<(u32, bool), Error> {
        let Some(pointer) = object.as_ref().map(|object| object.as_ptr() as usize) else {
            return Ok((0, false));
        };
        if let Some(number) = self.number(pointer) {
            return Ok((number, false));
        }
        room_in_table(&mut self.numbers, 1)?;
        let number = self.add(|| Owner { object: object.take(), buffer: None })?;
        self.numbers.insert(pointer, number);
        Ok((number, true))
    }

    /// A number for a buffer at a place, whose owner is `object`.
    pub fn add_buffer(
        &mut self,
        object: &mut Option<Py<PyAny>>,
        place: &Counted<Place>,
    ) -> Result<u32, Error> {
        self.add(|| Owner { object: object.take(), buffer: Some(place.clone()) })
    }

    fn add(&mut self, owner: impl FnOnce() -> Owner) -> Result<u32, Error> {
        if let Some(at) = self.unused.checked_sub(1) {
            let entry = &mut self.entries[at as usize];
            if let Entry::Unused(next) = *entry {
                self.unused = next;
            }
            *entry = Entry::Used(owner());
            return Ok(at + 1);
        }
        self.entries.room(1)?;
        // 2^32 entries take 96 GiB; the core's numbers go no further.
        let number = u32::try_from(self.entries.len() + 1).map_err(|_| Error::Metadata {
            bytes: size_of::<Entry>() * (self.entries.len() + 1),
        })?;
        self.entries.push(Entry::Used(owner()));
        Ok(number)
    }

    /// An owner has no allocation any more: its number may be another's from now on, and its object is to
    /// be dropped.
    pub fn forget(&mut self, number: u32) {
        let Some(owner) = self.end(number) else { return };
        let entry = &mut self.entries[number as usize - 1];
        match owner.object {
            Some(object) => {
                *entry = Entry::Gone(object, self.gone);
                self.gone = number;
            }
            None => {
                *entry = Entry::Unused(self.unused);
                self.unused = number;
            }
        }
    }

    /// The same, but the object is given back; for a number that was not given back yet.
    pub fn take(&mut self, number: u32) -> Option<Py<PyAny>> {
        let owner = self.end(number)?;
        self.entries[number as usize - 1] = Entry::Unused(self.unused);
        self.unused = number;
        owner.object
    }

    /// Takes what a number stands for out of its entry, which is to be filled.
    fn end(&mut self, number: u32) -> Option<Owner> {
        let Entry::Used(owner) = &mut self.entries[number as usize - 1] else { return None };
        let owner = Owner { object: owner.object.take(), buffer: owner.buffer.take() };
        self.forgotten += 1;
        match (&owner.buffer, &owner.object) {
            (Some(place), _) => place.leave(),
            (None, Some(object)) => {
                self.numbers.remove(&(object.as_ptr() as usize));
            }
            (None, None) => {}
        }
        Some(owner)
    }

    /// Whether there are objects to drop.
    #[inline(always)]
    pub fn has_gone(&self) -> bool {
        self.gone != 0
    }

    /// One of the objects to drop.
    pub fn take_gone(&mut self) -> Option<Py<PyAny>> {
        let number = self.gone;
        let entry = self.entries.get_mut((number as usize).checked_sub(1)?)?;
        let Entry::Gone(object, next) = std::mem::replace(entry, Entry::Unused(self.unused)) else {
            unreachable!("only such entries are in the chain");
        };
        (self.gone, self.unused) = (next, number);
        Some(object)
    }

    /// Takes the next object, from number `at` on, and moves `at` behind it. For a space that is not
    /// reachable any more. Numbers stay in use.
    pub fn clear_one(&mut self, at: &mut usize) -> Option<Py<PyAny>> {
        while let Some(entry) = self.entries.get_mut(*at) {
            *at += 1;
            if let Entry::Used(owner) = entry
                && let Some(object) = owner.object.take()
            {
                self.numbers.remove(&(object.as_ptr() as usize));
                return Some(object);
            }
        }
        self.take_gone()
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for entry in &self.entries {
            match entry {
                Entry::Used(owner) => visit.call(&owner.object)?,
                Entry::Gone(object, _) => visit.call(object)?,
                Entry::Unused(_) => {}
            }
        }
        Ok(())
    }
}
