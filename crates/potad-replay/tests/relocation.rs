//! The relocation pass: what is asked for and counted, that slices do not matter, what is refused.

use std::sync::Arc;

use potad_replay::{
    Interrupts, RELOCATORS, Relocation, RelocationReport, ReplayError, RunRequests, Trace,
    TraceParser,
};

const MIB: u64 = 1 << 20;

fn trace(text: &str) -> Arc<Trace> {
    let mut parser = TraceParser::new();
    parser.feed(text.as_bytes(), &mut Interrupts::none()).unwrap();
    Arc::new(parser.finish().expect("a trace"))
}

fn alloc(pfn: u64, order: u32, movable: bool) -> String {
    let kind = u32::from(movable);
    format!("a-1 [000] 1.0: mm_page_alloc: page=1 pfn={pfn:#x} order={order} migratetype={kind}\n")
}

fn free(pfn: u64, order: u32) -> String {
    format!("a-1 [000] 1.0: mm_page_free: page=1 pfn={pfn:#x} order={order}\n")
}

/// Blocks of 64 KiB up to so many MiB, then all but every `kept`th freed again: holes everywhere.
fn holes(mib: u64, kept: u64, movable: impl Fn(u64) -> bool) -> Arc<Trace> {
    let blocks = mib * 16;
    let mut text: String = (0..blocks).map(|n| alloc(n * 16, 4, movable(n))).collect();
    text.extend((0..blocks).filter(|n| n % kept != 0).map(|n| free(n * 16, 4)));
    trace(&text)
}

fn requests() -> RunRequests {
    RunRequests {
        size_bytes: 8 * MIB,
        align_bytes: MIB,
        interval_events: 100,
        at_once: 1,
        pinned: 0.0,
        reserve: 0.1,
    }
}

fn run(
    trace: &Arc<Trace>,
    relocator: &str,
    memory_bytes: u64,
    requests: RunRequests,
    slice: u64,
) -> RelocationReport {
    let go_on = &mut Interrupts::none();
    let mut run =
        Relocation::new(trace.clone(), relocator, memory_bytes, requests, 20, go_on).unwrap();
    assert_eq!(run.total(), trace.steps().len() as u64);
    loop {
        match run.step(slice, go_on).expect("memory") {
            0 => return run.result(go_on).expect("a result whose check passes"),
            steps => assert!(steps <= slice),
        }
    }
}

/// All of a report but what a clock says.
fn timeless(mut report: RelocationReport) -> RelocationReport {
    report.nanoseconds_per_request = Default::default();
    report
}

#[test]
fn runs_out_of_holes() {
    // 15 of 16 blocks are free in the end, and nowhere 8 MiB together.
    let trace = holes(64, 16, |_| true);
    let report =
        run(&trace, "potad", 64 * MIB, RunRequests { interval_events: 1984, ..requests() }, 7);
    assert_eq!(trace.steps().len(), 1984);
    assert_eq!((report.wanted, report.granted, report.missed, report.failures), (1, 1, 0, 0));
    // The cheapest window has a block in each MiB.
    assert_eq!((report.bytes_moved, report.pages_moved), (8 * 65_536, 8 * 16));
    assert_eq!((report.bytes_wasted, report.reserve.bytes), (0, 0));
    assert_eq!(
        (report.curves.granted.last(), report.curves.bytes_moved.last()),
        (Some(&1), Some(&524_288))
    );
    let time = report.nanoseconds_per_request;
    assert!(time.min > 0.0 && time.min == time.median && time.median == time.max);
}

#[test]
fn as_many_as_are_wanted_until_one_is_refused() {
    let trace = holes(64, 16, |_| true);
    let many = |at_once| {
        let requests = RunRequests { interval_events: 1984, at_once, ..requests() };
        run(&trace, "potad", 64 * MIB, requests, 1000)
    };
    let (five, all) = (many(5), many(1000));
    assert_eq!((five.wanted, five.granted), (5, 5));
    // 4 MiB of the 64 are in use, so that there is not room for 8.
    assert_eq!((all.wanted, all.missed), (1000, 0));
    assert!((6..8).contains(&all.granted), "{}", all.granted);
    assert!(all.bytes_moved > five.bytes_moved && all.bytes_wasted == 0);
}

