//! The replay engine for Python: `TraceParser`, `Trace`, `Replay` and `RunReplay` of `potad._core`.
//!
//! Conversion only. Work of any length runs with the interpreter detached, so that other Python
//! threads go on meanwhile, and looks for signals several times a second: a handler that raises, as that
//! of Ctrl-C does, ends the call. All but `Trace` change with each call and are for one thread at a time:
//! calls of several threads wait for each other. A `Trace` does not change and is shared between
//! replays.
//!
//! A call that ended half done, by a signal's handler or because memory ran out, leaves nothing that could
//! be gone on with: what it worked on is given back at once, and further calls are refused.

use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use potad::fallible::text;
use potad_replay as engine;
use potad_replay::{
    BuildError, Interrupts, OutOfMemory, ReplayError, RunRequests, Settings, Stop, TraceError,
};

/// What is said of something that has ended.
const ENDED: &str =
    "it is finished, or a call of it was interrupted or ran out of memory: make a new one";

/// What is said to a signal's handler that calls what it has interrupted.
const UNDER_WAY: &str = "a call of it is under way in this thread, which a signal has interrupted";

/// Time between two looks for signals.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TraceParser>()?;
    module.add_class::<Trace>()?;
    module.add_class::<Replay>()?;
    module.add_class::<RunReplay>()
}

/// What is behind a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a call came to nothing.
enum Failure {
    /// What it worked on ended with an earlier call.
    Ended,
    /// A signal's handler has called what its thread is in a call of.
    UnderWay,
    Trace(TraceError),
    Replay(ReplayError),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Failure {
        Failure::Replay(stop.into())
    }
}

impl From<OutOfMemory> for Failure {
    fn from(refused: OutOfMemory) -> Failure {
        Stop::from(refused).into()
    }
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Failure {
        Failure::Trace(error)
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Failure {
        Failure::Replay(error)
    }
}

impl Failure {
    /// Why what the call worked on is half done, if it is.
    fn stop(&self) -> Option<Stop> {
        match self {
            Failure::Trace(TraceError::Stopped(stop)) => Some(*stop),
            Failure::Replay(error) => error.stop(),
            Failure::Ended | Failure::UnderWay | Failure::Trace(_) => None,
        }
    }

    /// The exception for it; `raised` is what a signal's handler has raised.
    fn exception(self, py: Python<'_>, raised: Option<PyErr>) -> PyErr {
        let stop = self.stop();
        if let (Some(Stop::Interrupted), Some(raised)) = (stop, raised) {
            return raised;
        }
        let message = match &self {
            Failure::Ended => text(format_args!("{ENDED}")),
            Failure::UnderWay => text(format_args!("{UNDER_WAY}")),
            Failure::Trace(error) => text(format_args!("{error}")),
            Failure::Replay(error) => text(format_args!("{error}")),
        };
        let class = match self {
            _ if stop.is_some() => py.get_type::<PyMemoryError>(),
            Failure::Replay(ReplayError::Build(BuildError::Metadata { .. })) => {
                py.get_type::<PyMemoryError>()
            }
            // Not the caller's doing: an allocator that fails its own recount.
            Failure::Replay(ReplayError::Check(_)) => py.get_type::<PyRuntimeError>(),
            Failure::UnderWay => py.get_type::<PyRuntimeError>(),
            _ => py.get_type::<PyValueError>(),
        };
        let made = python_text(py, &message).and_then(|message| class.call1((message,)));
        made.map_or_else(|error| error, PyErr::from_value)
    }
}

/// A text as a Python object, for which there may be no memory.
fn python_text<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyString>> {
    PyString::from_bytes(py, text.as_bytes())
}

/// Runs `work` detached, with looks for signals on the way.
fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut Interrupts<'_>) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let done = py.detach(|| {
        let mut looked = Instant::now();
        let mut wants_stop = || {
            if looked.elapsed() < LOOK_INTERVAL {
                return false;
            }
            looked = Instant::now();
            raised = Python::attach(|py| py.check_signals()).err();
            raised.is_some()
        };
        work(&mut Interrupts::new(&mut wants_stop))
    });
    done.map_err(|failure| failure.exception(py, raised))
}

/// Something that changes with each call, until it is taken or a call of it ends half done.
struct Ongoing<T> {
    ongoing: Mutex<Option<T>>,
    /// The thread whose call is under way (see `this_thread`), or 0. A signal's handler that runs in
    /// that call must not wait for its end.
    thread: AtomicUsize,
}

/// A number that no other thread has meanwhile, and which takes no memory.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here).addr())
}

impl<T: Send> Ongoing<T> {
    fn new(ongoing: T) -> Self {
        Ongoing { ongoing: Mutex::new(Some(ongoing)), thread: AtomicUsize::new(0) }
    }

    /// Locks it, and tells the thread while `work` is done.
    fn locked<R>(
        &self,
        work: impl FnOnce(&mut Option<T>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        // Of this thread's own number, only this thread is the writer.
        if self.thread.load(Relaxed) == this_thread() {
            return Err(Failure::UnderWay);
        }
        let mut place = lock(&self.ongoing);
        self.thread.store(this_thread(), Relaxed);
        let result = work(&mut place);
        self.thread.store(0, Relaxed);
        result
    }

    fn call<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut T, &mut Interrupts<'_>) -> Result<R, Failure> + Send,
    ) -> PyResult<R> {
        interruptible(py, |interrupts| {
            self.locked(|place| {
                let result = work(place.as_mut().ok_or(Failure::Ended)?, interrupts);
                if result.as_ref().is_err_and(|failure| failure.stop().is_some()) {
                    *place = None;
                }
                result
            })
        })
    }

