//! Kinds, owners, records and pins beside an obvious model, recounted after every step.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::random::Random;
use potad::{Error, Kind, Label, Record, Space};

#[derive(Clone, Debug)]
struct Known {
    size: u64,
    label: Label,
    record: Vec<u8>,
    pins: u32,
}

/// A record that is looked at, and what it must show.
struct Look {
    record: Record,
    bytes: Vec<u8>,
    kind: Option<Kind>,
    /// Where its allocation starts, while that lives.
    start: Option<u64>,
}

struct Pair {
    space: Space,
    kinds: Vec<(Kind, usize)>,
    live: BTreeMap<u64, Known>,
    looks: Vec<Look>,
    /// Owners that are to be told of.
    owners: BTreeSet<u32>,
}

fn bytes_of(record: &Record) -> Vec<u8> {
    // SAFETY: nothing else writes it in this test.
    unsafe { std::slice::from_raw_parts(record.as_ptr(), record.len()) }.to_vec()
}

impl Pair {
    fn new() -> Self {
        let mut space = Space::new(1 << 20, 1 << 14, 1).expect("a space");
        let sizes = [0, 1, 16, 360, 4096];
        let kinds = sizes.map(|bytes| (space.add_kind(bytes, false).expect("a kind"), bytes));
        Pair {
            space,
            kinds: kinds.to_vec(),
            live: BTreeMap::new(),
            looks: Vec::new(),
            owners: BTreeSet::new(),
        }
    }

    fn alloc(&mut self, random: &mut Random) {
        let size = 1 + random.within(0..100);
        let Ok(start) = self.space.alloc_run(size as u128, 1, None, potad::Fit::Aligned) else {
            return;
        };
        let kind = random.pick(&[None, Some(0), Some(1), Some(2), Some(3), Some(4)]);
        let owner = random.within(0..4) as u32;
        let label = Label { kind: kind.map(|kind: usize| self.kinds[kind].0), owner };
        self.space.describe(start, label, 1).expect("it has none yet");
        let length = kind.map_or(0, |kind| self.kinds[kind].1);
        self.live.insert(start, Known { size, label, record: vec![0; length], pins: 0 });
        if owner != 0 {
            self.owners.insert(owner);
        }
    }

    /// What freeing makes of the model.
    fn gone(&mut self, start: u64) {
        self.live.remove(&start);
        for look in self.looks.iter_mut().filter(|look| look.start == Some(start)) {
            look.start = None;
        }
    }

    fn victim(&self, random: &mut Random) -> Option<u64> {
        let index = random.within(0..self.live.len().max(1) as u64) as usize;
        self.live.keys().nth(index).copied()
    }

