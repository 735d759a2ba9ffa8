//! Moves that owners are asked about.
//!
//! Where no allocation that is in the way has an owner, everything happens in one call of the core under
//! the lock. Where one has, the moves are begun under the lock and kept by the space; then the lock is
//! let go, and taken again for each step. Owners may do anything meanwhile, and other threads too: what
//! that changes shows when a move is made, and then the next best place is looked for.
//!
//! Moves that were made are kept when another place has to be found: to take them back would move the
//! same bytes again. Only when a run cannot be had at all they are taken back, the last one first.
//!
//! All of this is compiled, so that an interrupt can come in the middle of an owner's answer but not
//! between the answer and what follows from it.

use std::collections::HashMap;
use std::mem;

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

use potad::fallible::{Grow, collect, room_in_table, with_room};
use potad::{Call, Error, Fit, Made, Move, Window};

use crate::convert::describe;
use crate::descriptor::Descriptor;
use crate::errors::{self, checked, raise};
use crate::kind::Kind;
use crate::objects::{integer, list, or_none, string, tuple};
use crate::space::Space;
use crate::state::{Named, State};

static MOVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static NO_ROOM: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static REPORTED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// How often in a row others may come between before a call gives up.
const ROUNDS_MAX: u32 = 32;

/// A run that is asked for.
#[derive(Clone, Copy)]
pub struct Run {
    pub size: u128,
    pub align: u128,
    pub within: Window,
    pub fit: Fit,
}

/// Free blocks that are asked for.
#[derive(Clone, Copy)]
pub struct Blocks {
    pub size: u128,
    pub count: usize,
    pub within: Window,
    pub budget: u128,
}

/// What was moved: old and new address and size.
type Moved = (u64, u64, u128);

/// The same, and what asks its owner.
type MoveMade = (Moved, Option<Py<PyAny>>);

/// Moves under way that the space keeps: their number there, what they are, and how many free blocks
/// there are when all are made.
struct Kept {
    number: u64,
    moves: Vec<Move>,
    blocks: usize,
}

/// What a request came to: done, or moves that owners are to be asked about.
enum Begun<T> {
    Done(T),
    Asking(Kept),
}

impl State {
    fn keep(&mut self, mut relocation: potad::Relocation) -> Result<Kept, Error> {
        let moves = match collect(relocation.moves().iter().copied()) {
            Ok(moves) => moves,
            Err(error) => {
                self.space.give_up(&mut relocation);
                return Err(error);
            }
        };
        let blocks = relocation.blocks();
        Ok(Kept { number: self.keep_relocation(relocation)?, moves, blocks })
    }

    /// Allocates a run, or begins the moves that make room for it and that owners are asked about.
    fn begin_run(&mut self, run: Run, call: Call, named: &mut Named) -> Result<Begun<u64>, Error> {
        let Run { size, align, within, fit } = run;
        let alloc = |space: &mut potad::Space| space.alloc_run(size, align, within, fit);
        match self.allocate(named, Some(align), alloc) {
            Err(Error::OutOfSpace { .. }) => {}
            done => return done.map(Begun::Done),
        }
        let mut begun = self.space.begin_run(size, align, within, call)?;
        if self.has_to_ask(&begun) {
            return self.keep(begun).map(Begun::Asking);
        }
        begun.leave_call();
        let done = self.make_all_for_run(&mut begun, align, named);
        if done.is_err() {
            self.space.give_up(&mut begun);
        }
        done.map(Begun::Done)
    }

    fn make_all_for_run(
        &mut self,
        begun: &mut potad::Relocation,
        align: u128,
        named: &mut Named,
    ) -> Result<u64, Error> {
        // Before the moves, which are not taken back once all are made.
        let ready = self.make_ready(named, align)?;
        if let Err(error) = self.make_all(begun) {
            self.make_unready(ready, named);
            return Err(error);
        }
        let start = self.space.finish_run(begun).expect("no other call came between");
        self.describe(start, named, &ready, align).map(|()| start)
    }

    /// Allocates the run that moves were made for, unless others came between.
    fn finish_run(
        &mut self,
        number: u64,
        align: u128,
        named: &mut Named,
    ) -> Result<Option<u64>, Error> {
        let ready = self.make_ready(named, align)?;
        let kept = self.take_relocation(number);
        match kept.and_then(|mut kept| self.space.finish_run(&mut kept)) {
            Some(start) => self.describe(start, named, &ready, align).map(|()| Some(start)),
            None => {
                self.make_unready(ready, named);
                Ok(None)
            }
        }
    }

