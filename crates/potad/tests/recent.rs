//! Recent blocks: what was freed a moment ago is free in every way that can be asked about.

use potad::{Error, Fit, Space};

/// A space of single granules in which `at` was just freed and is a recent block: taken again, it is
/// what the next request gets, though lower granules are free.
fn with_recent() -> (Space, u64) {
    let mut space = Space::new(0, 1 << 20, 1).expect("a space");
    let blocks: Vec<u64> = (0..40).map(|_| space.alloc(1).expect("there is room")).collect();
    let at = blocks[20];
    // Fills the slot, so that the lower one below is told to the tree.
    space.free(at).expect("it is allocated");
    space.free(blocks[3]).expect("it is allocated");
    assert_eq!(space.alloc(1), Ok(at), "not a recent block: the test is out of date");
    space.free(at).expect("it is allocated");
    space.check().expect("the recount agrees");
    (space, at)
}

#[test]
fn it_is_free() {
    let (mut space, at) = with_recent();
    assert_eq!((space.len(), space.used()), (38, 38));
    assert_eq!(space.available(), (1 << 20) - 38);
    assert_eq!(space.lookup(at), None);
    assert_eq!(space.next_allocation(at).map(|found| found.start), Some(at + 1));
    assert!(space.allocations().all(|found| found.start != at));
    assert_eq!(space.allocations().count(), 38);
    let free: u128 = space.free_extents().map(|extent| extent.1).sum();
    assert_eq!(free, space.available());
    let counted: u128 =
        space.free_blocks().collect::<Vec<_>>().iter().map(|b| b.0 * b.1 as u128).sum();
    assert_eq!(counted, free);
}

#[test]
fn it_is_not_freed_again() {
    let (mut space, at) = with_recent();
    let twice = Err(Error::NotAllocated { address: at, inside: None });
    assert_eq!(space.free(at).map(drop), twice);
    let (mut space, at) = with_recent();
    assert_eq!(space.free_many(&[at + 1, at]), twice);
    assert_eq!(space.len(), 38);
    let (mut space, at) = with_recent();
    assert_eq!(space.free_range(at - 1, 3), twice);
    let (mut space, at) = with_recent();
    assert_eq!(space.split(at, 1), twice);
    space.check().expect("the recount agrees");
}

#[test]
fn it_is_found_by_whatever_looks_for_free_space() {
    let (mut space, at) = with_recent();
    assert_eq!(space.alloc_at(at, 1), Ok(at));
    let (mut space, at) = with_recent();
    assert_eq!(space.alloc_run(1, 1, Some((at, at as u128 + 1)), Fit::First), Ok(at));
    let (mut space, at) = with_recent();
    assert_eq!(space.alloc_within(1, Some((at, at as u128 + 1))), Ok(at));
    let (mut space, at) = with_recent();
    let window = Some((at, at as u128 + 1));
    assert_eq!(space.alloc_scattered(1, 1, window), Ok(vec![(at, 1)]));
    // All there is, one by one or at once.
    let (mut space, at) = with_recent();
    let left = space.available() as usize;
    assert!(space.alloc_many(1, left).expect("there is room").contains(&at));
    assert_eq!((space.available(), space.largest_free()), (0, 0));
    space.check().expect("the recount agrees");
}

#[test]
fn it_goes_out_of_service_and_away() {
    let (mut space, at) = with_recent();
    space.retire(at, 1).expect("it is in the space");
    assert_eq!(space.available(), (1 << 20) - 39);
    assert!(space.alloc_at(at, 1).is_err());
    space.check().expect("the recount agrees");
    let (mut space, at) = with_recent();
    space.remove(at, 1).expect("it is free");
    assert_eq!(space.size(), (1 << 20) - 1);
    space.check().expect("the recount agrees");
}

