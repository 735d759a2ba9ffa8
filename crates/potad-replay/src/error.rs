//! What can go wrong, each with the numbers a person needs to mend it.

use std::fmt;

use crate::stop::{OutOfMemory, Stop};
use crate::trace::ORDER_MAX;
use potad::fallible::text;

/// Bytes of a trace that an error quotes.
const QUOTED_MAX: usize = 40;

/// The beginning of a text out of a trace. It is shown in printable characters only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    bytes: [u8; QUOTED_MAX],
    len: u8,
}

impl Quote {
    /// The beginning of `text`.
    pub fn of(text: &[u8]) -> Quote {
        let len = text.len().min(QUOTED_MAX);
        let mut bytes = [0; QUOTED_MAX];
        bytes[..len].copy_from_slice(&text[..len]);
        Quote { bytes, len: len as u8 }
    }
}

impl From<&str> for Quote {
    fn from(text: &str) -> Quote {
        Quote::of(text.as_bytes())
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes[..self.len.into()].escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why a line that names a page event could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// Nothing that can be read as a time stands where the recorder puts it.
    #[error("no timestamp before the event's name")]
    NoTimestamp,
    /// What stands between the time and the event's name is no recorder's that is known.
    #[error("{text} stands between the timestamp and the event's name")]
    Between {
        /// What stands there, shortened.
        text: Quote,
    },
    /// The line has parts of more than one event: their writing or copying was cut off.
    #[error("parts of more than one event stand in the line")]
    Torn,
    /// A field the event cannot be understood without is not there.
    #[error("the field {field}= is missing")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A field's value is not a number.
    #[error("{field}={text} is not a number")]
    NotANumber {
        /// The field's name.
        field: &'static str,
        /// What stands there instead, shortened.
        text: Quote,
    },
    /// The order is larger than any kernel's.
    #[error("order={order} is above the largest order {ORDER_MAX}")]
    OrderTooLarge {
        /// The order read.
        order: u64,
    },
    /// The page frame number is beyond a 64-bit physical address space.
    #[error("pfn={pfn:#x} lies beyond a 64-bit physical address space")]
    PfnTooLarge {
        /// The page frame number read.
        pfn: u64,
    },
    /// A block that is not aligned to its own size, which no page allocator hands out.
    #[error("pfn={pfn:#x} is not a multiple of 2^{order}, the size of a block of order {order}")]
    Misaligned {
        /// The page frame number read.
        pfn: u64,
        /// The order read.
        order: u32,
    },
}

/// Why a stream of text gave no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Not one page event was recognised.
    #[error(
        "no page event (mm_page_alloc, mm_page_free) in {lines} lines; is this a trace?{}",
        Nearly { malformed: *.malformed, first: *.first }
    )]
    NoEvents {
        /// Lines read.
        lines: u64,
        /// Lines that nearly were an event.
        malformed: u64,
        /// The first of them: its number, and what is wrong.
        first: Option<(u64, LineFault)>,
    },
    /// The last line was not read to its end.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

/// What is said of lines that nearly were an event.
struct Nearly {
    malformed: u64,
    first: Option<(u64, LineFault)>,
}

impl fmt::Display for Nearly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((number, fault)) = self.first else { return Ok(()) };
        write!(f, " {} malformed lines, the first is line {number}: {fault}", self.malformed)
    }
}

/// Why an allocator could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A page count outside what page numbers can name.
    #[error("{pages} pages: must be between 1 and {max}")]
    Pages {
        /// Pages asked for.
        pages: u64,
        /// The most there can be.
        max: u64,
    },
    /// The system did not give the memory the metadata needs.
    #[error(
        "the metadata of {pages} pages needs {bytes} bytes of memory, which the system refused"
    )]
    Metadata {
        /// Pages asked for.
        pages: u64,
        /// Bytes of metadata they need.
        bytes: u64,
    },
    /// A reserve that leaves nothing to the rest of the memory, or is nothing.
    #[error(
        "reserve: {reserved} of {pages} pages; it begins at a multiple of {block} pages and must leave some to either side"
    )]
    Reserve {
        /// Pages there are.
        pages: u64,
        /// Pages to be reserved.
        reserved: u64,
        /// Pages of the largest block.
        block: u64,
    },
    /// The allocator's own reason.
    #[error("{allocator}: {reason}")]
    Refused {
        /// Which allocator.
        allocator: &'static str,
        /// What it said.
        reason: potad::Error,
    },
    /// It was not made to its end.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

