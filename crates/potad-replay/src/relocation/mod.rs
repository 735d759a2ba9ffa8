//! Runs of contiguous memory asked for while a trace is replayed, with movable pages moved.
//!
//! # Terms
//!
//! * **run**: contiguous pages, at a multiple of an alignment; a **window** is where one could lie.
//! * **relocator**: an allocator that moves live blocks to make room for a run. There are two: `potad`,
//!   which looks for a run in the whole memory, and `cma`, a restatement of what Linux does, which keeps a
//!   reserve for them.
//! * **movable**: what the trace's migrate type says is. **Pinned** is what is movable and may not be
//!   moved at the moment, such as a page under I/O.
//! * **wasted** is what was moved out of a window that then could not be emptied.
//!
//! # Fairness
//!
//! Both relocators follow the same trace in the same memory, are asked for the same runs at the same
//! steps, and find the same allocations pinned. What could have been granted is counted by a search that
//! knows neither ([`possible`]), in what each has left in place.

mod cma;
mod pass;
mod pieces;
mod possible;
mod potad;
mod relocator;
mod report;

use std::ops::Deref;
use std::sync::Arc;

use ::potad::NoProbe;

pub use cma::Cma;
pub use relocator::{Move, Relocator, Reserve, remainder};
pub use report::{RelocationCurves, RelocationReport, ReserveLoss, RunRequests};

use ::potad::fallible::text;

use crate::allocator::PAGES_MAX;
use crate::engine::{check_memory, check_points};
use crate::error::ReplayError;
use crate::fallible::boxed;
use crate::potad_space::{self, PotadSpace};
use crate::stop::{Interrupts, Stop};
use crate::trace::{PAGE_BYTES, Trace};
use pass::RelocationPass;

/// Names of the relocators, in the order a report shows them.
pub const RELOCATORS: &[&str] = &[potad_space::ALLOCATOR, cma::ALLOCATOR];

/// The largest power of two of bytes that pages can be numbered in.
const ALIGN_MAX: u64 = PAGE_BYTES << PAGES_MAX.ilog2();

/// A trace on its way through a relocator. Of no further use after an error, but for
/// [`ReplayError::NotFinished`].
pub struct Relocation<T = Arc<Trace>> {
    trace: T,
    relocator: &'static str,
    title: &'static str,
    requests: RunRequests,
    pass: RelocationPass,
}

impl<T: Deref<Target = Trace>> Relocation<T> {
    /// Prepares a pass. `relocator` is one of [`RELOCATORS`]; memory and points are as in
    /// [`Settings`](crate::Settings).
    ///
    /// # Errors
    ///
    /// [`ReplayError`] with the setting that is wrong, or where memory runs out or the caller wants to
    /// stop.
    pub fn new(
        trace: T,
        relocator: &str,
        memory_bytes: u64,
        requests: RunRequests,
        points: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self, ReplayError> {
        check_memory(memory_bytes)?;
        check_points(points)?;
        check_requests(&requests)?;
        let pages = memory_bytes / PAGE_BYTES;
        let (relocator, title, made): (_, _, Box<dyn Relocator + Send>) = match relocator {
            potad_space::ALLOCATOR => {
                let space = PotadSpace::with_probe(pages, NoProbe)?;
                (potad_space::ALLOCATOR, "potad, moving", boxed(space)?)
            }
            cma::ALLOCATOR => {
                let reserved = (pages as f64 * requests.reserve).round() as u64;
                let cma = Cma::with_interrupts(pages, reserved, interrupts)?;
                (cma::ALLOCATOR, "Linux CMA (restated)", boxed(cma)?)
            }
            _ => return Err(ReplayError::unknown(relocator, RELOCATORS)),
        };
        let pass = RelocationPass::new(made, &trace, requests, points, interrupts)?;
        Ok(Relocation { trace, relocator, title, requests, pass })
    }

    /// Steps of the pass.
    pub fn total(&self) -> u64 {
        self.trace.steps.len() as u64
    }

    /// Does up to so many steps; how many were done, which is 0 only at the end (or for 0).
    ///
    /// # Errors
    ///
    /// [`Stop`] where memory runs out or the caller wants to stop.
    pub fn step(&mut self, steps: u64, interrupts: &mut Interrupts<'_>) -> Result<u64, Stop> {
        let before = self.pass.at as u64;
        let end = self.total().min(before.saturating_add(steps));
        self.pass.run(&self.trace, end as usize, interrupts)?;
        Ok(end - before)
    }

    /// The result, after the relocator's own check of all it keeps.
    ///
    /// # Errors
    ///
    /// [`ReplayError::NotFinished`] before the end, [`ReplayError::Check`] where the check fails, and
    /// [`ReplayError::Stopped`] where memory runs out or the caller wants to stop.
    pub fn result(&self, interrupts: &mut Interrupts<'_>) -> Result<RelocationReport, ReplayError> {
        let (done, total) = (self.pass.at as u64, self.total());
        if done < total {
            return Err(ReplayError::NotFinished { done, total });
        }
        self.pass.relocator.check(interrupts)?;
        let RunRequests { size_bytes, align_bytes, interval_events, at_once, pinned, .. } =
            self.requests;
        let (counts, reserve) = (&self.pass.counts, self.pass.relocator.reserve());
        let times = (counts.wanted / at_once).max(1);
        Ok(RelocationReport {
            relocator: self.relocator,
            title: self.title,
            memory_bytes: self.pass.relocator.pages() * PAGE_BYTES,
            size_bytes,
            align_bytes,
            interval_events,
            at_once,
            pinned,
            allocations: counts.allocations,
            failures: counts.failures,
            wanted: counts.wanted,
            granted: counts.granted,
            missed: counts.missed,
            bytes_moved: counts.pages_moved * PAGE_BYTES,
            pages_moved: counts.pages_moved,
            bytes_wasted: counts.pages_wasted * PAGE_BYTES,
            nanoseconds_per_request: self.pass.nanoseconds(interrupts)?,
            reserve: ReserveLoss {
                bytes: reserve.pages * PAGE_BYTES,
                free_bytes_mean: (counts.reserve_free_pages * PAGE_BYTES) as f64 / times as f64,
                failures: reserve.failures,
            },
            curves: self.pass.curves.copied()?,
        })
    }
}

fn check_requests(requests: &RunRequests) -> Result<(), ReplayError> {
    let RunRequests { size_bytes, align_bytes, interval_events, at_once, pinned, reserve } =
        *requests;
    let max = PAGES_MAX * PAGE_BYTES;
    if size_bytes == 0 || !size_bytes.is_multiple_of(PAGE_BYTES) || size_bytes > max {
        return Err(ReplayError::RunSize { bytes: size_bytes, max });
    }
    if !align_bytes.is_power_of_two() || !(PAGE_BYTES..=ALIGN_MAX).contains(&align_bytes) {
        return Err(ReplayError::RunAlign { bytes: align_bytes, max: ALIGN_MAX });
    }
    if interval_events == 0 {
        return Err(ReplayError::RunInterval);
    }
    if at_once == 0 {
        return Err(ReplayError::RunsAtOnce);
    }
    for (name, share) in [("pinned", pinned), ("reserve", reserve)] {
        if !(0.0..=1.0).contains(&share) {
            return Err(ReplayError::Share { name, share: text(format_args!("{share}")) });
        }
    }
    Ok(())
}
