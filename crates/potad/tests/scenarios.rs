//! Scenarios with names: fillings of a space that are the best, the worst and the usual for an
//! allocator of blocks, and what the other calls are for. Each says what it shows.
//!
//! Which of several free blocks is handed out is the space's choice, so none of these asks for an
//! address that the contract does not fix.

mod common;

use std::collections::BTreeSet;

use common::random::Random;
use potad::{Error, Fit, Reason, Space};

const KIB: u128 = 1 << 10;
const MIB: u128 = 1 << 20;
const GIB: u128 = 1 << 30;

/// Everything that can be seen of a space.
#[derive(Debug, PartialEq)]
struct Figures {
    spans: Vec<(u64, u128)>,
    retired: Vec<(u64, u128)>,
    allocations: Vec<(u64, u128)>,
    free: Vec<(u64, u128)>,
    blocks: Vec<(u128, u64)>,
    amounts: [u128; 5],
}

fn figures(space: &mut Space) -> Figures {
    space.check().expect("the recount agrees");
    Figures {
        spans: space.spans().collect::<Vec<_>>(),
        retired: space.retired().collect::<Vec<_>>(),
        allocations: space.allocations().map(|found| (found.start, found.size)).collect(),
        free: space.free_extents().collect(),
        blocks: space.free_blocks().collect::<Vec<_>>(),
        amounts: [
            space.size(),
            space.used(),
            space.available(),
            space.largest_free(),
            space.len() as u128,
        ],
    }
}

/// Why a call found no room: the reason, and what it says is available and the largest block.
fn refusal<T: std::fmt::Debug>(found: Result<T, Error>) -> (Reason, u128, u128) {
    match found {
        Err(Error::OutOfSpace { reason, available, largest, .. }) => (reason, available, largest),
        other => panic!("{other:?} where there is no room"),
    }
}

// ---- blocks --------------------------------------------------------------------------------------

/// The best case: one block of each order fills a space that is just their sum.
#[test]
fn optimistic() {
    let size = (1 << 11) - 1;
    let mut space = Space::new(0, size, 1).unwrap();
    let empty = figures(&mut space);
    // Largest first or smallest first makes no difference.
    for orders in [(0..11).collect::<Vec<u32>>(), (0..11).rev().collect()] {
        let blocks: Vec<u64> = orders
            .iter()
            .map(|order| space.alloc(1 << order).expect("each has its place"))
            .collect();
        assert_eq!((space.available(), space.largest_free()), (0, 0));
        assert_eq!(refusal(space.alloc(1)), (Reason::Exhausted, 0, 0));
        for block in blocks {
            space.free(block).unwrap();
        }
        assert_eq!(figures(&mut space), empty);
    }
}

/// Half, a quarter, an eighth and so on leave exactly one granule, and nothing larger.
#[test]
fn pessimistic() {
    let order_max = 16;
    let mut space = Space::new(0, 1 << order_max, 1).unwrap();
    let empty = figures(&mut space);
    let mut blocks = Vec::new();
    for order in (0..order_max).rev() {
        assert_eq!(refusal(space.alloc(2 << (order + 1))).0, Reason::Exhausted);
        blocks.push(space.alloc(1 << order).expect("half of what is left"));
        assert_eq!(space.largest_free(), 1 << order);
        assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(1 << order, 1)]);
    }
    blocks.push(space.alloc(1).expect("the last granule"));
    assert_eq!(refusal(space.alloc(1)), (Reason::Exhausted, 0, 0));
    // Whatever the order they come back in, they merge to what they were cut from.
    Random::new(4).shuffle(&mut blocks);
    for block in blocks {
        space.free(block).unwrap();
    }
    assert_eq!(figures(&mut space), empty);
}

