//! The parser: bytes in, in pieces of any length, and a [`Trace`] out.
//!
//! It cuts the bytes into lines, reads each line and resolves its event at once, so memory follows
//! the number of events and never the length of the text. A piece need not end where a line does:
//! the incomplete line is carried over. Whatever the pieces, the trace is the same.

use memchr::memchr;

use crate::error::{LineFault, TraceError};
use crate::line::{Line, LineReader, PageEvent, Record};
use crate::live::LivePages;
use crate::trace::{Tally, Trace, TraceFormat};

/// The part of a line that is looked at. The fields stand at the front, so a longer line (a runaway
/// stack trace, a binary file) is judged by its first bytes and costs no more memory than this.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Malformed lines that are kept with their number; more are only counted.
pub const MALFORMED_KEPT: usize = 20;

/// Reads a trace from text in pieces.
///
/// ```
/// let mut parser = potad_replay::TraceParser::new();
/// parser.feed(b"sh-1 [000] ..... 1.000001: mm_page_alloc: page=0000000012f7b4c8 pfn=0x1c");
/// parser.feed(b"ba order=0 migratetype=0 gfp_flags=GFP_KERNEL\n");
/// let trace = parser.finish()?;
/// assert_eq!((trace.events(), trace.live_bytes()), (1, 4096));
/// # Ok::<(), potad_replay::TraceError>(())
/// ```
pub struct TraceParser {
    reader: LineReader,
    live: LivePages,
    times: Vec<u64>,
    tally: Tally,
    /// The beginning of a line whose end has not come yet, cut at [`LINE_BYTES_MAX`].
    carried: Vec<u8>,
    /// Whether a line is under way, which may be while `carried` is empty.
    in_line: bool,
    first_time: Option<u64>,
    last_time: u64,
    format: Option<TraceFormat>,
    ftrace_header: bool,
    trace_cmd_header: bool,
}

impl Default for TraceParser {
    fn default() -> Self {
        TraceParser::new()
    }
}

impl TraceParser {
    /// A parser that has read nothing.
    pub fn new() -> TraceParser {
        TraceParser {
            reader: LineReader::new(),
            live: LivePages::new(),
            times: Vec::new(),
            tally: Tally::default(),
            carried: Vec::new(),
            in_line: false,
            first_time: None,
            last_time: 0,
            format: None,
            ftrace_header: false,
            trace_cmd_header: false,
        }
    }

    /// Page events read so far.
    pub fn events(&self) -> u64 {
        self.tally.allocations + self.tally.frees
    }

    /// Lines read so far, without one that is incomplete.
    pub fn lines(&self) -> u64 {
        self.tally.lines
    }

    /// Reads the next bytes of the text.
    pub fn feed(&mut self, mut data: &[u8]) {
        if self.in_line {
            match memchr(b'\n', data) {
                None => return self.carry(data),
                Some(end) => {
                    self.carry(&data[..end]);
                    self.end_carried_line();
                    data = &data[end + 1..];
                }
            }
        }
        while let Some(end) = memchr(b'\n', data) {
            self.line(&data[..end.min(LINE_BYTES_MAX)]);
            data = &data[end + 1..];
        }
        if !data.is_empty() {
            self.carry(data);
        }
    }

    /// Ends the text and gives the trace.
    ///
    /// # Errors
    ///
    /// [`TraceError::NoEvents`] where not one page event was read.
    pub fn finish(mut self) -> Result<Trace, TraceError> {
        if self.in_line {
            self.end_carried_line();
        }
        let Some(format) = self.format else {
            let hint = match self.tally.malformed_lines.first() {
                Some((number, fault)) => {
                    format!(
                        " {} malformed lines, the first is line {number}: {fault}",
                        self.tally.malformed
                    )
                }
                None => String::new(),
            };
            return Err(TraceError::NoEvents { lines: self.tally.lines, hint });
        };
        let first_time = self.first_time.unwrap_or(0);
        Ok(Trace {
            slots: self.live.slots(),
            peak_pages: self.live.peak_pages,
            peak_step: self.live.peak_step,
            live_pages: self.live.live_pages,
            steps: self.live.steps,
            times: self.times,
            nanoseconds: self.last_time.saturating_sub(first_time),
            tally: self.tally,
            format,
        })
    }

    fn carry(&mut self, data: &[u8]) {
        let room = LINE_BYTES_MAX - self.carried.len();
        self.carried.extend_from_slice(&data[..data.len().min(room)]);
        self.in_line = true;
    }

    fn end_carried_line(&mut self) {
        let mut line = std::mem::take(&mut self.carried);
        self.in_line = false;
        self.line(&line);
        line.clear();
        self.carried = line;
    }

    fn line(&mut self, line: &[u8]) {
        self.tally.lines += 1;
        match self.reader.read(line) {
            Line::Event(record) => self.event(record),
            Line::FailedAllocation => self.tally.failed_allocations += 1,
            Line::Dropped(count) => self.tally.dropped = self.tally.dropped.saturating_add(count),
            Line::FtraceHeader => self.ftrace_header = true,
            Line::TraceCmdHeader => self.trace_cmd_header = true,
            Line::Malformed(fault) => self.malformed(fault),
            Line::Other => {}
        }
    }

    fn malformed(&mut self, fault: LineFault) {
        self.tally.malformed += 1;
        if self.tally.malformed_lines.len() < MALFORMED_KEPT {
            self.tally.malformed_lines.push((self.tally.lines, fault));
        }
    }

    fn event(&mut self, record: Record) {
        if self.format.is_none() {
            self.format = Some(self.guess_format(&record));
        }
        if let Some(time) = record.time {
            self.first_time.get_or_insert(time);
            // The kernel merges the processors' buffers by time; a text sorted otherwise must not
            // make time run backwards.
            self.last_time = self.last_time.max(time);
        }
        match record.event {
            PageEvent::Alloc { pfn, order, migratetype } => {
                self.tally.allocations += 1;
                let lost = self.live.alloc(pfn, order, migratetype);
                self.tally.lost_frees += lost.wholes + lost.pieces;
            }
            PageEvent::Free { pfn, order } => {
                self.tally.frees += 1;
                let freed = self.live.free(pfn, order);
                self.tally.partial_frees += freed.pieces;
                self.tally.frees_before_recording += u64::from(freed.pages < 1 << order);
            }
        }
        let since_first = self.last_time.saturating_sub(self.first_time.unwrap_or(0));
        self.times.resize(self.live.steps.len(), since_first);
    }

    fn guess_format(&self, record: &Record) -> TraceFormat {
        if record.perf {
            TraceFormat::PerfScript
        } else if self.trace_cmd_header {
            TraceFormat::TraceCmd
        } else if self.ftrace_header || !record.prefixed_pointer {
            TraceFormat::Ftrace
        } else {
            TraceFormat::TraceCmd
        }
    }
}
