//! NumPy's arrays in an arena: the functions that it allocates their data by (NEP 49).
//!
//! NumPy keeps the functions in use in a context variable, so they are those of a thread or a task, and
//! each array remembers the ones it was made with, in a capsule. What they need lives as long as
//! the capsule does, and so as long as the last array.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::{PyImportError, PyRuntimeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use potad::{Error, Fit, Label};

use crate::errors::raise;
use crate::kind::Kind;
use crate::lock::Shared;
use crate::objects::tuple;
use crate::space::Space;
use crate::state::State;

/// What NumPy's data is aligned to: a cache line, or what the granule is if that is less.
const ALIGN: u64 = 64;

/// The name of NumPy's capsules.
const NAME: &CStr = c"mem_handler";

/// Where in NumPy's table of functions that is which says what functions to use from now on.
const SET_HANDLER: usize = 304;

/// `PyDataMemAllocator`.
#[repr(C)]
struct Allocator {
    context: AtomicPtr<c_void>,
    malloc: extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: extern "C" fn(*mut c_void, *mut c_void, usize),
}

/// `PyDataMem_Handler`.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    allocator: Allocator,
}

/// What a capsule points to and keeps: the functions, and what they work on. It is a Python object because
/// Python says so where there is no memory for one; only the capsule refers to it.
#[pyclass(frozen, module = "potad._core")]
struct Functions {
    handler: Handler,
    context: Context,
}

/// What the functions work on: not the object that Python has of the space, which the collector could
/// not see from here.
struct Context {
    shared: Shared,
    kind: potad::Kind,
}

impl Context {
    /// Does something with the space locked; `None` if it fails. Called attached. If it has to wait it
    /// does so before it changes anything: NumPy does not expect other threads to run in the middle.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<T> {
        self.shared.held(act)
    }

    /// Allocates, and pins: an array is where it is.
    fn alloc(&self, state: &mut State, size: usize) -> Result<u64, Error> {
        state.must_be_open()?;
        let label = Label { kind: Some(self.kind), owner: 0 };
        let space = &mut state.space;
        let size = size.max(1) as u128;
        let granules = size.div_ceil(space.granule() as u128);
        // Blocks are aligned to their size; what is shorter than the alignment needs no more.
        let align = (ALIGN as u128).min(size.next_power_of_two()).max(16);
        let mut start = Err(Error::Metadata { bytes: 0 });
        if granules.is_power_of_two() && granules * space.granule() as u128 >= align {
            start = space.alloc_described(size, None, label);
        }
        let start = start.or_else(|_| {
            let start = space.alloc_run(size, align, None, Fit::Aligned)?;
            let described = space.describe(start, label, align);
            described.map(|()| start).inspect_err(|_| give_back(space, start))
        })?;
        space.pin(start).map(|_| start).inspect_err(|_| give_back(space, start))
    }

    fn free(&self, state: &mut State, address: u64) -> Result<(), Error> {
        // Whatever else is there now is not an array's.
        if state.label_at(address).kind == Some(self.kind) {
            state.unpin(address)?;
            state.free(address)?;
        }
        Ok(())
    }

    /// Allocates in place of what is at `old`, with the same bytes in it.
    fn realloc(&self, state: &mut State, old: u64, size: usize) -> Result<u64, Error> {
        let found = state.lookup(old).filter(|found| found.start == old);
        let had = found.map(|found| found.size as usize);
        // It stays where it is if that would be the same size.
        let granule = state.granule() as usize;
        if had == size.max(1).checked_next_multiple_of(granule) {
            return Ok(old);
        }
        match self.alloc(state, size) {
            Ok(new) => {
                let (from, to) = (old as *const u8, new as *mut u8);
                // SAFETY: both are of at least so many bytes, and apart.
                unsafe { to.copy_from_nonoverlapping(from, size.min(had.unwrap_or(0))) };
                self.free(state, old)?;
                Ok(new)
            }
            // There is no room to make it smaller.
            Err(_) if had.is_some_and(|had| size <= had) => Ok(old),
            Err(error) => Err(error),
        }
    }
}

