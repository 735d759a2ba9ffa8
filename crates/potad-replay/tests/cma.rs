//! The contiguous memory allocator restated: windows by name, and against a model that keeps for each
//! page whose it is and searches from end to end.

use std::collections::BTreeMap;

use potad_replay::{
    BuildError, Cma, Extent, Interrupts, Move, PAGES_MAX, PageAllocator, Relocator, remainder,
};
use proptest::prelude::*;

/// A largest block of the buddy.
const BLOCK: u32 = 1024;

#[derive(Clone, Copy, Debug)]
struct Block {
    order: u32,
    movable: bool,
    pinned: bool,
}

/// Blocks by their first page, and runs by theirs.
struct Model {
    pages: u32,
    base: u32,
    blocks: BTreeMap<u32, Block>,
    runs: BTreeMap<u32, u32>,
}

impl Model {
    fn free(&self) -> Vec<bool> {
        let mut free = vec![true; self.pages as usize];
        let blocks = self.blocks.iter().map(|(&page, block)| (page, 1 << block.order));
        for (start, pages) in blocks.chain(self.runs.iter().map(|(&page, &pages)| (page, pages))) {
            let range = start as usize..(start + pages) as usize;
            assert!(!free[range.clone()].contains(&false), "{range:?} are in use twice");
            free[range].fill(false);
        }
        free
    }

    /// Whether there is a free block in a part of the memory.
    fn has_block(free: &[bool], order: u32, within: std::ops::Range<u32>) -> bool {
        order <= 10
            && within.clone().step_by(1 << order).any(|start| {
                start + (1 << order) <= within.end
                    && !free[start as usize..(start + (1 << order)) as usize].contains(&false)
            })
    }

    /// Whether a movable block has to come from the area; `None` where it fails.
    fn movable_in_area(&self, free: &[bool], order: u32) -> Option<bool> {
        let count = |range: &[bool]| range.iter().filter(|&&free| free).count();
        let (rest, area) = free.split_at(self.base as usize);
        let most_in_area = count(area) > count(free) / 2;
        assert_eq!(rest.len() + area.len(), self.pages as usize);
        let in_area = Self::has_block(free, order, self.base..self.pages);
        let in_rest = Self::has_block(free, order, 0..self.base);
        if in_area && (most_in_area || !in_rest) { Some(true) } else { in_rest.then_some(false) }
    }

    /// The block a page lies in.
    fn over(&self, page: u32) -> Option<(u32, Block)> {
        let (&first, &block) = self.blocks.range(..=page).next_back()?;
        (page < first + (1 << block.order)).then_some((first, block))
    }

    fn split(&mut self, first: u32, page: u32, order: u32) -> Block {
        let block = self.blocks.remove(&first).expect("a live block");
        for (part, order) in remainder(first, block.order, page, order) {
            self.blocks.insert(part, Block { order, ..block });
        }
        Block { order, ..block }
    }

