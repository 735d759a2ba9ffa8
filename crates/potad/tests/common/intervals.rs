//! The naive model of spaces too large for a cell a granule: lists of ranges, and everything worked
//! out from these anew for each question.
//!
//! Numbers are absolute granules, in `u128` so that an end of 2^64 is nothing special. What is free
//! is what lies in a span, in no allocation, and is not retired; nothing of it is kept.

use std::collections::BTreeMap;
use std::ops::Range;

use potad::Fit;

type Granules = Range<u128>;

#[derive(Clone, Debug, Default)]
pub struct Intervals {
    /// Disjoint, in any order, perhaps adjoining.
    pub spans: Vec<Granules>,
    /// Disjoint, in any order, perhaps adjoining; whether or not in a span.
    pub retired: Vec<Granules>,
    /// Start to end of each allocation.
    pub live: BTreeMap<u128, u128>,
}

/// `from` less everything in `others`.
fn without(from: &[Granules], others: &[Granules]) -> Vec<Granules> {
    let mut left = from.to_vec();
    for other in others {
        left = left
            .into_iter()
            .flat_map(|range| {
                let below = range.start..range.end.min(other.start);
                let above = range.start.max(other.end)..range.end;
                [below, above]
            })
            .filter(|range| range.start < range.end)
            .collect();
    }
    left
}

/// What of `ranges` lies in `window`.
fn overlap(ranges: &[Granules], window: &Granules) -> Vec<Granules> {
    let cut = |range: &Granules| range.start.max(window.start)..range.end.min(window.end);
    ranges.iter().map(cut).filter(|range| range.start < range.end).collect()
}

/// Ascending, with what adjoins joined.
fn joined(mut ranges: Vec<Granules>) -> Vec<Granules> {
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Granules> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

fn length(ranges: &[Granules]) -> u128 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The maximal blocks of a free extent, ascending: start and order. The largest block at each
/// place is maximal: had its buddy been free and lower, both would have been taken before.
fn blocks_of(extent: &Granules) -> Vec<(u128, u32)> {
    let mut blocks = Vec::new();
    let mut at = extent.start;
    while at < extent.end {
        let fits = |&order: &u32| at.is_multiple_of(1 << order) && at + (1 << order) <= extent.end;
        let order = (0..=64).filter(fits).max().unwrap();
        blocks.push((at, order));
        at += 1 << order;
    }
    blocks
}

fn common_multiple(a: u128, b: u128) -> u128 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

impl Intervals {
    pub fn new(span: Granules) -> Self {
        Intervals { spans: vec![span], ..Intervals::default() }
    }

    fn used_ranges(&self) -> Vec<Granules> {
        self.live.iter().map(|(&start, &end)| start..end).collect()
    }

    /// Granules in spans.
    pub fn size(&self) -> u128 {
        length(&self.spans)
    }

    pub fn used(&self) -> u128 {
        length(&self.used_ranges())
    }

    pub fn available(&self) -> u128 {
        length(&self.extents())
    }

    /// Maximal free ranges, ascending.
    pub fn extents(&self) -> Vec<Granules> {
        joined(without(&without(&self.spans, &self.used_ranges()), &self.retired))
    }

    /// Maximal free blocks, ascending: start and order.
    pub fn blocks(&self) -> Vec<(u128, u32)> {
        self.extents().iter().flat_map(blocks_of).collect()
    }

    pub fn joined_spans(&self) -> Vec<Granules> {
        joined(self.spans.clone())
    }

    /// What is retired inside spans, ascending.
    pub fn retired_inside(&self) -> Vec<Granules> {
        joined(self.spans.iter().flat_map(|span| overlap(&self.retired, span)).collect())
    }

    pub fn is_free(&self, range: &Granules) -> bool {
        self.extents().iter().any(|free| free.start <= range.start && range.end <= free.end)
    }

    pub fn is_present(&self, range: &Granules) -> bool {
        length(&overlap(&self.spans, range)) == range.end - range.start
    }

    pub fn is_any_present(&self, range: &Granules) -> bool {
        !overlap(&self.spans, range).is_empty()
    }

    pub fn is_any_used(&self, range: &Granules) -> bool {
        !overlap(&self.used_ranges(), range).is_empty()
    }

    /// The first granule of the range that is in no allocation.
    pub fn first_unused(&self, range: &Granules) -> Option<u128> {
        let gaps = without(std::slice::from_ref(range), &self.used_ranges());
        gaps.iter().map(|gap| gap.start).min()
    }

    /// The allocation that a granule lies in: start and end.
    pub fn allocation(&self, granule: u128) -> Option<(u128, u128)> {
        let (&start, &end) = self.live.range(..=granule).next_back()?;
        (granule < end).then_some((start, end))
    }

    /// How many blocks of `order` could be had from the window at once.
    pub fn count_free(&self, order: u32, window: &Granules) -> u128 {
        if order > 64 {
            return 0;
        }
        let size = 1u128 << order;
        overlap(&self.extents(), window)
            .iter()
            .map(|free| (free.end / size).saturating_sub(free.start.div_ceil(size)))
            .sum()
    }

    /// The run the contract prefers: of each extent the lowest start of each class of alignment,
    /// and of all these the one of the highest class, then the lowest.
    pub fn find_run(&self, length: u128, align: u128, window: &Granules, fit: Fit) -> Option<u128> {
        // Longer than all addresses, it fits nowhere.
        let class_max = (0..=64).find(|&class| length <= 1 << class)?;
        let classes = match fit {
            Fit::First => 0..=0,
            Fit::Aligned => 0..=class_max,
        };
        let extents = overlap(&self.extents(), window);
        let mut found: Vec<(u32, u128)> = Vec::new();
        for class in classes {
            let align = common_multiple(align, 1 << class);
            for free in &extents {
                let start = free.start.next_multiple_of(align);
                if start + length <= free.end {
                    found.push((class, start));
                }
            }
        }
        let best =
            found.into_iter().min_by_key(|&(class, start)| (std::cmp::Reverse(class), start));
        best.map(|(_, start)| start)
    }

    pub fn occupy(&mut self, range: Granules) {
        assert!(self.is_free(&range), "{range:?} is not free");
        self.live.insert(range.start, range.end);
    }

    /// Frees the allocation that starts at `start`; its length.
    pub fn free(&mut self, start: u128) -> Option<u128> {
        self.live.remove(&start).map(|end| end - start)
    }

    pub fn split(&mut self, start: u128, at: u128) {
        let end = self.live.insert(start, at).unwrap();
        self.live.insert(at, end);
    }

    pub fn free_range(&mut self, range: &Granules) {
        for cut in [range.start, range.end] {
            match self.allocation(cut) {
                Some((start, _)) if start != cut => self.split(start, cut),
                _ => {}
            }
        }
        self.live.retain(|start, _| !range.contains(start));
    }

    pub fn remove(&mut self, range: &Granules) {
        self.spans = without(&self.spans, std::slice::from_ref(range));
    }

    pub fn retire(&mut self, range: &Granules) {
        self.restore(range);
        self.retired.push(range.clone());
    }

    pub fn restore(&mut self, range: &Granules) {
        self.retired = without(&self.retired, std::slice::from_ref(range));
    }
}
