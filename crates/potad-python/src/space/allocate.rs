//! Taking space: one block, one run, an exact range, several blocks.

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

use super::Space;
use crate::arrays;
use crate::convert::{self, Given};
use crate::kind::Kind;
use crate::objects::{integer, list, tuple};
use crate::relocation::{self, Run};
use crate::state::{Allocated, Named};

#[pymethods]
impl Space {
    /// Allocates a block of at least `size`, rounded up to a power of two and aligned to it.
    ///
    /// Arguments:
    ///     size: in address units, above 0. There is no largest size but the space's own.
    ///     within: `(low, high)` confines the block to addresses from `low` up to, and not
    ///         including, `high`.
    ///     kind: what sort of thing it is: a `Kind`, whose record it gets, zero at first.
    ///     owner: whose it is: any object, held while it has allocations, and told of what happens to
    ///         them if it has methods for that.
    ///
    /// Returns: the block's first address, a multiple of its rounded size.
    ///
    /// Raises:
    ///     OutOfSpace: there is no such free block; `reason` tells whether for want of space
    ///         ("exhausted") or of a piece large enough ("fragmented").
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes a few words of memory at each of the tree's levels that change, most often one or
    /// two of at most eleven.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 30)
    /// >>> block = space.alloc(5000)
    /// >>> space.lookup(block).size
    /// 8192
    /// >>> block % 8192
    /// 0
    /// >>> space.alloc(4096, within=(1 << 20, 2 << 20)) >> 20
    /// 1
    ///
    /// Of several free blocks that would do, one is taken that spares the large ones: while there
    /// is plenty the lowest, later the one that fits most tightly. Which it is, is not promised.
    #[pyo3(signature = (size, *, within = None, kind = None, owner = None))]
    fn alloc<'py>(
        &self,
        py: Python<'py>,
        size: &Bound<'py, PyAny>,
        within: Option<&Bound<'py, PyAny>>,
        kind: Option<&Bound<'py, Kind>>,
        owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyInt>> {
        let size = convert::size("size", size)?;
        let within = convert::window(within)?;
        let mut named = Named::new(kind, owner);
        let alloc = move |space: &mut potad::Space| space.alloc_within(size, within);
        let start = self.shared.brief(py, |state| state.allocate(&mut named, None, alloc))?;
        self.allocated(py, start)
    }