    fn step(&mut self, random: &mut Random) {
        let Some(start) = self.victim(random) else { return self.alloc(random) };
        let known = self.live[&start].clone();
        let busy = Error::Busy { address: start, pins: known.pins };
        match random.within(0..17) {
            0..4 => self.alloc(random),
            4..7 => match self.space.free(start) {
                Ok(size) => {
                    assert_eq!((size, known.pins), (known.size as u128, 0));
                    self.gone(start);
                }
                Err(error) => assert_eq!((error, known.pins > 0), (busy, true)),
            },
            7 => {
                let batch: Vec<u64> =
                    self.live.keys().copied().filter(|_| random.one_in(3)).collect();
                let pinned = batch.iter().find(|&start| self.live[start].pins > 0);
                match (self.space.free_many(&batch), pinned) {
                    (Ok(()), None) => batch.iter().for_each(|&start| self.gone(start)),
                    (Err(Error::Busy { address, .. }), Some(&pinned)) => {
                        assert_eq!(address, pinned)
                    }
                    (other, pinned) => panic!("{other:?} with {pinned:?} pinned"),
                }
            }
            8 if known.size > 1 => {
                let at = 1 + random.within(0..known.size - 1);
                match self.space.split(start, at as u128) {
                    Ok(()) => {
                        assert_eq!(known.pins, 0);
                        let rest = Known { size: known.size - at, ..known.clone() };
                        self.live.insert(start + at, rest);
                        self.live.get_mut(&start).unwrap().size = at;
                    }
                    Err(error) => assert_eq!(error, busy),
                }
            }
            9 => {
                let (at, length) = (random.within(0..known.size), 1 + random.within(0..3));
                let length = length.min(known.size - at);
                match self.space.free_range(start + at, length as u128) {
                    Ok(()) => {
                        assert_eq!(known.pins, 0);
                        let end = at + length;
                        if end < known.size {
                            let rest = Known { size: known.size - end, ..known.clone() };
                            self.live.insert(start + end, rest);
                        }
                        match at {
                            0 => self.gone(start),
                            _ => self.live.get_mut(&start).unwrap().size = at,
                        }
                    }
                    Err(error) => assert_eq!(error, busy),
                }
            }
            10 => {
                assert_eq!(self.space.pin(start + known.size - 1), Ok(known.pins + 1));
                self.live.get_mut(&start).unwrap().pins += 1;
            }
            11 => match self.space.unpin(start + known.size / 2) {
                Ok(left) => {
                    assert_eq!(left + 1, known.pins);
                    self.live.get_mut(&start).unwrap().pins = left;
                }
                Err(Error::Argument { name: "address", .. }) => assert_eq!(known.pins, 0),
                Err(other) => panic!("{other}"),
            },
            12..14 => {
                // Looked at, and written through a second look.
                let Some(record) = self.space.look(start).unwrap() else {
                    return assert_eq!(known.label.kind, None);
                };
                assert_eq!(bytes_of(&record), known.record);
                assert_eq!(record.as_ptr() as usize % 16, 0);
                for at in 0..record.len() {
                    // SAFETY: inside the record, which nothing else touches.
                    unsafe { record.as_ptr().add(at).write(random.next() as u8) };
                }
                let bytes = bytes_of(&record);
                self.live.get_mut(&start).unwrap().record = bytes.clone();
                let same = self.looks.iter_mut().filter(|look| look.start == Some(start));
                same.for_each(|look| look.bytes.clone_from(&bytes));
                let kind = known.label.kind;
                self.looks.push(Look { record, bytes, kind, start: Some(start) });
            }
            14 if !self.looks.is_empty() => {
                let at = random.within(0..self.looks.len() as u64) as usize;
                let look = self.looks.swap_remove(at);
                self.space.look_away(look.record);
            }
            15 => {
                self.take_released();
                let at = random.within(0..self.kinds.len() as u64) as usize;
                let kind = self.kinds[at].0;
                let is_looked_at = self.looks.iter().any(|look| look.kind == Some(kind));
                let is_live = self.live.values().any(|known| known.label.kind == Some(kind));
                let removed = self.space.remove_kind(kind);
                assert_eq!(removed, !is_looked_at && !is_live);
                if removed {
                    assert!(!self.space.remove_kind(kind), "it is not known any more");
                    let label = Label { kind: Some(kind), owner: 0 };
                    assert!(self.space.alloc_described(1, None, label).is_err());
                    // Its number and its chunks serve another kind, with records of another size.
                    let bytes = random.pick(&[0, 8, 24, 360]);
                    let again = self.space.add_kind(bytes, false).expect("a kind");
                    assert_eq!(again, kind);
                    self.kinds[at] = (again, bytes);
                }
            }
            _ => self.take_released(),
        }
    }

    fn take_released(&mut self) {
        let live: BTreeSet<u32> = self.live.values().map(|known| known.label.owner).collect();
        let mut gone = Vec::new();
        self.space.take_released(|owner| gone.push(owner));
        gone.sort_unstable();
        let expected: Vec<u32> = self.owners.difference(&live).copied().collect();
        assert_eq!(gone, expected);
        self.owners.retain(|owner| live.contains(owner));
    }

    fn compare(&self, random: &mut Random) {
        self.space.check().expect("the recount agrees");
        for look in &self.looks {
            assert_eq!(bytes_of(&look.record), look.bytes);
        }
        for (&start, known) in &self.live {
            let address = start + random.within(0..known.size);
            let found = self.space.lookup_described(address).expect("it is allocated");
            let expected = (start, known.size as u128, known.label, known.pins);
            assert_eq!((found.start, found.size, found.label, found.pins), expected);
        }
        assert_eq!(self.space.len(), self.live.len() as u64);
        for &(kind, _) in &self.kinds {
            let of_kind = self.live.iter().filter(|(_, known)| known.label.kind == Some(kind));
            let starts: Vec<u64> = of_kind.clone().map(|(&start, _)| start).collect();
            let found = self.space.of_kind(kind).unwrap();
            assert_eq!(found.iter().map(|found| found.start).collect::<Vec<_>>(), starts);
            let records: Vec<u8> = of_kind.flat_map(|(_, known)| known.record.clone()).collect();
            assert_eq!(self.space.read_records(starts.into_iter()).unwrap(), records);
        }
        for owner in 1..4 {
            let of_owner = self.live.iter().filter(|(_, known)| known.label.owner == owner);
            let starts: Vec<u64> = of_owner.map(|(&start, _)| start).collect();
            let found = self.space.of_owner(owner).unwrap();
            assert_eq!(found.iter().map(|found| found.start).collect::<Vec<_>>(), starts);
        }
    }
}

#[test]
fn descriptors_beside_the_model() {
    let mut random = Random::new(23);
    for _ in 0..20 {
        let mut pair = Pair::new();
        for _ in 0..400 {
            pair.step(&mut random);
            pair.compare(&mut random);
        }
        // And back to nothing.
        while let Some((&start, known)) = pair.live.first_key_value() {
            for _ in 0..known.pins {
                pair.space.unpin(start).expect("it is pinned");
            }
            pair.space.free(start).expect("it is allocated");
            pair.gone(start);
        }
        pair.space.take_released(|_| ());
        pair.compare(&mut random);
        for look in pair.looks {
            assert_eq!(bytes_of(&look.record), look.bytes);
            pair.space.look_away(look.record);
        }
        pair.space.check().expect("the recount agrees");
    }
}

