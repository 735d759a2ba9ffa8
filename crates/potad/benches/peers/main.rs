//! The allocator beside its peers, in one process, rounds interleaved.
//!
//! `cargo bench -p potad --bench peers [-- ROW ...]` runs all rows, or those named: `churn`,
//! `drain`, `hot`, `large`, `tail`, `blocks`, `failures`, `growth`, `runs`, `many`, `lookup`,
//! `described`, `windows`, and before them `making`. Each row first verifies that the allocators hand out what they say: no two blocks overlap, and the
//! space's recount agrees.
//!
//! A ratio is that of the medians of all rounds; behind it stands its range over single rounds.

mod peer;
mod table;
mod workload;

use std::collections::BTreeMap;
use std::time::Instant;

use peer::{Frames, Linux, Offset, Peer, Potad};
use potad::{Fit, Label, Space};
use rangemap::RangeMap;
use table::{Bar, Rounds, figure, ratio};
use workload::{Churn, Random, random_drain};

const GRANULES: u32 = 1 << 20;

fn full(granules: u32, percent: u64) -> u64 {
    granules as u64 * percent / 100
}

/// A peer at so many percent that has been churned for so long that how it was filled does not
/// show any more: lists take that long to get as scattered as they stay.
fn churned<A: Peer>(granules: u32, percent: u64, seed: u64) -> Churn<A> {
    let mut churn = Churn::<A>::new(granules, seed);
    churn.fill(full(granules, percent));
    let level = churn.used;
    churn.churn(4 * granules.min(1 << 20) as usize, level);
    churn
}

fn verify<A: Peer>(granules: u32, percent: u64) {
    let mut churn = churned::<A>(granules, percent, 1);
    churn.verify(granules);
    churn.free_random_half();
    churn.verify(granules);
}

/// Nanoseconds an operation of churn, a figure a round, for each of the four, interleaved.
fn churn_rounds(granules: u32, percent: u64, pairs: usize, rounds: usize) -> [Rounds; 4] {
    let mut potad = churned::<Potad>(granules, percent, 7);
    let mut linux = churned::<Linux>(granules, percent, 7);
    let mut offset = churned::<Offset>(granules, percent, 7);
    let mut frames = churned::<Frames>(granules, percent, 7);
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        times[0].push(potad.time_churn(pairs));
        times[1].push(linux.time_churn(pairs));
        times[2].push(offset.time_churn(pairs));
        times[3].push(frames.time_churn(pairs));
    }
    potad.peer.check();
    times.map(Rounds)
}

fn churn() {
    println!(
        "\nchurn: 2^20 granules, 75 % full, orders 0-9 with P(k) ~ 2^-k, random victim, ns an operation"
    );
    verify::<Potad>(GRANULES, 75);
    verify::<Linux>(GRANULES, 75);
    verify::<Offset>(GRANULES, 75);
    verify::<Frames>(GRANULES, 75);
    let [potad, linux, offset, frames] = churn_rounds(GRANULES, 75, 1 << 20, 15);
    figure(Potad::NAME, &potad, "ns");
    figure(Linux::NAME, &linux, "ns");
    figure(Offset::NAME, &offset, "ns");
    figure(Frames::NAME, &frames, "ns");
    ratio("churn", &potad, Linux::NAME, &linux, Bar::AtMost(0.7));
    ratio("churn", &potad, Offset::NAME, &offset, Bar::AtMost(0.4));
    ratio("churn", &potad, Frames::NAME, &frames, Bar::None);
}

fn hot() {
    println!("\nthe same churn in 2^10 granules, ns an operation");
    verify::<Potad>(1 << 10, 75);
    let [potad, linux, offset, frames] = churn_rounds(1 << 10, 75, 1 << 19, 15);
    figure(Potad::NAME, &potad, "ns");
    figure(Linux::NAME, &linux, "ns");
    figure(Offset::NAME, &offset, "ns");
    figure(Frames::NAME, &frames, "ns");
    ratio("hot churn", &potad, Offset::NAME, &offset, Bar::AtMost(1.0));
    ratio("hot churn", &potad, Linux::NAME, &linux, Bar::None);
}

