//! Long churns beside the model, over many small spans that lie far from each other.
//!
//! A space keeps shortcuts to where it last found room, and sums that it puts right only when they
//! have misled it. What tells on these is not the shape of one call but a long past: parts of the
//! space that fill up, drain, and fill up again, while others stay as they are.

mod common;

use common::random::Random;
use common::{Cell, Model};
use potad::{Error, Fit, Space};

/// A space of several spans of a few rows each, and a model of each span, in ascending order.
struct Islands {
    space: Space,
    models: Vec<Model>,
}

impl Islands {
    fn new(starts: &[u64], length: u64) -> Self {
        let mut space = Space::new(starts[0], 0, 1).unwrap();
        let mut models = Vec::new();
        for &start in starts {
            space.add(start, length as u128).unwrap();
            let mut model = Model::new(start, start + length);
            model.add(start, length);
            models.push(model);
        }
        models.sort_by_key(|model| model.origin);
        Islands { space, models }
    }

    fn model(&mut self, granule: u64) -> &mut Model {
        let behind = self.models.partition_point(|model| model.origin <= granule);
        &mut self.models[behind - 1]
    }

    fn count_free(&self, order: u32) -> usize {
        self.models.iter().map(|model| model.count_free(order, &model.all())).sum()
    }

    /// Takes over a block that the space chose.
    fn took(&mut self, start: u64, order: u32) {
        assert!(start.is_multiple_of(1 << order), "granule {start} for order {order}");
        self.model(start).occupy(start, 1 << order);
    }

    fn alloc(&mut self, order: u32) {
        let (possible, size) = (self.count_free(order), 1u128 << order);
        match self.space.alloc(size) {
            Ok(start) => self.took(start, order),
            Err(Error::OutOfSpace { .. }) => assert_eq!(possible, 0, "order {order}"),
            Err(other) => panic!("{other}"),
        }
    }

    fn alloc_many(&mut self, order: u32, count: usize) {
        let possible = self.count_free(order);
        match self.space.alloc_many(1 << order, count) {
            Ok(starts) => {
                assert_eq!(starts.len(), count);
                for start in starts {
                    self.took(start, order);
                }
            }
            Err(Error::OutOfSpace { .. }) => assert!(possible < count, "{count} of order {order}"),
            Err(other) => panic!("{other}"),
        }
    }

    fn alloc_run(&mut self, length: u64, fit: Fit) {
        let found = self.space.alloc_run(length as u128, 1, None, fit);
        let class = |start: u64| match fit {
            Fit::First => 0,
            Fit::Aligned => start.trailing_zeros().min(length.next_power_of_two().ilog2()),
        };
        let runs = self.models.iter().filter_map(|model| {
            model.find_run(length, 1, &model.all(), fit).map(|start| (class(start), start))
        });
        // The best class, and of that the lowest.
        let best = runs.min_by_key(|&(class, start)| (std::cmp::Reverse(class), start));
        assert_eq!(found.ok(), best.map(|(_, start)| start), "{length} granules, {fit:?}");
        if let Some((_, start)) = best {
            self.model(start).occupy(start, length);
        }
    }

    fn live(&self) -> Vec<u64> {
        self.models.iter().flat_map(|model| model.live.keys().copied()).collect()
    }

    fn free(&mut self, starts: &[u64]) {
        match starts {
            [start] => assert!(self.space.free(*start).is_ok()),
            _ => assert_eq!(self.space.free_many(starts), Ok(())),
        }
        for &start in starts {
            self.model(start).free(start).expect("it is live");
        }
    }

    fn check(&mut self) {
        self.space.check().unwrap();
        let used = |model: &Model| model.count(|cell| matches!(cell, Cell::Used(_)));
        let used: u64 = self.models.iter().map(used).sum();
        assert_eq!(self.space.used(), used as u128);
        let live: Vec<u64> = self.space.allocations().map(|found| found.start).collect();
        assert_eq!(live, self.live());
        let blocks = self.models.iter().flat_map(|model| model.blocks());
        let largest = blocks.map(|block| 1u128 << block.1).max();
        assert_eq!(self.space.largest_free(), largest.unwrap_or(0));
    }

    /// Fills up and drains, in phases that favour one or the other and sizes of one kind.
    fn churn(&mut self, random: &mut Random, steps: usize) {
        let (mut filling, mut order_max) = (true, 6);
        for step in 0..steps {
            if step % 200 == 0 {
                filling = !random.one_in(3);
                order_max = random.pick(&[1, 4, 6, 7, 8]);
            }
            let grow = random.one_in(4) != filling;
            let order = random.within(0..order_max) as u32;
            match random.within(0..8) {
                0 if grow => self.alloc_many(order, random.within(0..100) as usize),
                1 if grow => self
                    .alloc_run(1 + random.within(0..150), random.pick(&[Fit::First, Fit::Aligned])),
                _ if grow => self.alloc(order),
                which => {
                    let mut live = self.live();
                    if live.is_empty() {
                        continue;
                    }
                    let count = if which == 0 { random.within(1..80) as usize } else { 1 };
                    // Neighbours, as they were allocated, or from anywhere.
                    if which < 4 {
                        random.shuffle(&mut live);
                    }
                    let first = random.within(0..live.len() as u64) as usize;
                    let last = (first + count).min(live.len());
                    self.free(&live[first..last]);
                }
            }
            if step % 50 == 0 {
                self.check();
            }
        }
        let live = self.live();
        self.free(&live);
        self.check();
        assert_eq!(self.space.available(), self.space.size());
    }
}

/// Spans inside the first few sections, across their bounds, and beyond them.
#[test]
fn near_islands() {
    let mut random = Random::new(14);
    let section = 1u64 << 18;
    for _ in 0..6 {
        let mut starts: Vec<u64> =
            (0..8).map(|i| i * section + random.within(0..section - 600)).collect();
        starts.extend([3 * section - 77, 5 * section - 256]);
        starts.dedup_by_key(|start| *start / 600);
        random.shuffle(&mut starts);
        let mut apart: Vec<u64> = Vec::new();
        for start in starts {
            if apart.iter().all(|other| other.abs_diff(start) > 600) {
                apart.push(start);
            }
        }
        Islands::new(&apart, 1 + random.within(100..500)).churn(&mut random, 4_000);
    }
}

/// Spans of which each has its own way down from the root.
#[test]
fn far_islands() {
    let mut random = Random::new(15);
    for shift in [26, 32, 38, 44, 58] {
        let mut starts: Vec<u64> =
            (0..24).map(|i| (i << shift) + random.within(0..(1 << shift) - 600)).collect();
        random.shuffle(&mut starts);
        Islands::new(&starts, 1 + random.within(60..300)).churn(&mut random, 3_000);
    }
}

/// One span of several thousand rows, full most of the time: what is free is never where it was.
#[test]
fn a_space_that_is_nearly_full() {
    let mut random = Random::new(16);
    for first in [0, (1 << 18) - 4_000, (1 << 20) - 3_000, (1 << 42) - 5_000] {
        let mut islands = Islands::new(&[first], 8_000);
        while islands.space.available() > 100 {
            let order = random.within(0..islands.space.largest_free().ilog2() as u64 + 1) as u32;
            islands.alloc(order);
        }
        islands.churn(&mut random, 4_000);
    }
}
