//! One line of a node: which of its 64 children reach which small orders.
//!
//! A row *reaches* the orders up to that of its largest free block, so its reach is a number from 0
//! (nothing) to 6 (a block of order 5): how many orders it reaches. A node's six small `has` words
//! are these numbers turned sideways: bit `c` of word `j` says that child `c` reaches order `j`. So
//! a bit set in one word is set in all words before it, and the node's own reach is the number of
//! words that are not zero.
//!
//! Saying what one child reaches rewrites all six words, whether they change or not. Which ones do
//! is as good as random, and a branch over it mispredicts more than it saves, so everything here is
//! straight-line code. On x86-64 the six words are three vectors of the baseline instruction set,
//! which has to be said by hand: left to itself the compiler takes them apart again.

use crate::tree::{DETAIL, HAS};
use crate::word::ROW_ORDERS;

#[cfg(not(target_arch = "x86_64"))]
use plain as words;
#[cfg(target_arch = "x86_64")]
use vectors as words;

/// What a row or node reaches, to be told to the line above it.
#[derive(Clone, Copy)]
pub(crate) struct Reach(words::Missing);

/// For each number of orders reached, all ones in the words of those that are not.
static MISSING: [[u64; ROW_ORDERS as usize]; ROW_ORDERS as usize + 1] = {
    let mut words = [[u64::MAX; 6]; 7];
    let mut reached = 1;
    while reached <= ROW_ORDERS as usize {
        words[reached] = words[reached - 1];
        words[reached][reached - 1] = 0;
        reached += 1;
    }
    words
};

impl Reach {
    /// Of something that reaches so many small orders.
    #[inline(always)]
    pub(crate) fn new(orders: u32) -> Self {
        Reach(words::load(&MISSING[orders as usize]))
    }

    /// Of a node with this line: what any of its children with detail reaches.
    #[inline(always)]
    pub(crate) fn of_node(line: &[u64; 8]) -> Self {
        Reach(words::of_node(line))
    }

    /// How many small orders are reached.
    #[inline(always)]
    pub(crate) fn orders(self) -> u32 {
        words::orders(self.0)
    }

    /// Says in a node's line that a child, which must have detail, reaches this.
    #[inline(always)]
    pub(crate) fn set(self, line: &mut [u64; 8], child: u32) {
        words::set(line, child, self.0);
    }

    /// Says in a node's line that a child, which must have detail, reaches this besides.
    #[inline(always)]
    pub(crate) fn add(self, line: &mut [u64; 8], child: u32) {
        words::add(line, child, self.0);
    }
}

