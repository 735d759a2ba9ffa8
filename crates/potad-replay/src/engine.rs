//! The engine: a trace through one allocator, in several passes.
//!
//! # Passes
//!
//! First [`ROUNDS`] **timed** passes, each with an allocator newly made and without a probe. Only the
//! steps are timed: making the allocator is not, nor what the caller does between two slices of a pass.
//! Nothing is measured during them, so an allocator's caches stay its own. The time of a round is
//! divided by the operations in it.
//!
//! Then one **counting** pass, the same with the probe, and one **measured** pass, in which everything
//! else is taken: samples of the curves, probes for a run, the maps, and the figures at the end. These
//! are two passes because to be measured is not always nothing: an allocator that puts work off has to
//! do it before it can tell what is free, and work done then would be missing from the operations.
//!
//! After the counting and the measured pass the allocator recounts all it keeps.
//!
//! # Steps in slices
//!
//! [`Replay::step`] does up to so many steps and returns, so that a caller can show progress, be
//! interrupted, or take turns between allocators. A slice of 50,000 steps or more costs nothing that
//! can be measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use potad::NoProbe;

use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::contender::{
    Contender, FirstFitContender, LinuxBuddyContender, PotadContender, allocator_names,
};
use crate::error::ReplayError;
use crate::measured::{INDEX_BYTES, Measured, unusable};
use crate::pass::{Pass, Unwatched};
use crate::probe::{CacheLines, CountingProbe};
use crate::report::{Nanoseconds, Report};
use crate::trace::{PAGE_BYTES, Trace};

/// Timed passes.
pub const ROUNDS: usize = 3;

/// All passes: timed, counting, measured.
const PASSES: u64 = ROUNDS as u64 + 2;

/// How to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Memory the allocator has, a multiple of the page size.
    pub memory_bytes: u64,
    /// Steps from one probe for a run to the next.
    pub probe_interval: u64,
    /// Samples of the curves, at least 2. A trace of fewer steps has fewer.
    pub points: u64,
}

/// A trace on its way through an allocator.
pub struct Replay(Box<dyn Run>);

impl Replay {
    /// Prepares a replay. `allocator` is one of [`allocator_names`].
    ///
    /// # Errors
    ///
    /// [`ReplayError`] with the setting that is wrong.
    pub fn new(
        trace: Arc<Trace>,
        allocator: &str,
        settings: Settings,
    ) -> Result<Replay, ReplayError> {
        let Settings { memory_bytes: bytes, probe_interval, points } = settings;
        check_memory(bytes)?;
        if probe_interval == 0 {
            return Err(ReplayError::ProbeInterval);
        }
        check_points(points)?;
        let run: Box<dyn Run> = match allocator {
            PotadContender::NAME => Box::new(Runner::<PotadContender>::new(trace, settings)?),
            LinuxBuddyContender::NAME => {
                Box::new(Runner::<LinuxBuddyContender>::new(trace, settings)?)
            }
            FirstFitContender::NAME => Box::new(Runner::<FirstFitContender>::new(trace, settings)?),
            _ => {
                let known = allocator_names().join(", ");
                return Err(ReplayError::UnknownAllocator { name: allocator.to_owned(), known });
            }
        };
        Ok(Replay(run))
    }

    /// Steps of all passes together.
    pub fn total(&self) -> u64 {
        self.0.total()
    }

    /// Does up to so many steps; how many were done, which is 0 only at the end (or for 0).
    ///
    /// # Errors
    ///
    /// [`ReplayError::Build`] where a further round's allocator cannot be made.
    pub fn step(&mut self, steps: u64) -> Result<u64, ReplayError> {
        self.0.step(steps)
    }

    /// The result, after the allocator's own check of all it keeps.
    ///
    /// # Errors
    ///
    /// [`ReplayError::NotFinished`] before the end, [`ReplayError::Check`] where the check fails.
    pub fn result(&mut self) -> Result<Report, ReplayError> {
        self.0.result()
    }
}

/// A [`Runner`] of any allocator.
trait Run: Send {
    fn total(&self) -> u64;
    fn step(&mut self, steps: u64) -> Result<u64, ReplayError>;
    fn result(&mut self) -> Result<Report, ReplayError>;
}

/// The passes of one allocator.
struct Runner<C: Contender> {
    trace: Arc<Trace>,
    settings: Settings,
    done: u64,
    /// Nanoseconds an operation of the rounds done.
    rounds: Vec<f64>,
    cache_lines: CacheLines,
    phase: Phase<C>,
}

enum Phase<C: Contender> {
    Timed { pass: Pass<C::With<NoProbe>>, elapsed: Duration },
    Counting { pass: Pass<C::With<CountingProbe>>, probe: CountingProbe },
    Measured(Box<Measured<C::With<NoProbe>>>),
}

impl<C: Contender> Runner<C> {
    fn new(trace: Arc<Trace>, settings: Settings) -> Result<Self, ReplayError> {
        let phase = Self::timed(&trace, &settings)?;
        let cache_lines = CacheLines::default();
        let mut runner =
            Runner { trace, settings, done: 0, rounds: Vec::new(), cache_lines, phase };
        // A trace of no steps is at its end before it begins.
        runner.finish_passes()?;
        Ok(runner)
    }

    fn pages(&self) -> u64 {
        self.settings.memory_bytes / PAGE_BYTES
    }

