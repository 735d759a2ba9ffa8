//! The replay engine for Python: `TraceParser`, `Trace`, `Replay` and `RunReplay` of `potad._core`.
//!
//! Conversion only. Work of any length runs with the interpreter detached, so that other Python
//! threads go on meanwhile. All but `Trace` change with each call and are for one thread at a time:
//! calls of several threads wait for each other. A `Trace` does not change and is shared between
//! replays.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use potad_replay as engine;
use potad_replay::{BuildError, ReplayError, RunRequests, Settings};

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TraceParser>()?;
    module.add_class::<Trace>()?;
    module.add_class::<Replay>()?;
    module.add_class::<RunReplay>()
}

/// What is behind a lock. A call that panicked left it as it was or half done; the next call says so
/// by its result, there is nothing else to protect.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn replay_error(error: ReplayError) -> PyErr {
    let message = error.to_string();
    match error {
        ReplayError::Build(BuildError::Metadata { .. }) => PyMemoryError::new_err(message),
        // Not the caller's doing: an allocator that fails its own recount.
        ReplayError::Check(_) => PyRuntimeError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}

/// Reads recorded page traffic, in pieces of any length.
#[pyclass(frozen, module = "potad._core")]
struct TraceParser {
    /// `None` when finished. Boxed, as it searches with vector registers that it keeps: Python
    /// aligns its objects to 16 bytes only.
    parser: Mutex<Option<Box<engine::TraceParser>>>,
}

impl TraceParser {
    fn with<T>(&self, read: impl FnOnce(&mut engine::TraceParser) -> T) -> PyResult<T> {
        match lock(&self.parser).as_mut() {
            Some(parser) => Ok(read(parser)),
            None => Err(PyValueError::new_err("this parser is finished")),
        }
    }
}

#[pymethods]
impl TraceParser {
    #[new]
    fn new() -> Self {
        TraceParser { parser: Mutex::new(Some(Box::new(engine::TraceParser::new()))) }
    }

    /// Reads the next bytes of the text.
    fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        py.detach(|| self.with(|parser| parser.feed(data)))
    }

    /// Ends the text and gives the trace; ValueError where there is no page event in it.
    fn finish(&self, py: Python<'_>) -> PyResult<Trace> {
        let finished = py.detach(|| lock(&self.parser).take().map(|parser| parser.finish()));
        match finished {
            Some(Ok(trace)) => Ok(Trace { trace: Arc::new(trace) }),
            Some(Err(error)) => Err(PyValueError::new_err(error.to_string())),
            None => Err(PyValueError::new_err("this parser is finished")),
        }
    }

    /// Page events read so far.
    #[getter]
    fn events(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.with(|parser| parser.events()))
    }

    /// Lines read so far.
    #[getter]
    fn lines(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.with(|parser| parser.lines()))
    }
}

/// A recorded stretch of page traffic.
#[pyclass(frozen, module = "potad._core")]
struct Trace {
    trace: Arc<engine::Trace>,
}

#[pymethods]
impl Trace {
    #[getter]
    fn events(&self) -> u64 {
        self.trace.events()
    }

    #[getter]
    fn allocations(&self) -> u64 {
        self.trace.allocations()
    }

    #[getter]
    fn frees(&self) -> u64 {
        self.trace.frees()
    }

    #[getter]
    fn failed_allocations(&self) -> u64 {
        self.trace.failed_allocations()
    }

    #[getter]
    fn frees_before_recording(&self) -> u64 {
        self.trace.frees_before_recording()
    }

    #[getter]
    fn partial_frees(&self) -> u64 {
        self.trace.partial_frees()
    }

    #[getter]
    fn lost_frees(&self) -> u64 {
        self.trace.lost_frees()
    }

    #[getter]
    fn malformed(&self) -> u64 {
        self.trace.malformed()
    }

    #[getter]
    fn malformed_lines(&self) -> Vec<(u64, String)> {
        let lines = self.trace.malformed_lines();
        lines.iter().map(|(number, fault)| (*number, fault.to_string())).collect()
    }

    #[getter]
    fn dropped(&self) -> u64 {
        self.trace.dropped()
    }

    #[getter]
    fn peak_bytes(&self) -> u64 {
        self.trace.peak_bytes()
    }

    #[getter]
    fn live_bytes(&self) -> u64 {
        self.trace.live_bytes()
    }

    #[getter]
    fn seconds(&self) -> f64 {
        self.trace.seconds()
    }

    #[getter]
    fn format(&self) -> &'static str {
        self.trace.format().name()
    }
}

/// A trace on its way through one allocator.
#[pyclass(frozen, module = "potad._core")]
struct Replay {
    /// Boxed for its alignment, as the parser is.
    replay: Mutex<Box<engine::Replay>>,
    /// Steps of all passes together.
    #[pyo3(get)]
    total: u64,
}

#[pymethods]
impl Replay {
    #[new]
    fn new(
        py: Python<'_>,
        trace: &Trace,
        allocator: &str,
        memory: u64,
        probe_interval: u64,
        points: u64,
    ) -> PyResult<Self> {
        let settings = Settings { memory_bytes: memory, probe_interval, points };
        let trace = trace.trace.clone();
        let replay =
            py.detach(|| engine::Replay::new(trace, allocator, settings)).map_err(replay_error)?;
        Ok(Replay { total: replay.total(), replay: Mutex::new(Box::new(replay)) })
    }

    /// Replays up to so many more events; how many, 0 at the end.
    fn step(&self, py: Python<'_>, events: u64) -> PyResult<u64> {
        py.detach(|| lock(&self.replay).step(events)).map_err(replay_error)
    }

    /// The result as JSON, after the allocator's own check; ValueError before the end.
    fn result(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| match lock(&self.replay).result() {
            Ok(report) => Ok(report.to_json()),
            Err(error) => Err(replay_error(error)),
        })
    }
}

/// Which runs are asked for: the attributes of a `potad.trace.RunRequests`.
#[derive(FromPyObject)]
struct Requests {
    size_bytes: u64,
    align_bytes: u64,
    interval_events: u64,
    at_once: u64,
    pinned: f64,
    reserve: f64,
}

/// A trace on its way through one relocator, which is asked for runs.
#[pyclass(frozen, module = "potad._core")]
struct RunReplay {
    /// Boxed for its alignment, as the parser is.
    relocation: Mutex<Box<engine::Relocation>>,
    /// Steps of the pass.
    #[pyo3(get)]
    total: u64,
}

#[pymethods]
impl RunReplay {
    #[new]
    fn new(
        py: Python<'_>,
        trace: &Trace,
        relocator: &str,
        memory: u64,
        requests: Requests,
        points: u64,
    ) -> PyResult<Self> {
        let Requests { size_bytes, align_bytes, interval_events, at_once, pinned, reserve } =
            requests;
        let requests =
            RunRequests { size_bytes, align_bytes, interval_events, at_once, pinned, reserve };
        let trace = trace.trace.clone();
        let relocation = py
            .detach(|| engine::Relocation::new(trace, relocator, memory, requests, points))
            .map_err(replay_error)?;
        Ok(RunReplay { total: relocation.total(), relocation: Mutex::new(Box::new(relocation)) })
    }

    /// Replays up to so many more events; how many, 0 at the end.
    fn step(&self, py: Python<'_>, events: u64) -> u64 {
        py.detach(|| lock(&self.relocation).step(events))
    }

    /// The result as JSON, after the relocator's own check; ValueError before the end.
    fn result(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| match lock(&self.relocation).result() {
            Ok(report) => Ok(report.to_json()),
            Err(error) => Err(replay_error(error)),
        })
    }
}
