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

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyInt;

use potad::{Call, Error, Fit, Made, Move, Window};

use crate::convert::{describe, integer};
use crate::descriptor::Descriptor;
use crate::errors;
use crate::kind::Kind;
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
pub type Moved = (u64, u64, u128);

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
    /// Makes moves if nobody has to be asked about any, or keeps them.
    fn make_or_keep(
        &mut self,
        mut relocation: potad::Relocation,
    ) -> Result<Result<potad::Relocation, Kept>, Error> {
        if self.make_unasked(&mut relocation)? {
            return Ok(Ok(relocation));
        }
        let (moves, blocks) = (relocation.moves().to_vec(), relocation.blocks());
        Ok(Err(Kept { number: self.keep_relocation(relocation), moves, blocks }))
    }

    fn begin_run(&mut self, run: Run, call: Call) -> Result<Begun<u64>, Error> {
        let Run { size, align, within, fit } = run;
        match self.space.alloc_run(size, align, within, fit) {
            Err(Error::OutOfSpace { .. }) => {}
            done => return done.map(Begun::Done),
        }
        let begun = self.space.begin_run(size, align, within, call)?;
        match self.make_or_keep(begun)? {
            Ok(mut made) => {
                let start = self.space.finish_run(&mut made);
                Ok(Begun::Done(start.expect("nobody came between")))
            }
            Err(kept) => Ok(Begun::Asking(kept)),
        }
    }

    fn begin_blocks(
        &mut self,
        blocks: Blocks,
        call: Call,
    ) -> Result<Begun<(usize, Vec<Move>)>, Error> {
        let Blocks { size, count, within, budget } = blocks;
        let begun = self.space.begin_compaction(size, count, within, budget, call)?;
        match self.make_or_keep(begun)? {
            Ok(mut made) => {
                let blocks = self.space.finish_compaction(&mut made);
                Ok(Begun::Done((blocks, made.moves().to_vec())))
            }
            Err(kept) => Ok(Begun::Asking(kept)),
        }
    }

    /// Describes a run that was just allocated.
    fn describe_run(&mut self, start: u64, named: Named, align: u128) -> Result<u64, Error> {
        self.describe(|| std::iter::once(start), named, Some(align)).map(|()| start)
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
    made: Vec<(Moved, Option<Py<PyAny>>)>,
    refused: Vec<Refused>,
    /// Owners by where they are, which they stay as long as they are here.
    owners: HashMap<usize, (Py<PyAny>, Asked)>,
    /// Rounds since something was refused.
    rounds: u32,
}

