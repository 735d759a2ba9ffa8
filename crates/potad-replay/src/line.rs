//! One line of a trace's text: which event it is, and its fields.
//!
//! Three recorders write the same events, each with a head of its own:
//!
//! ```text
//! ftrace      "    make-812     [001] d..1.  3800.928599: mm_page_alloc: page=0000...0c pfn=0x109ea9 order=0 ..."
//! trace-cmd   "    make-812   [001]  3800.928599: mm_page_alloc:        page=0xffffea00 pfn=1085097 order=0 ..."
//! perf        "make   812 [001]  3800.928599:            kmem:mm_page_alloc: page=0x109ea9 pfn=1085097 order=0 ..."
//! ```
//!
//! The head cannot be read from the left, as a command's name may hold spaces, colons and brackets.
//! So a line is read from its event's name: to its left must stand a timestamp and a colon, to its
//! right the fields, `name=value`, in the order `page`, `pfn`, `order`, `migratetype`, which is that of
//! the kernel's text and also that of the binary record, in which tools that cannot interpret the
//! kernel's print format list the raw fields. A page frame number is hexadecimal with `0x` before it and
//! decimal without: kernels before 5.13 print it in decimal. Between the time and the name may stand a
//! sampling period (perf) or the time since the line before (`trace-cmd report --ts-diff`: `(+12)`).
//!
//! A line that names a page event and cannot be read is malformed, whatever stands between the time and
//! the name; only behind the name of another event is it that event's text. A line that has a second
//! timestamp or event's name in it, or a field twice or out of order, is made of the halves of two
//! lines, and is no event.
//!
//! Kernels from 2.6.32 to 3.3 call a free `mm_page_free_direct`. Some of them report the free of one page
//! twice, as `mm_pagevec_free` before or as `mm_page_free_direct` once more, and some only as
//! `mm_pagevec_free`: so both are read, and [`PageEvent::Free`] says that it may be a repetition.
//!
//! What stands for a line with none of our events in it: comments and the headers of the recorders,
//! stack traces, other tracepoints. `mm_page_free_batched` is among these, as the kernel reports each
//! of its pages by an `mm_page_free` too.
//!
//! The work is two searches (the line's end, the event's name) that run many bytes at a time, then a
//! few dozen bytes one by one. Nothing here copies, but for the text of a fault.

use std::sync::LazyLock;

use memchr::{memchr_iter, memchr3, memmem};

use crate::error::{LineFault, Quote};
use crate::trace::{ORDER_MAX, PAYLOAD_MAX};

/// Page frame numbers end where 64-bit physical addresses of 4 KiB pages do.
const PFN_END: u64 = 1 << 52;

/// The fields that are read, in the order in which they stand.
const PAGE: usize = 0;
const PFN: usize = 1;
const ORDER: usize = 2;
const MIGRATETYPE: usize = 3;

/// A page event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageEvent {
    Alloc {
        pfn: u64,
        order: u32,
        migratetype: u32,
    },
    /// `may_repeat`: the kernel may have reported the same free just before.
    Free {
        pfn: u64,
        order: u32,
        may_repeat: bool,
    },
}

/// A page event with what the line says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub event: PageEvent,
    /// Nanoseconds on the recorder's clock, or `None` where the clock does not count seconds.
    pub time: Option<u64>,
    /// `kmem:` stands before the event's name, as only perf writes it.
    pub perf: bool,
    /// Pointers are written with `0x` before them: not by the kernel itself.
    pub prefixed_pointer: bool,
}

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Event(Record),
    /// An allocation the recorded kernel could not serve: no page came of it.
    FailedAllocation,
    /// The recorder lost this many events here.
    Dropped(u64),
    /// The head of an ftrace text.
    FtraceHeader,
    /// The head of a trace-cmd text.
    TraceCmdHeader,
    Malformed(LineFault),
    Other,
}

/// Reads lines. Holds the prepared searches, which cost more to make than to run.
pub(crate) struct LineReader {
    event: memmem::Finder<'static>,
    perf_lost: memmem::Finder<'static>,
}

