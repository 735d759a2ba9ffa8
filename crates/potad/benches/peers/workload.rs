//! What the peers are made to do.

use std::time::Instant;

use crate::peer::Peer;

/// A small generator, the same stream for every peer: xorshift64*.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[inline(always)]
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// Orders 0 to 9, each half as likely as the one before.
    #[inline(always)]
    pub fn order(&mut self) -> u32 {
        // The tenth of the coins to come up tails, too rare to count, is taken for the first.
        (self.next() >> 20 | 1 << 10).trailing_zeros() % 10
    }
}

/// A peer with live allocations.
pub struct Churn<A: Peer> {
    pub peer: A,
    pub live: Vec<(A::Handle, u32)>,
    pub used: u64,
    pub failures: u64,
    random: Random,
}

impl<A: Peer> Churn<A> {
    pub fn new(granules: u32, seed: u64) -> Self {
        Churn {
            peer: A::new(granules),
            live: Vec::with_capacity(granules as usize),
            used: 0,
            failures: 0,
            random: Random::new(seed),
        }
    }

    /// Allocates random orders until so many granules are in use or, near the top, nothing fits.
    pub fn fill(&mut self, granules: u64) {
        let mut misses = 0;
        while self.used < granules && misses < 1000 {
            let order = self.random.order();
            match self.peer.alloc(order) {
                Some(handle) => {
                    self.live.push((handle, order));
                    self.used += 1 << order;
                }
                None => misses += 1,
            }
        }
    }

    /// Frees random victims until so few granules are in use.
    pub fn drain(&mut self, granules: u64) {
        while self.used > granules {
            self.free_one();
        }
    }

    #[inline(always)]
    fn free_one(&mut self) {
        let victim = self.random.below(self.live.len());
        let (handle, order) = self.live.swap_remove(victim);
        self.peer.free(handle, order);
        self.used -= 1 << order;
    }

    /// `pairs` times: a random victim is freed, and a random order allocated. Where an allocation
    /// fails, the next victim makes room, so that the fullness stays.
    #[inline(never)]
    pub fn churn(&mut self, pairs: usize, level: u64) {
        for _ in 0..pairs {
            self.free_one();
            let order = self.random.order();
            match self.peer.alloc(order) {
                Some(handle) => {
                    self.live.push((handle, order));
                    self.used += 1 << order;
                }
                None => self.failures += 1,
            }
            if self.used + 4096 < level || self.live.len() < 2 {
                self.fill(level);
            }
        }
    }

    /// The same churn, and what each free took, in the clock's raw ticks.
    #[inline(never)]
    pub fn churn_timing_frees(&mut self, pairs: usize, clock: &quanta::Clock) -> Vec<u64> {
        let mut times = Vec::with_capacity(pairs);
        for _ in 0..pairs {
            let victim = self.random.below(self.live.len());
            let (handle, order) = self.live.swap_remove(victim);
            let before = clock.raw();
            self.peer.free(handle, order);
            times.push(clock.raw() - before);
            self.used -= 1 << order;
            let order = self.random.order();
            if let Some(handle) = self.peer.alloc(order) {
                self.live.push((handle, order));
                self.used += 1 << order;
            }
        }
        times
    }

    /// Nanoseconds an operation of `pairs` pairs.
    pub fn time_churn(&mut self, pairs: usize) -> f64 {
        let level = self.used;
        let before = Instant::now();
        self.churn(pairs, level);
        before.elapsed().as_secs_f64() * 1e9 / (2 * pairs) as f64
    }

    /// Every live block lies in the space, and no two overlap.
    pub fn verify(&self, granules: u32) {
        let mut taken = vec![false; granules as usize];
        for &(handle, order) in &self.live {
            let start = A::start(handle) as usize;
            for taken in &mut taken[start..start + (1 << order)] {
                let twice = std::mem::replace(taken, true);
                assert!(!twice, "{}: the block at {start} overlaps another", A::NAME);
            }
        }
        let used = taken.iter().filter(|taken| **taken).count() as u64;
        assert_eq!(used, self.used, "{}: granules in use", A::NAME);
        self.peer.check();
    }

    /// How many aligned blocks of 2^`order` granules could be had.
    pub fn blocks_to_be_had(&mut self, order: u32) -> u64 {
        let mut taken = Vec::new();
        while let Some(handle) = self.peer.alloc(order) {
            taken.push(handle);
        }
        let count = taken.len() as u64;
        for handle in taken {
            self.peer.free(handle, order);
        }
        count
    }

    pub fn free_random_half(&mut self) {
        let keep = self.live.len() / 2;
        while self.live.len() > keep {
            self.free_one();
        }
    }
}

/// Single granules, freed in random order: nanoseconds a free.
pub fn random_drain<A: Peer>(granules: u32, seed: u64) -> f64 {
    let mut peer = A::new(granules);
    let mut live: Vec<A::Handle> =
        (0..granules).map(|_| peer.alloc(0).expect("the space is not full")).collect();
    assert!(peer.alloc(0).is_none(), "{}: more granules than there are", A::NAME);
    let mut random = Random::new(seed);
    for i in (1..live.len()).rev() {
        live.swap(i, random.below(i + 1));
    }
    let before = Instant::now();
    for &handle in &live {
        peer.free(handle, 0);
    }
    let time = before.elapsed().as_secs_f64() * 1e9 / granules as f64;
    peer.check();
    time
}
