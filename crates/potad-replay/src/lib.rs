//! Recorded Linux page traffic, replayed through `potad` and through other allocators.
//!
//! # What happens
//!
//! ```text
//! bytes -> TraceParser -> Trace -> Replay -> Report
//!          line, live     steps    passes    figures
//! ```
//!
//! A [`TraceParser`] takes the text a recorder wrote, in pieces of any length, and reads from it
//! the two events of the Linux page allocator: `mm_page_alloc` and `mm_page_free`. It resolves page
//! frame numbers to allocations at once, so that a [`Trace`] is a list of *steps* that say "make an
//! allocation and call it slot 17" and "free what is in slot 17": an allocator under replay chooses
//! its own pages, and the timed loop has no table to search. A [`Replay`] runs the steps through one
//! allocator, several times: bare and timed, then with every access to metadata counted, then with stops
//! to look at what is free. A [`Relocation`] runs them once through an allocator that moves pages, and
//! asks it for runs on the way.
//!
//! # Terms
//!
//! * **page**: 4096 bytes ([`PAGE_BYTES`]); a **page frame number** (pfn) is a page's number on the
//!   recorded machine, a **page number** its number in the replayed memory, which starts at 0.
//! * **order**: log2 of a size in pages. A **block** is 2^order pages, aligned to its own size.
//! * **extent**: a range of free pages with no free page on either side of it.
//! * **slot**: where a replay keeps the page number an allocation got. Slots of freed allocations
//!   are used again, so the table is as large as the trace's peak and not as its length.
//! * **piece**: a naturally aligned block inside an allocation, freed by itself.
//! * **operation**: one call of `alloc`, `free` or `free_piece`.
//!
//! # Fairness
//!
//! All allocators answer the same calls ([`PageAllocator`]), are timed by one loop, and are measured
//! by one method: free blocks are counted from the free extents, never from an allocator's own idea
//! of a block, and every access to metadata passes one [`potad::Probe`]. A build without the
//! counting probe contains no trace of it.

#![deny(unsafe_code)]

mod allocator;
mod cache;
mod contender;
mod engine;
mod error;
mod fallible;
mod figures;
mod first_fit;
mod line;
mod linux_buddy;
mod live;
mod measured;
mod parser;
mod pass;
mod potad_space;
mod probe;
mod relocation;
mod report;
mod samples;
mod stop;
mod trace;

pub use allocator::{PAGES_MAX, PageAllocator};
pub use cache::LruCache;
pub use contender::allocator_names;
pub use engine::{ROUNDS, Replay, Settings};
pub use error::{BuildError, CheckError, LineFault, Quote, ReplayError, TraceError};
pub use figures::{BlockCounts, Extent, FIGURE_ORDERS};
pub use first_fit::FirstFit;
pub use linux_buddy::LinuxBuddy;
pub use parser::{LINE_BYTES_MAX, MALFORMED_KEPT, TraceParser};
pub use potad_space::PotadSpace;
pub use probe::{CacheLines, CountingProbe, LineCount};
pub use relocation::{
    Cma, Move, RELOCATORS, Relocation, RelocationCurves, RelocationReport, Relocator, Reserve,
    ReserveLoss, RunRequests, remainder,
};
pub use report::{AddressMap, Curves, Nanoseconds, Report, RunProbes};
pub use stop::{Interrupts, OutOfMemory, Stop};
pub use trace::{ORDER_MAX, PAGE_BYTES, Step, Trace, TraceFormat};