/// The one there need be.
pub(crate) static LINE_READER: LazyLock<LineReader> = LazyLock::new(LineReader::new);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alloc,
    Free,
    /// Of a kernel that may report a free twice.
    OldFree,
}

/// What stands to the left of an event's name.
enum Head<'a> {
    /// A timestamp, as it should be, and what stands before it.
    Stamped { before: &'a [u8], time: Option<u64>, perf: bool },
    /// No timestamp, though the name stands by itself.
    Unstamped,
    /// The name is the end of a longer word.
    InsideWord,
}

impl LineReader {
    fn new() -> LineReader {
        LineReader {
            event: memmem::Finder::new("mm_page"),
            perf_lost: memmem::Finder::new("PERF_RECORD_LOST"),
        }
    }

    /// Reads a line, given without its newline.
    #[inline]
    pub(crate) fn read(&self, line: &[u8]) -> Line {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if is_comment(line) {
            return read_comment(line);
        }
        let Some(first) = self.event.find(line) else {
            return self.read_note(line);
        };
        let mut at = first;
        // What is wrong with the first name that stands by itself, if it names this line's event.
        let mut unstamped: Option<Option<LineFault>> = None;
        loop {
            if let Some((kind, fields)) = event_name(&line[at..]) {
                match read_head(&line[..at]) {
                    Head::Stamped { before, .. } if first_timestamp(before).is_some() => {
                        return Line::Malformed(LineFault::Torn);
                    }
                    Head::Stamped { time, perf, .. } => {
                        return read_event(kind, fields, time, perf);
                    }
                    // All names behind it are text of the same event.
                    Head::Unstamped => {
                        unstamped.get_or_insert_with(|| unstamped_fault(&line[..at]));
                    }
                    Head::InsideWord => {}
                }
            }
            let next = at + self.event.needle().len();
            match self.event.find(&line[next..]) {
                Some(offset) => at = next + offset,
                None => return unstamped.flatten().map_or(Line::Other, Line::Malformed),
            }
        }
    }

    /// A line without an event's name: perhaps a recorder's note.
    fn read_note(&self, line: &[u8]) -> Line {
        // The kernel writes "CPU:1 [LOST 12 EVENTS]", trace-cmd "CPU:1 [12 EVENTS DROPPED]"; both
        // leave the number out where they do not know it.
        if line.starts_with(b"CPU:") {
            let note = line.split(|&b| b == b'[').nth(1).unwrap_or_default();
            let about_loss = note.starts_with(b"LOST ") || note.ends_with(b"EVENTS DROPPED]");
            return if about_loss {
                Line::Dropped(first_number(note).unwrap_or(1))
            } else {
                Line::Other
            };
        }
        if line.starts_with(b"cpus=") || line.starts_with(b"version = ") {
            return Line::TraceCmdHeader;
        }
        // perf: "... 12.000001: PERF_RECORD_LOST lost 9", or PERF_RECORD_LOST_SAMPLES.
        match self.perf_lost.find(line) {
            Some(at) => {
                let rest = &line[at + self.perf_lost.needle().len()..];
                let rest = rest.strip_prefix(b"_SAMPLES").unwrap_or(rest);
                Line::Dropped(first_number(rest).unwrap_or(1))
            }
            None => Line::Other,
        }
    }
}

/// A comment is `#` alone or `# text`: a command's name may begin with `#` too.
fn is_comment(line: &[u8]) -> bool {
    line.first() == Some(&b'#') && matches!(line.get(1), None | Some(b' ' | b'\t' | b'#'))
}

fn read_comment(line: &[u8]) -> Line {
    if line.starts_with(b"# tracer:") {
        return Line::FtraceHeader;
    }
    // "# entries-in-buffer/entries-written: 5/9   #P:2": the other 4 were overwritten.
    let Some(rest) = line.strip_prefix(b"# entries-in-buffer/entries-written:") else {
        return Line::Other;
    };
    let kept = first_number(rest);
    let written = rest.split(|&b| b == b'/').nth(1).and_then(first_number);
    match (kept, written) {
        (Some(kept), Some(written)) if written > kept => Line::Dropped(written - kept),
        _ => Line::Other,
    }
}

