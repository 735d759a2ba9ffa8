//! NumPy's arrays in an arena: the functions that it allocates their data by (NEP 49).
//!
//! NumPy keeps the functions in use in a context variable, so they are those of a thread or a task, and
//! each array remembers the ones it was made with, in a capsule. What they need lives as long as
//! the capsule does, and so as long as the last array.

use std::ffi::{CStr, c_char, c_void};

use pyo3::exceptions::{PyImportError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use potad::{Error, Fit, Label};

use crate::kind::Kind;
use crate::lock::Shared;
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
    context: *mut c_void,
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

/// What a capsule holds: the functions, and what they work on.
#[repr(C)]
struct Kept {
    handler: Handler,
    context: Box<Context>,
}

// SAFETY: the raw pointer in it is to the context beside it.
unsafe impl Send for Kept {}

/// What the functions work on: not the object that Python has of the space, which the collector could
/// not see from here.
struct Context {
    shared: Option<Shared>,
    kind: potad::Kind,
}

impl Drop for Context {
    fn drop(&mut self) {
        // From the capsule's destructor, with the interpreter held, which has to be said.
        let shared = self.shared.take();
        Python::try_attach(|_| drop(shared));
    }
}

impl Context {
    /// Does something with the space locked; `None` if it fails. Called with the interpreter held, which
    /// it keeps: who has the lock lets it go without.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<T> {
        self.shared.as_ref()?.held(act)
    }

    /// Allocates, and pins: an array is where it is.
    fn alloc(&self, size: usize) -> Option<u64> {
        let label = Label { kind: Some(self.kind), owner: 0 };
        self.with(|state| {
            state.must_be_open()?;
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
        })
    }

    fn free(&self, address: u64) {
        self.with(|state| {
            // Whatever else is there now is not an array's.
            if state.label_at(address).kind == Some(self.kind) {
                state.unpin(address)?;
                state.free(address)?;
            }
            Ok(())
        });
    }

    /// Bytes of the allocation of an array.
    fn size(&self, address: u64) -> Option<usize> {
        self.with(|state| Ok(state.lookup(address)))
            .flatten()
            .filter(|found| found.start == address)
            .map(|found| found.size as usize)
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

extern "C" fn malloc(this: *mut c_void, size: usize) -> *mut c_void {
    context(this).alloc(size).map_or(std::ptr::null_mut(), |address| address as *mut c_void)
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
    let had = context.size(old as u64);
    // It stays where it is if that would be the same size.
    let granule = context.with(|state| Ok(state.granule())).unwrap_or(1) as usize;
    if had == size.max(1).checked_next_multiple_of(granule) {
        return old;
    }
    let new = malloc(this, size);
    if new.is_null() && had.is_some_and(|had| size <= had) {
        // There is no room to make it smaller.
        return old;
    }
    if !new.is_null() {
        // SAFETY: both are of at least so many bytes, and apart.
        unsafe { new.copy_from_nonoverlapping(old, size.min(had.unwrap_or(0))) };
        context.free(old as u64);
    }
    new
}

extern "C" fn free(this: *mut c_void, data: *mut c_void, _size: usize) {
    if !data.is_null() {
        context(this).free(data as u64);
    }
}

/// The functions of one arena.
pub struct Hooks {
    capsule: Py<PyCapsule>,
}

impl Hooks {
    pub fn new(py: Python<'_>, space: &Py<Space>) -> PyResult<Self> {
        let kind = Py::new(py, Kind::plain("numpy", false))?;
        let shared = &space.get().shared;
        let kind = shared.brief(py, |state| {
            let kind = state.kind_number(kind)?;
            // Of two threads that come here at once both use the kind of the first.
            Ok(*state.arrays.get_or_insert(kind))
        })?;
        let context = Box::new(Context { shared: Some(shared.share()), kind });
        let mut name = [0; 127];
        for (to, from) in name.iter_mut().zip(b"potad") {
            *to = *from as c_char;
        }
        let at = std::ptr::from_ref::<Context>(&context).cast_mut().cast();
        let allocator = Allocator { context: at, malloc, calloc, realloc, free };
        let kept = Kept { handler: Handler { name, version: 1, allocator }, context };
        // The handler comes first in it, which is all that NumPy looks at.
        let capsule = PyCapsule::new_with_value(py, kept, NAME)?;
        Ok(Hooks { capsule: capsule.unbind() })
    }

    pub fn context(&self, py: Python<'_>, space: &Py<Space>) -> NumpyContext {
        NumpyContext { space: space.clone_ref(py), capsule: self.capsule.clone_ref(py) }
    }
}

/// Has NumPy use other functions from now on, in this thread or task; those it used until now.
fn set_handler<'py>(py: Python<'py>, capsule: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let module =
        py.import("numpy._core.multiarray").or_else(|_| py.import("numpy.core.multiarray"))?;
    let table = module.getattr("_ARRAY_API")?.cast_into::<PyCapsule>()?;
    let table = table.pointer_checked(None)?.cast::<*const c_void>();
    // SAFETY: NumPy's table of functions, which has this one there since 1.22; what is older is not
    // supported. It takes a reference for a while, and gives a new one or an error.
    unsafe {
        let function = *table.add(SET_HANDLER).as_ptr();
        if function.is_null() {
            return Err(PyImportError::new_err("this NumPy has no allocation hooks"));
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

fn entered<'py>(py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Vec<Pair<'py>>)> {
    let variable = ENTERED.get_or_try_init(py, || {
        let made = py.import("contextvars")?.getattr("ContextVar")?.call1(("potad",))?;
        PyResult::Ok(made.unbind())
    })?;
    let variable = variable.bind(py).clone();
    let pairs = variable.call_method1("get", (PyTuple::empty(py),))?.extract()?;
    Ok((variable, pairs))
}

type Pair<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

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
        let (variable, mut pairs) = entered(py)?;
        let capsule = self.capsule.bind(py).as_any();
        pairs.push((capsule.clone(), set_handler(py, capsule)?));
        variable.call_method1("set", (PyTuple::new(py, pairs)?,)).map(drop)
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        let (variable, mut pairs) = entered(py)?;
        let Some(at) = pairs.iter().rposition(|(capsule, _)| capsule.is(&self.capsule)) else {
            return Err(PyRuntimeError::new_err("left a context that was not entered"));
        };
        let (_, before) = pairs.remove(at);
        match pairs.get_mut(at) {
            // A context that was entered later stays in use, and gives back what was before both.
            Some((_, later)) => *later = before,
            None => drop(set_handler(py, &before)?),
        }
        variable.call_method1("set", (PyTuple::new(py, pairs)?,)).map(drop)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.space)
    }
}
