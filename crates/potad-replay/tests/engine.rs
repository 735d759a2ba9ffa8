//! The engine: that passes repeat, that failures and pieces are replayed right, what is reported, and
//! what is refused.

use std::sync::Arc;

use potad_replay::{
    Interrupts, PAGES_MAX, ROUNDS, Replay, ReplayError, Report, Settings, Trace, TraceParser,
    allocator_names,
};

fn trace(text: &str) -> Arc<Trace> {
    let mut parser = TraceParser::new();
    parser.feed(text.as_bytes(), &mut Interrupts::none()).unwrap();
    Arc::new(parser.finish().expect("a trace"))
}

fn alloc(pfn: u64, order: u32, time: f64) -> String {
    format!("a-1 [000] {time:.6}: mm_page_alloc: page=1 pfn={pfn:#x} order={order} migratetype=0\n")
}

fn free(pfn: u64, order: u32, time: f64) -> String {
    format!("a-1 [000] {time:.6}: mm_page_free: page=1 pfn={pfn:#x} order={order}\n")
}

/// A busy machine: a xorshift generator decides what is allocated and freed.
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
    for event in 0..events {
        let time = event as f64 * 1e-3;
        if live.len() < 400 || random() % 2 == 0 {
            let order = (random().trailing_zeros()).min(9);
            next = next.next_multiple_of(1 << order) + (1 << order);
            live.push((next - (1 << order), order));
            text += &alloc(next - (1 << order), order, time);
        } else {
            let which = random() as usize % live.len();
            let (pfn, order) = live.swap_remove(which);
            if order > 0 && random() % 4 == 0 {
                // Half now, half later.
                text += &free(pfn, order - 1, time);
                live.push((pfn + (1 << (order - 1)), order - 1));
            } else {
                text += &free(pfn, order, time);
            }
        }
    }
    trace(&text)
}

fn settings(memory_bytes: u64) -> Settings {
    Settings { memory_bytes, probe_interval: 100, points: 50 }
}

fn replay(trace: &Arc<Trace>, allocator: &str, settings: Settings, slice: u64) -> Report {
    let go_on = &mut Interrupts::none();
    let mut replay = Replay::new(trace.clone(), allocator, settings, go_on).expect("a replay");
    let total = replay.total();
    let mut done = 0;
    loop {
        match replay.result(go_on) {
            Ok(_) if done == total => break,
            Err(ReplayError::NotFinished { done: said, total: of }) => {
                assert_eq!((said, of), (done, total))
            }
            other => panic!("{other:?} after {done} of {total}"),
        }
        let steps = replay.step(slice, go_on).expect("a step");
        assert!(steps > 0 && steps <= slice);
        done += steps;
    }
    assert_eq!(replay.step(slice, go_on), Ok(0));
    replay.result(go_on).expect("a result")
}

/// All of a report but what a clock says.
fn timeless(mut report: Report) -> Report {
    report.nanoseconds_per_operation = Default::default();
    report
}

#[test]
fn slices_and_repetitions_give_the_same_report() {
    let trace = busy(0x9e37_79b9_7f4a_7c15, 20_000);
    let memory = (trace.peak_bytes() + trace.peak_bytes() / 8).next_multiple_of(4096);
    for name in allocator_names() {
        let whole = timeless(replay(&trace, name, settings(memory), u64::MAX));
        let mut slices = timeless(replay(&trace, name, settings(memory), 777));
        // Lines are counted at true addresses, and a small array may lie elsewhere in its page.
        let close = (whole.cache_lines.distinct.mean - slices.cache_lines.distinct.mean).abs();
        assert!(close < 0.2, "{name}: {close} lines apart");
        slices.cache_lines = whole.cache_lines;
        assert_eq!(whole, slices, "{name}");
    }
}

