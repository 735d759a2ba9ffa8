//! Descriptors: what is known about an allocation beside where it lies.
//!
//! # Representation
//!
//! Most allocations have none: a space that knows no kinds, owners or pins has no `Descriptors`. A
//! descriptor is a *slot* of the allocation's kind: its record, the granule it starts at, and its
//! owner. 64 slots of one kind are a chunk, whose records lie in a piece of memory that never moves.
//! A slot's id, of 32 bits, is its chunk's number and its place there.
//!
//! From the first granule of an allocation to its descriptor leads an open hash table of ids: what
//! an id stands for says which granule it belongs to, so that the table has nothing but ids, 4 bytes
//! each, and is never fuller than seven eighths. Pins are few, and in a table of their own.
//!
//! # Records that are looked at
//!
//! Whoever looks at a record in place has its memory keep on being there. The slot of a freed
//! allocation whose record is still looked at is not used again until it is not: so what is seen
//! through an old look is the old record, and never that of another allocation.
//!
//! # Cost
//!
//! 4 bytes for the owner, 8 for the start, at most 9.2 in the table, and what rounds the record and
//! its start to 16: of 360 bytes, none.

mod moving;

use std::collections::HashMap;
use std::fmt::Arguments;

pub(crate) use moving::{Mark, Moving};

use crate::error::Error;
use crate::fallible::{Grow, no_memory, repeat, room_in_table};
use crate::loose::Loose;
use crate::record::{Memory, Record};

/// Slots of a chunk.
const SLOTS: u32 = 64;

/// Number of pins that nobody can take or give back: of what is held while allocations are moved.
pub(crate) const HELD: u32 = u32::MAX;

/// In place of the exponent of an alignment that is no power of two.
const ODD: u8 = u8::MAX;

/// Largest record.
pub const RECORD_MAX: usize = 1 << 16;

/// A kind of allocation that a space was told of. Only that space knows it, and until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub(crate) u32);

impl Kind {
    /// What allocations are of that have an owner but no kind.
    pub(crate) const NONE: Kind = Kind(0);

    /// Its number among the space's kinds, from 1 up in the order they were added; the numbers of kinds
    /// that were removed are used first.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an allocation is, and whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Label {
    /// Its kind, if it has one.
    pub kind: Option<Kind>,
    /// A number that stands for its owner; 0 for nobody. Small ones are best: there is a table of
    /// them.
    pub owner: u32,
}

struct KindOf {
    record: usize,
    movable: bool,
    /// Whether the space knows it; if not, its number is in `vacant_kinds`.
    known: bool,
    chunks: usize,
    /// Chunks of this kind that have a slot free; with room for all of them, since freeing must not
    /// need memory.
    open: Vec<u32>,
}

struct Chunk {
    kind: Kind,
    /// Whether the kind is movable.
    movable: bool,
    /// Slots that can be handed out.
    free: u64,
    owners: [u32; SLOTS as usize],
    /// What moved allocations keep to, as exponents, in granules; or [`ODD`].
    aligns: [u8; SLOTS as usize],
    /// None while the chunk's number is in `vacant_chunks`.
    memory: Memory,
}

/// How often a record is being looked at, and whether its allocation is gone.
#[derive(Default)]
struct Looks {
    count: u32,
    freed: bool,
}

pub(crate) struct Descriptors {
    kinds: Vec<KindOf>,
    chunks: Vec<Chunk>,
    /// Numbers of kinds and chunks that are not in use, with room for all of them: to remove a kind must
    /// not need memory.
    vacant_kinds: Vec<u32>,
    vacant_chunks: Vec<u32>,
    /// Ids plus 1, at the place that the start's hash says or as soon after it as was free; 0 where
    /// there is none. A power of two long.
    table: Vec<u32>,
    /// Descriptors of live allocations.
    live: usize,
    /// First granules of pinned allocations, and how often each is pinned: never 0.
    pins: HashMap<u64, u32>,
    pub(crate) loose: Loose,
    /// Moves under way, by the first granule of the allocation: where its home starts, which tells a
    /// move from any other, and whether the allocation is still whole: what was cut is not moved.
    moving: HashMap<u64, (u64, bool)>,
    /// Places in `loose` that are kept for moves: the home of each that was begun, and where the
    /// allocation was of each that was made, until it is over.
    kept_places: u64,
    /// What calls that move things know of allocations, by their first granules: it goes where they go,
    /// and with them. At most one mark for each call.
    marks: HashMap<u64, Vec<(u64, Mark)>>,
    /// Alignments that are no powers of two, by the first granules of movable allocations.
    odd_aligns: HashMap<u64, u128>,
    looks: HashMap<u32, Looks>,
    /// How many descriptors each owner has: live ones, and those that have not been asked for since.
    owners: Vec<u64>,
    /// Id plus 1 of the newest slot whose allocation is gone and whose owner has not been asked for
    /// since. Where its start stood stands the next one. Not a list of owners: freeing must not need
    /// memory.
    released: u32,
}

