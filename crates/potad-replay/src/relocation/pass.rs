//! The relocation pass: a trace through one relocator, which is asked for a run now and then.
//!
//! At each interval a share of the live movable allocations is pinned, so many runs are asked for one
//! after the other until one is refused, and runs and pins go again: so what a relocator grants takes
//! nothing from the trace, and its next request finds only what it has moved. Which allocations are
//! pinned follows from a hash of the slot and the number of the interval, so they are the same for all
//! relocators. Only a request is timed, with the bookkeeping in it; nothing is copied.

use std::time::Instant;

use super::pieces::{Freed, Pieces};
use super::possible::can_be_emptied;
use super::relocator::{Move, Relocator};
use super::report::{RelocationCurves, RunRequests};
use crate::fallible::push;
use crate::pass::MOVABLE;
use crate::report::Nanoseconds;
use crate::samples::{Samples, next_multiple, seconds_at};
use crate::stop::{Interrupts, Stop};
use crate::trace::{PAGE_BYTES, Step, Trace};

/// The work of a step and of a request for a run at the least: a unit is some nanoseconds.
const UNITS_PER_STEP: u64 = 8;
const UNITS_PER_REQUEST: u64 = 1 << 10;

/// Times that are looked through between two looks at the caller.
const SPREAD_PART: usize = 1 << 12;

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub allocations: u64,
    pub failures: u64,
    pub wanted: u64,
    pub granted: u64,
    /// Refused although the run could have been made.
    pub missed: u64,
    pub pages_moved: u64,
    /// Of these, out of windows that were not granted in the end.
    pub pages_wasted: u64,
    /// Free pages of the reserve, at all intervals together.
    pub reserve_free_pages: u64,
}

pub(crate) struct RelocationPass {
    pub relocator: Box<dyn Relocator + Send>,
    requests: RunRequests,
    pieces: Pieces,
    /// Steps done.
    pub at: usize,
    samples: Samples,
    pub counts: Counts,
    pub curves: RelocationCurves,
    /// Nanoseconds of each request.
    times: Vec<u64>,
}

