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
//! take turns between allocators. A slice of 50,000 steps or more costs nothing that can be measured.
//! Within a slice, the caller is asked now and then whether to go on: see [`Interrupts`].

use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use potad::NoProbe;

use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::contender::{
    Contender, FirstFitContender, LinuxBuddyContender, PotadContender, allocator_names,
};
use crate::error::ReplayError;
use crate::fallible::{boxed, with_room};
use crate::figures::FIGURE_ORDERS;
use crate::measured::{INDEX_BYTES, Measured, unusable};
use crate::pass::{Counting, Pass, Unwatched};
use crate::probe::{CacheLines, CountingProbe};
use crate::report::{Nanoseconds, Report};
use crate::stop::Interrupts;
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

/// A trace on its way through an allocator. Of no further use after an error, but for
/// [`ReplayError::NotFinished`].
pub struct Replay(Box<dyn Run>);

impl Replay {
    /// Prepares a replay. `allocator` is one of [`allocator_names`]; `trace` is anything that leads to a
    /// trace, such as an `Arc`.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] with the setting that is wrong, or where memory runs out or the caller wants to
    /// stop.
    pub fn new(
        trace: impl Deref<Target = Trace> + Send + 'static,
        allocator: &str,
        settings: Settings,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Replay, ReplayError> {
        let Settings { memory_bytes: bytes, probe_interval, points } = settings;
        check_memory(bytes)?;
        if probe_interval == 0 {
            return Err(ReplayError::ProbeInterval);
        }
        check_points(points)?;
        let run = match allocator {
            PotadContender::NAME => runner::<PotadContender, _>(trace, settings, interrupts),
            LinuxBuddyContender::NAME => {
                runner::<LinuxBuddyContender, _>(trace, settings, interrupts)
            }
            FirstFitContender::NAME => runner::<FirstFitContender, _>(trace, settings, interrupts),
            _ => return Err(ReplayError::unknown(allocator, allocator_names())),
        };
        run.map(Replay)
    }

    /// Steps of all passes together.
    pub fn total(&self) -> u64 {
        self.0.total()
    }

    /// Does up to so many steps; how many were done, which is 0 only at the end (or for 0).
    ///
    /// # Errors
    ///
    /// [`ReplayError::Build`] where a further round's allocator cannot be made, and
    /// [`ReplayError::Stopped`] where memory runs out or the caller wants to stop.
    pub fn step(
        &mut self,
        steps: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<u64, ReplayError> {
        self.0.step(steps, interrupts)
    }

    /// The result, after the allocator's own check of all it keeps.
    ///
    /// # Errors
    ///
    /// [`ReplayError::NotFinished`] before the end, [`ReplayError::Check`] where the check fails, and
    /// [`ReplayError::Stopped`] where memory runs out or the caller wants to stop.
    pub fn result(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Report, ReplayError> {
        self.0.result(interrupts)
    }
}

/// A [`Runner`] of any allocator.
trait Run: Send {
    fn total(&self) -> u64;
    fn step(&mut self, steps: u64, interrupts: &mut Interrupts<'_>) -> Result<u64, ReplayError>;
    fn result(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Report, ReplayError>;
}

fn runner<C: Contender, T: Deref<Target = Trace> + Send + 'static>(
    trace: T,
    settings: Settings,
    interrupts: &mut Interrupts<'_>,
) -> Result<Box<dyn Run>, ReplayError> {
    let runner = Runner::<C, T>::new(trace, settings, interrupts)?;
    Ok(boxed(runner)?)
}

/// The passes of one allocator.
struct Runner<C: Contender, T> {
    trace: T,
    settings: Settings,
    done: u64,
    /// Nanoseconds an operation of the rounds done, and how many these are.
    rounds: [f64; ROUNDS],
    rounds_done: usize,
    cache_lines: CacheLines,
    phase: Phase<C>,
}

enum Phase<C: Contender> {
    Timed { pass: Pass<C::With<NoProbe>>, elapsed: Duration },
    Counting { pass: Pass<C::With<CountingProbe>> },
    Measured(Box<Measured<C::With<NoProbe>>>),
}

impl<C: Contender, T: Deref<Target = Trace>> Runner<C, T> {
    fn new(
        trace: T,
        settings: Settings,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self, ReplayError> {
        let phase = Self::timed(&trace, &settings, interrupts)?;
        let cache_lines = CacheLines::default();
        let (rounds, rounds_done) = ([0.0; ROUNDS], 0);
        let mut runner =
            Runner { trace, settings, done: 0, rounds, rounds_done, cache_lines, phase };
        // A trace of no steps is at its end before it begins.
        runner.finish_passes(interrupts)?;
        Ok(runner)
    }

    fn pages(&self) -> u64 {
        self.settings.memory_bytes / PAGE_BYTES
    }

    fn timed(
        trace: &Trace,
        settings: &Settings,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Phase<C>, ReplayError> {
        let allocator = C::build(settings.memory_bytes / PAGE_BYTES, NoProbe, interrupts)?;
        let pass = Pass::new(allocator, trace, interrupts)?;
        Ok(Phase::Timed { pass, elapsed: Duration::ZERO })
    }

    fn counting(&self, interrupts: &mut Interrupts<'_>) -> Result<Phase<C>, ReplayError> {
        let probe = CountingProbe::new()?;
        let allocator = C::build(self.pages(), probe, interrupts)?;
        Ok(Phase::Counting { pass: Pass::new(allocator, &self.trace, interrupts)? })
    }

    fn measured(&self, interrupts: &mut Interrupts<'_>) -> Result<Phase<C>, ReplayError> {
        let allocator = C::build(self.pages(), NoProbe, interrupts)?;
        let Settings { probe_interval, points, .. } = self.settings;
        let measured = Measured::new(allocator, &self.trace, probe_interval, points, interrupts)?;
        Ok(Phase::Measured(boxed(measured)?))
    }

    /// Ends a pass that has done all its steps, and begins the next.
    fn finish_passes(&mut self, interrupts: &mut Interrupts<'_>) -> Result<(), ReplayError> {
        let end = self.trace.steps.len();
        loop {
            self.phase = match &self.phase {
                Phase::Timed { pass, elapsed } if pass.at == end => {
                    let operations = pass.progress.operations().max(1);
                    self.rounds[self.rounds_done] = elapsed.as_nanos() as f64 / operations as f64;
                    self.rounds_done += 1;
                    if self.rounds_done < ROUNDS {
                        Self::timed(&self.trace, &self.settings, interrupts)?
                    } else {
                        self.counting(interrupts)?
                    }
                }
                Phase::Counting { pass } if pass.at == end => {
                    pass.allocator.check(interrupts)?;
                    self.cache_lines = C::probe(&pass.allocator).lines();
                    self.measured(interrupts)?
                }
                _ => return Ok(()),
            };
        }
    }
}

impl<C: Contender, T: Deref<Target = Trace> + Send> Run for Runner<C, T> {
    fn total(&self) -> u64 {
        self.trace.steps.len() as u64 * PASSES
    }

    fn step(&mut self, steps: u64, interrupts: &mut Interrupts<'_>) -> Result<u64, ReplayError> {
        let pass_steps = self.trace.steps.len() as u64;
        let target = self.total().min(self.done.saturating_add(steps));
        let before = self.done;
        while self.done < target {
            let at = self.done % pass_steps;
            let end = pass_steps.min(at + (target - self.done));
            let steps = &self.trace.steps;
            match &mut self.phase {
                Phase::Timed { pass, elapsed } => {
                    *elapsed += pass.run(steps, end as usize, &Unwatched, interrupts)?;
                }
                Phase::Counting { pass } => {
                    pass.run(steps, end as usize, &Counting::<C>(PhantomData), interrupts)?;
                    C::probe(&pass.allocator).has_counted()?;
                }
                Phase::Measured(measured) => measured.run(&self.trace, end as usize, interrupts)?,
            }
            self.done += end - at;
            self.finish_passes(interrupts)?;
        }
        Ok(self.done - before)
    }

    fn result(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Report, ReplayError> {
        let (done, total) = (self.done, self.total());
        let trace = &self.trace;
        let measured = match &mut self.phase {
            Phase::Measured(measured) if done == total => measured,
            _ => return Err(ReplayError::NotFinished { done, total }),
        };
        measured.allocator().check(interrupts)?;
        let progress = measured.progress();
        let blocks = measured.allocator().free_blocks(interrupts)?;
        let mut free_blocks = with_room(FIGURE_ORDERS)?;
        let counts = (0..).zip(&blocks.0).filter(|&(_, &count)| count > 0);
        free_blocks.extend(counts.map(|(order, &count)| (PAGE_BYTES << order, count)));
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
            live_unmovable_bytes: measured
                .unmovable_pages(interrupts)?
                .map(|pages| pages * PAGE_BYTES),
            peak_bytes: progress.peak_pages * PAGE_BYTES,
            metadata_bytes: measured.allocator().metadata_bytes(),
            nanoseconds_per_operation: nanoseconds(self.rounds),
            cache_lines: self.cache_lines,
            largest_free_bytes: blocks.largest_pages() * PAGE_BYTES,
            unusable_free_index: INDEX_BYTES.map(|bytes| (bytes, unusable(&blocks, bytes))),
            runs: measured.runs(),
            free_blocks,
            curves: measured.curves().copied()?,
            map: measured.map().copied()?,
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

/// Median and extremes of the rounds.
fn nanoseconds(mut rounds: [f64; ROUNDS]) -> Nanoseconds {
    rounds.sort_unstable_by(f64::total_cmp);
    Nanoseconds { median: rounds[ROUNDS / 2], min: rounds[0], max: rounds[ROUNDS - 1] }
}
