//! What a space's lock protects: the core's space, and the Python objects its numbers stand for.
//!
//! The core knows kinds and owners by numbers. Here each number has its object: a kind for as long as
//! there is the space, an owner for as long as it has an allocation. References are taken and moved
//! under the lock but never dropped, since dropping one may run any Python code: what is no longer
//! needed is put aside in `gone`, which whoever held the lock drops after letting it go.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use potad::{Described, Error, Label, Made, Obstacle, Relocation, Space, Why};

use crate::arena::{Memory, Place};
use crate::kind::Kind;
use crate::trash::drop_all;

/// A kind and an owner as they are passed to a call, and where what is allocated is a buffer, its place.
pub struct Named {
    kind: Option<Py<Kind>>,
    owner: Option<Py<PyAny>>,
    place: Option<Arc<Place>>,
}

impl Named {
    pub fn new(kind: Option<&Bound<'_, Kind>>, owner: Option<&Bound<'_, PyAny>>) -> Self {
        Named {
            kind: kind.map(|kind| kind.clone().unbind()),
            owner: owner.map(|owner| owner.clone().unbind()),
            place: None,
        }
    }

    /// The same, of a buffer if it is to have a place.
    pub fn at(self, place: Option<&Arc<Place>>) -> Self {
        Named { place: place.cloned(), ..self }
    }

    /// Both, as whatever they are.
    fn into_objects(self) -> impl Iterator<Item = Py<PyAny>> {
        self.kind.map(Py::into_any).into_iter().chain(self.owner)
    }

    /// Neither.
    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.owner.is_none() && self.place.is_none()
    }
}

/// What an owner's number stands for. A buffer has a number of its own, whoever its owner is, if it has
/// one: so it is known when it is freed or moved, by whatever call.
pub struct Owner {
    pub object: Option<Py<PyAny>>,
    pub buffer: Option<Arc<Place>>,
}