impl RelocationPass {
    pub fn new(
        relocator: Box<dyn Relocator + Send>,
        trace: &Trace,
        requests: RunRequests,
        points: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<RelocationPass, Stop> {
        let samples = Samples::new(points, trace);
        let mut pass = RelocationPass {
            pieces: Pieces::new(trace.slots, relocator.pages(), interrupts)?,
            relocator,
            requests,
            at: 0,
            counts: Counts::default(),
            curves: RelocationCurves::with_room(samples.count())?,
            samples,
            times: Vec::new(),
        };
        pass.sample(trace);
        Ok(pass)
    }

    /// Does the steps up to `end`, and what is due on the way.
    pub fn run(
        &mut self,
        trace: &Trace,
        end: usize,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<(), Stop> {
        while self.at < end {
            let request = next_multiple(self.at, self.requests.interval_events);
            let stop = end.min(self.samples.due()).min(request);
            for step in &trace.steps[self.at..stop] {
                self.follow(step.unpack())?;
                interrupts.after(UNITS_PER_STEP)?;
            }
            self.at = stop;
            if stop == request {
                self.request(stop as u64 / self.requests.interval_events, interrupts)?;
            }
            self.sample(trace);
        }
        Ok(())
    }

    fn follow(&mut self, step: Step) -> Result<(), Stop> {
        match step {
            Step::Alloc { slot, order, migratetype } => {
                let movable = migratetype == MOVABLE;
                self.counts.allocations += 1;
                match self.relocator.alloc_as(order, movable)? {
                    Some(page) => self.pieces.put(slot, page, order, movable)?,
                    None => self.counts.failures += 1,
                }
                Ok(())
            }
            Step::Free { slot, order } => self.free(slot, 0, order),
            Step::FreePiece { slot, order, offset } => self.free(slot, offset, order),
        }
    }

    /// Frees the 2^`order` pages from `offset` on of a slot's allocation, wherever they lie; nothing
    /// where that was refused.
    fn free(&mut self, slot: u32, offset: u32, order: u32) -> Result<(), Stop> {
        for freed in self.pieces.take(slot, offset, order)? {
            match freed {
                Freed::Whole(piece) => self.relocator.free(piece.page, piece.order)?,
                Freed::Part(whole, part) => {
                    self.relocator.free_part(whole.page, whole.order, part.page, part.order)?;
                }
            }
        }
        Ok(())
    }

    /// Asks for as many runs as are wanted, until one is refused.
    fn request(&mut self, number: u64, interrupts: &mut Interrupts<'_>) -> Result<(), Stop> {
        let (pages, align) = (self.requests.pages(), self.requests.align_pages());
        let stays = |slot| is_pinned(slot, number, self.requests.pinned);
        self.counts.wanted += self.requests.at_once;
        self.counts.reserve_free_pages += self.relocator.reserve().free_pages;
        for (slot, piece) in self.pieces.movable() {
            interrupts.after(1)?;
            if stays(slot) {
                self.relocator.pin(piece.page)?;
            }
        }
        let mut runs = Vec::new();
        for _ in 0..self.requests.at_once {
            interrupts.after(UNITS_PER_REQUEST)?;
            let mut moves = Vec::new();
            let start = Instant::now();
            let run = self.relocator.alloc_run(pages, align, &mut moves, interrupts)?;
            push(&mut self.times, start.elapsed().as_nanos() as u64)?;
            for made in moves {
                interrupts.after(UNITS_PER_STEP)?;
                self.pieces.moved(made)?;
                let of_use = run.is_some_and(|run| touches(made, run, pages));
                self.counts.pages_moved += made.pages();
                self.counts.pages_wasted += if of_use { 0 } else { made.pages() };
            }
            let Some(run) = run else {
                let free = self.relocator.free_extents(interrupts)?;
                let memory = self.relocator.pages();
                let pieces = &self.pieces;
                let missed =
                    can_be_emptied(pieces, &free, stays, memory, pages, align, interrupts)?;
                self.counts.missed += u64::from(missed);
                break;
            };
            push(&mut runs, run)?;
        }
        self.counts.granted += runs.len() as u64;
        for run in runs {
            interrupts.after(UNITS_PER_STEP)?;
            self.relocator.free_run(run, pages, interrupts)?;
        }
        for (slot, piece) in self.pieces.movable() {
            interrupts.after(1)?;
            if stays(slot) {
                self.relocator.unpin(piece.page);
            }
        }
        Ok(())
    }

    /// Nanoseconds of a request.
    pub fn nanoseconds(&self, interrupts: &mut Interrupts<'_>) -> Result<Nanoseconds, Stop> {
        spread(&self.times, interrupts)
    }

    fn sample(&mut self, trace: &Trace) {
        if self.samples.take(self.at) {
            // There is room for all samples.
            self.curves.event.push(self.at as u64);
            self.curves.seconds.push(seconds_at(trace, self.at));
            self.curves.granted.push(self.counts.granted);
            self.curves.bytes_moved.push(self.counts.pages_moved * PAGE_BYTES);
        }
    }
}

/// The smallest, the middle and the largest of some times, of which there may be none.
///
/// The middle one is found by halving the range it lies in: a sort would look for no interrupts.
fn spread(times: &[u64], interrupts: &mut Interrupts<'_>) -> Result<Nanoseconds, Stop> {
    let (mut min, mut max) = (u64::MAX, 0);
    for &time in times {
        interrupts.after(1)?;
        (min, max) = (min.min(time), max.max(time));
    }
    let (mut low, mut high) = (min, max);
    while low < high {
        let middle = low + (high - low) / 2;
        let mut up_to_middle = 0;
        for part in times.chunks(SPREAD_PART) {
            interrupts.after(part.len() as u64)?;
            up_to_middle += part.iter().filter(|&&time| time <= middle).count();
        }
        if up_to_middle > times.len() / 2 {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if times.is_empty() {
        return Ok(Nanoseconds::default());
    }
    Ok(Nanoseconds { median: low as f64, min: min as f64, max: max as f64 })
}

/// Whether what was moved lay in the run.
fn touches(Move { old, order, .. }: Move, run: u32, pages: u32) -> bool {
    old < run + pages && old + (1 << order) > run
}

/// Whether the allocation in a slot is pinned at a request: so many of them are, chosen by a hash, the
/// mixing function of SplitMix64.
fn is_pinned(slot: u32, request: u64, share: f64) -> bool {
    let mut mixed = (u64::from(slot) << 32 ^ request).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    // The upper 53 bits as a number from 0 to 1, without 1.
    ((mixed >> 11) as f64) < share * (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_the_share_asked_for_and_others_at_each_request() {
        let pinned = |request, share| -> Vec<bool> {
            (0..100_000).map(|slot| is_pinned(slot, request, share)).collect()
        };
        let count = |pins: &[bool]| pins.iter().filter(|&&pin| pin).count();
        assert_eq!((count(&pinned(3, 0.0)), count(&pinned(3, 1.0))), (0, 100_000));
        let (one, next) = (pinned(1, 0.05), pinned(2, 0.05));
        assert!((4_700..5_300).contains(&count(&one)) && (4_700..5_300).contains(&count(&next)));
        let both = one.iter().zip(&next).filter(|&(&one, &next)| one && next).count();
        assert!((150..350).contains(&both), "{both} are pinned twice");
    }

    #[test]
    fn the_middle_of_times() {
        let spread = |times: &[u64]| {
            let Nanoseconds { median, min, max } =
                spread(times, &mut Interrupts::none()).expect("no stop");
            (min, median, max)
        };
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
        assert_eq!(spread(&[7]), (7.0, 7.0, 7.0));
        let mut times: Vec<u64> = (0..10_001).map(|n| n * n % 7919).collect();
        let found = spread(&times);
        times.sort_unstable();
        assert_eq!(found, (0.0, times[5000] as f64, times[10_000] as f64));
        assert_eq!(spread(&[5, 1, 9, 5]), (1.0, 5.0, 9.0));
    }

    #[test]
    fn a_move_is_of_use_where_it_leaves_the_run() {
        let of = |old| Move { old, new: 100, order: 2 };
        assert!(touches(of(8), 8, 8) && touches(of(12), 8, 8) && touches(of(4), 7, 1));
        assert!(!touches(of(4), 8, 8) && !touches(of(16), 8, 8));
    }
}
