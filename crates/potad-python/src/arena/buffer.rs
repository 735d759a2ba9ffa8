//! The class `Buffer`: an allocation of an arena that can be read and written.
//!
//! A buffer does not hold its memory; it knows where it is, and whether it still is: its [`Place`] is
//! told by the space when it is moved or freed, whatever call does that. To look at the memory (an
//! *export*: `memoryview`, an array) pins it, so it is neither moved nor freed until that is over.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use potad::{Error, Fit, Label};

use crate::descriptor::Descriptor;
use crate::kind::Kind;
use crate::space::Space;
use crate::state::{Owner, State};

/// Where a buffer is. Written with the space locked.
pub struct Place {
    /// Its address; 0, where no arena begins, when it was freed.
    address: AtomicU64,
    /// How often it is exported: so many of its pins are nobody's to take back.
    exports: AtomicU32,
}

impl Place {
    pub fn new() -> Arc<Self> {
        Arc::new(Place { address: AtomicU64::new(0), exports: AtomicU32::new(0) })
    }

    pub fn address(&self) -> u64 {
        self.address.load(Ordering::Acquire)
    }

    pub fn exports(&self) -> u32 {
        self.exports.load(Ordering::Acquire)
    }

    /// It is there now.
    pub fn enter(&self, address: u64) {
        self.address.store(address, Ordering::Release);
    }

    /// It is nowhere any more.
    pub fn leave(&self) {
        self.enter(0);
    }
}

impl State {
    /// The address of a buffer, if it still is one.
    #[inline]
    fn buffer_at(&self, place: &Arc<Place>) -> Result<u64, Error> {
        let address = place.address();
        let owner = self.label_at(address).owner;
        match self.place(owner) {
            Some(it) if address != 0 && Arc::ptr_eq(it, place) => Ok(address),
            _ => Err(Error::NotAllocated { address, inside: None }),
        }
    }

    /// The allocation that starts at an address was cut by a call of the space's own: it is no buffer any
    /// more, if it was one.
    pub fn cut(&self, start: u64) {
        if let Some(place) = self.place(self.label_at(start).owner) {
            place.leave();
        }
    }

    /// Allocates a buffer that is to be at a place.
    pub fn alloc_buffer(
        &mut self,
        size: u128,
        block: bool,
        kind: potad::Kind,
        object: Option<Py<PyAny>>,
        place: &Arc<Place>,
    ) -> Result<(), Error> {
        if let Err(error) = self.must_be_open() {
            self.put_aside_object(object);
            return Err(error);
        }
        let owner = self.new_owner(Owner { object, buffer: Some(place.clone()) });
        let label = Label { kind: Some(kind), owner };
        let allocated = self.alloc_exactly(size, block, label);
        match allocated {
            Ok(address) => place.enter(address),
            // The core has told of the number only if it had come to count it.
            Err(_) if !self.space.has_released() => self.forget(owner),
            Err(_) => {}
        }
        allocated.map(drop)
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

    /// Pins of an allocation that are nobody's to take back: of a buffer's exports, and an array's own.
    fn own_pins(&self, label: Label) -> u32 {
        match self.place(label.owner) {
            Some(place) => place.exports(),
            None => (label.kind.is_some() && label.kind == self.arrays) as u32,
        }
    }

    /// Some of a range was freed by a call of the space's own: what begins behind it, the end of a buffer,
    /// is none any more.
    pub fn cut_behind(&self, end: u128) {
        let Ok(end) = u64::try_from(end) else { return };
        if let Some(place) = self.place(self.label_at(end).owner)
            && place.address() != end
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
            return Err(Error::Argument {
                name: "address",
                value: format!("{:#x}", found.start),
                expected: "in an allocation that is pinned otherwise than by being looked at"
                    .into(),
            });
        }
        self.unpin(address)
    }
}

/// Memory of an arena, of exactly so many bytes; made by `Arena.alloc`.
///
/// It has the buffer protocol: `memoryview(buffer)`, `numpy.frombuffer(buffer, dtype)`,
/// `torch.frombuffer` and, by `__dlpack__`, `numpy.from_dlpack` and the like see its bytes without a
/// copy. While anybody does, it is pinned: neither freed nor moved. It goes back when it is freed, at
/// the end of a `with` block, or when it is collected.
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
    place: Arc<Place>,
    nbytes: usize,
}

impl Buffer {
    pub fn new(space: Py<Space>, place: Arc<Place>, nbytes: usize) -> Self {
        Buffer { space, place, nbytes }
    }