impl Descriptors {
    pub(crate) fn new() -> Result<Self, Error> {
        let mut descriptors = Descriptors {
            kinds: Vec::new(),
            chunks: Vec::new(),
            vacant_kinds: Vec::new(),
            vacant_chunks: Vec::new(),
            table: Vec::new(),
            live: 0,
            pins: HashMap::new(),
            loose: Loose::default(),
            moving: HashMap::new(),
            kept_places: 0,
            marks: HashMap::new(),
            odd_aligns: HashMap::new(),
            looks: HashMap::new(),
            owners: Vec::new(),
            released: 0,
        };
        let none = descriptors.add_kind(0, false)?;
        debug_assert_eq!(none, Kind::NONE);
        Ok(descriptors)
    }

    /// Makes a new kind known, with records of so many bytes.
    pub(crate) fn add_kind(&mut self, record: usize, movable: bool) -> Result<Kind, Error> {
        if record > RECORD_MAX {
            let expected = format_args!("at most {RECORD_MAX} bytes");
            return Err(Error::argument("record", record, expected));
        }
        let kind = KindOf { record, movable, known: true, chunks: 0, open: Vec::new() };
        if let Some(number) = self.vacant_kinds.pop() {
            self.kinds[number as usize] = kind;
            return Ok(Kind(number));
        }
        let number = self.kinds.len();
        if number >= u32::MAX as usize {
            return Err(Error::argument("kind", number, "one of fewer than 2^32"));
        }
        self.vacant_kinds.room(number + 1)?;
        self.kinds.add(kind)?;
        Ok(Kind(number as u32))
    }

    /// Forgets a kind and gives back its memory, unless an allocation is of it, a record of it is looked
    /// at, or the owner of such an allocation that was freed has not been asked for: whether it did.
    /// Never needs memory.
    pub(crate) fn remove_kind(&mut self, kind: Kind) -> bool {
        if kind == Kind::NONE || !self.knows(kind) {
            return false;
        }
        let of = &mut self.kinds[kind.0 as usize];
        let unused = |&number: &u32| self.chunks[number as usize].free == u64::MAX;
        if of.open.len() != of.chunks || !of.open.iter().all(unused) {
            return false;
        }
        for number in std::mem::take(&mut of.open) {
            let chunk = &mut self.chunks[number as usize];
            // To nobody does it look as if it had a slot.
            (chunk.kind, chunk.free, chunk.memory) = (Kind::NONE, 0, Memory::NONE);
            self.vacant_chunks.push(number);
        }
        (of.chunks, of.known) = (0, false);
        self.vacant_kinds.push(kind.0);
        true
    }

    pub(crate) fn knows(&self, kind: Kind) -> bool {
        self.kinds.get(kind.0 as usize).is_some_and(|of| of.known)
    }

    // ---- slots -----------------------------------------------------------------------------

    fn chunk(&self, id: u32) -> (&Chunk, usize) {
        (&self.chunks[(id / SLOTS) as usize], (id % SLOTS) as usize)
    }

    /// First granule of the allocation that a descriptor belongs to.
    fn start(&self, id: u32) -> u64 {
        let (chunk, slot) = self.chunk(id);
        chunk.memory.start(slot)
    }

    /// A slot of a kind, its record zero.
    #[inline(always)]
    fn take_slot(&mut self, kind: Kind) -> Result<u32, Error> {
        let of = &mut self.kinds[kind.0 as usize];
        let number = match of.open.last() {
            Some(&number) => number,
            None => self.new_chunk(kind)?,
        };
        let chunk = &mut self.chunks[number as usize];
        let slot = chunk.free.trailing_zeros();
        chunk.free &= chunk.free - 1;
        if chunk.free == 0 {
            self.kinds[kind.0 as usize].open.pop();
        }
        chunk.memory.clear(slot as usize);
        Ok(number * SLOTS + slot)
    }