/// The event whose name starts here and what follows its colon. The colon must end the name:
/// `mm_page_alloc_extfrag:` and `mm_page_free_batched:` are other events.
#[inline]
fn event_name(text: &[u8]) -> Option<(Kind, &[u8])> {
    let name = text.strip_prefix(b"mm_page")?;
    if let Some(fields) = name.strip_prefix(b"_alloc:") {
        Some((Kind::Alloc, fields))
    } else if let Some(fields) = name.strip_prefix(b"_free:") {
        Some((Kind::Free, fields))
    } else {
        let fields = name.strip_prefix(b"_free_direct:").or(name.strip_prefix(b"vec_free:"))?;
        Some((Kind::OldFree, fields))
    }
}

#[inline]
fn read_head(head: &[u8]) -> Head<'_> {
    let (head, perf) = match head.strip_suffix(b"kmem:") {
        Some(head) => (head, true),
        None => (head, false),
    };
    let mut rest = trim_end(head);
    if rest.len() == head.len() && !head.is_empty() && head.last() != Some(&b':') {
        return Head::InsideWord;
    }
    match rest.last() {
        // A sampling period may stand between the timestamp and the event.
        Some(b'0'..=b'9') if perf => rest = trim_end(trim_end_digits(rest)),
        Some(b')') => rest = trim_end(trim_end_difference(rest)),
        _ => {}
    }
    if let Some(before) = rest.strip_suffix(b":")
        && let Some(time) = read_timestamp(before)
    {
        return Head::Stamped { before, time, perf };
    }
    // perf can be told to leave the time out; nothing else writes "kmem:".
    if perf { Head::Stamped { before: head, time: None, perf } } else { Head::Unstamped }
}

/// What is wrong with a line in which an event's name stands by itself behind this head, but not where
/// its recorder puts it; nothing where it is text of another event.
#[cold]
fn unstamped_fault(head: &[u8]) -> Option<LineFault> {
    let Some(end) = first_timestamp(head) else { return Some(LineFault::NoTimestamp) };
    let between = &head[end..];
    let other_event = memchr_iter(b':', between).any(|at| ends_word(between, at + 1));
    (!other_event).then(|| LineFault::Between { text: Quote::of(between.trim_ascii()) })
}

/// The timestamp that ends `text`: `Some(None)` where it counts something else than seconds (the
/// clocks `counter` and `x86-tsc` are whole numbers), `None` where there is none.
#[inline]
fn read_timestamp(text: &[u8]) -> Option<Option<u64>> {
    let mut fraction = 0_u64;
    let mut fraction_unit = 1_u64;
    let mut at = text.len();
    while at > 0 && text[at - 1].is_ascii_digit() {
        at -= 1;
        // Nine digits are nanoseconds; a longer fraction is no recorder's.
        fraction = fraction.checked_add(u64::from(text[at] - b'0').checked_mul(fraction_unit)?)?;
        fraction_unit = fraction_unit.checked_mul(10)?;
    }
    if at == text.len() {
        return None;
    }
    if at == 0 || text[at - 1] != b'.' {
        return starts_word(text, at).then_some(None);
    }
    if fraction_unit > 1_000_000_000 {
        return None;
    }
    at -= 1;
    let seconds_end = at;
    let mut seconds = 0_u64;
    let mut unit = 1_u64;
    while at > 0 && text[at - 1].is_ascii_digit() {
        at -= 1;
        seconds = seconds.checked_add(u64::from(text[at] - b'0').checked_mul(unit)?)?;
        unit = unit.checked_mul(10)?;
    }
    if at == seconds_end || !starts_word(text, at) {
        return None;
    }
    let nanoseconds = fraction * (1_000_000_000 / fraction_unit);
    Some(Some(seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)?))
}

/// Whether what starts at `at` is not the tail of a longer word.
fn starts_word(text: &[u8], at: usize) -> bool {
    at == 0 || matches!(text[at - 1], b' ' | b'\t' | b']' | 0)
}

/// Whether a word that ends before `at` ends there.
fn ends_word(text: &[u8], at: usize) -> bool {
    text.get(at).is_some_and(|&next| is_space(next))
}

