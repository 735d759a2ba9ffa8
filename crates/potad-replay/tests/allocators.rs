//! Every allocator against a model that keeps one flag for each page and searches from end to end,
//! with the allocator's own check after each step. proptest prints the seed of a failure.

use potad::Probe;
use potad_replay::{
    BlockCounts, BuildError, Extent, FirstFit, Interrupts, LinuxBuddy, PAGES_MAX, PageAllocator,
    PotadSpace,
};
use proptest::prelude::*;

/// One flag for each page.
struct Model {
    used: Vec<bool>,
}

impl Model {
    fn is_free(&self, start: usize, pages: usize) -> bool {
        start + pages <= self.used.len() && !self.used[start..start + pages].contains(&true)
    }

    fn lowest_block(&self, order: u32) -> Option<u32> {
        let size = 1 << order;
        (0..self.used.len())
            .step_by(size)
            .find(|&start| self.is_free(start, size))
            .map(|start| start as u32)
    }

    fn set(&mut self, page: u32, order: u32, used: bool) {
        let range = page as usize..page as usize + (1 << order);
        assert!(self.used[range.clone()].iter().all(|&was| was != used), "pages {range:?} twice");
        self.used[range].fill(used);
    }

    fn extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for page in (0..self.used.len()).filter(|&page| !self.used[page]) {
            match extents.last_mut() {
                Some(last) if last.end() == page as u64 => last.pages += 1,
                _ => extents.push(Extent { start: page as u64, pages: 1 }),
            }
        }
        extents
    }

    /// The maximal aligned free blocks: free, and no aligned block twice the size around is.
    fn blocks(&self) -> BlockCounts {
        let mut counts = BlockCounts::default();
        for order in 0..24 {
            let size = 1 << order;
            counts.0[order] = (0..self.used.len())
                .step_by(size)
                .filter(|&start| {
                    self.is_free(start, size) && !self.is_free(start & !size, 2 * size)
                })
                .count() as u64;
        }
        counts
    }

    fn can_run(&self, pages: usize, align: usize) -> bool {
        (0..self.used.len()).step_by(align).any(|start| self.is_free(start, pages))
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Alloc(u32),
    /// Free one of what is live, and of it only a piece this many orders smaller.
    Free(usize, u32, usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let alloc = (0_u32..10).prop_map(|order| Action::Alloc(order.saturating_sub(3)));
    let large = (0_u32..14).prop_map(Action::Alloc);
    let free = (any::<usize>(), 0_u32..6, any::<usize>())
        .prop_map(|(which, smaller, place)| Action::Free(which, smaller.saturating_sub(3), place));
    prop::collection::vec(prop_oneof![4 => alloc, 1 => large, 4 => free], 1..250)
}

/// What the allocator under test promises beyond the trait.
struct Promise {
    order_max: u32,
    lowest_address: bool,
}

fn follow(
    mut allocator: impl PageAllocator,
    promise: Promise,
    actions: &[Action],
) -> Result<(), TestCaseError> {
    let go_on = &mut Interrupts::none();
    let mut model = Model { used: vec![false; allocator.pages() as usize] };
    // Naturally aligned live blocks, and whether each is still the whole of its allocation.
    let mut live: Vec<(u32, u32, bool)> = Vec::new();
    for &action in actions {
        match action {
            Action::Alloc(order) => {
                let lowest = model.lowest_block(order).filter(|_| order <= promise.order_max);
                let page = allocator.alloc(order).unwrap();
                prop_assert_eq!(page.is_some(), lowest.is_some(), "order {}", order);
                if let Some(page) = page {
                    prop_assert_eq!(page & ((1 << order) - 1), 0);
                    if promise.lowest_address {
                        prop_assert_eq!(Some(page), lowest);
                    }
                    model.set(page, order, true);
                    live.push((page, order, true));
                }
            }
            Action::Free(..) if live.is_empty() => continue,
            Action::Free(which, smaller, place) => {
                let (page, order, whole) = live.swap_remove(which % live.len());
                let piece_order = order.saturating_sub(smaller);
                if piece_order == order && whole {
                    allocator.free(page, order).unwrap();
                    model.set(page, order, false);
                } else {
                    let piece =
                        page + ((place as u32 % (1 << (order - piece_order))) << piece_order);
                    allocator.free_piece(piece, piece_order).unwrap();
                    model.set(piece, piece_order, false);
                    for half in piece_order..order {
                        live.push(((piece & !((1 << half) - 1)) ^ (1 << half), half, false));
                    }
                }
            }
        }
        prop_assert_eq!(allocator.check(go_on), Ok(()));
        prop_assert_eq!(allocator.free_extents(go_on).unwrap(), model.extents());
        prop_assert_eq!(allocator.free_blocks(go_on).unwrap(), model.blocks());
        for (pages, align) in
            [(1, 1), (3, 1), (8, 1), (24, 4), (8, 8), (5, 16), (64, 8), (700, 64), (2048, 256)]
        {
            prop_assert_eq!(
                allocator.can_run(pages, align, go_on).unwrap(),
                model.can_run(pages as usize, align as usize)
            );
        }
    }
    // Everything back, in whatever pieces it is: the memory is as it was.
    for (page, order, whole) in live {
        let freed =
            if whole { allocator.free(page, order) } else { allocator.free_piece(page, order) };
        freed.unwrap();
        prop_assert_eq!(allocator.check(go_on), Ok(()));
    }
    let all = vec![Extent { start: 0, pages: allocator.pages() }];
    prop_assert_eq!(allocator.free_extents(go_on).unwrap(), all);
    Ok(())
}

/// Memories of one page, of a power of two, of less and of more.
fn memories() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), Just(1024), Just(3 << 9), Just(2047), 1_u64..5000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn linux_buddy(pages in memories(), actions in actions()) {
        let promise = Promise { order_max: 10, lowest_address: false };
        let buddy: LinuxBuddy = LinuxBuddy::new(pages).unwrap();
        follow(buddy, promise, &actions)?;
    }

    #[test]
    fn linux_buddy_with_tail_and_few_orders(pages in memories(), actions in actions()) {
        let promise = Promise { order_max: 5, lowest_address: false };
        follow(LinuxBuddy::<_, 5, true>::new(pages).unwrap(), promise, &actions)?;
    }

    #[test]
    fn linux_buddy_with_many_orders(pages in memories(), actions in actions()) {
        let promise = Promise { order_max: 31, lowest_address: false };
        follow(LinuxBuddy::<_, 31>::new(pages).unwrap(), promise, &actions)?;
    }

    #[test]
    fn linux_buddy_of_single_pages(pages in memories(), actions in actions()) {
        let promise = Promise { order_max: 0, lowest_address: false };
        follow(LinuxBuddy::<_, 0>::new(pages).unwrap(), promise, &actions)?;
    }

    #[test]
    fn first_fit(pages in memories(), actions in actions()) {
        let promise = Promise { order_max: 31, lowest_address: true };
        follow(FirstFit::new(pages).unwrap(), promise, &actions)?;
    }

    #[test]
    fn potad(pages in memories(), actions in actions()) {
        let promise = Promise { order_max: 31, lowest_address: false };
        follow(PotadSpace::with_probe(pages, potad::NoProbe).unwrap(), promise, &actions)?;
    }

    /// The very pages, against lists that are vectors and searched for the buddy.
    #[test]
    fn linux_buddy_takes_last_in_first_out(pages in memories(), actions in actions()) {
        let mut buddy: LinuxBuddy = LinuxBuddy::new(pages).unwrap();
        let mut lists = NaiveLists::new(pages as u32, 10);
        let mut live = Vec::new();
        for action in actions {
            match action {
                Action::Alloc(order) => {
                    let page = buddy.alloc(order);
                    prop_assert_eq!(page, lists.alloc(order));
                    live.extend(page.map(|page| (page, order)));
                }
                Action::Free(..) if live.is_empty() => {}
                Action::Free(which, ..) => {
                    let (page, order) = live.swap_remove(which % live.len());
                    buddy.free(page, order);
                    lists.free(page, order);
                }
            }
        }
    }
}

