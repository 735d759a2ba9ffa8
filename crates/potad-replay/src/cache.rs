//! A simulated processor cache: set associative, the least recently used line goes.

use crate::stop::OutOfMemory;

/// No line: what an unused way holds.
const EMPTY: u32 = u32::MAX;

/// A cache of `WAYS` ways. Lines are numbers; a line's set is its number modulo the sets.
pub struct LruCache<const WAYS: usize> {
    /// The lines of each set, most recently used first.
    sets: Vec<[u32; WAYS]>,
    mask: usize,
}

impl<const WAYS: usize> LruCache<WAYS> {
    /// An empty cache of so many lines.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for them.
    ///
    /// # Panics
    ///
    /// Where the lines do not make a power of two of sets.
    pub fn new(lines: usize) -> Result<Self, OutOfMemory> {
        let sets = lines / WAYS;
        assert!(sets.is_power_of_two() && sets * WAYS == lines, "{lines} lines in {WAYS} ways");
        let mut cache = LruCache { sets: Vec::new(), mask: sets - 1 };
        cache.sets.try_reserve_exact(sets)?;
        cache.sets.resize(sets, [EMPTY; WAYS]);
        Ok(cache)
    }

    /// Uses a line: whether it was there. If not, it is now, in place of the set's oldest.
    #[inline]
    pub fn access(&mut self, line: u32) -> bool {
        debug_assert_ne!(line, EMPTY);
        let set = &mut self.sets[line as usize & self.mask];
        // Carry the line to the front; each one passed moves back, until the gap it left.
        let mut carried = line;
        for way in set.iter_mut() {
            std::mem::swap(way, &mut carried);
            if carried == line {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// Each set a queue, searched from end to end.
    struct Naive {
        sets: Vec<VecDeque<u32>>,
        ways: usize,
    }

    impl Naive {
        fn access(&mut self, line: u32) -> bool {
            let sets = self.sets.len();
            let set = &mut self.sets[line as usize % sets];
            let hit = set.contains(&line);
            set.retain(|&other| other != line);
            set.push_front(line);
            set.truncate(self.ways);
            hit
        }
    }

    proptest! {
        #[test]
        fn as_naive(lines in prop::collection::vec(0_u32..96, 0..2000)) {
            let mut cache = LruCache::<4>::new(32).unwrap();
            let mut naive = Naive { sets: vec![VecDeque::new(); 8], ways: 4 };
            for line in lines {
                prop_assert_eq!(cache.access(line), naive.access(line));
            }
        }
    }

    #[test]
    fn a_set_holds_its_ways_and_no_more() {
        let mut cache = LruCache::<8>::new(512).unwrap();
        let lines: Vec<u32> = (0..8).map(|i| i * 64).collect();
        assert!(lines.iter().all(|&line| !cache.access(line)));
        assert!(lines.iter().all(|&line| cache.access(line)));
        // One more pushes out the oldest, which pushes out the next, and so on around.
        assert!(!cache.access(8 * 64));
        assert!(lines.iter().all(|&line| !cache.access(line)));
    }
}
