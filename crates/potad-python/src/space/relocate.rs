//! Room by moving allocations, ahead of time; and what it would take.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use potad::Move;
use potad::fallible::with_room;

use super::Space;
use crate::convert::{self, Given};
use crate::descriptor::Descriptor;
use crate::errors::checked;
use crate::objects::{integer, list, tuple};
use crate::relocation::{self, Blocks, no_room};

static COMPACTION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static PLAN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

#[pymethods]
impl Space {
    /// Sees to it that there are free blocks of a size, by moving what is in the way of as few address
    /// units as that takes.
    ///
    /// What may be moved is as for `alloc_run`. Blocks that are free already count. Where not all of
    /// them can be had, because of what cannot be moved, for want of room or of budget, it makes as many
    /// as can, and never more than 262,144 in one call; moves that were made stay made.
    ///
    /// Arguments:
    ///     size: of each block, in address units, rounded up to a power of two.
    ///     count: how many free blocks there are to be.
    ///     within: `(low, high)` confines the blocks to addresses from `low` up to, and not including,
    ///         `high`; what is moved may go anywhere.
    ///     budget: address units that may be moved at most; by default all.
    ///
    /// Returns: a `Compaction`: `blocks` is how many free blocks of the size there are of those that were
    /// asked for, `moves` what was moved, and `size` how much that was.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata. Moves that owners were asked about and that were
    ///         made before stay made.
    ///
    /// Takes nanoseconds for each 64 granules of the space, a microsecond for each allocation that is
    /// moved, and what their owners do.
    ///
    /// >>> import potad
    /// >>> page = potad.Kind("page", movable=True)
    /// >>> space = potad.Space(1 << 20)
    /// >>> pages = [space.alloc(4096, kind=page) for _ in range(256)]
    /// >>> for address in pages[::2]:
    /// ...     space.free(address)
    /// >>> space.largest_free, space.compact(65536, 4).size, space.largest_free >= 65536
    /// (4096, 131072, True)
    ///
    /// What kcompactd does in Linux, by scanning memory from both ends.
    #[pyo3(
        signature = (size, count = Given::DEFAULT, *, within = None, budget = None),
        text_signature = "($self, size, count=1, *, within=None, budget=None)"
    )]
    fn compact<'py>(
        this: &Bound<'py, Self>,
        size: &Bound<'py, PyAny>,
        count: Given<'py>,
        within: Option<&Bound<'py, PyAny>>,
        budget: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = this.py();
        let (blocks, moved) = relocation::compact(this, blocks(size, &count, within, budget)?)?;
        let make = COMPACTION.import(py, "potad.relocation", "compaction")?;
        make.call1((integer(py, blocks as u128)?, moved))
    }

    /// Where a run would be for which the least would have to go, and how much that is.
    ///
    /// For those who make room otherwise than by moving, such as caches that evict: whether there is
    /// room elsewhere is not asked, nor are owners. What can go is as for `alloc_run` with
    /// `relocate=True`.
    ///
    /// Arguments:
    ///     size: as for `alloc_run`.
    ///     align: as for `alloc_run`.
    ///     within: as for `alloc_run`.
    ///
    /// Returns: the start, and how many address units are in allocations that touch the run; None where
    /// something that cannot go is in the way of all of them.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///
    /// Takes nanoseconds for each 64 granules of the space.
    ///
    /// >>> import potad
    /// >>> page = potad.Kind("page", movable=True)
    /// >>> space = potad.Space(1 << 20)
    /// >>> pages = [space.alloc(4096, kind=page) for _ in range(256)]
    /// >>> space.free(pages[7])
    /// >>> space.cheapest_window(8192, align=8192)
    /// (24576, 4096)
    #[pyo3(
        signature = (size, *, align = None, within = None),
        text_signature = "($self, size, *, align=None, within=None)"
    )]
    fn cheapest_window<'py>(
        &self,
        py: Python<'py>,
        size: &Bound<'py, PyAny>,
        align: Option<&Bound<'py, PyAny>>,
        within: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let size = convert::size("size", size)?;
        let align = align.map_or(Ok(1), |align| convert::size("align", align))?;
        let within = convert::window(within)?;
        let found = self.shared.long(py, |state| state.cheapest_window(size, align, within))?;
        let pair = |(start, cost): (u64, u128)| {
            tuple(py, [integer(py, start.into())?.into_any(), integer(py, cost)?.into_any()])
        };
        found.map(pair).transpose()
    }

    /// What `alloc_run` with `relocate=True` would do as things stand, without doing it: where the run
    /// would be, and what would be moved.
    ///
    /// Owners are not asked.
    ///
    /// Arguments:
    ///     size: as for `alloc_run`.
    ///     align: as for `alloc_run`.
    ///     within: as for `alloc_run`.
    ///     fit: as for `alloc_run`.
    ///
    /// Returns: a `Plan`: `start` is where the run would be, `moves` what would be moved, none of it if
    /// the run is free, and `size` how much that is.
    ///
    /// Raises:
    ///     OutOfSpace: there is no such run, not even by moving, as for `alloc_run`.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes as long as `alloc_run` without the moves.
    ///
    /// >>> import potad
    /// >>> page = potad.Kind("page", movable=True)
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.alloc_at(512 << 10, 4096, kind=page)
    /// 524288
    /// >>> plan = space.plan_run(600 << 10)
    /// >>> plan.start, plan.size, [(move.old, move.new) for move in plan.moves]
    /// (0, 4096, [(524288, 614400)])
    #[pyo3(
        signature = (size, *, align = None, within = None, fit = Given::DEFAULT),
        text_signature = "($self, size, *, align=None, within=None, fit='aligned')"
    )]
    fn plan_run<'py>(
        this: &Bound<'py, Self>,
        size: &Bound<'py, PyAny>,
        align: Option<&Bound<'py, PyAny>>,
        within: Option<&Bound<'py, PyAny>>,
        fit: Given<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = this.py();
        let size = convert::size("size", size)?;
        let align = align.map_or(Ok(1), |align| convert::size("align", align))?;
        let within = convert::window(within)?;
        let fit = fit.fit()?;
        let shared = &this.get().shared;
        let planned = shared.long(py, |state| Ok(state.plan_run(size, align, within, fit)))?;
        match planned {
            Ok((start, moves)) => plan(this, Some(start), 1, moves),
            Err(error) => Err(no_room(this, error, within, &[])),
        }
    }

    /// What `compact` would do as things stand, without doing it.
    ///
    /// Owners are not asked.
    ///
    /// Arguments:
    ///     size: as for `compact`.
    ///     count: as for `compact`.
    ///     within: as for `compact`.
    ///     budget: as for `compact`.
    ///
    /// Returns: a `Plan`: `blocks` is how many free blocks there would be of those that are asked for,
    /// `moves` what would be moved, and `size` how much that is.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes as long as `compact` without the moves.
    ///
    /// >>> import potad
    /// >>> page = potad.Kind("page", movable=True)
    /// >>> space = potad.Space(1 << 20)
    /// >>> pages = [space.alloc_at(start, 4096, kind=page) for start in range(0, 1 << 20, 65536)]
    /// >>> plan = space.plan_compaction(65536, 3)
    /// >>> plan.blocks, plan.size
    /// (3, 12288)
    #[pyo3(
        signature = (size, count = Given::DEFAULT, *, within = None, budget = None),
        text_signature = "($self, size, count=1, *, within=None, budget=None)"
    )]
    fn plan_compaction<'py>(
        this: &Bound<'py, Self>,
        size: &Bound<'py, PyAny>,
        count: Given<'py>,
        within: Option<&Bound<'py, PyAny>>,
        budget: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Blocks { size, count, within, budget } = blocks(size, &count, within, budget)?;
        let shared = &this.get().shared;
        let (blocks, moves) =
            shared.long(this.py(), |state| state.plan_compaction(size, count, within, budget))?;
        plan(this, None, blocks, moves)
    }
}