/// Free blocks of each order, the next to be taken last.
struct NaiveLists(Vec<Vec<u32>>);

impl NaiveLists {
    fn new(pages: u32, order_max: u32) -> NaiveLists {
        let mut lists = NaiveLists(vec![Vec::new(); order_max as usize + 1]);
        let mut end = pages;
        while end > 0 {
            let order = end.trailing_zeros().min(order_max);
            end -= 1 << order;
            lists.0[order as usize].push(end);
        }
        lists
    }

    fn alloc(&mut self, order: u32) -> Option<u32> {
        let from = (order as usize..self.0.len()).find(|&from| !self.0[from].is_empty())?;
        let page = self.0[from].pop()?;
        for half in (order as usize..from).rev() {
            self.0[half].push(page + (1 << half));
        }
        Some(page)
    }

    fn free(&mut self, page: u32, order: u32) {
        let may_merge = (order as usize) < self.0.len() - 1;
        let list = &mut self.0[order as usize];
        match list.iter().position(|&other| other == page ^ (1 << order)) {
            Some(buddy) if may_merge => {
                list.remove(buddy);
                self.free(page & !(1 << order), order + 1);
            }
            _ => list.push(page),
        }
    }
}

#[test]
fn a_block_likely_to_merge_goes_to_the_end() {
    let mut plain = LinuxBuddy::<_, 10, false>::new(8).unwrap();
    let mut tail = LinuxBuddy::<_, 10, true>::new(8).unwrap();
    for buddy in [&mut plain as &mut dyn PageAllocator, &mut tail] {
        let pages: Vec<u32> = (0..8).map(|_| buddy.alloc(0).unwrap().unwrap()).collect();
        assert_eq!(pages, [0, 1, 2, 3, 4, 5, 6, 7]);
        // 2 and 3 merge, the pair beside 0 and 1 is free; 0 is likely to merge with 1, then with these.
        for page in [6, 2, 3, 0] {
            buddy.free(page, 0).unwrap();
        }
    }
    assert_eq!((plain.alloc(0), plain.alloc(0)), (Some(0), Some(6)));
    assert_eq!((tail.alloc(0), tail.alloc(0)), (Some(6), Some(0)));
}