    /// Does something with the buffer's address, the space being locked, if it was not freed.
    fn at<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State, u64) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        self.space.get().shared.brief(py, |state| {
            let address = state.buffer_at(&self.place)?;
            act(state, address)
        })
    }

    /// Calls a method of an array of bytes over the buffer.
    fn as_array<'py>(
        this: &Bound<'py, Self>,
        method: &str,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let numpy = this.py().import("numpy")?;
        let array = numpy.call_method1("frombuffer", (this, numpy.getattr("uint8")?))?;
        array.call_method(method, arguments, keywords)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.place.address() == 0 {
            return;
        }
        // On any thread, from a finaliser, perhaps while an exception is on its way: none is made here.
        Python::attach(|_| {
            self.space.get().shared.held(|state| {
                let address = state.buffer_at(&self.place)?;
                // What somebody has pinned by its address stays theirs.
                state.free(address).map(drop)
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
    fn address(&self, py: Python<'_>) -> PyResult<u64> {
        self.at(py, |_, address| Ok(address))
    }

    /// How many bytes it has.
    #[getter]
    fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// Its descriptor: kind, owner, pins and record.
    #[getter]
    fn descriptor(&self, py: Python<'_>) -> PyResult<Descriptor> {
        let shared = &self.space.get().shared;
        shared.attached(py, |state| {
            let address = state.buffer_at(&self.place)?;
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
        shared.brief(py, |state| Ok(state.buffer_at(&self.place).is_err()))
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

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shared = &self.space.get().shared;
        let place = shared.brief(py, |state| Ok(state.buffer_at(&self.place)))?;
        Ok(match place {
            Ok(address) => format!("<potad.Buffer of {} bytes at {address:#x}>", self.nbytes),
            Err(_) => format!("<potad.Buffer of {} bytes, freed>", self.nbytes),
        })
    }

    /// A view of the bytes for other libraries, as DLPack has it.
    #[pyo3(signature = (**keywords))]
    fn __dlpack__<'py>(
        this: &Bound<'py, Self>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::as_array(this, "__dlpack__", &PyTuple::empty(this.py()), keywords)
    }

    /// The kind and number of the device, as DLPack counts them: the processor's memory.
    fn __dlpack_device__(&self) -> (u32, u32) {
        (1, 0)
    }

    fn __reduce_ex__<'py>(
        this: &Bound<'py, Self>,
        protocol: u32,
    ) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyAny>,))> {
        let py = this.py();
        let read = py.import("potad.arena")?.getattr("_read")?;
        let bytes = match protocol {
            0..5 => py.import("builtins")?.getattr("bytearray")?.call1((this,))?,
            _ => py.import("pickle")?.getattr("PickleBuffer")?.call1((this,))?,
        };
        Ok((read, (bytes,)))
    }

    /// Safety: as Python asks for a buffer.
    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let it = this.get();
        // SAFETY: Python's own; if there is no view, it is to say so.
        unsafe { (*view).obj = std::ptr::null_mut() };
        let address = it.at(this.py(), |state, address| {
            state.pin(address)?;
            it.place.exports.fetch_add(1, Ordering::AcqRel);
            Ok(address)
        })?;
        // SAFETY: the memory is mapped as long as there is the space, which `this` keeps, and in use by
        // nobody else as long as it is pinned.
        let done = unsafe {
            let len = it.nbytes as ffi::Py_ssize_t;
            ffi::PyBuffer_FillInfo(view, this.as_ptr(), address as *mut c_void, len, 0, flags)
        };
        if done < 0 {
            it.end_export(this.py())?;
            return Err(PyErr::fetch(this.py()));
        }
        Ok(())
    }

    /// Safety: as Python gives a buffer back.
    unsafe fn __releasebuffer__(&self, py: Python<'_>, _view: *mut ffi::Py_buffer) {
        // An error is only possible where the space is of no further use.
        let _ = self.end_export(py);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }
}

type Objects = (Option<Py<Kind>>, Option<Py<PyAny>>);

impl Buffer {
    fn objects(&self, py: Python<'_>) -> PyResult<Objects> {
        self.space.get().shared.attached(py, |state| {
            let address = state.buffer_at(&self.place)?;
            let label = state.lookup_described(address).map(|found| found.label);
            Ok(state.objects(py, label.unwrap_or_default()))
        })
    }

    fn end_export(&self, py: Python<'_>) -> PyResult<()> {
        self.space.get().shared.brief(py, |state| {
            self.place.exports.fetch_sub(1, Ordering::AcqRel);
            state.unpin(self.place.address()).map(drop)
        })
    }
}
