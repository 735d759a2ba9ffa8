//! What makes no sense is refused with the name of the argument and its value, sizes beyond all
//! addresses are refused as any that do not fit, and neither changes anything.

mod common;

use potad::{Error, Fit, Reason, Space};

const END: u128 = 1 << 64;

/// What can be seen of a space.
fn outside(space: &Space) -> String {
    let allocations: Vec<_> = space.allocations().collect();
    let amounts = (space.size(), space.used(), space.available(), space.len());
    format!(
        "{allocations:?} {amounts:?} {:?} {:?}",
        space.spans().collect::<Vec<_>>(),
        space.retired().collect::<Vec<_>>()
    )
}

/// A space at 1 GiB with a block, a run and a retired granule; the addresses of the first two.
fn some_space(granule: u64) -> (Space, u64, u64) {
    let unit = granule as u128;
    let mut space = Space::new(1 << 30, 1024 * unit, granule).unwrap();
    let block = space.alloc(4 * unit).unwrap();
    let run = space.alloc_run(3 * unit, 1, None, Fit::First).unwrap();
    let freed = space.alloc(unit).unwrap();
    space.free(freed).unwrap();
    space.retire((1 << 30) + 1000 * granule, unit).unwrap();
    (space, block, run)
}

fn names<T: std::fmt::Debug>(found: Result<T, Error>, argument: &str, value: &str) {
    let Err(Error::Argument { name, value: found_value, expected }) = &found else {
        panic!("{found:?} for {argument} = {value}");
    };
    assert_eq!((*name, found_value.as_str()), (argument, value), "{found:?}");
    let text = found.as_ref().unwrap_err().to_string();
    assert!(
        text.starts_with(argument) && text.contains(value) && text.contains(expected),
        "{text}"
    );
}

#[test]
fn making_a_space_names_what_is_wrong() {
    for granule in [0, 3, 12, 4095, u64::MAX] {
        names(Space::new(0, 0, granule).map(|_| ()), "granule", &granule.to_string());
    }
    for (base, granule) in [(1, 4096), (2048, 4096), (u64::MAX, 2), (1, 1 << 63)] {
        names(Space::new(base, 0, granule).map(|_| ()), "base", &base.to_string());
    }
    for size in [1, 4095, 4097, u128::MAX, END + 4096, !4095] {
        names(Space::new(0, size, 4096).map(|_| ()), "size", &size.to_string());
    }
    // The end, not the size, is what goes too far.
    names(Space::new(4096, END, 4096).map(|_| ()), "size", &END.to_string());
    names(Space::new(u64::MAX, 2, 1).map(|_| ()), "size", "2");
    assert!(Space::new(4096, END - 4096, 4096).is_ok());
    assert!(Space::new(u64::MAX, 1, 1).is_ok());
}