impl<'a, 'py> Mover<'a, 'py> {
    fn new(space: &'a Bound<'py, Space>) -> PyResult<Self> {
        let call = space.get().shared.brief(space.py(), |state| Ok(state.begin_call()))?;
        let (made, refused, owners) = (Vec::new(), Vec::new(), HashMap::new());
        Ok(Mover { space, call, made, refused, owners, rounds: 0 })
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

    /// Makes the moves that are under way, until one is refused: first those whose owners are asked.
    fn empty(&mut self, kept: &Kept) -> PyResult<()> {
        self.rounds += 1;
        let py = self.py();
        let owners: Vec<(usize, Option<Py<PyAny>>)> =
            self.space.get().shared.attached(py, |state| {
                let all = kept.moves.iter().enumerate();
                // What cannot be moved now is not looked at: its owner's number may be another's.
                Ok(all
                    .filter(|&(at, _)| state.can_move(kept.number, at))
                    .map(|(at, it)| (at, state.objects(py, it.label).1))
                    .collect())
            })?;
        let mut unasked = Vec::new();
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
                self.rounds = 0;
                return Ok(());
            }
        }
        let number = kept.number;
        let moved = self.long(move |state| {
            // One that is not made, for whatever reason, shows when it is finished.
            let made = |&at: &usize| matches!(state.make_kept(number, at), Ok(Made::Moved));
            Ok(unasked.into_iter().filter(made).collect::<Vec<_>>())
        })?;
        let moves = moved.into_iter().map(|at| (moved_of(&kept.moves[at]), None));
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
        let found = match owner.bind(py).getattr_opt(pyo3::intern!(py, "on_relocate")) {
            Ok(Some(handler)) if !handler.is_none() => Asked::By(handler.unbind()),
            Ok(_) => Asked::Content,
            Err(error) => {
                report(py, error, owner.bind(py))?;
                Asked::Mute
            }
        };
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
            let (kind, owner) = descriptor.get().objects(self.py());
            self.refused.push((kind, owner, kept.moves[at].size));
        }
        Ok(())
    }

    /// Moves everything back, the last first, as far as the owners agree and there is room.
    fn take_back(&mut self) {
        let py = self.py();
        let call = self.call;
        for ((old, new, size), handler) in std::mem::take(&mut self.made).into_iter().rev() {
            let shared = &self.space.get().shared;
            let begun = shared.attached(py, |state| {
                let Ok(back) = state.space.begin_back(call, old, new) else { return Ok(None) };
                let descriptor = Descriptor::new(py, shared, state, new, size)?;
                Ok(Some((state.keep_relocation(back), descriptor)))
            });
            let Ok(Some((number, descriptor))) = begun else { continue };
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
        let it = make.call1((old, new, descriptor.clone_ref(py)))?;
        handler.bind(py).call1((it,))
    });
    let answer = answer.and_then(|answer| {
        // Truth values of Python and of NumPy, and nothing else.
        answer.extract::<bool>().map_err(|_| {
            let what = describe(&answer);
            PyTypeError::new_err(format!("on_relocate must return True or False, not {what}"))
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
    if done.is_err() {
        mover.give_up(&mut under_way);
        mover.take_back();
    }
    mover.end(under_way);
    done
}

fn alloc_run_by(
    mover: &mut Mover<'_, '_>,
    run: Run,
    named: &dyn Fn() -> Named,
    under_way: &mut Option<u64>,
) -> PyResult<u64> {
    let call = mover.call;
    loop {
        let it = named();
        let begun = mover.long(move |state| match state.begin_run(run, call) {
            Ok(Begun::Done(start)) => {
                let described = state.describe_run(start, it, run.align);
                Ok(described.map(Begun::Done))
            }
            other => {
                state.put_aside(it);
                Ok(other)
            }
        })?;
        let kept = match begun {
            Ok(Begun::Done(start)) => return Ok(start),
            Ok(Begun::Asking(kept)) => kept,
            Err(error) => return Err(no_room(mover.space, error, run.within, &mover.refused)),
        };
        let number = kept.number;
        *under_way = Some(number);
        mover.empty(&kept)?;
        let it = named();
        let start = mover.long(move |state| {
            let start = match state.take_relocation(number) {
                Some(mut kept) => state.space.finish_run(&mut kept),
                None => None,
            };
            match start {
                Some(start) => state.describe_run(start, it, run.align).map(Some),
                None => {
                    state.put_aside(it);
                    Ok(None)
                }
            }
        })?;
        *under_way = None;
        if let Some(start) = start {
            return Ok(start);
        }
        if mover.rounds > ROUNDS_MAX {
            let error = mover.long(move |state| Ok(state.no_run(run.size, run.align)))?;
            return Err(no_room(mover.space, error, run.within, &mover.refused));
        }
    }
}

/// Makes free blocks: how many of those that are wanted there are, and what was moved.
pub fn compact(space: &Bound<'_, Space>, blocks: Blocks) -> PyResult<(usize, Vec<Moved>)> {
    let mut mover = Mover::new(space)?;
    let mut under_way = None;
    let done = compact_by(&mut mover, blocks, &mut under_way);
    mover.end(under_way);
    let (blocks, rest) = done?;
    let made = mover.made.into_iter().map(|(moved, _)| moved);
    Ok((blocks, made.chain(rest).collect()))
}

fn compact_by(
    mover: &mut Mover<'_, '_>,
    blocks: Blocks,
    under_way: &mut Option<u64>,
) -> PyResult<(usize, Vec<Moved>)> {
    let call = mover.call;
    loop {
        let spent: u128 = mover.made.iter().map(|((_, _, size), _)| size).sum();
        let blocks = Blocks { budget: blocks.budget.saturating_sub(spent), ..blocks };
        let kept = match mover.long(move |state| state.begin_blocks(blocks, call))? {
            Begun::Done((blocks, moves)) => {
                return Ok((blocks, moves.iter().map(moved_of).collect()));
            }
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
            return Ok((found, Vec::new()));
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
    let message = error.to_string();
    let Error::OutOfSpace { requested, available, largest, reason, .. } = error else {
        return errors::exception(py, error);
    };
    let shared = &space.get().shared;
    let rows = shared.long(py, |state| state.obstacles(within)).and_then(|obstacles| {
        shared.attached(py, |state| {
            let row =
                |it: potad::Obstacle| (state.objects(py, it.label), it.why, it.count, it.size);
            Ok(obstacles.into_iter().map(row).collect::<Vec<_>>())
        })
    });
    let made = rows.and_then(|rows| {
        let why = |why| match why {
            potad::Why::Unmovable => "unmovable",
            potad::Why::Pinned => "pinned",
            potad::Why::Moving => "moving",
        };
        let rows: Vec<_> = rows
            .into_iter()
            .map(|((kind, owner), it, count, size)| (kind, owner, why(it), count, size))
            .collect();
        let refused: Vec<_> = refused
            .iter()
            .map(|(kind, owner, size)| (kind.as_ref(), owner.as_ref(), "refused", 1, *size))
            .collect();
        let make = NO_ROOM.import(py, "potad.relocation", "no_room")?;
        make.call1((message, requested, available, largest, reason.as_str(), rows, refused))
    });
    made.map_or_else(|error| error, PyErr::from_value)
}

/// What was moved, as Python has it.
pub fn addresses<'py>(py: Python<'py>, moved: &[Moved]) -> Vec<(u64, u64, Bound<'py, PyInt>)> {
    moved.iter().map(|&(old, new, size)| (old, new, integer(py, size))).collect()
}