fn give_back(space: &mut potad::Space, start: u64) {
    space.free(start).expect("it was just allocated");
}

/// Safety of all of them: NumPy calls them with the context it was given, which the capsule keeps that it
/// keeps, and with what they returned.
fn context<'a>(context: *mut c_void) -> &'a Context {
    // SAFETY: see above.
    unsafe { &*context.cast::<Context>() }
}

/// Where something was allocated, as NumPy has it.
fn pointer(address: Option<u64>) -> *mut c_void {
    address.map_or(std::ptr::null_mut(), |address| address as *mut c_void)
}

extern "C" fn malloc(this: *mut c_void, size: usize) -> *mut c_void {
    let context = context(this);
    pointer(context.with(|state| context.alloc(state, size)))
}

extern "C" fn calloc(this: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let Some(size) = count.checked_mul(size) else { return std::ptr::null_mut() };
    let data = malloc(this, size);
    if !data.is_null() {
        // SAFETY: so many bytes were just allocated there.
        unsafe { data.write_bytes(0, size) };
    }
    data
}

extern "C" fn realloc(this: *mut c_void, old: *mut c_void, size: usize) -> *mut c_void {
    if old.is_null() {
        return malloc(this, size);
    }
    let context = context(this);
    pointer(context.with(|state| context.realloc(state, old as u64, size)))
}

extern "C" fn free(this: *mut c_void, data: *mut c_void, _size: usize) {
    if !data.is_null() {
        let context = context(this);
        context.with(|state| context.free(state, data as u64));
    }
}

/// The functions of one arena.
pub struct Hooks {
    capsule: Py<PyCapsule>,
}

impl Hooks {
    pub fn new(py: Python<'_>, space: &Py<Space>) -> PyResult<Self> {
        let mut kind = Some(Py::new(py, Kind::plain(py, "numpy", false)?)?);
        let shared = &space.get().shared;
        let kind = shared.brief(py, |state| {
            // Of two threads that come here at once both use the kind of the first.
            if state.arrays.is_none() {
                state.arrays = state.kind_number(&mut kind)?;
            }
            Ok(state.arrays.expect("it is there now"))
        })?;
        let mut name = [0; 127];
        for (to, from) in name.iter_mut().zip(b"potad") {
            *to = *from as c_char;
        }
        let at = AtomicPtr::new(std::ptr::null_mut());
        let allocator = Allocator { context: at, malloc, calloc, realloc, free };
        let handler = Handler { name, version: 1, allocator };
        let kept =
            Py::new(py, Functions { handler, context: Context { shared: shared.share(), kind } })?;
        let Functions { handler, context } = kept.get();
        let at = std::ptr::from_ref(context).cast_mut().cast();
        handler.allocator.context.store(at, Ordering::Relaxed);
        // SAFETY: the capsule has a reference to the object, which does not change any more and stays
        // where it is. NumPy only reads the handler.
        let capsule = unsafe {
            let handler = std::ptr::from_ref(handler).cast_mut().cast();
            let capsule = ffi::PyCapsule_New(handler, NAME.as_ptr(), Some(drop_kept));
            let capsule = Bound::from_owned_ptr_or_err(py, capsule)?;
            ffi::PyCapsule_SetContext(capsule.as_ptr(), kept.into_ptr().cast());
            capsule.cast_into_unchecked::<PyCapsule>()
        };
        Ok(Hooks { capsule: capsule.unbind() })
    }

    pub fn context(&self, py: Python<'_>, space: &Py<Space>) -> NumpyContext {
        NumpyContext { space: space.clone_ref(py), capsule: self.capsule.clone_ref(py) }
    }
}

/// The last reference to a capsule is gone.
///
/// Safety: as Python calls the destructor of a capsule that `Hooks::new` has made.
unsafe extern "C" fn drop_kept(capsule: *mut ffi::PyObject) {
    // SAFETY: the caller's. The context is null if the capsule was never given its object.
    unsafe { ffi::Py_XDECREF(ffi::PyCapsule_GetContext(capsule).cast()) };
}