    /// Follows a request for a run, window by window: what is moved and whether it ends well has to be
    /// what the rules say. Where to is the buddy's choice, and only has to be right.
    fn follow(&mut self, pages: u32, align: u32, moves: &[Move]) -> Option<u32> {
        let mut moves = moves.iter();
        let starts = (self.base..self.pages).filter(|start| start % align == 0);
        'windows: for start in starts {
            let window = start..start + pages;
            let handed_out = self
                .runs
                .iter()
                .any(|(&run, &length)| run < window.end && run + length > window.start);
            if window.end > self.pages || handed_out {
                continue;
            }
            let mut page = start;
            while page < window.end {
                let Some((first, block)) = self.over(page) else {
                    page += 1;
                    continue;
                };
                if block.pinned || !block.movable {
                    continue 'windows;
                }
                // What is left of the block, the lowest part first.
                let mut parts = vec![(first, block.order)];
                while let Some((old, order)) = parts.pop() {
                    let mut free = self.free();
                    free[window.start as usize..window.end as usize].fill(false);
                    let Some(in_area) = self.movable_in_area(&free, order) else {
                        if order == 0 {
                            continue 'windows;
                        }
                        let half = order - 1;
                        parts.extend([(old + (1 << half), half), (old, half)]);
                        continue;
                    };
                    let made = *moves.next().expect("a move of what is in the way");
                    assert_eq!((made.old, made.order), (old, order));
                    assert_eq!(made.new >= self.base, in_area);
                    assert_eq!(made.new % (1 << order), 0);
                    let home = made.new as usize..(made.new + (1 << order)) as usize;
                    assert!(!free[home].contains(&false), "{made:?} to where it is not free");
                    let (first, _) = self.over(old).expect("it is live");
                    let moved = self.split(first, old, order);
                    self.blocks.insert(made.new, moved);
                }
                page = first + (1 << block.order);
            }
            assert_eq!(moves.next(), None);
            self.runs.insert(start, pages);
            return Some(start);
        }
        assert_eq!(moves.next(), None);
        None
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Alloc(u32, bool),
    /// Free a live block, or a part of it this many orders smaller.
    Free(usize, u32, u32),
    Pin(usize),
    Unpin(usize),
    /// A run of so many pages at a multiple of 2^n.
    Run(u32, u32),
    FreeRun(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let order = prop_oneof![4 => 0_u32..6, 3 => 6_u32..10, 1 => 10_u32..12];
    let alloc = (order, prop::bool::weighted(0.7)).prop_map(|(o, m)| Action::Alloc(o, m));
    let free = (any::<usize>(), 0_u32..6, any::<u32>())
        .prop_map(|(which, smaller, place)| Action::Free(which, smaller.saturating_sub(2), place));
    let run = (1_u32..1500, 0_u32..10).prop_map(|(pages, align)| Action::Run(pages, align));
    prop::collection::vec(
        prop_oneof![
            10 => alloc,
            4 => free,
            1 => any::<usize>().prop_map(Action::Pin),
            1 => any::<usize>().prop_map(Action::Unpin),
            3 => run,
            2 => any::<usize>().prop_map(Action::FreeRun),
        ],
        1..120,
    )
}

/// One of a map's entries.
fn pick<T: Copy>(map: &BTreeMap<u32, T>, which: usize) -> Option<(u32, T)> {
    let place = which.checked_rem(map.len())?;
    map.iter().nth(place).map(|(&key, &value)| (key, value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn as_a_model_says(
        rest in BLOCK..4 * BLOCK,
        reserved in 1_u32..2 * BLOCK,
        actions in actions(),
    ) {
        let go_on = &mut Interrupts::none();
        let pages = rest + reserved;
        let mut cma = Cma::new(pages.into(), reserved.into()).unwrap();
        let mut model =
            Model { pages, base: cma.base(), blocks: BTreeMap::new(), runs: BTreeMap::new() };
        prop_assert_eq!(model.base, rest / BLOCK * BLOCK);
        let mut failures = 0;
        for action in actions {
            match action {
                Action::Alloc(order, movable) => {
                    let free = model.free();
                    let in_area = if movable {
                        model.movable_in_area(&free, order)
                    } else {
                        Model::has_block(&free, order, 0..model.base).then_some(false)
                    };
                    let page = cma.alloc_as(order, movable).unwrap();
                    prop_assert_eq!(page.map(|page| page >= model.base), in_area);
                    match page {
                        Some(page) => {
                            let block = Block { order, movable, pinned: false };
                            prop_assert!(model.blocks.insert(page, block).is_none());
                        }
                        None => {
                            let area = model.base..pages;
                            failures += u64::from(Model::has_block(&free, order, area));
                        }
                    }
                }
                Action::Free(which, smaller, place) => {
                    let Some((first, block)) = pick(&model.blocks, which) else { continue };
                    let order = block.order.saturating_sub(smaller);
                    let page = first + ((place % (1 << (block.order - order))) << order);
                    let freed = if order == block.order {
                        cma.free(page, order)
                    } else {
                        cma.free_part(first, block.order, page, order)
                    };
                    freed.unwrap();
                    model.split(first, page, order);
                }
                Action::Pin(which) | Action::Unpin(which) => {
                    let Some((page, _)) = pick(&model.blocks, which) else { continue };
                    let pinned = matches!(action, Action::Pin(_));
                    if pinned { cma.pin(page).unwrap() } else { cma.unpin(page) }
                    model.blocks.get_mut(&page).unwrap().pinned = pinned;
                }
                Action::Run(length, align) => {
                    let mut moves = Vec::new();
                    let run = cma.alloc_run(length, 1 << align, &mut moves, go_on).unwrap();
                    prop_assert_eq!(run, model.follow(length, 1 << align, &moves));
                }
                Action::FreeRun(which) => {
                    let Some((page, length)) = pick(&model.runs, which) else { continue };
                    cma.free_run(page, length, go_on).unwrap();
                    model.runs.remove(&page);
                }
            }
            prop_assert_eq!(cma.check(go_on), Ok(()));
            let mut free = vec![false; pages as usize];
            for Extent { start, pages } in cma.free_extents(go_on).unwrap() {
                free[start as usize..(start + pages) as usize].fill(true);
            }
            prop_assert!(free == model.free());
            let reserve = cma.reserve();
            let in_area = free[model.base as usize..].iter().filter(|&&free| free).count();
            prop_assert_eq!(reserve.pages, u64::from(pages - model.base));
            prop_assert_eq!((reserve.free_pages, reserve.failures), (in_area as u64, failures));
        }
    }
}

/// A rest of one block and an area of one, both full of single movable pages, the area's as a list.
fn full() -> (Cma, Vec<u32>) {
    let mut cma = Cma::new(2 * u64::from(BLOCK), BLOCK.into()).unwrap();
    let pages: Vec<u32> = (0..2 * BLOCK).map(|_| cma.alloc_as(0, true).unwrap().unwrap()).collect();
    assert_eq!(cma.alloc_as(0, true), Ok(None));
    let base = cma.base();
    (cma, pages.into_iter().filter(|&page| page >= base).collect())
}

#[test]
fn the_area_is_for_movable_pages_alone() {
    let mut cma = Cma::new(3 * u64::from(BLOCK), BLOCK.into()).unwrap();
    for _ in 0..2 {
        assert!(cma.alloc_as(10, false).unwrap().unwrap() < cma.base());
    }
    assert_eq!((cma.alloc_as(0, false), cma.alloc(0)), (Ok(None), Ok(None)));
    assert_eq!(cma.reserve().failures, 2);
    assert_eq!(cma.alloc_as(10, true), Ok(Some(2 * BLOCK)));
    assert_eq!(cma.alloc_as(0, false), Ok(None));
    assert_eq!(cma.reserve().failures, 2, "the area had none either");
}

#[test]
fn movable_pages_go_to_the_area_while_more_than_half_of_what_is_free_lies_there() {
    let mut cma = Cma::new(2 * u64::from(BLOCK), BLOCK.into()).unwrap();
    // Equal: the rest. Then the area has more, then the rest again.
    let pages = [(); 4].map(|()| cma.alloc_as(0, true).unwrap().unwrap() >= BLOCK);
    assert_eq!(pages, [false, true, false, true]);
}

#[test]
fn a_free_window_moves_nothing() {
    let mut cma = Cma::new(4 * u64::from(BLOCK), BLOCK.into()).unwrap();
    let (mut moves, go_on) = (Vec::new(), &mut Interrupts::none());
    assert_eq!(cma.alloc_run(512, 256, &mut moves, go_on), Ok(Some(3 * BLOCK)));
    assert_eq!(cma.alloc_run(512, 256, &mut moves, go_on), Ok(Some(3 * BLOCK + 512)));
    assert_eq!(cma.alloc_run(1, 1, &mut moves, go_on), Ok(None), "all is handed out");
    cma.free_run(3 * BLOCK, 512, go_on).unwrap();
    assert_eq!(cma.alloc_run(100, 64, &mut moves, go_on), Ok(Some(3 * BLOCK)));
    assert_eq!(moves, []);
}

#[test]
fn a_pinned_page_makes_windows_busy_and_what_was_moved_stays_moved() {
    let (mut cma, _) = full();
    // Room for 200 pages outside the area.
    for page in 0..200 {
        cma.free(page, 0).unwrap();
    }
    let pinned = BLOCK + 100;
    cma.pin(pinned).unwrap();
    let (mut moves, go_on) = (Vec::new(), &mut Interrupts::none());
    // The first window is left at the pinned page, the next begins with what the first left and
    // ends there too, and the third has no such page.
    assert_eq!(cma.alloc_run(128, 64, &mut moves, go_on), Ok(Some(BLOCK + 128)));
    let old: Vec<u32> = moves.iter().map(|made| made.old).collect();
    assert_eq!(old[..100], (BLOCK..pinned).collect::<Vec<u32>>());
    assert_eq!(old[100..], (BLOCK + 128..BLOCK + 256).collect::<Vec<u32>>());
    assert_eq!(cma.check(go_on), Ok(()));
    cma.free_run(BLOCK + 128, 128, go_on).unwrap();
    let extents = cma.free_extents(go_on).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.pages).sum::<u64>(), 200);
    cma.unpin(pinned);
    assert_eq!(cma.alloc_run(128, 64, &mut moves, go_on), Ok(Some(BLOCK)));
}

#[test]
fn without_room_for_what_is_in_the_way_there_is_no_run() {
    let (mut cma, _) = full();
    let (mut moves, go_on) = (Vec::new(), &mut Interrupts::none());
    assert_eq!((cma.alloc_run(1, 1, &mut moves, go_on), &moves[..]), (Ok(None), &[][..]));
    cma.free(7, 0).unwrap();
    assert_eq!(cma.alloc_run(1, 1, &mut moves, go_on), Ok(Some(BLOCK)));
    assert_eq!(moves, [Move { old: BLOCK, new: 7, order: 0 }]);
}

#[test]
fn a_block_without_a_home_is_split() {
    let mut cma = Cma::new(2 * u64::from(BLOCK), BLOCK.into()).unwrap();
    let rest: Vec<u32> = (0..BLOCK).map(|_| cma.alloc_as(0, false).unwrap().unwrap()).collect();
    assert!(rest.iter().all(|&page| page < BLOCK));
    let huge = cma.alloc_as(2, true).unwrap().unwrap();
    assert_eq!(huge, BLOCK);
    while cma.alloc_as(0, true).unwrap().is_some() {}
    for page in [10, 11, 20, 30] {
        cma.free(page, 0).unwrap();
    }
    let (mut moves, go_on) = (Vec::new(), &mut Interrupts::none());
    assert_eq!(cma.alloc_run(4, 4, &mut moves, go_on), Ok(Some(BLOCK)));
    assert_eq!(
        moves.iter().map(|made| (made.old, made.order)).collect::<Vec<_>>(),
        [(BLOCK, 1), (BLOCK + 2, 0), (BLOCK + 3, 0)]
    );
    assert_eq!(moves[0].new, 10);
    assert_eq!(cma.check(go_on), Ok(()));
}

#[test]
fn reserves_that_cannot_be() {
    for (pages, reserved) in [(1024, 1), (5000, 5000), (5000, 4000), (4096, 0)] {
        let refused = BuildError::Reserve { pages, reserved, block: 1024 };
        assert_eq!(Cma::new(pages, reserved).err(), Some(refused));
    }
    for pages in [0, PAGES_MAX + 1] {
        let refused = BuildError::Pages { pages, max: PAGES_MAX };
        assert_eq!(Cma::new(pages, 1).err(), Some(refused));
    }
}