fn drain() {
    println!("\norder 0: 2^20 granules, full, freed in random order, ns a free");
    let mut times = [const { Vec::new() }; 4];
    for seed in 0..7 {
        times[0].push(random_drain::<Potad>(GRANULES, seed));
        times[1].push(random_drain::<Linux>(GRANULES, seed));
        times[2].push(random_drain::<Offset>(GRANULES, seed));
        times[3].push(random_drain::<Frames>(GRANULES, seed));
    }
    let [potad, linux, offset, frames] = times.map(Rounds);
    figure(Potad::NAME, &potad, "ns");
    figure(Linux::NAME, &linux, "ns");
    figure(Offset::NAME, &offset, "ns");
    figure(Frames::NAME, &frames, "ns");
    ratio("random drain", &potad, Linux::NAME, &linux, Bar::AtMost(0.15));
    ratio("random drain", &potad, Offset::NAME, &offset, Bar::None);
}

/// The largest space whose page structures (64 bytes a granule) fit in memory beside the rest.
fn large_granules() -> u32 {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    if available.unwrap_or(0) > 21 << 20 { 1 << 28 } else { 1 << 26 }
}

fn large() {
    let granules = large_granules();
    println!("\nchurn: 2^{} granules, 50 % full, ns an operation", granules.ilog2());
    let pairs = 1 << 20;
    let mut potad = churned::<Potad>(granules, 50, 7);
    let mut linux = churned::<Linux>(granules, 50, 7);
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..9 {
        times[0].push(potad.time_churn(pairs));
        times[1].push(linux.time_churn(pairs));
    }
    let [ours, theirs] = times.map(Rounds);
    figure(Potad::NAME, &ours, "ns");
    figure(Linux::NAME, &theirs, "ns");
    ratio("large churn", &ours, Linux::NAME, &theirs, Bar::AtMost(0.75));
    drop(linux);

    // The frees of this churn: random victims, given back and taken again between rounds.
    let mut random = Random::new(3);
    let (mut one_by_one, mut at_once) = (Vec::new(), Vec::new());
    for round in 0..18 {
        let victims: Vec<(u32, u32)> = (0..pairs)
            .map(|_| {
                let victim = random.below(potad.live.len());
                potad.live.swap_remove(victim)
            })
            .collect();
        let addresses: Vec<u64> = victims.iter().map(|victim| (victim.0 as u64) << 12).collect();
        let before = Instant::now();
        if round % 2 == 0 {
            for &address in &addresses {
                potad.peer.0.free(address).expect("it is allocated");
            }
        } else {
            potad.peer.0.free_many(&addresses).expect("they are allocated");
        }
        let time = before.elapsed().as_secs_f64() * 1e9 / pairs as f64;
        if round % 2 == 0 {
            one_by_one.push(time)
        } else {
            at_once.push(time)
        }
        for (_, order) in victims {
            potad.live.push((potad.peer.alloc(order).expect("there is room"), order));
        }
    }
    potad.peer.check();
    let (one_by_one, at_once) = (Rounds(one_by_one), Rounds(at_once));
    figure("frees, one by one", &one_by_one, "ns");
    figure("frees, in one free_many", &at_once, "ns");
    ratio("free_many", &at_once, "one by one", &one_by_one, Bar::AtMost(0.5));
}

fn tail() {
    println!("\nslowest 1 in 1,000 of the frees, 2^20 granules, churn at 75 %, ns");
    let clock = quanta::Clock::new();
    let slowest = |mut times: Vec<u64>| {
        let at = times.len() - times.len() / 1000;
        let (_, slowest, _) = times.select_nth_unstable(at);
        clock.delta_as_nanos(0, *slowest) as f64
    };
    let mut potad = churned::<Potad>(GRANULES, 75, 7);
    let mut linux = churned::<Linux>(GRANULES, 75, 7);
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..15 {
        times[0].push(slowest(potad.churn_timing_frees(1 << 19, &clock)));
        times[1].push(slowest(linux.churn_timing_frees(1 << 19, &clock)));
    }
    let [potad, linux] = times.map(Rounds);
    figure(Potad::NAME, &potad, "ns");
    figure(Linux::NAME, &linux, "ns");
    ratio("slowest 1 in 1,000 frees", &potad, Linux::NAME, &linux, Bar::AtMost(0.35));
}

