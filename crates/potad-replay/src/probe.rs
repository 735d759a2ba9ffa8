//! The counting probe: cache lines of metadata that an operation touches.
//!
//! # Method
//!
//! Each access between [`CountingProbe::begin`] and [`CountingProbe::end`] is cut into 64-byte lines.
//! For each operation three numbers are kept: the **distinct** lines, those that **missed L1** (32 KiB,
//! 8 ways) and those that **missed L2** (1 MiB, 16 ways). Both caches replace the least recently used
//! line of a set. Every access goes to L1 and what misses there to L2, as in hardware, so L2 sees (and
//! orders by use) only what L1 let through. Reads and writes count alike; nothing else than the
//! allocator's metadata is in the caches, which start empty and keep their contents from one operation
//! to the next. A line that is evicted and fetched again within one operation misses twice.
//!
//! Accesses outside an operation (building, measuring, checking) are not seen at all.
//!
//! # Addresses
//!
//! Where the system puts an array differs from run to run, and with it the sets its lines fall into.
//! So virtual pages are given frames in the order of their first touch, as a kernel hands out frames:
//! a run is repeatable as far as the arrays' offsets within a page are.
//!
//! # Speed
//!
//! An access costs one uncontended lock, a look-up in a small table of recent pages, and about one
//! set of each cache. Lines are dense numbers (frame and place in it), so "seen in this operation" is
//! one comparison in an array.
//!
//! # Memory
//!
//! An access cannot be refused, so a probe that is refused memory only takes note of it and counts no
//! more: [`CountingProbe::has_counted`] tells.

use std::sync::{Mutex, MutexGuard, PoisonError};

use potad::Probe;
use rustc_hash::FxHashMap;

use crate::cache::LruCache;
use crate::fallible::boxed;
use crate::stop::OutOfMemory;

const LINE_SHIFT: u32 = 6;
/// log2 of the lines of a virtual page of 4 KiB.
const LINES_SHIFT: u32 = 6;
const L1_LINES: usize = 32 * 1024 / 64;
const L1_WAYS: usize = 8;
const L2_LINES: usize = 1024 * 1024 / 64;
const L2_WAYS: usize = 16;
/// Entries of the table of recent pages.
const RECENT: usize = 512;

/// Mean and 99th percentile over all operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct LineCount {
    /// Lines an operation, on average.
    pub mean: f64,
    /// The smallest number that 99 of 100 operations do not exceed.
    pub p99: u64,
}

/// Cache lines an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct CacheLines {
    /// Different lines touched.
    pub distinct: LineCount,
    /// Lines that were not in the simulated L1.
    pub missing_l1: LineCount,
    /// Lines that were in neither.
    pub missing_l2: LineCount,
}

/// Counts the cache lines of operations. An allocator owns it, and sees it as shared: so the counts are
/// behind a lock.
pub struct CountingProbe(Mutex<Counter>);

struct Counter {
    /// Memory was refused, so the counts are of no use.
    starved: bool,
    /// The operation under way, counted from 1; 0 outside one.
    operation: u32,
    operations: u32,
    distinct: usize,
    missing_l1: usize,
    missing_l2: usize,
    histograms: [Histogram; 3],
    /// Virtual page number to frame.
    frames: FxHashMap<usize, u32>,
    recent: Box<[(usize, u32); RECENT]>,
    /// For each line, the operation that last touched it.
    touched: Vec<u32>,
    last_line: u32,
    l1: LruCache<L1_WAYS>,
    l2: LruCache<L2_WAYS>,
}

/// How many operations had each count.
#[derive(Default)]
struct Histogram(Vec<u64>);

impl Histogram {
    fn add(&mut self, value: usize) -> Result<(), OutOfMemory> {
        if value >= self.0.len() {
            self.0.try_reserve(value + 1 - self.0.len())?;
            self.0.resize(value + 1, 0);
        }
        self.0[value] += 1;
        Ok(())
    }

    fn summary(&self) -> LineCount {
        let total: u64 = self.0.iter().sum();
        if total == 0 {
            return LineCount::default();
        }
        let sum: u64 = self.0.iter().zip(0..).map(|(count, value)| count * value).sum();
        let rank = (total * 99).div_ceil(100);
        let mut seen = 0;
        let p99 = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        LineCount { mean: sum as f64 / total as f64, p99: p99.unwrap_or(0) as u64 }
    }
}

impl CountingProbe {
    /// Cold caches and no operation yet.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for the caches.
    pub fn new() -> Result<Self, OutOfMemory> {
        Ok(CountingProbe(Mutex::new(Counter {
            starved: false,
            operation: 0,
            operations: 0,
            distinct: 0,
            missing_l1: 0,
            missing_l2: 0,
            histograms: Default::default(),
            frames: FxHashMap::default(),
            recent: boxed([(usize::MAX, 0); RECENT])?,
            touched: Vec::new(),
            last_line: u32::MAX,
            l1: LruCache::new(L1_LINES)?,
            l2: LruCache::new(L2_LINES)?,
        })))
    }

    /// Starts an operation.
    pub fn begin(&self) {
        let mut counter = self.counter();
        counter.operations += 1;
        counter.operation = counter.operations;
        counter.distinct = 0;
        counter.missing_l1 = 0;
        counter.missing_l2 = 0;
        counter.last_line = u32::MAX;
    }

    /// Ends the operation and adds its counts.
    pub fn end(&self) {
        let counter = &mut *self.counter();
        counter.operation = 0;
        let counts = [counter.distinct, counter.missing_l1, counter.missing_l2];
        for (histogram, count) in counter.histograms.iter_mut().zip(counts) {
            counter.starved |= histogram.add(count).is_err();
        }
    }

