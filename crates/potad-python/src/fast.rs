//! `Space.alloc(n)` and `Space.free(n)` without the general call's overhead.
//!
//! These two take a few dozen nanoseconds, about as long as it takes to sort out arguments, names
//! and defaults. So they get a function of their own in front, which knows one form of call, a
//! single positional `int`, for `alloc` with a kind and an owner by name that the space knows
//! already, and one outcome, success. Whatever else it meets, it has changed nothing, and passes the
//! call on to the method it stands in front of: there are all other forms of arguments, all errors,
//! and the waiting.

use std::ffi::{CString, c_char};

use pyo3::PyTypeInfo;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::convert::small;
use crate::kind::Kind;
use crate::objects::dict;
use crate::space::Space;

/// The methods that stand behind.
static ALLOC: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static FREE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Puts the fast functions in front of the methods.
pub fn install(py: Python<'_>) -> PyResult<()> {
    put_in_front(py, c"alloc", alloc, &ALLOC)?;
    put_in_front(py, c"free", free, &FREE)
}

fn put_in_front(
    py: Python<'_>,
    name: &'static std::ffi::CStr,
    function: ffi::PyCFunctionFastWithKeywords,
    behind: &PyOnceLock<Py<PyAny>>,
) -> PyResult<()> {
    let class = py.get_type::<Space>();
    let method = class.getattr(name)?;
    // Where Python looks for a built-in function's signature: before its documentation.
    let signature: String = method.getattr("__text_signature__")?.extract()?;
    let documentation: String = method.getattr("__doc__")?.extract()?;
    let name_text = name.to_str().map_err(|_| PyTypeError::new_err("not UTF-8"))?;
    let text = CString::new(format!("{name_text}{signature}\n--\n\n{documentation}"))?;
    if behind.set(py, method.unbind()).is_err() {
        return Ok(()); // done before
    }
    // Methods refer to their definition for as long as there are any: for good.
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: function },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: text.into_raw() as *const c_char,
    }));
    // SAFETY: the class and the definition live as long as the process.
    let front = unsafe {
        Bound::from_owned_ptr_or_err(
            py,
            ffi::PyDescr_NewMethod(class.as_ptr() as *mut ffi::PyTypeObject, definition),
        )
    }?;
    class.setattr(name, front)
}

/// Safety: as Python calls a method of `Space`.
unsafe extern "C" fn alloc(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the caller's.
    unsafe {
        if let Some((space, size)) = plain(this, arguments, count, names)
            && let Some(address) = space.shared.at_once(|space| space.alloc(size as u128))
        {
            return allocated(space, address);
        }
        // That there is one positional argument is known before what stands behind it is looked at.
        if !names.is_null()
            && let Some((space, size)) = plain(this, arguments, count, std::ptr::null_mut())
            && let Some((kind, owner)) = named(arguments.add(1), names)
            && let Some(Some(address)) = space
                .shared
                .at_once(|state| state.allocate_known(size as u128, kind, owner).transpose())
        {
            return allocated(space, address);
        }
        pass_on(&ALLOC, this, arguments, count, names)
    }
}

/// The address of what was just allocated, which is freed if there is no memory for that.
#[inline(always)]
fn allocated(space: &Space, address: u64) -> *mut ffi::PyObject {
    // SAFETY: called attached.
    let object = unsafe { ffi::PyLong_FromUnsignedLongLong(address) };
    if object.is_null() {
        space.shared.held(|space| space.free(address));
    }
    object
}

/// Safety: as Python calls a method of `Space`.
unsafe extern "C" fn free(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the caller's.
    unsafe {
        if let Some((space, address)) = plain(this, arguments, count, names)
            && space.shared.at_once(|space| space.free(address)).is_some()
        {
            return ffi::Py_NewRef(ffi::Py_None());
        }
        pass_on(&FREE, this, arguments, count, names)
    }
}

/// The space and the number, in a call with a single `int`.
///
/// Safety: as Python calls a method of `Space`.
#[inline(always)]
unsafe fn plain<'a>(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> Option<(&'a Space, u64)> {
    if count != 1 || !names.is_null() {
        return None;
    }
    // SAFETY: a method is called with an instance of its class, which the caller keeps alive, and
    // with as many arguments as it says. The class is frozen, so a shared reference is what all
    // threads have.
    unsafe {
        let py = Python::assume_attached();
        let number = small(&Borrowed::from_ptr(py, *arguments))?;
        let space = Borrowed::from_ptr(py, this).cast_unchecked::<Space>();
        Some((&*std::ptr::from_ref(space.get()), number))
    }
}

/// A kind and an owner that are given by name, and nothing else: their objects, 0 for none.
///
/// Safety: as Python calls a method; `values` are those of the names.
unsafe fn named(
    values: *const *mut ffi::PyObject,
    names: *mut ffi::PyObject,
) -> Option<(usize, usize)> {
    // SAFETY: the caller's: `names` is a tuple of strings, and there are as many values.
    unsafe {
        let py = Python::assume_attached();
        let (mut kind, mut owner) = (0, 0);
        for at in 0..ffi::PyTuple_Size(names) {
            let name = ffi::PyTuple_GetItem(names, at);
            let value = *values.add(at as usize);
            // Names in a call are interned; another string that says the same takes the long way.
            let place = if name == pyo3::intern!(py, "kind").as_ptr() {
                if ffi::Py_TYPE(value) != Kind::type_object_raw(py) {
                    return None;
                }
                &mut kind
            } else if name == pyo3::intern!(py, "owner").as_ptr() && value != ffi::Py_None() {
                &mut owner
            } else {
                return None;
            };
            *place = value as usize;
        }
        Some((kind, owner))
    }
}

/// Calls the method behind with the same arguments.
///
/// Safety: as Python calls a method of `Space`.
#[cold]
unsafe fn pass_on(
    behind: &PyOnceLock<Py<PyAny>>,
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    Python::attach(|py| {
        let object = |pointer| {
            // SAFETY: the caller's; all are references that it keeps.
            unsafe { Bound::from_borrowed_ptr(py, pointer) }
        };
        let call = || -> PyResult<Bound<'_, PyAny>> {
            // SAFETY: the caller's: as many references as there are arguments. No other code has the
            // tuple and the dictionary yet, and a tuple takes the references it is given.
            unsafe {
                let positional = Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(count + 1))?;
                let values =
                    std::iter::once(this).chain((0..count).map(|at| *arguments.add(at as usize)));
                for (at, value) in (0..).zip(values) {
                    ffi::PyTuple_SetItem(positional.as_ptr(), at, ffi::Py_NewRef(value));
                }
                let keywords = dict(py)?;
                let names_count = if names.is_null() { 0 } else { ffi::PyTuple_Size(names) };
                for at in 0..names_count {
                    let name = ffi::PyTuple_GetItem(names, at);
                    // The values of named arguments come after the others.
                    let value = *arguments.add((count + at) as usize);
                    keywords.set_item(object(name), object(value))?;
                }
                let method = behind.get(py).expect("put there before this function");
                let positional = positional.cast_into_unchecked::<PyTuple>();
                method.bind(py).call(positional, Some(&keywords))
            }
        };
        match call() {
            Ok(result) => result.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    })
}
