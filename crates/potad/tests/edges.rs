//! The ends of everything: of sizes, of addresses, of the space, and of what a call accepts.

mod common;

use common::random::Random;
use potad::{Error, Fit, Space};

const END: u128 = 1 << 64;
/// The granules most in use, the smallest and the largest.
const GRANULES: [u64; 5] = [1, 512, 4096, 1 << 40, 1 << 63];

fn is_out_of_space<T: std::fmt::Debug>(found: Result<T, Error>) {
    assert!(matches!(found, Err(Error::OutOfSpace { .. })), "{found:?}");
}

/// All of a space in blocks, each as large as the largest one left, and back again: what is handed
/// out is aligned and disjoint and is all there is.
fn drain_and_fill(space: &mut Space) {
    space.check().unwrap();
    let (before, size) = (space.free_blocks().collect::<Vec<_>>(), space.available());
    let mut taken = Vec::new();
    while space.available() > 0 {
        let largest = space.largest_free();
        assert!(largest > 0);
        if let Some(double) = largest.checked_mul(2) {
            is_out_of_space(space.alloc(double));
        }
        let block = space.alloc(largest).expect("the largest block is there");
        assert_eq!(block as u128 % largest, 0);
        assert_eq!(space.lookup(block).unwrap().size, largest);
        taken.push((block, largest));
    }
    is_out_of_space(space.alloc(1));
    assert_eq!((space.used(), space.largest_free()), (size, 0));
    taken.sort();
    assert!(taken.windows(2).all(|pair| pair[0].0 as u128 + pair[0].1 <= pair[1].0 as u128));
    assert_eq!(taken.iter().map(|block| block.1).sum::<u128>(), size);
    space.check().unwrap();
    for (block, size) in taken {
        assert_eq!(space.free(block), Ok(size));
    }
    assert_eq!(space.free_blocks().collect::<Vec<_>>(), before);
    space.check().unwrap();
}

// ---- sizes and places of spaces ------------------------------------------------------------------

#[test]
fn one_granule() {
    for granule in GRANULES {
        let last = (END - granule as u128) as u64;
        let somewhere = (0x5555_5555_5555_5555 & !(granule - 1)).min(last);
        for base in [0, granule.min(last), somewhere, last] {
            let size = granule as u128;
            let mut space = Space::new(base, size, granule).unwrap();
            drain_and_fill(&mut space);
            for align in [1, size, 2 * size, END] {
                let found = space.alloc_run(1, align.min(END), None, Fit::Aligned);
                if (base as u128).is_multiple_of(align) {
                    assert_eq!(found, Ok(base), "aligned to {align}");
                    assert_eq!(space.free(base), Ok(size));
                } else {
                    is_out_of_space(found);
                }
            }
            assert_eq!(space.alloc_at(base, size), Ok(base));
            is_out_of_space(space.alloc_at(base, size));
            let end = base + (granule - 1);
            assert_eq!(space.lookup(end).map(|found| found.start), Some(base));
            assert_eq!(space.lookup(base.wrapping_sub(1)), None);
            assert_eq!(space.lookup(end.wrapping_add(1)), None);
            assert_eq!(
                space.next_allocation(end).map(|found| found.start),
                (granule == 1).then_some(base)
            );
            assert_eq!(space.allocations().count(), 1);
            assert_eq!(space.free_range(base, size), Ok(()));
            assert_eq!(space.alloc_scattered(1, 1, None), Ok(vec![(base, size)]));
            space.retire(base, size).unwrap();
            space.free(base).unwrap();
            assert_eq!((space.available(), space.largest_free()), (0, 0));
            space.restore(base, size).unwrap();
            space.remove(base, size).unwrap();
            assert_eq!((space.size(), space.available()), (0, 0));
            space.add(base, size).unwrap();
            drain_and_fill(&mut space);
        }
    }
}

/// Three times a power of two, one less than one, one more, and one, at bases that are multiples of
/// the size and at others.
#[test]
fn sizes_that_are_no_powers_of_two() {
    let mut random = Random::new(11);
    for granule in [1, 512, 4096] {
        for order in 0..52 {
            for granules in [3u128 << order, (1 << order) - 1, (1 << order) + 1, 1 << order] {
                let all = END / granule as u128;
                if granules == 0 || granules > all {
                    continue;
                }
                let random = random.next() as u128 % (all - granules + 1);
                let bases = [0, 1, granules, 3 << (order / 2), random, all - granules];
                for base in bases.into_iter().filter(|base| base + granules <= all) {
                    let (base, size) = (base as u64 * granule, granules * granule as u128);
                    let mut space = Space::new(base, size, granule).unwrap();
                    assert_eq!(space.available(), size);
                    assert_eq!(space.free_extents().collect::<Vec<_>>(), [(base, size)]);
                    let whole = space
                        .free_blocks()
                        .collect::<Vec<_>>()
                        .iter()
                        .map(|b| b.0 * b.1 as u128)
                        .sum::<u128>();
                    assert_eq!(whole, size);
                    drain_and_fill(&mut space);
                    assert_eq!(space.alloc_run(size, 1, None, Fit::Aligned), Ok(base));
                    is_out_of_space(space.alloc_run(1, 1, None, Fit::First));
                    assert_eq!(space.free(base), Ok(size));
                }
            }
        }
    }
}

