//! Every public call of a space, without memory at every point.
//!
//! The allocator of this test fails the n-th allocation of a call, alone or with all that follow, for
//! every n until the call goes through as if nothing had happened. After each failure the space is
//! recounted and must be just what it was before the call; and the call, made again with memory, must
//! come to what it comes to without the failure. An allocation that the core cannot do without would end
//! the process: the last line printed then names the call.
//!
//! The calls are run on several spaces: small ones and such of many sections, each with so many
//! descriptors, pins and marks more that every table is met on the verge of growing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Debug;

use potad::{
    Call, Described, Error, Fit, Kind, Label, Made, Move, Obstacle, Record, Relocation, Space,
};

/// The system's allocator, which fails from the thread's count on.
struct Failing;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Once,
    FromThenOn,
}

thread_local! {
    /// Allocations until one fails, and whether those after it do; none while nothing is to fail.
    static ARMED: Cell<Option<(u64, Mode)>> = const { Cell::new(None) };
    static FAILED: Cell<u64> = const { Cell::new(0) };
    /// How often a call that failed had to take moves back.
    static TAKEN_BACK: Cell<u64> = const { Cell::new(0) };
    /// Whether metadata cannot grow by much at once: the tree reserves memory ahead of use, and would
    /// not need any later on.
    static TIGHT: Cell<bool> = const { Cell::new(false) };
}

/// More than a few sections of metadata.
const MUCH: usize = 400_000;

/// Whether an allocation that is asked for now, of so many bytes more than there are, fails.
fn fails(more: usize) -> bool {
    if TIGHT.get() && more > MUCH {
        return true;
    }
    match ARMED.get() {
        None => false,
        Some((0, mode)) => {
            FAILED.set(FAILED.get() + 1);
            if mode == Mode::Once {
                ARMED.set(None);
            }
            true
        }
        Some((left, mode)) => {
            ARMED.set(Some((left - 1, mode)));
            false
        }
    }
}