/// Blocks of 2 MiB after the churn and freeing a random half of what lives.
fn blocks_after<A: Peer>(seed: u64) -> f64 {
    let mut churn = Churn::<A>::new(GRANULES, seed);
    churn.fill(full(GRANULES, 75));
    let level = churn.used;
    churn.churn(2_500_000, level);
    churn.free_random_half();
    churn.blocks_to_be_had(9) as f64
}

fn blocks() {
    println!(
        "\n2 MiB blocks to be had after the churn (5,000,000 operations) and freeing a random half, of 2048"
    );
    let mut counts = [const { Vec::new() }; 2];
    for seed in 0..9 {
        counts[0].push(blocks_after::<Potad>(seed));
        counts[1].push(blocks_after::<Linux>(seed));
    }
    let [potad, linux] = counts.map(Rounds);
    figure(Potad::NAME, &potad, "blocks");
    figure(Linux::NAME, &linux, "blocks");
    ratio("2 MiB blocks", &potad, Linux::NAME, &linux, Bar::AtLeast(1.1));
}

fn failures_of<A: Peer>(seed: u64) -> f64 {
    let mut churn = Churn::<A>::new(GRANULES, seed);
    churn.fill(full(GRANULES, 97));
    churn.drain(full(GRANULES, 75));
    let level = churn.used;
    churn.churn(5_000_000, level);
    churn.failures as f64
}

fn failures() {
    println!(
        "\nfailed allocations of 5,000,000 in the churn, from a space filled to 97 % and freed at random to 75 %"
    );
    for seed in 0..3 {
        let (ours, theirs) = (failures_of::<Potad>(seed), failures_of::<Linux>(seed));
        let verdict = if ours <= theirs { "met" } else { "MISSED" };
        println!("  seed {seed}: potad {ours}, {} {theirs}: none more, {verdict}", Linux::NAME);
    }
}

fn growth() {
    println!("\ngrowth of an operation's cost from 2^20 to 2^28 granules, churn at 50 %");
    let mut small = churned::<Potad>(GRANULES, 50, 7);
    let mut large = churned::<Potad>(1 << 28, 50, 7);
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..9 {
        times[0].push(small.time_churn(1 << 20));
        times[1].push(large.time_churn(1 << 20));
    }
    let [small, large] = times.map(Rounds);
    figure("2^20 granules", &small, "ns");
    figure("2^28 granules", &large, "ns");
    ratio("growth", &large, "2^20", &small, Bar::AtMost(3.0));
}

/// Bytes of the process that are resident.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn making() {
    println!("\nmaking a space of 1.5 TiB of 512-byte granules, then a block of 1 TiB");
    let (mut making, mut block, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..15 {
        let resident_before = resident();
        let before = Instant::now();
        let mut space = Space::new(0, 3 << 39, 512).expect("a space");
        making.push(before.elapsed().as_secs_f64() * 1e6);
        memory.push((resident().saturating_sub(resident_before)) as f64 / 1024.0);
        let before = Instant::now();
        let at = space.alloc(1 << 40).expect("1 TiB");
        block.push(before.elapsed().as_secs_f64() * 1e6);
        assert_eq!((at, space.lookup(at + (1 << 39)).map(|d| d.size)), (0, Some(1 << 40)));
        space.check().expect("the recount agrees");
    }
    figure("making, bar 1000", &Rounds(making), "microseconds");
    figure("resident, bar 1024", &Rounds(memory), "KiB");
    figure("the block, bar 20", &Rounds(block), "microseconds");

    println!("metadata resident, 2^24 granules in use one by one");
    let before = resident();
    let mut space = Space::new(0, 4096 << 24, 4096).expect("a space");
    for _ in 0..1 << 24 {
        space.alloc(4096).expect("there is room");
    }
    let bytes = (resident() - before) as f64 / (1u64 << 24) as f64;
    println!(
        "  resident {bytes:.4} bytes a granule in use, bar 0.3; metadata_bytes() {:.4}",
        space.metadata_bytes() as f64 / (1u64 << 24) as f64
    );
}

