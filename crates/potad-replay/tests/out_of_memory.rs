//! Every call with memory refused at every point of it: the first time, the second, and so on until the
//! call needs no more. It ends with the error for that, and never ends the process.
//!
//! Each is done in two ways: only the one request is refused, or it and all that follow. A request that
//! the standard library makes and that cannot be refused ends the test's process; the name printed last
//! says in which call.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Display;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use potad::fallible::text;
use potad_replay::{
    BuildError, Cma, FirstFit, Interrupts, LinuxBuddy, OutOfMemory, PageAllocator, PotadSpace,
    RELOCATORS, Relocation, Replay, ReplayError, RunRequests, Settings, Stop, Trace, TraceError,
    TraceParser, allocator_names,
};

/// The system's allocator, but for requests that are to be refused.
struct Refusing;

#[derive(Clone, Copy, PartialEq)]
enum Refused {
    One,
    AllFromThere,
}

thread_local! {
    /// Requests of this thread that are still served before one is refused.
    static SERVED: Cell<Option<u64>> = const { Cell::new(None) };
    static REFUSED: Cell<Refused> = const { Cell::new(Refused::One) };
    static HAS_REFUSED: Cell<bool> = const { Cell::new(false) };
}

fn refuses() -> bool {
    match SERVED.get() {
        None => false,
        Some(0) => {
            HAS_REFUSED.set(true);
            if REFUSED.get() == Refused::One {
                SERVED.set(None);
            }
            true
        }
        Some(served) => {
            SERVED.set(Some(served - 1));
            false
        }
    }
}

