//! Relocation: the window is a cheapest one, success is claimed exactly when it is possible, and every
//! allocation is intact afterwards. Beside a model that tries everything.

mod common;

use std::collections::BTreeMap;

use common::random::Random;
use potad::{Error, Fit, Kind, Label, Made, Move, Reason, Relocation, Space, Why, Window};

/// What a granule, or an allocation, is to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Movable,
    Unmovable,
    Pinned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allocation {
    length: u64,
    align: u64,
    sort: Sort,
    owner: u32,
}

/// A space of few granules of one unit, and all that is known of it.
struct Model {
    space: Space,
    kinds: [Kind; 2],
    base: u64,
    granules: u64,
    live: BTreeMap<u64, Allocation>,
    retired: Vec<u64>,
    owners: u32,
}

impl Model {
    fn new(base: u64, granules: u64) -> Self {
        let mut space = Space::new(base, granules.into(), 1).expect("a space");
        let kinds = [false, true].map(|movable| space.add_kind(16, movable).expect("a kind"));
        let (live, retired) = (BTreeMap::new(), Vec::new());
        Model { space, kinds, base, granules, live, retired, owners: 0 }
    }

    /// Says of what was allocated at `at` what it is, and marks its record.
    fn describe(&mut self, at: u64, length: u64, align: u64, sort: Sort) {
        self.owners += 1;
        let label = Label {
            kind: Some(self.kinds[usize::from(sort != Sort::Unmovable)]),
            owner: self.owners,
        };
        self.space.describe(at, label, align.into()).expect("it has none");
        let record = self.space.look(at).unwrap().expect("it has a record");
        // SAFETY: nobody else looks at it.
        unsafe { record.as_ptr().cast::<u32>().write(self.owners) };
        self.space.look_away(record);
        if sort == Sort::Pinned {
            self.space.pin(at).expect("it is allocated");
        }
        self.live.insert(at, Allocation { length, align, sort, owner: self.owners });
    }

    fn alloc_at(&mut self, at: u64, length: u64, align: u64, sort: Sort) {
        self.space.alloc_at(at, length.into()).expect("it is free");
        self.describe(at, length, align, sort);
    }

    fn is_free(&self, granule: u64) -> bool {
        !self.retired.contains(&granule)
            && self.live.iter().all(|(&at, it)| !(at..at + it.length).contains(&granule))
    }

    fn touching(&self, start: u64, length: u64) -> Vec<(u64, Allocation)> {
        let touches =
            |&(&at, it): &(&u64, &Allocation)| at < start + length && at + it.length > start;
        self.live.iter().filter(touches).map(|(&at, &it)| (at, it)).collect()
    }

    /// The cheapest window for a run, and what is to be moved, by trying all.
    fn cheapest(&self, length: u64, align: u64) -> Option<(u64, u64)> {
        let mut best: Option<(u64, u64)> = None;
        let end = self.base + self.granules;
        for start in (self.base..end).filter(|at| at.is_multiple_of(align) && at + length <= end) {
            let victims = self.touching(start, length);
            let cost = victims.iter().map(|(_, it)| it.length).sum();
            if best.is_some_and(|(least, _)| least <= cost)
                || victims.iter().any(|(_, it)| it.sort != Sort::Movable)
                || self.retired.iter().any(|at| (start..start + length).contains(at))
            {
                continue;
            }
            let outside = |at: &u64| self.is_free(*at) && !(start..start + length).contains(at);
            let free: Vec<u64> = (self.base..end).filter(outside).collect();
            if fits(&victims.iter().map(|it| it.1).collect::<Vec<_>>(), &free) {
                best = Some((cost, start));
            }
        }
        best
    }

    /// What an allocation must be, wherever it is.
    fn check(&mut self) {
        self.space.check().expect("the space is consistent");
        let live: Vec<_> = self.space.allocations().map(|it| (it.start, it.size as u64)).collect();
        let expected: Vec<_> = self.live.iter().map(|(&at, it)| (at, it.length)).collect();
        assert_eq!(live, expected);
        for (&at, it) in &self.live {
            let described = self.space.lookup_described(at).expect("it is live");
            assert_eq!(described.label.owner, it.owner);
            assert_eq!(described.pins, u32::from(it.sort == Sort::Pinned));
            assert!(at.is_multiple_of(it.align), "{it:?} at {at}");
            let bytes = self.space.read_records(std::iter::once(at)).unwrap();
            assert_eq!(bytes[..4], it.owner.to_ne_bytes(), "the record of {it:?} at {at}");
        }
    }