#[test]
fn the_report_agrees_with_the_trace() {
    let trace = busy(0xdead_beef_cafe_f00d, 20_000);
    let memory = trace.peak_bytes() * 2;
    for name in allocator_names() {
        let report = replay(&trace, name, settings(memory), 5000);
        assert_eq!((report.allocator, report.memory_bytes), (*name, memory));
        assert_eq!((report.failures, report.frees_of_failed), (0, 0), "{name}");
        assert_eq!(
            (report.events, report.allocations, report.frees),
            (20_000, trace.allocations(), trace.frees())
        );
        assert_eq!(
            (report.live_bytes, report.peak_bytes),
            (trace.live_bytes(), trace.peak_bytes())
        );
        assert!(report.partial_frees > 100);
        assert_eq!(report.steps, trace.steps().len() as u64);
        assert_eq!(report.operations, report.steps);

        let free: u64 = report.free_blocks.iter().map(|(size, count)| size * count).sum();
        assert_eq!(free + report.live_bytes, memory, "{name}");
        assert!(report.free_blocks.is_sorted());
        assert_eq!(report.free_blocks.last().map(|block| block.0), Some(report.largest_free_bytes));
        let small = report.free_blocks.iter().filter(|&&(size, _)| size < 2 << 20);
        let below_2_mib: u64 = small.map(|(size, count)| size * count).sum();
        assert_eq!(
            report.unusable_free_index[1],
            (2 << 20, 1.0 - (free - below_2_mib) as f64 / free as f64)
        );

        let curves = &report.curves;
        assert_eq!((curves.event.first(), curves.event.last()), (Some(&0), Some(&report.steps)));
        assert_eq!(curves.event.len(), 50);
        assert!(curves.event.is_sorted() && curves.seconds.is_sorted());
        assert_eq!((curves.live_bytes[0], curves.free_bytes[0]), (0, memory));
        assert_eq!(curves.live_bytes.last(), Some(&report.live_bytes));
        assert_eq!(curves.largest_free_bytes.last(), Some(&report.largest_free_bytes));
        assert_eq!(curves.seconds.last(), Some(&trace.seconds()));
        for (live, free) in curves.live_bytes.iter().zip(&curves.free_bytes) {
            assert_eq!(live + free, memory);
        }
        for length in [
            curves.seconds.len(),
            curves.free_bytes.len(),
            curves.unusable_2mib.len(),
            curves.unusable_64kib.len(),
            curves.unusable_32mib.len(),
            curves.run_possible.len(),
            curves.failures.len(),
        ] {
            assert_eq!(length, 50);
        }
        assert_eq!(report.runs.probes, report.steps / 100);
        assert!(report.runs.possible > 0 && report.runs.possible <= report.runs.probes);

        let map = &report.map;
        let cells = memory.div_ceil(map.cell_bytes) as usize;
        assert_eq!((map.at_peak.len(), map.at_end.len(), map.columns), (cells, cells, 256));
        let occupied = |map: &[u8]| map.iter().map(|&share| f64::from(share)).sum::<f64>() / 255.0;
        let peak = report.peak_bytes as f64 / map.cell_bytes as f64;
        assert!((occupied(&map.at_peak) - peak).abs() < peak * 0.05 + 1.0);
        let lines = report.cache_lines;
        assert!(
            lines.distinct.mean >= lines.missing_l1.mean
                && lines.missing_l1.mean >= lines.missing_l2.mean
        );
        assert!(lines.distinct.mean >= 1.0 && lines.distinct.p99 as f64 >= lines.distinct.mean);
    }
}

