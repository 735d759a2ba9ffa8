//! Random calls on a space and on the naive model side by side; `check()` after each.
//!
//! Which block the space hands out is its own choice, so there the model follows it: it checks that
//! one was to be had exactly if one was handed out, that it was free, aligned and inside the window.
//! Runs and exact ranges must be where the model says.

mod common;

use common::random::config;
use common::{Cell, Model, Window};
use potad::{Error, Fit, Space};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Alloc { size: u64 },
    AllocWithin { size: u64, low: u64, length: u64 },
    AllocRun { size: u64, align: u64, first: bool, window: Option<(u64, u64)> },
    AllocAt { at: u64, size: u64 },
    AllocScattered { size: u64, min_block: u64, window: Option<(u64, u64)> },
    AllocMany { size: u64, count: usize },
    Free { victim: usize },
    FreeWrong { at: u64 },
    FreeMany { victims: Vec<usize>, other: Option<u64> },
    FreeRange { at: u64, size: u64 },
    FreePart { victim: usize, from: u64, size: u64 },
    Split { victim: usize, at: u64 },
    Lookup { at: u64 },
    Add { at: u64, size: u64 },
    Remove { at: u64, size: u64 },
    Retire { at: u64, size: u64 },
    Restore { at: u64, size: u64 },
}

/// Sizes as they come: powers of two, their neighbours, three times them, whole nodes, anything.
fn sizes(max: u64) -> impl Strategy<Value = u64> {
    let bits = max.ilog2();
    prop_oneof![
        4 => (0..=bits).prop_map(|k| 1u64 << k),
        2 => (1..=bits).prop_map(|k| (1u64 << k) - 1),
        2 => (0..=bits).prop_map(|k| 3u64 << k),
        2 => 1..=max,
        1 => 1..=8u64,
        1 => near_bounds(max),
    ]
    .prop_map(move |size| size.clamp(1, max))
}

/// Numbers below `end`, or at most a little above, at or next to the bounds of rows and nodes.
fn near_bounds(end: u64) -> impl Strategy<Value = u64> {
    (prop_oneof![Just(64u64), Just(4096)], 0..=end / 64, 0..5u64)
        .prop_map(move |(unit, at, off)| (at * unit % (end + 1) + off).saturating_sub(2))
}

/// Granules counted from the first there may be.
fn spots(extent: u64) -> impl Strategy<Value = u64> {
    let near = near_bounds(extent).prop_map(move |at| at.min(extent - 1));
    prop_oneof![2 => 0..extent, 1 => near]
}

fn ops(extent: u64) -> impl Strategy<Value = Op> {
    let at = spots(extent).boxed();
    let window = move || proptest::option::of((spots(extent), 0..=extent));
    let small = extent.min(80);
    prop_oneof![
        8 => sizes(extent).prop_map(|size| Op::Alloc { size }),
        8 => sizes(small).prop_map(|size| Op::Alloc { size }),
        3 => (sizes(small), at.clone(), 0..=extent)
            .prop_map(|(size, low, length)| Op::AllocWithin { size, low, length }),
        6 => (sizes(extent), prop_oneof![sizes(64), 1..=12u64], any::<bool>(), window())
            .prop_map(|(size, align, first, window)| Op::AllocRun { size, align, first, window }),
        6 => (at.clone(), sizes(extent)).prop_map(|(at, size)| Op::AllocAt { at, size }),
        3 => (sizes(extent), sizes(small), window())
            .prop_map(|(size, min_block, window)| Op::AllocScattered { size, min_block, window }),
        3 => (sizes(small), 0..70usize).prop_map(|(size, count)| Op::AllocMany { size, count }),
        16 => any::<usize>().prop_map(|victim| Op::Free { victim }),
        1 => at.clone().prop_map(|at| Op::FreeWrong { at }),
        3 => (proptest::collection::vec(any::<usize>(), 0..40), proptest::option::weighted(0.3, spots(extent)))
            .prop_map(|(victims, other)| Op::FreeMany { victims, other }),
        2 => (at.clone(), sizes(extent)).prop_map(|(at, size)| Op::FreeRange { at, size }),
        6 => (any::<usize>(), any::<u64>(), any::<u64>())
            .prop_map(|(victim, from, size)| Op::FreePart { victim, from, size }),
        4 => (any::<usize>(), prop_oneof![any::<u64>(), near_bounds(extent)])
            .prop_map(|(victim, at)| Op::Split { victim, at }),
        2 => at.clone().prop_map(|at| Op::Lookup { at }),
        2 => (at.clone(), sizes(extent)).prop_map(|(at, size)| Op::Add { at, size }),
        2 => (at.clone(), sizes(extent)).prop_map(|(at, size)| Op::Remove { at, size }),
        2 => (at.clone(), sizes(small)).prop_map(|(at, size)| Op::Retire { at, size }),
        2 => (at, sizes(small)).prop_map(|(at, size)| Op::Restore { at, size }),
    ]
}