    /// Follows moves that were made.
    fn follow(&mut self, moves: &[Move]) {
        for it in moves {
            let allocation = self.live.remove(&it.old).expect("it was there");
            assert_eq!((it.size as u64, it.label.owner), (allocation.length, allocation.owner));
            assert_eq!(allocation.sort, Sort::Movable);
            self.live.insert(it.new, allocation);
        }
    }

    /// Asks for a run, compares with what the model says, and frees it again.
    fn ask(&mut self, length: u64, align: u64) {
        let expected = self.cheapest(length, align);
        let plan = self.space.plan_run(length.into(), align.into(), None, Fit::First);
        let mut moves = Vec::new();
        let done =
            self.space.alloc_run_moving(length.into(), align.into(), None, Fit::First, |it| {
                moves.push(*it)
            });
        match (expected, done) {
            (Some((cost, at)), Ok(start)) => {
                let moved: u128 = moves.iter().map(|it| it.size).sum();
                assert_eq!((moved as u64, start), (cost, at), "{:?}", self.live);
                assert_eq!(plan, Ok((start, moves.clone())), "what was planned is what was done");
                self.follow(&moves);
                for it in &moves {
                    let (old, new) = (it.old..it.old + it.size as u64, start..start + length);
                    assert!(
                        old.end > new.start && old.start < new.end,
                        "{it:?} was not in the way"
                    );
                }
                assert_eq!(self.space.free(start), Ok(length.into()));
            }
            (None, Err(Error::OutOfSpace { reason, .. })) => {
                assert_eq!(reason == Reason::Exhausted, self.space.available() < length.into());
                assert!(matches!(plan, Err(Error::OutOfSpace { .. })));
            }
            (expected, done) => {
                panic!("{length} at {align}: {expected:?}, got {done:?}: {:?}", self.live)
            }
        }
    }
}

/// Whether allocations fit into free granules, ascending, by trying all ways.
fn fits(items: &[Allocation], free: &[u64]) -> bool {
    let Some((item, rest)) = items.split_first() else { return true };
    free.iter().any(|&start| {
        let range = start..start + item.length;
        start.is_multiple_of(item.align)
            && range.clone().all(|at| free.contains(&at))
            && fits(
                rest,
                &free.iter().copied().filter(|at| !range.contains(at)).collect::<Vec<_>>(),
            )
    })
}

/// Places where the tree has bounds: in a row, across rows, across nodes of level 1, at the end.
fn bases(granules: u64) -> [u64; 4] {
    [0, 64 - granules / 2, 4096 - granules / 2, u64::MAX - granules + 1]
}

#[test]
fn all_states_of_six_granules() {
    const GRANULES: u64 = 6;
    for base in bases(GRANULES) {
        for state in 0..5u64.pow(GRANULES as u32) {
            let digit = |at: u64| state / 5u64.pow(at as u32) % 5;
            // Of the last two bases only some: they differ in where rows end.
            if base > 64 && state % 7 != 0 || base == u64::MAX - GRANULES + 1 && digit(5) != 0 {
                continue;
            }
            let mut model = Model::new(base, GRANULES);
            for at in 0..GRANULES {
                match digit(at) {
                    0 => {}
                    1 => model.alloc_at(base + at, 1, 1, Sort::Movable),
                    2 => model.alloc_at(base + at, 1, 1, Sort::Unmovable),
                    3 => model.alloc_at(base + at, 1, 1, Sort::Pinned),
                    _ => {
                        model.space.retire(base + at, 1).expect("it is in the space");
                        model.retired.push(base + at);
                    }
                }
            }
            if base == u64::MAX - GRANULES + 1 {
                // The model counts in 64 bits, and would overflow at the end.
                model.space.check().expect("the space is consistent");
                let _ = model.space.alloc_run_moving(2, 1, None, Fit::First, |_| {});
                model.space.check().expect("the space is consistent");
                continue;
            }
            for (length, align) in [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2), (3, 3), (5, 1), (6, 2)]
            {
                model.ask(length, align);
            }
            model.check();
        }
    }
}