/// A plan, as Python has it.
fn plan<'py>(
    space: &Bound<'py, Space>,
    start: Option<u64>,
    blocks: usize,
    moves: Vec<Move>,
) -> PyResult<Bound<'py, PyAny>> {
    let (py, shared) = (space.py(), &space.get().shared);
    let mut planned = checked(py, with_room(moves.len()))?;
    for it in moves {
        // One by one, so that others get their turn; what was freed or cut since is left out.
        let found = shared.attached(py, |state| {
            let same = |found: &potad::Descriptor| (found.start, found.size) == (it.old, it.size);
            let found = state.lookup(it.old).filter(same);
            found.map(|_| Descriptor::new(py, shared, state, it.old, it.size)).transpose()
        })?;
        planned.extend(found.map(|descriptor| (descriptor, it.new)));
    }
    let planned = list(py, planned.into_iter(), |(descriptor, new)| {
        let pair = [Bound::new(py, descriptor)?.into_any(), integer(py, new.into())?.into_any()];
        Ok(tuple(py, pair)?.into_any())
    })?;
    let start = start.map(|start| integer(py, start.into())).transpose()?;
    let blocks = integer(py, blocks as u128)?;
    PLAN.import(py, "potad.relocation", "plan")?.call1((start, blocks, planned))
}

/// Blocks that are asked for.
fn blocks(
    size: &Bound<'_, PyAny>,
    count: &Given<'_>,
    within: Option<&Bound<'_, PyAny>>,
    budget: Option<&Bound<'_, PyAny>>,
) -> PyResult<Blocks> {
    let size = convert::size("size", size)?;
    // More than a word can count is more than there can be.
    let count = usize::try_from(count.address("count")?.unwrap_or(1)).unwrap_or(usize::MAX);
    let within = convert::window(within)?;
    let budget = budget.map_or(Ok(1 << 64), |budget| convert::size("budget", budget))?;
    Ok(Blocks { size, count, within, budget })
}
