//! The parser on whole texts: formats, pieces, damage, and what is counted.

use potad_replay::{
    Interrupts, LINE_BYTES_MAX, LineFault, MALFORMED_KEPT, Quote, Step, Trace, TraceError,
    TraceFormat, TraceParser,
};
use proptest::prelude::*;

const FTRACE: &str = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 7/10   #P:2
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
          make-812     [000] .....  3800.500000: mm_page_alloc: page=000000009bf2070c pfn=0x109e00 order=3 migratetype=1 gfp_flags=GFP_KERNEL|__GFP_COMP
   Web Content-77      [001] d..1.  3800.500001: mm_page_alloc: page=000000009bf20aaa pfn=0x42 order=0 migratetype=0 gfp_flags=GFP_KERNEL
   Web Content-77      [001] d..1.  3800.500002: mm_page_alloc: page=0000000000000000 pfn=0x0 order=9 migratetype=1 gfp_flags=GFP_TRANSHUGE
CPU:1 [LOST 12 EVENTS]
          make-812     [000] .....  3800.500003: mm_page_free_batched: page=000000009bf2070c pfn=0x109e00 order=0
          make-812     [000] .....  3800.500003: mm_page_free: page=000000009bf2070c pfn=0x109e02 order=1
          make-812     [000] .....  3800.500004: mm_page_free: page=000000009bf2070c pfn=0x777 order=0
          make-812     [000] .....  3801.750000: mm_page_alloc: page=000000009bf20aaa pfn=0x42 order=0 migratetype=0 gfp_flags=GFP_KERNEL
";

const TRACE_CMD: &str = "\
version = 7
cpus=2
CPU:1 [12 EVENTS DROPPED]
            make-812   [000]  3800.500000: mm_page_alloc:        page=0xffffea0004278000 pfn=1089024 order=3 migratetype=1 gfp_flags=GFP_KERNEL|__GFP_COMP
     Web Content-77    [001]  3800.500001: mm_page_alloc:        page=0xffffea0004278aaa pfn=66 order=0 migratetype=0 gfp_flags=GFP_KERNEL
     Web Content-77    [001]  3800.500002: mm_page_alloc:        page=(nil) pfn=0 order=9 migratetype=1 gfp_flags=GFP_TRANSHUGE
            make-812   [000]  3800.500003: mm_page_free:         page=0xffffea0004278000 pfn=1089026 order=1
            make-812   [000]  3800.500004: mm_page_free:         page=0xffffea0004278000 pfn=1911 order=0
            make-812   [000]  3801.750000: mm_page_alloc:        page=0xffffea0004278aaa pfn=66 order=0 migratetype=0 gfp_flags=GFP_KERNEL
";

const PERF: &str = "\
make   812 [000]  3800.500000:             kmem:mm_page_alloc: page=0x109e00 pfn=1089024 order=3 migratetype=1 gfp_flags=GFP_KERNEL|__GFP_COMP
\tffffffffbe23e32e __alloc_pages_nodemask+0x22e (/boot/vmlinux)
\tffffffffbe23e32e trace_event_raw_event_mm_page_free+0x22e (/boot/vmlinux)

Web Content    77 [001]  3800.500001:             kmem:mm_page_alloc: page=0x42 pfn=0x42 order=0 migratetype=0 gfp_flags=GFP_KERNEL
Web Content    77 [001]  3800.500002:             kmem:mm_page_alloc: page=0x0 pfn=0 order=9 migratetype=1 gfp_flags=GFP_TRANSHUGE
:0     0 [001]  3800.500002: PERF_RECORD_LOST lost 12
make   812 [000]  3800.500003:             kmem:mm_page_free: page=0x109e02 pfn=1089026 order=1
make   812 [000]  3800.500004:             kmem:mm_page_free: page=0x777 pfn=1911 order=0
make   812 [000]  3801.750000:             kmem:mm_page_alloc: page=0x42 pfn=66 order=0 migratetype=0 gfp_flags=GFP_KERNEL
";