/// Every other granule is in use: half the space is free and nothing but single granules can be
/// had. One free in the right place makes each next larger block.
#[test]
fn pathological() {
    let granules = 1u64 << 14;
    let mut space = Space::new(0, granules as u128, 1).unwrap();
    let all = space.alloc_many(1, granules as usize).unwrap();
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>().len() as u64, granules);
    let (odd, mut even): (Vec<u64>, Vec<u64>) = all.into_iter().partition(|at| at % 2 == 1);
    space.free_many(&odd).unwrap();
    let half = granules as u128 / 2;
    for size in [2, 3, half] {
        assert_eq!(refusal(space.alloc(size)), (Reason::Fragmented, half, 1));
        assert_eq!(refusal(space.alloc_run(size, 1, None, Fit::First)).0, Reason::Fragmented);
    }
    assert_eq!(space.unusable_free_index(2), Ok(1.0));
    assert_eq!(space.unusable_free_index(1), Ok(0.0));
    assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(1, half as u64)]);
    even.sort();
    for at in even {
        space.free(at).unwrap();
        // All below the next one is free, and the largest block that begins at 0 is the largest.
        assert_eq!(space.largest_free(), 1 << (at + 2).ilog2());
    }
    assert_eq!(space.largest_free(), granules as u128);
    space.check().unwrap();
}