    /// Makes free blocks, or begins the moves for that if owners are asked about them: how many. What was
    /// moved is added to `made`.
    fn begin_blocks(
        &mut self,
        blocks: Blocks,
        call: Call,
        made: &mut Vec<MoveMade>,
    ) -> Result<Begun<usize>, Error> {
        let Blocks { size, count, within, budget } = blocks;
        let mut begun = self.space.begin_compaction(size, count, within, budget, call)?;
        if self.has_to_ask(&begun) {
            return self.keep(begun).map(Begun::Asking);
        }
        begun.leave_call();
        // Before the moves, which are not taken back once all are made.
        if let Err(error) = made.room(begun.moves().len()) {
            self.space.give_up(&mut begun);
            return Err(error);
        }
        self.make_all(&mut begun)?;
        made.extend(begun.moves().iter().map(|it| (moved_of(it), None)));
        Ok(Begun::Done(self.space.finish_compaction(&mut begun)))
    }

    fn give_up_kept(&mut self, number: u64) {
        if let Some(mut kept) = self.take_relocation(number) {
            self.space.give_up(&mut kept);
        }
    }
}

/// How an owner is asked.
enum Asked {
    /// It has no say, or is not there.
    Content,
    /// It cannot be asked, and so has not agreed.
    Mute,
    By(Py<PyAny>),
}

/// What was refused: the kind, the owner and the size.
type Refused = (Option<Py<Kind>>, Option<Py<PyAny>>, u128);

/// One call that moves things, and what it knows.
struct Mover<'a, 'py> {
    space: &'a Bound<'py, Space>,
    call: Call,
    /// The moves made, in order, and what asks the owner of each.
    made: Vec<MoveMade>,
    refused: Vec<Refused>,
    /// Owners by where they are, which they stay as long as they are here.
    owners: HashMap<usize, (Py<PyAny>, Asked)>,
    /// Rounds since a refusal that counted.
    rounds: u32,
    /// How many refusals more count: at first as many as there are allocations. Owners could go on for ever
    /// with new ones.
    refusals_left: u64,
}

impl<'a, 'py> Mover<'a, 'py> {
    fn new(space: &'a Bound<'py, Space>) -> PyResult<Self> {
        let begin = |state: &mut State| Ok((state.begin_call(), state.len()));
        let (call, refusals_left) = space.get().shared.brief(space.py(), begin)?;
        let (made, refused, owners) = (Vec::new(), Vec::new(), HashMap::new());
        Ok(Mover { space, call, made, refused, owners, rounds: 0, refusals_left })
    }

