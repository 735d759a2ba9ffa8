//! The Python binding of potad: the compiled module `potad._core`.
//!
//! Conversion, exceptions and locks, and nothing else: what a call does is the core's. A call goes
//! through these files:
//!
//! | file | what |
//! |---|---|
//! | `convert.rs`, `arrays.rs` | arguments into numbers, before anything is locked |
//! | `space/` | the class `Space`: which call of the core it is, and its documentation |
//! | `arena/` | the classes `Arena` and `Buffer`: memory behind a space |
//! | `kind.rs`, `record.rs`, `descriptor.rs` | what is known about an allocation |
//! | `state.rs`, `kinds.rs`, `owners.rs` | the objects that the core's numbers of kinds and owners stand for |
//! | `relocation.rs` | moves that owners are asked about |
//! | `trash.rs` | dropping references, however long a chain of them |
//! | `lock.rs`, `fork.rs` | one thread at a time, and what becomes of that in a child process |
//! | `errors.rs` | errors as exceptions |
//! | `objects.rs`, `memory.rs`, `counted.rs` | new objects, lists and pointers, or the word that there is no memory |
//! | `file.rs` | checksums and holes, for `potad.swap` |
//! | `replay.rs` | the replay engine, for `potad.trace` |
//! | `signals.rs` | signals as messages in a pipe, for `potad.trace` |
//!
//! The module is for Python 3.11 and up by the stable ABI. All classes are frozen, and what changes is
//! behind locks, so it declares that it needs no GIL. No free-threaded Python has run its tests yet.

mod arena;
mod arrays;
mod convert;
mod counted;
mod descriptor;
mod errors;
mod fast;
mod file;
mod fork;
mod kind;
mod kinds;
mod lock;
mod nothing;
mod objects;
mod owners;
mod record;
mod relocation;
mod replay;
mod signals;
mod space;
mod state;
mod trash;

use pyo3::prelude::*;

/// The compiled core of potad. Its public names are those of the package.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // NumPy's functions are looked up at their first use, where a failure could not be reported.
    module.py().import("numpy")?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<space::Space>()?;
    module.add_class::<descriptor::Descriptor>()?;
    module.add_class::<space::walk::SpaceIterator>()?;
    module.add_class::<kind::Kind>()?;
    module.add_class::<record::RecordBytes>()?;
    module.add_class::<space::describe::Pinned>()?;
    module.add_class::<nothing::Nothing>()?;
    arena::register(module)?;
    file::register(module)?;
    fast::install(module.py())?;
    replay::register(module)?;
    signals::register(module)?;
    fork::install()?;
    Ok(())
}