    /// A chunk of a kind that has none with a slot free: its number.
    #[cold]
    fn new_chunk(&mut self, kind: Kind) -> Result<u32, Error> {
        let of = &mut self.kinds[kind.0 as usize];
        of.open.room(of.chunks + 1 - of.open.len())?;
        let number = match self.vacant_chunks.last() {
            Some(&number) => number as usize,
            None => {
                self.chunks.room(1)?;
                self.vacant_chunks.room(self.chunks.len() + 1)?;
                self.chunks.len()
            }
        };
        if number >= (u32::MAX / SLOTS) as usize {
            return Err(no_memory(number * size_of::<Chunk>()));
        }
        let memory = Memory::new(of.record, SLOTS as usize)?;
        let (owners, aligns) = ([0; SLOTS as usize], [0; SLOTS as usize]);
        let chunk = Chunk { kind, movable: of.movable, free: u64::MAX, owners, aligns, memory };
        match self.vacant_chunks.pop() {
            Some(_) => self.chunks[number] = chunk,
            None => self.chunks.push(chunk),
        }
        of.open.push(number as u32);
        of.chunks += 1;
        Ok(number as u32)
    }

    #[inline(always)]
    fn give_slot(&mut self, id: u32) {
        let chunk = &mut self.chunks[(id / SLOTS) as usize];
        if chunk.free == 0 {
            self.kinds[chunk.kind.0 as usize].open.push(id / SLOTS);
        }
        chunk.free |= 1 << (id % SLOTS);
    }

    // ---- the table -------------------------------------------------------------------------

    /// Where in the table the search for a granule starts.
    fn home(&self, start: u64) -> usize {
        // Fibonacci hashing: Knuth, The Art of Computer Programming, volume 3, section 6.4.
        let hash = start.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (((hash >> 32) * self.table.len() as u64) >> 32) as usize
    }