fn parse(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Trace, TraceError> {
    let mut parser = TraceParser::new();
    for piece in pieces {
        parser.feed(piece.as_ref(), &mut Interrupts::none())?;
    }
    parser.finish()
}

/// All there is to see of a trace.
fn seen(trace: &Trace) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (trace.events(), trace.allocations(), trace.frees(), trace.failed_allocations()),
        (trace.frees_before_recording(), trace.partial_frees(), trace.lost_frees()),
        (trace.malformed(), trace.malformed_lines().to_vec(), trace.dropped(), trace.lines()),
        (trace.peak_bytes(), trace.live_bytes(), trace.seconds(), trace.format()),
        trace.steps().collect::<Vec<_>>(),
    )
}

#[test]
fn one_story_in_three_formats() {
    for (text, format, dropped) in [
        (FTRACE, TraceFormat::Ftrace, 12 + 3),
        (TRACE_CMD, TraceFormat::TraceCmd, 12),
        (PERF, TraceFormat::PerfScript, 12),
    ] {
        let trace = parse([text]).unwrap();
        assert_eq!(trace.format(), format);
        assert_eq!((trace.events(), trace.allocations(), trace.frees()), (5, 3, 2), "{format:?}");
        assert_eq!(trace.failed_allocations(), 1);
        assert_eq!(trace.frees_before_recording(), 1);
        assert_eq!(trace.partial_frees(), 1);
        assert_eq!(trace.lost_frees(), 1);
        assert_eq!(trace.dropped(), dropped);
        assert_eq!((trace.malformed(), trace.malformed_lines()), (0, &[][..]));
        assert_eq!(trace.lines(), text.lines().count() as u64);
        assert_eq!((trace.peak_bytes(), trace.live_bytes()), (9 * 4096, 7 * 4096));
        assert_eq!(trace.seconds(), 1.25);
        let steps: Vec<Step> = trace.steps().collect();
        assert_eq!(
            steps,
            [
                Step::Alloc { slot: 0, order: 3, migratetype: 1 },
                Step::Alloc { slot: 1, order: 0, migratetype: 0 },
                Step::FreePiece { slot: 0, order: 1, offset: 2 },
                Step::Free { slot: 1, order: 0 },
                Step::Alloc { slot: 1, order: 0, migratetype: 0 },
            ]
        );
    }
}

#[test]
fn byte_by_byte_is_the_same() {
    let crlf = FTRACE.replace('\n', "\r\n");
    let damaged = FTRACE.replace("pfn=0x42", "pfn=?");
    let unfinished = FTRACE.trim_end();
    for text in [FTRACE, TRACE_CMD, PERF, &crlf, &damaged, unfinished] {
        let whole = seen(&parse([text]).unwrap());
        assert_eq!(whole, seen(&parse(text.as_bytes().chunks(1)).unwrap()));
        assert_eq!(whole, seen(&parse(text.as_bytes().chunks(7)).unwrap()));
        assert_eq!(whole, seen(&parse(text.split_inclusive('\n')).unwrap()));
    }
    let lines = |text: &str| format!("{:?}", seen(&parse([text]).unwrap()));
    assert_eq!(lines(FTRACE), lines(&crlf));
    assert_eq!(lines(FTRACE), lines(unfinished));
}

#[test]
fn progress_is_seen_while_feeding() {
    let (mut parser, go_on) = (TraceParser::new(), &mut Interrupts::none());
    assert_eq!((parser.events(), parser.lines()), (0, 0));
    parser.feed(FTRACE.as_bytes(), go_on).unwrap();
    assert_eq!((parser.events(), parser.lines()), (5, 14));
    parser.feed(b"unfinished", go_on).unwrap();
    assert_eq!((parser.events(), parser.lines()), (5, 14));
}