// SAFETY: everything is the system allocator's own, or a null pointer, which means "no memory".
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: what the caller promises of `layout` is what is asked here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` is from the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: `at` is from the system's allocator with this layout.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// What a call came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done,
    OutOfMemory,
    Other,
}

/// Whether an error says that there was no memory. Its text can be made all the same.
trait Judged: Display {
    fn is_out_of_memory(&self) -> bool;

    fn outcome(&self) -> Outcome {
        text(format_args!("{self}"));
        if self.is_out_of_memory() { Outcome::OutOfMemory } else { Outcome::Other }
    }
}

impl Judged for OutOfMemory {
    fn is_out_of_memory(&self) -> bool {
        true
    }
}

impl Judged for Stop {
    fn is_out_of_memory(&self) -> bool {
        *self == Stop::OutOfMemory(OutOfMemory)
    }
}

impl Judged for TraceError {
    fn is_out_of_memory(&self) -> bool {
        matches!(self, TraceError::Stopped(stop) if stop.is_out_of_memory())
    }
}

impl Judged for ReplayError {
    fn is_out_of_memory(&self) -> bool {
        matches!(self, ReplayError::Build(BuildError::Metadata { .. }))
            || self.stop().is_some_and(|stop| stop.is_out_of_memory())
    }
}

/// Runs `call` with memory refused at every point, in both ways. Without any refused it comes to
/// `expected`.
fn at_every_point(name: &str, expected: Outcome, mut call: impl FnMut() -> Outcome) {
    // One at a time, so that the name printed last is that of the call. Not by a macro: what these print
    // is shown only if the process lives to the test's end.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut shown = std::io::stderr();
    writeln!(shown, "memory is refused in: {name}").unwrap();
    for refused in [Refused::One, Refused::AllFromThere] {
        let mut points = 0;
        loop {
            REFUSED.set(refused);
            HAS_REFUSED.set(false);
            SERVED.set(Some(points));
            let outcome = call();
            SERVED.set(None);
            if !HAS_REFUSED.get() {
                assert_eq!(outcome, expected, "{name} with all memory it needs");
                break;
            }
            // A call may do without what is only to save time, and an error's text is cut off.
            let allowed = outcome == Outcome::OutOfMemory || outcome == expected;
            assert!(allowed, "{name} without memory at point {points}: {outcome:?}");
            points += 1;
        }
        writeln!(shown, "  {points} points").unwrap();
    }
}

/// Allocations of all orders far apart and close together, some given back, some of those in parts, and
/// lines that are malformed.
fn events() -> String {
    let alloc = |pfn: u64, order: u32| {
        let kind = u32::from(!pfn.is_multiple_of(3));
        format!("a-1 [000] 1.0: mm_page_alloc: page=1 pfn={pfn} order={order} migratetype={kind}\n")
    };
    let free = |pfn: u64, order: u32| {
        format!("a-1 [000] 1.0: mm_page_free: page=1 pfn={pfn} order={order}\n")
    };
    let mut text = String::from("# tracer: nop\nCPU:1 [LOST 12 EVENTS]\n");
    for n in 0..400 {
        let order = [0, 0, 0, 1, 0, 4][n as usize % 6];
        text += &alloc(n * 16, order);
        if n % 100 == 0 {
            text += &alloc(1 << 30 | n << 12, 9);
        }
        if n % 40 == 7 {
            text += &format!("a-1 [000] 1.0: mm_page_free: page=1 pfn=\x1b[{n} order=0\n");
        }
    }
    for n in (0..400).step_by(2) {
        text += &free(n * 16, 0);
    }
    text
}

fn trace() -> Arc<Trace> {
    let mut parser = TraceParser::new();
    parser.feed(events().as_bytes(), &mut Interrupts::none()).expect("memory");
    Arc::new(parser.finish().expect("a trace"))
}

#[test]
fn a_trace_is_read() {
    let events = events();
    let read = |text: &str, pieces: usize| -> Result<Trace, TraceError> {
        let mut parser = TraceParser::new();
        for piece in text.as_bytes().chunks(pieces) {
            parser.feed(piece, &mut Interrupts::none())?;
        }
        parser.finish()
    };
    at_every_point("read", Outcome::Done, || match read(&events, 1000) {
        Ok(trace) => {
            let lines = trace.malformed_lines();
            lines.iter().for_each(|(_, fault)| drop(text(format_args!("{fault}"))));
            Outcome::Done
        }
        Err(error) => error.outcome(),
    });
    let none = "x\nmm_page_alloc: pfn=0x1 order=0\n";
    at_every_point("read what is no trace", Outcome::Other, || {
        read(none, 7).map_or_else(|error| error.outcome(), |_| Outcome::Done)
    });
}

#[test]
fn a_trace_is_replayed() {
    let trace = trace();
    let memory_bytes = (trace.peak_bytes() * 2).next_multiple_of(4096);
    for name in allocator_names() {
        let replay = || -> Result<String, ReplayError> {
            let go_on = &mut Interrupts::none();
            let settings = Settings { memory_bytes, probe_interval: 50, points: 10 };
            let mut replay = Replay::new(trace.clone(), name, settings, go_on)?;
            while replay.step(300, go_on)? > 0 {}
            Ok(replay.result(go_on)?.to_json()?)
        };
        at_every_point(name, Outcome::Done, || match replay() {
            Ok(json) => {
                assert!(json.starts_with('{') && json.ends_with('}'));
                Outcome::Done
            }
            Err(error) => error.outcome(),
        });
    }
    at_every_point("an allocator of no such name", Outcome::Other, || {
        let settings = Settings { memory_bytes, probe_interval: 50, points: 10 };
        let replay = Replay::new(trace.clone(), "slab", settings, &mut Interrupts::none());
        replay.map_or_else(|error| error.outcome(), |_| Outcome::Done)
    });
}

#[test]
fn runs_are_asked_for() {
    let trace = trace();
    let memory_bytes = 32 << 20;
    let requests = RunRequests {
        size_bytes: 1 << 20,
        align_bytes: 1 << 16,
        interval_events: 100,
        at_once: 20,
        pinned: 0.05,
        reserve: 0.3,
    };
    for name in RELOCATORS {
        let runs = |requests| -> Result<String, ReplayError> {
            let go_on = &mut Interrupts::none();
            let mut runs = Relocation::new(trace.clone(), name, memory_bytes, requests, 10, go_on)?;
            while runs.step(150, go_on)? > 0 {}
            Ok(runs.result(go_on)?.to_json()?)
        };
        let call = format!("runs of {name}");
        at_every_point(&call, Outcome::Done, || {
            runs(requests).map_or_else(|error| error.outcome(), |_| Outcome::Done)
        });
        let call = format!("runs of {name} with a share that is none");
        at_every_point(&call, Outcome::Other, || {
            let requests = RunRequests { pinned: f64::NAN, ..requests };
            runs(requests).map_or_else(|error| error.outcome(), |_| Outcome::Done)
        });
    }
}

/// A refusal leaves an allocator as it was: the same call goes well when there is memory.
#[test]
fn an_operation_without_memory_has_done_nothing() {
    fn follow(name: &str, mut allocator: impl PageAllocator) {
        let go_on = &mut Interrupts::none();
        let mut pages = Vec::new();
        let mut refused = 0;
        for order in (0..5).cycle().take(3000) {
            SERVED.set(Some(0));
            REFUSED.set(Refused::AllFromThere);
            let first = allocator.alloc_as(order, order % 2 == 0);
            SERVED.set(None);
            let page = first.or_else(|OutOfMemory| {
                refused += 1;
                allocator.alloc_as(order, order % 2 == 0)
            });
            pages.push((page.expect("memory").expect("room"), order));
        }
        // Every second one: so free extents come apart.
        for (page, order) in pages.into_iter().step_by(2) {
            SERVED.set(Some(0));
            let first = allocator.free(page, order);
            SERVED.set(None);
            first
                .or_else(|OutOfMemory| {
                    refused += 1;
                    allocator.free(page, order)
                })
                .expect("memory");
        }
        assert_eq!(allocator.check(go_on), Ok(()));
        assert!(refused > 0 || name == "linux-buddy" || name == "cma", "{name} needed no memory");
    }
    let pages = 1 << 20;
    follow("first-fit", FirstFit::new(pages).unwrap());
    follow("potad", PotadSpace::with_probe(pages, potad::NoProbe).unwrap());
    follow("linux-buddy", LinuxBuddy::<_, 10>::new(pages).unwrap());
    follow("cma", Cma::new(pages, pages / 4).unwrap());
}
