//! Replays an uncompressed trace from standard input through each allocator and prints the results
//! as JSON, one object a line; speeds go to standard error.
//!
//! ```text
//! xz -dc examples/traces/linux-numpy-thp.ftrace.xz | cargo run --release -p potad-replay --example replay
//! ```

use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use potad_replay::{Interrupts, Replay, Settings, TraceParser, allocator_names};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let start = Instant::now();
    let go_on = &mut Interrupts::none();
    let mut parser = TraceParser::new();
    for piece in text.chunks(1 << 20) {
        parser.feed(piece, go_on)?;
    }
    let trace = Arc::new(parser.finish()?);
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{} lines in {seconds:.3} s, {:.0} MB/s: {} events, peak {:.1} MiB, {} before recording, {} pieces, {} lost, {} malformed",
        trace.lines(),
        text.len() as f64 / 1e6 / seconds,
        trace.events(),
        trace.peak_bytes() as f64 / 1048576.0,
        trace.frees_before_recording(),
        trace.partial_frees(),
        trace.lost_frees(),
        trace.malformed(),
    );
    // A sixteenth above the peak, in whole MiB: enough for every allocation, little enough for
    // fragmentation to show.
    let memory_bytes = (trace.peak_bytes() + trace.peak_bytes() / 16).next_multiple_of(1 << 20);
    for name in allocator_names() {
        let start = Instant::now();
        let settings = Settings { memory_bytes, probe_interval: 1000, points: 500 };
        let mut replay = Replay::new(trace.clone(), name, settings, go_on)?;
        while replay.step(100_000, go_on)? > 0 {}
        let report = replay.result(go_on)?;
        eprintln!(
            "{name}: {:.2} s, {:.1} ns an operation, {:?}",
            start.elapsed().as_secs_f64(),
            report.nanoseconds_per_operation.median,
            report.cache_lines,
        );
        println!("{}", report.to_json()?);
    }
    Ok(())
}