#[test]
fn malformed_lines_by_number() {
    let text = "\
a-1 [000] 1.0: mm_page_alloc: page=1 pfn=0x1 order=0 migratetype=0
a-1 [000] 2.0: mm_page_alloc: page=1 pfn=zwei order=0 migratetype=0
a-1 [000] 2.0: mm_page_free: page=1 pfn=0x1

a-1 [000] 2.0: mm_page_free: page=1 pfn=0x1 order=40
a-1 [000] nowhen: mm_page_free: page=1 pfn=0x1 order=0
a-1 [000] 3.0: mm_page_free: page=1 pfn=0x1 order=0
";
    let trace = parse([text]).unwrap();
    assert_eq!((trace.events(), trace.malformed(), trace.live_bytes()), (2, 4, 0));
    assert_eq!(
        trace.malformed_lines(),
        [
            (2, LineFault::NotANumber { field: "pfn", text: "zwei".into() }),
            (3, LineFault::Missing { field: "order" }),
            (5, LineFault::OrderTooLarge { order: 40 }),
            (6, LineFault::NoTimestamp),
        ]
    );
    let many = text.repeat(MALFORMED_KEPT);
    let trace = parse([many]).unwrap();
    assert_eq!(trace.malformed(), 4 * MALFORMED_KEPT as u64);
    assert_eq!(trace.malformed_lines().len(), MALFORMED_KEPT);
    assert_eq!(trace.malformed_lines()[4].0, 7 + 2);
}

#[test]
fn no_trace_is_an_error() {
    for (text, lines) in [(&b""[..], 0), (b"hello\nworld", 2), (b"\0\0\xff\xfe\n\n\n", 3)] {
        let error = parse([text]).err().expect("no trace");
        assert_eq!(error, TraceError::NoEvents { lines, malformed: 0, first: None });
        assert!(
            error.to_string().contains(&format!("in {lines} lines; is this a trace?")),
            "{error}"
        );
    }
    let error = parse(["x\nmm_page_alloc: pfn=0x1 order=0\n"]).err().expect("no trace");
    assert!(
        error.to_string().ends_with(
            "1 malformed lines, the first is line 2: no timestamp before the event's name"
        ),
        "{error}"
    );
    let only_failures = "a-1 [000] 1.5: mm_page_alloc: page=(nil) pfn=0x0 order=9\n";
    assert!(parse([only_failures]).is_err());
}

#[test]
fn hostile_bytes_between_events() {
    let event = "a-1 [000] 1.0: mm_page_alloc: page=1 pfn=0x10 order=0 migratetype=0";
    let long = [b'x'].repeat(3 * LINE_BYTES_MAX);
    // An event at the front of a line without end still counts; one beyond the part looked at is not.
    let early = [event.as_bytes(), b" ", &long].concat();
    let late = [&long, event.replace("0x10", "0x20").as_bytes()].concat();
    let zeros = [&[0; 5000], event.replace("0x10", "0x30").as_bytes(), &[0; 100]].concat();
    let bad_utf8 = b"\xff\xc3\x28-1 [000] 1.0: mm_page_alloc: page=\xf0\x9f pfn=0x40 order=0\xff";
    let text = [&early[..], &late, &zeros, bad_utf8, &long, b"", b"\r"].join(&b'\n');
    for size in [1, 1000, LINE_BYTES_MAX, LINE_BYTES_MAX + 1, text.len()] {
        let trace = parse(text.chunks(size)).unwrap();
        assert_eq!((trace.allocations(), trace.lines()), (2, 7), "pieces of {size}");
        let fault = LineFault::NotANumber { field: "order", text: Quote::of(b"0\xff") };
        assert_eq!(trace.malformed_lines(), [(4, fault)]);
    }
}