    /// Allocates exactly `size` of contiguous space, rounded up to granules, wherever it fits.
    ///
    /// Complete: if there is such a run anywhere, one is found, also one that is made of several
    /// free blocks next to each other.
    ///
    /// Arguments:
    ///     size: in address units, above 0; not rounded up to a power of two.
    ///     align: the start is a multiple of this, any number from 1 to 2**64; by default the
    ///         granule.
    ///     within: `(low, high)` confines the run to addresses from `low` up to, and not
    ///         including, `high`.
    ///     fit: of several possible starts, "aligned" takes the one with the largest alignment,
    ///         counted up to the size rounded up to a power of two, and the lowest among equals:
    ///         for 8 MiB one free block of 8 MiB if there is one, else two adjacent ones of 4 MiB,
    ///         and so on. "first" takes the lowest.
    ///     relocate: if no such run is free, make one by moving what is in the way; see below.
    ///     kind: as for `alloc`.
    ///     owner: as for `alloc`.
    ///
    /// Returns: the run's first address.
    ///
    /// Raises:
    ///     OutOfSpace: there is no such run; `reason` as for `alloc`. With `relocate`, `in_the_way` says
    ///         by kind and owner what cannot be moved.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes time in proportion to the free blocks of at least about half the size that have to
    /// be looked at, however many smaller holes there are; with "aligned" most often one. To relocate
    /// takes a microsecond besides for each 10,000 granules of the space and for each allocation that is
    /// moved, and what their owners do; more where many places have to be tried, since there is no room
    /// elsewhere for what is in them.
    ///
    /// With `relocate`, of all places for the run the one is emptied from which the fewest address units
    /// have to be moved. An allocation may be moved if its kind is movable, it is not pinned, and its
    /// owner, where that has a method `on_relocate(move)`, returns True. It is asked with the space
    /// unlocked, and has whatever lies at `move.old` copied to `move.new`; besides there are `move.size`,
    /// `kind`, `owner` and `record`. Then the allocation is at its new address, with its record and its
    /// owner; only if it was pinned or cut meanwhile it stays, and the owner is asked about the way back.
    /// If an owner refuses, or raises, which is told to `sys.unraisablehook`, another place is taken.
    /// Blocks keep their alignment, and runs the one they were asked for with. If the run cannot be had
    /// in the end, what was moved is moved back, its owners being asked again. What stays: what an owner
    /// refuses to have moved back, what another thread has taken the old place of, and what there is no
    /// memory to move back with. Where there is no room elsewhere for what is in
    /// a place, the next cheapest is tried, some 4,000 of them at most.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(16 * 4096)
    /// >>> space.alloc_at(4096, 4096)
    /// 4096
    /// >>> space.alloc_run(3 * 4096, fit="first") // 4096
    /// 2
    /// >>> space.alloc_run(3 * 4096) // 4096
    /// 8
    /// >>> space.alloc_run(4096, align=3 * 4096) // 4096
    /// 0
    /// >>> page = potad.Kind("page", movable=True)
    /// >>> space = potad.Space(16 * 4096)
    /// >>> pages = [space.alloc_at(at * 4096, 4096, kind=page) for at in (1, 3, 7, 8, 12, 14)]
    /// >>> space.alloc_run(8 * 4096, relocate=True) // 4096
    /// 4
    ///
    /// What Linux reserves areas for and does page by page (CMA), Matthew Wilcox would have the allocator
    /// do: one block of 8 MiB, else two adjacent ones of 4 MiB, down to eight of 1 MiB, moving what may be
    /// moved.
    #[pyo3(
        signature = (
            size, *, align = None, within = None, fit = Given::DEFAULT, relocate = Given::DEFAULT,
            kind = None, owner = None
        ),
        text_signature = "($self, size, *, align=None, within=None, fit='aligned', \
                          relocate=False, kind=None, owner=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "as many as the method has in Python")]
    fn alloc_run<'py>(
        this: &Bound<'py, Self>,
        size: &Bound<'py, PyAny>,
        align: Option<&Bound<'py, PyAny>>,
        within: Option<&Bound<'py, PyAny>>,
        fit: Given<'py>,
        relocate: Given<'py>,
        kind: Option<&Bound<'py, Kind>>,
        owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyInt>> {
        let size = convert::size("size", size)?;
        // Every run starts at a multiple of the granule, so 1 asks for no more.
        let align = align.map_or(Ok(1), |align| convert::size("align", align))?;
        let within = convert::window(within)?;
        let fit = fit.fit()?;
        if relocate.flag("relocate")? {
            let run = Run { size, align, within, fit };
            let start = relocation::alloc_run(this, run, &|| Named::new(kind, owner))?;
            return this.get().allocated(this.py(), start);
        }
        let alloc = move |space: &mut potad::Space| space.alloc_run(size, align, within, fit);
        let mut named = Named::new(kind, owner);
        let (py, this) = (this.py(), this.get());
        let start = this.shared.long(py, |state| state.allocate(&mut named, Some(align), alloc))?;
        this.allocated(py, start)
    }

    /// Allocates exactly the range of `size` from `address` on.
    ///
    /// Arguments:
    ///     address: the first address, a multiple of the granule.
    ///     size: in address units, a multiple of the granule, above 0.
    ///     kind: as for `alloc`.
    ///     owner: as for `alloc`.
    ///
    /// Returns: `address`.
    ///
    /// Raises:
    ///     OutOfSpace: not all of it is free and in the space; `reason` is "occupied".
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes a few words of memory at each of the tree's levels, at both ends of the range.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.alloc_at(40960, 12288)
    /// 40960
    #[pyo3(signature = (address, size, *, kind = None, owner = None))]
    fn alloc_at<'py>(
        &self,
        py: Python<'py>,
        address: &Bound<'py, PyAny>,
        size: &Bound<'py, PyAny>,
        kind: Option<&Bound<'py, Kind>>,
        owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyInt>> {
        let address = convert::address("address", address)?;
        let size = convert::size("size", size)?;
        let mut named = Named::new(kind, owner);
        let alloc = move |space: &mut potad::Space| space.alloc_at(address, size);
        // Nothing but the address itself was asked for.
        let start = self.shared.brief(py, |state| state.allocate(&mut named, Some(1), alloc))?;
        self.allocated(py, start)
    }