#[test]
fn frees_of_failed_allocations_are_ignored() {
    // Room for two blocks of order 2: the third fails, and so does what is freed of it.
    let text = [
        alloc(0x10, 2, 0.0),
        alloc(0x20, 2, 0.1),
        alloc(0x30, 2, 0.2),
        free(0x30, 0, 0.3),
        free(0x10, 2, 0.4),
        free(0x32, 1, 0.5),
        free(0x31, 0, 0.6),
        alloc(0x40, 2, 0.7),
        free(0x40, 2, 0.8),
    ]
    .concat();
    for name in allocator_names() {
        let report = replay(&trace(&text), name, settings(8 * 4096), 2);
        assert_eq!(
            (report.allocations, report.failures, report.frees_of_failed),
            (4, 1, 3),
            "{name}"
        );
        assert_eq!((report.steps, report.operations), (9, 6));
        assert_eq!((report.live_bytes, report.peak_bytes), (4 * 4096, 8 * 4096));
        assert_eq!(report.curves.failures, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(report.curves.event.len(), 10, "no more samples than steps");
    }
}

#[test]
fn pieces_leave_the_same_free_memory() {
    let whole = [alloc(0x200, 9, 0.0), alloc(0x400, 0, 0.1), free(0x200, 9, 0.2)].concat();
    let mut pieces = [alloc(0x200, 9, 0.0), alloc(0x400, 0, 0.1)].concat();
    // From the middle outwards, in blocks of 8, the last of them one by one.
    for block in 0..63_u64 {
        pieces += &free(0x200 + 8 * ((block + 32) % 64), 3, 0.2);
    }
    for page in 0..8 {
        pieces += &free(0x200 + 8 * 31 + page, 0, 0.3);
    }
    for name in allocator_names() {
        let whole = replay(&trace(&whole), name, settings(4 << 20), 1000);
        let pieces = replay(&trace(&pieces), name, settings(4 << 20), 1000);
        assert_eq!((whole.live_bytes, pieces.partial_frees), (4096, 71));
        assert_eq!(whole.free_blocks, pieces.free_blocks, "{name}");
        assert_eq!(whole.map.at_end, pieces.map.at_end, "{name}");
    }
}

#[test]
fn orders_above_the_kernels() {
    let text = [alloc(1 << 18, 18, 0.0), alloc(0, 11, 0.1), free(1 << 18, 18, 0.2)].concat();
    for (name, failures) in [("potad", 0), ("first-fit", 0), ("linux-buddy", 2)] {
        let report = replay(&trace(&text), name, settings(2 << 30), 10);
        assert_eq!((report.failures, report.frees_of_failed), (failures, failures / 2), "{name}");
    }
}

#[test]
fn a_trace_of_ignored_frees_alone() {
    let trace = trace(&free(7, 0, 0.0));
    for name in allocator_names() {
        let go_on = &mut Interrupts::none();
        let mut replay = Replay::new(trace.clone(), name, settings(1 << 20), go_on).unwrap();
        assert_eq!(replay.total(), 0);
        let report = replay.result(go_on).unwrap();
        assert_eq!((report.events, report.steps, report.frees_before_recording), (1, 0, 1));
        assert_eq!(report.curves.event, [0]);
        assert_eq!(report.map.at_peak, report.map.at_end);
        assert_eq!(report.map.at_end, vec![0; 256]);
    }
}

#[test]
fn settings_that_cannot_be() {
    let trace = trace(&alloc(0, 0, 0.0));
    let refused = |name: &str, settings: Settings| {
        let refused = Replay::new(trace.clone(), name, settings, &mut Interrupts::none());
        refused.err().expect("refused")
    };
    for bytes in [0, 1, 4097] {
        assert_eq!(refused("potad", settings(bytes)), ReplayError::MemoryNotPages { bytes });
    }
    let bytes = (PAGES_MAX + 1) * 4096;
    assert_eq!(
        refused("potad", settings(bytes)),
        ReplayError::MemoryTooLarge { bytes, max: PAGES_MAX * 4096 }
    );
    assert_eq!(
        refused("potad", Settings { probe_interval: 0, ..settings(4096) }),
        ReplayError::ProbeInterval
    );
    for points in [0, 1] {
        let settings = Settings { points, ..settings(4096) };
        assert_eq!(refused("potad", settings), ReplayError::Points { points });
    }
    let error = refused("slab", settings(4096)).to_string();
    assert_eq!(
        error,
        "allocator: no allocator is called \"slab\"; there are potad, linux-buddy, first-fit"
    );
}

#[test]
fn the_json_has_the_names_that_are_read() {
    let trace = busy(42, 500);
    let go_on = &mut Interrupts::none();
    let mut replay = Replay::new(trace, "linux-buddy", settings(64 << 20), go_on).unwrap();
    assert_eq!(replay.total(), replay.step(u64::MAX, go_on).unwrap());
    assert_eq!(ROUNDS, 3);
    let json = serde_json::to_value(replay.result(go_on).unwrap()).unwrap();
    for pointer in [
        "/title",
        "/frees_before_recording",
        "/metadata_bytes",
        "/nanoseconds_per_operation/median",
        "/cache_lines/distinct/mean",
        "/cache_lines/missing_l1/p99",
        "/cache_lines/missing_l2/p99",
        "/unusable_free_index/65536",
        "/unusable_free_index/2097152",
        "/unusable_free_index/33554432",
        "/runs/size_bytes",
        "/runs/possible",
        "/free_blocks/4096",
        "/curves/unusable_32mib/0",
        "/curves/run_possible/0",
        "/map/at_peak/0",
        "/map/peak_event",
    ] {
        assert!(json.pointer(pointer).is_some(), "no {pointer} in the report");
    }
}
