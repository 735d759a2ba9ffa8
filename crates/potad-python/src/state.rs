//! What a space's lock protects: the core's space, and the Python objects its numbers stand for.
//!
//! The core knows kinds and owners by numbers; `kinds` and `owners` have the object of each. References
//! are moved into them under the lock, but none is dropped under it, since that may run any Python code:
//! what is no longer needed stays there until the call has unlocked ([`State::take_gone`]).

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use potad::fallible::{Grow, room_in_table, with_room};
use potad::{Described, Error, Label, Made, Move, Obstacle, Relocation, Space, Why};

use crate::arena::{Memory, Place};
use crate::counted::Counted;
use crate::kind::Kind;
use crate::kinds::Kinds;
use crate::owners::Owners;
use crate::trash::drop_object;

/// A kind and an owner as they are passed to a call, and where what is allocated is a buffer, its place.
/// The call takes the references it keeps; the caller drops the others.
pub struct Named {
    pub kind: Option<Py<Kind>>,
    pub owner: Option<Py<PyAny>>,
    place: Option<Counted<Place>>,
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
    pub fn at(self, place: Option<&Counted<Place>>) -> Self {
        Named { place: place.cloned(), ..self }
    }

    /// Neither.
    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.owner.is_none() && self.place.is_none()
    }
}

/// That an allocation can be described.
pub struct Ready {
    label: Label,
    /// Whether the owner had no number before.
    is_new: bool,
}

/// What a call has allocated.
pub trait Allocated {
    /// Where each allocation starts.
    fn starts(&self) -> impl Iterator<Item = u64>;
}

impl Allocated for u64 {
    fn starts(&self) -> impl Iterator<Item = u64> {
        std::iter::once(*self)
    }
}

impl Allocated for Vec<(u64, u128)> {
    fn starts(&self) -> impl Iterator<Item = u64> {
        self.iter().map(|&(start, _)| start)
    }
}

impl Allocated for Vec<u64> {
    fn starts(&self) -> impl Iterator<Item = u64> {
        self.iter().copied()
    }
}

/// Allocations of one kind and owner, and why they are in the way where that is asked.
pub struct Tally {
    pub label: Label,
    pub why: Option<Why>,
    pub count: u64,
    pub size: u128,
}

/// Moves under way.
struct UnderWay {
    number: u64,
    /// The thread that makes them, as the interpreter has it.
    thread: u64,
    relocation: Relocation,
}