#[test]
fn lost_frees_and_unknown_frees() {
    let trace = parse(["\
a-1 [000] 1.0: mm_page_alloc: page=1 pfn=0x40 order=2 migratetype=0
a-1 [000] 1.1: mm_page_alloc: page=1 pfn=0x42 order=0 migratetype=0
a-1 [000] 1.2: mm_page_free: page=1 pfn=0x40 order=3
a-1 [000] 1.3: mm_page_free: page=1 pfn=0x40 order=3
"])
    .unwrap();
    assert_eq!(trace.lost_frees(), 1);
    assert_eq!(trace.partial_frees(), 2);
    // The third event frees 4 of 8 pages, the fourth none.
    assert_eq!(trace.frees_before_recording(), 2);
    assert_eq!(trace.live_bytes(), 0);
    assert_eq!(
        trace.steps().collect::<Vec<_>>(),
        [
            Step::Alloc { slot: 0, order: 2, migratetype: 0 },
            Step::FreePiece { slot: 0, order: 0, offset: 2 },
            Step::Alloc { slot: 1, order: 0, migratetype: 0 },
            Step::FreePiece { slot: 0, order: 1, offset: 0 },
            Step::Free { slot: 1, order: 0 },
            Step::FreePiece { slot: 0, order: 0, offset: 3 },
        ]
    );
}

#[test]
fn frees_that_old_kernels_report_twice_are_counted_once() {
    let alloc =
        |pfn| format!("a-1 [000] 1.0: mm_page_alloc: page=1 pfn={pfn} order=0 migratetype=0\n");
    let direct = |pfn| format!("a-1 [000] 1.0: mm_page_free_direct: page=1 pfn={pfn} order=0\n");
    let pagevec =
        |pfn| format!("a-1 [000] 1.0: mm_pagevec_free: page=1 pfn={pfn} order=0 cold=0\n");
    let counts = |lines: &[String]| {
        let trace = parse(lines).unwrap();
        (trace.allocations(), trace.frees(), trace.frees_before_recording(), trace.live_bytes())
    };
    // By the list and by the page, with another processor's in between; or twice by the page.
    assert_eq!(
        counts(&[alloc(1), alloc(2), pagevec(1), pagevec(2), direct(1), direct(2)]),
        (2, 2, 0, 0)
    );
    assert_eq!(counts(&[alloc(1), direct(1), direct(1)]), (1, 1, 0, 0));
    // By the list alone.
    assert_eq!(counts(&[alloc(1), pagevec(1), alloc(1), pagevec(1)]), (2, 2, 0, 0));
    // Once each time, when it was allocated again meanwhile.
    let twice = [alloc(1), pagevec(1), direct(1), alloc(1), pagevec(1), direct(1)];
    assert_eq!(counts(&twice), (2, 2, 0, 0));
    // Of a page from before the recording.
    assert_eq!(counts(&[alloc(1), pagevec(7), direct(7), direct(8)]), (1, 2, 2, 4096));
}

#[test]
fn clocks_without_seconds_and_out_of_order() {
    let counter = "a-1 [000] 17: mm_page_alloc: page=1 pfn=0x40 order=0 migratetype=0\n";
    assert_eq!(parse([counter]).unwrap().seconds(), 0.0);
    let backwards = "\
a-1 [000] 5.0: mm_page_alloc: page=1 pfn=0x40 order=0 migratetype=0
a-1 [001] 7.5: mm_page_alloc: page=1 pfn=0x41 order=0 migratetype=0
a-1 [000] 4.0: mm_page_free: page=1 pfn=0x40 order=0
";
    assert_eq!(parse([backwards]).unwrap().seconds(), 2.5);
}

proptest! {
    /// Any bytes with bits of events among them, cut anywhere: the same as whole, and no panic.
    #[test]
    fn any_bytes_in_any_pieces(
        parts in prop::collection::vec(prop_oneof![
            Just(b"a-1 [000] 1.5: mm_page_alloc: page=1 pfn=0x40 order=0 migratetype=0\n".to_vec()),
            Just(b"a-1 [000] 1.5: mm_page_free: page=1 pfn=0x40 order=0\n".to_vec()),
            Just(b"mm_page_".to_vec()), Just(b"mm_page_free:".to_vec()), Just(b"kmem:".to_vec()),
            Just(b" 1.5: ".to_vec()), Just(b"pfn=0x".to_vec()), Just(b"order=".to_vec()),
            Just(b"CPU:1 [LOST ".to_vec()), Just(b"PERF_RECORD_LOST".to_vec()), Just(b"\n".to_vec()),
            Just(b"# entries-in-buffer/entries-written:".to_vec()),
            prop::collection::vec(any::<u8>(), 0..12),
            "[0-9]{1,25}".prop_map(String::into_bytes),
        ], 0..60),
        cuts in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let text = parts.concat();
        let mut rest = &text[..];
        let mut pieces = Vec::new();
        for &cut in cuts.iter().cycle() {
            let (piece, tail) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        let outcome = |parsed: Result<Trace, TraceError>| match parsed {
            Ok(trace) => Ok(format!("{:?}", seen(&trace))),
            Err(error) => Err(error),
        };
        prop_assert_eq!(outcome(parse(pieces)), outcome(parse([&text])));
    }
}