    fn py(&self) -> Python<'py> {
        self.space.py()
    }

    fn long<T: Send>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        self.space.get().shared.long(self.py(), act)
    }

    fn brief<T: Send>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        self.space.get().shared.brief(self.py(), act)
    }

    fn room<T>(&self, count: usize) -> PyResult<Vec<T>> {
        checked(self.py(), with_room(count))
    }

    /// Has room to remember so many moves more.
    fn reserve_made(&mut self, more: usize) -> PyResult<()> {
        checked(self.py(), self.made.room(more))
    }

    /// Makes the moves that are under way, until one is refused: first those whose owners are asked.
    fn empty(&mut self, kept: &Kept) -> PyResult<()> {
        self.rounds += 1;
        let py = self.py();
        // Outside of what happens under the lock, where no reference may be dropped.
        let mut owners: Vec<(usize, Option<Py<PyAny>>)> = self.room(kept.moves.len())?;
        let mut unasked = self.room(kept.moves.len())?;
        self.space.get().shared.attached(py, |state| {
            let all = kept.moves.iter().enumerate();
            // What cannot be moved now is not looked at: its owner's number may be another's.
            owners.extend(
                all.filter(|&(at, _)| state.can_move(kept.number, at))
                    .map(|(at, it)| (at, state.objects(py, it.label).1)),
            );
            Ok(())
        })?;
        for (at, owner) in owners {
            let asked = match owner {
                Some(owner) => self.asked(owner)?,
                None => Asked::Content,
            };
            let agreed = match asked {
                Asked::Content => {
                    unasked.push(at);
                    true
                }
                Asked::Mute => {
                    self.refuse(kept, at, None)?;
                    false
                }
                Asked::By(handler) => self.ask(kept, at, handler)?,
            };
            if !agreed {
                if let Some(left) = self.refusals_left.checked_sub(1) {
                    (self.rounds, self.refusals_left) = (0, left);
                }
                return Ok(());
            }
        }
        let number = kept.number;
        self.reserve_made(unasked.len())?;
        self.long(|state| {
            // One that is not made, for whatever reason, shows when it is finished.
            unasked.retain(|&at| matches!(state.make_kept(number, at), Ok(Made::Moved)));
            Ok(())
        })?;
        let moves = unasked.into_iter().map(|at| (moved_of(&kept.moves[at]), None));
        self.made.extend(moves);
        Ok(())
    }

    /// How an owner is asked.
    fn asked(&mut self, owner: Py<PyAny>) -> PyResult<Asked> {
        let py = self.py();
        let pointer = owner.as_ptr() as usize;
        if let Some((_, asked)) = self.owners.get(&pointer) {
            return Ok(match asked {
                Asked::Content => Asked::Content,
                Asked::Mute => Asked::Mute,
                Asked::By(handler) => Asked::By(handler.clone_ref(py)),
            });
        }
        let found = match owner.bind(py).getattr_opt(intern!(py, "on_relocate")) {
            Ok(Some(handler)) if !handler.is_none() => Asked::By(handler.unbind()),
            Ok(_) => Asked::Content,
            Err(error) => {
                report(py, error, owner.bind(py))?;
                Asked::Mute
            }
        };
        checked(py, room_in_table(&mut self.owners, 1))?;
        self.owners.insert(pointer, (owner.clone_ref(py), found));
        self.asked(owner)
    }

    /// Asks the owner of what is to move, and makes the move; false if it is refused.
    fn ask(&mut self, kept: &Kept, at: usize, handler: Py<PyAny>) -> PyResult<bool> {
        let py = self.py();
        let (number, it) = (kept.number, kept.moves[at]);
        let shared = &self.space.get().shared;
        let found = shared.attached(py, |state| {
            if state.can_move(number, at) {
                return Descriptor::new(py, shared, state, it.old, it.size).map(Ok);
            }
            // It was freed, pinned or cut since.
            Ok(Err(state.is_gone(number, at)))
        })?;
        let descriptor = match found {
            Ok(descriptor) => Py::new(py, descriptor)?,
            Err(true) => return Ok(true),
            Err(false) => {
                self.refuse(kept, at, None)?;
                return Ok(false);
            }
        };
        self.reserve_made(1)?;
        if !accept(py, &handler, it.old, it.new, &descriptor)? {
            self.refuse(kept, at, Some(&descriptor))?;
            return Ok(false);
        }
        // Nothing comes between the answer and the move but other threads.
        match self.brief(move |state| state.make_kept(number, at)) {
            Ok(Made::Moved) => {
                self.made.push((moved_of(&it), Some(handler)));
                Ok(true)
            }
            Ok(Made::Gone) => Ok(true),
            // Its owner has agreed, and has to know that it is where it was.
            Ok(Made::Stays) => {
                accept(py, &handler, it.new, it.old, &descriptor)?;
                self.refuse(kept, at, None)?;
                Ok(false)
            }
            Err(error) => {
                accept(py, &handler, it.new, it.old, &descriptor)?;
                Err(error)
            }
        }
    }

    /// What a move is of is not moved in this call; it is told of if its owner has said so.
    fn refuse(&mut self, kept: &Kept, at: usize, told: Option<&Py<Descriptor>>) -> PyResult<()> {
        let number = kept.number;
        self.brief(move |state| state.refuse_kept(number, at))?;
        if let Some(descriptor) = told {
            checked(self.py(), self.refused.room(1))?;
            let (kind, owner) = descriptor.get().objects(self.py());
            self.refused.push((kind, owner, kept.moves[at].size));
        }
        Ok(())
    }

    /// Moves everything back, the last first, as far as the owners agree and there is room.
    fn take_back(&mut self) {
        let py = self.py();
        let call = self.call;
        for ((old, new, size), handler) in mem::take(&mut self.made).into_iter().rev() {
            let shared = &self.space.get().shared;
            let mut descriptor = None;
            let begun = shared.attached(py, |state| {
                descriptor = Some(Descriptor::new(py, shared, state, new, size)?);
                let Ok(back) = state.space.begin_back(call, old, new) else { return Ok(None) };
                state.keep_relocation(back).map(Some)
            });
            let (Ok(Some(number)), Some(descriptor)) = (begun, descriptor) else { continue };
            let Ok(descriptor) = Py::new(py, descriptor) else { continue };
            // An interrupt is no agreement; the call fails anyway.
            let agreed = handler
                .as_ref()
                .is_none_or(|handler| accept(py, handler, new, old, &descriptor).unwrap_or(false));
            let made = if agreed {
                self.brief(move |state| state.make_kept(number, 0))
            } else {
                Ok(Made::Gone)
            };
            if let (Ok(Made::Stays), Some(handler)) = (made, &handler) {
                let _ = accept(py, handler, old, new, &descriptor);
            }
            let _ = self.brief(move |state| {
                state.give_up_kept(number);
                Ok(())
            });
        }
    }

    /// Gives up what is under way, and forgets the call.
    fn end(&mut self, under_way: Option<u64>) {
        let call = self.call;
        let _ = self.long(move |state| {
            if let Some(number) = under_way {
                state.give_up_kept(number);
            }
            state.forget_call(call);
            Ok(())
        });
    }
}