/// A space and a model of the same granules.
struct Pair {
    space: Space,
    model: Model,
    granule: u64,
}

impl Pair {
    /// Granules `first..first + extent` may ever be in it; `length` from `start` on are at first.
    fn new(first: u64, extent: u64, start: u64, length: u64, granule: u64) -> Self {
        let space =
            Space::new(start * granule, (length * granule) as u128, granule).expect("a space");
        let mut model = Model::new(first, first + extent);
        model.add(start, length);
        Pair { space, model, granule }
    }

    fn units(&self, granules: u64) -> u128 {
        granules as u128 * self.granule as u128
    }

    fn address(&self, granule: u64) -> u64 {
        granule * self.granule
    }

    fn granule_of(&self, address: u64) -> u64 {
        assert!(address.is_multiple_of(self.granule), "{address:#x}");
        address / self.granule
    }

    /// The window in both languages.
    fn window(&self, window: Option<(u64, u64)>) -> (potad::Window, Window) {
        match window {
            None => (None, self.model.all()),
            Some((low, length)) => {
                let low = self.model.origin + low;
                let high = low + length;
                (Some((self.address(low), self.units(high))), low..high)
            }
        }
    }

    fn victim(&self, victim: usize) -> Option<(u64, u64)> {
        let n = self.model.live.len();
        (n > 0).then(|| self.model.live.iter().nth(victim % n).map(|(&a, &b)| (a, b)).unwrap())
    }

