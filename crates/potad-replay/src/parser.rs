//! The parser: bytes in, in pieces of any length, and a [`Trace`] out.
//!
//! It cuts the bytes into lines, reads each line and resolves its event at once, so memory follows
//! the number of events and never the length of the text. A piece need not end where a line does:
//! the incomplete line is carried over. Whatever the pieces, the trace is the same.

use memchr::memchr;

use crate::error::{LineFault, TraceError};
use crate::fallible::push;
use crate::line::{LINE_READER, Line, LineReader, PageEvent, Record};
use crate::live::{LivePages, WINDOW_ORDER};
use crate::stop::{Interrupts, OutOfMemory, Stop};
use crate::trace::{Tally, Trace, TraceFormat};

/// The part of a line that is looked at. The fields stand at the front, so a longer line (a runaway
/// stack trace, a binary file) is judged by its first bytes and costs no more memory than this.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes that are read between two looks at the caller.
const PIECE_BYTES: usize = 64 * 1024;

/// Bytes that are read in the time of a unit of work.
const BYTES_PER_UNIT: u64 = 16;

/// Frees that are remembered, of kernels that may report one twice. Between the two reports come only
/// those of other processors.
const RECENT_FREES: usize = 64;

/// Larger than any page frame number.
const NO_PAGE: u64 = u64::MAX;

/// Malformed lines that are kept with their number; more are only counted.
pub const MALFORMED_KEPT: usize = 20;

/// Reads a trace from text in pieces.
///
/// ```
/// # use potad_replay::{Interrupts, TraceParser};
/// let mut parser = TraceParser::new();
/// let go_on = &mut Interrupts::none();
/// parser.feed(b"sh-1 [000] ..... 1.000001: mm_page_alloc: page=0000000012f7b4c8 pfn=0x1c", go_on)?;
/// parser.feed(b"ba order=0 migratetype=0 gfp_flags=GFP_KERNEL\n", go_on)?;
/// let trace = parser.finish()?;
/// assert_eq!((trace.events(), trace.live_bytes()), (1, 4096));
/// # Ok::<(), potad_replay::TraceError>(())
/// ```
pub struct TraceParser {
    reader: &'static LineReader,
    live: LivePages,
    times: Vec<u64>,
    tally: Tally,
    /// The beginning of a line whose end has not come yet, cut at [`LINE_BYTES_MAX`].
    carried: Vec<u8>,
    /// Whether a line is under way, which may be while `carried` is empty.
    in_line: bool,
    /// Frees that may be reported once more, a ring: pages of them, and where the next goes.
    recent_frees: [u64; RECENT_FREES],
    next_recent: usize,
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
            reader: &LINE_READER,
            live: LivePages::new(),
            times: Vec::new(),
            tally: Tally::default(),
            carried: Vec::new(),
            in_line: false,
            recent_frees: [NO_PAGE; RECENT_FREES],
            next_recent: 0,
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
    ///
    /// # Errors
    ///
    /// [`Stop`] where memory runs out or the caller wants to stop. Some of the bytes have been read then
    /// and the others have not, so the parser is of no further use.
    pub fn feed(&mut self, data: &[u8], interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        for piece in data.chunks(PIECE_BYTES) {
            self.feed_piece(piece, interrupts)?;
            interrupts.after(piece.len() as u64 / BYTES_PER_UNIT)?;
        }
        Ok(())
    }

    fn feed_piece(&mut self, mut data: &[u8], interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        if self.in_line {
            match memchr(b'\n', data) {
                None => return Ok(self.carry(data)?),
                Some(end) => {
                    self.carry(&data[..end])?;
                    self.end_carried_line(interrupts)?;
                    data = &data[end + 1..];
                }
            }
        }
        while let Some(end) = memchr(b'\n', data) {
            self.line(&data[..end.min(LINE_BYTES_MAX)], interrupts)?;
            data = &data[end + 1..];
        }
        if !data.is_empty() {
            self.carry(data)?;
        }
        Ok(())
    }

