//! The class `Buffer`: an allocation of an arena that can be read and written.
//!
//! A buffer does not hold its memory; it knows where it is, and whether it still is: its [`Place`] is
//! told by the space when it is moved or freed, whatever call does that. To look at the memory (a
//! `memoryview`, an array) makes an [`Export`], which pins it until nothing looks at it through that export
//! any more.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use potad::{Error, Fit, Label};

use super::export::{BufferPin, Export};
use crate::counted::Counted;
use crate::descriptor::Descriptor;
use crate::errors;
use crate::kind::Kind;
use crate::objects::{integer, string, tuple};
use crate::space::Space;
use crate::state::State;

/// Where a buffer is. Written with the space locked.
pub struct Place {
    /// Its address, or the last one it had.
    address: AtomicU64,
    /// Whether it is there: it was allocated, and not freed since.
    is_there: AtomicBool,
    /// How many holds there are on it: so many of its pins no caller can take back.
    holds: AtomicU32,
}

impl Place {
    pub fn new() -> Result<Counted<Self>, Error> {
        let place = Place {
            address: AtomicU64::new(0),
            is_there: AtomicBool::new(false),
            holds: AtomicU32::new(0),
        };
        Counted::new(place).map_err(|_| Error::Metadata { bytes: size_of::<Self>() })
    }

    /// Its address, if it was not freed.
    pub fn address(&self) -> Option<u64> {
        self.is_there.load(Ordering::Acquire).then(|| self.last_address())
    }

    /// Its address, or where it was when it was freed.
    fn last_address(&self) -> u64 {
        self.address.load(Ordering::Acquire)
    }

    /// It is there now.
    pub fn enter(&self, address: u64) {
        self.address.store(address, Ordering::Release);
        self.is_there.store(true, Ordering::Release);
    }

    /// It is nowhere any more.
    pub fn leave(&self) {
        self.is_there.store(false, Ordering::Release);
    }
}

impl State {
    /// The address of a buffer, if it still is one.
    #[inline]
    fn buffer_at(&self, place: &Counted<Place>) -> Option<u64> {
        let address = place.address()?;
        let found = self.place(self.label_at(address).owner)?;
        found.is_same(place).then_some(address)
    }

    /// Does something with the address of a buffer; `None` if it is none any more.
    #[inline]
    fn at_buffer<T>(
        &mut self,
        place: &Counted<Place>,
        act: impl FnOnce(&mut State, u64) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.buffer_at(place).map(|address| act(self, address)).transpose()
    }

    /// The allocation that starts at an address was cut by a call of the space's own: it is no buffer any
    /// more, if it was one.
    pub fn cut(&self, start: u64) {
        if let Some(place) = self.place(self.label_at(start).owner) {
            place.leave();
        }
    }

    /// Allocates a buffer that is to be at a place. Takes the references to its kind, if that is new, and
    /// to its owner.
    pub fn alloc_buffer(
        &mut self,
        size: u128,
        block: bool,
        kind: &mut Option<Py<Kind>>,
        object: &mut Option<Py<PyAny>>,
        place: &Counted<Place>,
    ) -> Result<(), Error> {
        self.must_be_open()?;
        let kind = self.kind_number(kind)?.or(self.buffers);
        let owner = self.owners.add_buffer(object, place)?;
        match self.alloc_exactly(size, block, Label { kind, owner }) {
            Ok(address) => {
                place.enter(address);
                Ok(())
            }
            Err(error) => {
                *object = self.forget_new(owner);
                Err(error)
            }
        }
    }

    /// A block or run of exactly so many bytes, rounded up to granules.
    fn alloc_exactly(&mut self, size: u128, block: bool, label: Label) -> Result<u64, Error> {
        let space = &mut self.space;
        let granule = space.granule() as u128;
        // A run of a block's size is a block if there is one: much sooner found.
        if block || size.div_ceil(granule).is_power_of_two() {
            match space.alloc_described(size, None, label) {
                Err(Error::OutOfSpace { .. }) if !block => {}
                done => return done,
            }
        }
        let start = space.alloc_run(size, 1, None, Fit::Aligned)?;
        space.describe(start, label, 1).inspect_err(|_| {
            space.free(start).expect("it was just allocated");
        })?;
        Ok(start)
    }

    /// Pins of an allocation that no caller can take back: of a buffer's holds, and an array's own.
    fn own_pins(&self, label: Label) -> u32 {
        match self.place(label.owner) {
            Some(place) => place.holds.load(Ordering::Acquire),
            None => (label.kind.is_some() && label.kind == self.arrays) as u32,
        }
    }

    /// Some of a range was freed by a call of the space's own: what begins behind it, the end of a buffer,
    /// is none any more.
    pub fn cut_behind(&self, end: u128) {
        let Ok(end) = u64::try_from(end) else { return };
        if let Some(place) = self.place(self.label_at(end).owner)
            && place.address() != Some(end)
        {
            place.leave();
        }
    }

