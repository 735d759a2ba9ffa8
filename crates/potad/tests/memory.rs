//! Memory for metadata that runs out: a call that cannot have it says so and changes nothing, and
//! what frees never needs any.
//!
//! The allocator of this test refuses what is larger than a limit while one is set for the thread.
//! All metadata lies in one array, so the limit is one of metadata; what else is allocated on the
//! way, lists of a few entries, is far smaller.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::random::{Random, config};
use common::wide::{Pair, calls, sizes, spots};
use potad::{Error, Space};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// The system's allocator, but for what is larger than the thread's limit.
struct Limited;

thread_local! {
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

// SAFETY: everything is the system allocator's own, or a null pointer, which means "no memory".
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LIMIT.get() {
            return std::ptr::null_mut();
        }
        // SAFETY: what the caller promises of `layout` is what is asked here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` is from the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > LIMIT.get() {
            return std::ptr::null_mut();
        }
        // SAFETY: `at` is from the system's allocator with this layout.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Sets the thread's limit for as long as the call takes.
fn limited<T>(bytes: usize, call: impl FnOnce() -> T) -> T {
    struct Unlimited;
    impl Drop for Unlimited {
        fn drop(&mut self) {
            LIMIT.set(usize::MAX);
        }
    }
    let _unlimited = Unlimited;
    LIMIT.set(bytes);
    call()
}

const MIB: usize = 1 << 20;

#[test]
fn a_call_without_memory_changes_nothing() {
    let refused = Cell::new(0);
    let scenario = (
        prop_oneof![Just(0u32), Just(12)],
        (spots(), proptest::option::weighted(0.7, sizes())),
        // From less than one section to a handful of them.
        50_000..MIB,
        calls(),
    );
    TestRunner::new(config(600))
        .run(&scenario, |(shift, (base, size), limit, calls)| {
            let Some(mut pair) = limited(limit, || Pair::new(shift, base, size, Some(0))) else {
                return Ok(());
            };
            pair.compare();
            for call in &calls {
                limited(limit, || pair.apply(call));
                pair.compare();
            }
            refused.set(refused.get() + pair.starved.unwrap());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(refused.get() > 100, "only {} calls met the limit", refused.get());
}

/// Granules that are retired while in use go out of service when they are freed, each in a section
/// of its own that may not exist by then.
#[test]
fn what_is_retired_in_use_is_freed_without_memory() {
    let mut random = Random::new(3);
    let section = 1u64 << 18;
    let mut space = Space::new(0, 1 << 40, 1).expect("a space");
    let block = space.alloc(1 << 30).expect("it is empty");
    let mut retired: Vec<u64> = (0..1 << 30).step_by(section as usize * 64).collect();
    for at in &mut retired {
        *at = block + *at + random.within(0..section);
        space.retire(*at, 1).expect("in use or not");
    }
    limited(0, || space.free(block)).expect("it needs no memory");
    space.check().expect("freed");
    assert_eq!(space.available(), (1 << 40) - retired.len() as u128);
    for at in retired {
        assert!(space.alloc_at(at, 1).is_err(), "{at} is out of service");
    }
}

/// Nor does it after a call that was refused for want of memory had begun to make room for itself.
#[test]
fn what_is_reserved_is_not_spent_by_a_call_that_fails() {
    // Enough for all this, but not to take memory for the whole space ahead of its use.
    let (mut space, block) = limited(440_000, || {
        let mut space = Space::new(0, (1 << 24) - 1, 1).expect("a space");
        let block = space.alloc(1 << 20).expect("it is empty");
        // Both ends inside sections that do not exist.
        space.retire(block + 77, 1 << 19).expect("it is in the space");
        (space, block)
    });
    // Whatever may be spent is, on one section after the other.
    let mut at = 1 << 21;
    while limited(0, || space.alloc_within(1, Some((at, at as u128 + 1)))).is_ok() {
        at += 1 << 18;
    }
    // This makes the tree as high as it can be, and then needs more.
    let refused = limited(0, || space.add((1 << 60) + 5, 1 << 30));
    assert!(matches!(refused, Err(Error::Metadata { .. })), "{refused:?}");
    limited(0, || space.free(block)).expect("it needs no memory");
    space.check().expect("freed");
    assert_eq!(space.retired().collect::<Vec<_>>(), [(block + 77, 1 << 19)]);
}

/// To retire is remembered for each range once, however often it is asked for.
#[test]
fn retiring_the_same_again_needs_no_more_memory() {
    let mut space = Space::new(0, 1 << 40, 1).expect("a space");
    for _ in 0..20_000 {
        space.retire(1000, 1).expect("it is in the space");
    }
    let before = space.metadata_bytes();
    limited(16 * MIB, || space.alloc(1)).expect("one block more");
    assert!(space.metadata_bytes() - before < MIB);
}

/// As does a bad granule that stays while others come and go.
#[test]
fn restoring_gives_back_what_retiring_reserved() {
    let mut space = Space::new(0, 1 << 40, 1).expect("a space");
    space.retire(7, 1).expect("it is in the space");
    for at in 0..20_000 {
        space.retire(1000 + at % 10, 1).expect("it is in the space");
        space.restore(1000 + at % 10, 1).expect("it is in the space");
    }
    limited(16 * MIB, || space.alloc(1 << 20)).expect("one block more");
}

#[test]
fn the_error_says_how_much_memory_there_would_have_been() {
    let mut space = Space::new(0, 1 << 40, 1).expect("a space");
    let limit = 300_000;
    let far_apart = (0..100).map(|i| i << 30);
    let mut calls = far_apart.map(|at| (at, limited(limit, || space.alloc_at(at, 1))));
    let (at, refused) = calls.find(|(_, found)| found.is_err()).expect("it ran out");
    match refused {
        Err(Error::Metadata { bytes }) => assert!(bytes > limit && bytes < 2 * limit, "{bytes}"),
        other => panic!("{other:?}"),
    }
    // Nothing else was wrong with it.
    assert_eq!(space.alloc_at(at, 1), Ok(at));
}
