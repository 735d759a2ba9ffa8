//! Random calls on a space of any height and on the naive model of ranges side by side.
//!
//! Places are drawn next to bounds of nodes of all levels and next to the ends of what is there
//! already, since that is where a tree has its special cases.

use std::ops::Range;

use potad::{Error, Fit, Space};
use proptest::prelude::*;

use super::intervals::Intervals;

/// A granule number, once it is known what is in the space.
#[derive(Clone, Copy, Debug)]
pub enum Spot {
    /// About a multiple of 64^level.
    Bound { level: u32, which: u64, off: u128 },
    /// About an end of a span, an allocation or a retired range.
    End { which: usize, off: u128 },
}

/// Offsets of spots are from 0 to this, twice what is taken off again.
const OFF: u128 = 4;

#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// About 2^order granules, or three times that.
    About { order: u32, times: u128, off: u128 },
    /// Up to a spot, if that is further on.
    UpTo(Spot),
}

#[derive(Clone, Debug)]
pub enum Op {
    Alloc { size: Size },
    AllocWithin { size: Size, low: Spot, length: Size },
    AllocRun { size: Size, align: Size, first: bool, low: Spot, length: Size },
    AllocAt { at: Spot, size: Size },
    AllocScattered { size: Size, min_block: Size, low: Spot, length: Size },
    AllocMany { size: Size, count: usize },
    Free { victim: usize },
    FreeMany { victims: Vec<usize> },
    FreeRange { at: Spot, size: Size },
    Split { victim: usize, at: Spot },
    Lookup { at: Spot },
    Add { at: Spot, size: Size },
    Remove { at: Spot, size: Size },
    Retire { at: Spot, size: Size },
    Restore { at: Spot, size: Size },
}

pub fn calls() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(ops(), 1..40)
}

pub fn spots() -> impl Strategy<Value = Spot> {
    prop_oneof![
        (0..11u32, any::<u64>(), 0..=OFF).prop_map(|(level, which, off)| Spot::Bound {
            level,
            which,
            off
        }),
        (any::<usize>(), 0..=OFF).prop_map(|(which, off)| Spot::End { which, off }),
    ]
}