#[test]
fn random_states_with_blocks_and_runs() {
    let mut random = Random::new(0x5eed_0004);
    for round in 0..6000 {
        let granules = 8 + random.within(0..13);
        let base = bases(granules)[random.within(0..3) as usize];
        let mut model = Model::new(base, granules);
        for _ in 0..random.within(2..14) {
            let sort = random.pick(&[
                Sort::Movable,
                Sort::Movable,
                Sort::Movable,
                Sort::Movable,
                Sort::Unmovable,
                Sort::Pinned,
            ]);
            let length = 1 + random.within(0..4).min(random.within(0..5));
            // A block as often as a run with an alignment of its own.
            let align = match length.is_power_of_two() && random.one_in(2) {
                true => length,
                false => random.pick(&[1, 1, 1, 2, 3, 4]),
            };
            let at = base + random.within(0..granules);
            let at = at.next_multiple_of(align);
            if model.space.alloc_at(at, length.into()).is_ok() {
                model.describe(at, length, align, sort);
            }
        }
        if random.one_in(3) {
            let at = base + random.within(0..granules);
            let was_free = model.is_free(at);
            model.space.retire(at, 1).expect("it is in the space");
            model.retired.push(at);
            // A granule that is in use is retired when what is in it goes: the model's allocations must
            // not move then, or it would have to know.
            if !was_free {
                model.space.restore(at, 1).expect("it is retired");
                model.retired.pop();
            }
        }
        model.check();
        for _ in 0..4 {
            let length = 1 + random.within(0..granules);
            let align = random.pick(&[1, 1, 2, 4, 3, 8]);
            model.ask(length, align);
            model.check();
        }
        if round % 500 == 0 {
            eprintln!("{round}: {} live", model.live.len());
        }
    }
}

#[test]
fn pieces_keep_to_what_they_need() {
    let mut model = Model::new(0, 64);
    let kind = model.kinds[1];
    let label = Label { kind: Some(kind), owner: 1 };
    let block = model.space.alloc_described(16, None, label).expect("there is room");
    // Fifteen granules of sixteen: the pieces are 8, 4 + 2 + 1 and the hole, as a buddy would cut.
    model.space.free_range(block + 11, 1).expect("it is allocated");
    model.space.split(block, 8).expect("it is longer");
    let mut moves = Vec::new();
    let all = model.space.alloc_run_moving(32, 32, Some((0, 32)), Fit::First, |it| moves.push(*it));
    assert_eq!(all, Ok(0));
    moves.sort_by_key(|it| it.old);
    let sizes: Vec<u128> = moves.iter().map(|it| it.size).collect();
    assert_eq!(sizes, [8, 3, 4]);
    assert!(moves[0].new.is_multiple_of(8) && moves[2].new.is_multiple_of(4));
    // From granule 8 on, three of them: they need no more than a multiple of four.
    assert!(moves[1].new.is_multiple_of(4));
    model.space.check().expect("the space is consistent");
}

#[test]
fn what_was_asked_for_with_an_alignment_keeps_it() {
    for align in [8u64, 3, 5, 24] {
        let mut space = Space::new(0, 256, 1).expect("a space");
        let kind = space.add_kind(0, true).expect("a kind");
        let at = space.alloc_run(2, align.into(), None, Fit::First).expect("there is room");
        let label = Label { kind: Some(kind), owner: 0 };
        space.describe(at, label, align.into()).expect("it has none");
        let mut moves = Vec::new();
        for _ in 0..5 {
            let window = moves.last().map_or(at, |it: &Move| it.new);
            let within = Some((window, window as u128 + 2));
            let run = space.alloc_run_moving(2, 1, within, Fit::First, |it| moves.push(*it));
            assert_eq!(run, Ok(window));
            let new = moves.last().expect("it was in the way").new;
            assert!(new.is_multiple_of(align) && new != window, "{new} at {align}");
            space.check().expect("the space is consistent");
        }
    }
}

/// A space of 64 granules: movable blocks of 4 at 0, 4, 8 and 12, the rest free but for the last half.
fn four_blocks() -> (Space, Kind, [u64; 4]) {
    let mut space = Space::new(0, 64, 1).expect("a space");
    let kind = space.add_kind(8, true).expect("a kind");
    let blocks = [0, 4, 8, 12];
    for (owner, at) in (1..).zip(blocks) {
        space.alloc_at(at, 4).expect("it is free");
        space.describe(at, Label { kind: Some(kind), owner }, 4).expect("it has none");
    }
    space.alloc_at(32, 32).expect("it is free");
    (space, kind, blocks)
}

const LOW: Option<(u64, u128)> = Some((0, 16));

/// Begins to make room for a block of a size, in a call of its own.
fn begin(space: &mut Space, size: u128, within: Window) -> Result<Relocation, Error> {
    let call = space.begin_call();
    space.begin_run(size, size, within, call)
}

