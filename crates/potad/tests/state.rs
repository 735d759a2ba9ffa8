//! What a space keeps: a function of what is allocated, not of how it came to be, and no more of it
//! than that takes.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use common::random::Random;
use potad::{Fit, Probe, Space};

/// The same allocations made anew, one by one at their places.
fn rebuilt(space: &Space, base: u64, size: u128) -> Space {
    let mut fresh = Space::new(base, size, space.granule()).unwrap();
    for found in space.allocations() {
        assert_eq!(fresh.alloc_at(found.start, found.size), Ok(found.start));
    }
    fresh
}

/// Whether two spaces say the same of themselves and answer alike.
fn alike(one: &mut Space, other: &mut Space) {
    one.check().unwrap();
    other.check().unwrap();
    let allocations =
        |space: &Space| space.allocations().map(|a| (a.start, a.size)).collect::<Vec<_>>();
    assert_eq!(allocations(one), allocations(other));
    assert_eq!(one.free_blocks().collect::<Vec<_>>(), other.free_blocks().collect::<Vec<_>>());
    assert_eq!(one.free_extents().collect::<Vec<_>>(), other.free_extents().collect::<Vec<_>>());
    assert_eq!(
        (one.len(), one.used(), one.available()),
        (other.len(), other.used(), other.available())
    );
    let granule = one.granule() as u128;
    for size in (0..40).map(|order| granule << order) {
        for fit in [Fit::First, Fit::Aligned] {
            for size in [size - size / 2 + granule, size, size * 3] {
                let found = one.find_run(size, 1, None, fit).ok();
                assert_eq!(found, other.find_run(size, 1, None, fit).ok(), "{size}, {fit:?}");
            }
        }
        let possible = |space: &mut Space| {
            let block = space.alloc(size).ok();
            block.map(|block| space.free(block).unwrap())
        };
        assert_eq!(possible(one), possible(other), "a block of {size}");
    }
    one.check().unwrap();
    other.check().unwrap();
}

/// Cutting allocations up and freeing parts of them leaves the state that making what is left of
/// them would, wherever the cuts lie: in rows, at their bounds and at those of nodes.
#[test]
fn splitting_and_freeing_parts_leaves_no_trace() {
    let mut random = Random::new(7);
    // The upper end of a section, several of them, and what lies between.
    for (base, granules) in [(0, 5_000u64), ((1 << 18) - 9_000, 18_000), (3 << 24, 3 << 20)] {
        for _ in 0..12 {
            let mut space = Space::new(base, granules as u128, 1).unwrap();
            while space.available() > granules as u128 / 5 {
                let length = (1 + random.next() % (granules / 3)) >> random.within(0..12);
                let fit = random.pick(&[Fit::First, Fit::Aligned]);
                if space.alloc_run(length.max(1) as u128, 1, None, fit).is_err() {
                    break;
                }
            }
            for _ in 0..100 {
                // A bound of some node inside an allocation, or anywhere.
                let unit = random.pick(&[1, 1, 64, 4096, 1 << 18]);
                let at = base + random.within(0..granules) / unit * unit;
                let Some(found) = space.lookup(at.max(base)) else { continue };
                let end = found.start + found.size as u64;
                match random.within(0..3) {
                    0 if at > found.start => {
                        space.split(found.start, (at - found.start) as u128).unwrap();
                    }
                    1 if at >= found.start && at < end => {
                        let length = random.within(1..end - at + 1) / unit * unit;
                        space.free_range(at, length.clamp(1, end - at) as u128).unwrap();
                    }
                    _ if random.one_in(4) => {
                        // Over several allocations, if they adjoin.
                        let last = random.within(at..base + granules);
                        let _ = space.free_range(at, (last - at + 1) as u128);
                    }
                    _ => {}
                }
            }
            let mut fresh = rebuilt(&space, base, granules as u128);
            alike(&mut space, &mut fresh);
        }
    }
}

/// Blocks that come and go leave no trace either.
#[test]
fn churn_leaves_no_trace() {
    let mut random = Random::new(8);
    let mut space = Space::new(1 << 30, 1 << 30, 4096).unwrap();
    let mut live = Vec::new();
    for round in 0..20_000 {
        if space.used() < (3 << 28) && !random.one_in(3) {
            let size = 4096u128 << (random.next().trailing_zeros().min(9));
            live.push(space.alloc(size).expect("a quarter is free"));
        } else if !live.is_empty() {
            let victim = random.within(0..live.len() as u64) as usize;
            space.free(live.swap_remove(victim)).unwrap();
        }
        if round % 5_000 == 4_999 {
            let mut fresh = rebuilt(&space, 1 << 30, 1 << 30);
            alike(&mut space, &mut fresh);
        }
    }
    assert!(live.len() > 1_000);
}

