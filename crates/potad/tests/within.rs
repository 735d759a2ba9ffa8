//! Every call that can be confined to a range, with bounds that lie anywhere: between granules, in the
//! middle of free space and of allocations, outside the space.
//!
//! Beside the space stands a list of its granules, each with the number of the allocation it is in. What
//! is asked of the space is answered from the list by trying every place there is.

mod common;

use common::random::config;
use potad::{Error, Fit, Kind, Label, Space, Window};
use proptest::prelude::*;

const GRANULE: u64 = 4096;

/// First granule of the space, which is no multiple of much.
const FIRST: u64 = 7;

/// What a granule is in: nothing, an allocation by its number, or out of service.
#[derive(Clone, Copy, Debug, PartialEq)]
enum In {
    Nothing,
    Allocation(usize),
    Retired,
}

struct Pair {
    space: Space,
    page: Kind,
    granules: Vec<In>,
    /// Whether each allocation may be moved, by its number.
    movable: Vec<bool>,
}

impl Pair {
    fn new(count: usize, plan: &[(usize, usize, u8)]) -> Self {
        let size = count as u128 * GRANULE as u128;
        let mut space = Space::new(FIRST * GRANULE, size, GRANULE).unwrap();
        let page = space.add_kind(0, true).unwrap();
        let mut pair = Pair { space, page, granules: vec![In::Nothing; count], movable: vec![] };
        for &(at, length, what) in plan {
            pair.place(at % count, length, what);
        }
        pair
    }

    /// Allocates or retires what is free there, if all of it is.
    fn place(&mut self, at: usize, length: usize, what: u8) {
        let end = at + length;
        if end > self.granules.len() || self.granules[at..end].iter().any(|it| *it != In::Nothing) {
            return;
        }
        let (start, size) = (self.address(at), (length as u64 * GRANULE).into());
        let put = if what == 0 {
            self.space.retire(start, size).unwrap();
            In::Retired
        } else {
            self.space.alloc_at(start, size).unwrap();
            if what > 4 {
                let label = Label { kind: Some(self.page), owner: 0 };
                self.space.describe(start, label, GRANULE.into()).unwrap();
            }
            self.movable.push(what > 4);
            In::Allocation(self.movable.len() - 1)
        };
        self.granules[at..end].fill(put);
    }

    fn address(&self, granule: usize) -> u64 {
        (FIRST + granule as u64) * GRANULE
    }

    /// Whether a range of granules lies in a window.
    fn inside(&self, at: usize, length: usize, within: Window) -> bool {
        let (low, high) = within.unwrap_or((0, 1 << 64));
        low <= self.address(at)
            && self.address(at) as u128 + length as u128 * GRANULE as u128 <= high
    }

    /// The places for a run in a window, at a multiple of `align` granules.
    fn places(&self, length: usize, align: usize, within: Window) -> impl Iterator<Item = usize> {
        (0..(self.granules.len() + 1).saturating_sub(length))
            .filter(move |at| (FIRST as usize + at).is_multiple_of(align))
            .filter(move |&at| self.inside(at, length, within))
    }

    fn is_free(&self, at: usize, length: usize) -> bool {
        self.granules[at..at + length].iter().all(|it| *it == In::Nothing)
    }

    /// Granules in the allocations that touch a place, if all of them may be moved.
    fn cost(&self, at: usize, length: usize) -> Option<u128> {
        let mut touching = vec![];
        for granule in &self.granules[at..at + length] {
            match *granule {
                In::Nothing => {}
                In::Retired => return None,
                In::Allocation(number) if !self.movable[number] => return None,
                In::Allocation(number) => touching.push(number),
            }
        }
        touching.dedup();
        let size =
            |number| self.granules.iter().filter(|it| **it == In::Allocation(number)).count();
        Some(touching.into_iter().map(size).sum::<usize>() as u128)
    }

    /// Free blocks of so many granules in a window, as the space has them now.
    fn free_blocks(&mut self, length: usize, within: Window) -> usize {
        let mut free = vec![false; self.granules.len()];
        for (start, size) in self.space.free_extents() {
            let first = (start / GRANULE - FIRST) as usize;
            free[first..first + (size / GRANULE as u128) as usize].fill(true);
        }
        let places = self.places(length, length, within);
        places.filter(|&at| free[at..at + length].iter().all(|it| *it)).count()
    }
}

