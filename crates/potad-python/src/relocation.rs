//! Moves under way, as the Python code sees them that asks the owners (`potad.relocation`).
//!
//! Where no allocation that is in the way has an owner, everything happens in one call of the core under
//! the lock, and there is none of these. Where one has, the moves are begun under the lock and kept by
//! the space; what Python has is their number there, so that they can be given up from anywhere: when
//! the object is collected, or in the child of a fork.

use std::collections::HashMap;

use pyo3::exceptions::{PyIndexError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyInt;
use pyo3::{PyTraverseError, PyVisit};

use potad::{Error, Fit, Made, Move, Obstacle, Window};

use crate::convert::{self, integer};
use crate::descriptor::Descriptor;
use crate::errors;
use crate::kind::Kind;
use crate::space::Space;
use crate::state::{Named, State};

static NO_ROOM: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// What room is made for.
#[derive(Clone, Copy)]
pub enum Request {
    Run { size: u128, align: u128, within: Window, fit: Fit },
    Blocks { size: u128, count: usize, within: Window },
}

/// What became of a request: done, or moves that are begun.
pub enum Begun<T> {
    Done(T),
    Moving(Relocation),
}

/// Moves that make room, begun and not finished. Given up when it is dropped.
#[pyclass(frozen, module = "potad._core")]
pub struct Relocation {
    space: Py<Space>,
    request: Request,
    number: u64,
    moves: Vec<Move>,
    blocks: usize,
}

/// Number, moves and blocks of moves that the space keeps.
type Kept = (u64, Vec<Move>, usize);

impl State {
    /// Keeps moves if somebody has to be asked about one of them; otherwise makes them.
    fn keep_or_make(
        &mut self,
        relocation: &mut Option<potad::Relocation>,
    ) -> Result<Option<Kept>, Error> {
        let begun = relocation.as_mut().expect("it was begun");
        if begun.moves().iter().all(|it| it.label.owner == 0) {
            return self.make_moves(begun).map(|()| None);
        }
        let (moves, blocks) = (begun.moves().to_vec(), begun.blocks());
        let begun = relocation.take().expect("it was begun");
        Ok(Some((self.keep_relocation(begun), moves, blocks)))
    }

    /// A run, free or made so by moves that nobody has to be asked about; or moves that are begun.
    fn begin_run(
        &mut self,
        (size, align, within, fit): (u128, u128, Window, Fit),
        refused: &[u64],
    ) -> Result<Result<u64, Kept>, Error> {
        match self.alloc_run(size, align, within, fit) {
            Err(Error::OutOfSpace { .. }) => {}
            done => return done.map(Ok),
        }
        let mut relocation = Some((**self).begin_run(size, align, within, refused)?);
        if let Some(kept) = self.keep_or_make(&mut relocation)? {
            return Ok(Err(kept));
        }
        let start = self.finish_run(relocation.as_mut().expect("it is not kept"))?;
        Ok(Ok(start.expect("nobody came between")))
    }

    /// Describes a run that was just allocated, if it was.
    fn describe_run(
        &mut self,
        start: Result<Option<u64>, Error>,
        named: Named,
        align: u128,
    ) -> Result<Option<u64>, Error> {
        match start {
            Ok(Some(start)) => {
                let starts = || std::iter::once(start);
                self.describe(starts, named, Some(align)).map(|()| Some(start))
            }
            other => {
                self.put_aside(named);
                other
            }
        }
    }
}

/// Allocates a run, or begins to make room for it.
pub fn begin_run(
    space: &Bound<'_, Space>,
    request: Request,
    refused: Vec<u64>,
    kind: Option<&Bound<'_, Kind>>,
    owner: Option<&Bound<'_, PyAny>>,
) -> PyResult<Begun<u64>> {
    let Request::Run { size, align, within, fit } = request else { return Err(other_request()) };
    let py = space.py();
    let named = Named::new(kind, owner);
    let begun = space.get().shared.long(py, |state| {
        let begun = state.begin_run((size, align, within, fit), &refused);
        Ok(match begun {
            Ok(Ok(start)) => state
                .describe_run(Ok(Some(start)), named, align)
                .map(|start| Ok(start.expect("it is described"))),
            other => {
                state.put_aside(named);
                other
            }
        })
    })?;
    match begun {
        Ok(Ok(start)) => Ok(Begun::Done(start)),
        Ok(Err(kept)) => Ok(Begun::Moving(Relocation::new(space, request, kept))),
        Err(error) => Err(no_room(space, error, within, refused)),
    }
}

/// Makes free blocks, or begins to. How many there are, and the moves that were made.
pub fn begin_compaction(
    space: &Bound<'_, Space>,
    request: Request,
    budget: u128,
    refused: Vec<u64>,
) -> PyResult<Begun<(usize, Vec<Move>)>> {
    let Request::Blocks { size, count, within } = request else { return Err(other_request()) };
    let begun = space.get().shared.long(space.py(), |state| {
        let begun = (**state).begin_compaction(size, count, within, budget, &refused)?;
        let mut relocation = Some(begun);
        if let Some(kept) = state.keep_or_make(&mut relocation)? {
            return Ok(Err(kept));
        }
        let mut relocation = relocation.expect("it is not kept");
        let blocks = state.finish_compaction(&mut relocation);
        Ok(Ok((blocks, relocation.moves().to_vec())))
    })?;
    Ok(match begun {
        Ok(done) => Begun::Done(done),
        Err(kept) => Begun::Moving(Relocation::new(space, request, kept)),
    })
}

/// The exception for a run that cannot be had even by moving: it says what is in the way.
pub fn no_room(space: &Bound<'_, Space>, error: Error, within: Window, refused: Vec<u64>) -> PyErr {
    let py = space.py();
    let message = error.to_string();
    let Error::OutOfSpace { requested, available, largest, reason, .. } = error else {
        return errors::exception(py, error);
    };
    let rows = space.get().shared.attached(py, |state| {
        let obstacles = state.obstacles(within)?.into_iter();
        let row = |it: Obstacle| (state.objects(py, it.label), it.pinned, it.count, it.size);
        let rows: Vec<_> = obstacles.map(row).collect();
        let refused = refused.iter().filter_map(|&start| state.lookup(start)).map(|it| it.size);
        Ok((rows, refused.collect::<Vec<u128>>()))
    });
    let made = rows.and_then(|(rows, refused)| {
        let rows: Vec<_> = rows
            .into_iter()
            .map(|((kind, owner), pinned, count, size)| (kind, owner, pinned, count, size))
            .collect();
        let make = NO_ROOM.import(py, "potad.relocation", "no_room")?;
        make.call1((message, requested, available, largest, reason.as_str(), rows, refused))
    });
    made.map_or_else(|error| error, PyErr::from_value)
}

/// A run is asked for of what makes blocks, or blocks of what makes a run.
#[cold]
fn other_request() -> PyErr {
    PyTypeError::new_err("these moves are for something else")
}

impl Relocation {
    fn new(space: &Bound<'_, Space>, request: Request, (number, moves, blocks): Kept) -> Self {
        Relocation { space: space.clone().unbind(), request, number, moves, blocks }
    }

    /// A move by its number.
    fn it(&self, at: usize) -> PyResult<Move> {
        let message = || format!("there are {} moves, and no number {at}", self.moves.len());
        self.moves.get(at).copied().ok_or_else(|| PyIndexError::new_err(message()))
    }
}

impl Drop for Relocation {
    fn drop(&mut self) {
        Python::attach(|py| self.give_up(py));
    }
}

#[pymethods]
impl Relocation {
    /// The moves, each with its old and new address and its size.
    #[getter]
    fn moves<'py>(&self, py: Python<'py>) -> Vec<(u64, u64, Bound<'py, PyInt>)> {
        self.moves.iter().map(|it| (it.old, it.new, integer(py, it.size))).collect()
    }

    /// How many free blocks there are when all moves are made.
    #[getter]
    fn blocks(&self) -> usize {
        self.blocks
    }

    /// Numbers of the moves of allocations that have an owner, and the owners.
    fn owners(&self, py: Python<'_>) -> PyResult<Vec<(usize, Py<PyAny>)>> {
        self.space.get().shared.attached(py, |state| {
            let mut known: HashMap<u32, Option<Py<PyAny>>> = HashMap::new();
            let mut owners = Vec::new();
            for (at, it) in self.moves.iter().enumerate() {
                let number = it.label.owner;
                // The number is another owner's if all that this one had was freed meanwhile.
                if !state
                    .with_relocation(self.number, |space, kept| space.can_move(kept, at))
                    .unwrap_or(false)
                {
                    continue;
                }
                let owner = known.entry(number).or_insert_with(|| state.objects(py, it.label).1);
                if let Some(owner) = owner {
                    owners.push((at, owner.clone_ref(py)));
                }
            }
            Ok(owners)
        })
    }

    /// The descriptor of what a move is of; None where that cannot be moved any more.
    fn descriptor(&self, py: Python<'_>, at: usize) -> PyResult<Option<Descriptor>> {
        let shared = &self.space.get().shared;
        let Move { old, size, .. } = self.it(at)?;
        shared.attached(py, |state| {
            let can = state.with_relocation(self.number, |space, kept| space.can_move(kept, at));
            let can = can.unwrap_or(false);
            can.then(|| Descriptor::new(py, shared, state, old, size)).transpose()
        })
    }

    /// Makes one move: "moved", or "gone" if the allocation was freed, or "stays" if it was pinned or
    /// cut.
    fn make(&self, py: Python<'_>, at: usize) -> PyResult<&'static str> {
        self.it(at)?;
        let number = self.number;
        let made = self.space.get().shared.brief(py, |state| {
            let made = state.with_relocation(number, |space, kept| space.make_move(kept, at));
            made.unwrap_or(Ok(Made::Stays))
        })?;
        Ok(match made {
            Made::Moved => "moved",
            Made::Gone => "gone",
            Made::Stays => "stays",
        })
    }

    /// Makes all moves but some, by their numbers; the numbers of those that were made.
    fn make_rest(&self, py: Python<'_>, but: Vec<usize>) -> PyResult<Vec<usize>> {
        let (number, mut rest) = (self.number, vec![true; self.moves.len()]);
        for at in but {
            self.it(at)?;
            rest[at] = false;
        }
        self.space.get().shared.long(py, move |state| {
            let made = state.with_relocation(number, |space, kept| {
                let numbers = (0..rest.len()).filter(|&at| rest[at]);
                // One that is not made, for whatever reason, shows when it is finished.
                let made = |&at: &usize| matches!(space.make_move(kept, at), Ok(Made::Moved));
                numbers.filter(made).collect()
            });
            Ok(made.unwrap_or_default())
        })
    }

    /// The run, if its window is empty now: allocated, with a kind and an owner; otherwise None, and the
    /// moves are given up.
    #[pyo3(signature = (kind = None, owner = None))]
    fn finish_run(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, Kind>>,
        owner: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u64>> {
        let Request::Run { align, .. } = self.request else { return Ok(None) };
        let (number, named) = (self.number, Named::new(kind, owner));
        self.space.get().shared.long(py, move |state| {
            let start = match state.take_relocation(number) {
                Some(mut kept) => state.finish_run(&mut kept),
                None => Ok(None),
            };
            state.describe_run(start, named, align)
        })
    }

    /// How many free blocks there are of those that are wanted. The moves are over.
    fn finish_compaction(&self, py: Python<'_>) -> PyResult<usize> {
        let number = self.number;
        self.space.get().shared.long(py, move |state| {
            let kept = state.take_relocation(number);
            Ok(kept.map_or(0, |mut kept| state.finish_compaction(&mut kept)))
        })
    }

    /// Gives the moves up that were not made.
    fn give_up(&self, py: Python<'_>) {
        let number = self.number;
        // An error is only possible where the space is of no further use.
        let _ = self.space.get().shared.long(py, move |state| {
            if let Some(mut kept) = state.take_relocation(number) {
                state.give_up(&mut kept);
            }
            Ok(())
        });
    }

    /// Tries the same run again, without moving what lies at some addresses: its start, or moves.
    #[pyo3(signature = (refused, kind = None, owner = None))]
    fn run_again<'py>(
        &self,
        py: Python<'py>,
        refused: Vec<u64>,
        kind: Option<&Bound<'py, Kind>>,
        owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match begin_run(self.space.bind(py), self.request, refused, kind, owner)? {
            Begun::Done(start) => Ok(integer(py, start.into()).into_any()),
            Begun::Moving(relocation) => Ok(Bound::new(py, relocation)?.into_any()),
        }
    }

    /// Tries to make the same blocks again, with what is left of the budget, without moving what lies at
    /// some addresses: how many there are and what was moved, or moves.
    fn blocks_again<'py>(
        &self,
        py: Python<'py>,
        budget: &Bound<'py, PyAny>,
        refused: Vec<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let budget = convert::size("budget", budget)?;
        match begin_compaction(self.space.bind(py), self.request, budget, refused)? {
            Begun::Done((blocks, moves)) => {
                Ok((blocks, addresses(py, &moves)).into_pyobject(py)?.into_any())
            }
            Begun::Moving(relocation) => Ok(Bound::new(py, relocation)?.into_any()),
        }
    }

    /// Begins a single move, such as one back; None where it cannot be made.
    #[pyo3(signature = (from_, to))]
    fn begin_move(&self, py: Python<'_>, from_: u64, to: u64) -> PyResult<Option<Relocation>> {
        let space = self.space.bind(py);
        let kept = space.get().shared.brief(py, |state| {
            let Ok(begun) = (**state).begin_move(from_, to) else { return Ok(None) };
            let moves = begun.moves().to_vec();
            Ok(Some((state.keep_relocation(begun), moves, 0)))
        })?;
        Ok(kept.map(|kept| Relocation::new(space, self.request, kept)))
    }

    /// The error for a run that others were always faster than.
    fn no_room(&self, py: Python<'_>, refused: Vec<u64>) -> PyErr {
        let Request::Run { size, align, within, .. } = self.request else { return other_request() };
        let error = self.space.get().shared.long(py, |state| Ok(state.no_run(size, align)));
        match error {
            Ok(error) => no_room(self.space.bind(py), error, within, refused),
            Err(error) => error,
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }
}

/// Old and new address and size of each move.
pub fn addresses<'py>(py: Python<'py>, moves: &[Move]) -> Vec<(u64, u64, Bound<'py, PyInt>)> {
    moves.iter().map(|it| (it.old, it.new, integer(py, it.size))).collect()
}

/// Tells `sys.unraisablehook` of an error of an owner's.
#[pyfunction]
pub fn _report_unraisable(error: Bound<'_, PyAny>, owner: &Bound<'_, PyAny>) {
    let py = error.py();
    PyErr::from_value(error).write_unraisable(py, Some(owner));
}
