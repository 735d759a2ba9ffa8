//! Runs: the search is complete and takes what the fit prefers.
//!
//! A search that starts from whole free blocks of some order misses runs made of smaller ones, and
//! such misses show only in particular patterns of holes. So the first tests go through all
//! patterns of a space of twelve granules, with every size, alignment and fit, at places where the
//! tree has bounds; the others compare larger spaces with slower searches on random patterns.

mod common;

use common::Model;
use common::intervals::Intervals;
use common::random::Random;
use potad::{Error, Fit, Space};

const GRANULES: u64 = 12;
const FITS: [Fit; 2] = [Fit::First, Fit::Aligned];
/// In granules: powers of two up to more than the space, and others.
const ALIGNS: [u64; 9] = [1, 2, 4, 8, 16, 3, 5, 6, 12];

/// A space of twelve granules and which of them are occupied, a bit each.
struct Small {
    space: Space,
    /// Granule number of the first.
    base: u64,
    granule: u64,
    occupied: u64,
}

impl Small {
    fn new(base: u64, granule: u64) -> Self {
        let size = GRANULES as u128 * granule as u128;
        let space = Space::new(base * granule, size, granule).expect("a space");
        Small { space, base, granule, occupied: 0 }
    }

    fn address(&self, granule: u64) -> u64 {
        (self.base + granule) * self.granule
    }

    /// Calls `each` for all 4096 subsets of occupied granules, in the order of a Gray code: from
    /// one to the next a single granule is allocated or freed.
    fn all_subsets(mut self, mut each: impl FnMut(&mut Self)) {
        for step in 0..1u64 << GRANULES {
            if step > 0 {
                let granule = step.trailing_zeros() as u64;
                let address = self.address(granule);
                self.occupied ^= 1 << granule;
                let done = if self.occupied >> granule & 1 == 1 {
                    self.space.alloc_at(address, self.granule as u128).map(|_| ())
                } else {
                    self.space.free(address).map(|_| ())
                };
                done.expect("the granule was in the other state");
            }
            each(&mut self);
        }
    }

    /// The run of `length` granules at a multiple of `align` address units that `fit` prefers,
    /// inside granules `window`, by trying every start.
    fn brute_force(&self, length: u64, align: u128, window: (u64, u64), fit: Fit) -> Option<u64> {
        let class_max = length.next_power_of_two().ilog2();
        let mut best: Option<(u32, u64)> = None;
        for start in window.0..window.1 {
            let granules = ((1 << length) - 1) << start;
            if start + length > window.1
                || self.occupied & granules != 0
                || !(self.address(start) as u128).is_multiple_of(align)
            {
                continue;
            }
            let class = match fit {
                Fit::First => 0,
                // Granule 0 is a multiple of everything.
                Fit::Aligned => (self.base + start).trailing_zeros().min(class_max),
            };
            if best.is_none_or(|(found, _)| class > found) {
                best = Some((class, start));
            }
        }
        best.map(|(_, start)| self.address(start))
    }

    /// Compares one search; `window` is in granules of the space, from the first to the second.
    fn compare(&mut self, length: u64, align: u128, window: Option<(u64, u64)>, fit: Fit) {
        let expected = self.brute_force(length, align, window.unwrap_or((0, GRANULES)), fit);
        let size = length as u128 * self.granule as u128;
        let first = self.base as u128 * self.granule as u128;
        let within = window
            .map(|(low, high)| (self.address(low), first + high as u128 * self.granule as u128));
        let found = self.space.find_run(size, align, within, fit);
        let agrees = match &found {
            Ok(address) => Some(*address) == expected,
            Err(Error::OutOfSpace { .. }) => expected.is_none(),
            Err(_) => false,
        };
        assert!(
            agrees,
            "occupied {:#014b} of granules from {} on, granule {}: {length} granules aligned to \
             {align} in {window:?}, {fit:?}: {found:?}, expected {expected:?}",
            self.occupied, self.base, self.granule,
        );
    }
}