/// What a call found: a granule, or nothing.
fn found(result: Result<u64, Error>) -> Option<usize> {
    match result {
        Ok(at) => Some((at / GRANULE - FIRST) as usize),
        Err(Error::OutOfSpace { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Bounds around the space and in it, mostly not at granules, and never in the wrong order.
fn windows(count: usize) -> impl Strategy<Value = Window> {
    let end = (FIRST + count as u64 + 3) * GRANULE;
    let bound = prop_oneof![
        0..=end,
        (0..=end / GRANULE).prop_map(|granule| granule * GRANULE),
        (1..=end / GRANULE).prop_map(|granule| granule * GRANULE - 1),
        (0..=end / GRANULE).prop_map(|granule| granule * GRANULE + 1),
    ];
    let high = prop_oneof![9 => bound.clone().prop_map(u128::from), 1 => Just(1u128 << 64)];
    (bound, high).prop_map(|(low, high)| {
        Some(if low as u128 <= high { (low, high) } else { (high as u64, low.into()) })
    })
}

fn scenario() -> impl Strategy<Value = (usize, Vec<(usize, usize, u8)>, Window)> {
    prop_oneof![4 => 1usize..26, 1 => 60usize..140].prop_flat_map(|count| {
        let length = prop_oneof![Just(1usize), Just(2), Just(4), 1usize..7];
        let plan = prop::collection::vec((0..count, length, 0u8..12), 0..2 * count);
        (Just(count), plan, windows(count))
    })
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn what_is_confined_is_what_trying_every_place_finds(
        (count, plan, within) in scenario(),
        length in 1usize..20,
        align in 1usize..9,
        order in 0u32..5,
        blocks in 1usize..9,
    ) {
        let pair = || Pair::new(count, &plan);
        let size = length as u128 * GRANULE as u128;
        let bytes = align as u128 * GRANULE as u128;

        for fit in [Fit::First, Fit::Aligned] {
            let mut it = pair();
            let found = found(it.space.alloc_run(size, bytes, within, fit));
            let mut places = it.places(length, align, within).filter(|&at| it.is_free(at, length));
            match fit {
                Fit::First => prop_assert_eq!(found, places.next()),
                Fit::Aligned => match found {
                    Some(at) => prop_assert!(places.any(|place| place == at)),
                    None => prop_assert_eq!(places.next(), None),
                },
            }
            it.space.check().unwrap();
        }

        let block = 1usize << order;
        let block_size = (block as u64 * GRANULE).into();
        let mut it = pair();
        let at = found(it.space.alloc_within(block_size, within));
        let mut places = it.places(block, block, within).filter(|&at| it.is_free(at, block));
        match at {
            Some(at) => prop_assert!(places.any(|place| place == at)),
            None => prop_assert_eq!(places.next(), None),
        }

        let mut it = pair();
        let free = it.places(1, 1, within).filter(|&at| it.is_free(at, 1)).count();
        match it.space.alloc_scattered(size, GRANULE.into(), within) {
            Ok(parts) => {
                let sum: u128 = parts.iter().map(|part| part.1).sum();
                prop_assert!(sum == size && length <= free);
                for (start, size) in parts {
                    let at = (start / GRANULE - FIRST) as usize;
                    let length = (size / GRANULE as u128) as usize;
                    prop_assert!(it.inside(at, length, within) && it.is_free(at, length));
                }
            }
            Err(_) => prop_assert!(length > free),
        }
        it.space.check().unwrap();

        let mut it = pair();
        let window = it.space.cheapest_window(size, bytes, within).unwrap();
        let costs = it.places(length, align, within).filter_map(|at| Some((it.cost(at, length)?, at)));
        let expected = costs.min().map(|(cost, at)| (it.address(at), cost * GRANULE as u128));
        // The cheapest that is a place for the run is the first of the cheapest.
        prop_assert_eq!(window, expected);

        let mut it = pair();
        let plan = it.space.plan_run(size, bytes, within, Fit::Aligned);
        let run = it.space.alloc_run_moving(size, bytes, within, Fit::Aligned, |_| ());
        prop_assert_eq!(plan.ok().map(|plan| plan.0), run.as_ref().ok().copied());
        if let Some(at) = found(run) {
            prop_assert!(it.inside(at, length, within));
        }
        it.space.check().unwrap();

        let mut it = pair();
        let before: Vec<_> = it.space.allocations().collect();
        let (planned, moves) = it.space.plan_compaction(block_size, blocks, within, 1 << 64).unwrap();
        it.space.check().unwrap();
        prop_assert_eq!(it.space.allocations().collect::<Vec<_>>(), before);
        let mut moved = vec![];
        let made = it
            .space
            .compact(block_size, blocks, within, 1 << 64, |it| moved.push(*it))
            .unwrap();
        it.space.check().unwrap();
        prop_assert_eq!((planned, moves), (made, moved));
        let free = it.free_blocks(block, within).min(blocks);
        prop_assert_eq!(made, free, "blocks of {} granules", block);

        let it = pair();
        let obstacles = it.space.obstacles(within).unwrap();
        let mut stays: Vec<usize> = it
            .places(1, 1, within)
            .filter_map(|at| match it.granules[at] {
                In::Allocation(number) if !it.movable[number] => Some(number),
                _ => None,
            })
            .collect();
        stays.dedup();
        prop_assert_eq!(obstacles.iter().map(|row| row.count).sum::<u64>(), stays.len() as u64);
        it.space.check().unwrap();
    }
}

#[test]
fn a_window_that_ends_in_free_space_is_left() {
    // The search went on from the window's end for ever.
    let mut space = Space::new(0, 1 << 20, GRANULE).unwrap();
    assert_eq!(space.compact(65536, 1, Some((0, 20480)), 1 << 64, |_| ()), Ok(0));
    assert_eq!(space.compact(8192, 9, Some((4097, 20480)), 1 << 64, |_| ()), Ok(1));
}

#[test]
fn what_an_emptied_window_leaves_free_beside_it_counts() {
    // There is no home for what would leave the eighth block; the seventh takes it along.
    let (page, retired) = (5, 0);
    let mut pair = Pair::new(
        60,
        &[
            (0, 1, retired),
            (34, 3, page),
            (49, 1, page),
            (13, 4, retired),
            (38, 4, retired),
            (42, 1, retired),
            (51, 3, page),
            (19, 1, retired),
            (23, 4, page),
        ],
    );
    let size = 4 * GRANULE as u128;
    let planned = pair.space.plan_compaction(size, 8, None, 1 << 64).unwrap().0;
    assert_eq!(pair.space.compact(size, 8, None, 1 << 64, |_| ()), Ok(planned));
    assert_eq!(pair.free_blocks(4, None), planned);
}
