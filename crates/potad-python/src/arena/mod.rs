//! The class `Arena`: a space with memory behind it.
//!
//! | file | what |
//! |---|---|
//! | `memory.rs` | the mapping, and what of it is given back to the system |
//! | `buffer.rs` | the class `Buffer`: an allocation that can be read and written |
//! | `export.rs` | what pins a buffer: the classes `Export` and `BufferPin` |
//! | `hooks.rs` | NumPy's arrays in an arena |
//!
//! The space's addresses are the real ones. A buffer is an allocation whose owner's number is its own, so
//! whatever call frees or moves it, the space's state says so to its [`Place`].

mod buffer;
mod export;
mod hooks;
mod memory;

use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use potad::Error;

use crate::convert::{self, Given};
use crate::descriptor::Descriptor;
use crate::errors::{self, checked, raise};
use crate::kind::Kind;
use crate::lock::Shared;
use crate::objects::{dict, integer, string};
use crate::relocation::{self, Run};
use crate::space::Space;
use crate::state::{Named, State};

pub use buffer::{Buffer, Place};
pub use memory::Memory;

use export::{BufferPin, Export};
use hooks::{Hooks, NumpyContext};
use memory::{HUGE, Mapping};

/// The kind of buffers that were given none.
static BUFFER: PyOnceLock<Py<Kind>> = PyOnceLock::new();

/// A space with memory behind it: allocations are buffers that can be read and written.
///
/// The space's addresses are real ones, so what is aligned in the space is aligned in memory: a block of
/// 2 MiB can be a huge page. Memory is committed when it is touched. Once 4 MiB have been freed, or a
/// sixteenth of what is in use if that is more, all free ranges of 128 KiB and up go back to the
/// system, and many smaller ones: so what is resident is at most what is in use, that much, and what
/// smaller free ranges come to.
///
/// Arguments:
///     size: bytes, a multiple of `granule`, above 0. Reserved as addresses only: 1 TiB is possible on a
///         small machine.
///     granule: the smallest amount handed out, in bytes; a power of two.
///     huge: asks the system for huge pages.
///
/// Raises:
///     ValueError, TypeError, OverflowError: an argument is not as above.
///     MemoryError: the system has no such range of addresses.
///
/// Takes a few system calls, whatever the size.
///
/// >>> import numpy, potad
/// >>> arena = potad.Arena(1 << 40)
/// >>> buffer = arena.alloc(8000)
/// >>> numbers = numpy.frombuffer(buffer, dtype=numpy.float64)
/// >>> numbers[:] = 1.5
/// >>> arena.find(numbers.ctypes.data + 5000).start == buffer.address
/// True
/// >>> buffer.descriptor.pins  # numbers can be looked at, so it stays where it is
/// 1
/// >>> del numbers
/// >>> buffer.free()
#[pyclass(frozen, weakref, module = "potad")]
pub struct Arena {
    space: Py<Space>,
    hooks: PyOnceLock<Hooks>,
}

/// Bytes of the system's pages.
fn page_size() -> usize {
    // SAFETY: asks for a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A mapping for a space, at the largest alignment that the system has addresses for.
fn map(size: usize, granule: u64, huge: bool) -> std::io::Result<(Mapping, usize)> {
    let page = if huge { HUGE } else { page_size() };
    let least = page.max(usize::try_from(granule).unwrap_or(usize::MAX));
    let rounded = size.checked_next_multiple_of(page);
    let rounded = rounded.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOMEM))?;
    let mut align = least.max(1 << size.ilog2());
    loop {
        match Mapping::new(rounded, align, huge) {
            // Blocks larger than the alignment may then not have a place.
            Err(_) if align > least => align = least.max(align >> 4),
            made => return made.map(|mapping| (mapping, page)),
        }
    }
}

impl Arena {
    /// The kind that a buffer gets which was given none.
    fn kind<'py>(py: Python<'py>, kind: Option<&Bound<'py, Kind>>) -> PyResult<Bound<'py, Kind>> {
        if let Some(kind) = kind {
            return Ok(kind.clone());
        }
        let made = BUFFER.get_or_try_init(py, || Py::new(py, Kind::plain(py, "buffer", true)?));
        made.map(|kind| kind.bind(py).clone())
    }
}

