//! Random calls on spaces of up to 2^64 granules beside the naive model of ranges.
//!
//! Where the tests against a model by granules cover what happens inside a few nodes, this one
//! covers the height of the tree: allocations stored at upper levels, spans that make the tree grow
//! and move its origin, and numbers at both ends of 64 bits.

mod common;

use common::random::config;
use common::wide::{Pair, calls, sizes, spots};
use proptest::prelude::*;

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn spaces_of_any_height(
        shift in prop_oneof![2 => Just(0u32), 1 => Just(9), 1 => Just(12), 1 => Just(63)],
        (base, size) in (spots(), proptest::option::weighted(0.7, sizes())),
        calls in calls(),
    ) {
        let mut pair = Pair::new(shift, base, size, None).expect("there is memory");
        pair.compare();
        for call in &calls {
            pair.apply(call);
            pair.compare();
        }
    }
}
