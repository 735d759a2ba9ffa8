//! What moving adds to descriptors.
//!
//! A descriptor follows its allocation to another address: its slot stays, so whoever looks at the
//! record goes on looking at it, and only the start it is found by changes. From when a move is planned
//! until it is made or given up the allocation is in `moving`; to free it takes it out, so that what is
//! there in the end is known to be the allocation that was there in the beginning. What is kept free
//! meanwhile, as a new home or in the window that is being emptied, is *held*: allocated, without a
//! descriptor, and pinned [`HELD`] times, so that nobody frees it.
//!
//! To take a move back must not need memory, as it is done when there is none. So what a descriptor has
//! at its old place is kept until all moves of the relocation are over.

use std::fmt::Arguments;

use super::{Descriptors, HELD, ODD, SLOTS};
use crate::error::Error;
use crate::fallible::{Grow, room_in_table};

/// What a call that moves things knows of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It has moved it there.
    Moved,
    /// It is not to be moved.
    Refused,
}

/// How a move that is under way stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    /// The allocation is as it was, and not pinned.
    Ready,
    /// It has been pinned, or cut: it stays.
    Stays,
    /// It has been freed.
    Gone,
}

impl Descriptors {
    pub(super) fn is_movable(&self, id: u32) -> bool {
        self.chunk(id).0.movable
    }

    /// Whether the allocation that starts at a granule is of a movable kind.
    pub(crate) fn is_movable_at(&self, start: u64) -> bool {
        self.id(start).is_some_and(|id| self.is_movable(id))
    }

    /// What an allocation that is moved keeps to, in granules; `None` where it has no descriptor.
    pub(crate) fn align(&self, start: u64) -> Option<u128> {
        let (chunk, slot) = self.chunk(self.id(start)?);
        match chunk.aligns[slot] {
            ODD => self.odd_aligns.get(&start).copied(),
            exponent => Some(1 << exponent),
        }
    }

    /// Makes a power of two what the allocation that starts at a granule keeps to, if it has a
    /// descriptor.
    pub(crate) fn set_align(&mut self, start: u64, exponent: u32) {
        if let Some(id) = self.id(start) {
            let align = &mut self.chunks[(id / SLOTS) as usize].aligns[(id % SLOTS) as usize];
            if *align == ODD {
                self.odd_aligns.remove(&start);
            }
            *align = exponent as u8;
        }
    }

    /// Says of the allocation that starts at a granule whether it is loose, if it is movable.
    pub(super) fn note_loose(&mut self, start: u64) {
        if self.is_movable_at(start) {
            let loose = !self.pins.contains_key(&start) && !self.moving.contains_key(&start);
            self.loose.set(start, loose);
        }
    }

    /// Makes sure that so many more things can be held, and that moves of the allocations that start at
    /// `olds` can be under way, be made, and be taken back.
    pub(crate) fn ensure_moves(
        &mut self,
        olds: impl ExactSizeIterator<Item = u64> + Clone,
        holds: usize,
    ) -> Result<(), Error> {
        room_in_table(&mut self.moving, olds.len())?;
        self.ensure_pins(holds)?;
        if !self.odd_aligns.is_empty() {
            let odd = olds.clone().filter(|old| self.odd_aligns.contains_key(old)).count();
            room_in_table(&mut self.odd_aligns, 2 * odd)?;
        }
        if !self.marks.is_empty() {
            let marked = olds.filter(|old| self.marks.contains_key(old)).count();
            room_in_table(&mut self.marks, 2 * marked)?;
        }
        Ok(())
    }

    /// Begins a move of the loose allocation that starts at `from`; its home starts at `to`, and is
    /// held already. Room for the move must have been ensured.
    pub(crate) fn begin_move(&mut self, from: u64, to: u64) -> Result<(), Error> {
        self.loose.keep(to)?;
        self.kept_places += 1;
        self.moving.insert(from, (to, true));
        self.loose.set(from, false);
        Ok(())
    }

    /// Gives a move up; what there is of the allocation stays where it is.
    pub(crate) fn give_up_move(&mut self, from: u64, to: u64) {
        self.give_place(to);
        if self.moving(from, to) != Moving::Gone {
            self.moving.remove(&from);
            self.note_loose(from);
        }
    }

    /// Gives back the place that was kept at a granule for a move which is over.
    pub(crate) fn give_place(&mut self, granule: u64) {
        self.loose.give(granule);
        self.kept_places -= 1;
    }

    /// How a move stands.
    pub(crate) fn moving(&self, from: u64, to: u64) -> Moving {
        match self.moving.get(&from) {
            Some(&(home, true)) if home == to && self.pins(from) == 0 => Moving::Ready,
            Some(&(home, _)) if home == to => Moving::Stays,
            _ => Moving::Gone,
        }
    }

    /// The allocation that starts at a granule is not what it was: it is not moved any more.
    pub(crate) fn cut_short(&mut self, start: u64) {
        if !self.moving.is_empty()
            && let Some((_, whole)) = self.moving.get_mut(&start)
        {
            *whole = false;
        }
        if !self.marks.is_empty() {
            self.marks.remove(&start);
        }
    }