/// Has NumPy use other functions from now on, in this thread or task; those it used until now.
fn set_handler<'py>(py: Python<'py>, capsule: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let module = py
        .import(intern!(py, "numpy._core.multiarray"))
        .or_else(|_| py.import(intern!(py, "numpy.core.multiarray")))?;
    let table = module.getattr(intern!(py, "_ARRAY_API"))?.cast_into::<PyCapsule>()?;
    let table = table.pointer_checked(None)?.cast::<*const c_void>();
    // SAFETY: NumPy's table of functions, which has this one there since 1.22; what is older is not
    // supported. It takes a reference for a while, and gives a new one or an error.
    unsafe {
        let function = *table.add(SET_HANDLER).as_ptr();
        if function.is_null() {
            return Err(raise::<PyImportError>(py, "this NumPy has no allocation hooks"));
        }
        let set: extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject =
            std::mem::transmute(function);
        Bound::from_owned_ptr_or_err(py, set(capsule.as_ptr()))
    }
}

/// A context variable: a tuple of the contexts that this thread or task is in, innermost last. Each is a
/// pair: the arena's capsule, and the capsule that was in use before.
///
/// There is one variable for all arenas, because a thread's `contextvars.Context` keeps every variable that
/// was ever set in it.
static ENTERED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

fn variable<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyAny>> {
    let variable = ENTERED.get_or_try_init(py, || {
        let class = py.import(intern!(py, "contextvars"))?.getattr(intern!(py, "ContextVar"))?;
        PyResult::Ok(class.call1((intern!(py, "potad"),))?.unbind())
    })?;
    Ok(variable.bind(py))
}

/// The value of the variable, in this thread or task.
fn entered<'py>(py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
    let found = variable(py)?.call_method1(intern!(py, "get"), (tuple(py, [])?,))?;
    Ok(found.cast_into::<PyTuple>()?)
}

fn set_entered(py: Python<'_>, contexts: &Bound<'_, PyAny>) -> PyResult<()> {
    variable(py)?.call_method1(intern!(py, "set"), (contexts,)).map(drop)
}

/// What `Arena.numpy` returns.
#[pyclass(frozen, module = "potad._core")]
pub struct NumpyContext {
    space: Py<Space>,
    capsule: Py<PyCapsule>,
}

#[pymethods]
impl NumpyContext {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        self.space.get().shared.brief(py, |state| state.must_be_open())?;
        let contexts = entered(py)?;
        let capsule = self.capsule.bind(py).as_any();
        let before = set_handler(py, capsule)?;
        let done = || {
            let this = tuple(py, [capsule.clone(), before.clone()])?;
            set_entered(py, &contexts.add(tuple(py, [this.into_any()])?)?)
        };
        done().inspect_err(|_| drop(set_handler(py, &before)))
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        let contexts = entered(py)?;
        let mut at = contexts.len();
        let before = loop {
            let Some(last) = at.checked_sub(1) else {
                return Err(raise::<PyRuntimeError>(py, "left a context that was not entered"));
            };
            at = last;
            let context = contexts.get_item(at)?;
            if context.get_item(0)?.is(&self.capsule) {
                break context.get_item(1)?;
            }
        };
        let outer = contexts.get_slice(0, at);
        if at + 1 == contexts.len() {
            set_entered(py, outer.as_any())?;
            let set = set_handler(py, &before).map(drop);
            return set.inspect_err(|_| drop(set_entered(py, contexts.as_any())));
        }
        // A context that was entered later stays in use, and gives back what was before both.
        let later = tuple(py, [contexts.get_item(at + 1)?.get_item(0)?, before])?;
        let inner = contexts.get_slice(at + 2, contexts.len());
        set_entered(py, &outer.add(tuple(py, [later.into_any()])?)?.add(inner)?)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }
}