#[test]
fn between_the_moves_everything_is_a_whole_state() {
    let (mut space, _, blocks) = four_blocks();
    let mut relocation = begin(&mut space, 16, LOW).expect("there is room");
    assert_eq!((relocation.moves().len(), relocation.size()), (4, 16));
    assert_eq!(relocation.windows(), [(0, 16)]);
    for (number, block) in blocks.into_iter().enumerate() {
        space.check().expect("the space is consistent");
        let it = relocation.moves()[number];
        assert_eq!(space.lookup_described(it.old).map(|d| d.label), Some(it.label));
        // Its home is nobody's.
        let held = space.lookup_described(it.new).expect("it is held");
        assert!(held.held && held.pins == 0);
        for error in [space.free(it.new).err(), space.pin(it.new).err(), space.unpin(it.new).err()]
        {
            assert!(matches!(error, Some(Error::Busy { pins: u32::MAX, .. })), "{error:?}");
        }
        assert_eq!(space.make_move(&mut relocation, number), Ok(Made::Moved));
        assert_eq!(space.lookup_described(it.new).map(|d| d.label), Some(it.label));
        assert!(space.free(block).is_err(), "what it left is held");
    }
    assert_eq!(space.finish_run(&mut relocation), Some(0));
    space.check().expect("the space is consistent");
    assert_eq!(space.lookup(15).map(|it| it.size), Some(16));
}

#[test]
fn whoever_is_to_move_may_be_freed_pinned_or_cut_meanwhile() {
    let (mut space, kind, blocks) = four_blocks();
    let mut relocation = begin(&mut space, 16, LOW).expect("there is room");
    let number =
        |at: u64| relocation.moves().iter().position(|it| it.old == at).expect("it is moved");
    let [freed, pinned, cut, moved] = blocks.map(number);
    space.free(blocks[0]).expect("it is allocated");
    space.pin(blocks[1] + 2).expect("it is allocated");
    space.split(blocks[2], 1).expect("it is longer");
    space.check().expect("the space is consistent");
    // Somebody else now has what was freed, and may move it.
    assert_eq!(space.alloc_at(blocks[0], 2), Ok(0));
    space.describe(0, Label { kind: Some(kind), owner: 9 }, 1).expect("it has none");
    assert_eq!(space.make_move(&mut relocation, freed), Ok(Made::Gone));
    assert_eq!(space.make_move(&mut relocation, pinned), Ok(Made::Stays));
    assert_eq!(space.make_move(&mut relocation, cut), Ok(Made::Stays));
    assert_eq!(space.make_move(&mut relocation, moved), Ok(Made::Moved));
    space.check().expect("the space is consistent");
    assert_eq!(space.finish_run(&mut relocation), None, "the window is not empty");
    space.check().expect("the space is consistent");
    assert_eq!(space.used(), 32 + 2 + 4 + 4 + 4);
    // Without the pin all can go: what is left is loose again.
    space.unpin(blocks[1]).expect("it is pinned");
    let mut moves = 0;
    assert_eq!(space.alloc_run_moving(16, 16, LOW, Fit::First, |_| moves += 1), Ok(0));
    assert_eq!(moves, 4);
    space.check().expect("the space is consistent");
}

#[test]
fn a_move_that_is_under_way_is_not_made_by_another() {
    let (mut space, ..) = four_blocks();
    let mut first = begin(&mut space, 4, Some((0, 4))).expect("there is room");
    assert!(begin(&mut space, 4, Some((0, 4))).is_err());
    assert!(matches!(space.begin_move(0, 20), Err(Error::Argument { name: "from", .. })));
    let mut second = begin(&mut space, 8, Some((4, 16))).expect("there is room");
    assert_eq!(second.windows(), [(8, 8)]);
    space.check().expect("the space is consistent");
    space.give_up(&mut first);
    space.give_up(&mut second);
    space.check().expect("the space is consistent");
    assert_eq!((space.used(), space.len()), (48, 5));
}

#[test]
fn a_window_or_home_whose_memory_fails_is_not_used() {
    let (mut space, ..) = four_blocks();
    let mut relocation = begin(&mut space, 4, Some((0, 4))).expect("there is room");
    let home = relocation.moves()[0].new;
    space.retire(home + 1, 1).expect("it is in the space");
    assert_eq!(space.make_move(&mut relocation, 0), Ok(Made::Stays));
    space.give_up(&mut relocation);
    space.check().expect("the space is consistent");
    let mut relocation = begin(&mut space, 4, Some((0, 4))).expect("there is room");
    assert_eq!(space.make_move(&mut relocation, 0), Ok(Made::Moved));
    space.retire(3, 1).expect("it is in the space");
    assert_eq!(space.finish_run(&mut relocation), None);
    space.check().expect("the space is consistent");
    assert_eq!(space.retired().collect::<Vec<_>>(), [(3, 1), (home + 1, 1)]);
    // A run never has a retired granule, also of one that is in use.
    space.retire(6, 1).expect("it is in the space");
    let run = space.alloc_run_moving(4, 4, Some((4, 8)), Fit::First, |_| {});
    assert!(matches!(run, Err(Error::OutOfSpace { reason: Reason::Fragmented, .. })));
}