#[test]
fn a_kind_that_is_removed_leaves_nothing() {
    let mut space = Space::new(0, 1 << 20, 1).expect("a space");
    let mut bytes = None;
    for round in 0..1000 {
        let kind = space.add_kind(100 + round % 7, round % 2 == 0).expect("a kind");
        let label = Label { kind: Some(kind), owner: 1 };
        let at = space.alloc_described(1, None, label).expect("room");
        assert!(!space.remove_kind(kind), "an allocation is of it");
        space.free(at).expect("it is allocated");
        assert!(!space.remove_kind(kind), "its owner has not been told of");
        space.take_released(|_| ());
        assert!(space.remove_kind(kind));
        space.check().expect("the recount agrees");
        assert!(space.metadata_bytes() <= *bytes.get_or_insert(space.metadata_bytes()));
    }
}

#[test]
fn a_million_descriptors_of_five_kinds() {
    const COUNT: usize = 1_000_000;
    let mut random = Random::new(29);
    let mut space = Space::new(0, 1 << 22, 1).expect("a space");
    let kinds = [0, 8, 16, 24, 40].map(|bytes| space.add_kind(bytes, false).expect("a kind"));
    let mut live: Vec<(u64, Kind, u64)> = Vec::new();
    let mut number = 0;
    let mut make = |space: &mut Space, random: &mut Random| {
        let kind = random.pick(&kinds);
        let start = space.alloc(1 << random.within(0..2)).expect("there is room");
        number += 1;
        space.describe(start, Label { kind: Some(kind), owner: 0 }, 1).expect("it has none");
        let record = space.look(start).unwrap().expect("it has a kind");
        if record.len() >= 8 {
            // SAFETY: the record's first bytes, which nothing else touches.
            unsafe { record.as_ptr().cast::<u64>().write(number) };
        }
        space.look_away(record);
        (start, kind, number)
    };
    while live.len() < COUNT {
        live.push(make(&mut space, &mut random));
    }
    for _ in 0..COUNT {
        let victim = random.within(0..live.len() as u64) as usize;
        let (start, ..) = live.swap_remove(victim);
        space.free(start).expect("it is allocated");
        live.push(make(&mut space, &mut random));
    }
    space.check().expect("the recount agrees");
    for &(start, kind, number) in &live {
        let found = space.lookup_described(start).expect("it is allocated");
        assert_eq!((found.start, found.label.kind), (start, Some(kind)));
        let record = space.look(start).unwrap().expect("it has a kind");
        if record.len() >= 8 {
            // SAFETY: as above.
            assert_eq!(unsafe { record.as_ptr().cast::<u64>().read() }, number);
        }
        space.look_away(record);
    }
}

/// 24 bytes beside a record of 360.
#[test]
fn what_a_descriptor_takes() {
    for count in [100_000usize, 150_000, 229_000, 230_000] {
        let mut space = Space::new(0, 1 << 20, 1).expect("a space");
        let kind = space.add_kind(360, false).expect("a kind");
        let all = space.alloc_many(1, count).expect("there is room");
        let before = space.metadata_bytes();
        for &start in &all {
            space.describe(start, Label { kind: Some(kind), owner: 7 }, 1).expect("it has none");
        }
        let bytes = (space.metadata_bytes() - before) as f64 / count as f64;
        assert!(bytes <= 384.0, "{bytes} bytes each of {count}");
    }
}

#[test]
fn bad_calls_change_nothing() {
    let mut space = Space::new(0, 1 << 12, 1).expect("a space");
    assert!(matches!(space.add_kind(65_537, false), Err(Error::Argument { name: "record", .. })));
    let kind = space.add_kind(65_536, false).expect("a kind");
    let mut other = Space::new(0, 1 << 12, 1).expect("a space");
    let at = other.alloc(4).expect("there is room");
    let label = Label { kind: Some(kind), owner: 1 };
    assert!(matches!(other.describe(at, label, 1), Err(Error::Argument { name: "kind", .. })));
    let at = space.alloc(4).expect("there is room");
    assert!(matches!(space.describe(at + 1, label, 1), Err(Error::NotAllocated { .. })));
    space.describe(at, label, 1).expect("it has none");
    assert!(matches!(space.describe(at, label, 1), Err(Error::Argument { name: "address", .. })));
    assert!(matches!(space.pin(100), Err(Error::NotAllocated { address: 100, .. })));
    assert!(matches!(space.unpin(at), Err(Error::Argument { name: "address", .. })));
    assert_eq!(space.pin_range(at + 4, 100).map_err(|_| ()), Err(()));
    let next = space.alloc(4).expect("there is room");
    assert_eq!(space.pin_range(at + 1, 4), Ok(vec![at, next]));
    assert_eq!(space.free(next), Err(Error::Busy { address: next, pins: 1 }));
    space.check().expect("the recount agrees");
}