/// Natural alignment is that of addresses, wherever the space begins.
#[test]
fn a_base_that_is_not_aligned_to_the_size() {
    for base in [512, 3 * 512, 0x7fff_fe00, 0xffff_ffff_0000_0200] {
        let mut space = Space::new(base, 1 << 30, 512).unwrap();
        for order in [0, 12, 20, 9, 16] {
            let block = space.alloc(512 << order).unwrap();
            assert_eq!(block % (512 << order), 0);
            assert!(block >= base && block - base < 1 << 30);
        }
        assert_eq!(space.used(), 512 * (1 + (1 << 9) + (1 << 12) + (1 << 16) + (1 << 20)));
        // As large as the space, a block does not lie in it, though a run does.
        let mut space = Space::new(base, 1 << 30, 512).unwrap();
        is_out_of_space(space.alloc(1 << 30));
        assert_eq!(space.alloc_run(1 << 30, 1, None, Fit::Aligned), Ok(base));
        space.check().unwrap();
    }
}

#[test]
fn an_end_of_exactly_2_to_the_64() {
    for granule in GRANULES {
        let unit = granule as u128;
        let most = (END / unit).min(5000);
        for granules in [1, most / 2 + 1, most, END / unit] {
            let size = granules * unit;
            let base = (END - size) as u64;
            let last = (END - unit) as u64;
            let mut space = Space::new(base, size, granule).unwrap();
            is_out_of_space(space.alloc_run(size + unit, 1, None, Fit::First));
            drain_and_fill(&mut space);
            assert_eq!(space.alloc_at(last, unit), Ok(last));
            assert_eq!(
                space.lookup(u64::MAX).map(|found| (found.start, found.size)),
                Some((last, unit))
            );
            assert_eq!(space.next_allocation(last).map(|found| found.start), Some(last));
            assert_eq!(space.allocations().count(), 1);
            assert_eq!(space.free_range(last, unit), Ok(()));
            assert_eq!(space.free_extents().collect::<Vec<_>>(), [(base, size)]);
            let window = Some((last, END));
            assert_eq!(space.alloc_within(1, window), Ok(last));
            space.free(last).unwrap();
            assert_eq!(space.alloc_run(1, 1, window, Fit::Aligned), Ok(last));
            space.retire(last, unit).unwrap();
            assert_eq!(space.free(last), Ok(unit));
            is_out_of_space(space.alloc_at(last, unit));
            is_out_of_space(space.alloc_within(1, window));
            assert_eq!(space.available(), size - unit);
            space.check().unwrap();
            space.restore(last, unit).unwrap();
            // Beyond the end there is nothing to name.
            for call in
                [Space::add, Space::remove, Space::retire, Space::restore, Space::free_range]
            {
                let found = call(&mut space, last, 2 * unit);
                assert!(matches!(found, Err(Error::Argument { name: "size", .. })), "{found:?}");
            }
            space.remove(last, unit).unwrap();
            assert_eq!(space.size(), size - unit);
            space.add(last, unit).unwrap();
            drain_and_fill(&mut space);
        }
    }
}