#[test]
fn memories_no_allocator_can_have() {
    for pages in [0, PAGES_MAX + 1, u64::MAX] {
        let expected = BuildError::Pages { pages, max: PAGES_MAX };
        assert_eq!(LinuxBuddy::<_, 10>::new(pages).err(), Some(expected.clone()));
        assert_eq!(FirstFit::new(pages).err(), Some(expected.clone()));
        assert_eq!(PotadSpace::with_probe(pages, potad::NoProbe).err(), Some(expected));
    }
}

#[test]
#[should_panic(expected = "double free of page 8")]
fn a_double_free_of_a_listed_page_is_refused() {
    let mut buddy: LinuxBuddy = LinuxBuddy::new(64).unwrap();
    let pages: Vec<u32> = (0..64).map(|_| buddy.alloc(0).unwrap()).collect();
    assert_eq!(pages.len(), 64);
    buddy.free(8, 0);
    buddy.free(8, 0);
}

#[test]
#[should_panic(expected = "in a zone of 64 pages")]
fn a_free_outside_is_refused() {
    let mut buddy: LinuxBuddy = LinuxBuddy::new(64).unwrap();
    buddy.free(64, 0);
}

#[test]
#[should_panic(expected = "free of page 9 at order 0")]
fn a_double_free_in_first_fit_is_refused() {
    let mut allocator = FirstFit::new(64).unwrap();
    let page = allocator.alloc(4).unwrap().unwrap();
    allocator.free(page, 4).unwrap();
    let _ = allocator.free(9, 0);
}

/// 2^28 pages are 16 GiB of page structures: made without touching them, and used at both ends.
#[test]
fn a_large_memory_costs_what_is_used() {
    let mut buddy = LinuxBuddy::<_, 28>::new(1 << 28).unwrap();
    let all = buddy.alloc(28).expect("the one block");
    buddy.free(all, 28);
    let low = buddy.alloc(0).unwrap();
    assert_eq!((low, buddy.alloc(27)), (0, Some(1 << 27)));
    buddy.free(low, 0);
    let go_on = &mut Interrupts::none();
    assert_eq!(buddy.check(go_on), Ok(()));
    assert_eq!(buddy.free_extents(go_on).unwrap(), [Extent { start: 0, pages: 1 << 27 }]);
    let resident = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| {
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        Some(pages * 4096)
    });
    if let Some(resident) = resident {
        assert!(resident < 1 << 30, "{resident} bytes are resident");
    }
}

/// The probe sees every operation, and the same accesses in every run.
#[test]
fn every_operation_is_probed() {
    struct Sum(std::cell::Cell<(u64, u64)>);
    impl Probe for &Sum {
        fn touch(&self, _address: usize, bytes: usize) {
            let (calls, total) = self.0.get();
            self.0.set((calls + 1, total + bytes as u64));
        }
    }
    fn accesses(sum: &Sum, mut allocator: impl PageAllocator) -> (u64, u64) {
        let mut pages = Vec::new();
        for order in (0..6).cycle().take(200) {
            let before = sum.0.get().0;
            pages.push((allocator.alloc(order).unwrap().unwrap(), order));
            assert!(sum.0.get().0 > before, "an allocation touched nothing");
        }
        for (page, order) in pages {
            let before = sum.0.get().0;
            allocator.free(page, order).unwrap();
            assert!(sum.0.get().0 > before, "a free touched nothing");
        }
        sum.0.replace((0, 0))
    }
    let sum = Sum(Default::default());
    let linux = || LinuxBuddy::<_, 10>::with_probe(1 << 16, &sum, &mut Interrupts::none()).unwrap();
    let first_fit = || FirstFit::with_probe(1 << 16, &sum).unwrap();
    let potad = || PotadSpace::with_probe(1 << 16, &sum).unwrap();
    assert_eq!(accesses(&sum, linux()), accesses(&sum, linux()));
    assert_eq!(accesses(&sum, first_fit()), accesses(&sum, first_fit()));
    assert_eq!(accesses(&sum, potad()), accesses(&sum, potad()));
}