    /// Unpins an allocation for a caller, who cannot take back what an export has pinned.
    pub fn unpin_for_caller(&mut self, address: u64) -> Result<u32, Error> {
        if let Some(found) = self.lookup_described(address)
            && found.pins != 0
            && found.pins <= self.own_pins(found.label)
        {
            let expected = "in an allocation that is pinned otherwise than by being looked at, \
                            or by Buffer.pin";
            return Err(Error::argument("address", format_args!("{address:#x}"), expected));
        }
        self.unpin(address)
    }
}

/// Memory of an arena, of exactly so many bytes; made by `Arena.alloc`.
///
/// It has the buffer protocol: `memoryview(buffer)`, `numpy.frombuffer(buffer, dtype)`,
/// `torch.frombuffer` and, by `__dlpack__`, `numpy.from_dlpack` and the like see its bytes without a
/// copy. While anybody does, it is pinned: neither freed nor moved. That lasts as long as the view, the
/// array or the tensor, and whatever was made of it. `pin` does the same for a caller who has only the
/// address. It goes back when it is freed, at the end of a `with` block, or when it is collected.
///
/// An owner that keeps an array over its own buffer keeps both alive, since arrays do not show the
/// collector what they hold: let it keep the buffer.
///
/// Pickled with protocol 5 it hands its bytes out of band; what is read back is a `bytearray`, or
/// whatever the bytes were given back as.
///
/// >>> import potad
/// >>> arena = potad.Arena(1 << 20)
/// >>> buffer = arena.alloc(1000)
/// >>> view = memoryview(buffer)
/// >>> view[:3] = b"abc"
/// >>> bytes(view[:3]), len(buffer)
/// (b'abc', 1000)
#[pyclass(frozen, weakref, module = "potad")]
pub struct Buffer {
    space: Py<Space>,
    place: Counted<Place>,
    pub nbytes: usize,
}

impl Buffer {
    pub fn new(space: Py<Space>, place: Counted<Place>, nbytes: usize) -> Self {
        Buffer { space, place, nbytes }
    }

    /// Does something with the buffer's address, the space being locked, if it was not freed.
    fn at<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State, u64) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let shared = &self.space.get().shared;
        let done = shared.brief(py, |state| state.at_buffer(&self.place, act))?;
        done.ok_or_else(|| self.freed_error(py))
    }

    /// The same for what needs the interpreter: to take references to objects.
    fn attached_at<T>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State, u64) -> Result<T, Error>,
    ) -> PyResult<T> {
        let shared = &self.space.get().shared;
        let done = shared.attached(py, |state| state.at_buffer(&self.place, act))?;
        done.ok_or_else(|| self.freed_error(py))
    }

    /// The error for a call that needs the memory, which was freed.
    #[cold]
    fn freed_error(&self, py: Python<'_>) -> PyErr {
        let (nbytes, address) = (self.nbytes, self.place.last_address());
        errors::not_allocated(
            py,
            format_args!("the buffer of {nbytes} bytes at {address:#x} was freed"),
            address,
        )
    }

    /// Pins it for a hold: where it is.
    pub fn hold(&self, py: Python<'_>) -> PyResult<u64> {
        self.at(py, |state, address| {
            state.pin(address)?;
            self.place.holds.fetch_add(1, Ordering::AcqRel);
            Ok(address)
        })
    }

    /// Takes back what `hold` did. On any thread, from a finaliser: no exception is made here.
    pub fn let_go(&self) {
        self.space.get().shared.held(|state| {
            self.place.holds.fetch_sub(1, Ordering::AcqRel);
            // It is where it was, since it was pinned.
            state.unpin(self.place.last_address())
        });
    }

    /// Calls a method of an array of bytes over the buffer.
    fn as_array<'py>(
        this: &Bound<'py, Self>,
        method: &Bound<'py, PyString>,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = this.py();
        let numpy = py.import(intern!(py, "numpy"))?;
        let bytes = numpy.getattr(intern!(py, "uint8"))?;
        let array = numpy.call_method1(intern!(py, "frombuffer"), (this, bytes))?;
        array.call_method(method, arguments, keywords)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.place.address().is_none() {
            return;
        }
        // On any thread, from a finaliser, perhaps while an exception is on its way: none is made here.
        Python::attach(|_| {
            self.space.get().shared.held(|state| {
                // What somebody has pinned by its address stays theirs.
                state.at_buffer(&self.place, |state, address| state.free(address))
            });
        });
    }
}