#[test]
fn what_is_refused_stays_and_the_next_best_window_is_taken() {
    let (mut space, ..) = four_blocks();
    let (call, other) = (space.begin_call(), space.begin_call());
    for expected in [0, 4, 8, 12] {
        let mut relocation = space.begin_run(4, 4, LOW, call).expect("there is room");
        assert_eq!(relocation.windows(), [(expected, 4)]);
        space.refuse(&relocation, 0).expect("it takes no memory to speak of");
        space.give_up(&mut relocation);
        space.check().expect("the space is consistent");
    }
    assert!(space.begin_run(4, 4, LOW, call).is_err());
    // Another call knows nothing of it, and moves one: that is refused by the first still.
    let mut relocation = space.begin_run(4, 4, LOW, other).expect("there is room");
    assert_eq!(space.make_move(&mut relocation, 0), Ok(Made::Moved));
    let new = relocation.moves()[0].new;
    space.give_up(&mut relocation);
    assert_eq!(space.free(0), Err(Error::NotAllocated { address: 0, inside: None }));
    assert!(space.begin_run(4, 4, Some((new, new as u128 + 4)), call).is_err());
    // What comes in the place of something that was refused was not.
    space.free(4).expect("it is allocated");
    space.alloc_at(4, 4).expect("it is free");
    let kind = space.lookup_described(8).expect("it is live").label.kind;
    space.describe(4, Label { kind, owner: 0 }, 4).expect("it has none");
    let mut relocation = space.begin_run(4, 4, Some((4, 8)), call).expect("there is room");
    space.give_up(&mut relocation);
    space.forget_call(call);
    space.forget_call(other);
    space.check().expect("the space is consistent");
    let mut relocation = space.begin_run(4, 4, Some((8, 12)), call).expect("there is room");
    space.give_up(&mut relocation);
}

#[test]
fn only_what_a_call_has_moved_is_moved_back() {
    let (mut space, kind, _) = four_blocks();
    let (call, other) = (space.begin_call(), space.begin_call());
    let move_one = |space: &mut Space| {
        let mut relocation = space.begin_run(4, 4, LOW, call).expect("there is room");
        assert_eq!(space.make_move(&mut relocation, 0), Ok(Made::Moved));
        let it = relocation.moves()[0];
        space.give_up(&mut relocation);
        it
    };
    let it = move_one(&mut space);
    assert!(space.begin_back(other, it.old, it.new).is_err(), "another call has not");
    let mut back = space.begin_back(call, it.old, it.new).expect("it is there");
    assert_eq!(space.make_move(&mut back, 0), Ok(Made::Moved));
    space.give_up(&mut back);
    assert!(space.begin_back(call, it.old, it.new).is_err(), "it is not there");
    // Something else in its place is not it.
    let it = move_one(&mut space);
    space.free(it.new).expect("it is allocated");
    space.alloc_at(it.new, 4).expect("it is free");
    space.describe(it.new, Label { kind: Some(kind), owner: 1 }, 4).expect("it has none");
    assert!(space.begin_back(call, it.old, it.new).is_err());
    space.forget_call(call);
    space.check().expect("the space is consistent");
}

#[test]
fn moves_lead_back() {
    let (mut space, ..) = four_blocks();
    let mut there = space.begin_move(0, 20).expect("it is free");
    assert_eq!(space.make_move(&mut there, 0), Ok(Made::Moved));
    space.give_up(&mut there);
    assert_eq!(space.lookup(20).map(|it| it.start), Some(20));
    let mut back = space.begin_move(20, 0).expect("it is free");
    assert_eq!(space.make_move(&mut back, 0), Ok(Made::Moved));
    space.give_up(&mut back);
    space.check().expect("the space is consistent");
    assert_eq!((space.lookup(0).map(|it| it.size), space.lookup(20)), (Some(4), None));
    assert!(matches!(space.begin_move(1, 20), Err(Error::NotAllocated { .. })));
    assert!(matches!(space.begin_move(0, 32), Err(Error::OutOfSpace { .. })));
    assert!(matches!(space.begin_move(32, 20), Err(Error::Argument { .. })));
    space.check().expect("the space is consistent");
}