    fn take(&self) -> Result<T, Failure> {
        self.locked(|place| place.take().ok_or(Failure::Ended))
    }
}

/// Reads recorded page traffic, in pieces of any length.
#[pyclass(frozen, module = "potad._core")]
struct TraceParser(Ongoing<engine::TraceParser>);

#[pymethods]
impl TraceParser {
    #[new]
    fn new() -> Self {
        TraceParser(Ongoing::new(engine::TraceParser::new()))
    }

    /// Reads the next bytes of the text.
    fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        self.0.call(py, |parser, interrupts| Ok(parser.feed(data, interrupts)?))
    }

    /// Ends the text and gives the trace; ValueError where there is no page event in it.
    fn finish(&self, py: Python<'_>) -> PyResult<Trace> {
        interruptible(py, |_| Ok(Trace(self.0.take()?.finish()?)))
    }

    /// Page events read so far.
    #[getter]
    fn events(&self, py: Python<'_>) -> PyResult<u64> {
        self.0.call(py, |parser, _| Ok(parser.events()))
    }

    /// Lines read so far.
    #[getter]
    fn lines(&self, py: Python<'_>) -> PyResult<u64> {
        self.0.call(py, |parser, _| Ok(parser.lines()))
    }
}

/// A recorded stretch of page traffic.
#[pyclass(frozen, module = "potad._core")]
struct Trace(engine::Trace);

/// What a replay reads its trace through: the Python object, as a counted pointer of Rust's own cannot be
/// made without memory for it.
struct Held(Py<Trace>);

impl Deref for Held {
    type Target = engine::Trace;

    fn deref(&self) -> &engine::Trace {
        &self.0.get().0
    }
}

#[pymethods]
impl Trace {
    #[getter]
    fn events(&self) -> u64 {
        self.0.events()
    }

    #[getter]
    fn allocations(&self) -> u64 {
        self.0.allocations()
    }

    #[getter]
    fn frees(&self) -> u64 {
        self.0.frees()
    }

    #[getter]
    fn failed_allocations(&self) -> u64 {
        self.0.failed_allocations()
    }

    #[getter]
    fn frees_before_recording(&self) -> u64 {
        self.0.frees_before_recording()
    }

    #[getter]
    fn partial_frees(&self) -> u64 {
        self.0.partial_frees()
    }

    #[getter]
    fn lost_frees(&self) -> u64 {
        self.0.lost_frees()
    }

    #[getter]
    fn malformed(&self) -> u64 {
        self.0.malformed()
    }

    #[getter]
    fn malformed_lines<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let lines = PyList::empty(py);
        for (number, fault) in self.0.malformed_lines() {
            lines.append((*number, python_text(py, &text(format_args!("{fault}")))?))?;
        }
        Ok(lines)
    }

    #[getter]
    fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    #[getter]
    fn peak_bytes(&self) -> u64 {
        self.0.peak_bytes()
    }

    #[getter]
    fn live_bytes(&self) -> u64 {
        self.0.live_bytes()
    }

    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds()
    }

    #[getter]
    fn format(&self) -> &'static str {
        self.0.format().name()
    }
}

/// A trace on its way through one allocator.
#[pyclass(frozen, module = "potad._core")]
struct Replay {
    replay: Ongoing<engine::Replay>,
    /// Steps of all passes together.
    #[pyo3(get)]
    total: u64,
}

#[pymethods]
impl Replay {
    #[new]
    fn new(
        py: Python<'_>,
        trace: Py<Trace>,
        allocator: &str,
        memory: u64,
        probe_interval: u64,
        points: u64,
    ) -> PyResult<Self> {
        let settings = Settings { memory_bytes: memory, probe_interval, points };
        let replay = interruptible(py, |interrupts| {
            Ok(engine::Replay::new(Held(trace), allocator, settings, interrupts)?)
        })?;
        Ok(Replay { total: replay.total(), replay: Ongoing::new(replay) })
    }

    /// Replays up to so many more events; how many, 0 at the end.
    fn step(&self, py: Python<'_>, events: u64) -> PyResult<u64> {
        self.replay.call(py, |replay, interrupts| Ok(replay.step(events, interrupts)?))
    }

    /// The result as JSON, after the allocator's own check; ValueError before the end.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let json = self
            .replay
            .call(py, |replay, interrupts| Ok(replay.result(interrupts)?.to_json()?))?;
        python_text(py, &json)
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
    relocation: Ongoing<engine::Relocation<Held>>,
    /// Steps of the pass.
    #[pyo3(get)]
    total: u64,
}

#[pymethods]
impl RunReplay {
    #[new]
    fn new(
        py: Python<'_>,
        trace: Py<Trace>,
        relocator: &str,
        memory: u64,
        requests: Requests,
        points: u64,
    ) -> PyResult<Self> {
        let Requests { size_bytes, align_bytes, interval_events, at_once, pinned, reserve } =
            requests;
        let requests =
            RunRequests { size_bytes, align_bytes, interval_events, at_once, pinned, reserve };
        let relocation = interruptible(py, |interrupts| {
            let trace = Held(trace);
            Ok(engine::Relocation::new(trace, relocator, memory, requests, points, interrupts)?)
        })?;
        Ok(RunReplay { total: relocation.total(), relocation: Ongoing::new(relocation) })
    }

    /// Replays up to so many more events; how many, 0 at the end.
    fn step(&self, py: Python<'_>, events: u64) -> PyResult<u64> {
        self.relocation.call(py, |relocation, interrupts| Ok(relocation.step(events, interrupts)?))
    }

    /// The result as JSON, after the relocator's own check; ValueError before the end.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let json = self
            .relocation
            .call(py, |relocation, interrupts| Ok(relocation.result(interrupts)?.to_json()?))?;
        python_text(py, &json)
    }
}