/// A space with so many holes of 4 to 512 KiB, then a free rest.
fn holes(count: usize) -> Space {
    let mut random = Random::new(11);
    let mut space = Space::new(0, 1 << 40, 4096).expect("a space");
    let mut at = 0;
    for _ in 0..count {
        at += 4096 * (1 + random.below(128) as u64);
        space.alloc_at(at, 4096).expect("it is free");
        at += 4096;
    }
    space
}

fn runs() {
    println!("\nalloc_run(1 MiB) behind holes of 4 to 512 KiB, microseconds");
    let mut times = [const { Vec::new() }; 4];
    let (mut few, mut many) = (holes(1000), holes(100_000));
    for _ in 0..101 {
        let spaces = [&mut few, &mut many];
        for (space, slot) in spaces.into_iter().zip([0, 2]) {
            for (fit, slot) in [(Fit::Aligned, slot), (Fit::First, slot + 1)] {
                let before = Instant::now();
                let run = space.alloc_run(1 << 20, 4096, None, fit);
                times[slot].push(before.elapsed().as_secs_f64() * 1e6);
                space.free(run.expect("there is room")).expect("it is allocated");
            }
        }
    }
    let [few_aligned, few_first, many_aligned, many_first] = times.map(Rounds);
    figure("behind 1,000, aligned", &few_aligned, "microseconds");
    figure("behind 1,000, first", &few_first, "microseconds");
    figure("behind 100,000, aligned", &many_aligned, "microseconds, bar 20");
    figure("behind 100,000, first", &many_first, "microseconds");
    ratio("100,000 holes", &many_aligned, "1,000 holes", &few_aligned, Bar::AtMost(2.0));
    ratio("100,000 holes, lowest address", &many_first, "1,000 holes", &few_first, Bar::None);
}

fn many() {
    println!("\nalloc_many and free_many, ns a block (both together), 1,000,000 blocks");
    for order in [0u32, 3, 9] {
        let count = 1_000_000usize.min((1 << 24) >> order);
        let mut space = Space::new(0, 4096 << 24, 4096).expect("a space");
        let mut times = Vec::new();
        for _ in 0..9 {
            let before = Instant::now();
            let blocks = space.alloc_many(4096 << order, count).expect("there is room");
            space.free_many(&blocks).expect("they are allocated");
            times.push(before.elapsed().as_secs_f64() * 1e9 / count as f64);
        }
        space.check().expect("the recount agrees");
        figure(&format!("order {order}, bar 15"), &Rounds(times), "ns");
    }
}

/// From an address anywhere inside an allocation to the allocation.
fn lookup() {
    println!("\nlookup of a random live address, 2^20 granules, the churn at 75 %, ns");
    let churn = churned::<Potad>(GRANULES, 75, 7);
    let space = &churn.peer.0;
    let mut tree = BTreeMap::new();
    let mut ranges = RangeMap::new();
    for found in space.allocations() {
        let (first, end) = ((found.start >> 12) as u32, (found.start + found.size as u64) >> 12);
        tree.insert(first, end as u32);
        // Neighbours with the same value would be one range.
        ranges.insert(first..end as u32, first);
    }
    let mut random = Random::new(5);
    let asked: Vec<u32> = (0..1 << 20)
        .map(|_| {
            let (start, order) = churn.live[random.below(churn.live.len())];
            start + random.below(1 << order) as u32
        })
        .collect();
    let by_tree = |at: u32| tree.range(..=at).next_back().map(|(&first, _)| first);
    for &at in &asked {
        let found = space.lookup((at as u64) << 12).map(|found| (found.start >> 12) as u32);
        assert_eq!((found, by_tree(at)), (ranges.get(&at).copied(), found));
    }
    let mut times = [const { Vec::new() }; 3];
    let time = |of: &dyn Fn() -> u64| {
        let before = Instant::now();
        std::hint::black_box(of());
        before.elapsed().as_secs_f64() * 1e9 / asked.len() as f64
    };
    for _ in 0..9 {
        let start = |at: u32| space.lookup((at as u64) << 12).map_or(0, |found| found.start);
        times[0].push(time(&|| asked.iter().map(|&at| start(at)).sum()));
        times[1].push(time(&|| asked.iter().map(|&at| by_tree(at).unwrap_or(0) as u64).sum()));
        let first = |at: u32| *ranges.get(&at).unwrap_or(&0) as u64;
        times[2].push(time(&|| asked.iter().map(|&at| first(at)).sum()));
    }
    let [ours, by_tree, by_ranges] = times.map(Rounds);
    figure("potad", &ours, "ns");
    figure("BTreeMap range", &by_tree, "ns");
    figure("rangemap", &by_ranges, "ns");
    ratio("lookup", &ours, "BTreeMap range", &by_tree, Bar::AtMost(0.5));
    ratio("lookup", &ours, "rangemap", &by_ranges, Bar::AtMost(0.5));
}