/// All the addresses there are, one each.
#[test]
fn all_2_to_the_64_addresses() {
    let mut space = Space::new(0, END, 1).unwrap();
    assert_eq!((space.size(), space.available(), space.largest_free()), (END, END, END));
    assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(END, 1)]);
    assert_eq!(space.unusable_free_index(END), Ok(0.0));
    drain_and_fill(&mut space);

    assert_eq!(space.alloc(END), Ok(0));
    assert_eq!((space.used(), space.len(), space.available()), (END, 1, 0));
    for address in [0, 1, 1 << 63, u64::MAX] {
        assert_eq!(space.lookup(address).map(|found| (found.start, found.size)), Some((0, END)));
    }
    assert_eq!(space.allocations().map(|found| found.size).collect::<Vec<_>>(), [END]);
    assert_eq!(space.next_allocation(1), None);
    space.check().unwrap();
    assert_eq!(space.free(0), Ok(END));

    let mut halves = [space.alloc(1 << 63).unwrap(), space.alloc(1 << 63).unwrap()];
    halves.sort();
    assert_eq!(halves, [0, 1 << 63]);
    is_out_of_space(space.alloc(1));
    assert_eq!(space.free_range(1 << 63, 1 << 63), Ok(()));
    assert_eq!(space.free(0), Ok(1 << 63));
    assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(END, 1)]);

    for (size, left) in [(END - 1, u64::MAX), (END - 2, u64::MAX - 1)] {
        for fit in [Fit::Aligned, Fit::First] {
            assert_eq!(space.alloc_run(size, 1, None, fit), Ok(0));
            let extents: Vec<_> = space.free_extents().collect();
            assert_eq!(extents, [(left, END - size)]);
            space.check().unwrap();
            assert_eq!(space.free(0), Ok(size));
        }
    }
    for align in [1, 3, 1 << 63, END] {
        assert_eq!(space.alloc_run(END, align, None, Fit::Aligned), Ok(0));
        is_out_of_space(space.alloc_run(1, align, None, Fit::Aligned));
        assert_eq!(space.free(0), Ok(END));
    }
    is_out_of_space(space.find_run(END, 1, Some((0, END - 1)), Fit::First));
    is_out_of_space(space.find_run(END, 1, Some((1, END)), Fit::First));
    assert_eq!(space.find_run(END, 1, Some((0, END)), Fit::First), Ok(0));
    assert_eq!(space.alloc_scattered(END, 1, None), Ok(vec![(0, END)]));
    assert_eq!(space.split(0, END - 1), Ok(()));
    assert_eq!(space.free(u64::MAX), Ok(1));
    assert_eq!(space.alloc(1), Ok(u64::MAX));
    space.free_many(&[u64::MAX, 0]).unwrap();

    for at in [u64::MAX, u64::MAX - 1, 1 << 63, 0] {
        assert_eq!(space.alloc_at(at, 1), Ok(at));
    }
    let starts: Vec<u64> = space.allocations().map(|found| found.start).collect();
    assert_eq!(starts, [0, 1 << 63, u64::MAX - 1, u64::MAX]);
    assert_eq!(space.largest_free(), 1 << 62);
    // Runs between and around them, of the lengths that are left.
    assert_eq!(space.find_run((1 << 63) - 1, 1, None, Fit::Aligned), Ok(1));
    is_out_of_space(space.find_run(1 << 63, 1, None, Fit::First));
    assert_eq!(
        space.find_run((1 << 63) - 3, 1, Some((1 << 63, END)), Fit::First),
        Ok((1 << 63) + 1)
    );
    assert_eq!(space.free_range(u64::MAX - 1, 2), Ok(()));
    space.free_many(&[0, 1 << 63]).unwrap();
    drain_and_fill(&mut space);
}

// ---- spans ---------------------------------------------------------------------------------------

#[test]
fn nothing_and_then_something() {
    for (base, granule) in [(0, 4096), (0, 1), (u64::MAX, 1), (1 << 63, 1 << 63)] {
        let mut space = Space::new(base, 0, granule).unwrap();
        assert_eq!(
            (space.size(), space.used(), space.available(), space.largest_free()),
            (0, 0, 0, 0)
        );
        assert!(
            space.is_empty()
                && space.spans().collect::<Vec<_>>().is_empty()
                && space.free_blocks().collect::<Vec<_>>().is_empty()
        );
        assert_eq!(space.unusable_free_index(1), Ok(0.0));
        assert_eq!(space.base(), base);
        is_out_of_space(space.alloc(1));
        is_out_of_space(space.alloc_run(1, 1, None, Fit::Aligned));
        is_out_of_space(space.alloc_scattered(1, 1, None));
        assert_eq!(space.alloc_many(1, 0), Ok(vec![]));
        is_out_of_space(space.alloc_many(1, 1));
        is_out_of_space(space.alloc_at(base, granule as u128));
        assert_eq!(space.lookup(base), None);
        assert_eq!(space.free(base), Err(Error::NotAllocated { address: base, inside: None }));
        assert_eq!(space.free_many(&[]), Ok(()));
        space.check().unwrap();
        space.add(base, granule as u128).unwrap();
        drain_and_fill(&mut space);
    }
}

/// Spans that fill whole nodes of the tree, alone or together, at once or one after the other.
#[test]
fn spans_that_fill_whole_nodes() {
    for order in [6, 12, 18, 24, 30, 36, 48, 54, 60] {
        let size = 1u128 << order;
        for base in [0, 1u64 << order, 3 << order] {
            for parts in [1, 2, 4] {
                let mut space = Space::new(base, 0, 1).unwrap();
                for part in 0..parts {
                    space.add(base + (size / parts * part) as u64, size / parts).unwrap();
                    assert_eq!(space.available(), size / parts * (part + 1));
                    drain_and_fill(&mut space);
                }
                assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(size, 1)]);
                assert_eq!(space.alloc(size), Ok(base));
                space.free(base).unwrap();
                // The last granule by itself.
                let last = base + (size - 1) as u64;
                space.remove(last, 1).unwrap();
                drain_and_fill(&mut space);
                space.add(last, 1).unwrap();
                drain_and_fill(&mut space);
                assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(size, 1)]);
            }
        }
    }
}

