//! Which block an allocation takes, to the address, against the policy worked out from all cells.
//!
//! The policy is not part of the contract, but it is what keeps large blocks, so a change of it
//! must be meant. Its words are those at the top of `src/block.rs`.

mod common;

use common::Model;
use common::random::Random;
use potad::{Error, Space};

/// The block that an allocation of `order` takes.
fn choose(model: &Model, order: u32) -> Option<u64> {
    let granules = model.cells.len().ilog2();
    let plenty = granules.saturating_sub(4).max(6);
    let blocks = model.blocks();
    let fit = |block: &&(u64, u32)| block.1 >= order;
    // Parts of rows: the lowest row that can serve, and in it the smallest block.
    let small = blocks.iter().filter(fit).filter(|b| b.1 < 6).min_by_key(|b| (b.0 / 64, b.1, b.0));
    // Whole rows by address while there is plenty, but not of the plenty.
    let has_plenty = blocks.iter().any(|block| block.1 >= plenty);
    let packed = |block: &&(u64, u32)| has_plenty && block.1 >= 6 && block.1 < plenty;
    let large = blocks.iter().filter(fit).find(packed);
    match (small, large) {
        (Some(small), Some(large)) => Some(small.0.min(large.0)),
        (Some(found), None) | (None, Some(found)) => Some(found.0),
        // Otherwise the smallest, and of these the lowest.
        (None, None) => blocks.iter().filter(fit).min_by_key(|b| (b.1, b.0)).map(|b| b.0),
    }
}

#[test]
fn an_allocation_takes_the_block_that_the_policy_names() {
    let mut random = Random::new(17);
    for round in 0..200 {
        // Rows, nodes of level 1, and a bound inside a row; the base is as aligned as the space.
        let granules = random.pick(&[64, 100, 640, 1 << 10, 5000]);
        let mut space = Space::new(0, granules as u128, 1).expect("a space");
        let mut model = Model::new(0, granules);
        model.add(0, granules);
        // Filling, holding, and draining, so that both rules come to be used.
        let steps = if granules > 1000 { 150 } else { 400 };
        for step in 0..steps {
            let frees = if step % 100 < 50 { 3 } else { 2 };
            if !model.live.is_empty() && random.one_in(frees) {
                let victim = random.within(0..model.live.len() as u64) as usize;
                let start = *model.live.keys().nth(victim).expect("it is below the length");
                assert!(space.free(start).is_ok());
                model.free(start);
            } else {
                let order = random.next().trailing_zeros().min(granules.ilog2());
                let expected = choose(&model, order);
                match space.alloc(1 << order) {
                    Ok(found) => {
                        assert_eq!(
                            Some(found),
                            expected,
                            "order {order}, round {round}, step {step}"
                        );
                        model.occupy(found, 1 << order);
                    }
                    Err(Error::OutOfSpace { .. }) => assert_eq!(expected, None),
                    Err(other) => panic!("{other}"),
                }
            }
            space.check().expect("the recount agrees");
        }
    }
}