#[test]
fn what_cannot_be_moved_is_in_the_way() {
    let whole = |movable: bool, pinned: f64| {
        let trace = holes(64, 16, |_| movable);
        let requests = RunRequests { interval_events: 1984, pinned, ..requests() };
        let report = run(&trace, "potad", 64 * MIB, requests, 1000);
        assert_eq!(report.missed, 0);
        (report.granted, report.bytes_moved)
    };
    assert_eq!(whole(true, 0.0), (1, 8 * 65_536));
    assert_eq!(whole(false, 0.0), (0, 0));
    assert_eq!(whole(true, 1.0), (0, 0));
}

#[test]
fn the_reserve_is_lost_to_pages_that_cannot_be_moved() {
    // 60 MiB that cannot be moved, in a memory of 64 MiB of which 16 are reserved.
    let text: String = (0..60 * 16).map(|n| alloc(n * 16, 4, false)).collect();
    let requests = RunRequests { interval_events: 960, reserve: 0.25, ..requests() };
    let report = run(&trace(&text), "cma", 64 * MIB, requests, 1000);
    assert_eq!((report.granted, report.bytes_moved), (1, 0));
    assert_eq!((report.failures, report.reserve.failures), (192, 192));
    assert_eq!(
        (report.reserve.bytes, report.reserve.free_bytes_mean),
        (16 * MIB, 16.0 * MIB as f64)
    );
    let potad = run(&trace(&text), "potad", 64 * MIB, requests, 1000);
    assert_eq!((potad.granted, potad.failures), (0, 0));
}

#[test]
fn cma_moves_in_vain_where_a_page_is_pinned() {
    // Area and rest fill by turns, so what is freed last is the upper half of each.
    let mut text: String = (0..64 * 16).map(|n| alloc(n * 16, 4, true)).collect();
    text.extend((32 * 16..64 * 16).map(|n| free(n * 16, 4)));
    let report = |pinned| {
        let requests = RunRequests { interval_events: 1536, pinned, reserve: 0.5, ..requests() };
        run(&trace(&text), "cma", 64 * MIB, requests, 1000)
    };
    let (free, pinned) = (report(0.0), report(0.02));
    assert_eq!((free.granted, free.bytes_wasted), (1, 0));
    assert!(pinned.bytes_wasted > 0 && pinned.bytes_wasted <= pinned.bytes_moved);
    assert!(pinned.bytes_moved > free.bytes_moved);
}

/// A busy machine with frees of parts: a xorshift generator decides.
fn busy(seed: u64, events: usize) -> Arc<Trace> {
    let mut state = seed;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut text = String::new();
    let mut live: Vec<(u64, u32)> = Vec::new();
    let mut next = 0x1000_u64;
    for _ in 0..events {
        if live.len() < 2000 || random() % 2 == 0 {
            let order = random().trailing_zeros().min(9);
            next = next.next_multiple_of(1 << order) + (1 << order);
            live.push((next - (1 << order), order));
            text += &alloc(next - (1 << order), order, random() % 8 != 0);
        } else {
            let (pfn, order) = live.swap_remove(random() as usize % live.len());
            let part = order.saturating_sub((random() % 4) as u32);
            let place = pfn + ((random() % (1 << (order - part))) << part);
            text += &free(place, part);
            for half in part..order {
                live.push(((place & !((1 << half) - 1)) ^ (1 << half), half));
            }
        }
    }
    trace(&text)
}

#[test]
fn slices_and_repetitions_give_the_same_report() {
    let trace = busy(0x9e37_79b9_7f4a_7c15, 20_000);
    assert!(trace.partial_frees() > 1000);
    let memory = (trace.peak_bytes() + trace.peak_bytes() / 10).next_multiple_of(4096);
    let requests = RunRequests { size_bytes: 2 * MIB, at_once: 8, pinned: 0.05, ..requests() };
    for name in RELOCATORS {
        let whole = run(&trace, name, memory, requests, u64::MAX);
        let slices = run(&trace, name, memory, requests, 777);
        assert_eq!(timeless(whole.clone()), timeless(slices), "{name}");
        assert_eq!((whole.relocator, whole.memory_bytes), (*name, memory));
        assert_eq!(whole.allocations, trace.allocations());
        assert_eq!(whole.wanted, trace.steps().len() as u64 / 100 * 8);
        assert!(whole.granted > 0 && whole.granted < whole.wanted, "{name}");
        assert!(whole.bytes_wasted <= whole.bytes_moved && whole.bytes_moved > 0);
        assert_eq!(whole.bytes_moved, whole.pages_moved * 4096);
        let curves = &whole.curves;
        assert_eq!((curves.event.len(), curves.seconds.len()), (20, 20));
        assert_eq!((curves.granted[0], curves.granted.last()), (0, Some(&whole.granted)));
        assert_eq!(curves.bytes_moved.last(), Some(&whole.bytes_moved));
        assert!(curves.granted.is_sorted() && curves.bytes_moved.is_sorted());
        if *name == "potad" {
            assert_eq!((whole.missed, whole.bytes_wasted), (0, 0), "every run that was possible");
        }
    }
}

