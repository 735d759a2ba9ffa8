//! What a space's lock protects: the core's space, and the Python objects its numbers stand for.
//!
//! The core knows kinds and owners by numbers. Here each number has its object: a kind for as long as
//! there is the space, an owner for as long as it has an allocation. References are taken and moved
//! under the lock but never dropped, since dropping one may run any Python code: what is no longer
//! needed is put aside in `gone`, which whoever held the lock drops after letting it go.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use potad::{Described, Error, Label, Relocation, Space};

use crate::kind::Kind;
use crate::trash::drop_all;

/// A kind and an owner as they are passed to a call.
pub struct Named {
    kind: Option<Py<Kind>>,
    owner: Option<Py<PyAny>>,
}

impl Named {
    pub fn new(kind: Option<&Bound<'_, Kind>>, owner: Option<&Bound<'_, PyAny>>) -> Self {
        Named {
            kind: kind.map(|kind| kind.clone().unbind()),
            owner: owner.map(|owner| owner.clone().unbind()),
        }
    }

    /// Both, as whatever they are.
    fn into_objects(self) -> impl Iterator<Item = Py<PyAny>> {
        self.kind.map(Py::into_any).into_iter().chain(self.owner)
    }

    /// Neither.
    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.owner.is_none()
    }
}

pub struct State {
    space: Space,
    /// By the core's number, less one.
    kinds: Vec<(Py<Kind>, potad::Kind)>,
    kind_numbers: HashMap<usize, usize>,
    /// By the core's number, less one; none where a number is not in use.
    owners: Vec<Option<Py<PyAny>>>,
    owner_numbers: HashMap<usize, u32>,
    unused: Vec<u32>,
    gone: Vec<Py<PyAny>>,
    /// The kind that was asked for last, by its object.
    last_kind: (usize, Option<potad::Kind>),
    /// Moves under way, by number, and the thread that makes them.
    relocations: HashMap<u64, (ThreadId, Relocation)>,
    relocations_begun: u64,
}

impl Deref for State {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

impl DerefMut for State {
    fn deref_mut(&mut self) -> &mut Space {
        &mut self.space
    }
}

impl State {
    pub fn new(space: Space) -> Self {
        State {
            space,
            kinds: Vec::new(),
            kind_numbers: HashMap::new(),
            owners: Vec::new(),
            owner_numbers: HashMap::new(),
            unused: Vec::new(),
            gone: Vec::new(),
            last_kind: (0, None),
            relocations: HashMap::new(),
            relocations_begun: 0,
        }
    }

    /// Allocates a block for a kind and an owner that the space knows already, each by its object, 0
    /// for none; `None` where it does not. Takes no reference to either.
    #[inline]
    pub fn allocate_known(
        &mut self,
        size: u128,
        kind: usize,
        owner: usize,
    ) -> Option<Result<u64, Error>> {
        if kind != 0 && kind != self.last_kind.0 {
            self.last_kind = (kind, Some(self.known_kind(kind)?));
        }
        let kind = if kind == 0 { None } else { self.last_kind.1 };
        let owner = if owner == 0 { 0 } else { self.known_owner(owner)? };
        Some(self.space.alloc_described(size, None, Label { kind, owner }))
    }

    /// Whether there are references to drop once the lock is let go.
    #[inline(always)]
    pub fn has_gone(&self) -> bool {
        self.space.has_released() || !self.gone.is_empty()
    }

    /// These references.
    #[inline(never)]
    pub fn take_gone(&mut self) -> Vec<Py<PyAny>> {
        for number in self.space.take_released() {
            self.forget(number);
        }
        std::mem::take(&mut self.gone)
    }

    /// An owner has no allocation any more.
    fn forget(&mut self, number: u32) {
        if let Some(owner) = self.owners[number as usize - 1].take() {
            self.owner_numbers.remove(&(owner.as_ptr() as usize));
            self.unused.push(number);
            self.gone.push(owner);
        }
    }

    /// The core's number of a kind, which becomes known to the space if it was not.
    fn kind_number(&mut self, kind: Py<Kind>) -> Result<potad::Kind, Error> {
        let pointer = kind.as_ptr() as usize;
        if let Some(&at) = self.kind_numbers.get(&pointer) {
            self.gone.push(kind.into_any());
            return Ok(self.kinds[at].1);
        }
        let number = match self.space.add_kind(kind.get().record_size, kind.get().movable) {
            Ok(number) => number,
            Err(error) => {
                self.gone.push(kind.into_any());
                return Err(error);
            }
        };
        self.kind_numbers.insert(pointer, self.kinds.len());
        self.kinds.push((kind, number));
        Ok(number)
    }

    /// The core's number of an owner, and whether it had none before.
    fn owner_number(&mut self, owner: Py<PyAny>) -> (u32, bool) {
        let pointer = owner.as_ptr() as usize;
        if let Some(&number) = self.owner_numbers.get(&pointer) {
            self.gone.push(owner);
            return (number, false);
        }
        let number = self.unused.pop().unwrap_or_else(|| {
            self.owners.push(None);
            self.owners.len() as u32
        });
        self.owners[number as usize - 1] = Some(owner);
        self.owner_numbers.insert(pointer, number);
        (number, true)
    }