/// Every refusal says why, and how much there is.
#[test]
fn exhausted_fragmented_occupied() {
    let mut space = Space::new(0, 64 * KIB, 4096).unwrap();
    let blocks = space.alloc_many(4096, 16).unwrap();
    assert_eq!(refusal(space.alloc(1)), (Reason::Exhausted, 0, 0));
    assert_eq!(refusal(space.alloc_run(1, 1, None, Fit::Aligned)).0, Reason::Exhausted);
    assert_eq!(refusal(space.alloc_many(4096, 1)).0, Reason::Exhausted);
    assert_eq!(refusal(space.alloc_scattered(1, 1, None)).0, Reason::Exhausted);
    // Granules 1 and 2 are free: enough for a block of two, but not where one may lie.
    assert!(blocks.contains(&4096) && blocks.contains(&8192));
    space.free_many(&[4096, 8192]).unwrap();
    assert_eq!(refusal(space.alloc(8192)), (Reason::Fragmented, 8192, 4096));
    assert_eq!(refusal(space.alloc_scattered(8192, 8192, None)).0, Reason::Fragmented);
    assert_eq!(refusal(space.alloc_many(4096, 3)).0, Reason::Exhausted);
    assert_eq!(refusal(space.alloc_at(0, 4096)).0, Reason::Occupied);
    assert_eq!(refusal(space.alloc_at(64 << 10, 4096)).0, Reason::Occupied);
    // A run needs no block.
    assert_eq!(space.alloc_run(8192, 1, None, Fit::Aligned), Ok(4096));
    let text = space.alloc(3 * 4096).unwrap_err().to_string();
    for word in ["12288", "exhausted", "0 available", "16384"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

/// A request is rounded up to a power of two, and 9 GiB are not to be had from 10 GiB that way,
/// though as a run or in several blocks they are.
#[test]
fn nine_sixteenths() {
    let mut space = Space::new(0, 10 * GIB, 4096).unwrap();
    let empty = figures(&mut space);
    assert_eq!(refusal(space.alloc(9 * GIB)), (Reason::Fragmented, 10 * GIB, 8 * GIB));
    let text = space.alloc(9 * GIB).unwrap_err().to_string();
    assert!(text.contains(&(16 * GIB).to_string()), "the size it would take: {text}");
    assert_eq!(figures(&mut space), empty);

    assert_eq!(space.alloc_run(9 * GIB, 1, None, Fit::Aligned), Ok(0));
    assert_eq!(space.available(), GIB);
    space.free(0).unwrap();
    let blocks = space.alloc_scattered(9 * GIB, 4096, None).unwrap();
    assert_eq!(blocks.iter().map(|block| block.1).collect::<Vec<_>>(), [8 * GIB, GIB]);
    for (start, _) in blocks {
        space.free(start).unwrap();
    }
    assert_eq!(figures(&mut space), empty);

    // Of 16 GiB it takes all, whether or not 7 of them are wanted.
    let mut space = Space::new(0, 16 * GIB, 4096).unwrap();
    let block = space.alloc(9 * GIB).unwrap();
    assert_eq!(space.lookup(block).unwrap().size, 16 * GIB);
    assert_eq!(space.available(), 0);
}

/// Exactly the range that is named, or nothing.
#[test]
fn exact_range() {
    let base = 3 << 20;
    let mut space = Space::new(base, 5 * MIB, 4096).unwrap();
    let (first, last) = (base, base + 5 * (1 << 20) - 4096);
    for at in [first, last] {
        assert_eq!(space.alloc_at(at, 4096), Ok(at));
        assert_eq!(refusal(space.alloc_at(at, 4096)).0, Reason::Occupied);
    }
    // Between them, no more and no less, over bounds of rows and blocks alike.
    let rest = 5 * MIB - 2 * 4096;
    for too_far in [(first, rest), (first + 4096, rest + 4096)] {
        let before = figures(&mut space);
        assert_eq!(refusal(space.alloc_at(too_far.0, too_far.1)).0, Reason::Occupied);
        assert_eq!(figures(&mut space), before);
    }
    assert_eq!(space.alloc_at(first + 4096, rest), Ok(first + 4096));
    assert_eq!(space.available(), 0);
    assert_eq!(space.free(first + 4096), Ok(rest));
    assert_eq!(space.free_extents().collect::<Vec<_>>(), [(first + 4096, rest)]);
}

/// Alignment is not size: a small run at a large alignment takes nothing but itself.
#[test]
fn alignment_larger_than_size() {
    let mut space = Space::new(4096, 64 * MIB, 4096).unwrap();
    let mut runs = Vec::new();
    for i in 1..=63u64 {
        let run = space.alloc_run(12 * KIB, MIB, None, Fit::Aligned).expect("63 of them fit");
        runs.push(run);
        assert_eq!(space.lookup(run).unwrap().size, 12 * KIB);
        assert_eq!(space.len(), i);
    }
    runs.sort();
    assert_eq!(runs, (1..64).map(|i| i << 20).collect::<Vec<u64>>());
    // Of the last multiple of 1 MiB there is one granule only.
    assert_eq!(refusal(space.alloc_run(12 * KIB, MIB, None, Fit::Aligned)).0, Reason::Fragmented);
    assert_eq!(space.used(), 63 * 12 * KIB);
    // What lies between them is still to be had.
    let above = Some((1 << 20, 1 << 64));
    assert_eq!(space.alloc_run(MIB - 12 * KIB, 1, above, Fit::First), Ok((1 << 20) + (12 << 10)));
    // Alignments that are no powers of two, and one above every address but 0.
    assert_eq!(space.alloc_run(4096, 12 * KIB, None, Fit::First), Ok(12 << 10));
    assert_eq!(refusal(space.alloc_run(4096, 1 << 64, None, Fit::First)).0, Reason::Fragmented);
}

/// 8 MiB at 1 MiB: one whole block if there is one, else two halves, down to eight of 1 MiB.
#[test]
fn the_aligned_fit_breaks_up_as_little_as_it_can() {
    // For each class of alignment: where a free stretch of 8 MiB lies that starts no better.
    let stretches =
        [(8 << 20, 16 << 20), (4 << 20, 36 << 20), (2 << 20, 50 << 20), (1 << 20, 65 << 20)];
    let mut space = Space::new(0, 96 * MIB, 4096).unwrap();
    let taken = space.alloc_run(96 * MIB, 1, None, Fit::Aligned).unwrap();
    for (_, start) in stretches {
        space.free_range(start, 8 * MIB).unwrap();
    }
    assert_eq!(taken, 0);
    for (align, start) in stretches {
        let run = space.alloc_run(8 * MIB, MIB, None, Fit::Aligned).unwrap();
        assert_eq!((run, run % align), (start, 0));
    }
    assert_eq!(refusal(space.alloc_run(8 * MIB, MIB, None, Fit::Aligned)).0, Reason::Exhausted);
}

/// Nothing is ever handed out that lies across or in a hole between spans.
#[test]
fn spans_with_holes() {
    let mut space = Space::new(0, MIB, 4096).unwrap();
    space.add(3 << 20, MIB).unwrap();
    space.add((1 << 40) + 4096, 3 * MIB).unwrap();
    assert_eq!(space.size(), 5 * MIB);
    assert_eq!(space.largest_free(), MIB);
    // Enough, but not in one piece.
    assert_eq!(refusal(space.alloc(2 * MIB)), (Reason::Fragmented, 5 * MIB, MIB));
    assert_eq!(space.alloc_run(3 * MIB, 1, None, Fit::Aligned), Ok((1 << 40) + 4096));
    assert_eq!(refusal(space.alloc_run(MIB + 4096, 1, None, Fit::First)).0, Reason::Fragmented);
    for (at, size) in [((1 << 20) - 4096, 8192), (1 << 20, 4096), ((3 << 20) - 4096, 8192)] {
        assert_eq!(refusal(space.alloc_at(at, size)).0, Reason::Occupied);
    }
    let singles = space.alloc_many(4096, 512).expect("both of the first spans, in full");
    assert!(singles.iter().all(|&at| at < 1 << 20 || (3 << 20..4 << 20).contains(&at)));
    // A span that fills the hole joins its neighbours, and a run may go through all three.
    space.free_many(&singles).unwrap();
    space.add(1 << 20, 2 * MIB).unwrap();
    assert_eq!(space.spans().collect::<Vec<_>>(), [(0, 4 * MIB), ((1 << 40) + 4096, 3 * MIB)]);
    assert_eq!(space.alloc(4 * MIB), Ok(0));
    space.check().unwrap();
}

// ---- several at once, all or nothing -------------------------------------------------------------

/// Two spaces with the same past: some blocks live, some freed lately, some granules retired.
fn twins() -> (Space, Space, Vec<u64>) {
    let make = || {
        let mut space = Space::new(0, 64 * MIB, 4096).unwrap();
        let mut live = space.alloc_many(4096, 500).unwrap();
        for (order, count) in [(1, 200), (3, 100), (5, 40), (7, 10)] {
            live.extend(space.alloc_many(4096 << order, count).unwrap());
        }
        live.push(space.alloc_run(4096 * 777, 1, None, Fit::First).unwrap());
        Random::new(5).shuffle(&mut live);
        for address in live.drain(..400) {
            space.free(address).unwrap();
        }
        // One in use, one free.
        space.retire(live[0], 4096).unwrap();
        space.retire((64 << 20) - 4096, 4096).unwrap();
        for address in live.drain(100..130) {
            space.free(address).unwrap();
        }
        (space, live)
    };
    let ((one, live), (other, _)) = (make(), make());
    (one, other, live)
}

/// One wrong address among many: nothing is freed, and the first wrong one is named.
#[test]
fn free_many_undoes_what_it_freed() {
    let wrong = |live: &[u64]| {
        let not_live = (0..).map(|i| i * 4096).find(|at| !live.contains(at)).unwrap();
        // Repeated, free, inside an allocation's granule, and outside the space.
        [live[0], not_live, live[5] + 1, 1 << 40]
    };
    for which in 0..4 {
        for count in [1, 17, 31, 32, 33, 200] {
            let (mut space, mut untouched, live) = twins();
            let mut addresses = live[..count].to_vec();
            let bad = wrong(&live)[which];
            addresses.push(bad);
            // A second wrong one, which is not what is named.
            addresses.push(1 << 41);
            match space.free_many(&addresses) {
                Err(Error::NotAllocated { address, .. }) => assert_eq!(address, bad),
                other => panic!("{other:?}"),
            }
            assert_eq!(figures(&mut space), figures(&mut untouched));
            // Nothing that is live again is handed out a second time.
            let taken = space.alloc_many(4096, 300).unwrap();
            assert!(taken.iter().all(|at| !live.contains(at)));
            space.free_many(&taken).unwrap();
            space.free_many(&live).expect("all of them are still there");
            space.check().unwrap();
        }
    }
}

/// One block more than there are: none is allocated.
#[test]
fn alloc_many_undoes_what_it_allocated() {
    for order in [0, 2, 5, 6, 9, 12] {
        let (mut space, mut untouched, _) = twins();
        let size = 4096u128 << order;
        let blocks = untouched.free_blocks().collect::<Vec<_>>();
        let possible: u128 =
            blocks.iter().filter(|b| b.0 >= size).map(|b| b.0 / size * b.1 as u128).sum();
        assert!(possible > 0);
        let refused = refusal(space.alloc_many(size, possible as usize + 1));
        assert_eq!(refused.1, untouched.available());
        assert_eq!(figures(&mut space), figures(&mut untouched));
        let all = space.alloc_many(size, possible as usize).expect("just as many as there are");
        assert!(all.iter().all(|at| at % size as u64 == 0));
        assert!(space.largest_free() < size);
        space.free_many(&all).unwrap();
        assert_eq!(figures(&mut space), figures(&mut untouched));
    }
}

/// Asked for more than blocks of the least size come to, nothing is allocated.
#[test]
fn alloc_scattered_undoes_what_it_allocated() {
    let (mut space, mut untouched, _) = twins();
    for min_block in [8 * KIB, 64 * KIB, MIB] {
        let usable = untouched
            .free_blocks()
            .filter(|b| b.0 >= min_block)
            .map(|b| b.0 * b.1 as u128)
            .sum::<u128>();
        assert_eq!(
            refusal(space.alloc_scattered(usable + 1, min_block, None)).1,
            untouched.available()
        );
        assert_eq!(figures(&mut space), figures(&mut untouched));
        let blocks = space.alloc_scattered(usable, min_block, None).expect("all there is");
        assert!(blocks.iter().all(|block| block.1 >= min_block));
        for (start, _) in blocks {
            space.free(start).unwrap();
        }
        assert_eq!(figures(&mut space), figures(&mut untouched));
    }
}

/// In as few blocks as possible: all ways to cover an amount with free blocks of a space of twelve
/// granules, for all subsets of occupied ones.
#[test]
fn alloc_scattered_takes_the_fewest_blocks() {
    const GRANULES: usize = 12;
    let base = 5;
    let is_free = |occupied: u32, start: usize, size: usize| {
        start + size <= GRANULES
            && (base + start).is_multiple_of(size)
            && occupied >> start & ((1 << size) - 1) == 0
    };
    let mut space = Space::new(base as u64, GRANULES as u128, 1).unwrap();
    for occupied in 0u32..1 << GRANULES {
        for at in (0..GRANULES).filter(|at| occupied >> at & 1 == 1) {
            space.alloc_at((base + at) as u64, 1).unwrap();
        }
        for smallest in [1, 2, 4] {
            // fewest[at][amount]: blocks for `amount` out of the granules from `at` on.
            let mut fewest = [[None; GRANULES + 1]; GRANULES + 1];
            fewest[GRANULES][0] = Some(0);
            for at in (0..GRANULES).rev() {
                for amount in 0..=GRANULES {
                    let skipped = fewest[at + 1][amount];
                    let taken = [1, 2, 4, 8]
                        .into_iter()
                        .filter(|&size| size >= smallest && size <= amount)
                        .filter(|&size| is_free(occupied, at, size))
                        .filter_map(|size| fewest[at + size][amount - size].map(|n: usize| n + 1));
                    fewest[at][amount] = taken.chain(skipped).min();
                }
            }
            for amount in 1..=GRANULES {
                let rounded = amount.next_multiple_of(smallest);
                let expected = fewest[0].get(rounded).copied().flatten();
                let found = space.alloc_scattered(amount as u128, smallest as u128, None);
                let blocks = found.as_ref().ok().map(|blocks| blocks.len());
                assert_eq!(
                    blocks, expected,
                    "occupied {occupied:#014b}: {amount} in blocks of {smallest}: {found:?}"
                );
                for (start, size) in found.into_iter().flatten() {
                    let start = start as usize - base;
                    assert!(size >= smallest as u128 && is_free(occupied, start, size as usize));
                    space.free((base + start) as u64).unwrap();
                }
            }
        }
        let live: Vec<u64> = space.allocations().map(|found| found.start).collect();
        assert_eq!(live.len(), occupied.count_ones() as usize);
        space.free_many(&live).unwrap();
        space.check().unwrap();
    }
}
