//! Which block an allocation takes, to the address, against the policy worked out from all cells.
//!
//! The policy is not part of the contract, but it is what keeps large blocks, so a change of it
//! must be meant. Its words are those at the top of `src/block.rs`.

mod common;

use common::Model;
use common::random::Random;
use potad::{Error, Space};

/// The recent blocks, worked out beside the model, which takes them for free.
#[derive(Default)]
struct Recent {
    /// Where the one of each order lies.
    blocks: [Option<u64>; 3],
    /// About the highest row that small requests are served from.
    usual: u64,
}

impl Recent {
    /// Whether a freed block is kept: not where it ends with its row. A run that is as long and as
    /// aligned as a block counts as one.
    fn keep(&mut self, start: u64, size: u64) {
        let order = size.ilog2();
        let is_block = size.is_power_of_two() && start.is_multiple_of(size) && order < 3;
        let ends_its_row = (start + size).is_multiple_of(64);
        if is_block
            && !ends_its_row
            && self.blocks[order as usize].is_none()
            && start / 64 <= self.usual
        {
            self.blocks[order as usize] = Some(start);
        }
    }

    /// The free blocks of a model in which the recent ones are in use.
    fn blocks(&self, model: &mut Model) -> Vec<(u64, u32)> {
        let kept =
            || (0..).zip(self.blocks).filter_map(|(order, block)| Some((block?, 1 << order)));
        kept().for_each(|(start, size)| model.occupy(start, size));
        let blocks = model.blocks();
        kept().for_each(|(start, _)| assert!(model.free(start).is_some()));
        blocks
    }
}

/// The block that an allocation of `order` takes.
fn choose(model: &mut Model, recent: &mut Recent, order: u32) -> Option<u64> {
    if let Some(kept) = recent.blocks.get_mut(order as usize)
        && let Some(start) = kept.take()
    {
        return Some(start);
    }
    let part = model.cells.len().ilog2().saturating_sub(4).max(6);
    let lowest_packed = |blocks: &[(u64, u32)], least: u32| {
        let has_plenty = blocks.iter().any(|block| block.1 >= part);
        blocks.iter().copied().find(|block| (least..part).contains(&block.1)).filter(|_| has_plenty)
    };
    // A part of a row: of the lowest row that can serve the smallest block. While there is plenty,
    // it must not lie above the sixteenth of the space that has the lowest whole row.
    let small = |blocks: &[(u64, u32)]| {
        let parts = blocks.iter().filter(|block| block.1 >= order && block.1 < 6);
        let lowest = parts.min_by_key(|block| (block.0 / 64, block.1, block.0))?.0;
        let whole = lowest_packed(blocks, 6);
        (whole.is_none_or(|whole| lowest >> part <= whole.0 >> part)).then_some(lowest)
    };
    let mut found = small(&recent.blocks(model));
    if found.is_none() {
        recent.blocks = Default::default();
        found = small(&model.blocks());
    }
    let blocks = model.blocks();
    let least = order.max(6);
    let tightest = || {
        let large = blocks.iter().copied().filter(|block| block.1 >= least);
        large.min_by_key(|block| (block.1, block.0))
    };
    let large = || Some(lowest_packed(&blocks, least).or_else(tightest)?.0);
    if order >= 6 {
        return large();
    }
    let found = found.or_else(large)?;
    recent.usual = (found / 64).max(recent.usual - (recent.usual >> 2));
    Some(found)
}

#[test]
fn an_allocation_takes_the_block_that_the_policy_names() {
    let mut random = Random::new(17);
    for round in 0..200 {
        // Rows, nodes of level 1, and a bound inside a row; the base is as aligned as the space.
        let granules = random.pick(&[64, 100, 640, 1 << 10, 5000]);
        let mut space = Space::new(0, granules as u128, 1).expect("a space");
        let mut model = Model::new(0, granules);
        let mut recent = Recent::default();
        model.add(0, granules);
        // Filling, holding, and draining, so that both rules come to be used.
        let steps = if granules > 1000 { 150 } else { 400 };
        for step in 0..steps {
            let frees = if step % 100 < 50 { 3 } else { 2 };
            if !model.live.is_empty() && random.one_in(frees) {
                let victim = random.within(0..model.live.len() as u64) as usize;
                let start = *model.live.keys().nth(victim).expect("it is below the length");
                let size = space.free(start).expect("an allocation starts here");
                model.free(start);
                recent.keep(start, size as u64);
            } else {
                let order = random.next().trailing_zeros().min(granules.ilog2());
                let expected = choose(&mut model, &mut recent, order);
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