    /// Makes sure that one move can be made, and the allocation then be marked if it is to be.
    pub(crate) fn ensure_made(&mut self, from: u64, marked: bool) -> Result<(), Error> {
        if self.odd_aligns.contains_key(&from) {
            room_in_table(&mut self.odd_aligns, 1)?;
        }
        if marked {
            self.ensure_mark(from)?;
        }
        // The marks go where the allocation goes, those that are only being made included.
        if self.marks.contains_key(&from) {
            room_in_table(&mut self.marks, 1)?;
        }
        Ok(())
    }

    /// Makes a move that is ready: the descriptor is that of the allocation at `to` from now on. A place
    /// stays kept at `from`. Room must have been ensured.
    pub(crate) fn make_move(&mut self, from: u64, to: u64) {
        self.moving.remove(&from);
        self.carry(from, to);
    }

    /// Takes back a move that was just made; the place that was kept at `to` is given back. The room that
    /// was ensured for the move is enough for this as well.
    pub(crate) fn take_back(&mut self, from: u64, to: u64) {
        self.carry(to, from);
        self.give_place(to);
    }

    /// Takes the descriptor of the loose allocation at a granule to another, where a place is kept.
    fn carry(&mut self, from: u64, to: u64) {
        let at = self.find(from).expect("what is moved has a descriptor");
        let id = self.take_out(at);
        self.loose.set(from, false);
        let (chunk, slot) = self.chunk(id);
        chunk.memory.set_start(slot, to);
        self.insert(id, to);
        if let Some(align) = self.odd_aligns.remove(&from) {
            self.odd_aligns.insert(to, align);
        }
        if let Some(marks) = self.marks.remove(&from) {
            self.marks.insert(to, marks);
        }
        self.loose.set(to, true);
    }

    /// Makes sure that the allocation that starts at a granule can be marked.
    pub(crate) fn ensure_mark(&mut self, start: u64) -> Result<(), Error> {
        room_in_table(&mut self.marks, 1)?;
        self.marks.entry(start).or_default().room(1)
    }

    /// Marks the allocation that starts at a granule for a call, in place of what that had marked it as.
    /// Room must have been ensured.
    pub(crate) fn mark(&mut self, start: u64, call: u64, mark: Mark) {
        let marks = self.marks.entry(start).or_default();
        marks.retain(|&(of, _)| of != call);
        marks.push((call, mark));
    }

    /// What a call has marked the allocation that starts at a granule as.
    pub(crate) fn marked(&self, start: u64, call: u64) -> Option<Mark> {
        let marks = self.marks.get(&start)?;
        marks.iter().find(|&&(of, _)| of == call).map(|&(_, mark)| mark)
    }

    /// First granules of the allocations that a call has marked as refused.
    pub(crate) fn refused(&self, call: u64) -> impl Iterator<Item = u64> + '_ {
        let refused = move |marks: &Vec<_>| marks.contains(&(call, Mark::Refused));
        self.marks.iter().filter(move |(_, marks)| refused(marks)).map(|(&start, _)| start)
    }

    /// Takes away all marks of a call, and room that was not used.
    pub(crate) fn forget_marks(&mut self, call: u64) {
        self.marks.retain(|_, marks| {
            marks.retain(|&(of, _)| of != call);
            !marks.is_empty()
        });
    }

    /// Holds the allocation that starts at a granule. Room must have been ensured.
    pub(crate) fn hold(&mut self, start: u64) {
        self.pins.insert(start, HELD);
    }

    /// Lets go of what was held.
    pub(crate) fn let_go(&mut self, start: u64) {
        self.pins.remove(&start);
    }

    /// Recounts what is there for moving.
    pub(super) fn check_moving(&self) -> Result<(), Error> {
        let corrupt = |what: Arguments<'_>| Err(Error::corrupt(what));
        let (mut loose, mut odd) = (0, 0);
        let movable = self.ids(None).filter(|&id| self.is_movable(id)).map(|id| self.start(id));
        let mut count = 0;
        for start in movable {
            let expected = !self.pins.contains_key(&start) && !self.moving.contains_key(&start);
            if self.loose.get(start) != expected {
                return corrupt(format_args!("granule {start}: loose is not {expected}"));
            }
            let Some(align) = self.align(start) else {
                return corrupt(format_args!("granule {start}: its alignment is not known"));
            };
            loose += expected as u64;
            odd += !align.is_power_of_two() as usize;
            count += 1;
        }
        if (loose, count + self.kept_places) != self.loose.counts() || odd != self.odd_aligns.len()
        {
            return corrupt(format_args!(
                "{loose} loose of {count} movable and {} places, {odd} aligned oddly; kept {:?} and {}",
                self.kept_places,
                self.loose.counts(),
                self.odd_aligns.len()
            ));
        }
        if let Some(start) = self.marks.keys().find(|&&start| !self.is_movable_at(start)) {
            return corrupt(format_args!("granule {start} is marked, but nothing movable"));
        }
        match self.moving.keys().find(|&&start| !self.is_movable_at(start)) {
            Some(start) => corrupt(format_args!("granule {start} is moving, but nothing movable")),
            None => Ok(()),
        }
    }
}