/// The obvious version, against which the other is tested.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    use super::{DETAIL, HAS, ROW_ORDERS};

    pub(super) type Missing = [u64; ROW_ORDERS as usize];

    pub(super) fn load(words: &[u64; 6]) -> Missing {
        *words
    }

    pub(super) fn of_node(line: &[u64; 8]) -> Missing {
        let reached = |order| line[HAS + order] & line[DETAIL] != 0;
        std::array::from_fn(|order| if reached(order) { 0 } else { u64::MAX })
    }

    pub(super) fn orders(missing: Missing) -> u32 {
        missing.iter().map(|word| (!word & 1) as u32).sum()
    }

    pub(super) fn set(line: &mut [u64; 8], child: u32, missing: Missing) {
        let bit = 1u64 << child;
        for (word, missing) in line[HAS..].iter_mut().zip(missing) {
            *word = *word & !bit | bit & !missing;
        }
    }

    pub(super) fn add(line: &mut [u64; 8], child: u32, missing: Missing) {
        for (word, missing) in line[HAS..].iter_mut().zip(missing) {
            *word |= 1 << child & !missing;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    //! Two words a vector. Lines are aligned to 64 bytes, so the words 2 to 7 are whole vectors, and
    //! a vector is always loaded as it was stored, which the processor forwards.

    use std::arch::x86_64::*;

    use super::{DETAIL, HAS};

    pub(super) type Missing = [__m128i; 3];

    // SAFETY, here and below: every x86-64 processor has SSE2, and what is loaded and stored lies in
    // the six words that the references are to; the unaligned forms ask for no more.

    #[inline(always)]
    pub(super) fn load(words: &[u64; 6]) -> Missing {
        let at = words.as_ptr().cast::<__m128i>();
        unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)), _mm_loadu_si128(at.add(2))] }
    }

    #[inline(always)]
    fn has(line: &[u64; 8]) -> Missing {
        load(line[HAS..].first_chunk().expect("six words"))
    }

    #[inline(always)]
    fn set_has(line: &mut [u64; 8], has: Missing) {
        let words: &mut [u64; 6] = line[HAS..].first_chunk_mut().expect("six words");
        let at = words.as_mut_ptr().cast::<__m128i>();
        unsafe {
            _mm_storeu_si128(at, has[0]);
            _mm_storeu_si128(at.add(1), has[1]);
            _mm_storeu_si128(at.add(2), has[2]);
        }
    }

    #[inline(always)]
    pub(super) fn of_node(line: &[u64; 8]) -> Missing {
        unsafe {
            let detail = _mm_set1_epi64x(line[DETAIL] as i64);
            has(line).map(|pair| {
                // There is no comparison of 64 bits: both halves must be zero.
                let zero = _mm_cmpeq_epi32(_mm_and_si128(pair, detail), _mm_setzero_si128());
                _mm_and_si128(zero, _mm_shuffle_epi32(zero, 0b10_11_00_01))
            })
        }
    }

    #[inline(always)]
    pub(super) fn orders(missing: Missing) -> u32 {
        unsafe {
            let [low, middle, high] = missing;
            let ones = _mm_set1_epi32(-1);
            let lanes = _mm_packs_epi16(_mm_packs_epi32(low, middle), _mm_packs_epi32(high, ones));
            // Two bytes a word; behind the last word stands one that is always missing.
            (_mm_movemask_epi8(lanes) as u32).trailing_zeros() / 2
        }
    }

    #[inline(always)]
    pub(super) fn set(line: &mut [u64; 8], child: u32, missing: Missing) {
        let has = has(line);
        unsafe {
            let bit = _mm_set1_epi64x(1 << child);
            let new = |at: usize| {
                _mm_or_si128(_mm_andnot_si128(bit, has[at]), _mm_andnot_si128(missing[at], bit))
            };
            set_has(line, [new(0), new(1), new(2)]);
        }
    }

    #[inline(always)]
    pub(super) fn add(line: &mut [u64; 8], child: u32, missing: Missing) {
        let has = has(line);
        unsafe {
            let bit = _mm_set1_epi64x(1 << child);
            let new = |at: usize| _mm_or_si128(has[at], _mm_andnot_si128(missing[at], bit));
            set_has(line, [new(0), new(1), new(2)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_reach_is_set_and_nothing_else() {
        let mut line = [0u64; 8];
        let mut children = [0u32; 64];
        let mut state = 0x6a09_e667_f3bc_c909u64;
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let (child, orders) = ((state >> 8) as usize & 63, (state >> 40) as u32 % 7);
            let mut plainly = line;
            let missing = plain::load(&MISSING[orders as usize]);
            if state >> 60 < 4 {
                Reach::new(orders).add(&mut line, child as u32);
                plain::add(&mut plainly, child as u32, missing);
                children[child] = children[child].max(orders);
            } else {
                Reach::new(orders).set(&mut line, child as u32);
                plain::set(&mut plainly, child as u32, missing);
                children[child] = orders;
            }
            assert_eq!(line, plainly);
            for order in 0..6 {
                let reached = (0..64).filter(|&child| children[child] > order as u32);
                let word = reached.fold(0, |word, child| word | 1 << child);
                assert_eq!(line[HAS + order], word, "order {order} of {children:?}");
            }
            // Few children with detail, so that some words come to nothing.
            line[DETAIL] = 1 << (state & 63) | 1 << (state >> 6 & 63);
            let detailed = (0..64).filter(|&child| line[DETAIL] >> child & 1 == 1);
            let most = detailed.map(|child| children[child]).max().unwrap_or(0);
            assert_eq!(Reach::of_node(&line).orders(), most);
            assert_eq!(plain::orders(plain::of_node(&line)), most);
            assert_eq!(Reach::new(most).orders(), most);
        }
    }
}
