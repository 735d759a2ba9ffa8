//! Random numbers whose seed is printed where a test fails, so that a failure can be had again: how
//! property tests are run, and a generator of a few lines for other tests.

use std::ops::Range;

use proptest::test_runner::{Config, FileFailurePersistence};

/// Property tests run `cases` times, or as often as `PROPTEST_CASES` says. The seed of a failure is
/// printed and kept in a file beside the test, which runs it again first the next time.
pub fn config(cases: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let seeds = FileFailurePersistence::WithSource("proptest-regressions");
    Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: Some(Box::new(seeds)),
        ..Config::default()
    }
}

/// SplitMix64: every seed gives a full period and unrelated numbers.
pub struct Random(u64);

impl Random {
    /// Seeded by the environment variable `POTAD_SEED`, else by `default`; prints which.
    pub fn new(default: u64) -> Self {
        let asked = std::env::var("POTAD_SEED").ok();
        let seed = match &asked {
            Some(text) => text.parse().expect("POTAD_SEED must be a whole number below 2^64"),
            None => default,
        };
        // Shown only where the test fails.
        eprintln!("POTAD_SEED={seed} repeats this");
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number of the range, which must not be empty. The bias of a remainder does no harm here.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.within(0..from.len() as u64) as usize]
    }

    /// Puts the items in any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.within(0..i as u64 + 1) as usize);
        }
    }
}
