//! Relocation: room for a run, or for blocks, by moving what is in the way.
//!
//! # How a move is made
//!
//! A [`Relocation`] says which windows are to be emptied and where each allocation in them is to go.
//! From when it is begun until it is finished or given up, the new homes and what is free in the windows
//! are *held*: nobody else gets them, and they are not freed. The allocations themselves stay what they
//! are, and usable: they may be freed, pinned or cut meanwhile, by whoever asks their owners or by
//! anybody else. Only when a move is made ([`Space::make_move`]) it shows whether it still can be:
//! from one moment to the next the allocation is at its new address, with its descriptor, and what it
//! left in the window is held as well. So everything between two such moments is a whole state, and
//! whoever shares a space behind a lock need not keep it locked while owners are asked.
//!
//! # Which window
//!
//! The cheapest of all ([`window`](crate::window)); one of the next cheapest only if there is not room
//! for what would have to leave it. Some thousands of these are tried at most: with that many the space
//! is so full, or so cut up, that more would take long and find nothing as a rule.

use std::collections::HashMap;
use std::ops::Range;

use super::compact::Blocks;
use super::draft::{Draft, between};
use super::{Described, Space, Window};
use crate::descriptor::{Descriptors, Label, Mark, Moving};
use crate::error::Error;
use crate::fallible::{Grow, collect, repeat, room_in_table, text};
use crate::loose::Loose;
use crate::pack;
use crate::probe::Probe;
use crate::run::{Fit, Wanted};
use crate::tree::State;
use crate::window::{Candidate, Terms};

/// An allocation and where it goes, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its address before.
    pub old: u64,
    /// Its address after.
    pub new: u64,
    /// Its size in address units.
    pub size: u128,
    /// What it is, and whose.
    pub label: Label,
}

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// The allocation is at its new address.
    Moved,
    /// It was freed before it was moved.
    Gone,
    /// It was pinned or cut, or memory of its new home failed: it stays.
    Stays,
}

/// Moves under way; see [`Space::begin_run`]. To be finished or given up: until then what it holds is
/// nobody's.
#[must_use]
#[derive(Debug)]
pub struct Relocation {
    /// Start and size of what is emptied, ascending.
    windows: Vec<(u64, u128)>,
    /// The blocks that are wanted, of a compaction.
    pub(super) wanted: Option<Blocks>,
    moves: Vec<Move>,
    /// What became of each of the moves, once that is settled: made, or of something gone, or given up.
    done: Vec<Option<Made>>,
    /// Starts and sizes of what is held in the windows.
    holds: Vec<(u64, u128)>,
    /// The call it is a part of.
    call: Call,
    /// Whether it was finished or given up.
    over: bool,
}

/// A call that may take several relocations, since some are refused: what was refused in it, and what it
/// has moved, is known as long as it is not forgotten, wherever that is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call(u64);

impl Call {
    /// One that knows nothing.
    pub(super) const NONE: Call = Call(0);
}

impl Relocation {
    /// What is emptied: start and size of each window.
    pub fn windows(&self) -> &[(u64, u128)] {
        &self.windows
    }

    /// How many free blocks there are when all is done, of those that are wanted; 1 for a run.
    pub fn blocks(&self) -> usize {
        self.wanted.as_ref().map_or(0, |wanted| wanted.free) + self.windows.len()
    }

    /// The moves it takes.
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// The same, as a list of their own.
    pub fn into_moves(self) -> Vec<Move> {
        self.moves
    }

    /// Start and size of what is held in the windows.
    pub(super) fn holds(&self) -> &[(u64, u128)] {
        &self.holds
    }

    /// Makes it no part of a call: what is moved is not remembered.
    pub fn leave_call(&mut self) {
        self.call = Call::NONE;
    }

    /// Address units that are moved.
    pub fn size(&self) -> u128 {
        self.moves.iter().map(|it| it.size).sum()
    }

    /// Which windows a range of addresses may touch: they ascend, and so do their ends.
    fn windows_of(&self, start: u64, size: u128) -> Range<usize> {
        let end = start as u128 + size;
        let ends_before = |&(at, size): &(u64, u128)| at as u128 + size <= start as u128;
        let first = self.windows.partition_point(ends_before);
        first..self.windows.partition_point(|window| (window.0 as u128) < end).max(first)
    }
}

/// Why an allocation is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It has no movable kind.
    Unmovable,
    /// It has one, and is pinned.
    Pinned,
    /// It is being moved, or held for something that is.
    Moving,
}