/// Where the first `12.345:` in the text ends; one that does not count seconds must stand before a space.
#[inline]
fn first_timestamp(text: &[u8]) -> Option<usize> {
    memchr_iter(b':', text)
        .find(|&at| match read_timestamp(&text[..at]) {
            Some(Some(_)) => true,
            Some(None) => ends_word(text, at + 1),
            None => false,
        })
        .map(|at| at + 1)
}

fn read_event(kind: Kind, fields: &[u8], time: Option<u64>, perf: bool) -> Line {
    let event = read_fields(fields).and_then(|values| Ok((assemble(kind, &values)?, values)));
    match event {
        Ok((Some(event), values)) => {
            let prefixed_pointer = values[PAGE].is_some_and(|text| text.starts_with(b"0x"));
            Line::Event(Record { event, time, perf, prefixed_pointer })
        }
        Ok((None, _)) => Line::FailedAllocation,
        Err(fault) => Line::Malformed(fault),
    }
}

/// The values of the fields of one event.
#[inline]
fn read_fields(fields: &[u8]) -> Result<[Option<&[u8]>; 4], LineFault> {
    let mut values = [None; 4];
    // The first field that may still come.
    let mut next = PAGE;
    let mut rest = fields;
    loop {
        let token;
        (token, rest) = split_token(rest);
        if token.is_empty() {
            return Ok(values);
        }
        let (field, mut value) = if let Some(value) = token.strip_prefix(b"page=") {
            (PAGE, value)
        } else if let Some(value) = token.strip_prefix(b"pfn=") {
            (PFN, value)
        } else if let Some(value) = token.strip_prefix(b"order=") {
            (ORDER, value)
        } else if let Some(value) = token.strip_prefix(b"migratetype=") {
            (MIGRATETYPE, value)
        } else if token.last() == Some(&b':') {
            return Err(LineFault::Torn);
        } else {
            continue;
        };
        if field < next {
            return Err(LineFault::Torn);
        }
        if field == PAGE && value.is_empty() {
            // Kernels before 5.x pad the pointer that is none: `page=          (null)`.
            (value, rest) = split_token(rest);
        }
        values[field] = Some(value);
        next = field + 1;
    }
}

/// The first word of a text, which is empty only where there is none, and what follows it.
#[inline]
fn split_token(mut text: &[u8]) -> (&[u8], &[u8]) {
    while let [b' ' | b'\t' | b'\r' | 0, tail @ ..] = text {
        text = tail;
    }
    let end = memchr3(b' ', b'\t', 0, text).unwrap_or(text.len());
    text.split_at(end)
}

/// The event these fields make, or `None` for an allocation that failed.
fn assemble(kind: Kind, values: &[Option<&[u8]>; 4]) -> Result<Option<PageEvent>, LineFault> {
    let value = |field: usize, name| values[field].ok_or(LineFault::Missing { field: name });
    let pfn = number("pfn", value(PFN, "pfn")?)?;
    let order = number("order", value(ORDER, "order")?)?;
    if kind == Kind::Alloc
        && (pfn == u64::MAX || values[PAGE].is_some_and(|page| is_null(page, pfn)))
    {
        return Ok(None);
    }
    if order > u64::from(ORDER_MAX) {
        return Err(LineFault::OrderTooLarge { order });
    }
    if pfn >= PFN_END {
        return Err(LineFault::PfnTooLarge { pfn });
    }
    let order = order as u32;
    if pfn & ((1 << order) - 1) != 0 {
        return Err(LineFault::Misaligned { pfn, order });
    }
    Ok(Some(match kind {
        Kind::Alloc => {
            let migratetype =
                values[MIGRATETYPE].map_or(Ok(0), |text| number("migratetype", text))?;
            PageEvent::Alloc {
                pfn,
                order,
                migratetype: migratetype.min(u64::from(PAYLOAD_MAX)) as u32,
            }
        }
        // No free has the field.
        _ if values[MIGRATETYPE].is_some() => return Err(LineFault::Torn),
        _ => PageEvent::Free { pfn, order, may_repeat: kind == Kind::OldFree },
    }))
}

