//! Why a call ends before its end: memory that runs out, or a caller that wants it to stop.
//!
//! Whatever grows on behalf of a call is reserved first, and a refusal is [`OutOfMemory`]. Every loop
//! whose length is not bounded counts the work it does on [`Interrupts`], which asks the caller now and
//! then whether to go on. Both end the call with a [`Stop`].

use std::collections::TryReserveError;

/// The system refused memory that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system refused memory for the tables of the trace and its replay")]
pub struct OutOfMemory;

impl From<TryReserveError> for OutOfMemory {
    fn from(_: TryReserveError) -> OutOfMemory {
        OutOfMemory
    }
}

/// Why a call ended before its end. What it worked on is half done, and of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// There is no memory to go on with.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The caller asked for it.
    #[error("interrupted")]
    Interrupted,
}

impl From<TryReserveError> for Stop {
    fn from(_: TryReserveError) -> Stop {
        Stop::OutOfMemory(OutOfMemory)
    }
}

/// Units of work from one look at the caller to the next. A unit takes 1 to 300 nanoseconds, so a look
/// comes every 20 milliseconds at the slowest.
const UNITS_PER_LOOK: u64 = 1 << 16;

/// Asks the caller of a long call, now and then, whether it wants the call to stop.
pub struct Interrupts<'a> {
    wants_stop: Option<&'a mut dyn FnMut() -> bool>,
    /// Work done since the last look.
    units: u64,
}

impl<'a> Interrupts<'a> {
    /// For a call that is stopped when `wants_stop` says so.
    pub fn new(wants_stop: &'a mut dyn FnMut() -> bool) -> Self {
        Interrupts { wants_stop: Some(wants_stop), units: 0 }
    }

    /// For a call that goes on to its end.
    pub fn none() -> Self {
        Interrupts { wants_stop: None, units: 0 }
    }

    /// Counts work that is done or about to be: a unit is a step of some nanoseconds.
    ///
    /// # Errors
    ///
    /// [`Stop::Interrupted`] where the caller wants to stop.
    #[inline]
    pub fn after(&mut self, units: u64) -> Result<(), Stop> {
        self.units += units;
        if self.units < UNITS_PER_LOOK { Ok(()) } else { self.look() }
    }

    #[cold]
    fn look(&mut self) -> Result<(), Stop> {
        self.units = 0;
        let stops = self.wants_stop.as_mut().is_some_and(|wants_stop| wants_stop());
        if stops { Err(Stop::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_work_is_done() {
        let mut looks = 0;
        let mut stop_at_the_third = || {
            looks += 1;
            looks == 3
        };
        let mut interrupts = Interrupts::new(&mut stop_at_the_third);
        let mut done = 0;
        let stopped = loop {
            if let Err(stop) = interrupts.after(UNITS_PER_LOOK / 4) {
                break stop;
            }
            done += 1;
        };
        assert_eq!((stopped, done, looks), (Stop::Interrupted, 3 * 4 - 1, 3));
    }
}