#[pymethods]
impl Buffer {
    /// Its real address, a multiple of what it was asked for with. It changes when it is moved, which it
    /// is not while it is pinned.
    ///
    /// Raises NotAllocated if it was freed, as everything that needs the memory does.
    #[getter]
    fn address<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.at(py, |_, address| Ok(address))?.into())
    }

    /// How many bytes it has.
    #[getter(nbytes)]
    fn nbytes_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        integer(py, self.nbytes as u128)
    }

    /// Its descriptor: kind, owner, pins and record.
    #[getter]
    fn descriptor(&self, py: Python<'_>) -> PyResult<Descriptor> {
        let shared = &self.space.get().shared;
        self.attached_at(py, |state, address| {
            let size = state.lookup(address).map_or(0, |found| found.size);
            Descriptor::new(py, shared, state, address, size)
        })
    }

    /// Its kind.
    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<Option<Py<Kind>>> {
        self.objects(py).map(|(kind, _)| kind)
    }

    /// Its owner, or None.
    #[getter]
    fn owner(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.objects(py).map(|(_, owner)| owner)
    }

    /// Whether it was freed.
    #[getter]
    fn freed(&self, py: Python<'_>) -> PyResult<bool> {
        let shared = &self.space.get().shared;
        shared.brief(py, |state| Ok(state.buffer_at(&self.place).is_none()))
    }

    /// How often it is pinned: once for each view or array that was made of it and is still there, for
    /// each `pin`, and for each pin of its address in the space.
    #[getter]
    fn pins<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        let pins = self.at(py, |state, address| {
            Ok(state.lookup_described(address).map_or(0, |found| found.pins))
        });
        integer(py, pins?.into())
    }

    /// Pins it, so that its address can be kept: it is neither freed nor moved while the pin lives.
    ///
    /// Meanwhile `free` raises Busy, and what moves buffers to make room (`alloc_run` with `relocate`,
    /// `compact`) leaves it where it is.
    ///
    /// Returns: a `BufferPin`. It ends when it is collected, or at the end of a `with` block.
    ///
    /// Raises:
    ///     NotAllocated: it was freed.
    ///     MemoryError: there is no memory for one pin more.
    ///
    /// Takes as long as `Space.pin`, and making an object.
    ///
    /// >>> import ctypes, potad
    /// >>> buffer = potad.Arena(1 << 20).alloc(100)
    /// >>> with buffer.pin():
    /// ...     _ = ctypes.memset(buffer.address, 7, 100)
    /// >>> pin = buffer.pin()  # such as for pyarrow.foreign_buffer(buffer.address, 100, base=pin)
    /// >>> buffer.pins
    /// 1
    /// >>> del pin
    /// >>> buffer.free()
    #[pyo3(signature = ())]
    fn pin(this: &Bound<'_, Self>) -> PyResult<BufferPin> {
        BufferPin::new(this)
    }

    /// Frees it.
    ///
    /// Raises:
    ///     Busy: it is exported, or pinned otherwise.
    ///     NotAllocated: it was freed before.
    ///
    /// Takes as long as `Space.free`.
    ///
    /// >>> import potad
    /// >>> buffer = potad.Arena(1 << 20).alloc(100)
    /// >>> buffer.free()
    /// >>> buffer.freed
    /// True
    #[pyo3(signature = ())]
    fn free(&self, py: Python<'_>) -> PyResult<()> {
        self.at(py, |state, address| state.free(address).map(drop))
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    /// Frees it, unless that was done.
    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        if self.freed(py)? { Ok(()) } else { self.free(py) }
    }

    fn __len__(&self) -> usize {
        self.nbytes
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let (shared, nbytes) = (&self.space.get().shared, self.nbytes);
        match shared.brief(py, |state| Ok(state.buffer_at(&self.place)))? {
            Some(address) => {
                string(py, format_args!("<potad.Buffer of {nbytes} bytes at {address:#x}>"))
            }
            None => string(py, format_args!("<potad.Buffer of {nbytes} bytes, freed>")),
        }
    }

    /// A view of the bytes for other libraries, as DLPack has it.
    #[pyo3(signature = (**keywords))]
    fn __dlpack__<'py>(
        this: &Bound<'py, Self>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = this.py();
        Self::as_array(this, intern!(py, "__dlpack__"), &tuple(py, [])?, keywords)
    }

    /// The kind and number of the device, as DLPack counts them: the processor's memory.
    fn __dlpack_device__(&self) -> (u32, u32) {
        (1, 0)
    }

    fn __reduce_ex__<'py>(this: &Bound<'py, Self>, protocol: u32) -> PyResult<Bound<'py, PyTuple>> {
        let py = this.py();
        let read = py.import(intern!(py, "potad.arena"))?.getattr(intern!(py, "_read"))?;
        let (module, class) = match protocol {
            0..5 => (intern!(py, "builtins"), intern!(py, "bytearray")),
            _ => (intern!(py, "pickle"), intern!(py, "PickleBuffer")),
        };
        let bytes = py.import(module)?.getattr(class)?.call1((this,))?;
        tuple(py, [read, tuple(py, [bytes])?.into_any()])
    }

    /// Safety: as Python asks for a buffer.
    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: Python's own; if there is no view, it is to say so.
        unsafe { (*view).obj = std::ptr::null_mut() };
        let export = Export::new(&this)?;
        // SAFETY: the caller's.
        unsafe { Export::fill(&export, view, flags) }
    }

    /// Never called, since it is the export that a view gives back. NumPy looks whether it is there:
    /// `frombuffer` keeps a view of what has it, but of anything else the object itself, which pins nothing.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {}

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }
}

type Objects = (Option<Py<Kind>>, Option<Py<PyAny>>);

impl Buffer {
    fn objects(&self, py: Python<'_>) -> PyResult<Objects> {
        self.attached_at(py, |state, address| {
            let label = state.lookup_described(address).map(|found| found.label);
            Ok(state.objects(py, label.unwrap_or_default()))
        })
    }
}
