//! Sorted sets of granules, kept as disjoint ranges: spans of a space, and what is retired.
//!
//! Both are few, change rarely and are asked often, so a sorted array and a binary search do.
//! Bounds are absolute granule numbers, from `first` to `end` exclusive; `end` may be 2^64.

use std::ops::Range;

use crate::error::Error;
use crate::fallible::{Grow, collect};

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Ascending; neither empty, overlapping nor adjoining.
    ranges: Vec<Range<u128>>,
}

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u128>> + '_ {
        self.ranges.iter().cloned()
    }

    /// Index of the first range that ends after `at`.
    fn index(&self, at: u128) -> usize {
        self.ranges.partition_point(|range| range.end <= at)
    }

    /// What these ranges and `within` have in common, ascending.
    pub(crate) fn overlap(&self, within: Range<u128>) -> impl Iterator<Item = Range<u128>> + '_ {
        self.ranges[self.index(within.start)..]
            .iter()
            .take_while(move |range| range.start < within.end)
            .map(move |range| range.start.max(within.start)..range.end.min(within.end))
            .filter(|common| common.start < common.end)
    }

    /// The ranges, whole, that overlap or adjoin `range`, ascending.
    pub(crate) fn touching(&self, range: &Range<u128>) -> impl Iterator<Item = Range<u128>> + '_ {
        let from = self.ranges.partition_point(|other| other.end < range.start);
        let to = self.ranges.partition_point(|other| other.start <= range.end);
        self.ranges[from..to].iter().cloned()
    }

    pub(crate) fn covers(&self, within: Range<u128>) -> bool {
        self.ranges
            .get(self.index(within.start))
            .is_some_and(|range| range.start <= within.start && range.end >= within.end)
    }

    /// The same ranges once more.
    pub(crate) fn copy(&self) -> Result<Ranges, Error> {
        Ok(Ranges { ranges: collect(self.iter())? })
    }

    /// Makes sure that the next so many changes, each an `insert` or a `remove`, need no memory.
    pub(crate) fn room(&mut self, changes: usize) -> Result<(), Error> {
        self.ranges.room(changes)
    }

    /// Adds a range, which may overlap what is there. Room must have been made for it.
    pub(crate) fn insert(&mut self, range: Range<u128>) {
        let from = self.ranges.partition_point(|other| other.end < range.start);
        let to = self.ranges.partition_point(|other| other.start <= range.end);
        let merged = self.ranges[from..to]
            .iter()
            .fold(range, |all, other| all.start.min(other.start)..all.end.max(other.end));
        self.ranges.splice(from..to, [merged]);
    }

    /// Takes a range away, as much of it as is there. Room must have been made for it: what loses its
    /// middle becomes two.
    pub(crate) fn remove(&mut self, range: Range<u128>) {
        let from = self.index(range.start);
        let to = self.ranges.partition_point(|other| other.start < range.end);
        if from >= to || range.is_empty() {
            return;
        }
        let left = self.ranges[from].start..range.start;
        let right = range.end..self.ranges[to - 1].end;
        let kept = |rest: &Range<u128>| rest.start < rest.end;
        match (kept(&left), kept(&right)) {
            (true, true) => drop(self.ranges.splice(from..to, [left, right])),
            (true, false) => drop(self.ranges.splice(from..to, [left])),
            (false, true) => drop(self.ranges.splice(from..to, [right])),
            (false, false) => drop(self.ranges.drain(from..to)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_set_of_numbers() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound) as u128
        };
        let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
        for _ in 0..5000 {
            let start = random(60);
            let range = start..start + random(12);
            ranges.room(1).expect("memory for a range");
            if random(2) == 0 {
                if !range.is_empty() {
                    ranges.insert(range.clone());
                    set.extend(range.clone());
                }
            } else {
                ranges.remove(range.clone());
                set.retain(|at| !range.contains(at));
            }
            let flat: Vec<u128> = ranges.iter().flatten().collect();
            assert_eq!(flat, set.iter().copied().collect::<Vec<_>>());
            assert!(ranges.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let probe = random(60);
            let probe = probe..probe + 1 + random(8);
            assert_eq!(ranges.covers(probe.clone()), probe.clone().all(|at| set.contains(&at)));
            let common: Vec<u128> = ranges.overlap(probe.clone()).flatten().collect();
            let beside = |all: &&Range<u128>| all.start <= probe.end && all.end >= probe.start;
            let touching: Vec<_> = ranges.ranges.iter().filter(beside).cloned().collect();
            assert_eq!(ranges.touching(&probe).collect::<Vec<_>>(), touching);
            let slow: Vec<u128> = probe.filter(|at| set.contains(at)).collect();
            assert_eq!(common, slow);
        }
    }
}