#[pymethods]
impl Arena {
    #[new]
    #[pyo3(
        signature = (size, *, granule = Given::DEFAULT, huge = Given::DEFAULT),
        text_signature = "(size, *, granule=4096, huge=False)"
    )]
    fn new(
        py: Python<'_>,
        size: &Bound<'_, PyAny>,
        granule: Given<'_>,
        huge: Given<'_>,
    ) -> PyResult<Self> {
        let bytes = convert::size("size", size)?;
        let granule = granule.address("granule")?.unwrap_or(4096);
        let huge = huge.flag("huge")?;
        if bytes == 0 {
            return Err(raise::<PyValueError>(py, "size must be above 0, not 0"));
        }
        // What makes no space is said before anything is mapped.
        checked(py, potad::Space::new(0, bytes, granule))?;
        let no_memory = |error: std::io::Error| {
            // By its number: the system's text for it would take memory.
            let error = error.raw_os_error().unwrap_or_default();
            raise::<PyMemoryError>(
                py,
                format_args!("no range of {bytes} bytes of addresses (error {error})"),
            )
        };
        let size = usize::try_from(bytes)
            .map_err(|_| no_memory(std::io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let (mapping, page) = map(size, granule, huge).map_err(no_memory)?;
        let space = potad::Space::new(mapping.start(), bytes, granule);
        let kind = Self::kind(py, None)?.unbind();
        let memory = Memory::new(mapping, page);
        let shared = space.and_then(|space| Shared::with_memory(space, memory, kind));
        let space = Py::new(py, Space { shared: checked(py, shared)? })?;
        Ok(Arena { space, hooks: PyOnceLock::new() })
    }

    /// The arena's space, which says what is where and takes the same calls as any.
    #[getter(space)]
    fn space_(&self, py: Python<'_>) -> Py<Space> {
        self.space.clone_ref(py)
    }

    /// Allocates a buffer of exactly `nbytes`. What is in it is not defined.
    ///
    /// Arguments:
    ///     nbytes: above 0; what it takes of the space is rounded up to granules.
    ///     kind: as for `Space.alloc`; by default one named "buffer", which is movable.
    ///     owner: as for `Space.alloc`.
    ///     block: takes a whole block, a power of two that is aligned to its size.
    ///
    /// Returns: a `Buffer`, which goes back when it is freed or collected.
    ///
    /// Raises:
    ///     OutOfSpace: there is no such free range.
    ///     ValueError, TypeError, OverflowError: an argument is not as above, or the arena is closed.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes as long as `Space.alloc`, and making an object.
    ///
    /// >>> import potad
    /// >>> arena = potad.Arena(1 << 30)
    /// >>> with arena.alloc(5000, owner="me") as buffer:
    /// ...     memoryview(buffer)[:5] = b"hello"
    /// ...     buffer.nbytes, buffer.owner, buffer.kind.name
    /// (5000, 'me', 'buffer')
    #[pyo3(
        signature = (nbytes, kind = None, owner = None, *, block = Given::DEFAULT),
        text_signature = "($self, nbytes, kind=None, owner=None, *, block=False)"
    )]
    fn alloc(
        &self,
        py: Python<'_>,
        nbytes: &Bound<'_, PyAny>,
        kind: Option<&Bound<'_, Kind>>,
        owner: Option<&Bound<'_, PyAny>>,
        block: Given<'_>,
    ) -> PyResult<Buffer> {
        let size = convert::size("nbytes", nbytes)?;
        let block = block.flag("block")?;
        let mut kind = kind.map(|kind| kind.clone().unbind());
        let mut owner = owner.map(|owner| owner.clone().unbind());
        let place = checked(py, Place::new())?;
        self.space.get().shared.brief(py, |state| {
            let allocated = state.alloc_buffer(size, block, &mut kind, &mut owner, &place);
            allocated.map_err(named_nbytes)
        })?;
        Ok(Buffer::new(self.space.clone_ref(py), place, size as usize))
    }

    /// Allocates a buffer of exactly `nbytes` at an alignment, moving others out of its way if need be.
    ///
    /// Arguments:
    ///     nbytes: as for `alloc`.
    ///     align: the address is a multiple of this; as for `Space.alloc_run`.
    ///     fit: as for `Space.alloc_run`.
    ///     relocate: as for `Space.alloc_run`. What is moved has its bytes copied once its owner has agreed,
    ///         and buffers know their new addresses.
    ///     kind: as for `alloc`.
    ///     owner: as for `alloc`.
    ///
    /// Returns: a `Buffer`.
    ///
    /// Raises:
    ///     OutOfSpace: there is no such run.
    ///     ValueError, TypeError, OverflowError: an argument is not as above, or the arena is closed.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes as long as `Space.alloc_run`, and to copy what is moved.
    ///
    /// >>> import potad
    /// >>> arena = potad.Arena(1 << 20)
    /// >>> small = [arena.alloc(4096) for _ in range(256)]
    /// >>> for buffer in small[::2]:
    /// ...     buffer.free()
    /// >>> arena.alloc_run(256 << 10, relocate=True).nbytes
    /// 262144
    #[pyo3(
        signature = (
            nbytes, *, align = None, fit = Given::DEFAULT, relocate = Given::DEFAULT, kind = None,
            owner = None
        ),
        text_signature = "($self, nbytes, *, align=None, fit='aligned', relocate=False, \
                          kind=None, owner=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "as many as the method has in Python")]
    fn alloc_run(
        &self,
        py: Python<'_>,
        nbytes: &Bound<'_, PyAny>,
        align: Option<&Bound<'_, PyAny>>,
        fit: Given<'_>,
        relocate: Given<'_>,
        kind: Option<&Bound<'_, Kind>>,
        owner: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Buffer> {
        let size = convert::size("nbytes", nbytes)?;
        let align = align.map_or(Ok(1), |align| convert::size("align", align))?;
        let (fit, relocate) = (fit.fit()?, relocate.flag("relocate")?);
        if size == 0 {
            return Err(raise::<PyValueError>(py, "nbytes must be above 0, not 0"));
        }
        let kind = Self::kind(py, kind)?;
        let place = checked(py, Place::new())?;
        let named = || Named::new(Some(&kind), owner).at(Some(&place));
        if relocate {
            let run = Run { size, align, within: None, fit };
            relocation::alloc_run(self.space.bind(py), run, &named)?;
        } else {
            let mut named = named();
            self.space.get().shared.long(py, |state| {
                let alloc = |space: &mut potad::Space| space.alloc_run(size, align, None, fit);
                state.allocate(&mut named, Some(align), alloc)
            })?;
        }
        Ok(Buffer::new(self.space.clone_ref(py), place, size as usize))
    }

    /// The descriptor of the allocation that a pointer points into, or None.
    ///
    /// Arguments:
    ///     pointer: such as `array.ctypes.data` or a tensor's `data_ptr()`.
    ///
    /// Returns: a `Descriptor`; its `start` is the real address.
    ///
    /// Takes as long as `Space.lookup`.
    ///
    /// >>> import potad
    /// >>> arena = potad.Arena(1 << 20)
    /// >>> buffer = arena.alloc(65536, owner="cache")
    /// >>> arena.find(buffer.address + 5000).owner
    /// 'cache'
    #[pyo3(signature = (pointer))]
    fn find(&self, py: Python<'_>, pointer: &Bound<'_, PyAny>) -> PyResult<Option<Descriptor>> {
        let Some(address) = convert::address_if_any("pointer", pointer)? else { return Ok(None) };
        let shared = &self.space.get().shared;
        shared.attached(py, |state| {
            let found = state.lookup(address);
            let found =
                found.map(|found| Descriptor::new(py, shared, state, found.start, found.size));
            found.transpose()
        })
    }

    /// Takes memory out of service that has failed, and tells whom it belongs to.
    ///
    /// Arguments:
    ///     pointer: the real address, as a machine check reports it; see `Space.memory_failure`.
    ///
    /// Returns: an `Outcome`.
    ///
    /// Raises:
    ///     ValueError: it does not point into the arena.
    ///
    /// Takes as long as `Space.memory_failure`.
    ///
    /// >>> import potad
    /// >>> arena = potad.Arena(1 << 20)
    /// >>> arena.memory_failure(arena.space.base + 5000)
    /// <Outcome.RECOVERED: 3>
    #[pyo3(signature = (pointer))]
    fn memory_failure<'py>(
        &self,
        py: Python<'py>,
        pointer: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let address = convert::address("pointer", pointer)?;
        let known = self.space.get().shared.brief(py, |state| Ok(state.is_memory(address, 1)))?;
        if !known {
            return Err(raise::<PyValueError>(
                py,
                format_args!("pointer must be one into the arena, not {address:#x}"),
            ));
        }
        let address = integer(py, address.into())?;
        self.space.bind(py).call_method1(intern!(py, "memory_failure"), (address,))
    }

    /// Moves buffers together, and gives back to the system what they leave.
    ///
    /// Arguments:
    ///     budget: bytes that may be moved at most; by default all.
    ///
    /// Returns: a `Compaction`, of blocks of 64 KiB, or of 2 MiB in an arena of huge pages.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: `budget` is not as above.
    ///     MemoryError: there is no memory for metadata.
    ///
    /// Takes as long as `Space.compact`, and to copy what is moved.
    ///
    /// >>> import potad
    /// >>> arena = potad.Arena(1 << 20)
    /// >>> buffers = [arena.alloc(4096) for _ in range(256)]
    /// >>> del buffers[::2]
    /// >>> arena.compact().blocks
    /// 8
    #[pyo3(signature = (*, budget = None))]
    fn compact<'py>(
        &self,
        py: Python<'py>,
        budget: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let shared = &self.space.get().shared;
        let piece = shared.brief(py, |state| Ok(state.piece()))?;
        let keywords = dict(py)?;
        keywords.set_item(intern!(py, "budget"), budget)?;
        let arguments = (integer(py, piece.into())?, integer(py, u64::MAX.into())?);
        let compact = self.space.bind(py).getattr(intern!(py, "compact"))?;
        let done = compact.call(arguments, Some(&keywords))?;
        self.trim(py)?;
        Ok(done)
    }

    /// Gives free memory back to the system now; it does that by itself as well.
    ///
    /// Takes a system call for each free range of some size.
    ///
    /// >>> import potad
    /// >>> potad.Arena(1 << 20).trim()
    #[pyo3(signature = ())]
    fn trim(&self, py: Python<'_>) -> PyResult<()> {
        self.space.get().shared.long(py, |state| {
            state.trim();
            Ok(())
        })
    }

    /// A context in which the data of NumPy arrays that are made lies in the arena.
    ///
    /// It is of this thread and task only. Arrays may outlive it, and the arena's name: each keeps what it
    /// needs. They are of a kind named "numpy", which is not movable.
    ///
    /// Returns: a context manager, which can be entered again and again.
    ///
    /// Takes a few function calls to enter and to leave.
    ///
    /// >>> import numpy, potad
    /// >>> arena = potad.Arena(1 << 30)
    /// >>> with arena.numpy():
    /// ...     numbers = numpy.arange(1000)
    /// >>> arena.find(numbers.ctypes.data).kind.name
    /// 'numpy'
    ///
    /// NumPy's enhancement proposal 49.
    #[pyo3(signature = ())]
    fn numpy(&self, py: Python<'_>) -> PyResult<NumpyContext> {
        self.space.get().shared.brief(py, |state| state.must_be_open())?;
        let hooks = self.hooks.get_or_try_init(py, || Hooks::new(py, &self.space))?;
        Ok(hooks.context(py, &self.space))
    }

    /// Closes the arena: no buffer and no array is allocated in it any more, and its memory goes back to the
    /// system. Its space goes on counting, if it is asked.
    ///
    /// Raises:
    ///     Busy: there are live allocations; nothing is changed.
    ///
    /// Takes one system call. To close it again does nothing.
    ///
    /// >>> import potad
    /// >>> with potad.Arena(1 << 20) as arena:
    /// ...     buffer = arena.alloc(100)
    /// ...     buffer.free()
    #[pyo3(signature = ())]
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let found = self.space.get().shared.brief(py, |state| {
            let found = state.next_allocation(0);
            if found.is_none() {
                state.close();
            }
            Ok(found)
        })?;
        match found {
            None => Ok(()),
            Some(found) => {
                let live = self.space.bind(py).len()?;
                let (start, size) = (found.start, found.size);
                Err(errors::busy(
                    py,
                    format_args!(
                        "the arena has {live} live allocations, the first of {size} at {start:#x}"
                    ),
                    start,
                ))
            }
        }
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let figures = |space: &mut State| {
            let closed = if space.closed { " closed" } else { "" };
            Ok((space.size(), space.granule(), space.used(), space.len(), closed))
        };
        let shared = &self.space.get().shared;
        let (size, granule, used, len, closed) = shared.brief(py, figures)?;
        string(
            py,
            format_args!(
                "<potad.Arena size={size} granule={granule} used={used} allocations={len}{closed}>"
            ),
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }
}

/// An error of the core's, with the name that the argument has here.
fn named_nbytes(error: Error) -> Error {
    match error {
        Error::Argument { name: "size", value, expected } => {
            Error::Argument { name: "nbytes", value, expected }
        }
        other => other,
    }
}

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Arena>()?;
    module.add_class::<Buffer>()?;
    module.add_class::<BufferPin>()?;
    module.add_class::<Export>()?;
    module.add_class::<NumpyContext>()
}