/// What keeps a run from being had, as [`Space::obstacles`] adds it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What it is, and whose.
    pub label: Label,
    /// Why it is.
    pub why: Why,
    /// How many allocations.
    pub count: u64,
    /// What they come to, in address units.
    pub size: u128,
}

/// How many windows are tried one after the other before the next, larger number is looked for; and how
/// many in all, so that a call ends.
const TRIED_FIRST: usize = 1;
const TRIED_FACTOR: usize = 16;
const TRIED_MAX: usize = 1 << 12;

impl<P: Probe> Space<P> {
    /// A run as [`Space::alloc_run`] gives it; if none is free, one is made by moving allocations of
    /// movable kinds that are not pinned, with the fewest address units moved. `moved` hears of each.
    ///
    /// All or nothing. Nobody is asked: for owners who may refuse see [`Space::begin_run`].
    pub fn alloc_run_moving(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
        fit: Fit,
        mut moved: impl FnMut(&Move),
    ) -> Result<u64, Error> {
        match self.alloc_run(size, align, within, fit) {
            Err(Error::OutOfSpace { .. }) => {}
            done => return done,
        }
        let mut relocation = self.begin_run(size, align, within, Call::NONE)?;
        self.make_moves(&mut relocation, |_| ())?;
        let start = self.finish_run(&mut relocation);
        relocation.moves.iter().for_each(&mut moved);
        Ok(start.expect("no other call came between"))
    }