    /// Allocates `size` in as few blocks as the free space allows: all of it or nothing.
    ///
    /// Arguments:
    ///     size: in address units, above 0; rounded up to a multiple of the smallest block.
    ///     min_block: no block is smaller than this, rounded up to a power of two; by default the
    ///         granule.
    ///     within: `(low, high)` confines all blocks to addresses from `low` up to, and not
    ///         including, `high`.
    ///     kind: of each block, as for `alloc`.
    ///     owner: of each block, as for `alloc`.
    ///
    /// Returns: start and size of each block, largest first. Each is an allocation of its own.
    ///
    /// Raises:
    ///     OutOfSpace: the free blocks of at least `min_block` do not come to `size`.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes time in proportion to the number of blocks.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> [size // 4096 for start, size in space.alloc_scattered(7 * 4096)]
    /// [4, 2, 1]
    #[pyo3(signature = (size, *, min_block = None, within = None, kind = None, owner = None))]
    fn alloc_scattered<'py>(
        &self,
        py: Python<'py>,
        size: &Bound<'py, PyAny>,
        min_block: Option<&Bound<'py, PyAny>>,
        within: Option<&Bound<'py, PyAny>>,
        kind: Option<&Bound<'py, Kind>>,
        owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let size = convert::size("size", size)?;
        let min_block = min_block.map(|size| convert::size("min_block", size)).transpose()?;
        let within = convert::window(within)?;
        let mut named = Named::new(kind, owner);
        let alloc = move |space: &mut potad::Space| {
            let min_block = min_block.unwrap_or(space.granule() as u128);
            space.alloc_scattered(size, min_block, within)
        };
        let blocks = self.shared.long(py, |state| state.allocate(&mut named, None, alloc))?;
        ranges(py, &blocks).inspect_err(|_| self.take_away(py, &blocks))
    }

    /// Allocates `count` blocks of one size at once: all of them or none.
    ///
    /// Arguments:
    ///     size: of each, as for `alloc`.
    ///     count: how many, from 0 up.
    ///
    /// Returns: their addresses, an array of uint64.
    ///
    /// Raises:
    ///     OutOfSpace: there are not that many; `requested` is `size * count`.
    ///     ValueError, TypeError, OverflowError: an argument is not as above.
    ///     MemoryError: there is no memory for metadata, or for the array.
    ///
    /// Takes nanoseconds a block, and lets other threads run meanwhile.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> blocks = space.alloc_many(4096, 10)
    /// >>> blocks.dtype, len(space)
    /// (dtype('uint64'), 10)
    #[pyo3(signature = (size, count))]
    fn alloc_many<'py>(
        &self,
        py: Python<'py>,
        size: &Bound<'py, PyAny>,
        count: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let size = convert::size("size", size)?;
        let count = convert::address("count", count)?;
        // More than a word can count is more than there can be: the core says so.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut blocks = self.shared.long(py, |space| space.alloc_many(size, count))?;
        arrays::array(py, &mut blocks).inspect_err(|_| self.take_away(py, &blocks))
    }
}

impl Space {
    /// The address of what was just allocated, which is freed if there is no memory for that.
    fn allocated<'py>(&self, py: Python<'py>, start: u64) -> PyResult<Bound<'py, PyInt>> {
        integer(py, start.into()).inspect_err(|_| self.take_away(py, &start))
    }

    /// Frees what was just allocated, as far as others have left it like that.
    fn take_away(&self, py: Python<'_>, allocated: &(impl Allocated + Sync)) {
        let freed = self.shared.long(py, |state| {
            // What others have done to an allocation since is theirs.
            allocated.starts().for_each(|start| drop(state.free(start)));
            Ok(())
        });
        // Only a space that is of no further use refuses that.
        drop(freed);
    }
}

/// A list of pairs of start and size.
pub(super) fn ranges<'py>(py: Python<'py>, ranges: &[(u64, u128)]) -> PyResult<Bound<'py, PyList>> {
    list(py, ranges.iter(), |&(start, size)| {
        let pair = [integer(py, start.into())?.into_any(), integer(py, size)?.into_any()];
        Ok(tuple(py, pair)?.into_any())
    })
}