#[test]
fn what_is_in_the_way_can_be_told() {
    let (mut space, kind, _) = four_blocks();
    space.pin(4).expect("it is allocated");
    let error = space.alloc_run_moving(40, 1, None, Fit::First, |_| {}).expect_err("no room");
    assert!(matches!(error, Error::OutOfSpace { reason: Reason::Exhausted, available: 16, .. }));
    let obstacles = space.obstacles(None).expect("a window");
    assert_eq!(
        obstacles.iter().map(|it| (it.count, it.size)).collect::<Vec<_>>(),
        [(1, 32), (1, 4)]
    );
    assert_eq!(obstacles[1].label, Label { kind: Some(kind), owner: 2 });
    let whys = obstacles.iter().map(|it| it.why).collect::<Vec<_>>();
    assert_eq!(whys, [Why::Unmovable, Why::Pinned]);
    space.unpin(4).expect("it is pinned");
    let mut relocation = begin(&mut space, 16, LOW).expect("there is room");
    let obstacles = space.obstacles(LOW).expect("a window");
    assert!(obstacles.iter().all(|it| it.why == Why::Moving && it.size == 4), "{obstacles:?}");
    space.give_up(&mut relocation);
}

#[test]
fn compaction_brings_blocks_back_for_the_fewest_bytes() {
    let mut random = Random::new(0x5eed_0005);
    for _ in 0..400 {
        let mut model = Model::new(0, 512);
        for _ in 0..random.within(20..160) {
            let order = random.within(0..3);
            let sort = random.pick(&[Sort::Movable, Sort::Movable, Sort::Movable, Sort::Unmovable]);
            let at = random.within(0..512) & !((1 << order) - 1);
            if model.space.alloc_at(at, 1 << order).is_ok() {
                model.describe(at, 1 << order, 1 << order, sort);
            }
        }
        let (size, count) = (32, 1 + random.within(0..12) as usize);
        let budget = random.pick(&[0, 20, 100, 1 << 20]);
        // Blocks of powers of two never lie across two windows, so that costs add up.
        let cost = |at: u64, model: &Model| {
            let victims = model.touching(at, size);
            let all = victims.iter().all(|(_, it)| it.sort == Sort::Movable);
            all.then(|| victims.iter().map(|(_, it)| it.length).sum::<u64>())
        };
        let mut costs: Vec<u64> =
            (0..512).step_by(size as usize).filter_map(|at| cost(at, &model)).collect();
        costs.sort_unstable();
        let mut left = budget;
        let afforded = costs.iter().take(count).take_while(|&&cost| {
            let afforded = cost <= left;
            left = left.saturating_sub(cost);
            afforded
        });
        let (most, least) = afforded.fold((0, 0), |(n, sum), cost| (n + 1, sum + cost));
        let before: usize = costs.iter().take(count).filter(|&&cost| cost == 0).count();
        let plan = model.space.plan_compaction(size.into(), count, None, budget.into());
        model.check();
        let mut moves = Vec::new();
        let blocks = model
            .space
            .compact(size.into(), count, None, budget.into(), |it| moves.push(*it))
            .expect("it takes no memory to speak of");
        assert_eq!(plan, Ok((blocks, moves.clone())));
        model.follow(&moves);
        model.check();
        let moved: u128 = moves.iter().map(|it| it.size).sum();
        assert!(moved as u64 <= budget && blocks >= before && blocks <= count);
        // There is nearly always room: then it is the cheapest that can be had.
        let free = model.space.available() as u64;
        if free >= size * most as u64 + 8 * least {
            assert_eq!((blocks, moved as u64), (most, least));
        }
        let all = |at: &u64| (*at..at + size).all(|granule| model.is_free(granule));
        assert!((0..512).step_by(size as usize).filter(all).count() >= blocks);
    }
}