#[test]
fn calls_name_what_is_wrong() {
    type Call = fn(&mut Space, u64) -> Result<(), Error>;
    let (mut space, block, run) = some_space(4096);
    let before = outside(&space);
    // A size that must be above 0.
    let none: [(Call, &str); 14] = [
        (|space, _| space.alloc(0).map(|_| ()), "size"),
        (|space, _| space.alloc_within(0, None).map(|_| ()), "size"),
        (|space, _| space.alloc_within(0, Some((0, 1))).map(|_| ()), "size"),
        (|space, _| space.alloc_run(0, 1, None, Fit::First).map(|_| ()), "size"),
        (|space, _| space.find_run(0, 1, None, Fit::First).map(|_| ()), "size"),
        (|space, _| space.alloc_run(1, 0, None, Fit::First).map(|_| ()), "align"),
        (|space, at| space.alloc_at(at, 0).map(|_| ()), "size"),
        (|space, _| space.alloc_scattered(0, 1, None).map(|_| ()), "size"),
        (|space, _| space.alloc_scattered(1, 0, None).map(|_| ()), "min_block"),
        (|space, _| space.alloc_many(0, 5).map(|_| ()), "size"),
        (|space, _| space.alloc_many(0, 0).map(|_| ()), "size"),
        (|space, at| space.split(at, 0), "size"),
        (|space, at| space.free_range(at, 0), "size"),
        (|space, _| space.unusable_free_index(0).map(|_| ()), "size"),
    ];
    for (call, argument) in none {
        names(call(&mut space, block), argument, "0");
        assert_eq!(outside(&space), before);
    }
    // What must be a range of granules: both ends, and an end that is an address.
    type OfRange = fn(&mut Space, u64, u128) -> Result<(), Error>;
    let ranges: [(OfRange, &str); 6] = [
        (|space, at, size| space.alloc_at(at, size).map(|_| ()), "address"),
        (Space::free_range, "start"),
        (Space::add, "start"),
        (Space::remove, "start"),
        (Space::retire, "start"),
        (Space::restore, "start"),
    ];
    for (call, start) in ranges {
        for off in [1, 2048, 4095] {
            names(call(&mut space, block + off, 4096), start, &(block + off).to_string());
            names(call(&mut space, block, 4096 + off as u128), "size", &(4096 + off).to_string());
        }
        names(call(&mut space, block, 0), "size", "0");
        for size in [END, !4095, 1 << 127] {
            names(call(&mut space, block, size), "size", &size.to_string());
        }
        names(call(&mut space, u64::MAX - 4095, 8192), "size", "8192");
        assert_eq!(outside(&space), before);
    }
    // A range that is not in the space, or is in it already.
    for (at, text) in [(0x4040_0000, "0x40400000"), (0, "0x0"), (0x403f_f000, "0x403ff000")] {
        for call in [Space::remove, Space::retire, Space::restore] {
            names(call(&mut space, at, 8192), "start", text);
        }
    }
    names(space.add(0x403f_f000, 8192), "start", "0x403ff000");
    names(space.add(0x3fff_f000, 8192), "start", "0x3ffff000");
    names(space.add(0, END), "start", "0x0");
    // A cut that does not lie inside the allocation.
    for size in [1, 4095, 16384, 16384 + 4096, END, u128::MAX] {
        names(space.split(block, size), "size", &size.to_string());
    }
    // Alignments may be anything up to all addresses.
    for align in [END + 1, u128::MAX] {
        names(space.alloc_run(1, align, None, Fit::Aligned), "align", &align.to_string());
    }
    // Windows that end before they begin, or beyond all addresses.
    for (low, high) in [(1, 0), (u64::MAX, 0), (4096, 4095), (0, END + 1), (0, u128::MAX)] {
        let (window, text) = (Some((low, high)), format!("({low}, {high})"));
        names(space.alloc_within(1, window), "within", &text);
        names(space.alloc_run(1, 1, window, Fit::First), "within", &text);
        names(space.find_run(1, 1, window, Fit::First), "within", &text);
        names(space.alloc_scattered(1, 1, window), "within", &text);
    }
    assert_eq!(outside(&space), before);
    space.check().unwrap();
    assert_eq!(space.free_many(&[run, block]), Ok(()));
}