pub struct State {
    pub(crate) space: Space,
    kinds: Kinds,
    pub(crate) owners: Owners,
    /// The memory behind the space, if it is an arena's.
    pub memory: Option<Memory>,
    /// The kind of buffers that are given none, in an arena's space.
    pub buffers: Option<potad::Kind>,
    /// The kind of NumPy's arrays in it, each of which has a pin of its own.
    pub arrays: Option<potad::Kind>,
    /// Whether the arena was closed.
    pub closed: bool,
    relocations: Vec<UnderWay>,
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
            kinds: Kinds::default(),
            owners: Owners::default(),
            memory: None,
            buffers: None,
            arrays: None,
            closed: false,
            relocations: Vec::new(),
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
        let kind = if kind == 0 { None } else { Some(self.kinds.number_again(kind)?) };
        let owner = if owner == 0 { 0 } else { self.owners.number(owner)? };
        Some(self.space.alloc_described(size, None, Label { kind, owner }))
    }

    /// Whether there are references to drop once the lock is let go.
    #[inline(always)]
    pub fn has_gone(&self) -> bool {
        self.space.has_released() || self.owners.has_gone() || self.kinds.has_gone()
    }

    /// One of these references.
    #[inline(never)]
    pub fn take_gone(&mut self) -> Option<Py<PyAny>> {
        self.settle_owners();
        self.owners.take_gone().or_else(|| self.kinds.take_gone())
    }

    /// How many numbers of kinds and owners have been given back: if it is the same as before, labels
    /// still stand for the same objects.
    pub fn forgotten(&self) -> u64 {
        self.kinds.forgotten + self.owners.forgotten
    }

    /// Where the buffer is that has a number, if it is a buffer's.
    pub fn place(&self, number: u32) -> Option<&Counted<Place>> {
        self.owners.get(number)?.buffer.as_ref()
    }

    // ---- moves -----------------------------------------------------------------------------

    /// Makes all moves of a relocation that has just been begun, or none.
    pub fn make_all(&mut self, relocation: &mut Relocation) -> Result<(), Error> {
        let State { space, memory, owners, .. } = self;
        space.make_moves(relocation, |it| {
            // No other thread looks at the memory before the space is unlocked.
            if let Some(memory) = memory {
                memory.mapping.copy(it.old, it.new, it.size as usize);
            }
            move_place(owners, it);
        })
    }

    /// Whether an owner has to be asked about one of the moves.
    pub fn has_to_ask(&self, relocation: &Relocation) -> bool {
        let object = |it: &Move| self.owners.get(it.label.owner)?.object.as_ref();
        relocation.moves().iter().any(|it| object(it).is_some())
    }

    /// The core's number of a kind, which becomes known to the space if it was not.
    pub fn kind_number(
        &mut self,
        kind: &mut Option<Py<Kind>>,
    ) -> Result<Option<potad::Kind>, Error> {
        self.kinds.add(kind, &mut self.space, [self.buffers, self.arrays])
    }

    /// The core's number of a kind that the space knows.
    pub fn known_kind(&self, kind: usize) -> Option<potad::Kind> {
        self.kinds.number(kind)
    }

    /// The live allocations of an owner, ascending by start.
    pub fn owned_by(&self, owner: usize) -> Result<Vec<Described>, Error> {
        let is = |number| {
            let object = self.owners.get(number).and_then(|it| it.object.as_ref());
            object.is_some_and(|object| object.as_ptr() as usize == owner)
        };
        self.space.of_owners(is)
    }

    /// Allocates, and says of the allocations what they are and whose: all of it, or nothing. Wherever
    /// they are moved, they keep to `align`; `None` for blocks, which keep to their own size.
    #[inline]
    pub fn allocate<T: Allocated>(
        &mut self,
        named: &mut Named,
        align: Option<u128>,
        act: impl FnOnce(&mut Space) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if named.is_empty() {
            return act(&mut self.space);
        }
        let ready = self.make_ready(named, align.unwrap_or(1))?;
        let done = act(&mut self.space).and_then(|done| {
            let described = done.starts().try_for_each(|start| {
                let size = || self.space.lookup(start).map_or(1, |found| found.size);
                self.describe(start, named, &ready, align.unwrap_or_else(size))
            });
            match described {
                Ok(()) => Ok(done),
                Err(error) => {
                    done.starts().for_each(|start| self.take_away(start));
                    Err(error)
                }
            }
        });
        if done.is_err() {
            self.make_unready(ready, named);
        }
        done
    }

    /// The label that `named` stands for, and the memory to describe one allocation with it. If nothing is
    /// allocated then, it is to be made unready.
    pub fn make_ready(&mut self, named: &mut Named, align: u128) -> Result<Ready, Error> {
        if named.place.is_some() {
            self.must_be_open()?;
        }
        let kind = self.kind_number(&mut named.kind)?;
        let (owner, is_new) = match &named.place {
            Some(place) => (self.owners.add_buffer(&mut named.owner, place)?, true),
            None => self.owners.add_object(&mut named.owner)?,
        };
        let ready = Ready { label: Label { kind, owner }, is_new };
        match self.space.make_room_to_describe(ready.label, align) {
            Ok(()) => Ok(ready),
            Err(error) => {
                self.make_unready(ready, named);
                Err(error)
            }
        }
    }

    /// Nothing was allocated. The references that were taken are given back, if nothing has used them.
    pub fn make_unready(&mut self, ready: Ready, named: &mut Named) {
        if ready.is_new {
            named.owner = self.forget_new(ready.label.owner);
        }
    }

    /// Gives back the number of an owner of whom nothing was allocated after all, and its object.
    pub fn forget_new(&mut self, owner: u32) -> Option<Py<PyAny>> {
        // If the core has come to count the owner, it tells of it here, and the object is to be dropped.
        self.settle_owners();
        self.owners.take(owner)
    }

    /// Describes an allocation that was just made.
    pub fn describe(
        &mut self,
        start: u64,
        named: &Named,
        ready: &Ready,
        align: u128,
    ) -> Result<(), Error> {
        self.space.describe(start, ready.label, align)?;
        if let Some(place) = &named.place {
            place.enter(start);
        }
        Ok(())
    }

    /// Frees an allocation that was just made.
    pub fn take_away(&mut self, start: u64) {
        self.space.free(start).expect("it was just allocated");
    }

    /// Gives back the numbers of owners that have no allocation any more.
    fn settle_owners(&mut self) {
        let owners = &mut self.owners;
        self.space.take_released(|number| owners.forget(number));
    }

    /// The objects that a label stands for.
    pub fn objects(&self, py: Python<'_>, label: Label) -> (Option<Py<Kind>>, Option<Py<PyAny>>) {
        let kind = label.kind.and_then(|kind| self.kinds.get(kind));
        let owner = self.owners.get(label.owner).and_then(|owner| owner.object.as_ref());
        (kind.map(|kind| kind.clone_ref(py)), owner.map(|owner| owner.clone_ref(py)))
    }

    /// What a label's allocations are told together by: the kind, and the owner's object.
    fn sort(&self, label: Label) -> (usize, usize) {
        let owner = self.owners.get(label.owner).and_then(|owner| owner.object.as_ref());
        let kind = label.kind.map_or(0, |kind| kind.index());
        (kind, owner.map_or(0, |owner| owner.as_ptr() as usize))
    }

    /// How many live allocations there are of each kind and owner, and how much they come to, most
    /// first.
    pub fn tally(&self) -> Result<Vec<Tally>, Error> {
        let rows = self.space.tally()?.into_iter();
        self.merge(rows.map(|(label, count, size)| Tally { label, why: None, count, size }))
    }

    /// What is in the way of a run, by kind and owner, most first.
    pub fn obstacles(&self, within: potad::Window) -> Result<Vec<Tally>, Error> {
        let rows = self.space.obstacles(within)?.into_iter();
        self.merge(rows.map(|Obstacle { label, why, count, size }| Tally {
            label,
            why: Some(why),
            count,
            size,
        }))
    }

    /// Adds up the rows of one kind, owner and reason, most first: buffers have numbers of their own.
    fn merge(&self, rows: impl ExactSizeIterator<Item = Tally>) -> Result<Vec<Tally>, Error> {
        let mut merged: Vec<Tally> = with_room(rows.len())?;
        let mut places = HashMap::new();
        room_in_table(&mut places, rows.len())?;
        for row in rows {
            let (kind, owner) = self.sort(row.label);
            let at = *places.entry((kind, owner, row.why)).or_insert(merged.len());
            match merged.get_mut(at) {
                Some(sum) => {
                    sum.count += row.count;
                    sum.size += row.size;
                }
                None => merged.push(row),
            }
        }
        // In place: a stable sort takes memory.
        merged.sort_unstable_by_key(|row| {
            let (kind, owner) = (row.label.kind.map_or(0, potad::Kind::index), row.label.owner);
            (std::cmp::Reverse((row.size, row.count)), kind, owner)
        });
        Ok(merged)
    }

    /// Everything that is known of an allocation, and whether some of it is retired.
    pub fn known(&self, start: u64, size: u128) -> (Described, bool) {
        (self.space.described(start, size), self.space.is_retiring(start, size))
    }

    /// Refuses what allocates in an arena that was closed.
    pub fn must_be_open(&self) -> Result<(), Error> {
        if self.closed { Err(Error::argument("arena", "closed", "open")) } else { Ok(()) }
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

    /// Keeps moves that this thread has begun, or gives them up; their number.
    pub fn keep_relocation(&mut self, mut relocation: Relocation) -> Result<u64, Error> {
        if let Err(error) = self.relocations.room(1) {
            self.space.give_up(&mut relocation);
            return Err(error);
        }
        self.relocations_begun += 1;
        let (number, thread) = (self.relocations_begun, this_thread());
        self.relocations.push(UnderWay { number, thread, relocation });
        Ok(number)
    }

    /// Where moves are that are under way.
    fn kept(&self, number: u64) -> Option<usize> {
        self.relocations.iter().position(|kept| kept.number == number)
    }

    /// Whether a move could be made, by the number of what is under way and its own.
    pub fn can_move(&self, number: u64, at: usize) -> bool {
        let kept = self.kept(number).map(|kept| &self.relocations[kept].relocation);
        kept.is_some_and(|relocation| self.space.can_move(relocation, at))
    }

    /// Makes one of the moves that are under way; it stays if they are not any more.
    pub fn make_kept(&mut self, number: u64, at: usize) -> Result<Made, Error> {
        let Some(kept) = self.kept(number) else { return Ok(Made::Stays) };
        let relocation = &mut self.relocations[kept].relocation;
        let it = relocation.moves()[at];
        if let Some(memory) = &self.memory
            && self.space.can_move(relocation, at)
        {
            memory.mapping.copy(it.old, it.new, it.size as usize);
        }
        let made = self.space.make_move(relocation, at)?;
        if made == Made::Moved {
            move_place(&self.owners, &it);
        }
        Ok(made)
    }

    /// Whether what a move is of was freed; then the move is over.
    pub fn is_gone(&mut self, number: u64, at: usize) -> bool {
        let kept = self.kept(number).map(|kept| &mut self.relocations[kept].relocation);
        kept.is_some_and(|relocation| self.space.is_gone(relocation, at))
    }

    /// One of the moves that are under way is not wanted.
    pub fn refuse_kept(&mut self, number: u64, at: usize) -> Result<(), Error> {
        match self.kept(number) {
            Some(kept) => self.space.refuse(&self.relocations[kept].relocation, at),
            None => Ok(()),
        }
    }

    /// Takes moves that are under way, to finish them or give them up.
    pub fn take_relocation(&mut self, number: u64) -> Option<Relocation> {
        self.kept(number).map(|kept| self.relocations.swap_remove(kept).relocation)
    }

    /// Gives up the moves of all other threads: in a child process there are none.
    pub fn give_up_others(&mut self) {
        let this = this_thread();
        let space = &mut self.space;
        self.relocations.retain_mut(|kept| {
            let mine = kept.thread == this;
            if !mine {
                space.give_up(&mut kept.relocation);
            }
            mine
        });
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.owners.traverse(visit)?;
        self.kinds.traverse(visit)
    }

    /// Takes the next reference to an owner, from number `at` on, and moves `at` behind it. For a space that
    /// is not reachable any more.
    pub fn clear_one(&mut self, at: &mut usize) -> Option<Py<PyAny>> {
        self.owners.clear_one(at)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let mut at = 0;
        while let Some(owner) = self.clear_one(&mut at) {
            drop_object(owner);
        }
    }
}

/// Tells a buffer of its new address.
fn move_place(owners: &Owners, it: &Move) {
    if let Some(place) = owners.get(it.label.owner).and_then(|owner| owner.buffer.as_ref())
        && place.address() == Some(it.old)
    {
        place.enter(it.new);
    }
}

/// This thread. Rust's own number for it takes memory in a thread that Rust has not started.
fn this_thread() -> u64 {
    // SAFETY: it may be called in any thread.
    unsafe { ffi::PyThread_get_thread_ident() as u64 }
}
