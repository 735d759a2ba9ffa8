//! What is asked for by the relocation pass, and what it has to say, as it is written to JSON.

use serde::Serialize;

use crate::fallible::{copied, json, with_room};
use crate::report::Nanoseconds;
use crate::stop::OutOfMemory;
use crate::trace::PAGE_BYTES;

/// Which runs are asked for, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunRequests {
    /// A run's length, a multiple of the page size.
    pub size_bytes: u64,
    /// What its start is a multiple of: a power of two, a page or more.
    pub align_bytes: u64,
    /// Steps from when runs are asked for to the next time.
    pub interval_events: u64,
    /// How many are wanted each time, at least 1.
    pub at_once: u64,
    /// The share of movable allocations that is pinned while runs are asked for, 0 to 1.
    pub pinned: f64,
    /// The share of the memory that `cma` reserves, above 0 and below 1.
    pub reserve: f64,
}

impl RunRequests {
    pub(crate) fn pages(&self) -> u32 {
        (self.size_bytes / PAGE_BYTES) as u32
    }

    pub(crate) fn align_pages(&self) -> u32 {
        (self.align_bytes / PAGE_BYTES) as u32
    }
}

/// How one relocator fared. Sizes are in bytes; `event` and `interval_events` count steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RelocationReport {
    /// The name the relocator is chosen by.
    pub relocator: &'static str,
    /// The name a reader is shown.
    pub title: &'static str,
    /// Memory replayed in.
    pub memory_bytes: u64,
    /// A run's length.
    pub size_bytes: u64,
    /// What its start is a multiple of.
    pub align_bytes: u64,
    /// Steps from when runs were asked for to the next time.
    pub interval_events: u64,
    /// How many were wanted each time.
    pub at_once: u64,
    /// The share of movable allocations that was pinned.
    pub pinned: f64,
    /// Allocations of the trace.
    pub allocations: u64,
    /// Of these, refused.
    pub failures: u64,
    /// Runs wanted: of those of one time, the ones after a refusal were not asked for.
    pub wanted: u64,
    /// Runs granted.
    pub granted: u64,
    /// Refusals although a run could have been made of what this relocator had where it was.
    pub missed: u64,
    /// What was moved for them.
    pub bytes_moved: u64,
    /// The same in pages.
    pub pages_moved: u64,
    /// Of the bytes moved, those out of windows that were then not granted.
    pub bytes_wasted: u64,
    /// Time of a request, without copying.
    pub nanoseconds_per_request: Nanoseconds,
    /// What the reserve took from everything else.
    pub reserve: ReserveLoss,
    /// How things went.
    pub curves: RelocationCurves,
}

impl RelocationReport {
    /// The report as one JSON object.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for it.
    pub fn to_json(&self) -> Result<String, OutOfMemory> {
        json(self)
    }
}

/// What a reserve takes from everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ReserveLoss {
    /// Its size; 0 where there is none.
    pub bytes: u64,
    /// What was free in it, and of no use to pages that cannot be moved: the mean over all times.
    pub free_bytes_mean: f64,
    /// Allocations refused that a free block in it would have served.
    pub failures: u64,
}

/// Samples as those of [`Curves`](crate::Curves). Arrays of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RelocationCurves {
    /// Steps done.
    pub event: Vec<u64>,
    /// Time since the trace's first event.
    pub seconds: Vec<f64>,
    /// Runs granted so far.
    pub granted: Vec<u64>,
    /// Moved for them so far.
    pub bytes_moved: Vec<u64>,
}

impl RelocationCurves {
    /// None yet, with room for so many samples.
    pub(crate) fn with_room(samples: usize) -> Result<RelocationCurves, OutOfMemory> {
        Ok(RelocationCurves {
            event: with_room(samples)?,
            seconds: with_room(samples)?,
            granted: with_room(samples)?,
            bytes_moved: with_room(samples)?,
        })
    }

    pub(crate) fn copied(&self) -> Result<RelocationCurves, OutOfMemory> {
        Ok(RelocationCurves {
            event: copied(&self.event)?,
            seconds: copied(&self.seconds)?,
            granted: copied(&self.granted)?,
            bytes_moved: copied(&self.bytes_moved)?,
        })
    }
}