    fn timed(trace: &Trace, settings: &Settings) -> Result<Phase<C>, ReplayError> {
        let allocator = C::build(settings.memory_bytes / PAGE_BYTES, NoProbe)?;
        Ok(Phase::Timed { pass: Pass::new(allocator, trace), elapsed: Duration::ZERO })
    }

    fn counting(&self) -> Result<Phase<C>, ReplayError> {
        let probe = CountingProbe::new();
        let allocator = C::build(self.pages(), probe.clone())?;
        Ok(Phase::Counting { pass: Pass::new(allocator, &self.trace), probe })
    }

    fn measured(&self) -> Result<Phase<C>, ReplayError> {
        let allocator = C::build(self.pages(), NoProbe)?;
        let Settings { probe_interval, points, .. } = self.settings;
        let measured = Measured::new(allocator, &self.trace, probe_interval, points);
        Ok(Phase::Measured(Box::new(measured)))
    }

    /// Ends a pass that has done all its steps, and begins the next.
    fn finish_passes(&mut self) -> Result<(), ReplayError> {
        let end = self.trace.steps.len();
        loop {
            self.phase = match &self.phase {
                Phase::Timed { pass, elapsed } if pass.at == end => {
                    let operations = pass.progress.operations().max(1);
                    self.rounds.push(elapsed.as_nanos() as f64 / operations as f64);
                    if self.rounds.len() < ROUNDS {
                        Self::timed(&self.trace, &self.settings)?
                    } else {
                        self.counting()?
                    }
                }
                Phase::Counting { pass, probe } if pass.at == end => {
                    pass.allocator.check()?;
                    self.cache_lines = probe.lines();
                    self.measured()?
                }
                _ => return Ok(()),
            };
        }
    }
}

impl<C: Contender> Run for Runner<C> {
    fn total(&self) -> u64 {
        self.trace.steps.len() as u64 * PASSES
    }

    fn step(&mut self, steps: u64) -> Result<u64, ReplayError> {
        let pass_steps = self.trace.steps.len() as u64;
        let target = self.total().min(self.done.saturating_add(steps));
        let before = self.done;
        while self.done < target {
            let at = self.done % pass_steps;
            let end = pass_steps.min(at + (target - self.done));
            let steps = &self.trace.steps;
            match &mut self.phase {
                Phase::Timed { pass, elapsed } => {
                    let start = Instant::now();
                    pass.run(steps, end as usize, &Unwatched);
                    *elapsed += start.elapsed();
                }
                Phase::Counting { pass, probe } => pass.run(steps, end as usize, probe),
                Phase::Measured(measured) => measured.run(&self.trace, end as usize),
            }
            self.done += end - at;
            self.finish_passes()?;
        }
        Ok(self.done - before)
    }

    fn result(&mut self) -> Result<Report, ReplayError> {
        let (done, total) = (self.done, self.total());
        let trace = &self.trace;
        let measured = match &mut self.phase {
            Phase::Measured(measured) if done == total => measured,
            _ => return Err(ReplayError::NotFinished { done, total }),
        };
        measured.allocator().check()?;
        let progress = measured.progress();
        let blocks = measured.allocator().free_blocks();
        let counts = (0..).zip(&blocks.0).filter(|&(_, &count)| count > 0);
        Ok(Report {
            allocator: C::NAME,
            title: C::TITLE,
            memory_bytes: self.settings.memory_bytes,
            events: trace.events(),
            allocations: progress.allocations,
            failures: progress.failures,
            frees: trace.frees(),
            partial_frees: trace.partial_frees(),
            frees_before_recording: trace.frees_before_recording(),
            frees_of_failed: progress.frees_of_failed,
            steps: trace.steps.len() as u64,
            operations: progress.operations(),
            live_bytes: progress.live_pages * PAGE_BYTES,
            live_unmovable_bytes: measured.unmovable_pages().map(|pages| pages * PAGE_BYTES),
            peak_bytes: progress.peak_pages * PAGE_BYTES,
            metadata_bytes: measured.allocator().metadata_bytes(),
            nanoseconds_per_operation: nanoseconds(&self.rounds),
            cache_lines: self.cache_lines,
            largest_free_bytes: blocks.largest_pages() * PAGE_BYTES,
            unusable_free_index: INDEX_BYTES.map(|bytes| (bytes, unusable(&blocks, bytes))).into(),
            runs: measured.runs(),
            free_blocks: counts.map(|(order, &count)| (PAGE_BYTES << order, count)).collect(),
            curves: measured.curves().clone(),
            map: measured.map().clone(),
        })
    }
}

/// Refuses a memory that is not pages that can be numbered.
pub(crate) fn check_memory(bytes: u64) -> Result<(), ReplayError> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(ReplayError::MemoryNotPages { bytes });
    }
    if bytes / PAGE_BYTES > PAGES_MAX {
        return Err(ReplayError::MemoryTooLarge { bytes, max: PAGES_MAX * PAGE_BYTES });
    }
    Ok(())
}

/// Refuses a number of samples that makes no curve.
pub(crate) fn check_points(points: u64) -> Result<(), ReplayError> {
    if points < 2 { Err(ReplayError::Points { points }) } else { Ok(()) }
}

/// Median and extremes of times, of which there may be none.
pub(crate) fn nanoseconds(times: &[f64]) -> Nanoseconds {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(&min), Some(&median), Some(&max)) => Nanoseconds { median, min, max },
        _ => Nanoseconds::default(),
    }
}