// SAFETY: everything is the system allocator's own, or a null pointer, which means "no memory".
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails(layout.size()) {
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
        if size > layout.size() && fails(size - layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: `at` is from the system's allocator with this layout.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// What a call gave, in a form that takes no memory to make.
#[derive(Debug, PartialEq)]
enum Gave {
    Nothing,
    Bool(bool),
    Number(u128),
    Found(Option<(u64, u128)>),
    Starts(Vec<u64>),
    Ranges(Vec<(u64, u128)>),
    Described(Vec<Described>),
    Tally(Vec<(Label, u64, u128)>),
    Obstacles(Vec<Obstacle>),
    Plan(u64, Vec<Move>),
    Bytes(Vec<u8>),
    Made(Made),
    Kind(Kind),
    Error(Error),
}

use Gave::Nothing;

/// A space with something of everything in it, and what a test has of it.
struct World {
    space: Space,
    stride: u64,
    unmovable: Kind,
    page: Kind,
    unused: Kind,
    record: Option<Record>,
    call: Call,
    relocation: Option<Relocation>,
}

const GRANULE: u64 = 4096;

/// Places of a world; at most of them a movable allocation starts.
const PLACES: u64 = 16;

impl World {
    /// Places are so many granules apart; `extra` is how many more descriptors, pins and records that are
    /// looked at there are.
    fn new(stride: u64, extra: u64) -> Self {
        TIGHT.set(true);
        let world = World::with_memory(stride, extra);
        TIGHT.set(false);
        world
    }

    fn with_memory(stride: u64, extra: u64) -> Self {
        let size = PLACES * stride * GRANULE;
        let mut space = Space::new(0, size.into(), GRANULE).unwrap();
        let unmovable = space.add_kind(24, false).unwrap();
        let page = space.add_kind(8, true).unwrap();
        let unused = space.add_kind(16, false).unwrap();
        let at = |place: u64, granule: u64| (place * stride + granule) * GRANULE;
        for place in 0..PLACES {
            let owner = (place % 3) as u32;
            let label = Label { kind: Some(page), owner };
            let (start, granules, label, align) = match place {
                // Starts at a multiple of 3 granules, and keeps to that where it is moved.
                5 => ((place * stride).next_multiple_of(3) * GRANULE, 3, label, 3 * GRANULE),
                9 => (at(place, 0), 1, Label { kind: Some(unmovable), owner }, GRANULE),
                12 => (at(place, 0), 2, label, GRANULE),
                14 => continue,
                _ => (at(place, 0), 1, label, GRANULE),
            };
            space.alloc_at(start, (granules * GRANULE).into()).unwrap();
            space.describe(start, label, align.into()).unwrap();
        }
        // One granule in use and one that is free are out of service.
        space.retire(at(12, 1), GRANULE.into()).unwrap();
        space.retire(at(13, 2), GRANULE.into()).unwrap();
        space.pin(at(9, 0)).unwrap();
        // In a span of its own: `extra` more of everything that is kept in tables.
        let more = at(PLACES + 1, 0);
        space.add(more, (2 * (extra + 1) * GRANULE).into()).unwrap();
        for number in 0..extra {
            let start = more + 2 * number * GRANULE;
            space.alloc_at(start, GRANULE.into()).unwrap();
            let label = Label { kind: Some(unmovable), owner: 3 + number as u32 };
            space.describe(start, label, GRANULE.into()).unwrap();
            space.pin(start).unwrap();
            // Kept on being looked at for good.
            std::mem::forget(space.look(start).unwrap());
        }
        let call = space.begin_call();
        World { space, stride, unmovable, page, unused, record: None, call, relocation: None }
    }

    fn at(&self, place: u64) -> u64 {
        place * self.stride * GRANULE
    }

    /// The size of so many places.
    fn places(&self, count: u64) -> u128 {
        (count * self.stride * GRANULE).into()
    }

    fn label(&self) -> Label {
        Label { kind: Some(self.page), owner: 40 }
    }

    /// A run that is had only by moving what lies at four places.
    fn run(&self) -> (u128, u128) {
        (self.places(4), self.places(1))
    }

    /// Begins to make room for that run.
    fn begun(mut self) -> Self {
        let (size, align) = self.run();
        self.relocation = Some(self.space.begin_run(size, align, None, self.call).unwrap());
        assert!(!self.relocation().moves().is_empty());
        self
    }

    fn relocation(&self) -> &Relocation {
        self.relocation.as_ref().unwrap()
    }

    /// Everything that can be known of the space, for comparison.
    fn all(&mut self) -> impl Debug + PartialEq + use<> {
        let space = &mut self.space;
        let largest = space.largest_free();
        let blocks: Vec<_> = space.free_blocks().collect();
        let free: Vec<_> = space.free_extents().collect();
        let described: Vec<Described> =
            space.allocations().map(|found| space.described(found.start, found.size)).collect();
        let starts = described.iter().filter(|it| it.label.kind.is_some()).map(|it| it.start);
        let bytes = space.read_records(starts).unwrap();
        let spans: Vec<_> = space.spans().collect();
        let retired: Vec<_> = space.retired().collect();
        let figures = (space.size(), space.used(), space.available(), space.len(), largest);
        // The order of what is held says nothing.
        let under_way =
            self.relocation.as_ref().map(|it| (it.moves().to_vec(), it.windows().to_vec()));
        ((figures, blocks, free), (described, bytes), (spans, retired), under_way)
    }

    /// Recounts the space, and once more after what is under way was given up.
    fn check(mut self) {
        self.space.check().unwrap();
        if let Some(mut relocation) = self.relocation.take() {
            self.space.give_up(&mut relocation);
        }
        self.space.forget_call(self.call);
        self.space.check().unwrap();
    }
}

/// Calls of a space, named as they are in its source, made on a world that is prepared for them.
struct Case {
    names: &'static str,
    prepare: fn(World) -> World,
    act: fn(&mut World) -> Result<Gave, Error>,
}

const AS_IT_IS: fn(World) -> World = |world| world;

macro_rules! case {
    ($names:literal, $prepare:expr, |$world:ident| $act:expr) => {
        Case { names: $names, prepare: $prepare, act: |$world| $act }
    };
}

fn cases() -> Vec<Case> {
    let begun: fn(World) -> World = World::begun;
    let looked_at: fn(World) -> World = |mut world| {
        let at = world.at(9);
        world.record = world.space.look(at).unwrap();
        world
    };
    let freed: fn(World) -> World = |mut world| {
        world.space.free(world.at(1)).unwrap();
        world
    };
    let made: fn(World) -> World = |world| {
        let mut world = world.begun();
        let mut relocation = world.relocation.take().unwrap();
        for number in 0..relocation.moves().len() {
            world.space.make_move(&mut relocation, number).unwrap();
        }
        world.relocation = Some(relocation);
        world
    };
    // Two large allocations beside each other, each with sections that are in one state as a whole: what
    // is held of the window between them takes metadata that there is not, in the middle of the moves.
    let large: fn(World) -> World = |mut world| {
        for place in [3, 4, 5, 7, 8] {
            let start = world.space.next_allocation(world.at(place)).unwrap().start;
            world.space.free(start).unwrap();
        }
        let middle = world.at(4);
        let size = world.places(3) / 2;
        for start in [middle - size as u64, middle] {
            world.space.alloc_at(start, size).unwrap();
            world.space.describe(start, world.label(), GRANULE.into()).unwrap();
        }
        world.space.retire(middle - size as u64 + GRANULE, GRANULE.into()).unwrap();
        world
    };
    fn between(w: &World) -> (u128, potad::Window) {
        let more = 5 * GRANULE;
        (2 * more as u128, Some((w.at(4) - more, (w.at(4) + more).into())))
    }
    vec![
        case!("alloc", AS_IT_IS, |w| w
            .space
            .alloc(GRANULE.into())
            .map(|at| Gave::Number(at.into()))),
        case!("alloc", AS_IT_IS, |w| {
            w.space.alloc(w.places(1) / 2).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc", AS_IT_IS, |w| w.space.alloc(w.places(9)).map(|at| Gave::Number(at.into()))),
        case!("alloc", AS_IT_IS, |w| w.space.alloc(0).map(|at| Gave::Number(at.into()))),
        case!("alloc_within", AS_IT_IS, |w| {
            let within = Some((w.at(3) + 1, w.at(4).into()));
            w.space.alloc_within(GRANULE.into(), within).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_within", AS_IT_IS, |w| {
            w.space.alloc_within(1, Some((2, 1))).map(|at| Gave::Number(at.into()))
        }),
        case!("find_run", AS_IT_IS, |w| {
            w.space.find_run(5000, 1, None, Fit::Aligned).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_run", AS_IT_IS, |w| {
            w.space.alloc_run(5000, 1, None, Fit::First).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_run no_run", AS_IT_IS, |w| {
            let (size, align) = w.run();
            w.space.alloc_run(size, align, None, Fit::Aligned).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_at", AS_IT_IS, |w| {
            let at = w.at(2) + GRANULE;
            w.space.alloc_at(at, GRANULE.into()).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_at", AS_IT_IS, |w| {
            w.space.alloc_at(w.at(2), GRANULE.into()).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_at", AS_IT_IS, |w| {
            w.space.alloc_at(w.at(900), GRANULE.into()).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_scattered", AS_IT_IS, |w| {
            w.space.alloc_scattered(w.places(4), GRANULE.into(), None).map(Gave::Ranges)
        }),
        case!("alloc_scattered", AS_IT_IS, |w| {
            w.space.alloc_scattered(w.places(12), w.places(1) / 2, None).map(Gave::Ranges)
        }),
        case!("alloc_many", AS_IT_IS, |w| w.space.alloc_many(1, 17).map(Gave::Starts)),
        case!("alloc_many", AS_IT_IS, |w| w
            .space
            .alloc_many(w.places(1) / 2, 30)
            .map(Gave::Starts)),
        case!("alloc_many", AS_IT_IS, |w| w.space.alloc_many(1 << 40, 1 << 20).map(Gave::Starts)),
        case!("free", AS_IT_IS, |w| w.space.free(w.at(12)).map(Gave::Number)),
        case!("free", AS_IT_IS, |w| w.space.free(w.at(9)).map(Gave::Number)),
        case!("free", AS_IT_IS, |w| w.space.free(w.at(12) + GRANULE).map(Gave::Number)),
        case!("free_many", AS_IT_IS, |w| {
            let starts = [w.at(7), w.at(3), w.at(12)];
            w.space.free_many(&starts).map(|()| Nothing)
        }),
        case!("free_many", AS_IT_IS, |w| {
            let starts = [w.at(7), w.at(3), w.at(12) + GRANULE];
            w.space.free_many(&starts).map(|()| Nothing)
        }),
        case!("free_range", AS_IT_IS, |w| {
            let middle = (5 * w.stride).next_multiple_of(3) * GRANULE + GRANULE;
            w.space.free_range(middle, GRANULE.into()).map(|()| Nothing)
        }),
        case!("free_range", AS_IT_IS, |w| {
            w.space.free_range(w.at(3), (2 * GRANULE).into()).map(|()| Nothing)
        }),
        case!("split", AS_IT_IS, |w| w.space.split(w.at(12), GRANULE.into()).map(|()| Nothing)),
        case!("split", AS_IT_IS, |w| w.space.split(w.at(12), 1).map(|()| Nothing)),
        case!("add", AS_IT_IS, |w| w.space.add(w.at(40), w.places(1)).map(|()| Nothing)),
        case!("add", AS_IT_IS, |w| w.space.add(1 << 60, w.places(1)).map(|()| Nothing)),
        case!("add", AS_IT_IS, |w| w.space.add(w.at(3), w.places(1)).map(|()| Nothing)),
        case!("remove", AS_IT_IS, |w| {
            w.space.remove(w.at(13) + GRANULE, (2 * GRANULE).into()).map(|()| Nothing)
        }),
        case!("remove", AS_IT_IS, |w| w.space.remove(w.at(3), GRANULE.into()).map(|()| Nothing)),
        case!("remove", AS_IT_IS, |w| w.space.remove(w.at(900), GRANULE.into()).map(|()| Nothing)),
        case!("retire", AS_IT_IS, |w| {
            w.space.retire(w.at(2) + GRANULE, GRANULE.into()).map(|()| Nothing)
        }),
        case!("retire", AS_IT_IS, |w| w.space.retire(w.at(0), w.places(8)).map(|()| Nothing)),
        case!("retire", AS_IT_IS, |w| w.space.retire(w.at(900), 4096).map(|()| Nothing)),
        case!("restore", AS_IT_IS, |w| w.space.restore(w.at(12), w.places(2)).map(|()| Nothing)),
        case!("restore", AS_IT_IS, |w| w.space.restore(w.at(900), 4096).map(|()| Nothing)),
        case!("add_kind", AS_IT_IS, |w| w.space.add_kind(360, true).map(Gave::Kind)),
        case!("add_kind", AS_IT_IS, |w| w.space.add_kind(1 << 20, true).map(Gave::Kind)),
        case!("remove_kind", AS_IT_IS, |w| Ok(Gave::Bool(w.space.remove_kind(w.unused)))),
        case!("remove_kind", AS_IT_IS, |w| Ok(Gave::Bool(w.space.remove_kind(w.unmovable)))),
        case!("alloc_described", AS_IT_IS, |w| {
            let label = w.label();
            w.space.alloc_described(GRANULE.into(), None, label).map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_described", AS_IT_IS, |w| {
            let label = Label { kind: Some(w.unused), owner: 0 };
            w.space.alloc_described(1, None, label).map(|at| Gave::Number(at.into()))
        }),
        case!(
            "describe",
            |mut w| {
                w.space.alloc_at(w.at(14), 4096).unwrap();
                w
            },
            |w| { w.space.describe(w.at(14), w.label(), 3 * 4096).map(|()| Nothing) }
        ),
        case!("describe", AS_IT_IS, |w| w.space.describe(w.at(3), w.label(), 1).map(|()| Nothing)),
        case!("make_room_to_describe", AS_IT_IS, |w| {
            w.space.make_room_to_describe(w.label(), 3 * 4096).map(|()| Nothing)
        }),
        // Where there is room, nothing more is needed.
        case!(
            "make_room_to_describe describe",
            |mut w| {
                w.space.alloc_at(w.at(14), 4096).unwrap();
                w.space.make_room_to_describe(w.label(), 3 * 4096).unwrap();
                w
            },
            |w| {
                w.space.describe(w.at(14), w.label(), 3 * 4096).expect("room was made");
                Ok(Nothing)
            }
        ),
        case!(
            "lookup_described described label_at lookup next_allocation is_retiring",
            AS_IT_IS,
            |w| {
                let at = w.at(12) + GRANULE;
                w.space.lookup(at);
                w.space.label_at(at);
                w.space.next_allocation(at);
                let found = w.space.lookup_described(at).unwrap();
                assert_eq!(w.space.described(found.start, found.size), found);
                Ok(Gave::Bool(w.space.is_retiring(at, GRANULE.into())))
            }
        ),
        case!("of_kind", AS_IT_IS, |w| w.space.of_kind(w.page).map(Gave::Described)),
        case!("of_owner of_owners", AS_IT_IS, |w| w.space.of_owner(1).map(Gave::Described)),
        case!("tally", AS_IT_IS, |w| w.space.tally().map(Gave::Tally)),
        case!("read_records", AS_IT_IS, |w| {
            w.space.read_records([w.at(3), w.at(4)].into_iter()).map(Gave::Bytes)
        }),
        case!("look", AS_IT_IS, |w| {
            w.record = w.space.look(w.at(9))?;
            Ok(Nothing)
        }),
        case!("look_away", looked_at, |w| {
            w.space.look_away(w.record.take().unwrap());
            Ok(Nothing)
        }),
        case!("take_released has_released", freed, |w| {
            let mut gone = 0;
            w.space.take_released(|_| gone += 1);
            assert!(!w.space.has_released());
            Ok(Gave::Number(gone))
        }),
        case!("pin", AS_IT_IS, |w| w.space.pin(w.at(3)).map(|n| Gave::Number(n.into()))),
        case!("pin", AS_IT_IS, |w| w.space.pin(w.at(14)).map(|n| Gave::Number(n.into()))),
        case!("unpin", AS_IT_IS, |w| w.space.unpin(w.at(9)).map(|n| Gave::Number(n.into()))),
        case!("unpin", AS_IT_IS, |w| w.space.unpin(w.at(3)).map(|n| Gave::Number(n.into()))),
        case!("pin_range", AS_IT_IS, |w| w.space.pin_range(w.at(2), w.places(9)).map(Gave::Starts)),
        case!("alloc_run_moving", AS_IT_IS, |w| {
            let (size, align) = w.run();
            let run = w.space.alloc_run_moving(size, align, None, Fit::Aligned, |_| ());
            run.map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_run_moving", AS_IT_IS, |w| {
            let run = w.space.alloc_run_moving(w.places(15), 1, None, Fit::Aligned, |_| ());
            run.map(|at| Gave::Number(at.into()))
        }),
        case!("alloc_run_moving", large, |w| {
            let (size, within) = between(w);
            let run = w.space.alloc_run_moving(size, 1, within, Fit::Aligned, |_| ());
            run.map(|at| Gave::Number(at.into()))
        }),
        case!("make_moves make_move", large, |w| {
            let (size, within) = between(w);
            let mut relocation = w.space.begin_run(size, 1, within, w.call)?;
            assert_eq!(relocation.moves().len(), 2);
            let mut moved = 0;
            let made = w.space.make_moves(&mut relocation, |_| moved += 1);
            if made.is_err() && moved > 0 {
                TAKEN_BACK.set(TAKEN_BACK.get() + 1);
            }
            w.space.give_up(&mut relocation);
            made.map(|()| Nothing)
        }),
        case!("plan_run", AS_IT_IS, |w| {
            let (size, align) = w.run();
            let plan = w.space.plan_run(size, align, None, Fit::Aligned);
            plan.map(|(start, moves)| Gave::Plan(start, moves))
        }),
        case!("cheapest_window", AS_IT_IS, |w| {
            let (size, align) = w.run();
            w.space.cheapest_window(size, align, None).map(Gave::Found)
        }),
        case!("begin_run", AS_IT_IS, |w| {
            let (size, align) = w.run();
            w.relocation = Some(w.space.begin_run(size, align, None, w.call)?);
            Ok(Nothing)
        }),
        case!("make_move", begun, |w| {
            w.space.make_move(w.relocation.as_mut().unwrap(), 0).map(Gave::Made)
        }),
        case!(
            "make_move can_move is_gone",
            |w| {
                let mut w = w.begun();
                w.space.free(w.relocation().moves()[0].old).unwrap();
                w
            },
            |w| {
                let relocation = w.relocation.as_mut().unwrap();
                assert!(!w.space.can_move(relocation, 0));
                Ok(Gave::Bool(w.space.is_gone(relocation, 0)))
            }
        ),
        case!(
            "make_moves leave_call",
            |w| {
                let mut w = w.begun();
                w.relocation.as_mut().unwrap().leave_call();
                w
            },
            |w| w.space.make_moves(w.relocation.as_mut().unwrap(), |_| ()).map(|()| Nothing)
        ),
        case!("finish_run", made, |w| {
            let found = w.space.finish_run(w.relocation.as_mut().unwrap());
            Ok(Gave::Found(found.map(|at| (at, 0))))
        }),
        case!("give_up", begun, |w| {
            w.space.give_up(w.relocation.as_mut().unwrap());
            Ok(Nothing)
        }),
        case!("give_up", made, |w| {
            w.space.give_up(w.relocation.as_mut().unwrap());
            Ok(Nothing)
        }),
        case!("windows blocks moves into_moves size", begun, |w| {
            let relocation = w.relocation();
            let sizes = relocation.size() + relocation.windows()[0].1;
            Ok(Gave::Number(sizes + relocation.blocks() as u128))
        }),
        case!("refuse", begun, |w| {
            w.space.refuse(w.relocation.as_ref().unwrap(), 0).map(|()| Nothing)
        }),
        case!("begin_call forget_call", made, |w| {
            w.space.forget_call(w.call);
            w.call = w.space.begin_call();
            Ok(Nothing)
        }),
        case!(
            "begin_back",
            |w| {
                let mut w = w.begun();
                let mut relocation = w.relocation.take().unwrap();
                w.space.make_move(&mut relocation, 0).unwrap();
                w.space.give_up(&mut relocation);
                // What was moved is at the world's first place from now on.
                w.stride = relocation.moves()[0].new;
                w.record = None;
                w.relocation = None;
                w
            },
            |w| {
                let found = w.space.begin_back(w.call, 0, w.stride)?;
                w.relocation = Some(found);
                Ok(Nothing)
            }
        ),
        case!("begin_move", AS_IT_IS, |w| {
            w.relocation = Some(w.space.begin_move(w.at(3), w.at(14))?);
            Ok(Nothing)
        }),
        case!("begin_move", AS_IT_IS, |w| {
            w.relocation = Some(w.space.begin_move(w.at(9), w.at(14))?);
            Ok(Nothing)
        }),
        case!("obstacles", AS_IT_IS, |w| w.space.obstacles(None).map(Gave::Obstacles)),
        case!("compact", AS_IT_IS, |w| {
            let blocks = w.space.compact(w.places(1), 3, None, 1 << 64, |_| ());
            blocks.map(|blocks| Gave::Number(blocks as u128))
        }),
        case!("plan_compaction", AS_IT_IS, |w| {
            let plan = w.space.plan_compaction(w.places(1), 3, None, 1 << 64);
            plan.map(|(blocks, moves)| Gave::Plan(blocks as u64, moves))
        }),
        case!("begin_compaction", AS_IT_IS, |w| {
            let begun = w.space.begin_compaction(w.places(1), 3, None, 1 << 64, w.call)?;
            w.relocation = Some(begun);
            Ok(Nothing)
        }),
        case!(
            "finish_compaction",
            |mut w| {
                let mut begun =
                    w.space.begin_compaction(w.places(1), 3, None, 1 << 64, w.call).unwrap();
                for number in 0..begun.moves().len() {
                    w.space.make_move(&mut begun, number).unwrap();
                }
                w.relocation = Some(begun);
                w
            },
            |w| {
                let blocks = w.space.finish_compaction(w.relocation.as_mut().unwrap());
                Ok(Gave::Number(blocks as u128))
            }
        ),
        case!("new with_probe", AS_IT_IS, |w| {
            let space = Space::new(GRANULE, w.places(3), GRANULE)?;
            Ok(Gave::Number(space.size()))
        }),
        case!("new", AS_IT_IS, |_w| Space::new(1, 4096, 4096).map(|_| Nothing)),
        case!("check", AS_IT_IS, |w| w.space.check().map(|()| Nothing)),
        case!("granule base size used available len is_empty largest_free probe", AS_IT_IS, |w| {
            let space = &mut w.space;
            let figures = space.size() + space.used() + space.available() + space.largest_free();
            let potad::NoProbe = *space.probe();
            let small = space.granule() + space.base() + space.len() + space.is_empty() as u64;
            Ok(Gave::Number(figures + small as u128))
        }),
        case!("metadata_bytes descriptor_bytes unusable_free_index", AS_IT_IS, |w| {
            assert!(w.space.metadata_bytes() > w.space.descriptor_bytes());
            w.space.unusable_free_index(w.places(1)).map(|index| Gave::Bool(index > 0.5))
        }),
        case!("allocations_within free_ranges", AS_IT_IS, |w| {
            let within = Some((w.at(2) + 1, w.places(9)));
            let live = w.space.allocations_within(within)?.count();
            Ok(Gave::Number((live + w.space.free_ranges(within, 8192, 8192)?.count()) as u128))
        }),
        case!("free_ranges", AS_IT_IS, |w| {
            let none = w.space.free_ranges(None, 0, 1)?.count();
            Ok(Gave::Number(none as u128))
        }),
        case!("free_blocks spans retired allocations free_extents", AS_IT_IS, |w| {
            let space = &mut w.space;
            let blocks: u128 = space.free_blocks().map(|it| it.0).sum();
            let ranges: u128 = space.spans().chain(space.retired()).map(|it| it.1).sum();
            let free = space.free_extents().count();
            Ok(Gave::Number(blocks + ranges + (free + space.allocations().count()) as u128))
        }),
    ]
}

/// What a call gave, an error as one; its text apart, which is cut off where there is no memory for it.
fn given(result: Result<Gave, Error>) -> Gave {
    result.unwrap_or_else(|error| {
        Gave::Error(match error {
            Error::OutOfSpace { requested, available, largest, reason, .. } => {
                let detail = String::new();
                Error::OutOfSpace { requested, available, largest, reason, detail }
            }
            Error::Argument { name, .. } => {
                Error::Argument { name, value: String::new(), expected: String::new() }
            }
            other => other,
        })
    })
}

#[test]
fn a_call_without_memory_changes_nothing() {
    // Shown only where the test fails, and where the process ends.
    let mut failures = 0u64;
    for (stride, extra) in [(4, 0), (4, 1), (4, 2), (4, 6), (4, 7), (4, 12), (4, 13), (4, 14)]
        .into_iter()
        .chain([(1 << 18, 0), (1 << 18, 3), (1 << 18, 14), (1 << 24, 1), (64, 28)])
    {
        for case in cases() {
            let fresh = || (case.prepare)(World::new(stride, extra));
            let mut world = fresh();
            let before = world.all();
            let reference = given((case.act)(&mut world));
            let after = world.all();
            world.check();
            for mode in [Mode::Once, Mode::FromThenOn] {
                for n in 0.. {
                    eprintln!("{} {stride} {extra} {mode:?} {n}", case.names);
                    let mut world = fresh();
                    assert_eq!(world.all(), before, "a world is always the same");
                    FAILED.set(0);
                    ARMED.set(Some((n, mode)));
                    let result = (case.act)(&mut world);
                    ARMED.set(None);
                    world.space.check().unwrap();
                    if let Err(Error::Metadata { .. }) = result {
                        assert_ne!(FAILED.get(), 0);
                        failures += 1;
                        assert_eq!(world.all(), before, "nothing has changed");
                        // Again, with memory.
                        assert_eq!(given((case.act)(&mut world)), reference);
                    } else {
                        assert_eq!(given(result), reference);
                    }
                    assert_eq!(world.all(), after);
                    world.check();
                    if FAILED.get() == 0 {
                        break;
                    }
                }
            }
        }
    }
    assert!(failures > 1000, "{failures} failures are hardly all there are");
    let undone = TAKEN_BACK.get();
    assert!(undone > 0, "no move had to be taken back");
}

#[test]
fn every_public_call_is_among_the_cases() {
    let sources = [
        include_str!("../src/space/alloc.rs"),
        include_str!("../src/space/compact.rs"),
        include_str!("../src/space/describe.rs"),
        include_str!("../src/space/free.rs"),
        include_str!("../src/space/mod.rs"),
        include_str!("../src/space/relocate.rs"),
        include_str!("../src/space/spans.rs"),
        include_str!("../src/check.rs"),
    ];
    let name = |line: &'static str| {
        let after = line.trim_start().strip_prefix("pub fn ")?;
        after.split(['(', '<']).next()
    };
    let public: BTreeSet<_> =
        sources.iter().flat_map(|text| text.lines().filter_map(name)).collect();
    let covered: BTreeSet<_> = cases().iter().flat_map(|case| case.names.split(' ')).collect();
    let missing: Vec<_> = public.difference(&covered).collect();
    assert!(public.len() > 70 && missing.is_empty(), "no case for {missing:?}");
}
