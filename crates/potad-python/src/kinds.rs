//! The objects that the core's numbers of kinds stand for.
//!
//! A kind stays known when its last allocation is freed, since more are likely to follow. Once twice as
//! many are known as were in use when that was last looked at, those that are not in use are forgotten.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use potad::fallible::{Grow, room_in_table};
use potad::{Error, Space};

use crate::kind::Kind;

/// So many kinds are known before any is forgotten.
const KNOWN_MIN: usize = 16;

#[derive(Default)]
pub struct Kinds {
    /// By the core's number, less one; none where a number is not in use.
    entries: Vec<Option<(Py<Kind>, potad::Kind)>>,
    /// Numbers by object.
    numbers: HashMap<usize, potad::Kind>,
    /// With so many known it is looked which of them are in use.
    known_max: usize,
    /// Kinds to be dropped when the space is not locked any more.
    gone: Vec<Py<Kind>>,
    /// The kind that was asked for last, by its object.
    last: (usize, Option<potad::Kind>),
    /// How many numbers have been given back.
    pub forgotten: u64,
}

impl Kinds {
    /// The object that a number stands for.
    pub fn get(&self, kind: potad::Kind) -> Option<&Py<Kind>> {
        self.entries.get(kind.index() - 1)?.as_ref().map(|(object, _)| object)
    }

    /// The number of an object, if it is known.
    pub fn number(&self, object: usize) -> Option<potad::Kind> {
        self.numbers.get(&object).copied()
    }

    /// The same for an object that is asked for again and again.
    #[inline]
    pub fn number_again(&mut self, object: usize) -> Option<potad::Kind> {
        if object != self.last.0 {
            self.last = (object, Some(self.number(object)?));
        }
        self.last.1
    }

    /// The number of an object, which becomes known if it was not: then the reference is taken. `kept`
    /// are not forgotten.
    pub fn add(
        &mut self,
        object: &mut Option<Py<Kind>>,
        space: &mut Space,
        kept: [Option<potad::Kind>; 2],
    ) -> Result<Option<potad::Kind>, Error> {
        let Some(kind) = object.as_ref() else { return Ok(None) };
        let pointer = kind.as_ptr() as usize;
        if let Some(number) = self.number(pointer) {
            return Ok(Some(number));
        }
        room_in_table(&mut self.numbers, 1)?;
        self.entries.room(1)?;
        if self.numbers.len() >= self.known_max.max(KNOWN_MIN) {
            self.forget_unused(space, kept)?;
        }
        let number = space.add_kind(kind.get().record_size, kind.get().movable)?;
        let at = number.index() - 1;
        if at == self.entries.len() {
            self.entries.push(None);
        }
        self.entries[at] = object.take().map(|object| (object, number));
        self.numbers.insert(pointer, number);
        Ok(Some(number))
    }

    /// Forgets kinds that nothing is allocated of.
    #[cold]
    fn forget_unused(
        &mut self,
        space: &mut Space,
        kept: [Option<potad::Kind>; 2],
    ) -> Result<(), Error> {
        self.gone.room(self.numbers.len())?;
        for entry in &mut self.entries {
            if let Some((object, number)) = entry
                && !kept.contains(&Some(*number))
                && space.remove_kind(*number)
            {
                self.forgotten += 1;
                self.numbers.remove(&(object.as_ptr() as usize));
                self.gone.extend(entry.take().map(|(object, _)| object));
            }
        }
        self.known_max = 2 * self.numbers.len();
        self.last = (0, None);
        Ok(())
    }

    /// Whether there are objects to drop.
    #[inline(always)]
    pub fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// One of the objects to drop.
    pub fn take_gone(&mut self) -> Option<Py<PyAny>> {
        let object = self.gone.pop()?;
        if self.gone.is_empty() {
            self.gone = Vec::new();
        }
        Some(object.into_any())
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for (object, _) in self.entries.iter().flatten() {
            visit.call(object)?;
        }
        for object in &self.gone {
            visit.call(object)?;
        }
        Ok(())
    }
}