    /// Makes all moves of a relocation that has just been begun, or none. Calls `moved` with each move when it
    /// is made; and where there is no memory for all, with the opposite of each when it is taken back.
    pub fn make_moves(
        &mut self,
        relocation: &mut Relocation,
        mut moved: impl FnMut(&Move),
    ) -> Result<(), Error> {
        for number in 0..relocation.moves.len() {
            match self.make_move(relocation, number) {
                Ok(Made::Moved) => moved(&relocation.moves[number]),
                Ok(_) => {}
                Err(error) => {
                    self.take_back(relocation, moved);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Where a run could be had and what would have to be moved, without doing any of it.
    pub fn plan_run(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
        fit: Fit,
    ) -> Result<(u64, Vec<Move>), Error> {
        match self.find_run(size, align, within, fit) {
            Err(Error::OutOfSpace { .. }) => {}
            found => return found.map(|start| (start, Vec::new())),
        }
        let mut relocation = self.begin_run(size, align, within, Call::NONE)?;
        self.give_up(&mut relocation);
        Ok((relocation.windows[0].0, relocation.moves))
    }

    /// The window for a run that the least would have to be moved out of, and how much that is; `None`
    /// where something that cannot be moved is in all of them. Whether there is room for it elsewhere is
    /// not asked here.
    ///
    /// Takes some five nanoseconds for each 64 granules in parts of the space where allocations are small.
    pub fn cheapest_window(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
    ) -> Result<Option<(u64, u128)>, Error> {
        let (Some(wanted), Some(window)) = self.run_wanted(size, align, within)? else {
            return Ok(None);
        };
        self.tree.settle();
        let available = self.available() >> self.shift;
        let terms = Terms { available, after: None, every: false, limit: u64::MAX, count: 1 };
        let found = self.cheapest(&wanted, window, Call::NONE, terms)?;
        Ok(found.first().map(|it| (self.address(it.start), self.units(it.cost as u128))))
    }

    /// Begins to make room for a run of which none is free: chooses the window, and holds it and the new
    /// homes. What was refused in the same call is not moved.
    ///
    /// Then make the moves, and [`finish_run`](Space::finish_run) or [`give_up`](Space::give_up).
    pub fn begin_run(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
        call: Call,
    ) -> Result<Relocation, Error> {
        let (wanted, window) = self.run_wanted(size, align, within)?;
        let found = match (wanted, window) {
            (Some(wanted), Some(window)) => self.draft_run(&wanted, window, call)?,
            _ => None,
        };
        found.ok_or_else(|| self.no_run(size, align))
    }

    fn draft_run(
        &mut self,
        wanted: &Wanted,
        window: (u64, u64),
        call: Call,
    ) -> Result<Option<Relocation>, Error> {
        self.tree.settle();
        let mut steps = pack::STEPS;
        let (mut after, mut count) = (None, TRIED_FIRST);
        loop {
            // The first is the first of all; that a start in between may do matters from then on.
            let every = after.is_some();
            let available = self.available() >> self.shift;
            let terms = Terms { available, after, every, limit: u64::MAX, count };
            let candidates = self.cheapest(wanted, window, call, terms)?;
            for candidate in &candidates {
                let window = (candidate.start, candidate.start + (wanted.length - 1));
                if let Some(relocation) = self.draft(window, call, &mut steps)? {
                    return Ok(Some(relocation));
                }
            }
            if candidates.len() < count || count == TRIED_MAX {
                return Ok(None);
            }
            after = candidates.last().copied();
            count = (count * TRIED_FACTOR).min(TRIED_MAX);
        }
    }

    pub(super) fn cheapest(
        &self,
        wanted: &Wanted,
        window: (u64, u64),
        call: Call,
        terms: Terms,
    ) -> Result<Vec<Candidate>, Error> {
        let nothing = Loose::default();
        let loose = self.descriptors.as_ref().map_or(&nothing, |descriptors| &descriptors.loose);
        let mut barriers = self.retired.copy()?;
        let refused = self.descriptors.iter().flat_map(|them| them.refused(call.0));
        for found in refused.filter_map(|granule| self.lookup(granule << self.shift)) {
            barriers.room(1)?;
            barriers.insert(self.granules(found.start, found.size));
        }
        let stretches = between(window, self.origin, barriers.iter());
        self.tree.cheapest(wanted, stretches, loose, terms)
    }

    /// Holds a window, and homes for what is in it; `None` where there is not room for all of it.
    fn draft(
        &mut self,
        window: (u64, u64),
        call: Call,
        steps: &mut u32,
    ) -> Result<Option<Relocation>, Error> {
        let (mut holds, mut drafts) = (Vec::new(), Vec::new());
        let victims = self.draft_holds(window, &mut holds);
        let drafted = victims.and_then(|victims| self.draft_homes(&victims, &mut drafts, steps));
        let done = match drafted {
            Ok(true) => self.begin_moves(&[window], &holds, &drafts, call).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        if !matches!(done, Ok(Some(_))) {
            self.undo_draft(drafts.iter().map(Draft::home).chain(holds));
        }
        done
    }

    /// Makes a relocation of what was drafted.
    pub(super) fn begin_moves(
        &mut self,
        windows: &[(u64, u64)],
        holds: &[(u64, u64)],
        drafts: &[Draft],
        call: Call,
    ) -> Result<Relocation, Error> {
        let mut relocation = Relocation {
            windows: collect(windows.iter().map(|&window| self.stretch(window)))?,
            wanted: None,
            moves: Vec::new(),
            done: repeat(None, drafts.len())?,
            holds: collect(holds.iter().map(|&hold| self.stretch(hold)))?,
            call,
            over: false,
        };
        relocation.moves.room(drafts.len())?;
        // What leaves a window leaves one stretch of it free, which is held from then on. All memory for
        // that, and for taking it back, is had now; only nodes of the tree are not.
        let left = drafts.len() + windows.len();
        relocation.holds.room(left)?;
        let (origin, shift) = (self.origin, self.shift);
        let descriptors = self.descriptors_mut()?;
        let olds = drafts.iter().map(|draft| origin + draft.old.0);
        descriptors.ensure_moves(olds, drafts.len() + holds.len() + left)?;
        for draft in drafts {
            let (from, to) = (origin + draft.old.0, origin + draft.new);
            if let Err(error) = descriptors.begin_move(from, to) {
                for done in &relocation.moves {
                    descriptors.give_up_move(done.old >> shift, done.new >> shift);
                }
                return Err(error);
            }
            let label = descriptors.label_at(from);
            let size = ((draft.old.1 - draft.old.0) as u128 + 1) << shift;
            relocation.moves.push(Move { old: from << shift, new: to << shift, size, label });
        }
        let homes = relocation.moves.iter().map(|it| it.new);
        for start in homes.chain(relocation.holds.iter().map(|hold| hold.0)) {
            descriptors.hold(start >> shift);
        }
        Ok(relocation)
    }

    /// Start and size of a stretch of positions.
    pub(super) fn stretch(&self, (first, last): (u64, u64)) -> (u64, u128) {
        (self.address(first), self.units((last - first) as u128 + 1))
    }

    /// First and last position of a range of addresses.
    pub(super) fn stretch_at(&self, start: u64, size: u128) -> (u64, u64) {
        self.positions(&self.granules(start, size))
    }

    /// Makes one move of a relocation, by its number, if it still can be made.
    ///
    /// Where it cannot, its new home goes on being held until the relocation is finished or given up, so
    /// that an owner who has agreed already can be told.
    pub fn make_move(&mut self, relocation: &mut Relocation, number: usize) -> Result<Made, Error> {
        let Move { old, new, size, .. } = relocation.moves[number];
        if let Some(done) = relocation.done[number] {
            return Ok(done);
        }
        let (from, to) = (self.granule_at(old), self.granule_at(new));
        let failed = self.is_retiring(new, size);
        let left = relocation.windows_of(old, size);
        match self.descriptors_mut()?.moving(from, to) {
            Moving::Ready if !failed => {}
            Moving::Gone => {
                relocation.done[number] = Some(Made::Gone);
                self.release_home(relocation.moves[number]);
                // Somebody may have taken some of it already: that shows when it is finished.
                self.hold_left(left, (old, size), relocation);
                return Ok(Made::Gone);
            }
            _ => return Ok(Made::Stays),
        }
        self.tree.ensure_detail(2 * left.len())?;
        let marked = relocation.call != Call::NONE;
        let descriptors = self.descriptors_mut()?;
        descriptors.ensure_pins(left.len())?;
        descriptors.ensure_made(from, marked)?;
        if marked {
            descriptors.mark(from, relocation.call.0, Mark::Moved);
        }
        let (first, last) = self.stretch_at(old, size);
        self.tree.vacate(first, last);
        let descriptors = self.descriptors_mut()?;
        descriptors.let_go(to);
        descriptors.make_move(from, to);
        relocation.done[number] = Some(Made::Moved);
        if !self.retired.is_empty() {
            self.withdraw(first, last);
        }
        self.hold_left(left, (old, size), relocation);
        Ok(Made::Moved)
    }

    /// Holds what is free of the parts of some windows that an allocation has left. What cannot be held,
    /// for want of memory, is missing when the relocation is finished.
    fn hold_left(&mut self, windows: Range<usize>, left: (u64, u128), relocation: &mut Relocation) {
        self.tree.settle();
        for window in windows {
            let Some((start, size)) = common(relocation.windows[window], left) else { continue };
            let (first, last) = self.stretch_at(start, size);
            let mut from = Some(first);
            while let Some(free) = from.and_then(|from| self.next_part((from, last), State::Free))
                && self.hold(free, relocation).is_ok()
            {
                from = free.1.checked_add(1);
            }
        }
    }

    /// Holds a free stretch for a relocation.
    fn hold(&mut self, free: (u64, u64), relocation: &mut Relocation) -> Result<(), Error> {
        relocation.holds.room(1)?;
        self.descriptors_mut()?.ensure_pins(1)?;
        self.tree.ensure_detail(2)?;
        self.tree.occupy(free.0, free.1);
        let granule = self.origin + free.0;
        self.descriptors_mut()?.hold(granule);
        relocation.holds.push(self.stretch(free));
        Ok(())
    }

    /// Frees the home of a move that is not made, and what was to move is loose again.
    fn release_home(&mut self, it: Move) {
        let (from, to) = (self.granule_at(it.old), self.granule_at(it.new));
        self.known_descriptors().give_up_move(from, to);
        self.release_hold(it.new, it.size);
    }

    fn release_hold(&mut self, start: u64, size: u128) {
        let granule = self.granule_at(start);
        self.known_descriptors().let_go(granule);
        let (first, last) = self.stretch_at(start, size);
        self.tree.vacate(first, last);
        if !self.retired.is_empty() {
            self.withdraw(first, last);
        }
    }

    /// The descriptors of a space that has some, as one with moves under way has.
    fn known_descriptors(&mut self) -> &mut Descriptors {
        self.descriptors.as_mut().expect("moves are of allocations with descriptors")
    }

    /// Ends a relocation: what it holds is free, and moves that were not made are not. Moves that were
    /// made stay made.
    pub fn give_up(&mut self, relocation: &mut Relocation) {
        if std::mem::replace(&mut relocation.over, true) {
            return;
        }
        for number in 0..relocation.moves.len() {
            let it = relocation.moves[number];
            match relocation.done[number] {
                Some(Made::Moved) => {
                    let from = self.granule_at(it.old);
                    self.known_descriptors().give_place(from);
                }
                Some(_) => {}
                None => {
                    relocation.done[number] = Some(Made::Stays);
                    self.release_home(it);
                }
            }
        }
        for (start, size) in std::mem::take(&mut relocation.holds) {
            self.release_hold(start, size);
        }
    }

    /// Undoes all moves that were made of a relocation, the last first, and gives up. `moved` hears of
    /// each. For use before anything else happens to the space; needs no memory.
    fn take_back(&mut self, relocation: &mut Relocation, mut moved: impl FnMut(&Move)) {
        for (start, size) in std::mem::take(&mut relocation.holds) {
            self.release_hold(start, size);
        }
        for number in (0..relocation.moves.len()).rev() {
            if relocation.done[number] != Some(Made::Moved) {
                continue;
            }
            let Move { old, new, size, label } = relocation.moves[number];
            let (first, last) = self.stretch_at(new, size);
            self.tree.vacate(first, last);
            let (first, last) = self.stretch_at(old, size);
            if !self.retired.is_empty() {
                self.put_back(first, last);
            }
            // There was metadata for this state before the move, and all of it is still there.
            self.tree.occupy(first, last);
            let (from, to) = (self.granule_at(old), self.granule_at(new));
            self.known_descriptors().take_back(from, to);
            relocation.done[number] = Some(Made::Stays);
            moved(&Move { old: new, new: old, size, label });
        }
        self.give_up(relocation);
    }

    /// Ends a relocation for a run: the run, if all of its window was emptied and is held; otherwise it
    /// is given up.
    pub fn finish_run(&mut self, relocation: &mut Relocation) -> Option<u64> {
        let &[(start, size)] = &relocation.windows[..] else { return None };
        let ready = self.emptied(relocation) == 1;
        self.give_up(relocation);
        if !ready {
            return None;
        }
        let (first, last) = self.stretch_at(start, size);
        // One allocation needs no more metadata than the holds it takes the place of.
        self.tree.occupy(first, last);
        Some(start)
    }

    /// How many windows of a relocation are held as a whole, and have nothing retired in them.
    pub(super) fn emptied(&self, relocation: &Relocation) -> usize {
        let emptied = relocation.windows.iter().filter(|&&(start, size)| {
            let holds = relocation.holds.iter();
            let held = holds.filter_map(|&hold| common((start, size), hold));
            held.map(|part| part.1).sum::<u128>() == size && !self.is_retiring(start, size)
        });
        emptied.count()
    }

    /// A new call. To be forgotten when it is over.
    pub fn begin_call(&mut self) -> Call {
        self.calls += 1;
        Call(self.calls)
    }

    /// Nothing more is asked of a call.
    pub fn forget_call(&mut self, call: Call) {
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.forget_marks(call.0);
        }
    }

    /// One of the moves of a relocation is not wanted: what it is of is not moved in its call.
    pub fn refuse(&mut self, relocation: &Relocation, number: usize) -> Result<(), Error> {
        let Move { old, new, .. } = relocation.moves[number];
        let (from, to) = (self.granule_at(old), self.granule_at(new));
        let descriptors = self.descriptors_mut()?;
        if relocation.done[number].is_none() && descriptors.moving(from, to) != Moving::Gone {
            descriptors.ensure_mark(from)?;
            descriptors.mark(from, relocation.call.0, Mark::Refused);
        }
        Ok(())
    }

    /// Begins to move back what a call has moved from `old` to `new`, if it still is there, and the old
    /// place is free.
    pub fn begin_back(&mut self, call: Call, old: u64, new: u64) -> Result<Relocation, Error> {
        let granule = self.granule_at(new);
        let marked = self.descriptors.as_ref().and_then(|them| them.marked(granule, call.0));
        if marked != Some(Mark::Moved) {
            return Err(Error::argument(
                "new",
                format_args!("{new:#x}"),
                "where the call has moved it",
            ));
        }
        self.begin_move(new, old)
    }

    /// Whether what a move is of was freed; then the move is over.
    pub fn is_gone(&mut self, relocation: &mut Relocation, number: usize) -> bool {
        let Move { old, new, .. } = relocation.moves[number];
        let (from, to) = (self.granule_at(old), self.granule_at(new));
        let gone = |them: &Descriptors| them.moving(from, to) == Moving::Gone;
        relocation.done[number].is_none()
            && self.descriptors.as_ref().is_some_and(gone)
            && self.make_move(relocation, number).is_ok()
    }

    /// Begins a single move, of the allocation that starts at `from` to `to`, where it must be free.
    ///
    /// Then make it and give up: what was moved stays so.
    pub fn begin_move(&mut self, from: u64, to: u64) -> Result<Relocation, Error> {
        let Some(found) = self.lookup(from).filter(|found| found.start == from) else {
            return Err(self.not_start(from));
        };
        self.must_not_be_pinned(from)?;
        let granule = self.granule_at(from);
        let descriptors = self.descriptors.as_ref();
        if !descriptors.is_some_and(|descriptors| descriptors.loose.get(granule)) {
            let expected = "that of an allocation that may be moved, and is not being moved";
            return Err(Error::argument("from", format_args!("{from:#x}"), expected));
        }
        let align = self.descriptors.as_ref().and_then(|them| them.align(granule)).unwrap_or(1);
        if !(to as u128 >> self.shift).is_multiple_of(align) {
            let expected = format_args!("a multiple of {}", self.units(align));
            return Err(Error::argument("to", format_args!("{to:#x}"), expected));
        }
        self.alloc_at(to, found.size)?;
        let old = self.stretch_at(from, found.size);
        let draft = Draft { old, new: self.stretch_at(to, found.size).0 };
        let begun = self.begin_moves(&[], &[], &[draft], Call::NONE);
        if begun.is_err() {
            self.undo_draft([draft.home()].into_iter());
        }
        begun
    }

    /// The error for a run that cannot be had, not even by moving; [`obstacles`](Space::obstacles) says
    /// what is in the way.
    pub fn no_run(&mut self, size: u128, align: u128) -> Error {
        let align = self.align_in_granules(align) << self.shift;
        let plain = align == 1 << self.shift;
        let detail = if plain { String::new() } else { text(format_args!("aligned to {align}")) };
        self.no_room(size, detail)
    }

    /// Whether a move of a relocation, by its number, could be made now.
    pub fn can_move(&self, relocation: &Relocation, number: usize) -> bool {
        let Move { old, new, size, .. } = relocation.moves[number];
        let (from, to) = (self.granule_at(old), self.granule_at(new));
        let ready = |them: &Descriptors| them.moving(from, to) == Moving::Ready;
        let stands = relocation.done[number].is_none() && !self.is_retiring(new, size);
        stands && self.descriptors.as_ref().is_some_and(ready)
    }

    /// Allocations between two addresses that are in the way of a run: not movable, or pinned. By label,
    /// largest first. Takes time in proportion to the allocations.
    pub fn obstacles(&self, within: Window) -> Result<Vec<Obstacle>, Error> {
        let Some((first, last)) = self.window(within)? else { return Ok(Vec::new()) };
        let mut sums = HashMap::<(Label, Why), (u64, u128)>::new();
        let (low, high) = (self.address(first), self.address(last));
        let mut found = self.lookup(low).or_else(|| self.next_allocation(low));
        while let Some(it) = found.filter(|it| it.start <= high) {
            let described = self.described(it.start, it.size);
            if let Some(why) = self.why_in_the_way(&described) {
                room_in_table(&mut sums, 1)?;
                let sum = sums.entry((described.label, why)).or_default();
                sum.0 += 1;
                sum.1 += it.size;
            }
            let next = u64::try_from(it.start as u128 + it.size).ok();
            found = next.and_then(|next| self.next_allocation(next));
        }
        let mut obstacles =
            collect(sums.into_iter().map(|((label, why), (count, size))| Obstacle {
                label,
                why,
                count,
                size,
            }))?;
        obstacles.sort_unstable_by_key(|it| {
            let kind = it.label.kind.map_or(0, |kind| kind.index());
            (std::cmp::Reverse((it.size, it.count)), kind, it.label.owner, it.why)
        });
        Ok(obstacles)
    }

    fn why_in_the_way(&self, it: &Described) -> Option<Why> {
        let granule = self.granule_at(it.start);
        let descriptors = self.descriptors.as_ref();
        if descriptors.is_some_and(|them| them.loose.get(granule)) {
            return None;
        }
        Some(match descriptors {
            _ if it.held => Why::Moving,
            Some(them) if !them.is_movable_at(granule) => Why::Unmovable,
            None => Why::Unmovable,
            _ if it.pins != 0 => Why::Pinned,
            _ => Why::Moving,
        })
    }
}

/// What two ranges of addresses have in common.
fn common(one: (u64, u128), other: (u64, u128)) -> Option<(u64, u128)> {
    let start = one.0.max(other.0);
    let end = (one.0 as u128 + one.1).min(other.0 as u128 + other.1);
    (end > start as u128).then(|| (start, end - start as u128))
}
