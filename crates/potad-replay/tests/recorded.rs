//! Real traces to the end, every allocator's own check included. The bundled one always runs, the
//! others where they are found.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use lzma_rust2::XzReader;
use potad_replay::{
    Interrupts, Replay, Settings, Trace, TraceFormat, TraceParser, allocator_names,
};

fn read(path: &PathBuf) -> Trace {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = XzReader::new(file, true);
    let (mut parser, go_on) = (TraceParser::new(), &mut Interrupts::none());
    let mut piece = vec![0; 1 << 20];
    loop {
        match text.read(&mut piece).expect("whole xz data") {
            0 => return parser.finish().expect("a trace"),
            length => parser.feed(&piece[..length], go_on).expect("memory"),
        }
    }
}

/// The folder of the repository.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn check(path: &PathBuf, events: u64, peak_mib: f64) {
    let trace = Arc::new(read(path));
    assert_eq!(trace.events(), events);
    let peak = trace.peak_bytes() as f64 / f64::from(1 << 20);
    assert!((peak - peak_mib).abs() < 0.06, "peak of {peak} MiB");
    assert_eq!(trace.format(), TraceFormat::Ftrace);
    assert_eq!((trace.malformed(), trace.dropped(), trace.failed_allocations()), (0, 0, 0));
    let memory_bytes = (trace.peak_bytes() + trace.peak_bytes() / 16).next_multiple_of(1 << 20);
    for name in allocator_names() {
        let settings = Settings { memory_bytes, probe_interval: 5000, points: 20 };
        let go_on = &mut Interrupts::none();
        let mut replay = Replay::new(trace.clone(), name, settings, go_on).expect("a replay");
        while replay.step(100_000, go_on).expect("a step") > 0 {}
        let report = replay.result(go_on).expect("a result whose check passes");
        assert_eq!(report.live_bytes + report.curves.free_bytes[19], memory_bytes, "{name}");
        if report.failures == 0 {
            assert_eq!(report.peak_bytes, trace.peak_bytes(), "{name}");
            assert_eq!(report.live_bytes, trace.live_bytes(), "{name}");
        }
    }
}

#[test]
fn the_bundled_trace() {
    check(&root().join("examples/traces/linux-numpy-thp.ftrace.xz"), 230_812, 457.7);
}

#[test]
fn the_other_traces() {
    for (name, events, peak_mib) in
        [("linux-files", 561_857, 1424.1), ("linux-compile", 1_200_000, 1293.5)]
    {
        let path = root().join("../shared/data").join(name).with_extension("ftrace.xz");
        if path.exists() {
            check(&path, events, peak_mib);
        } else {
            println!("skipped: there is no {}", path.display());
        }
    }
}