pub struct State {
    pub(crate) space: Space,
    /// By the core's number, less one.
    kinds: Vec<(Py<Kind>, potad::Kind)>,
    kind_numbers: HashMap<usize, usize>,
    /// By the core's number, less one; none where a number is not in use.
    owners: Vec<Option<Owner>>,
    owner_numbers: HashMap<usize, u32>,
    unused: Vec<u32>,
    gone: Vec<Py<PyAny>>,
    /// Numbers of owners without an allocation, while they are looked at.
    released: Vec<u32>,
    /// The memory behind the space, if it is an arena's.
    pub memory: Option<Memory>,
    /// The kind of buffers that are given none, in an arena's space.
    pub buffers: Option<potad::Kind>,
    /// The kind of NumPy's arrays in it, each of which has a pin of its own.
    pub arrays: Option<potad::Kind>,
    /// Whether the arena was closed.
    pub closed: bool,
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
            released: Vec::new(),
            memory: None,
            buffers: None,
            arrays: None,
            closed: false,
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
        let mut released = std::mem::take(&mut self.released);
        self.space.take_released(|number| released.push(number));
        released.drain(..).for_each(|number| self.forget(number));
        self.released = released;
        std::mem::take(&mut self.gone)
    }

    /// An owner has no allocation any more.
    pub fn forget(&mut self, number: u32) {
        let Some(owner) = self.owners[number as usize - 1].take() else { return };
        self.unused.push(number);
        match (owner.buffer, &owner.object) {
            (Some(place), _) => place.leave(),
            (None, Some(object)) => {
                self.owner_numbers.remove(&(object.as_ptr() as usize));
            }
            (None, None) => {}
        }
        self.gone.extend(owner.object);
    }

    /// A number that is not in use, for an owner.
    pub fn new_owner(&mut self, owner: Owner) -> u32 {
        let number = self.unused.pop().unwrap_or_else(|| {
            self.owners.push(None);
            self.owners.len() as u32
        });
        self.owners[number as usize - 1] = Some(owner);
        number
    }

    /// What the number of an owner stands for.
    fn owner(&self, number: u32) -> Option<&Owner> {
        self.owners.get((number as usize).checked_sub(1)?)?.as_ref()
    }

    /// Whether an owner's number stands for somebody who may be asked.
    fn has_owner(&self, number: u32) -> bool {
        self.owner(number).is_some_and(|owner| owner.object.is_some())
    }

    /// Where the buffer is that has a number, if it is a buffer's.
    pub fn place(&self, number: u32) -> Option<&Arc<Place>> {
        self.owner(number)?.buffer.as_ref()
    }

    // ---- moves -----------------------------------------------------------------------------

    /// Makes a move, with what the memory holds, if there is any.
    fn make_one(&mut self, relocation: &mut Relocation, at: usize) -> Result<Made, Error> {
        let it = relocation.moves()[at];
        if let Some(memory) = &self.memory
            && self.space.can_move(relocation, at)
        {
            memory.mapping.copy(it.old, it.new, it.size as usize);
        }
        let made = self.space.make_move(relocation, at)?;
        if made == Made::Moved
            && let Some(place) = self.place(it.label.owner)
            && place.address() == it.old
        {
            place.enter(it.new);
        }
        Ok(made)
    }

    /// Makes all moves of a relocation that nobody has had the time to disturb, or none.
    fn make_all(&mut self, relocation: &mut Relocation) -> Result<(), Error> {
        let State { space, memory, owners, .. } = self;
        space.make_moves(relocation, |it| {
            // Nobody else looks at the memory before the lock is let go.
            if let Some(memory) = memory {
                memory.mapping.copy(it.old, it.new, it.size as usize);
            }
            let owner = owners.get((it.label.owner as usize).wrapping_sub(1));
            if let Some(place) = owner.and_then(|owner| owner.as_ref()?.buffer.as_ref())
                && place.address() == it.old
            {
                place.enter(it.new);
            }
        })
    }

    /// Makes moves at once if nobody has to be asked about any; whether they are made.
    pub fn make_unasked(&mut self, relocation: &mut Relocation) -> Result<bool, Error> {
        if relocation.moves().iter().any(|it| self.has_owner(it.label.owner)) {
            return Ok(false);
        }
        relocation.leave_call();
        self.make_all(relocation).map(|()| true)
    }

    /// The core's number of a kind, which becomes known to the space if it was not.
    pub fn kind_number(&mut self, kind: Py<Kind>) -> Result<potad::Kind, Error> {
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
        let number = self.new_owner(Owner { object: Some(owner), buffer: None });
        self.owner_numbers.insert(pointer, number);
        (number, true)
    }

    /// The live allocations of an owner, ascending by start.
    pub fn owned_by(&self, owner: usize) -> Result<Vec<Described>, Error> {
        let is = |it: &Owner| it.object.as_ref().is_some_and(|it| it.as_ptr() as usize == owner);
        self.space.of_owners(|number| self.owner(number).is_some_and(is))
    }

    /// The core's number of an owner that has an allocation, but for buffers.
    fn known_owner(&self, owner: usize) -> Option<u32> {
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
        if named.place.is_some()
            && let Err(error) = self.must_be_open()
        {
            starts().for_each(|start| self.space.free(start).map(drop).expect("just allocated"));
            self.put_aside(named);
            return Err(error);
        }
        let kind = named.kind.map(|kind| self.kind_number(kind)).transpose();
        let (owner, is_new) = match (named.owner, &named.place) {
            (object, Some(place)) => {
                (self.new_owner(Owner { object, buffer: Some(place.clone()) }), true)
            }
            (Some(owner), None) => self.owner_number(owner),
            (None, None) => (0, false),
        };
        let described = kind.and_then(|kind| {
            let label = Label { kind, owner };
            starts().try_for_each(|start| {
                let size = || self.space.lookup(start).map_or(1, |found| found.size);
                let align = align.unwrap_or_else(size);
                self.space.describe(start, label, align)?;
                if let Some(place) = &named.place {
                    place.enter(start);
                }
                Ok(())
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
            number => self.owner(number).and_then(|owner| owner.object.as_ref()),
        };
        let owner = owner.map(|owner| owner.clone_ref(py));
        (kind, owner)
    }

    /// What a label's allocations are told together by: the kind, and the owner's object.
    fn sort(&self, label: Label) -> (usize, usize) {
        let owner = self.owner(label.owner).and_then(|owner| owner.object.as_ref());
        let kind = label.kind.map_or(0, |kind| kind.index());
        (kind, owner.map_or(0, |owner| owner.as_ptr() as usize))
    }

    /// How many live allocations there are of each kind and owner, and how much they come to, most
    /// first.
    pub fn tally(&self) -> Result<Vec<(Label, u64, u128)>, Error> {
        let rows = self.space.tally()?.into_iter();
        let rows = rows.map(|(label, count, size)| ((self.sort(label), None), label, count, size));
        let merged = merge(rows).into_iter();
        Ok(merged.map(|(_, label, count, size)| (label, count, size)).collect())
    }

    /// What is in the way of a run, by kind and owner, most first.
    pub fn obstacles(&self, within: potad::Window) -> Result<Vec<Obstacle>, Error> {
        let rows = self.space.obstacles(within)?.into_iter();
        let rows =
            rows.map(|it| ((self.sort(it.label), Some(it.why)), it.label, it.count, it.size));
        let merged = merge(rows).into_iter().filter_map(|((_, why), label, count, size)| {
            Some(Obstacle { label, why: why?, count, size })
        });
        Ok(merged.collect())
    }

    /// Everything that is known of an allocation, and whether some of it is retired.
    pub fn known(&self, start: u64, size: u128) -> (Described, bool) {
        (self.space.described(start, size), self.space.is_retiring(start, size))
    }

    /// References that were passed and are not needed: dropped when the lock is let go.
    pub fn put_aside(&mut self, named: Named) {
        self.gone.extend(named.into_objects());
    }

    /// The same of one reference.
    pub fn put_aside_object(&mut self, object: Option<Py<PyAny>>) {
        self.gone.extend(object);
    }

    /// Refuses what allocates in an arena that was closed.
    pub fn must_be_open(&self) -> Result<(), Error> {
        let closed =
            || Error::Argument { name: "arena", value: "closed".into(), expected: "open".into() };
        if self.closed { Err(closed()) } else { Ok(()) }
    }

    // ---- memory ----------------------------------------------------------------------------

    /// Gives memory back to the system if enough of it has become free.
    #[inline(always)]
    pub fn settle_memory(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.settle(&mut self.space);
        }
    }

    /// Gives back all free memory that is worth it.
    pub fn trim(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.trim(&mut self.space);
        }
    }

    /// Nothing is allocated: closes the arena.
    pub fn close(&mut self) {
        self.closed = true;
        if let Some(memory) = &self.memory {
            memory.give_all_back();
        }
    }

    /// Whether all of a range is memory of the arena, if the space is one's.
    pub fn is_memory(&self, start: u64, size: u128) -> bool {
        self.memory.as_ref().is_none_or(|memory| memory.covers(start, size))
    }

    /// A range is not in the space any more: what memory there is behind it goes back.
    pub fn leave_range(&mut self, start: u64, size: u128) {
        if let Some(memory) = &self.memory {
            memory.give_back(start, size);
        }
    }

    /// What memory is compacted to free pieces of.
    pub fn piece(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.piece())
    }

    // ---- moves under way -------------------------------------------------------------------

    /// Keeps moves that this thread has begun; their number.
    pub fn keep_relocation(&mut self, relocation: Relocation) -> u64 {
        self.relocations_begun += 1;
        self.relocations.insert(self.relocations_begun, (thread::current().id(), relocation));
        self.relocations_begun
    }

    /// Whether a move could be made, by the number of what is under way and its own.
    pub fn can_move(&self, number: u64, at: usize) -> bool {
        let kept = self.relocations.get(&number);
        kept.is_some_and(|(_, relocation)| self.space.can_move(relocation, at))
    }

    /// Makes one of the moves that are under way; it stays if they are not any more.
    pub fn make_kept(&mut self, number: u64, at: usize) -> Result<Made, Error> {
        let Some((thread, mut relocation)) = self.relocations.remove(&number) else {
            return Ok(Made::Stays);
        };
        let made = self.make_one(&mut relocation, at);
        self.relocations.insert(number, (thread, relocation));
        made
    }

    /// Whether what a move is of was freed; then the move is over.
    pub fn is_gone(&mut self, number: u64, at: usize) -> bool {
        let kept = self.relocations.get_mut(&number);
        kept.is_some_and(|(_, relocation)| self.space.is_gone(relocation, at))
    }

    /// One of the moves that are under way is not wanted.
    pub fn refuse_kept(&mut self, number: u64, at: usize) -> Result<(), Error> {
        match self.relocations.get(&number) {
            Some((_, relocation)) => self.space.refuse(relocation, at),
            None => Ok(()),
        }
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
            visit.call(&owner.object)?;
        }
        for (kind, _) in &self.kinds {
            visit.call(kind)?;
        }
        Ok(())
    }

    /// Owners, of a space that nobody can reach any more.
    pub fn clear(&mut self) -> Vec<Py<PyAny>> {
        self.owner_numbers.clear();
        self.owners.iter_mut().flatten().filter_map(|owner| owner.object.take()).collect()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        drop_all(self.clear());
    }
}

type Row = (((usize, usize), Option<Why>), Label, u64, u128);

/// Adds up the rows that are of one sort, most first: buffers have numbers of their own.
fn merge(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut merged: Vec<Row> = Vec::new();
    let mut places = HashMap::new();
    for row in rows {
        let at = *places.entry(row.0).or_insert(merged.len());
        match merged.get_mut(at) {
            Some((_, _, count, size)) => {
                *count += row.2;
                *size += row.3;
            }
            None => merged.push(row),
        }
    }
    merged.sort_by_key(|&(_, _, count, size)| std::cmp::Reverse((size, count)));
    merged
}