/// Allocating and freeing at once, with a record of 360 bytes and without.
fn described() {
    println!("\nalloc and free, mixed sizes, half full, with a kind of 360 bytes, ns for the two");
    let mut churn = churned::<Potad>(GRANULES, 50, 7);
    let mut random = Random::new(9);
    let orders: Vec<u32> = (0..1 << 18).map(|_| random.order().min(7)).collect();
    let space = &mut churn.peer.0;
    let kind = space.add_kind(360, false).expect("a kind");
    // Some that stay, so that the tables are not empty.
    for _ in 0..10_000 {
        let at = space.alloc(4096).expect("there is room");
        space.describe(at, Label { kind: Some(kind), owner: 1 }, 1).expect("it has none");
    }
    let mut times = [const { Vec::new() }; 2];
    let before = space.used();
    for _ in 0..9 {
        for (with, times) in [false, true].into_iter().zip(&mut times) {
            let started = Instant::now();
            let label = Label { kind: Some(kind), owner: 0 };
            for &order in &orders {
                let at = if with {
                    space.alloc_described(4096 << order, None, label)
                } else {
                    space.alloc(4096 << order)
                };
                let at = at.expect("there is room");
                space.free(at).expect("it is allocated");
            }
            times.push(started.elapsed().as_secs_f64() * 1e9 / orders.len() as f64);
        }
    }
    assert_eq!(space.used(), before);
    space.check().expect("the recount agrees");
    let [without, with] = times.map(Rounds);
    figure("without a kind", &without, "ns");
    figure("with one", &with, "ns");
    ratio("with a kind", &with, "without", &without, Bar::AtMost(1.6));

    println!("bytes kept for an allocation with a record of 360 bytes, and an owner");
    for count in [100_000usize, 230_000, 458_000] {
        let mut space = Space::new(0, 1 << 32, 4096).expect("a space");
        let kind = space.add_kind(360, false).expect("a kind");
        let all = space.alloc_many(4096, count).expect("there is room");
        let (metadata, before) = (space.metadata_bytes(), resident());
        for at in all {
            let label = Label { kind: Some(kind), owner: 1 };
            space.describe(at, label, 1).expect("it has none");
            let record = space.look(at).unwrap().expect("it has a kind");
            // SAFETY: the record's own bytes, which nothing else touches: made resident.
            unsafe { record.as_ptr().write_bytes(1, record.len()) };
            space.look_away(record);
        }
        let each = |bytes: f64| bytes / count as f64;
        println!(
            "  of {count}: {:.1} by metadata_bytes(), resident {:.1}, bar 384",
            each((space.metadata_bytes() - metadata) as f64),
            each((resident() - before) as f64)
        );
    }
}