#[test]
fn blocks_that_are_free_count_and_others_are_made_beside_them() {
    let mut space = Space::new(0, 128, 1).expect("a space");
    let kind = space.add_kind(0, true).expect("a kind");
    for at in (0..64).step_by(2) {
        space.alloc_at(at, 1).expect("it is free");
        space.describe(at, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
    }
    let blocks = |space: &mut Space, count| {
        let planned =
            space.plan_compaction(16, count, None, 1 << 64).expect("no memory to speak of");
        (planned.0, planned.1.len())
    };
    assert_eq!(blocks(&mut space, 3), (3, 0));
    assert_eq!(blocks(&mut space, 5), (5, 8));
    assert_eq!(blocks(&mut space, 6), (6, 16));
    assert_eq!(blocks(&mut space, usize::MAX), (6, 16));
    assert_eq!(space.compact(16, 6, None, 1 << 64, |_| {}), Ok(6));
    assert_eq!(
        space
            .free_blocks()
            .collect::<Vec<_>>()
            .iter()
            .map(|&(size, n)| size as u64 / 16 * n)
            .sum::<u64>(),
        6
    );
    space.check().expect("the space is consistent");
    let mut all = Space::new(0, 1 << 64, 1).expect("a space");
    assert_eq!(all.compact(1 << 64, 3, None, 0, |_| {}), Ok(1));
    assert_eq!(all.compact(1, usize::MAX, None, 0, |_| {}), Ok(usize::MAX));
}

/// The cheapest window of a space, by adding up: where it starts and what it costs.
fn cheapest_slowly(model: &Model, length: u64, align: u64) -> Option<(u64, u128)> {
    let granules = model.granules as usize;
    // Granules in use below each, granules below each that make a window bad, and which allocation
    // each lies in.
    let (mut used, mut bad) = (vec![0u64; granules + 1], vec![0u64; granules + 1]);
    let mut ranges: Vec<(u64, u64)> = (0..granules as u64 + 1).map(|at| (at, at)).collect();
    for (&at, it) in &model.live {
        let (first, end) = (at - model.base, at - model.base + it.length);
        for granule in first..end {
            used[granule as usize + 1] = 1;
            bad[granule as usize + 1] = u64::from(it.sort != Sort::Movable);
            if granule > first {
                ranges[granule as usize] = (first, end);
            }
        }
    }
    for &at in &model.retired {
        bad[(at - model.base) as usize + 1] = 1;
    }
    for at in 0..granules {
        used[at + 1] += used[at];
        bad[at + 1] += bad[at];
    }
    let starts = (0..=granules as u64).filter(|start| {
        (start + model.base).is_multiple_of(align)
            && start + length <= model.granules
            && bad[*start as usize] == bad[(start + length) as usize]
    });
    let cost = |start: u64| {
        let (low, high) = (ranges[start as usize].0, ranges[(start + length) as usize].1);
        used[high as usize] - used[low as usize]
    };
    let best = starts.map(|start| (cost(start), start)).min();
    best.map(|(cost, start)| (start + model.base, cost.into()))
}

#[test]
fn the_cheapest_window_of_large_spaces() {
    let mut random = Random::new(0x5eed_0006);
    for round in 0..120 {
        let granules = random.pick(&[500, 5_000, 20_000, 300_000]);
        let base = random.pick(&[0, 1 << 30, 4096 - 7, (1 << 18) - 100, 12_345]);
        let mut model = Model::new(base, granules);
        // From nothing but single granules to blocks that are nodes of the tree, and runs across them.
        let most = random.within(1..14);
        let unmovable = random.pick(&[0, 0, 1, 1, 100]);
        let mut at = base;
        while at < base + granules {
            let length = (1 + (random.next() & ((1 << random.within(0..most)) - 1)))
                .min(base + granules - at);
            match random.within(0..10) {
                0 => {}
                _ if random.within(0..10_000) < unmovable => {
                    let sort = random.pick(&[Sort::Unmovable, Sort::Pinned]);
                    model.alloc_at(at, length, 1, sort);
                }
                1 if random.one_in(1000) => {
                    model.space.retire(at, 1).expect("it is in the space");
                    model.retired.push(at);
                }
                _ => model.alloc_at(at, length, 1, Sort::Movable),
            }
            at += length;
        }
        for _ in 0..12 {
            let length = 1 + (random.next() & ((1 << random.within(1..16)) - 1)) % granules;
            let align = random.pick(&[1, 1, 2, 8, 64, 256, 4096, 3, 100, 1000]);
            let found = model.space.cheapest_window(length.into(), align.into(), None);
            let slowly = cheapest_slowly(&model, length, align);
            assert_eq!(found, Ok(slowly), "round {round}: {length} at {align} of {granules}");
        }
    }
}

/// All 2^64 addresses, where the last position is 2^64 - 1.
fn whole() -> (Space, Kind) {
    let mut space = Space::new(0, 1 << 64, 1).expect("a space");
    let kind = space.add_kind(0, true).expect("a kind");
    (space, kind)
}

#[test]
fn windows_up_to_the_last_address_there_is() {
    let last = |granules: u64| Some((u64::MAX - granules + 1, 1 << 64));
    let (mut space, _) = whole();
    space.alloc_at(1 << 63, 1 << 63).expect("it is free");
    assert_eq!(space.cheapest_window(1, 1, last(1)), Ok(None));
    assert!(begin(&mut space, 1, last(1)).is_err());

    let (mut space, kind) = whole();
    space.alloc_at(u64::MAX, 1).expect("it is free");
    assert_eq!(space.cheapest_window(2, 1, last(2)), Ok(None));
    assert_eq!(space.cheapest_window(2, 1, last(3)), Ok(Some((u64::MAX - 2, 0))));
    let label = Label { kind: Some(kind), owner: 0 };
    space.describe(u64::MAX, label, 1).expect("it has none");
    assert_eq!(space.cheapest_window(2, 1, last(2)), Ok(Some((u64::MAX - 1, 1))));
    let mut moves = Vec::new();
    let run = space.alloc_run_moving(2, 1, last(2), Fit::First, |it| moves.push(*it));
    assert_eq!((run, moves.len()), (Ok(u64::MAX - 1), 1));
    space.check().expect("the space is consistent");

    let (mut space, kind) = whole();
    for at in u64::MAX - 63..=u64::MAX {
        space.alloc_at(at, 1).expect("it is free");
        space.describe(at, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
    }
    assert_eq!(space.cheapest_window(1, 1, last(64)), Ok(Some((u64::MAX - 63, 1))));
    assert_eq!(space.cheapest_window(64, 1, last(64)), Ok(Some((u64::MAX - 63, 64))));

    let (mut space, kind) = whole();
    space.alloc_at(0, 1 << 64).expect("it is free");
    space.describe(0, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
    assert_eq!(space.cheapest_window(1, 1, None), Ok(None));
    assert!(begin(&mut space, 1, None).is_err());
    space.check().expect("the space is consistent");
}

#[test]
fn blocks_of_any_number_are_asked_for_without_waiting() {
    let (mut space, kind) = whole();
    space.alloc_at(0, 1 << 40).expect("it is free");
    space.describe(0, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
    for (size, count) in [(1 << 63, 2), (1 << 63, usize::MAX), (1, usize::MAX), (1 << 64, 7)] {
        for budget in [0, 1 << 39, 1 << 64] {
            space.plan_compaction(size, count, None, budget).expect("no memory to speak of");
            let low = Some((0, 1 << 22));
            let (blocks, moves) =
                space.plan_compaction(size, count, low, budget).expect("no memory to speak of");
            assert!(budget >= 1 << 40 || (blocks, moves.len()) == (0, 0));
        }
    }
    space.check().expect("the space is consistent");
}

#[test]
fn a_search_without_an_answer_ends() {
    // Runs of three with holes of one between: no run of four can be had, wherever it is tried.
    let mut space = Space::new(0, 1 << 15, 1).expect("a space");
    let kind = space.add_kind(0, true).expect("a kind");
    for at in (0..1 << 15).step_by(4) {
        space.alloc_at(at, 3).expect("it is free");
        space.describe(at, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
    }
    let run = space.alloc_run_moving(4, 1, None, Fit::First, |_| {});
    assert!(matches!(run, Err(Error::OutOfSpace { reason: Reason::Fragmented, .. })));
    space.check().expect("the space is consistent");
}

#[test]
fn what_is_pinned_or_held_stays_so_when_it_is_described() {
    let (mut space, kind, _) = four_blocks();
    let label = Label { kind: Some(kind), owner: 0 };
    space.pin(32).expect("it is allocated");
    space.describe(32, label, 1).expect("it has none");
    space.check().expect("the space is consistent");
    assert!(begin(&mut space, 32, Some((32, 64))).is_err());
    let mut relocation = begin(&mut space, 4, LOW).expect("there is room");
    let home = relocation.moves()[0].new;
    assert!(matches!(space.describe(home, label, 1), Err(Error::Busy { pins: u32::MAX, .. })));
    space.give_up(&mut relocation);
    assert_eq!(space.make_move(&mut relocation, 0), Ok(Made::Stays));
    space.check().expect("the space is consistent");
    // An allocation goes only where its alignment lets it.
    assert!(matches!(space.begin_move(0, 17), Err(Error::Argument { name: "to", .. })));
}

#[test]
fn what_lies_across_two_blocks_is_moved_and_paid_for_once() {
    let mut space = Space::new(0, 16, 1).expect("a space");
    let kind = space.add_kind(0, true).expect("a kind");
    space.alloc_at(0, 4).expect("it is free");
    space.alloc_at(11, 5).expect("it is free");
    space.alloc_at(4, 3).expect("it is free");
    space.describe(4, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
    let (blocks, moves) = space.plan_compaction(2, 2, Some((4, 8)), 6).expect("no memory");
    assert_eq!((blocks, moves.len()), (2, 1));
    let mut moved = 0;
    assert_eq!(space.compact(2, 2, Some((4, 8)), 3, |it| moved += it.size), Ok(2));
    assert_eq!(moved, 3);
}
