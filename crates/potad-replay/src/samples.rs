//! When the samples of curves are due: at equal distances in steps, the first before any and the last
//! after all.

use crate::trace::Trace;

/// The samples still to be taken of one pass.
pub(crate) struct Samples {
    /// The next one.
    next: u64,
    /// At least 1; more only where there are as many gaps between steps.
    count: u64,
    steps: u64,
}

impl Samples {
    /// So many samples, or as many as there are places between the steps of the trace.
    pub fn new(points: u64, trace: &Trace) -> Samples {
        let steps = trace.steps.len() as u64;
        Samples { next: 0, count: points.min(steps + 1), steps }
    }

    /// How many there are in all.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Steps done when the next sample is due; past the end when all are taken.
    pub fn due(&self) -> usize {
        match self.count - 1 {
            0 => 0,
            gaps => (u128::from(self.next) * u128::from(self.steps) / u128::from(gaps)) as usize,
        }
    }

    /// Whether a sample is due after so many steps: if so, it counts as taken.
    pub fn take(&mut self, at: usize) -> bool {
        let due = self.next < self.count && at == self.due();
        self.next += u64::from(due);
        due
    }
}

/// The trace's clock after so many steps; before any it stands at 0.
pub(crate) fn seconds_at(trace: &Trace, at: usize) -> f64 {
    at.checked_sub(1).map_or(0.0, |last| trace.times[last] as f64 / 1e9)
}

/// The first multiple of an interval in steps that is behind `at`.
pub(crate) fn next_multiple(at: usize, interval: u64) -> usize {
    let due = (at as u64 / interval + 1).saturating_mul(interval);
    usize::try_from(due).unwrap_or(usize::MAX)
}