/// What describes a place goes back when the place is free again, so metadata follows what is in
/// use at a time, not what ever was.
#[test]
fn metadata_is_used_again() {
    let mut random = Random::new(9);
    let mut space = Space::new(0, 1 << 60, 1).unwrap();
    let mut live = std::collections::VecDeque::new();
    for _ in 0..100_000 {
        let at = random.within(0..1 << 60);
        space.alloc_at(at, 1).expect("nothing is there, or it would be a wonder");
        live.push_back(at);
        if live.len() > 8 {
            space.free(live.pop_front().unwrap()).unwrap();
        }
    }
    // For each of nine places a section and the nodes above it, and one more of each.
    let bytes = space.metadata_bytes();
    assert!(bytes < 1 << 20, "{bytes}");
    for at in live {
        space.free(at).unwrap();
    }
    assert!(space.free_blocks().eq(Space::new(0, 1 << 60, 1).unwrap().free_blocks()));
    space.check().unwrap();
    assert_eq!(space.metadata_bytes(), bytes);
}

/// So do runs with both ends in the middle of nowhere.
#[test]
fn metadata_of_runs_is_used_again() {
    let mut random = Random::new(10);
    let mut space = Space::new(0, 1 << 60, 1).unwrap();
    for _ in 0..20_000 {
        let (one, other) = (random.within(0..1 << 60), random.within(0..1 << 60));
        let (first, last) = (one.min(other), one.max(other));
        space.alloc_at(first, (last - first) as u128 + 1).unwrap();
        assert_eq!(space.free(first), Ok((last - first) as u128 + 1));
    }
    let bytes = space.metadata_bytes();
    assert!(bytes < 512 << 10, "{bytes}");
    space.check().unwrap();
}

/// Counts how often metadata is touched.
#[derive(Clone, Default)]
struct Count(Rc<Cell<u64>>);

impl Probe for Count {
    fn touch(&self, address: usize, bytes: usize) {
        assert!(address != 0 && bytes != 0);
        self.0.set(self.0.get() + 1);
    }
}

/// Making a space costs the same few words, whatever its size; so does taking the largest block of
/// it, and giving that back.
#[test]
fn a_space_of_any_size_costs_the_same() {
    // Size, granule, and bounds of accesses and bytes to make it.
    let spaces = [
        (0, 1 << 20, 4096, 100, 8 << 10),
        (0, 1 << 30, 4096, 100, 8 << 10),
        (0, 3 << 39, 512, 100, 8 << 10),
        (0, 1 << 40, 1, 100, 8 << 10),
        (0, 1 << 64, 4096, 100, 8 << 10),
        (0, 1 << 64, 1, 100, 8 << 10),
        // The bounds of this one lie within nodes of every level.
        (1, (1 << 64) - 2, 1, 10_000, 256 << 10),
    ];
    for (base, size, granule, accesses_max, bytes_max) in spaces {
        let count = Count::default();
        let mut space = Space::with_probe(base, size, granule, count.clone()).unwrap();
        let (accesses, bytes) = (count.0.replace(0), space.metadata_bytes());
        assert!(accesses < accesses_max, "{size} of {granule}: {accesses} accesses");
        assert!(bytes < bytes_max, "{size} of {granule}: {bytes} bytes");
        let largest = space.largest_free();
        let block = space.alloc(largest).unwrap();
        let taken = count.0.replace(0);
        space.free(block).unwrap();
        let freed = count.0.get();
        for accesses in [taken, freed] {
            assert!(accesses > 0, "the probe sees both");
            // At most the words of a node for each level there can be.
            assert!(accesses < 10 * 64, "{largest} of {granule}: {taken} and {freed} accesses");
        }
    }
}

/// Taking granules out of service, freeing them and putting them back costs the same however much
/// is in use around them or retired already.
#[test]
fn retiring_costs_the_same_however_much_is_retired() {
    const GRANULES: u64 = 1 << 16;
    let count = Rc::new(Cell::new(0));
    let mut space = Space::with_probe(0, GRANULES as u128, 1, Count(count.clone())).unwrap();
    for _ in 0..GRANULES {
        space.alloc(1).unwrap();
    }
    let mut random = Random::new(11);
    let cost = |what: &str, space: &mut Space<Count>, call: &dyn Fn(&mut Space<Count>)| {
        let before = count.get();
        call(space);
        let cost = count.get() - before;
        assert!(cost < 1000, "{what}: {cost} accesses");
    };
    let mut retired = Vec::new();
    for _ in 0..300 {
        let at = random.within(0..GRANULES);
        cost("retire", &mut space, &|space| space.retire(at, 1).unwrap());
        retired.push(at);
        let at = random.within(0..GRANULES);
        if space.lookup(at).is_some() {
            cost("free_range", &mut space, &|space| space.free_range(at, 1).unwrap());
        }
    }
    space.check().unwrap();
    for at in retired {
        if space.lookup(at).is_some() {
            cost("free", &mut space, &|space| assert!(space.free(at).is_ok()));
        }
        cost("restore", &mut space, &|space| space.restore(at, 1).unwrap());
    }
    space.check().unwrap();
}