/// Granule numbers of the first granule: none of the alignments, some, all; across the bound of a
/// row and of nodes of several levels.
const BASES: [u64; 8] = [0, 1, 5, 12, 1000, (1 << 12) - 3, (1 << 24) - 6, (1 << 36) - 5];

fn every_size_alignment_and_fit(base: u64, granule: u64) {
    Small::new(base, granule).all_subsets(|small| {
        for length in 1..=GRANULES {
            for align in ALIGNS {
                for fit in FITS {
                    small.compare(length, align as u128 * granule as u128, None, fit);
                }
            }
        }
        small.space.check().expect("a search changes nothing");
    });
}

#[test]
fn all_subsets_of_twelve_granules_at_several_bases() {
    for base in BASES {
        every_size_alignment_and_fit(base, 4096);
    }
}

#[test]
fn all_subsets_of_the_last_twelve_granules_below_2_to_the_64() {
    for granule in [1, 4096] {
        let end = (1u128 << 64) / granule as u128;
        every_size_alignment_and_fit((end - GRANULES as u128) as u64, granule);
    }
}

/// All windows there are; one base whose granules have no common alignment.
#[test]
fn all_subsets_and_all_windows() {
    Small::new(1021, 1).all_subsets(|small| {
        for low in 0..GRANULES {
            for high in low..=GRANULES {
                for length in 1..=(high - low + 1).min(GRANULES) {
                    for (align, fit) in [(1, Fit::First), (3, Fit::Aligned), (4, Fit::Aligned)] {
                        small.compare(length, align, Some((low, high)), fit);
                    }
                }
            }
        }
    });
}

/// Alignments of which the granule is no divisor, and smaller ones.
#[test]
fn all_subsets_with_alignments_that_are_no_multiples_of_the_granule() {
    for base in [0, 1, 5] {
        Small::new(base, 4096).all_subsets(|small| {
            for length in 1..=GRANULES {
                for align in [1, 512, 6144, 1000, 12288, 4095, 10240] {
                    for fit in FITS {
                        small.compare(length, align, None, fit);
                    }
                }
            }
        });
    }
}

/// A run that is found is allocated there, exactly, whatever lies around it.
#[test]
fn what_is_found_is_what_is_allocated() {
    for base in [0, 5, (1 << 36) - 5] {
        Small::new(base, 512).all_subsets(|small| {
            for length in 1..=GRANULES {
                let size = length as u128 * 512;
                let found = small.space.find_run(size, 1024, None, Fit::Aligned);
                let made = small.space.alloc_run(size, 1024, None, Fit::Aligned);
                assert_eq!(made, found);
                let Ok(address) = made else { continue };
                let descriptor = small.space.lookup(address).expect("it is allocated");
                assert_eq!((descriptor.start, descriptor.size), (address, size));
                assert_eq!(small.space.free(address), Ok(size));
            }
            small.space.check().expect("freed again");
        });
    }
}

// ---- spaces of many rows and nodes ---------------------------------------------------------------

/// Punches holes into a full space until about `free` in 64 of it are free: lengths around those
/// of rows and nodes as well as small ones.
fn fill_with_holes(random: &mut Random, space: &mut Space, model: &mut Model, free: u64) {
    let (first, end) = (model.origin, model.end());
    let mut at = first;
    while at < end {
        let length = random.pick(&[1, 2, 3, 7, 8, 31, 33, 63, 64, 65, 130, 500, 4000]);
        let length = random.within(1..length + 1).min(end - at);
        if random.within(0..64) >= free {
            space.alloc_at(at, length as u128).expect("nothing is there yet");
            model.occupy(at, length);
        }
        at += length;
    }
}

