//! Retired granules: out of service at once where free, when freed where in use, and never handed
//! out by any call until they are restored.

mod common;

use common::random::Random;
use potad::{Error, Fit, Space};

/// Everything the calls that allocate would hand out now: all of the space, several times over,
/// each time in another way.
fn everything_handed_out(space: &mut Space) -> Vec<(u64, u128)> {
    let granule = space.granule() as u128;
    let before = space.used();
    let mut seen = Vec::new();
    let mut round = |space: &mut Space, next: &mut dyn FnMut(&mut Space) -> Vec<(u64, u128)>| {
        let mut taken = Vec::new();
        loop {
            let blocks = next(space);
            if blocks.is_empty() {
                break;
            }
            taken.extend(blocks);
        }
        assert_eq!(space.available(), 0, "all that is free is handed out in the end");
        let starts: Vec<u64> = taken.iter().map(|block| block.0).collect();
        space.free_many(&starts).unwrap();
        assert_eq!(space.used(), before);
        seen.extend(taken);
    };
    round(space, &mut |space| space.alloc(granule).map(|at| (at, granule)).into_iter().collect());
    round(space, &mut |space| {
        let size = space.largest_free();
        if size == 0 { vec![] } else { vec![(space.alloc(size).unwrap(), size)] }
    });
    round(space, &mut |space| {
        let count = (space.available() / granule) as usize;
        space.alloc_many(granule, count).unwrap().into_iter().map(|at| (at, granule)).collect()
    });
    round(space, &mut |space| match space.available() {
        0 => vec![],
        all => space.alloc_scattered(all, granule, None).unwrap(),
    });
    round(space, &mut |space| {
        // The longest run there is.
        let longest = space.free_extents().map(|extent| extent.1).max();
        let run = |size| (space.alloc_run(size, 1, None, Fit::Aligned).unwrap(), size);
        longest.map(run).into_iter().collect()
    });
    seen
}

/// Whether any of `blocks` holds any part of the range.
fn holds(blocks: &[(u64, u128)], start: u64, size: u128) -> bool {
    let end = start as u128 + size;
    blocks.iter().any(|&(at, size)| (at as u128) < end && at as u128 + size > start as u128)
}

/// Retires, sees that nothing hands it out, restores, and sees that something does.
fn out_of_service_until_restored(space: &mut Space, start: u64, size: u128) {
    assert!(!holds(&everything_handed_out(space), start, size), "{start:#x} is out of service");
    assert!(matches!(
        space.alloc_at(start, space.granule() as u128),
        Err(Error::OutOfSpace { .. })
    ));
    assert_eq!(space.lookup(start), None);
    assert_eq!(space.retired().collect::<Vec<_>>(), [(start, size)]);
    assert_eq!(space.used() + space.available() + size, space.size());
    space.check().unwrap();
    space.restore(start, size).unwrap();
    assert_eq!(space.retired().collect::<Vec<_>>(), []);
    assert_eq!(space.used() + space.available(), space.size());
    assert!(holds(&everything_handed_out(space), start, size), "{start:#x} is in service again");
    space.check().unwrap();
}

const SIZE: u128 = 4 << 20;

#[test]
fn inside_a_free_block() {
    let mut space = Space::new(0, SIZE, 4096).unwrap();
    let blocks = space.free_blocks().collect::<Vec<_>>();
    for start in [0, 4096 * 37, (4 << 20) - 4096] {
        space.retire(start, 4096).unwrap();
        assert!(space.largest_free() <= SIZE / 2);
        out_of_service_until_restored(&mut space, start, 4096);
        assert_eq!(space.free_blocks().collect::<Vec<_>>(), blocks);
    }
}

#[test]
fn inside_a_live_block() {
    for size in [4096, 8192, 4096 * 64, 1 << 20] {
        let mut space = Space::new(0, SIZE, 4096).unwrap();
        let block = space.alloc(size).unwrap();
        let start = block + ((size as u64 / 2) & !4095);
        space.retire(start, 4096).unwrap();
        // Nothing happens to who holds it, until it is freed.
        assert_eq!((space.used(), space.available()), (size, SIZE - size));
        assert_eq!(space.lookup(start).unwrap().start, block);
        assert_eq!(space.free(block), Ok(size));
        assert_eq!((space.used(), space.available()), (0, SIZE - 4096));
        out_of_service_until_restored(&mut space, start, 4096);
    }
}