/// An address that is no allocation's start is named, with the allocation it lies in.
#[test]
fn addresses_that_are_not_allocated() {
    let (mut space, block, run) = some_space(4096);
    let before = outside(&space);
    let inside = |start, size| Some((start, size));
    let end = (1 << 30) + 1024 * 4096;
    let cases = [
        (block + 1, inside(block, 16384)),
        (block + 4096, inside(block, 16384)),
        (block + 16383, inside(block, 16384)),
        (run + 12287, inside(run, 12288)),
        ((1 << 30) - 1, None),
        ((1 << 30) + 1000 * 4096, None),
        ((1 << 30) + 512 * 4096, None),
        (end, None),
        (end - 1, None),
        (0, None),
        (u64::MAX, None),
    ];
    for (address, inside) in cases {
        let error = Error::NotAllocated { address, inside };
        assert_eq!(space.free(address), Err(error.clone()));
        assert_eq!(space.free_many(&[block, address, run]), Err(error.clone()));
        assert_eq!(space.split(address, 4096), Err(error.clone()));
        assert_eq!(space.lookup(address).map(|found| (found.start, found.size)), inside);
        let text = error.to_string();
        assert!(text.contains(&format!("{address:#x}")), "{text}");
        if let Some((start, size)) = inside {
            assert!(text.contains(&format!("{start:#x}")) && text.contains(&size.to_string()));
        }
    }
    // The first granule of the range that is not allocated is what is named.
    for (start, size, gap) in [
        (block, 1 << 20, None),
        (block - 4096, 8192, None),
        (end - 4096, 4096, Some(end - 4096)),
        (end - 4096, 8192, Some(end - 4096)),
        (end, 4096, Some(end)),
        (0, 4096, Some(0)),
    ] {
        match space.free_range(start, size) {
            Err(Error::NotAllocated { address, .. }) => {
                assert_eq!(space.lookup(address), None);
                assert!(gap.is_none_or(|gap| gap == address), "{address:#x}, expected {gap:#x?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(outside(&space), before);
    space.check().unwrap();
    // All that there is, and one granule beyond the end of the space, which is the end of a node.
    for end in [40960, 4096 << 18] {
        let mut space = Space::new(end - 40960, 40960, 4096).unwrap();
        space.alloc_run(40960, 1, None, Fit::First).unwrap();
        let beyond = Error::NotAllocated { address: end, inside: None };
        assert_eq!(space.free_range(end - 40960, 40960 + 4096), Err(beyond));
        assert_eq!(space.free_range(end - 40960, 40960), Ok(()));
    }
}

/// No request is too large to be refused in good order.
#[test]
fn sizes_beyond_all_addresses() {
    let sizes = [
        END - 1,
        END,
        END + 1,
        END + 4095,
        2 * END,
        3 << 100,
        (1 << 127) - 1,
        1 << 127,
        (1 << 127) + 1,
        u128::MAX - (1 << 63),
        u128::MAX - 4096,
        u128::MAX - 1,
        u128::MAX,
    ];
    for granule in [1, 512, 4096, 1 << 20] {
        let (mut space, ..) = some_space(granule);
        let before = outside(&space);
        let refused = |found: Result<(), Error>, size: u128| match found {
            Err(ref error @ Error::OutOfSpace { requested, reason, .. }) => {
                assert_eq!(reason, Reason::Exhausted, "{error}");
                assert!(requested >= size, "{error}");
                assert!(error.to_string().contains(&requested.to_string()));
            }
            other => panic!("{other:?} for {size}"),
        };
        for size in sizes {
            refused(space.alloc(size).map(drop), size);
            refused(space.alloc_within(size, Some((0, END))).map(drop), size);
            refused(space.alloc_scattered(size, 1, None).map(drop), size);
            refused(space.alloc_scattered(size, size, Some((0, END))).map(drop), size);
            for fit in [Fit::First, Fit::Aligned] {
                for align in [1, 3, 1 << 40, END] {
                    refused(space.alloc_run(size, align, None, fit).map(drop), size);
                    refused(space.find_run(size, align, Some((5, END)), fit).map(drop), size);
                }
            }
            for count in [1, 2, 1000] {
                refused(space.alloc_many(size, count).map(drop), size);
            }
            // As many as will never fit, of a size that does.
            assert!(space.alloc_many(size, usize::MAX).is_err());
            assert_eq!(space.unusable_free_index(size), Ok(1.0));
            // A least size that no block has.
            let found = space.alloc_scattered(granule as u128, size, None);
            assert!(matches!(found, Err(Error::OutOfSpace { .. })), "{found:?}");
            assert!(space.alloc_at(1 << 30, size).is_err());
            assert!(space.free_range(1 << 30, size).is_err());
            assert!(space.add(0, size).is_err());
            assert!(space.remove(1 << 30, size).is_err());
            assert!(space.retire(1 << 30, size).is_err());
            assert!(space.restore(1 << 30, size).is_err());
            assert!(space.split(1 << 30, size).is_err());
            assert_eq!(outside(&space), before);
        }
        for count in [usize::MAX, 1 << 62, 1 << 40] {
            let found = space.alloc_many(granule as u128, count);
            assert!(found.is_err(), "{} blocks", found.unwrap().len());
        }
        assert_eq!(outside(&space), before);
        space.check().unwrap();
    }
}

/// Windows of any bounds: what they leave of the space is what counts.
#[test]
fn windows_with_odd_bounds() {
    let base = 1u64 << 30;
    let end = (1u128 << 30) + (1 << 20);
    let mut space = Space::new(base, 1 << 20, 4096).unwrap();
    // Nothing; less than a granule; a granule's worth that is none; before and beyond the space.
    for (low, high) in [
        (base, base as u128),
        (0, 0),
        (u64::MAX, END),
        (base, base as u128 + 4095),
        (base + 1, base as u128 + 4096),
        (base + 1, base as u128 + 8191),
        (0, base as u128),
        (0, base as u128 + 4095),
        (end as u64, END),
        (end as u64 - 4095, END),
    ] {
        let window = Some((low, high));
        let refusals = [
            space.alloc_within(1, window).err(),
            space.alloc_run(1, 1, window, Fit::First).err(),
            space.alloc_run(1, 1, window, Fit::Aligned).err(),
            space.alloc_scattered(1, 1, window).err(),
        ];
        for refusal in refusals {
            assert!(
                matches!(refusal, Some(Error::OutOfSpace { .. })),
                "({low}, {high}): {refusal:?}"
            );
        }
    }
    // One granule, however the bounds lie about it; the first and the last of the space.
    let (first, last) = (base, end as u64 - 4096);
    for (low, high, at) in [
        (base + 1, base as u128 + 8192, base + 4096),
        (base + 4095, base as u128 + 12287, base + 4096),
        (base + 4096, base as u128 + 8192, base + 4096),
        (0, base as u128 + 4096, first),
        (0, base as u128 + 8191, first),
        (end as u64 - 4096, END, last),
        (end as u64 - 8191, END, last),
        (end as u64 - 8191, end, last),
    ] {
        let window = Some((low, high));
        for _ in 0..2 {
            assert_eq!(space.alloc_within(4096, window), Ok(at), "({low}, {high})");
            assert!(space.alloc_within(4096, window).is_err());
            space.free(at).unwrap();
            assert_eq!(space.alloc_run(4096, 1, window, Fit::Aligned), Ok(at));
            space.free(at).unwrap();
            assert_eq!(space.alloc_scattered(1, 1, window), Ok(vec![(at, 4096)]));
            assert!(space.alloc_run(1, 1, window, Fit::First).is_err());
            space.free(at).unwrap();
        }
        assert!(space.alloc_within(8192, window).is_err());
        assert!(space.alloc_run(8192, 1, window, Fit::First).is_err());
        assert!(space.alloc_scattered(8192, 1, window).is_err());
    }
    // All of it, and the largest block in each half of what is not quite all.
    assert_eq!(space.alloc_within(1 << 20, Some((0, END))), Ok(base));
    space.free(base).unwrap();
    let inner = Some((base + 1, end - 1));
    assert!(space.alloc_within(1 << 20, inner).is_err());
    assert_eq!(space.alloc_run((1 << 20) - 8192, 1, inner, Fit::First), Ok(base + 4096));
    space.free(base + 4096).unwrap();
    let blocks = space.alloc_scattered((1 << 20) - 8192, 4096, inner).unwrap();
    // A quarter twice, and all smaller ones twice, down to the granules.
    let mut sizes: Vec<u128> = (12..19).flat_map(|order| [1 << order; 2]).collect();
    sizes.sort_by(|a, b| b.cmp(a));
    assert_eq!(blocks.iter().map(|block| block.1).collect::<Vec<_>>(), sizes);
    space.check().unwrap();
}

/// What is asked for is a number of blocks, each of whole granules, and the refusal says so.
#[test]
fn many_blocks_are_counted_whole() {
    let mut space = Space::new(0, 5 * 4096, 4096).unwrap();
    match space.alloc_many(1, 10) {
        Err(Error::OutOfSpace { requested, available, reason, .. }) => {
            assert_eq!((requested, available), (10 * 4096, 5 * 4096));
            assert_eq!(reason, Reason::Exhausted);
        }
        other => panic!("{other:?}"),
    }
    // More than any list can hold, in a space that could give them.
    let mut space = Space::new(0, END, 1).unwrap();
    assert!(matches!(space.alloc_many(1, 1 << 61), Err(Error::Metadata { .. })));
    assert_eq!(space.free_blocks().collect::<Vec<_>>(), [(END, 1)]);
}