    /// Whether all operations so far have been counted.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where memory was refused.
    pub fn has_counted(&self) -> Result<(), OutOfMemory> {
        if self.counter().starved { Err(OutOfMemory) } else { Ok(()) }
    }

    /// The counts of the operations ended so far.
    pub fn lines(&self) -> CacheLines {
        let counter = self.counter();
        let [distinct, missing_l1, missing_l2] = &counter.histograms;
        CacheLines {
            distinct: distinct.summary(),
            missing_l1: missing_l1.summary(),
            missing_l2: missing_l2.summary(),
        }
    }

    fn counter(&self) -> MutexGuard<'_, Counter> {
        // A panic under the lock leaves counts that are wrong at worst; there is nothing to protect.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for CountingProbe {
    #[inline]
    fn touch(&self, address: usize, bytes: usize) {
        let mut counter = self.counter();
        if counter.operation != 0 && bytes != 0 {
            for line in address >> LINE_SHIFT..=(address + bytes - 1) >> LINE_SHIFT {
                counter.starved |= counter.touch_line(line).is_err();
            }
        }
    }
}

impl Counter {
    #[inline]
    fn touch_line(&mut self, virtual_line: usize) -> Result<(), OutOfMemory> {
        let place = virtual_line as u32 & ((1 << LINES_SHIFT) - 1);
        let line = self.frame(virtual_line >> LINES_SHIFT)? << LINES_SHIFT | place;
        if line == self.last_line {
            return Ok(()); // The most recent line of its set, and counted: nothing would change.
        }
        self.last_line = line;
        let touched = &mut self.touched[line as usize];
        if *touched != self.operation {
            *touched = self.operation;
            self.distinct += 1;
        }
        if !self.l1.access(line) {
            self.missing_l1 += 1;
            if !self.l2.access(line) {
                self.missing_l2 += 1;
            }
        }
        Ok(())
    }

    #[inline]
    fn frame(&mut self, page: usize) -> Result<u32, OutOfMemory> {
        let recent = &mut self.recent[page % RECENT];
        if recent.0 != page {
            let next = self.frames.len() as u32;
            self.touched.try_reserve(1 << LINES_SHIFT)?;
            self.frames.try_reserve(1)?;
            let frame = *self.frames.entry(page).or_insert(next);
            if frame == next {
                self.touched.resize((next as usize + 1) << LINES_SHIFT, 0);
            }
            *recent = (page, frame);
        }
        Ok(recent.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap, VecDeque};

    #[test]
    fn counts_lines_of_operations_only() {
        let probe = CountingProbe::new().unwrap();
        probe.touch(0x1000, 8);
        probe.begin();
        probe.touch(0x103c, 8); // two lines
        probe.touch(0x1000, 64);
        probe.touch(0x2000, 1);
        probe.end();
        probe.touch(0x3000, 8);
        probe.begin();
        probe.touch(0x1008, 8);
        probe.touch(0x3000, 8);
        probe.end();
        let lines = probe.lines();
        assert_eq!(lines.distinct, LineCount { mean: 2.5, p99: 3 });
        assert_eq!(lines.missing_l1, LineCount { mean: 2.0, p99: 3 });
        assert_eq!(lines.missing_l2, LineCount { mean: 2.0, p99: 3 });
    }

    #[test]
    fn p99_is_a_rank() {
        let mut histogram = Histogram::default();
        for value in 1..=100 {
            histogram.add(value).unwrap();
        }
        assert_eq!(histogram.summary(), LineCount { mean: 50.5, p99: 99 });
        assert_eq!(Histogram::default().summary(), LineCount::default());
    }

    proptest! {
        /// Against queues searched from end to end and a set of lines for each operation. Addresses
        /// crowd into few sets, so that both caches overflow.
        #[test]
        fn as_naive(operations in prop::collection::vec(prop::collection::vec((0_usize..40, 0_usize..3, 1_usize..80), 1..40), 1..30)) {
            let probe = CountingProbe::new().unwrap();
            let mut frames = HashMap::new();
            let mut caches = [(64, 8, HashMap::new()), (1024, 16, HashMap::new())];
            let (mut distinct, mut missing) = (0, [0, 0]);
            for operation in &operations {
                probe.begin();
                let mut lines = BTreeSet::new();
                for &(page, place, bytes) in operation {
                    let address = page * 16 * 4096 + place * 64 + 32;
                    probe.touch(address, bytes);
                    for line in address / 64..=(address + bytes - 1) / 64 {
                        let next = frames.len();
                        let line = *frames.entry(line / 64).or_insert(next) * 64 + line % 64;
                        lines.insert(line);
                        for ((sets, ways, cache), missing) in caches.iter_mut().zip(&mut missing) {
                            let set: &mut VecDeque<usize> = cache.entry(line % *sets).or_default();
                            let hit = set.contains(&line);
                            set.retain(|&other| other != line);
                            set.push_front(line);
                            set.truncate(*ways);
                            if hit {
                                break;
                            }
                            *missing += 1;
                        }
                    }
                }
                probe.end();
                distinct += lines.len();
            }
            let lines = probe.lines();
            let count = operations.len() as f64;
            prop_assert_eq!(lines.distinct.mean, distinct as f64 / count);
            prop_assert_eq!(lines.missing_l1.mean, missing[0] as f64 / count);
            prop_assert_eq!(lines.missing_l2.mean, missing[1] as f64 / count);
        }
    }
}