/// A space of movable allocations of mixed sizes at so many percent, some of them freed again.
fn movable(granules: u64, percent: u128) -> Space {
    let mut space = Space::new(0, (granules << 12).into(), 4096).expect("a space");
    let label = Label { kind: Some(space.add_kind(0, true).expect("a kind")), owner: 0 };
    let mut random = Random::new(11);
    let (mut live, size) = (Vec::new(), space.size());
    while space.available() > 0 {
        let at = space.alloc_described(4096 << random.order().min(3), None, label);
        let at = at.or_else(|_| space.alloc_described(4096, None, label));
        live.push(at.expect("something is free"));
    }
    while space.used() * 100 > size * percent {
        let at = live.swap_remove(random.below(live.len()));
        space.free(at).expect("it is allocated");
    }
    space
}

/// What the cheapest window costs, by adding up allocations: in granules, for starts at an alignment.
fn cheapest_slowly(space: &Space, length: u64, align: u64) -> u64 {
    let mut used = vec![0u64; (space.size() >> 12) as usize + 1];
    let mut bounds: Vec<(u64, u64)> = (0..used.len() as u64).map(|at| (at, at)).collect();
    for found in space.allocations() {
        let (first, end) = (found.start >> 12, (found.start + found.size as u64) >> 12);
        for at in first..end {
            used[at as usize + 1] = 1;
            if at > first {
                bounds[at as usize] = (first, end);
            }
        }
    }
    (1..used.len()).for_each(|at| used[at] += used[at - 1]);
    let cost = |start: u64| {
        let (low, high) = (bounds[start as usize].0, bounds[(start + length) as usize].1);
        used[high as usize] - used[low as usize]
    };
    let starts = (0..=used.len() as u64 - 1 - length).step_by(align as usize);
    starts.map(cost).min().expect("there are windows")
}

fn windows() {
    println!(
        "\nchoosing the window to empty for 8 MiB, mixed movable sizes, 90 % full, microseconds"
    );
    for (shift, bar) in [(20, 200), (26, 10_000)] {
        let mut space = movable(1 << shift, 90);
        for (name, align) in [("1 MiB", 1u64 << 20), ("4 KiB", 4096)] {
            let mut times = Vec::new();
            let mut cost = 0;
            for _ in 0..21 {
                let before = Instant::now();
                let found = space.cheapest_window(8 << 20, align.into(), None);
                times.push(before.elapsed().as_secs_f64() * 1e6);
                cost = found.expect("a window").expect("nothing stands in the way").1 >> 12;
            }
            if shift == 20 {
                assert_eq!(cost as u64, cheapest_slowly(&space, 2048, align >> 12));
            }
            let what = format!("2^{shift}, at {name}");
            figure(&what, &Rounds(times), &format!("microseconds, bar {bar}; {cost} to move"));
        }
        let kind = space.lookup_described(space.allocations().next().expect("some").start);
        let label = kind.expect("it is live").label;
        let (mut times, mut moved) = (Vec::new(), 0);
        for _ in 0..5 {
            let before = Instant::now();
            let run = space
                .alloc_run_moving(8 << 20, 1 << 20, None, Fit::Aligned, |it| moved += it.size)
                .expect("there is room");
            times.push(before.elapsed().as_secs_f64() * 1e6);
            space.free(run).expect("it is allocated");
            // In use again, so that the next has to move as well.
            for at in (run..run + (8 << 20)).step_by(4096) {
                space.alloc_at(at, 4096).expect("it is free");
                space.describe(at, label, 4096).expect("it has none");
            }
        }
        assert!(moved > 0);
        figure(&format!("2^{shift}, with the moves"), &Rounds(times), "microseconds");
        if shift == 20 {
            space.check().expect("the recount agrees");
        }
    }
}

fn main() {
    let rows: [(&str, fn()); 14] = [
        // First: what later rows have used and given back would hide what becomes resident.
        ("making", making),
        ("churn", churn),
        ("drain", drain),
        ("hot", hot),
        ("large", large),
        ("tail", tail),
        ("blocks", blocks),
        ("failures", failures),
        ("growth", growth),
        ("runs", runs),
        ("many", many),
        ("lookup", lookup),
        ("described", described),
        ("windows", windows),
    ];
    let asked: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for (name, row) in rows {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            row();
        }
    }
}