fn moved_of(it: &Move) -> Moved {
    (it.old, it.new, it.size)
}

/// Whether an owner agrees to a move. What it raises, and an answer that is none, is reported and a
/// refusal; but an interrupt is passed on.
fn accept(
    py: Python<'_>,
    handler: &Py<PyAny>,
    old: u64,
    new: u64,
    descriptor: &Py<Descriptor>,
) -> PyResult<bool> {
    let answer = MOVE.import(py, "potad.relocation", "Move").and_then(|make| {
        let (old, new) = (integer(py, old.into())?, integer(py, new.into())?);
        let it = make.call1((old, new, descriptor.clone_ref(py)))?;
        handler.bind(py).call1((it,))
    });
    let answer = answer.and_then(|answer| {
        // Truth values of Python and of NumPy, and nothing else.
        answer.extract::<bool>().map_err(|_| {
            let what = describe(&answer);
            raise::<PyTypeError>(
                py,
                format_args!("on_relocate must return True or False, not {what}"),
            )
        })
    });
    match answer {
        Ok(answer) => Ok(answer),
        Err(error) => report(py, error, handler.bind(py)).map(|()| false),
    }
}

/// Passes what an owner raised to `sys.unraisablehook`, as the cause of a `PotadError`; or to the caller
/// if it is no plain error, such as an interrupt.
fn report(py: Python<'_>, error: PyErr, of: &Bound<'_, PyAny>) -> PyResult<()> {
    if !error.is_instance_of::<PyException>(py) {
        return Err(error);
    }
    let value = error.value(py);
    let reported = REPORTED.import(py, "potad.relocation", "reported");
    match reported.and_then(|reported| reported.call1((value,))) {
        Ok(reported) => PyErr::from_value(reported).write_unraisable(py, Some(of)),
        Err(_) => error.write_unraisable(py, Some(of)),
    }
    Ok(())
}

/// Allocates a run; if none is free, by moving what is in the way. What `named` gives is what it is.
pub fn alloc_run(space: &Bound<'_, Space>, run: Run, named: &dyn Fn() -> Named) -> PyResult<u64> {
    let mut mover = Mover::new(space)?;
    let mut under_way = None;
    let done = alloc_run_by(&mut mover, run, named, &mut under_way);
    if !matches!(done, Ok(Some(_))) {
        mover.give_up(&mut under_way);
        mover.take_back();
    }
    mover.end(under_way);
    match done? {
        Some(start) => Ok(start),
        None => {
            // Its figures are those of the space now, with all moves taken back.
            let error = mover.long(move |state| Ok(state.no_run(run.size, run.align)))?;
            Err(no_room(space, error, run.within, &mover.refused))
        }
    }
}

/// The same, but for taking back moves where there is no run: `None`.
fn alloc_run_by(
    mover: &mut Mover<'_, '_>,
    run: Run,
    named: &dyn Fn() -> Named,
    under_way: &mut Option<u64>,
) -> PyResult<Option<u64>> {
    let call = mover.call;
    loop {
        let mut it = named();
        let kept = match mover.long(|state| Ok(state.begin_run(run, call, &mut it)))? {
            Ok(Begun::Done(start)) => return Ok(Some(start)),
            Ok(Begun::Asking(kept)) => kept,
            Err(Error::OutOfSpace { .. }) => return Ok(None),
            Err(error) => return Err(errors::exception(mover.py(), error)),
        };
        let number = kept.number;
        *under_way = Some(number);
        mover.empty(&kept)?;
        let mut it = named();
        let start = mover.long(|state| state.finish_run(number, run.align, &mut it))?;
        *under_way = None;
        if start.is_some() || mover.rounds > ROUNDS_MAX {
            return Ok(start);
        }
    }
}

/// Makes free blocks: how many of those that are wanted there are, and what was moved.
pub fn compact<'py>(
    space: &Bound<'py, Space>,
    blocks: Blocks,
) -> PyResult<(usize, Bound<'py, PyList>)> {
    let mut mover = Mover::new(space)?;
    let mut under_way = None;
    let done = compact_by(&mut mover, blocks, &mut under_way);
    mover.end(under_way);
    Ok((done?, addresses(space.py(), &mover.made)?))
}