pub fn sizes() -> impl Strategy<Value = Size> {
    prop_oneof![
        4 => (0..=64u32, prop_oneof![2 => Just(1), 1 => Just(3)], prop_oneof![2 => Just(1u128), 1 => 0..=2u128])
            .prop_map(|(order, times, off)| Size::About { order, times, off }),
        2 => (0..8u32).prop_map(|order| Size::About { order, times: 1, off: 1 }),
        2 => spots().prop_map(Size::UpTo),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let victims = || proptest::collection::vec(any::<usize>(), 0..12);
    prop_oneof![
        6 => sizes().prop_map(|size| Op::Alloc { size }),
        2 => (sizes(), spots(), sizes())
            .prop_map(|(size, low, length)| Op::AllocWithin { size, low, length }),
        4 => (sizes(), sizes(), any::<bool>(), spots(), sizes()).prop_map(
            |(size, align, first, low, length)| Op::AllocRun { size, align, first, low, length }
        ),
        8 => (spots(), sizes()).prop_map(|(at, size)| Op::AllocAt { at, size }),
        2 => (sizes(), sizes(), spots(), sizes()).prop_map(
            |(size, min_block, low, length)| Op::AllocScattered { size, min_block, low, length }
        ),
        2 => (sizes(), 0..20usize).prop_map(|(size, count)| Op::AllocMany { size, count }),
        10 => any::<usize>().prop_map(|victim| Op::Free { victim }),
        2 => victims().prop_map(|victims| Op::FreeMany { victims }),
        4 => (spots(), sizes()).prop_map(|(at, size)| Op::FreeRange { at, size }),
        4 => (any::<usize>(), spots()).prop_map(|(victim, at)| Op::Split { victim, at }),
        2 => spots().prop_map(|at| Op::Lookup { at }),
        6 => (spots(), sizes()).prop_map(|(at, size)| Op::Add { at, size }),
        3 => (spots(), sizes()).prop_map(|(at, size)| Op::Remove { at, size }),
        3 => (spots(), sizes()).prop_map(|(at, size)| Op::Retire { at, size }),
        3 => (spots(), sizes()).prop_map(|(at, size)| Op::Restore { at, size }),
    ]
}

/// A space and the model of it.
pub struct Pair {
    pub space: Space,
    pub model: Intervals,
    /// log2 of the granule.
    shift: u32,
    /// How many calls were refused for want of memory for metadata; `None` where none may be.
    pub starved: Option<usize>,
}

type Granules = Range<u128>;

impl Pair {
    /// A space that begins at a spot; `None` if there is no memory for it and that may be.
    pub fn new(shift: u32, base: Spot, size: Option<Size>, starved: Option<usize>) -> Option<Self> {
        let space = Space::new(0, 0, 1 << shift).ok()?;
        let mut pair = Pair { space, model: Intervals::default(), shift, starved };
        let span = pair.range(base, size.unwrap_or(Size::About { order: 0, times: 1, off: 1 }));
        let length = if size.is_some() { pair.units(span.end - span.start) } else { 0 };
        pair.space = match Space::new(pair.address(span.start), length, 1 << shift) {
            Ok(space) => space,
            Err(error) => {
                pair.refused(error);
                return None;
            }
        };
        if size.is_some() {
            pair.model = Intervals::new(span);
        }
        Some(pair)
    }

    /// A call that was refused for no reason the model knows.
    fn refused(&mut self, error: Error) {
        match (&mut self.starved, error) {
            (Some(count), Error::Metadata { .. }) => *count += 1,
            (_, error) => panic!("{error}"),
        }
    }

    /// Granules of all addresses: the end of what can be in the space.
    fn end(&self) -> u128 {
        1 << (64 - self.shift)
    }

    fn units(&self, granules: u128) -> u128 {
        granules << self.shift
    }

    fn address(&self, granule: u128) -> u64 {
        u64::try_from(granule << self.shift).expect("an address")
    }

    fn granule_of(&self, address: u64) -> u128 {
        let granule = address as u128 >> self.shift;
        assert_eq!(self.address(granule), address, "not a multiple of the granule");
        granule
    }

    fn spot(&self, spot: Spot) -> u128 {
        let (at, off) = match spot {
            Spot::Bound { level, which, off } => {
                let unit = 1u128 << (6 * level).min(63 - self.shift);
                (which as u128 % self.end() / unit * unit, off)
            }
            Spot::End { which, off } => {
                let ranges = self.model.spans.iter().chain(&self.model.retired).cloned();
                let live = self.model.live.iter().map(|(&start, &end)| start..end);
                let ends: Vec<u128> =
                    ranges.chain(live).flat_map(|range| [range.start, range.end]).collect();
                (if ends.is_empty() { 0 } else { ends[which % ends.len()] }, off)
            }
        };
        (at + off).saturating_sub(OFF / 2).min(self.end() - 1)
    }

    /// At least 1; not more than fits from `at` on.
    fn size_from(&self, at: u128, size: Size) -> u128 {
        self.size(size, at).clamp(1, self.end() - at)
    }

    /// At least 1, and at most all granules there are and a few.
    fn size(&self, size: Size, from: u128) -> u128 {
        let size = match size {
            Size::About { order, times, off } => ((times << order) + off).saturating_sub(1),
            Size::UpTo(spot) => self.spot(spot).saturating_sub(from),
        };
        size.clamp(1, self.end() + 3)
    }

    fn range(&self, at: Spot, size: Size) -> Granules {
        let at = self.spot(at);
        at..at + self.size_from(at, size)
    }

    fn window(&self, low: Spot, length: Size) -> (potad::Window, Granules) {
        let range = self.range(low, length);
        (Some((self.address(range.start), self.units(range.end))), range)
    }

    fn victim(&self, victim: usize) -> Option<(u128, u128)> {
        let n = self.model.live.len();
        (n > 0).then(|| self.model.live.iter().nth(victim % n).map(|(&a, &b)| (a, b)).unwrap())
    }

    /// The order of the block that holds `size` granules, above 64 where none does.
    fn order(size: u128) -> u32 {
        size.next_power_of_two().ilog2()
    }

    fn take_block(&mut self, found: Result<u64, Error>, order: u32, window: &Granules) {
        let possible = self.model.count_free(order, window);
        match found {
            Ok(address) => {
                let at = self.granule_of(address);
                assert!(at.is_multiple_of(1 << order), "granule {at} for order {order}");
                assert!(window.start <= at && at + (1 << order) <= window.end);
                self.model.occupy(at..at + (1 << order));
            }
            Err(Error::OutOfSpace { .. }) => assert_eq!(possible, 0, "order {order}"),
            Err(other) => self.refused(other),
        }
    }

    /// One call on both, each result compared; what is freed never lacks memory.
    pub fn apply(&mut self, op: &Op) {
        let all = 0..self.end();
        match *op {
            Op::Alloc { size } => {
                let size = self.size(size, 0);
                let found = self.space.alloc(self.units(size));
                self.take_block(found, Self::order(size), &all);
            }
            Op::AllocWithin { size, low, length } => {
                let size = self.size(size, 0);
                let (window, range) = self.window(low, length);
                let found = self.space.alloc_within(self.units(size), window);
                self.take_block(found, Self::order(size), &range);
            }
            Op::AllocRun { size, align, first, low, length } => {
                let (size, align) = (self.size(size, 0), self.size(align, 0).min(self.end()));
                let (window, range) = self.window(low, length);
                let fit = if first { Fit::First } else { Fit::Aligned };
                let expected = self.model.find_run(size, align, &range, fit);
                let found = self.space.alloc_run(self.units(size), self.units(align), window, fit);
                match (found, expected) {
                    (Ok(address), Some(start)) => {
                        assert_eq!(self.granule_of(address), start);
                        self.model.occupy(start..start + size);
                    }
                    (Err(Error::OutOfSpace { .. }), None) => {}
                    (Err(other), Some(_)) => self.refused(other),
                    (found, expected) => panic!("{found:?}, expected {expected:?}"),
                }
            }
            Op::AllocAt { at, size } => {
                let range = self.range(at, size);
                let size = self.units(range.end - range.start);
                match self.space.alloc_at(self.address(range.start), size) {
                    Ok(address) => {
                        assert_eq!(address, self.address(range.start));
                        self.model.occupy(range);
                    }
                    Err(Error::OutOfSpace { .. }) => assert!(!self.model.is_free(&range)),
                    Err(other) => self.refused(other),
                }
            }
            Op::AllocScattered { size, min_block, low, length } => {
                let smallest = Self::order(self.size(min_block, 0));
                let size = self.size(size, 0);
                let (window, range) = self.window(low, length);
                let blocks_possible = self.model.count_free(smallest, &range);
                let rounded = size.div_ceil(1 << smallest) << smallest;
                let min_block = self.units(1 << smallest);
                match self.space.alloc_scattered(self.units(size), min_block, window) {
                    Ok(blocks) => {
                        let total: u128 = blocks.iter().map(|block| block.1).sum();
                        assert_eq!(total, self.units(rounded));
                        assert!(blocks.is_sorted_by_key(|block| std::cmp::Reverse(block.1)));
                        for (start, size) in blocks {
                            let start = self.granule_of(start);
                            let size = size >> self.shift;
                            assert!(size.is_power_of_two() && size >= 1 << smallest);
                            assert_eq!(start % size, 0);
                            assert!(range.start <= start && start + size <= range.end);
                            self.model.occupy(start..start + size);
                        }
                    }
                    Err(Error::OutOfSpace { .. }) => {
                        assert!(blocks_possible << smallest.min(64) < rounded);
                    }
                    Err(other) => self.refused(other),
                }
            }
            Op::AllocMany { size, count } => {
                let size = self.size(size, 0);
                let order = Self::order(size);
                let possible = self.model.count_free(order, &all);
                match self.space.alloc_many(self.units(size), count) {
                    Ok(found) => {
                        assert_eq!(found.len(), count);
                        for address in found {
                            let at = self.granule_of(address);
                            assert!(
                                at.is_multiple_of(1 << order),
                                "granule {at} for order {order}"
                            );
                            self.model.occupy(at..at + (1 << order));
                        }
                    }
                    Err(Error::OutOfSpace { .. }) => assert!(count as u128 > possible),
                    Err(other) => self.refused(other),
                }
            }
            Op::Free { victim } => {
                let Some((start, end)) = self.victim(victim) else { return };
                assert_eq!(self.space.free(self.address(start)), Ok(self.units(end - start)));
                self.model.free(start);
            }
            Op::FreeMany { ref victims } => {
                let starts: Vec<u128> =
                    victims.iter().filter_map(|&v| self.victim(v)).map(|v| v.0).collect();
                let addresses: Vec<u64> = starts.iter().map(|&at| self.address(at)).collect();
                let repeated = (0..starts.len()).find(|&i| starts[..i].contains(&starts[i]));
                match (self.space.free_many(&addresses), repeated) {
                    (Ok(()), None) => {
                        for at in starts {
                            self.model.free(at);
                        }
                    }
                    (Err(Error::NotAllocated { address, .. }), Some(index)) => {
                        assert_eq!(address, addresses[index]);
                    }
                    (found, repeated) => panic!("{found:?}, repeated {repeated:?}"),
                }
            }
            Op::FreeRange { at, size } => {
                let range = self.range(at, size);
                let size = self.units(range.end - range.start);
                match self.space.free_range(self.address(range.start), size) {
                    Ok(()) => {
                        assert_eq!(self.model.first_unused(&range), None);
                        self.model.free_range(&range);
                    }
                    Err(Error::NotAllocated { address, .. }) => {
                        assert_eq!(self.model.first_unused(&range), Some(self.granule_of(address)));
                    }
                    Err(other) => self.refused(other),
                }
            }
            Op::Split { victim, at } => {
                let Some((start, end)) = self.victim(victim) else { return };
                let at = start + self.spot(at) % (end - start);
                let found = self.space.split(self.address(start), self.units(at - start));
                if at == start {
                    assert!(matches!(found, Err(Error::Argument { name: "size", .. })));
                } else {
                    match found {
                        Ok(()) => self.model.split(start, at),
                        Err(other) => self.refused(other),
                    }
                }
            }
            Op::Lookup { at } => {
                let at = self.spot(at);
                let found = self.space.lookup(self.address(at) + ((1 << self.shift) - 1));
                let found = found.map(|d| (self.granule_of(d.start), d.size >> self.shift));
                let expected = self.model.allocation(at).map(|(start, end)| (start, end - start));
                assert_eq!(found, expected);
            }
            Op::Add { at, size } => {
                let range = self.range(at, size);
                let size = self.units(range.end - range.start);
                match self.space.add(self.address(range.start), size) {
                    Ok(()) => {
                        assert!(!self.model.is_any_present(&range));
                        self.model.spans.push(range);
                    }
                    Err(Error::Argument { name: "start", .. }) => {
                        assert!(self.model.is_any_present(&range));
                    }
                    Err(other) => self.refused(other),
                }
            }
            Op::Remove { at, size } => {
                let range = self.range(at, size);
                let size = self.units(range.end - range.start);
                match self.space.remove(self.address(range.start), size) {
                    Ok(()) => {
                        assert!(self.model.is_present(&range) && !self.model.is_any_used(&range));
                        self.model.remove(&range);
                    }
                    Err(Error::Argument { name: "start", .. }) => {
                        assert!(!self.model.is_present(&range));
                    }
                    Err(Error::OutOfSpace { .. }) => assert!(self.model.is_any_used(&range)),
                    Err(other) => self.refused(other),
                }
            }
            Op::Retire { at, size } => {
                let range = self.range(at, size);
                let size = self.units(range.end - range.start);
                let found = self.space.retire(self.address(range.start), size);
                let present = self.model.is_present(&range);
                match found {
                    Ok(()) => {
                        assert!(present);
                        self.model.retire(&range);
                    }
                    Err(Error::Argument { name: "start", .. }) => assert!(!present),
                    Err(other) => self.refused(other),
                }
            }
            Op::Restore { at, size } => {
                let range = self.range(at, size);
                let size = self.units(range.end - range.start);
                let found = self.space.restore(self.address(range.start), size);
                let present = self.model.is_present(&range);
                match found {
                    Ok(()) => {
                        assert!(present);
                        self.model.restore(&range);
                    }
                    Err(Error::Argument { name: "start", .. }) => assert!(!present),
                    Err(other) => self.refused(other),
                }
            }
        }
    }

    fn addressed(&self, ranges: Vec<Granules>) -> Vec<(u64, u128)> {
        let addressed =
            |range: Granules| (self.address(range.start), self.units(range.end - range.start));
        ranges.into_iter().map(addressed).collect()
    }

    /// Everything the space says of itself, against the model.
    pub fn compare(&mut self) {
        self.compare_addresses();
        // Not after every step: asking for free blocks gives recent ones back to the tree.
        if self.model.live.len().is_multiple_of(3) {
            self.compare_blocks();
        }
    }

    fn compare_addresses(&self) {
        let (space, model) = (&self.space, &self.model);
        space.check().expect("the recount agrees");
        assert_eq!(space.size(), self.units(model.size()));
        assert_eq!(space.used(), self.units(model.used()));
        assert_eq!(space.available(), self.units(model.available()));
        assert_eq!(space.len(), model.live.len() as u64);
        let live = model.live.iter().map(|(&start, &end)| start..end).collect();
        let found: Vec<_> = space.allocations().map(|d| (d.start, d.size)).collect();
        assert_eq!(found, self.addressed(live));
        assert_eq!(space.spans().collect::<Vec<_>>(), self.addressed(model.joined_spans()));
        assert_eq!(space.retired().collect::<Vec<_>>(), self.addressed(model.retired_inside()));
    }

    fn compare_blocks(&mut self) {
        let mut counts = std::collections::BTreeMap::new();
        for (_, order) in self.model.blocks() {
            *counts.entry(self.units(1 << order)).or_insert(0) += 1;
        }
        let extents = self.addressed(self.model.extents());
        let space = &mut self.space;
        assert_eq!(space.largest_free(), counts.keys().last().copied().unwrap_or(0));
        assert_eq!(space.free_blocks().collect::<Vec<_>>(), counts.into_iter().collect::<Vec<_>>());
        assert_eq!(space.free_extents().collect::<Vec<_>>(), extents);
        space.check().expect("the recount agrees");
    }
}
