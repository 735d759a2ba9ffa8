//! One line of a node: which of its 64 children reach which small orders.
//!
//! A row *reaches* the orders up to that of its largest free block, so its reach is a number from 0
//! (nothing) to 6 (a block of order 5): how many orders it reaches. A node's six small `has` words
//! are these numbers turned sideways: bit `c` of word `j` says that child `c` reaches order `j`. So
//! a bit set in one word is set in all words before it, and the node's own reach is the number of
//! words that are not zero.
//!
//! Saying what one child reaches rewrites all six words, whether they change or not. Which ones do
//! is as good as random, and a loop over just these mispredicts more than it saves. On x86-64 the
//! six words are three vectors of the baseline instruction set; elsewhere the compiler makes of the
//! plain version what it can.

use crate::tree::{DETAIL, HAS};
use crate::word::ROW_ORDERS;

/// Says in a node's line how many small orders a child reaches. How many the node itself reached
/// before, and reaches now.
///
/// Children without detail may use these words for something else and do not count; `child` must
/// have detail.
#[inline(always)]
pub(crate) fn set_reach(line: &mut [u64; 8], child: u32, reach: u32) -> (u32, u32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE2.
    return unsafe { vectors::set_reach(line, child, reach) };
    #[cfg(not(target_arch = "x86_64"))]
    return set_reach_plainly(line, child, reach);
}

/// The obvious version, against which the other is tested.
#[cfg_attr(target_arch = "x86_64", cfg(test))]
fn set_reach_plainly(line: &mut [u64; 8], child: u32, reach: u32) -> (u32, u32) {
    let detail = line[DETAIL];
    let (mut before, mut after) = (0, 0);
    for order in 0..ROW_ORDERS {
        let word = &mut line[HAS + order as usize];
        before += (*word & detail != 0) as u32;
        *word = *word & !(1 << child) | ((order < reach) as u64) << child;
        after += (*word & detail != 0) as u32;
    }
    (before, after)
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::{DETAIL, HAS, ROW_ORDERS};

    /// For each reach, all ones in the words of the orders that are reached.
    static REACHED: [[u64; 6]; 7] = {
        let mut words = [[0; 6]; 7];
        let mut reach = 1;
        while reach <= ROW_ORDERS as usize {
            words[reach] = words[reach - 1];
            words[reach][reach - 1] = u64::MAX;
            reach += 1;
        }
        words
    };

    /// Words 2 and 3, 4 and 5, 6 and 7 of a line.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn pairs(words: &[u64]) -> [__m128i; 3] {
        let pair = |at: usize| _mm_set_epi64x(words[at + 1] as i64, words[at] as i64);
        [pair(0), pair(2), pair(4)]
    }

    /// How many of the six words, from the first on, are not zero under `detail`.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn reached(words: [__m128i; 3], detail: __m128i) -> u32 {
        // Two lanes of 32 bits a word, all ones where zero, down to a bit a lane.
        let zero =
            words.map(|pair| _mm_cmpeq_epi32(_mm_and_si128(pair, detail), _mm_setzero_si128()));
        let lanes = _mm_packs_epi16(
            _mm_packs_epi32(zero[0], zero[1]),
            _mm_packs_epi32(zero[2], _mm_set1_epi32(-1)),
        );
        let lanes = _mm_movemask_epi8(lanes) as u32;
        // A word is zero where both its lanes are; behind the last stands one that always is.
        (lanes & lanes >> 1 & 0x5555).trailing_zeros() / 2
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn set_reach(line: &mut [u64; 8], child: u32, reach: u32) -> (u32, u32) {
        let detail = _mm_set1_epi64x(line[DETAIL] as i64);
        let bit = _mm_set1_epi64x(1 << child);
        let old = pairs(&line[HAS..]);
        let set = pairs(&REACHED[reach as usize]);
        let new: [__m128i; 3] = std::array::from_fn(|at| {
            _mm_or_si128(_mm_andnot_si128(bit, old[at]), _mm_and_si128(bit, set[at]))
        });
        for (at, pair) in new.into_iter().enumerate() {
            line[HAS + 2 * at] = _mm_cvtsi128_si64(pair) as u64;
            line[HAS + 2 * at + 1] = _mm_cvtsi128_si64(_mm_unpackhi_epi64(pair, pair)) as u64;
        }
        (reached(old, detail), reached(new, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_agree() {
        let mut state = 0x6a09_e667_f3bc_c909u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..20_000 {
            // Sparse lines, so that words become and stop being zero.
            let mut line = [0; 8];
            line[DETAIL] = random() | random();
            for _ in 0..round % 4 {
                let (child, reach) = (random() % 64, random() % 7);
                line[DETAIL] |= 1 << child;
                set_reach_plainly(&mut line, child as u32, reach as u32);
            }
            let states = random() & random() & !line[DETAIL];
            line[HAS] |= states;
            line[HAS + 1] |= random() & states;
            let child = (random() % 64) as u32;
            line[DETAIL] |= 1 << child;
            let mut plain = line;
            for word in &mut plain[HAS..] {
                *word &= !(states & 1 << child);
            }
            let mut fast = plain;
            let reach = (random() % 7) as u32;
            let expected = set_reach_plainly(&mut plain, child, reach);
            assert_eq!((set_reach(&mut fast, child, reach), fast), (expected, plain), "{line:x?}");
        }
    }
}