    /// Ends the text and gives the trace.
    ///
    /// # Errors
    ///
    /// [`TraceError::NoEvents`] where not one page event was read; [`TraceError::Stopped`] where memory
    /// runs out.
    pub fn finish(mut self) -> Result<Trace, TraceError> {
        if self.in_line {
            self.end_carried_line(&mut Interrupts::none())?;
        }
        let Some(format) = self.format else {
            let Tally { lines, malformed, ref malformed_lines, .. } = self.tally;
            let first = malformed_lines.first().copied();
            return Err(TraceError::NoEvents { lines, malformed, first });
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

    fn carry(&mut self, data: &[u8]) -> Result<(), OutOfMemory> {
        let room = LINE_BYTES_MAX - self.carried.len();
        let data = &data[..data.len().min(room)];
        self.carried.try_reserve(data.len())?;
        self.carried.extend_from_slice(data);
        self.in_line = true;
        Ok(())
    }

    fn end_carried_line(&mut self, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        let mut line = std::mem::take(&mut self.carried);
        self.in_line = false;
        self.line(&line, interrupts)?;
        line.clear();
        self.carried = line;
        Ok(())
    }

    fn line(&mut self, line: &[u8], interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        self.tally.lines += 1;
        match self.reader.read(line) {
            Line::Event(record) => self.event(record, interrupts)?,
            Line::FailedAllocation => self.tally.failed_allocations += 1,
            Line::Dropped(count) => self.tally.dropped = self.tally.dropped.saturating_add(count),
            Line::FtraceHeader => self.ftrace_header = true,
            Line::TraceCmdHeader => self.trace_cmd_header = true,
            Line::Malformed(fault) => self.malformed(fault)?,
            Line::Other => {}
        }
        Ok(())
    }

    fn malformed(&mut self, fault: LineFault) -> Result<(), OutOfMemory> {
        self.tally.malformed += 1;
        if self.tally.malformed_lines.len() < MALFORMED_KEPT {
            push(&mut self.tally.malformed_lines, (self.tally.lines, fault))?;
        }
        Ok(())
    }

    fn event(&mut self, record: Record, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        if self.format.is_none() {
            self.format = Some(self.guess_format(&record));
        }
        if let Some(time) = record.time {
            self.first_time.get_or_insert(time);
            // The kernel merges the processors' buffers by time; a text sorted otherwise must not
            // make time run backwards.
            self.last_time = self.last_time.max(time);
        }
        let (PageEvent::Alloc { order, .. } | PageEvent::Free { order, .. }) = record.event;
        interrupts.after(units_of(order))?;
        match record.event {
            PageEvent::Alloc { pfn, order, migratetype } => {
                self.tally.allocations += 1;
                let lost = self.live.alloc(pfn, order, migratetype)?;
                self.tally.lost_frees += lost.wholes + lost.pieces;
            }
            PageEvent::Free { pfn, order, may_repeat } => {
                let freed = self.live.free(pfn, order)?;
                if may_repeat && self.repeats(pfn, freed.pages) {
                    return Ok(());
                }
                self.tally.frees += 1;
                self.tally.partial_frees += freed.pieces;
                self.tally.frees_before_recording += u64::from(freed.pages < 1 << order);
            }
        }
        let since_first = self.last_time.saturating_sub(self.first_time.unwrap_or(0));
        let new = self.live.steps.len() - self.times.len();
        self.times.try_reserve(new)?;
        self.times.resize(self.live.steps.len(), since_first);
        Ok(())
    }

    /// Whether a free of so many live pages reports once more what was freed just before. If not, it is
    /// remembered.
    fn repeats(&mut self, pfn: u64, freed_pages: u64) -> bool {
        if freed_pages == 0
            && let Some(place) = self.recent_frees.iter().position(|&recent| recent == pfn)
        {
            self.recent_frees[place] = NO_PAGE;
            return true;
        }
        self.recent_frees[self.next_recent] = pfn;
        self.next_recent = (self.next_recent + 1) % RECENT_FREES;
        false
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

/// The work of one event: the windows that a free of so large a block goes through.
#[inline]
fn units_of(order: u32) -> u64 {
    1 + (1 << order >> WINDOW_ORDER)
}