impl From<OutOfMemory> for BuildError {
    fn from(refused: OutOfMemory) -> BuildError {
        BuildError::Stopped(refused.into())
    }
}

/// Why an allocator's recount did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// It disagrees with the allocator's books.
    #[error("{allocator} is corrupt: {what}")]
    Corrupt {
        /// Which allocator.
        allocator: &'static str,
        /// What disagrees.
        what: String,
    },
    /// It did not come to its end.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

impl CheckError {
    pub(crate) fn corrupt(allocator: &'static str, what: fmt::Arguments<'_>) -> CheckError {
        CheckError::Corrupt { allocator, what: text(what) }
    }
}

/// Why a replay could not be set up, or has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No allocator goes by this name.
    #[error("allocator: no allocator is called {name:?}; there are {}", List(.known))]
    UnknownAllocator {
        /// The name given.
        name: String,
        /// The names there are.
        known: &'static [&'static str],
    },
    /// The memory is not a positive whole number of pages.
    #[error("memory: {bytes} bytes is not a positive multiple of the page size, 4096 bytes")]
    MemoryNotPages {
        /// Bytes given.
        bytes: u64,
    },
    /// There is more memory than page numbers can name.
    #[error("memory: {bytes} bytes is more than the {max} bytes a replay can number")]
    MemoryTooLarge {
        /// Bytes given.
        bytes: u64,
        /// The most there can be.
        max: u64,
    },
    /// Probes every 0 events.
    #[error("probe_interval: must be at least 1 event")]
    ProbeInterval,
    /// Too few samples to draw a curve.
    #[error("points: {points} samples make no curve; at least 2 are needed")]
    Points {
        /// Samples asked for.
        points: u64,
    },
    /// The length of a run is not a positive whole number of pages that can be numbered.
    #[error(
        "run: {bytes} bytes is not a positive multiple of the page size, 4096 bytes, up to {max}"
    )]
    RunSize {
        /// Bytes given.
        bytes: u64,
        /// The most there can be.
        max: u64,
    },
    /// The alignment of a run is not a power of two of pages that can be numbered.
    #[error("alignment: {bytes} bytes is not a power of two from 4096 to {max}")]
    RunAlign {
        /// Bytes given.
        bytes: u64,
        /// The most it can be.
        max: u64,
    },
    /// Runs every 0 events.
    #[error("run interval: must be at least 1 event")]
    RunInterval,
    /// No runs at a time.
    #[error("at once: at least 1 run is asked for at a time")]
    RunsAtOnce,
    /// A share that is none.
    #[error("{name}: {share} is not a share from 0 to 1")]
    Share {
        /// Of what.
        name: &'static str,
        /// What was given, in words, as it may be no number.
        share: String,
    },
    /// The result was asked for before the replay's end.
    #[error("the replay has no result yet: {done} of {total} events are done")]
    NotFinished {
        /// Events done, over all passes.
        done: u64,
        /// Events there are, over all passes.
        total: u64,
    },
    /// The allocator could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The allocator did not survive its own recount.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The replay was not done to its end.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

impl From<OutOfMemory> for ReplayError {
    fn from(refused: OutOfMemory) -> ReplayError {
        ReplayError::Stopped(refused.into())
    }
}

impl ReplayError {
    pub(crate) fn unknown(name: &str, known: &'static [&'static str]) -> ReplayError {
        ReplayError::UnknownAllocator { name: text(format_args!("{name}")), known }
    }

    /// Why the replay cannot go on, where it is neither an argument nor the allocator.
    pub fn stop(&self) -> Option<Stop> {
        match *self {
            ReplayError::Stopped(stop)
            | ReplayError::Build(BuildError::Stopped(stop))
            | ReplayError::Check(CheckError::Stopped(stop)) => Some(stop),
            _ => None,
        }
    }
}

/// Names, separated by commas.
struct List<'a>(&'a [&'static str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
