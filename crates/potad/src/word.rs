//! One 64-bit row of a node: 64 siblings, a bit each, and what their free bits merge to.
//!
//! A free block of order `j` inside a row is `2^j` clear bits at a position that is a multiple of
//! `2^j`. It is *maximal* when its buddy, the other half of the block of order `j + 1` around it,
//! is not free as well: a maximal block is what a classic buddy allocator would keep on the list
//! of order `j`. Coalescing is therefore not something that is done: it is read off the bits.
//!
//! Everything here is straight-line code. The order that an operation meets varies from one call
//! to the next, so a loop that ends after so many orders would mispredict on most of them, and a
//! misprediction costs as much as all six orders together.

/// Orders that one row spans: a row has `2^6` bits.
pub(crate) const ROW_ORDERS: u32 = 6;

/// Bits at the positions where a block of each order can start.
const STARTS: [u64; 6] = [
    0xffff_ffff_ffff_ffff,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
];

/// The lowest `count` bits; `count` may be 0 to 64.
#[inline(always)]
pub(crate) const fn low_bits(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The lowest block of `order`, below 6.
#[inline(always)]
pub(crate) const fn block(order: u32) -> u64 {
    (1 << (1u32 << order)) - 1
}

/// A bit at every position a block of order `order` can start, for stamping out many heads.
#[inline(always)]
pub(crate) const fn starts(order: u32) -> u64 {
    STARTS[order as usize]
}

/// For each order, the positions where a maximal free block of exactly that order starts.
///
/// `free` has a bit set for each free sibling. A row that is free as a whole has no maximal block
/// of its own: it is a block of order 6, which its parent's row shows.
#[inline(always)]
pub(crate) const fn maximal(free: u64) -> [u64; 6] {
    // fold[j]: aligned starts of 2^j free bits, maximal or not.
    let f0 = free;
    let f1 = f0 & (f0 >> 1) & STARTS[1];
    let f2 = f1 & (f1 >> 2) & STARTS[2];
    let f3 = f2 & (f2 >> 4) & STARTS[3];
    let f4 = f3 & (f3 >> 8) & STARTS[4];
    let f5 = f4 & (f4 >> 16) & STARTS[5];
    let f6 = f5 & (f5 >> 32) & 1;
    // Both halves of every block of order j + 1 start blocks of order j that are not maximal.
    [
        f0 ^ (f1 | f1 << 1),
        f1 ^ (f2 | f2 << 2),
        f2 ^ (f3 | f3 << 4),
        f3 ^ (f4 | f4 << 8),
        f4 ^ (f5 | f5 << 16),
        f5 ^ (f6 | f6 << 32),
    ]
}

/// Which orders have a maximal free block in this row: bit `j` for order `j`, 0 to 5.
#[inline(always)]
pub(crate) const fn orders(free: u64) -> u32 {
    orders_of(&maximal(free))
}

/// The same of what [`maximal`] found.
#[inline(always)]
pub(crate) const fn orders_of(m: &[u64; 6]) -> u32 {
    (m[0] != 0) as u32
        | ((m[1] != 0) as u32) << 1
        | ((m[2] != 0) as u32) << 2
        | ((m[3] != 0) as u32) << 3
        | ((m[4] != 0) as u32) << 4
        | ((m[5] != 0) as u32) << 5
}

/// The smallest maximal blocks of at least `order`, of which there must be some: their order, where
/// they start, and the orders of all blocks of the row.
#[inline(always)]
pub(crate) const fn smallest(free: u64, order: u32) -> (u32, u64, u32) {
    let blocks = maximal(free);
    let orders = orders_of(&blocks);
    let from = order + (orders >> order).trailing_zeros();
    (from, blocks[from as usize], orders)
}

/// How many small orders a row reaches: one more than the order of its largest free block, and 0
/// without free bits, as well as for a row that is free as a whole.
#[inline(always)]
pub(crate) const fn reach(free: u64) -> u32 {
    reach_of(orders(free))
}

/// The same of the orders a row has.
#[inline(always)]
pub(crate) const fn reach_of(orders: u32) -> u32 {
    32 - orders.leading_zeros()
}

/// The order of the maximal free block around position `at`, which must be free; 6 for all of it.
///
/// The block grows until it would take in an occupied bit. The order at which two positions come
/// to share a block is the index of the highest bit in which they differ, so only the nearest
/// occupied bit on each side counts.
#[inline(always)]
pub(crate) const fn merged_order(occupied: u64, at: u32) -> u32 {
    debug_assert!(occupied >> at & 1 == 0);
    let below = occupied & ((1 << at) - 1);
    let above = occupied & (u64::MAX << at);
    let left = if below == 0 { 64 } else { (63 - below.leading_zeros()) ^ at };
    let right = if above == 0 { 64 } else { above.trailing_zeros() ^ at };
    let nearest = if left < right { left } else { right };
    nearest.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The obvious way: is the block free, and its buddy not?
    fn maximal_slowly(free: u64, order: u32) -> u64 {
        let is_free =
            |order: u32, at: u32| (free >> at) & low_bits(1 << order) == low_bits(1 << order);
        (0..64)
            .step_by(1 << order)
            .filter(|&at| is_free(order, at) && !is_free(order + 1, at & !((2 << order) - 1)))
            .fold(0, |bits, at| bits | 1 << at)
    }

    fn rows() -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let random = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        });
        // Dense, sparse, and half-full rows, and those next to all and nothing.
        let mut random = random;
        let mut rows = vec![0, u64::MAX, 1, 1 << 63, !1, !(1 << 63), 0xffff_ffff, !0xffff_ffff];
        for _ in 0..2000 {
            let (a, b, c) =
                (random.next().unwrap(), random.next().unwrap(), random.next().unwrap());
            rows.extend([
                a,
                a & b,
                a | b,
                a & b & c,
                a | b | c,
                low_bits((a % 65) as u32) << (b % 64),
            ]);
        }
        rows.into_iter()
    }

    #[test]
    fn folds_agree_with_the_definition() {
        for free in rows() {
            for order in 0..6 {
                let slow = maximal_slowly(free, order);
                assert_eq!(maximal(free)[order as usize], slow, "free {free:#x} order {order}");
                assert_eq!(
                    orders(free) >> order & 1 == 1,
                    slow != 0,
                    "free {free:#x} order {order}"
                );
            }
        }
    }

    #[test]
    fn merging_finds_the_maximal_block_around_a_position() {
        for free in rows() {
            for at in (0..64).filter(|&at| free >> at & 1 == 1) {
                let slow = (0..=6u32)
                    .filter(|&order| {
                        let start = at & !((1 << order) - 1);
                        (free >> start) & low_bits(1 << order) == low_bits(1 << order)
                    })
                    .max();
                assert_eq!(Some(merged_order(!free, at)), slow, "free {free:#x} at {at}");
            }
        }
    }
}