/// Whether a page is none, as a failed allocation's is. The record holds pfn -1 for it. Kernels print
/// the pointer as `(null)`, with 0 as its pfn or, before 3.19, whatever they compute from it; since 5.x as
/// zeroes, with 0. Tools print `(nil)` or zeroes. Zeroes beside another pfn are a pointer that was hidden,
/// and frame 0 beside another pointer is a page like any other on some machines.
fn is_null(page: &[u8], pfn: u64) -> bool {
    let digits = page.strip_prefix(b"0x").unwrap_or(page);
    page == b"(nil)"
        || page == b"(null)"
        || (pfn == 0 && !digits.is_empty() && digits.iter().all(|&b| b == b'0'))
}

/// A number that fills the whole of `text`: hexadecimal behind `0x`, else decimal.
#[inline]
fn number(field: &'static str, text: &[u8]) -> Result<u64, LineFault> {
    let value = match text.strip_prefix(b"0x") {
        Some(digits) => digits_in(digits, 16),
        None => digits_in(text, 10),
    };
    value.ok_or_else(|| LineFault::NotANumber { field, text: Quote::of(text) })
}

#[inline]
fn digits_in(digits: &[u8], radix: u64) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for &byte in digits {
        let digit = match byte {
            b'0'..=b'9' => u64::from(byte - b'0'),
            b'a'..=b'f' if radix == 16 => u64::from(byte - b'a') + 10,
            b'A'..=b'F' if radix == 16 => u64::from(byte - b'A') + 10,
            _ => return None,
        };
        value = value.checked_mul(radix)?.checked_add(digit)?;
    }
    Some(value)
}

/// The first run of decimal digits.
fn first_number(text: &[u8]) -> Option<u64> {
    let start = text.iter().position(u8::is_ascii_digit)?;
    let digits = &text[start..];
    let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    digits_in(&digits[..end], 10)
}

#[inline]
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0)
}

#[inline]
fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [head @ .., b' ' | b'\t'] = text {
        text = head;
    }
    text
}

fn trim_end_digits(mut text: &[u8]) -> &[u8] {
    while let [head @ .., b'0'..=b'9'] = text {
        text = head;
    }
    text
}