#[test]
fn random_holes_over_rows_and_nodes() {
    let mut random = Random::new(1);
    for round in 0..240 {
        let first =
            random.pick(&[0, 1, 64, 4000, (1 << 18) - 2000, (1 << 24) - 4100, (1 << 36) - 9]);
        let granules = 64 * 64 + random.within(0..1500);
        let mut space = Space::new(first, granules as u128, 1).expect("a space");
        let mut model = Model::new(first, first + granules);
        model.add(first, granules);
        let free = random.pick(&[4, 16, 32, 48, 60]);
        fill_with_holes(&mut random, &mut space, &mut model, free);
        space.check().expect("filled");
        for _ in 0..60 {
            let length = match random.within(0..4) {
                0 => random.within(1..9),
                1 => random.within(1..140),
                2 => 1 << random.within(0..13),
                _ => random.within(1..granules + 2),
            };
            let align = match random.within(0..3) {
                0 => 1,
                1 => 1 << random.within(0..9),
                _ => random.within(1..100),
            };
            let window = random.one_in(3).then(|| {
                let low = first + random.within(0..granules);
                (low, low + random.within(0..granules))
            });
            let range = window.map_or(model.all(), |(low, high)| low..high);
            for fit in FITS {
                let expected = model.find_run(length, align, &range, fit);
                let within = window.map(|(low, high)| (low, high as u128));
                let found = space.find_run(length as u128, align as u128, within, fit);
                assert_eq!(
                    found.as_ref().ok().copied(),
                    expected,
                    "round {round}, granules from {first} on: {length} aligned to {align} in \
                     {window:?}, {fit:?}: {found:?}"
                );
            }
        }
    }
}

// ---- spaces that no model by granules could hold ------------------------------------------------

/// A number below `end`, most often at or next to a bound of nodes of some level.
fn place(random: &mut Random, end: u128) -> u128 {
    let bits = 6 * random.within(0..11) as u32;
    let unit = 1u128 << bits.min(127 - end.leading_zeros());
    let at = (random.next() as u128 % end) / unit * unit + random.within(0..5) as u128;
    at.saturating_sub(2).min(end - 1)
}

#[test]
fn few_allocations_in_large_spaces() {
    let mut random = Random::new(2);
    for round in 0..300 {
        // From 2^30 granules on up to all there can be.
        let bits = random.within(30..65) as u32;
        let extent =
            (1u128 << bits) - if random.one_in(2) { 0 } else { place(&mut random, 1 << 29) };
        let base = random.pick(&[0u64, 1, 77, (1 << 18) - 1, (1 << 36) - 5, 1 << 60]);
        let base = (base as u128).min((1 << 64) - extent);
        let mut space = Space::new(base as u64, extent, 1).expect("a space");
        let mut model = Intervals::new(base..base + extent);
        for _ in 0..random.within(0..24) {
            let start = place(&mut random, extent);
            let length = place(&mut random, extent - start) + 1;
            let length = length >> random.pick(&[0, 1, 6, 12, 24]);
            let range = base + start..base + start + length.max(1);
            let found = space.alloc_at(range.start as u64, range.end - range.start);
            assert_eq!(found.is_ok(), model.is_free(&range), "round {round}, {range:?}: {found:?}");
            if found.is_ok() {
                model.occupy(range);
            }
        }
        space.check().expect("filled");
        for _ in 0..40 {
            let length = place(&mut random, extent) + 1;
            let length = (length >> random.pick(&[0, 1, 6, 12, 24, 40])).max(1);
            let align = match random.within(0..4) {
                0 => 1,
                1 => 1u128 << random.within(0..65),
                2 => random.within(1..1000) as u128,
                _ => random.next() as u128 + 1,
            };
            let window = random.one_in(2).then(|| {
                let low = base + place(&mut random, extent);
                (low as u64, low + place(&mut random, (1 << 64) - low + 1))
            });
            let range = window.map_or(base..base + extent, |(low, high)| low as u128..high);
            for fit in FITS {
                let expected = model.find_run(length, align, &range, fit);
                let found = space.find_run(length, align, window, fit);
                assert_eq!(
                    found.as_ref().ok().map(|&at| at as u128),
                    expected,
                    "round {round}, {extent} granules from {base} on, live {:?}: {length} aligned \
                     to {align} in {window:?}, {fit:?}: {found:?}",
                    model.live
                );
            }
        }
    }
}