    /// Where in the table the descriptor of the allocation that starts at a granule stands.
    #[inline(always)]
    fn find(&self, start: u64) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        let mask = self.table.len() - 1;
        let mut at = self.home(start);
        while self.table[at] != 0 {
            if self.start(self.table[at] - 1) == start {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    #[inline(always)]
    fn insert(&mut self, id: u32, start: u64) {
        let mask = self.table.len() - 1;
        let mut at = self.home(start);
        while self.table[at] != 0 {
            at = (at + 1) & mask;
        }
        self.table[at] = id + 1;
    }

    /// Takes an entry out and closes the gap: what follows it moves back unless it is at home.
    #[inline(always)]
    fn take_out(&mut self, at: usize) -> u32 {
        let id = self.table[at] - 1;
        let mask = self.table.len() - 1;
        let (mut gap, mut next) = (at, (at + 1) & mask);
        while self.table[next] != 0 {
            let home = self.home(self.start(self.table[next] - 1));
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(gap) & mask {
                self.table[gap] = self.table[next];
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.table[gap] = 0;
        id
    }

    /// Makes sure that so many more descriptors have room in the table.
    #[inline]
    fn ensure_table(&mut self, more: usize) -> Result<(), Error> {
        let needed = self.live + more;
        if needed <= self.table.len() / 8 * 7 { Ok(()) } else { self.grow_table(needed) }
    }

    #[cold]
    fn grow_table(&mut self, needed: usize) -> Result<(), Error> {
        let mut len = self.table.len().max(16);
        while needed > len / 8 * 7 {
            len *= 2;
        }
        let table = repeat(0, len)?;
        let old = std::mem::replace(&mut self.table, table);
        for id in old.into_iter().filter(|&entry| entry != 0) {
            self.insert(id - 1, self.start(id - 1));
        }
        Ok(())
    }

    // ---- descriptors -----------------------------------------------------------------------

    /// Id of the descriptor of the allocation that starts at a granule, if it has one.
    pub(crate) fn id(&self, start: u64) -> Option<u32> {
        self.find(start).map(|at| self.table[at] - 1)
    }

    pub(crate) fn label(&self, id: u32) -> Label {
        let (chunk, slot) = self.chunk(id);
        let kind = (chunk.kind != Kind::NONE).then_some(chunk.kind);
        Label { kind, owner: chunk.owners[slot] }
    }

    /// What the allocation that starts at a granule is, and whose.
    pub(crate) fn label_at(&self, start: u64) -> Label {
        self.id(start).map_or(Label::default(), |id| self.label(id))
    }

    /// Gives a descriptor to the allocation that starts at a granule, which must have none. Where it is
    /// moved, it starts at a multiple of `align` granules.
    #[inline]
    pub(crate) fn add(
        &mut self,
        start: u64,
        label: Label,
        align: impl FnOnce() -> u128,
    ) -> Result<u32, Error> {
        let movable = label.kind.is_some_and(|kind| self.kinds[kind.0 as usize].movable);
        if movable { self.add_movable(start, label, align()) } else { self.add_fixed(start, label) }
    }

    #[inline(never)]
    fn add_movable(&mut self, start: u64, label: Label, align: u128) -> Result<u32, Error> {
        let odd = !align.is_power_of_two();
        if odd {
            room_in_table(&mut self.odd_aligns, 1)?;
        }
        self.loose.keep(start)?;
        let id = match self.add_fixed(start, label) {
            Ok(id) => id,
            Err(error) => {
                self.loose.give(start);
                return Err(error);
            }
        };
        self.loose.set(start, self.pins(start) == 0);
        self.chunks[(id / SLOTS) as usize].aligns[(id % SLOTS) as usize] = if odd {
            self.odd_aligns.insert(start, align);
            ODD
        } else {
            align.trailing_zeros() as u8
        };
        Ok(id)
    }

    /// Makes sure that the next descriptor, for an allocation that starts anywhere, needs no memory.
    pub(crate) fn room(&mut self, label: Label, align: u128) -> Result<(), Error> {
        let kind = label.kind.unwrap_or(Kind::NONE);
        if self.kinds[kind.0 as usize].movable {
            self.loose.room(1)?;
            if !align.is_power_of_two() {
                room_in_table(&mut self.odd_aligns, 1)?;
            }
        }
        self.ensure_table(1)?;
        self.ensure_owner(label.owner)?;
        if self.kinds[kind.0 as usize].open.is_empty() {
            self.new_chunk(kind)?;
        }
        Ok(())
    }

    /// The same, but for what is there for moving.
    #[inline(always)]
    fn add_fixed(&mut self, start: u64, label: Label) -> Result<u32, Error> {
        self.ensure_table(1)?;
        self.ensure_owner(label.owner)?;
        let owner = label.owner as usize;
        let id = self.take_slot(label.kind.unwrap_or(Kind::NONE))?;
        self.owners[owner] += (owner != 0) as u64;
        let chunk = &mut self.chunks[(id / SLOTS) as usize];
        let slot = (id % SLOTS) as usize;
        chunk.owners[slot] = label.owner;
        chunk.memory.set_start(slot, start);
        self.insert(id, start);
        self.live += 1;
        Ok(id)
    }

    /// Makes sure that an owner can be counted.
    #[inline]
    fn ensure_owner(&mut self, owner: u32) -> Result<(), Error> {
        if (owner as usize) < self.owners.len() { Ok(()) } else { self.grow_owners(owner as usize) }
    }

    #[cold]
    fn grow_owners(&mut self, owner: usize) -> Result<(), Error> {
        if owner >= self.owners.len() {
            self.owners.room(owner + 1 - self.owners.len())?;
            self.owners.resize(owner + 1, 0);
        }
        Ok(())
    }

    /// Gives the allocation that starts at `to` the same descriptor as that at `from` has, with a
    /// copy of its record, if that has one, and an alignment of its own.
    pub(crate) fn duplicate(
        &mut self,
        from: u64,
        to: u64,
        align: u128,
    ) -> Result<Option<u32>, Error> {
        let Some(id) = self.id(from) else { return Ok(None) };
        let copy = self.add(to, self.label(id), || align)?;
        let ((chunk, slot), (from_chunk, from_slot)) = (self.chunk(copy), self.chunk(id));
        chunk.memory.copy(slot, &from_chunk.memory, from_slot);
        Ok(Some(copy))
    }

    /// The allocation that started at a granule is gone. Never needs memory.
    pub(crate) fn remove(&mut self, start: u64) {
        let Some(at) = self.find(start) else { return };
        let id = self.take_out(at);
        self.live -= 1;
        if self.is_movable(id) {
            self.unloose(start, id);
        }
        let (chunk, slot) = self.chunk(id);
        if chunk.owners[slot] == 0 {
            return self.finish(id);
        }
        chunk.memory.set_start(slot, self.released as u64);
        self.released = id + 1;
    }

    /// The movable allocation of a descriptor is gone from a granule.
    #[inline(never)]
    fn unloose(&mut self, start: u64, id: u32) {
        self.loose.remove(start);
        if !self.moving.is_empty() {
            self.moving.remove(&start);
        }
        if !self.marks.is_empty() {
            self.marks.remove(&start);
        }
        let (chunk, slot) = self.chunk(id);
        if chunk.aligns[slot] == ODD {
            self.odd_aligns.remove(&start);
        }
    }

    /// Nothing is to be asked of a slot any more.
    fn finish(&mut self, id: u32) {
        if !self.looks.is_empty()
            && let Some(looks) = self.looks.get_mut(&id)
        {
            looks.freed = true;
        } else {
            self.give_slot(id);
        }
    }

    /// Ids of slots whose owner has not been asked for, newest first.
    fn released_ids(&self) -> impl Iterator<Item = u32> + '_ {
        let next = |entry: u32| (entry != 0).then_some(entry);
        std::iter::successors(next(self.released), move |entry| next(self.start(entry - 1) as u32))
            .map(|entry| entry - 1)
    }

    /// Calls `gone` with each owner that has lost its last allocation since this was last asked.
    pub(crate) fn take_released(&mut self, mut gone: impl FnMut(u32)) {
        while self.released != 0 {
            let id = self.released - 1;
            self.released = self.start(id) as u32;
            let (chunk, slot) = self.chunk(id);
            let owner = chunk.owners[slot];
            self.finish(id);
            let count = &mut self.owners[owner as usize];
            *count -= 1;
            if *count == 0 {
                gone(owner);
            }
        }
    }

    pub(crate) fn has_released(&self) -> bool {
        self.released != 0
    }

    /// Ids of the live descriptors of a kind, or of all.
    pub(crate) fn ids(&self, kind: Option<Kind>) -> impl Iterator<Item = u32> + '_ {
        let live = self.table.iter().filter(|&&entry| entry != 0).map(|entry| entry - 1);
        live.filter(move |&id| kind.is_none_or(|kind| self.chunk(id).0.kind == kind))
    }

    /// First granule of the allocation of a live descriptor.
    pub(crate) fn start_of(&self, id: u32) -> u64 {
        self.start(id)
    }

    /// Appends the bytes of a record as they are now.
    pub(crate) fn read(&self, id: u32, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let (chunk, slot) = self.chunk(id);
        bytes.room(chunk.memory.record_size())?;
        chunk.memory.read(slot, bytes);
        Ok(())
    }

    // ---- looking at records ----------------------------------------------------------------

    /// The record of a live descriptor, to be looked at in place; to be given back by `look_away`.
    pub(crate) fn look(&mut self, id: u32) -> Result<Record, Error> {
        room_in_table(&mut self.looks, 1)?;
        let looks = self.looks.entry(id).or_default();
        let Some(count) = looks.count.checked_add(1) else {
            return Err(Error::argument(
                "record",
                id,
                "one that is looked at fewer than 2^32 times",
            ));
        };
        looks.count = count;
        let (chunk, slot) = self.chunk(id);
        Ok(Record::new(chunk.memory.clone(), slot, id))
    }

    pub(crate) fn look_away(&mut self, record: Record) {
        let Some(looks) = self.looks.get_mut(&record.id) else { return };
        looks.count -= 1;
        if looks.count == 0 {
            let freed = looks.freed;
            self.looks.remove(&record.id);
            if freed {
                self.give_slot(record.id);
            }
        }
    }

    // ---- pins ------------------------------------------------------------------------------

    pub(crate) fn pins(&self, start: u64) -> u32 {
        if self.pins.is_empty() { 0 } else { self.pins.get(&start).copied().unwrap_or(0) }
    }

    /// Whether any allocation is pinned.
    pub(crate) fn has_pins(&self) -> bool {
        !self.pins.is_empty()
    }

    /// Makes sure that so many more allocations can be pinned.
    pub(crate) fn ensure_pins(&mut self, more: usize) -> Result<(), Error> {
        room_in_table(&mut self.pins, more)
    }

    /// Pins the allocation that starts at a granule once more. Room must have been ensured, and the
    /// number must not be the largest but [`HELD`].
    pub(crate) fn pin(&mut self, start: u64) {
        let pins = self.pins.entry(start).or_default();
        *pins += 1;
        if *pins == 1 {
            self.note_loose(start);
        }
    }

    /// Unpins a pinned allocation once; how often it is pinned now.
    pub(crate) fn unpin(&mut self, start: u64) -> u32 {
        let pins = self.pins.get_mut(&start).expect("it is pinned");
        *pins -= 1;
        let left = *pins;
        if left == 0 {
            self.pins.remove(&start);
            self.note_loose(start);
        }
        left
    }

    // ---- the recount -----------------------------------------------------------------------

    /// Bytes of memory that descriptors are kept in.
    pub(crate) fn bytes(&self) -> usize {
        let chunks = self.chunks.iter().map(|chunk| size_of::<Chunk>() + chunk.memory.bytes());
        chunks.sum::<usize>()
            + self.kinds.len() * size_of::<KindOf>()
            + self.table.len() * 4
            + self.owners.len() * 8
            + self.pins.len() * 16
            + self.loose.bytes()
            + self.moving.len() * 24
            + self.marks.len() * 48
            + self.odd_aligns.len() * 24
            + self.looks.len() * 16
    }

    /// Recounts what is kept here; `is_start` says whether an allocation starts at a granule.
    pub(crate) fn check(&self, is_start: impl Fn(u64) -> bool) -> Result<(), Error> {
        let corrupt = |what: Arguments<'_>| Err(Error::corrupt(what));
        let mut used = repeat(0u64, self.chunks.len())?;
        let mut count = 0;
        for id in self.ids(None) {
            let start = self.start(id);
            if !is_start(start) {
                return corrupt(format_args!("descriptor {id}: nothing starts at granule {start}"));
            }
            if self.id(start) != Some(id) {
                return corrupt(format_args!("descriptor {id} of granule {start} is not found"));
            }
            count += 1;
        }
        if count != self.live {
            return corrupt(format_args!("{} descriptors, recounted {count}", self.live));
        }
        self.check_moving()?;
        let mut owners = repeat(0, self.owners.len())?;
        for id in self.ids(None).chain(self.released_ids()) {
            used[(id / SLOTS) as usize] |= 1 << (id % SLOTS);
            let owner = self.label(id).owner;
            owners[owner as usize] += (owner != 0) as u64;
        }
        if owners != self.owners {
            return corrupt(format_args!(
                "owners' descriptors {:?}, recounted {owners:?}",
                self.owners
            ));
        }
        for (&id, looks) in &self.looks {
            let bit = 1 << (id % SLOTS);
            if looks.count == 0 || (used[(id / SLOTS) as usize] & bit == 0) != looks.freed {
                return corrupt(format_args!("descriptor {id} is looked at, and freed or not"));
            }
            used[(id / SLOTS) as usize] |= bit;
        }
        let mut vacant = 0;
        for (number, chunk) in self.chunks.iter().enumerate() {
            if chunk.memory.bytes() == 0 {
                if used[number] != 0 || chunk.free != 0 {
                    return corrupt(format_args!("chunk {number} is vacant, and used"));
                }
                vacant += 1;
                continue;
            }
            let open = self.kinds[chunk.kind.0 as usize].open.contains(&(number as u32));
            if chunk.free != !used[number] || open != (chunk.free != 0) {
                return corrupt(format_args!("chunk {number} has slots {:#x} free", chunk.free));
            }
        }
        let unknown = self.kinds.iter().filter(|of| !of.known).count();
        if (unknown, vacant) != (self.vacant_kinds.len(), self.vacant_chunks.len()) {
            return corrupt(format_args!(
                "{} kinds and {} chunks are vacant, recounted {unknown} and {vacant}",
                self.vacant_kinds.len(),
                self.vacant_chunks.len()
            ));
        }
        for (&start, &pins) in &self.pins {
            if pins == 0 || !is_start(start) {
                return corrupt(format_args!(
                    "{pins} pins at granule {start}, where nothing starts"
                ));
            }
        }
        Ok(())
    }
}