    /// The core's number of an owner that has an allocation.
    pub fn known_owner(&self, owner: usize) -> Option<u32> {
        self.owner_numbers.get(&owner).copied()
    }

    /// The core's number of a kind that the space knows.
    pub fn known_kind(&self, kind: usize) -> Option<potad::Kind> {
        self.kind_numbers.get(&kind).map(|&at| self.kinds[at].1)
    }

    /// Allocates, and says of the allocations, which `starts` names, what they are and whose: all of
    /// it, or nothing. Wherever they are moved, they keep to `align`; `None` for blocks, which keep to
    /// their own size.
    #[inline]
    pub fn allocate<T, S: Iterator<Item = u64>>(
        &mut self,
        named: Named,
        align: Option<u128>,
        act: impl FnOnce(&mut Space) -> Result<T, Error>,
        starts: impl Fn(&T) -> S,
    ) -> Result<T, Error> {
        let done = act(&mut self.space);
        if named.is_empty() {
            return done;
        }
        match done {
            Ok(done) => self.describe(|| starts(&done), named, align).map(|()| done),
            Err(error) => {
                self.put_aside(named);
                Err(error)
            }
        }
    }

    /// Describes allocations that were just made, or frees them all.
    pub fn describe<S: Iterator<Item = u64>>(
        &mut self,
        starts: impl Fn() -> S,
        named: Named,
        align: Option<u128>,
    ) -> Result<(), Error> {
        if named.is_empty() {
            return Ok(());
        }
        let kind = named.kind.map(|kind| self.kind_number(kind)).transpose();
        let (owner, is_new) = match named.owner {
            Some(owner) => self.owner_number(owner),
            None => (0, false),
        };
        let described = kind.and_then(|kind| {
            let label = Label { kind, owner };
            starts().try_for_each(|start| {
                let size = || self.space.lookup(start).map_or(1, |found| found.size);
                let align = align.unwrap_or_else(size);
                self.space.describe(start, label, align)
            })
        });
        if described.is_err() {
            for start in starts() {
                self.space.free(start).expect("it was just allocated");
            }
            // If the core was told of the owner, it says so when it is asked for those released.
            if is_new && !self.space.has_released() {
                self.forget(owner);
            }
        }
        described
    }

    /// The objects that a label stands for.
    pub fn objects(&self, py: Python<'_>, label: Label) -> (Option<Py<Kind>>, Option<Py<PyAny>>) {
        let kind = label.kind.map(|kind| self.kinds[kind.index() - 1].0.clone_ref(py));
        let owner = match label.owner {
            0 => None,
            number => self.owners[number as usize - 1].as_ref().map(|owner| owner.clone_ref(py)),
        };
        (kind, owner)
    }

    /// Everything that is known of an allocation, and whether some of it is retired.
    pub fn known(&self, start: u64, size: u128) -> (Described, bool) {
        (self.space.described(start, size), self.space.is_retiring(start, size))
    }

    /// References that were passed and are not needed: dropped when the lock is let go.
    pub fn put_aside(&mut self, named: Named) {
        self.gone.extend(named.into_objects());
    }

    /// Keeps moves that this thread has begun; their number.
    pub fn keep_relocation(&mut self, relocation: Relocation) -> u64 {
        self.relocations_begun += 1;
        self.relocations.insert(self.relocations_begun, (thread::current().id(), relocation));
        self.relocations_begun
    }

    /// Does something with moves that are under way; `None` if they are not any more.
    pub fn with_relocation<T>(
        &mut self,
        number: u64,
        act: impl FnOnce(&mut Space, &mut Relocation) -> T,
    ) -> Option<T> {
        let (_, relocation) = self.relocations.get_mut(&number)?;
        Some(act(&mut self.space, relocation))
    }

    /// Takes moves that are under way, to finish them or give them up.
    pub fn take_relocation(&mut self, number: u64) -> Option<Relocation> {
        self.relocations.remove(&number).map(|(_, relocation)| relocation)
    }

    /// Gives up the moves of all other threads: in a child process there are none.
    pub fn give_up_others(&mut self) {
        let this = thread::current().id();
        let space = &mut self.space;
        self.relocations.retain(|_, (thread, relocation)| {
            let mine = *thread == this;
            if !mine {
                space.give_up(relocation);
            }
            mine
        });
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for owner in self.owners.iter().flatten() {
            visit.call(owner)?;
        }
        for (kind, _) in &self.kinds {
            visit.call(kind)?;
        }
        Ok(())
    }

    /// Owners, of a space that nobody can reach any more.
    pub fn clear(&mut self) -> Vec<Py<PyAny>> {
        self.owner_numbers.clear();
        self.owners.iter_mut().filter_map(Option::take).collect()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        drop_all(self.clear());
    }
}