#[test]
fn spans_far_below_and_far_above() {
    let granule = 4096u64;
    let middle = 1u64 << 40;
    let mut space = Space::new(middle, 1 << 20, granule).unwrap();
    let block = space.alloc(1 << 18).unwrap();
    let run = space.alloc_run(3 * 4096, 1, None, Fit::First).unwrap();
    let freed = space.alloc(4096).unwrap();
    space.free(freed).unwrap();
    let mut spans = vec![(middle, 1u128 << 20)];
    let far = [middle - (1 << 31), middle + (1 << 50), 4096, 0, (END - (1 << 30)) as u64];
    for (i, start) in far.into_iter().enumerate() {
        let size = if start <= 4096 { 4096 } else { 1 << 30 };
        space.add(start, size).unwrap();
        spans.push((start, size));
        // What was there before is where it was.
        assert_eq!(space.lookup(block + 77).map(|found| found.size), Some(1 << 18));
        assert_eq!(space.lookup(run).map(|found| found.size), Some(3 * 4096));
        assert_eq!(space.base(), middle);
        let at = space.alloc_at(start, 4096).unwrap();
        assert_eq!(space.len(), 3, "span {i}");
        space.free(at).unwrap();
        space.check().unwrap();
    }
    // Two of them adjoin.
    spans.retain(|span| span.0 != 0 && span.0 != 4096);
    spans.push((0, 8192));
    spans.sort();
    assert_eq!(space.spans().collect::<Vec<_>>(), spans);
    space.free_many(&[block, run]).unwrap();
    drain_and_fill(&mut space);
}

#[test]
fn hundreds_of_spans() {
    let mut random = Random::new(12);
    let mut starts: Vec<u64> = (0..400).map(|i| (i << 30) + 512 * random.within(0..1000)).collect();
    random.shuffle(&mut starts);
    let mut space = Space::new(starts[0], 0, 512).unwrap();
    let mut size = 0;
    for &start in &starts {
        let granules = random.within(1..3000) as u128;
        space.add(start, granules * 512).unwrap();
        size += granules * 512;
        assert_eq!((space.size(), space.available()), (size, size));
    }
    assert_eq!(space.spans().collect::<Vec<_>>().len(), 400);
    assert_eq!(space.free_extents().collect::<Vec<_>>(), space.spans().collect::<Vec<_>>());
    drain_and_fill(&mut space);
    // A block in each, then what is not in use goes.
    for &start in &starts {
        space.alloc_at(start, 512).unwrap();
    }
    for (start, size) in space.spans().collect::<Vec<_>>() {
        is_out_of_space(space.remove(start, size));
        if size > 512 {
            space.remove(start + 512, size - 512).unwrap();
        }
    }
    assert_eq!((space.size(), space.available()), (400 * 512, 0));
    space.check().unwrap();
    space.free_many(&starts).unwrap();
    for &start in &starts {
        space.remove(start, 512).unwrap();
    }
    assert_eq!((space.size(), space.spans().collect::<Vec<_>>()), (0, vec![]));
    space.check().unwrap();
}

/// All of it taken away, and something added, near and far, many times.
#[test]
fn remove_everything_and_add_again() {
    let mut random = Random::new(13);
    let mut space = Space::new(0, 1 << 30, 4096).unwrap();
    for _ in 0..200 {
        for (start, size) in space.spans().collect::<Vec<_>>() {
            // In two pieces, the second first.
            let half = size / 8192 * 4096;
            space.remove(start + half as u64, size - half).unwrap();
            if half > 0 {
                space.remove(start, half).unwrap();
            }
        }
        assert_eq!((space.size(), space.available(), space.largest_free()), (0, 0, 0));
        assert!(space.free_blocks().collect::<Vec<_>>().is_empty());
        is_out_of_space(space.alloc(1));
        let start = random.next() >> random.within(0..52) & !4095;
        let room = (END - start as u128) >> 12;
        let granules = (1 + random.next() as u128 % room).min(1 << random.within(0..40));
        space.add(start, granules << 12).unwrap();
        drain_and_fill(&mut space);
        // Something that was in use is no reason to keep a span.
        let block = space.alloc(1).unwrap();
        space.free(block).unwrap();
    }
}
