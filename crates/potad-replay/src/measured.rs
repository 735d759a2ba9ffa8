//! The measured pass: a replay that stops on its way to look at the allocator.
//!
//! It stops where a sample of the curves is due, where a probe for a run is, at the trace's peak
//! (which is known beforehand) and at the end. What it looks at is the same for every allocator: see
//! [`figures`](crate::figures).

use crate::allocator::PageAllocator;
use crate::figures::{
    BlockCounts, MAP_COLUMNS, coverage_map, map_cell_bytes, occupancy_map, pages_of,
};
use crate::pass::{Labelling, Pass, Progress};
use crate::report::{AddressMap, Curves, RunProbes};
use crate::samples::{Samples, next_multiple, seconds_at};
use crate::stop::{Interrupts, Stop};
use crate::trace::{PAGE_BYTES, Trace};

/// The run that is looked for.
const RUN_BYTES: u64 = 8 << 20;
const RUN_ALIGN_BYTES: u64 = 1 << 20;

/// Sizes whose unusable free index is reported.
pub(crate) const INDEX_BYTES: [u64; 3] = [INDEX_64_KIB, INDEX_2_MIB, INDEX_32_MIB];
const INDEX_64_KIB: u64 = 64 << 10;
const INDEX_2_MIB: u64 = 2 << 20;
const INDEX_32_MIB: u64 = 32 << 20;

/// A pass and what was taken during it.
pub(crate) struct Measured<A> {
    pass: Pass<A>,
    samples: Samples,
    curves: Curves,
    runs: RunProbes,
    map: AddressMap,
}

impl<A: PageAllocator> Measured<A> {
    pub fn new(
        allocator: A,
        trace: &Trace,
        probe_interval: u64,
        points: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self, Stop> {
        let cell_bytes = map_cell_bytes(allocator.pages());
        let samples = Samples::new(points, trace);
        let mut measured = Measured {
            pass: Pass::new(allocator, trace, interrupts)?,
            curves: Curves::with_room(samples.count())?,
            samples,
            runs: RunProbes {
                size_bytes: RUN_BYTES,
                align_bytes: RUN_ALIGN_BYTES,
                interval_events: probe_interval,
                probes: 0,
                possible: 0,
            },
            map: AddressMap {
                cell_bytes,
                columns: MAP_COLUMNS,
                peak_event: trace.peak_step as u64,
                ..AddressMap::default()
            },
        };
        measured.look(trace, interrupts)?;
        Ok(measured)
    }

    pub fn allocator(&mut self) -> &mut A {
        &mut self.pass.allocator
    }

    pub fn progress(&self) -> Progress {
        self.pass.progress
    }

    pub fn curves(&self) -> &Curves {
        &self.curves
    }

    pub fn runs(&self) -> RunProbes {
        self.runs
    }

    pub fn map(&self) -> &AddressMap {
        &self.map
    }

    /// Does the steps up to `end`, and looks wherever something is due on the way.
    pub fn run(
        &mut self,
        trace: &Trace,
        end: usize,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<(), Stop> {
        while self.pass.at < end {
            let at = self.pass.at;
            let mut stop = end.min(self.samples.due()).min(self.probe_due());
            if at < trace.peak_step {
                stop = stop.min(trace.peak_step);
            }
            self.pass.run(&trace.steps, stop, &Labelling, interrupts)?;
            self.look(trace, interrupts)?;
        }
        Ok(())
    }

    /// Steps done when the next probe is due.
    fn probe_due(&self) -> usize {
        next_multiple(self.pass.at, self.runs.interval_events)
    }

    /// Takes what is due after the steps done so far.
    fn look(&mut self, trace: &Trace, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        let at = self.pass.at;
        if at > 0 && (at as u64).is_multiple_of(self.runs.interval_events) {
            self.runs.probes += 1;
            self.runs.possible += u64::from(self.can_run(interrupts)?);
        }
        if at == trace.peak_step {
            self.map.at_peak = self.occupancy(interrupts)?;
            self.map.unmovable_at_peak = self.unmovable_map(interrupts)?;
        }
        if self.samples.take(at) {
            self.take_sample(trace, interrupts)?;
        }
        if at == trace.steps.len() {
            self.map.at_end = self.occupancy(interrupts)?;
            self.map.unmovable_at_end = self.unmovable_map(interrupts)?;
        }
        Ok(())
    }

    fn take_sample(&mut self, trace: &Trace, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        let blocks = self.pass.allocator.free_blocks(interrupts)?;
        let run_possible = self.can_run(interrupts)?;
        let at = self.pass.at;
        // There is room for all samples.
        let curves = &mut self.curves;
        curves.event.push(at as u64);
        curves.seconds.push(seconds_at(trace, at));
        curves.live_bytes.push(self.pass.progress.live_pages * PAGE_BYTES);
        curves.free_bytes.push(blocks.free_pages() * PAGE_BYTES);
        curves.largest_free_bytes.push(blocks.largest_pages() * PAGE_BYTES);
        curves.unusable_2mib.push(unusable(&blocks, INDEX_2_MIB));
        curves.unusable_64kib.push(unusable(&blocks, INDEX_64_KIB));
        curves.unusable_32mib.push(unusable(&blocks, INDEX_32_MIB));
        curves.run_possible.push(u8::from(run_possible));
        curves.failures.push(self.pass.progress.failures);
        Ok(())
    }

    fn can_run(&mut self, interrupts: &mut Interrupts<'_>) -> Result<bool, Stop> {
        let (pages, align) = (RUN_BYTES / PAGE_BYTES, RUN_ALIGN_BYTES / PAGE_BYTES);
        self.pass.allocator.can_run(pages, align, interrupts)
    }

    fn occupancy(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<u8>, Stop> {
        let allocator = &mut self.pass.allocator;
        occupancy_map(allocator.pages(), &allocator.free_extents(interrupts)?, interrupts)
    }

    /// Nothing where the allocator does not know.
    fn unmovable_map(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<u8>, Stop> {
        let allocator = &mut self.pass.allocator;
        match allocator.unmovable_extents(interrupts)? {
            Some(extents) => coverage_map(allocator.pages(), &extents, interrupts),
            None => Ok(Vec::new()),
        }
    }

    /// Live pages that are not movable.
    pub fn unmovable_pages(
        &mut self,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Option<u64>, Stop> {
        let extents = self.pass.allocator.unmovable_extents(interrupts)?;
        Ok(extents.map(|extents| pages_of(&extents)))
    }
}

/// The share of the free memory that a request of so many bytes cannot use.
pub(crate) fn unusable(blocks: &BlockCounts, bytes: u64) -> f64 {
    blocks.unusable_index((bytes / PAGE_BYTES).ilog2())
}