fn compact_by(
    mover: &mut Mover<'_, '_>,
    blocks: Blocks,
    under_way: &mut Option<u64>,
) -> PyResult<usize> {
    let call = mover.call;
    loop {
        let spent: u128 = mover.made.iter().map(|((_, _, size), _)| size).sum();
        let blocks = Blocks { budget: blocks.budget.saturating_sub(spent), ..blocks };
        let mut made = mem::take(&mut mover.made);
        let begun = mover.long(|state| state.begin_blocks(blocks, call, &mut made));
        mover.made = made;
        let kept = match begun? {
            Begun::Done(blocks) => return Ok(blocks),
            Begun::Asking(kept) => kept,
        };
        let number = kept.number;
        *under_way = Some(number);
        mover.empty(&kept)?;
        let found = mover.long(move |state| {
            let kept = state.take_relocation(number);
            Ok(kept.map_or(0, |mut kept| state.space.finish_compaction(&mut kept)))
        })?;
        *under_way = None;
        if mover.rounds > 0 && (found >= kept.blocks || mover.rounds > ROUNDS_MAX) {
            return Ok(found);
        }
    }
}

impl Mover<'_, '_> {
    /// Gives up what is under way.
    fn give_up(&mut self, under_way: &mut Option<u64>) {
        if let Some(number) = under_way.take() {
            let _ = self.long(move |state| {
                state.give_up_kept(number);
                Ok(())
            });
        }
    }
}

/// The exception for a run that cannot be had even by moving: it says what is in the way.
pub fn no_room(
    space: &Bound<'_, Space>,
    error: Error,
    within: Window,
    refused: &[Refused],
) -> PyErr {
    let py = space.py();
    let Error::OutOfSpace { requested, available, largest, reason, .. } = error else {
        return errors::exception(py, error);
    };
    let make = || {
        let rows = in_the_way(space, within)?;
        let refused = list(py, refused.iter(), |(kind, owner, size)| {
            let kind = kind.as_ref().map(|kind| kind.clone_ref(py));
            let owner = owner.as_ref().map(|owner| owner.clone_ref(py));
            row(py, kind, owner, "refused", 1, *size)
        })?;
        let figures = errors::out_of_space(py, &error, requested, available, largest, reason)?;
        let [text, requested, available, largest, reason] = figures;
        let make = NO_ROOM.import(py, "potad.relocation", "no_room")?;
        make.call1((text, requested, available, largest, reason, rows, refused))
    };
    make().map_or_else(|error| error, PyErr::from_value)
}

/// What is in the way of a run, as rows.
fn in_the_way<'py>(space: &Bound<'py, Space>, within: Window) -> PyResult<Bound<'py, PyList>> {
    let (py, shared) = (space.py(), &space.get().shared);
    let look = |state: &mut State| Ok((state.obstacles(within)?, state.forgotten()));
    let (mut obstacles, forgotten) = shared.long(py, look)?;
    let mut rows = Vec::new();
    shared.attached(py, |state| {
        if state.forgotten() != forgotten {
            // Numbers may stand for others by now.
            obstacles = state.obstacles(within)?;
        }
        rows.room(obstacles.len())?;
        rows.extend(obstacles.into_iter().map(|it| (state.objects(py, it.label), it)));
        Ok(())
    })?;
    list(py, rows.into_iter(), |((kind, owner), it)| {
        let why = match it.why {
            Some(potad::Why::Pinned) => "pinned",
            Some(potad::Why::Moving) => "moving",
            Some(potad::Why::Unmovable) | None => "unmovable",
        };
        row(py, kind, owner, why, it.count, it.size)
    })
}

fn row<'py>(
    py: Python<'py>,
    kind: Option<Py<Kind>>,
    owner: Option<Py<PyAny>>,
    why: &str,
    count: u64,
    size: u128,
) -> PyResult<Bound<'py, PyAny>> {
    let why = string(py, why)?.into_any();
    let (count, size) = (integer(py, count.into())?.into_any(), integer(py, size)?.into_any());
    let row = tuple(py, [or_none(py, kind), or_none(py, owner), why, count, size])?;
    Ok(row.into_any())
}

/// What was moved, as Python has it.
fn addresses<'py>(py: Python<'py>, made: &[MoveMade]) -> PyResult<Bound<'py, PyList>> {
    list(py, made.iter(), |&((old, new, size), _)| {
        let (old, new) = (integer(py, old.into())?.into_any(), integer(py, new.into())?.into_any());
        Ok(tuple(py, [old, new, integer(py, size)?.into_any()])?.into_any())
    })
}