#[test]
fn allocations_that_failed_are_neither_moved_nor_freed() {
    let trace = busy(42, 5000);
    for name in RELOCATORS {
        let report = run(&trace, name, trace.peak_bytes() / 8 * 8 / 2, requests(), 1000);
        assert!(report.failures > 0, "{name}");
    }
}

#[test]
fn a_trace_without_steps_asks_for_nothing() {
    let trace = trace(&free(7, 0));
    for name in RELOCATORS {
        let report = run(&trace, name, 64 * MIB, requests(), 10);
        assert_eq!((report.wanted, report.curves.event), (0, vec![0]));
        assert_eq!(
            (report.reserve.free_bytes_mean, report.nanoseconds_per_request.max),
            (0.0, 0.0)
        );
    }
}

#[test]
fn requests_that_cannot_be() {
    let trace = trace(&alloc(0, 0, true));
    let made = |name: &str, memory, requests, points| {
        let go_on = &mut Interrupts::none();
        let refused = Relocation::new(trace.clone(), name, memory, requests, points, go_on);
        refused.err().expect("refused")
    };
    let refused = |requests| made("potad", 64 * MIB, requests, 20).to_string();
    for bytes in [0, 1, 4097, 1 << 44] {
        assert!(refused(RunRequests { size_bytes: bytes, ..requests() }).starts_with("run: "));
    }
    for bytes in [0, 2048, 12_288, 1 << 44] {
        let said = refused(RunRequests { align_bytes: bytes, ..requests() });
        assert!(said.starts_with("alignment: "), "{said}");
    }
    for (share, said) in [(-0.1, "-0.1"), (1.1, "1.1"), (f64::NAN, "NaN")] {
        let pinned = refused(RunRequests { pinned: share, ..requests() });
        assert_eq!(pinned, format!("pinned: {said} is not a share from 0 to 1"));
        assert!(refused(RunRequests { reserve: share, ..requests() }).starts_with("reserve: "));
    }
    let interval = RunRequests { interval_events: 0, ..requests() };
    assert!(refused(interval).contains("at least 1 event"));
    assert!(refused(RunRequests { at_once: 0, ..requests() }).contains("at least 1 run"));
    for reserve in [0.0, 1.0] {
        let said = made("cma", 64 * MIB, RunRequests { reserve, ..requests() }, 20).to_string();
        assert!(said.contains("must leave some to either side"), "{said}");
    }
    let points = made("cma", 64 * MIB, requests(), 1);
    assert_eq!(points, ReplayError::Points { points: 1 });
    assert_eq!(made("cma", 1, requests(), 20), ReplayError::MemoryNotPages { bytes: 1 });
    let said = made("first-fit", 64 * MIB, requests(), 20).to_string();
    assert_eq!(said, "allocator: no allocator is called \"first-fit\"; there are potad, cma");
}

#[test]
fn no_result_before_the_end() {
    let trace = holes(8, 2, |_| true);
    let go_on = &mut Interrupts::none();
    let mut run = Relocation::new(trace, "potad", 8 * MIB, requests(), 20, go_on).unwrap();
    assert_eq!(run.step(10, go_on), Ok(10));
    assert_eq!(run.result(go_on).err(), Some(ReplayError::NotFinished { done: 10, total: 192 }));
}

#[test]
fn the_json_has_the_names_that_are_read() {
    let report = run(&holes(64, 16, |_| true), "cma", 128 * MIB, requests(), 1000);
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    for pointer in [
        "/relocator",
        "/title",
        "/at_once",
        "/missed",
        "/bytes_wasted",
        "/nanoseconds_per_request/median",
        "/reserve/free_bytes_mean",
        "/reserve/failures",
        "/curves/granted/0",
        "/curves/bytes_moved/0",
    ] {
        assert!(json.pointer(pointer).is_some(), "no {pointer} in the report");
    }
}