/// Adding a span may move the origin that positions are counted from.
#[test]
fn it_stays_where_it_is_when_the_space_grows() {
    for base in [1u64 << 30, 1 << 40] {
        let mut space = Space::new(base, 1 << 12, 1).expect("a space");
        let blocks: Vec<u64> = (0..8).map(|_| space.alloc(1).expect("there is room")).collect();
        space.free(blocks[2]).expect("it is allocated");
        space.add(0, 1 << 12).expect("it is not in the space yet");
        space.check().expect("the recount agrees");
        assert_eq!(space.lookup(blocks[2]), None);
        assert_eq!(space.alloc_at(blocks[2], 1), Ok(blocks[2]));
        space.free_many(&blocks).expect("all are allocated");
        assert_eq!(space.used(), 0);
        space.check().expect("the recount agrees");
    }
}

/// Rows beyond those whose positions fit in 32 bits.
#[test]
fn far_up_nothing_is_kept_and_all_is_well() {
    let base = 1u64 << 40;
    let mut space = Space::new(base, 1 << 13, 1).expect("a space");
    space.add(0, 64).expect("it is not in the space yet");
    space.alloc_at(0, 64).expect("it is free");
    for _ in 0..3 {
        let at = space.alloc(1).expect("there is room");
        assert!(at >= base);
        space.free(at).expect("it is allocated");
        assert!(space.free(at).is_err());
        space.check().expect("the recount agrees");
    }
    assert_eq!(space.free(u32::MAX as u64).map(drop).map_err(|_| ()), Err(()));
}

/// Blocks of all orders that are kept, next to each other and as the last allocations.
#[test]
fn several_are_kept_and_none_is_seen() {
    let mut space = Space::new(0, 1 << 20, 1).expect("a space");
    let first = space.alloc_at(0, 1);
    let four = space.alloc_at(4, 4).expect("it is free");
    let two = space.alloc_at(8, 2).expect("it is free");
    let one = space.alloc_at(10, 1).expect("it is free");
    // A request served from the first row says that it is among those that are.
    let served = space.alloc(1).expect("there is room");
    for at in [four, two, one] {
        space.free(at).expect("it is allocated");
    }
    space.check().expect("the recount agrees");
    for at in [four, four + 3, two, two + 1, one] {
        assert_eq!(space.lookup(at), None);
        assert_eq!(
            space.free(at).map(drop),
            Err(Error::NotAllocated { address: at, inside: None })
        );
    }
    let live: Vec<u64> = space.allocations().map(|found| found.start).collect();
    assert_eq!(live, [first.unwrap(), served]);
    assert_eq!(space.next_allocation(served + 1), None);
    // Each is what the next request of its size gets.
    assert_eq!((space.alloc(2), space.alloc(4), space.alloc(1)), (Ok(two), Ok(four), Ok(one)));
    space.check().expect("the recount agrees");
}

/// Not where it ends with its row, and not in a space that has anything retired.
#[test]
fn where_none_is_kept() {
    let mut space = Space::new(0, 1 << 20, 1).expect("a space");
    let all: Vec<u64> = (0..64).map(|_| space.alloc(1).expect("there is room")).collect();
    space.free(all[63]).expect("it is allocated");
    space.free(all[3]).expect("it is allocated");
    // The lower one, not the one that was freed first.
    assert_eq!(space.alloc(1), Ok(all[3]));
    space.retire(500, 1).expect("it is in the space");
    space.free(all[20]).expect("it is allocated");
    space.free(all[10]).expect("it is allocated");
    assert_eq!(space.alloc(1), Ok(all[10]));
    space.check().expect("the recount agrees");
}

/// In trees with more sections than the head knows of, and when they come to have them.
#[test]
fn in_trees_that_are_not_flat() {
    let mut space = Space::new(0, 1 << 22, 1).expect("a space");
    let far = space.alloc_at((5 << 18) + 100, 3).expect("it is free");
    let blocks: Vec<u64> = (0..100).map(|_| space.alloc(2).expect("there is room")).collect();
    for &at in &blocks {
        space.free(at).expect("it is allocated");
        space.check().expect("the recount agrees");
    }
    space.add(1 << 40, 64).expect("it is not in the space yet");
    space.check().expect("the recount agrees");
    assert_eq!(space.free(far), Ok(3));
    assert_eq!((space.used(), space.largest_free()), (0, 1 << 22));
    space.check().expect("the recount agrees");
}