    fn apply(&mut self, op: &Op) {
        let granule = self.granule;
        match *op {
            Op::Alloc { size } => {
                self.take_block(size, self.model.all(), |space, size| space.alloc(size));
            }
            Op::AllocWithin { size, low, length } => {
                let (window, range) = self.window(Some((low, length)));
                self.take_block(size, range, |space, size| space.alloc_within(size, window));
            }
            Op::AllocRun { size, align, first, window } => {
                let fit = if first { Fit::First } else { Fit::Aligned };
                let (window, range) = self.window(window);
                let expected = self.model.find_run(size, align, &range, fit);
                self.took(self.units(size), expected, size, |space, size| {
                    space.alloc_run(size, align as u128 * granule as u128, window, fit)
                });
            }
            Op::AllocAt { at, size } => {
                let at = self.model.origin + at;
                let expected = self.model.is_free(at, size).then_some(at);
                let address = self.address(at);
                self.took(self.units(size), expected, size, |space, size| {
                    space.alloc_at(address, size)
                });
            }
            Op::AllocScattered { size, min_block, window } => {
                let smallest = min_block.next_power_of_two().trailing_zeros();
                let (window, range) = self.window(window);
                let length = size.next_multiple_of(1 << smallest);
                let expected = self.model.fewest_blocks(length, smallest, &range);
                let (size, min_block) = (self.units(size), self.units(min_block));
                match (self.space.alloc_scattered(size, min_block, window), expected) {
                    (Ok(blocks), Some(fewest)) => {
                        assert_eq!(blocks.len(), fewest, "{blocks:?}");
                        let total: u128 = blocks.iter().map(|block| block.1).sum();
                        assert_eq!(total, self.units(length));
                        for (start, size) in blocks {
                            let (start, size) = (start / granule, size as u64 / granule);
                            assert!(size.is_power_of_two() && size >= 1 << smallest);
                            assert!(start % size == 0);
                            assert!(range.start <= start && start + size <= range.end);
                            self.model.occupy(start, size);
                        }
                    }
                    (Err(Error::OutOfSpace { .. }), None) => {}
                    (found, expected) => panic!("{found:?}, expected {expected:?} blocks"),
                }
            }
            Op::AllocMany { size, count } => {
                let order = size.next_power_of_two().trailing_zeros();
                let possible = self.model.count_free(order, &self.model.all());
                match self.space.alloc_many(self.units(size), count) {
                    Ok(found) => {
                        assert_eq!(found.len(), count);
                        for address in found {
                            let at = self.granule_of(address);
                            assert!(
                                at.is_multiple_of(1 << order),
                                "granule {at} for order {order}"
                            );
                            self.model.occupy(at, 1 << order);
                        }
                    }
                    Err(Error::OutOfSpace { .. }) => {
                        assert!(count > possible, "{count} refused, {possible} possible");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            Op::Free { victim } => {
                let Some((start, length)) = self.victim(victim) else { return };
                assert_eq!(self.space.free(self.address(start)), Ok(self.units(length)));
                self.model.free(start);
            }
            Op::FreeWrong { at } => {
                let at = self.model.origin + at;
                let address = self.address(at) + (self.granule / 2);
                if granule > 1 || !self.model.live.contains_key(&at) {
                    let inside = self.inside(at);
                    let error = Error::NotAllocated { address, inside };
                    assert_eq!(self.space.free(address), Err(error));
                }
            }
            Op::FreeMany { ref victims, other } => {
                let chosen = victims.iter().filter_map(|&victim| self.victim(victim));
                let mut starts: Vec<u64> = chosen.map(|(start, _)| start).collect();
                starts.extend(other.map(|at| self.model.origin + at));
                let addresses: Vec<u64> = starts.iter().map(|&at| self.address(at)).collect();
                let wrong = (0..starts.len()).find(|&i| {
                    starts[..i].contains(&starts[i]) || !self.model.live.contains_key(&starts[i])
                });
                let error = wrong.map(|i| Error::NotAllocated {
                    address: addresses[i],
                    inside: self.inside(starts[i]),
                });
                assert_eq!(self.space.free_many(&addresses).err(), error);
                if error.is_none() {
                    for at in starts {
                        self.model.free(at);
                    }
                }
            }
            Op::FreeRange { at, size } => {
                let at = self.model.origin + at;
                self.free_range(at, size);
            }
            Op::FreePart { victim, from, size } => {
                let Some((start, length)) = self.victim(victim) else { return };
                let from = from % length;
                self.free_range(start + from, 1 + size % (length - from));
            }
            Op::Split { victim, at } => {
                let Some((start, length)) = self.victim(victim) else { return };
                let at = at % (length + 1);
                let found = self.space.split(self.address(start), self.units(at));
                if at == 0 || at == length {
                    assert!(matches!(found, Err(Error::Argument { name: "size", .. })));
                } else {
                    assert_eq!(found, Ok(()));
                    self.model.split(start, at);
                }
            }
            Op::Lookup { at } => {
                let at = self.model.origin + at;
                let address = self.address(at) + (self.granule - 1);
                let found = self.space.lookup(address).map(|found| (found.start, found.size));
                assert_eq!(found, self.inside(at));
            }
            Op::Add { at, size } => {
                let at = self.model.origin + at;
                let size = size.min(self.model.end() - at);
                let missing = (at..at + size).all(|at| self.model.cell(at) == Cell::Missing);
                let found = self.space.add(self.address(at), self.units(size));
                if missing {
                    assert_eq!(found, Ok(()));
                    self.model.add(at, size);
                } else {
                    assert!(
                        matches!(found, Err(Error::Argument { name: "start", .. })),
                        "{found:?}"
                    );
                }
            }
            Op::Remove { at, size } => {
                let at = self.model.origin + at;
                let size = size.min(self.model.end() - at);
                let idle = (at..at + size).all(|at| !matches!(self.model.cell(at), Cell::Used(_)));
                match self.space.remove(self.address(at), self.units(size)) {
                    Ok(()) => {
                        assert!(self.model.present(at, size) && idle);
                        self.model.remove(at, size);
                    }
                    Err(Error::Argument { name: "start", .. }) => {
                        assert!(!self.model.present(at, size));
                    }
                    Err(Error::OutOfSpace { .. }) => assert!(!idle),
                    Err(other) => panic!("{other}"),
                }
            }
            Op::Retire { at, size } => {
                let at = self.model.origin + at;
                let size = size.min(self.model.end() - at);
                let found = self.space.retire(self.address(at), self.units(size));
                assert_eq!(found.is_ok(), self.model.present(at, size), "{found:?}");
                if found.is_ok() {
                    self.model.retire(at, size);
                }
            }
            Op::Restore { at, size } => {
                let at = self.model.origin + at;
                let size = size.min(self.model.end() - at);
                let found = self.space.restore(self.address(at), self.units(size));
                assert_eq!(found.is_ok(), self.model.present(at, size), "{found:?}");
                if found.is_ok() {
                    self.model.restore(at, size);
                }
            }
        }
    }

    /// A call that takes a block of the space's choice inside a window.
    fn take_block(
        &mut self,
        size: u64,
        window: Window,
        call: impl Fn(&mut Space, u128) -> Result<u64, Error>,
    ) {
        let order = size.next_power_of_two().trailing_zeros();
        let possible = self.model.find_block(order, &window);
        let units = self.units(size);
        match call(&mut self.space, units) {
            Ok(address) => {
                let at = self.granule_of(address);
                assert!(at.is_multiple_of(1 << order), "granule {at} for order {order}");
                assert!(
                    window.start <= at && at + (1 << order) <= window.end,
                    "{at} in {window:?}"
                );
                // Not free in the model, it fails here.
                self.model.occupy(at, 1 << order);
            }
            Err(Error::OutOfSpace { requested, available, .. }) => {
                assert_eq!(possible, None, "refused order {order} in {window:?}");
                assert_eq!(requested, units);
                assert_eq!(available, self.units(self.model.available()));
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// A call that takes exactly what the model says.
    fn took(
        &mut self,
        size: u128,
        expected: Option<u64>,
        length: u64,
        call: impl Fn(&mut Space, u128) -> Result<u64, Error>,
    ) {
        match (call(&mut self.space, size), expected) {
            (Ok(address), Some(at)) => {
                assert_eq!(
                    address,
                    self.address(at),
                    "granule {} for {at}",
                    address / self.granule
                );
                self.model.occupy(at, length);
            }
            (Err(Error::OutOfSpace { requested, available, .. }), None) => {
                assert_eq!(requested, size);
                assert_eq!(available, self.units(self.model.available()));
            }
            (found, expected) => panic!("{found:?}, expected granule {expected:?}"),
        }
    }

    fn free_range(&mut self, at: u64, length: u64) {
        let found = self.space.free_range(self.address(at), self.units(length));
        match self.model.first_unused(at, length) {
            None => {
                assert_eq!(found, Ok(()));
                self.model.free_range(at, length);
            }
            Some(gap) => match found {
                Err(Error::NotAllocated { address, .. }) => assert_eq!(address, self.address(gap)),
                other => panic!("{other:?}, expected {gap} not to be allocated"),
            },
        }
    }

    fn inside(&self, granule: u64) -> Option<(u64, u128)> {
        match self.model.cell(granule) {
            Cell::Used(start) => Some((self.address(start), self.units(self.model.live[&start]))),
            _ => None,
        }
    }

    /// Everything the space says of itself, against the model.
    fn compare(&mut self) {
        self.compare_addresses();
        // Not after every step: asking for free blocks gives recent ones back to the tree.
        if self.model.live.len().is_multiple_of(3) {
            self.compare_blocks();
        }
    }

    fn compare_addresses(&self) {
        self.space.check().expect("the recount agrees");
        let (space, model) = (&self.space, &self.model);
        let used = model.count(|cell| matches!(cell, Cell::Used(_)));
        assert_eq!(space.used(), self.units(used));
        assert_eq!(space.available(), self.units(model.available()));
        assert_eq!(space.size(), self.units(model.count(|cell| cell != Cell::Missing)));
        let live: Vec<(u64, u128)> = model
            .live
            .iter()
            .map(|(&at, &length)| (self.address(at), self.units(length)))
            .collect();
        assert_eq!(space.allocations().map(|a| (a.start, a.size)).collect::<Vec<_>>(), live);
        assert_eq!(space.len(), live.len() as u64);
        let present = |i: usize| model.cells[i] != Cell::Missing;
        assert_eq!(space.spans().collect::<Vec<_>>(), self.addressed(model.stretches(present)));
        let retired = self.addressed(model.stretches(|i| present(i) && model.retired[i]));
        assert_eq!(space.retired().collect::<Vec<_>>(), retired);
    }

    fn compare_blocks(&mut self) {
        let blocks = self.model.blocks();
        let mut counts = std::collections::BTreeMap::new();
        for &(_, order) in &blocks {
            *counts.entry(self.units(1 << order)).or_insert(0) += 1;
        }
        let largest = blocks.iter().map(|block| self.units(1 << block.1)).max();
        let model = &self.model;
        let free = self.addressed(model.stretches(|i| model.cells[i] == Cell::Free));
        let sizes = [0, 1, 4, 9].map(|order| (order, self.units(1 << order)));
        let space = &mut self.space;
        assert_eq!(space.free_blocks().collect::<Vec<_>>(), counts.into_iter().collect::<Vec<_>>());
        assert_eq!(space.largest_free(), largest.unwrap_or(0));
        assert_eq!(space.free_extents().collect::<Vec<_>>(), free);
        for (order, size) in sizes {
            let all = model.available();
            let usable: u64 = blocks.iter().filter(|b| b.1 >= order).map(|b| 1u64 << b.1).sum();
            let expected = if all == 0 { 0.0 } else { (all - usable) as f64 / all as f64 };
            assert_eq!(space.unusable_free_index(size), Ok(expected));
        }
        space.check().expect("the recount agrees");
    }

    fn addressed(&self, stretches: Vec<(u64, u64)>) -> Vec<(u64, u128)> {
        stretches.iter().map(|&(at, n)| (self.address(at), self.units(n))).collect()
    }
}

/// Where in the integers the granules lie: the tree's depth and its edges depend on it.
fn places() -> impl Strategy<Value = (u64, u64)> {
    // First granule and log2 of the granule.
    prop_oneof![
        Just((0, 12)),
        Just((0, 0)),
        Just((3, 9)),
        Just((1000, 0)),
        Just(((1 << 18) - 70, 12)),
        Just(((1 << 24) - 130, 9)),
        Just(((1 << 36) - 65, 0)),
        // Where sections are no longer among the first few, and rows beyond 2^32.
        Just(((1 << 20) - 130, 0)),
        Just(((1 << 42) - 130, 0)),
        Just(((1 << 63) - 130, 0)),
    ]
}

fn run(first: u64, extent: u64, start: u64, length: u64, granule: u64, ops: &[Op]) {
    let mut pair = Pair::new(first, extent, start, length, granule);
    pair.compare();
    for op in ops {
        pair.apply(op);
        pair.compare();
    }
    // And back to nothing: the same state as a new space, whatever lies between.
    let live: Vec<u64> = pair.model.live.keys().copied().collect();
    let addresses: Vec<u64> = live.iter().map(|&at| pair.address(at)).collect();
    pair.space.free_many(&addresses).expect("all are live");
    for &at in &live {
        pair.model.free(at);
    }
    pair.compare();
}

type Scenario = (u64, u64, u64, u64, Vec<Op>);

fn scenario(extent: u64, most: usize) -> impl Strategy<Value = Scenario> {
    let ops = proptest::collection::vec(ops(extent), 1..most);
    (places(), spots(extent), 0..=extent, ops).prop_map(
        move |((first, shift), start, length, ops)| {
            (first, shift, start, length.min(extent - start), ops)
        },
    )
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn small_spaces((first, shift, start, length, ops) in scenario(150, 120)) {
        run(first, 150, first + start, length, 1 << shift, &ops);
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn spaces_of_several_nodes((first, shift, start, length, ops) in scenario(9000, 60)) {
        run(first, 9000, first + start, length, 1 << shift, &ops);
    }
}
