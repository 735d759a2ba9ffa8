//! What a replay has to say about an allocator, as it is written to JSON.
//!
//! Sizes are in bytes. `event` counts steps: one for each allocation and each free, where a free of
//! several allocations or pieces is several, and one of pages never seen allocated is none.

use serde::{Serialize, Serializer};

use crate::fallible::{copied, json, with_room};
use crate::probe::CacheLines;
use crate::stop::OutOfMemory;

/// The result of a replay through one allocator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The name the allocator is chosen by.
    pub allocator: &'static str,
    /// The name a reader is shown.
    pub title: &'static str,
    /// Memory replayed in.
    pub memory_bytes: u64,
    /// Events of the trace.
    pub events: u64,
    /// Allocations asked for.
    pub allocations: u64,
    /// Allocations refused.
    pub failures: u64,
    /// Free events of the trace.
    pub frees: u64,
    /// Pieces of allocations that were freed by themselves.
    pub partial_frees: u64,
    /// Free events of pages never seen allocated, ignored.
    pub frees_before_recording: u64,
    /// Frees of allocations that were refused, ignored.
    pub frees_of_failed: u64,
    /// Steps of one pass.
    pub steps: u64,
    /// Calls made of the allocator in one pass.
    pub operations: u64,
    /// Live at the end.
    pub live_bytes: u64,
    /// Of these, not movable; none where the allocator does not tell them apart.
    pub live_unmovable_bytes: Option<u64>,
    /// The most live at once.
    pub peak_bytes: u64,
    /// Metadata at the end.
    pub metadata_bytes: u64,
    /// Time of an operation, the replay's own loop included.
    pub nanoseconds_per_operation: Nanoseconds,
    /// Cache lines of an operation.
    pub cache_lines: CacheLines,
    /// The largest free block at the end.
    pub largest_free_bytes: u64,
    /// At the end, for each size that might be asked for.
    #[serde(serialize_with = "as_map")]
    pub unusable_free_index: [(u64, f64); 3],
    /// How often a run could have been had.
    pub runs: RunProbes,
    /// At the end: block sizes, ascending, and the number of free blocks of each.
    #[serde(serialize_with = "as_map")]
    pub free_blocks: Vec<(u64, u64)>,
    /// How things went.
    pub curves: Curves,
    /// Where the memory was occupied.
    pub map: AddressMap,
}

impl Report {
    /// The report as one JSON object.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for it.
    pub fn to_json(&self) -> Result<String, OutOfMemory> {
        json(self)
    }
}

fn as_map<S: Serializer>(
    pairs: &[(u64, impl Serialize)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(size, value)| (size, value)))
}

/// Nanoseconds: of an operation, over the timed rounds; or of a request for a run, over the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Nanoseconds {
    /// The one in the middle.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
}

/// How often a run of contiguous memory could have been had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RunProbes {
    /// The run's length.
    pub size_bytes: u64,
    /// What its start is a multiple of.
    pub align_bytes: u64,
    /// Steps from one probe to the next.
    pub interval_events: u64,
    /// Probes made.
    pub probes: u64,
    /// Probes that found one.
    pub possible: u64,
}

/// Samples at equal distances in steps, the first before any and the last after all. Arrays of one
/// length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Steps done.
    pub event: Vec<u64>,
    /// Time since the trace's first event.
    pub seconds: Vec<f64>,
    /// Live memory.
    pub live_bytes: Vec<u64>,
    /// Free memory.
    pub free_bytes: Vec<u64>,
    /// The largest free block.
    pub largest_free_bytes: Vec<u64>,
    /// Unusable free index of 2 MiB.
    pub unusable_2mib: Vec<f64>,
    /// Unusable free index of 64 KiB.
    pub unusable_64kib: Vec<f64>,
    /// Unusable free index of 32 MiB.
    pub unusable_32mib: Vec<f64>,
    /// Whether the run could be had: 0 or 1.
    pub run_possible: Vec<u8>,
    /// Allocations refused so far.
    pub failures: Vec<u64>,
}

impl Curves {
    /// None yet, with room for so many samples.
    pub(crate) fn with_room(samples: usize) -> Result<Curves, OutOfMemory> {
        Ok(Curves {
            event: with_room(samples)?,
            seconds: with_room(samples)?,
            live_bytes: with_room(samples)?,
            free_bytes: with_room(samples)?,
            largest_free_bytes: with_room(samples)?,
            unusable_2mib: with_room(samples)?,
            unusable_64kib: with_room(samples)?,
            unusable_32mib: with_room(samples)?,
            run_possible: with_room(samples)?,
            failures: with_room(samples)?,
        })
    }

    pub(crate) fn copied(&self) -> Result<Curves, OutOfMemory> {
        Ok(Curves {
            event: copied(&self.event)?,
            seconds: copied(&self.seconds)?,
            live_bytes: copied(&self.live_bytes)?,
            free_bytes: copied(&self.free_bytes)?,
            largest_free_bytes: copied(&self.largest_free_bytes)?,
            unusable_2mib: copied(&self.unusable_2mib)?,
            unusable_64kib: copied(&self.unusable_64kib)?,
            unusable_32mib: copied(&self.unusable_32mib)?,
            run_possible: copied(&self.run_possible)?,
            failures: copied(&self.failures)?,
        })
    }
}

/// The memory in equal cells, row by row in address order: 0 is wholly free, 255 wholly occupied.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AddressMap {
    /// Memory of a cell.
    pub cell_bytes: u64,
    /// Cells in a row.
    pub columns: u64,
    /// Steps done when the trace's live memory was at its peak.
    pub peak_event: u64,
    /// The cells at that moment.
    pub at_peak: Vec<u8>,
    /// The cells at the end.
    pub at_end: Vec<u8>,
    /// How much of each cell is not movable at the peak; empty where the allocator does not know.
    pub unmovable_at_peak: Vec<u8>,
    /// The same at the end.
    pub unmovable_at_end: Vec<u8>,
}

impl AddressMap {
    pub(crate) fn copied(&self) -> Result<AddressMap, OutOfMemory> {
        Ok(AddressMap {
            at_peak: copied(&self.at_peak)?,
            at_end: copied(&self.at_end)?,
            unmovable_at_peak: copied(&self.unmovable_at_peak)?,
            unmovable_at_end: copied(&self.unmovable_at_end)?,
            ..*self
        })
    }
}