/// What was freed last is what an allocator would most like to hand out next.
#[test]
fn inside_a_block_that_was_just_freed() {
    for (order, count) in (0..7).flat_map(|order| [(order, 1), (order, 4), (order, 40)]) {
        let mut space = Space::new(0, 64 << 20, 4096).unwrap();
        let size = 4096u128 << order;
        let blocks = space.alloc_many(size, count).unwrap();
        for &block in &blocks {
            space.free(block).unwrap();
        }
        let newest = blocks[count - 1];
        space.retire(newest + (size as u64 - 4096), 4096).unwrap();
        out_of_service_until_restored(&mut space, newest + (size as u64 - 4096), 4096);
    }
}

/// Freed in every way there is: by itself, with others, in part.
#[test]
fn in_use_and_freed_in_every_way() {
    type Free = fn(&mut Space, u64, &[u64]);
    let ways: [Free; 4] = [
        |space, block, _| assert_eq!(space.free(block), Ok(32768)),
        |space, _, all| space.free_many(all).unwrap(),
        |space, block, _| space.free_range(block, 32768).unwrap(),
        |space, block, _| {
            // In pieces, the retired granule neither first nor last of its own.
            space.split(block, 8192).unwrap();
            space.free(block).unwrap();
            space.free_range(block + 8192, 16384).unwrap();
            space.free(block + 24576).unwrap();
        },
    ];
    for free in ways {
        let mut space = Space::new(0, SIZE, 4096).unwrap();
        let all = space.alloc_many(32768, 20).unwrap();
        let start = all[7] + 12288;
        space.retire(start, 4096).unwrap();
        free(&mut space, all[7], &all);
        space.check().unwrap();
        out_of_service_until_restored(&mut space, start, 4096);
    }
}

/// What was undone was never withdrawn.
#[test]
fn in_use_and_freed_in_vain() {
    let mut space = Space::new(0, SIZE, 4096).unwrap();
    let all = space.alloc_many(4096, 20).unwrap();
    space.retire(all[3], 4096).unwrap();
    let wrong: Vec<u64> = all.iter().copied().chain([1 << 40]).collect();
    assert!(matches!(space.free_many(&wrong), Err(Error::NotAllocated { .. })));
    assert_eq!((space.used(), space.len()), (20 * 4096, 20));
    assert_eq!(space.available(), SIZE - 20 * 4096);
    space.check().unwrap();
    space.free_many(&all).unwrap();
    out_of_service_until_restored(&mut space, all[3], 4096);
}

/// To take a span away and add it again does not bring a bad granule back.
#[test]
fn over_remove_and_add() {
    let mut space = Space::new(0, SIZE, 4096).unwrap();
    space.retire(40960, 8192).unwrap();
    space.remove(0, SIZE / 2).unwrap();
    assert_eq!((space.size(), space.available()), (SIZE / 2, SIZE / 2));
    assert_eq!(space.retired().collect::<Vec<_>>(), []);
    assert!(matches!(space.restore(40960, 8192), Err(Error::Argument { name: "start", .. })));
    space.add(0, SIZE / 4).unwrap();
    space.add(SIZE as u64 / 4, SIZE / 4).unwrap();
    assert_eq!(space.available(), SIZE - 8192);
    out_of_service_until_restored(&mut space, 40960, 8192);
}

/// Granules retired here and there while blocks come and go, in a space of several nodes.
#[test]
fn while_blocks_come_and_go() {
    let mut random = Random::new(6);
    let granules = 20_000;
    let mut space = Space::new(0, granules, 1).unwrap();
    let mut retired = std::collections::BTreeSet::new();
    let mut live: Vec<(u64, u128)> = Vec::new();
    for step in 0..60_000 {
        match random.within(0..20) {
            0 => {
                let at = random.within(0..granules as u64);
                if retired.len() < 600 && retired.insert(at) {
                    space.retire(at, 1).unwrap();
                }
            }
            1 => {
                if let Some(&at) = retired.range(random.within(0..granules as u64)..).next() {
                    retired.remove(&at);
                    space.restore(at, 1).unwrap();
                }
            }
            2..=11 => {
                let size = 1u128 << random.within(0..8);
                let Ok(block) = space.alloc(size) else { continue };
                let bad = retired.range(block..block + size as u64).next();
                assert_eq!(bad, None, "step {step}: {size} at {block}");
                live.push((block, size));
            }
            _ if live.is_empty() => {}
            _ => {
                let victim = random.within(0..live.len() as u64) as usize;
                let (block, size) = live.swap_remove(victim);
                assert_eq!(space.free(block), Ok(size));
            }
        }
        if step % 1000 == 0 {
            space.check().unwrap();
        }
    }
    assert!(retired.len() > 100);
    for (block, _) in live {
        space.free(block).unwrap();
    }
    let bad: u128 = space.retired().collect::<Vec<_>>().iter().map(|range| range.1).sum();
    assert_eq!(bad, retired.len() as u128);
    assert_eq!(space.available(), granules - bad);
    space.check().unwrap();
}