/// Without the time since the line before at its end: `(+12)`, or `(+-12)` where time ran backwards.
fn trim_end_difference(text: &[u8]) -> &[u8] {
    let Some(inside) = text.strip_suffix(b")") else { return text };
    let sign = trim_end_digits(inside);
    if sign.len() == inside.len() {
        return text;
    }
    let sign = sign.strip_suffix(b"-").unwrap_or(sign);
    sign.strip_suffix(b"(+").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Line {
        LineReader::new().read(text.as_bytes())
    }

    fn event(text: &str) -> Record {
        match read(text) {
            Line::Event(record) => record,
            other => panic!("{text:?} read as {other:?}"),
        }
    }

    #[test]
    fn heads_of_all_recorders() {
        let expected = PageEvent::Alloc { pfn: 0x109ea9, order: 0, migratetype: 1 };
        let time = Some(3_800_928_599_000);
        for (text, time) in [
            (
                "task-1 [000] .....  3800.928599: mm_page_alloc: page=000000009bf2070c pfn=0x109ea9 order=0 migratetype=1 gfp_flags=GFP_KERNEL",
                time,
            ),
            (
                "           <...>-17      [001] d..1.  3800.928599: mm_page_alloc: page=0000000009bf20 pfn=1089193 order=0 migratetype=1 gfp_flags=0x1",
                time,
            ),
            (
                "    Web Content: [1]-17   (   12) [001] d..1.  3800.928599: mm_page_alloc: page=ffffea0002b94e80 pfn=1089193 order=0 migratetype=1",
                time,
            ),
            (
                "  make-812   [001]  3800.928599: mm_page_alloc:        page=0xffffea00 pfn=1089193 order=0 migratetype=1 gfp_flags=GFP_KERNEL\r",
                time,
            ),
            (
                "  make-812   [001] ..... 3800.928599000: mm_page_alloc:        [FAILED TO PARSE] pfn=0x109ea9 order=0 gfp_flags=3264 migratetype=1",
                time,
            ),
            (
                "make   812 [001]  3800.928599:            kmem:mm_page_alloc: page=0x109ea9 pfn=1089193 order=0 migratetype=1 gfp_flags=GFP_KERNEL",
                time,
            ),
            (
                "Isolated Web Co 812/813 [001]  3800.928599:  1 kmem:mm_page_alloc: page=0x109ea9 pfn=0x109ea9 order=0 migratetype=1",
                time,
            ),
            (
                "make   812 kmem:mm_page_alloc: page=0x109ea9 pfn=1089193 order=0 migratetype=1 gfp_flags=GFP_KERNEL",
                None,
            ),
            (
                "\0\0\0make-812 [001]   99887766: mm_page_alloc: page=0x109ea9 pfn=1089193 order=0 migratetype=1",
                None,
            ),
        ] {
            let record = event(text);
            assert_eq!(record.event, expected, "{text}");
            assert_eq!(record.time, time, "{text}");
            assert_eq!(record.perf, text.contains("kmem:"), "{text}");
        }
        assert_eq!(
            event("a-1 [000] 1.5: mm_page_free: page=000000006036e094 pfn=0x400 order=10\r"),
            Record {
                event: PageEvent::Free { pfn: 0x400, order: 10, may_repeat: false },
                time: Some(1_500_000_000),
                perf: false,
                prefixed_pointer: false,
            }
        );
    }

    #[test]
    fn the_time_since_the_line_before_may_stand_behind_the_time() {
        for between in [" ", "  (+1)     ", "\t(+18446744073709551615) ", " (+-3)  ", "(+12) "] {
            let text =
                format!("a-1   [001]  2.5:{between}mm_page_free:         page=0x4 pfn=4 order=2");
            let record = event(&text);
            let free = PageEvent::Free { pfn: 4, order: 2, may_repeat: false };
            assert_eq!((record.event, record.time), (free, Some(2_500_000_000)), "{text}");
        }
    }

    #[test]
    fn whatever_stands_between_the_time_and_the_name_the_line_is_reported() {
        for between in ["(+)", "(12)", "(+1.5)", "+12", "[x]", "cpu=3 d..1", "(+1) (+2)", "x:"] {
            let text = format!("a-1 [001] 2.5: {between} mm_page_free: page=0x4 pfn=4 order=2");
            // A word with a colon is another event's name.
            let expected = match between.ends_with(':') {
                true => Line::Other,
                false => Line::Malformed(LineFault::Between { text: between.into() }),
            };
            assert_eq!(read(&text), expected, "{text}");
        }
        // Of another group of events.
        let text = "a-1 [001] 2.5: other:mm_page_free: page=0x4 pfn=4 order=2";
        let fault = LineFault::Between { text: "other:".into() };
        assert_eq!(read(text), Line::Malformed(fault));
    }

    #[test]
    fn frees_of_old_kernels() {
        for name in ["mm_page_free_direct", "mm_pagevec_free"] {
            let text = format!("a-1 [000] 1.5: {name}: page=ffffea0003db9f80 pfn=1155801 order=0");
            let free = PageEvent::Free { pfn: 1_155_801, order: 0, may_repeat: true };
            assert_eq!(event(&text).event, free);
            assert_eq!(event(&format!("{text} cold=1")).event, free);
        }
    }

    /// One line cut off anywhere, and another, whole, behind it: never an event, and never overlooked.
    #[test]
    fn halves_of_two_lines_are_no_event() {
        let lines = [
            "  bash-1 [000] ..... 1.500000: mm_page_alloc: page=000000009bf2070c pfn=0x40 order=0 migratetype=0 gfp_flags=GFP_KERNEL",
            "  kworker/0:1-7 [000] d..1. 9.500000: mm_page_free: page=000000009bf2070c pfn=0x800 order=10",
            "  bash-1   [001]  3800.928599: (+17)  mm_page_free:   page=0x109ea9 pfn=1089193 order=0",
            "make   812 [001]  3800.928599:        kmem:mm_page_free: page=0x109ea9 pfn=1089193 order=0",
            "  a-1 [000] 4415.255567: mm_pagevec_free: page=ffffea0003db9f80 pfn=1155801 order=0 cold=0",
        ];
        for first in lines {
            event(first);
            let stamp = first.find(": ").expect("a time") + 1;
            for second in lines {
                for cut in stamp..first.len() {
                    let torn = format!("{}{second}", &first[..cut]);
                    assert!(matches!(read(&torn), Line::Malformed(_)), "{torn}: {:?}", read(&torn));
                }
            }
        }
    }

    /// The middle lost: fields of two lines one after the other.
    #[test]
    fn fields_twice_or_out_of_order_are_no_event() {
        for text in [
            "a-1 [000] 1.5: mm_page_free: page=1 pfn=0x40 page=2 pfn=0x80 order=0",
            "a-1 [000] 1.5: mm_page_free: page=1 pfn=0x40 pfn=0x80 order=0",
            "a-1 [000] 1.5: mm_page_free: page=1 pfn=0x40 order=0 order=1",
            "a-1 [000] 1.5: mm_page_free: pfn=0x40 page=1 order=0",
            "a-1 [000] 1.5: mm_page_free: order=0 page=1 pfn=0x40",
            "a-1 [000] 1.5: mm_page_free: page=1 pfn=0x40 order=0 migratetype=1 gfp_flags=GFP_KERNEL",
            "a-1 [000] 1.5: mm_page_alloc: page=1 pfn=0x40 migratetype=1 order=0",
            "a-1 [000] 1.5: mm_page_alloc: page=1 pfn=0x40 order=0 migratetype=1 gfp_flags=GF pfn=0x80 order=0",
            "a-1 [000] 1.5: mm_page_alloc: page=1 pfn=0x40 order=0 migratetype=1 gfp_fl# tracer: nop",
        ] {
            assert_eq!(read(text), Line::Malformed(LineFault::Torn), "{text}");
        }
    }

    #[test]
    fn other_lines_pass() {
        for text in [
            "",
            "#",
            "# mm_page_alloc: page=1",
            "#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION",
            "a-1 [000] 1.5: mm_page_free_batched: page=000000006036e094 pfn=0x400 order=0",
            "a-1 [000] 1.5: mm_page_alloc_extfrag: page=000000006036e094 pfn=0x400 alloc_order=0",
            "a-1 [000] 1.5: mm_page_alloc_zone_locked: page=0 pfn=0x400 order=0",
            "a-1 [000] 1.5: kfree: call_site=foo ptr=0000",
            "a-1 [000] 1.5: tracing_mark_write: mm_page_alloc: not ours",
            "a-1 [000] 1.5: bprint: x: saw mm_page_free: pfn=1 order=0",
            " => trace_event_raw_event_mm_page_free",
            "mm_page_alloc-17 [000] 1.5: kfree: call_site=mm_page_free",
            "CPU:1 [buffer started]",
            "##### CPU 1 buffer started ####",
        ] {
            assert_eq!(read(text), Line::Other, "{text}");
        }
    }

    #[test]
    fn notes_of_lost_events() {
        for (text, count) in [
            ("CPU:0 [LOST 12 EVENTS]", 12),
            ("CPU:11 [LOST EVENTS]", 1),
            ("CPU:11 [5 EVENTS DROPPED]\r", 5),
            ("CPU:7 [204600 EVENTS DROPPED]", 204_600),
            ("CPU:7 [EVENTS DROPPED]", 1),
            ("# entries-in-buffer/entries-written: 5/9   #P:2", 4),
            ("a 9777/9888 [006] 1.000000001: PERF_RECORD_LOST lost 9", 9),
            ("a 9777/9888 [006] 1.000000001: PERF_RECORD_LOST_SAMPLES lost 3", 3),
        ] {
            assert_eq!(read(text), Line::Dropped(count), "{text}");
        }
        assert_eq!(read("# entries-in-buffer/entries-written: 9/9   #P:2"), Line::Other);
        assert_eq!(read("# tracer: nop"), Line::FtraceHeader);
        assert_eq!(read("cpus=8"), Line::TraceCmdHeader);
    }

    #[test]
    fn faults_name_the_field() {
        let not_a_number = |field, text: &str| LineFault::NotANumber { field, text: text.into() };
        for (text, fault) in [
            ("mm_page_alloc: page=0 pfn=0x1 order=0", LineFault::NoTimestamp),
            ("a-1 [000] 3x.5: mm_page_alloc: page=0 pfn=0x1 order=0", LineFault::NoTimestamp),
            ("a-1 [000] 1.5: mm_page_alloc:", LineFault::Missing { field: "pfn" }),
            ("a-1 [000] 1.5: mm_page_alloc: page=1 pfn=0x1", LineFault::Missing { field: "order" }),
            ("a-1 [000] 1.5: mm_page_free: page=1 order=0", LineFault::Missing { field: "pfn" }),
            ("a-1 [000] 1.5: mm_page_free: pfn=0xzz order=0", not_a_number("pfn", "0xzz")),
            ("a-1 [000] 1.5: mm_page_free: pfn= order=0", not_a_number("pfn", "")),
            ("a-1 [000] 1.5: mm_page_free: pfn=1f order=0", not_a_number("pfn", "1f")),
            ("a-1 [000] 1.5: mm_page_free: pfn=0x1 order=-1", not_a_number("order", "-1")),
            (
                "a-1 [000] 1.5: mm_page_alloc: pfn=0x1 order=0 migratetype=x",
                not_a_number("migratetype", "x"),
            ),
            (
                "a-1 [000] 1.5: mm_page_free: pfn=0x0 order=19",
                LineFault::OrderTooLarge { order: 19 },
            ),
            (
                "a-1 [000] 1.5: mm_page_free: pfn=0x10000000000000 order=0",
                LineFault::PfnTooLarge { pfn: 1 << 52 },
            ),
            (
                "a-1 [000] 1.5: mm_page_free: pfn=0x6 order=2",
                LineFault::Misaligned { pfn: 6, order: 2 },
            ),
        ] {
            assert_eq!(read(text), Line::Malformed(fault), "{text}");
        }
    }

    #[test]
    fn failed_allocations() {
        for text in [
            "a-1 [000] 1.5: mm_page_alloc: page=(nil) pfn=0x0 order=9 migratetype=1",
            "a-1 [000] 1.5: mm_page_alloc: page=(null) pfn=0 order=9 migratetype=1",
            "a-1 [000] 1.5: mm_page_alloc: page=0000000000000000 pfn=0x0 order=9 migratetype=1",
            "a-1 [000] 1.5: mm_page_alloc: [FAILED TO PARSE] pfn=0xffffffffffffffff order=9",
            // Kernels before 5.x, of 64 bits and of 32; before 3.19 the pfn is computed from the pointer.
            "a-1 [000] 1.5: mm_page_alloc: page=          (null) pfn=0 order=0 migratetype=1 gfp_flags=0",
            "a-1 [000] 1.5: mm_page_alloc: page=  (null) pfn=0 order=4 migratetype=1 gfp_flags=0",
            "a-1 [000] 1.5: mm_page_alloc: page= (null) pfn=0 order=0 migratetype=0 nr_free=3650 gfp_flags=0",
            "a-1 [000] 1.5: mm_page_alloc: page=          (null) pfn=377957122048 order=4 migratetype=0",
            "a-1 [000] 1.5: mm_page_alloc: page=  (null) pfn=18446744073709551 order=9 migratetype=0",
            "a-1 [000] 1.5: mm_page_alloc: page=(nil) pfn=134217727 order=1 migratetype=0",
        ] {
            assert_eq!(read(text), Line::FailedAllocation, "{text}");
        }
        assert_eq!(
            event("a-1 [000] 1.5: mm_page_alloc: page=00000000c9372449 pfn=0x0 order=0").event,
            PageEvent::Alloc { pfn: 0, order: 0, migratetype: 0 }
        );
        // A pointer that is hidden, on purpose or as there were no random bits yet, is not none.
        for page in ["0000000000000000", "(____ptrval____)", "        (ptrval)"] {
            let text = format!("a-1 [000] 1.5: mm_page_alloc: page={page} pfn=0x40 order=1");
            let alloc = PageEvent::Alloc { pfn: 0x40, order: 1, migratetype: 0 };
            assert_eq!(event(&text).event, alloc, "{text}");
        }
    }
}
