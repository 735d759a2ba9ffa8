//! The head: what every operation reads and updates, on one cache line.
//!
//! Beside the figures it holds shortcuts. `low_large` and `low_small` bound from below where the
//! lowest free whole row and the lowest row with a free part are. `sections` and `reach` say where the first sections are and what they have, so
//! that in spaces of up to a million granules no upper node is read to find a row.

use crate::pool::{NONE, Node};
use crate::word::ROW_ORDERS;

/// No row: there is no such block.
pub(crate) const NO_ROW: u32 = u32::MAX;

/// Rows at or beyond this one are all noted as this one.
const ROW_MAX: u32 = u32::MAX - 1;

/// A plenty of space is one free block of at least this part of it, as a shift.
const PLENTY_SHIFT: u32 = 4;

/// Sections the head knows of: what fits in its line.
pub(crate) const SECTIONS: usize = 4;

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// Bit `k`, 6 or above: a maximal free block of order `k` exists. Bit `k` below is clear only if
    /// there is none of an order from `k` to 5. Order 64 has no bit here.
    pub(crate) orders: u64,
    /// Granules in allocations, modulo 2^64.
    pub(crate) used: u64,
    /// Live allocations.
    pub(crate) allocations: u64,
    /// A row below which no row belongs to a maximal free block of an order from 6 up to `plenty`;
    /// [`NO_ROW`] only if there is no such block.
    pub(crate) low_large: u32,
    /// A row below which no row has a free part.
    pub(crate) low_small: u32,
    /// Level of the root.
    pub(crate) top: u8,
    /// While a free block of at least this order exists there is plenty.
    pub(crate) plenty: u8,
    /// Whether all 2^64 granules are one free block of order 64.
    pub(crate) whole: bool,
    /// Sections over the first positions, where they exist.
    pub(crate) sections: [Node; SECTIONS],
    /// How many small orders each of these reaches at most; 0 where there is none.
    pub(crate) reach: [u8; SECTIONS],
    pub(crate) root: Node,
}

const _: () = assert!(size_of::<Head>() == 64);

impl Head {
    /// Of a tree in which nothing is present.
    pub(crate) fn new(top: u32, root: Node) -> Self {
        Head {
            orders: 0,
            used: 0,
            allocations: 0,
            low_large: NO_ROW,
            low_small: NO_ROW,
            sections: [NONE; SECTIONS],
            reach: [0; SECTIONS],
            root,
            top: top as u8,
            plenty: ROW_ORDERS as u8,
            whole: false,
        }
    }

    /// The orders of free blocks, as the field of that name has them.
    #[inline(always)]
    pub(crate) fn orders(&self) -> u128 {
        self.orders as u128 | (self.whole as u128) << 64
    }

    /// Granules in allocations.
    pub(crate) fn used(&self) -> u128 {
        // 2^64 granules are in use only as whole, and then something is.
        if self.used == 0 && self.allocations != 0 { 1 << 64 } else { self.used as u128 }
    }

    pub(crate) fn add_order(&mut self, order: u32) {
        match order {
            64 => self.whole = true,
            _ => self.orders |= 1 << order,
        }
    }

    pub(crate) fn remove_order(&mut self, order: u32) {
        match order {
            64 => self.whole = false,
            _ => self.orders &= !(1 << order),
        }
    }

    /// The row of a position, as it is noted here.
    #[inline(always)]
    pub(crate) fn row(position: u64) -> u32 {
        (position >> ROW_ORDERS).min(ROW_MAX as u64) as u32
    }

    /// The first of the sections known here that reaches an order.
    #[inline(always)]
    pub(crate) fn first_section(&self, order: u32) -> Option<usize> {
        let reaching = |at: usize| ((self.reach[at] as u32 > order) as u32) << at;
        let reaching = (0..SECTIONS).fold(0, |mask, at| mask | reaching(at));
        (reaching != 0).then(|| reaching.trailing_zeros() as usize)
    }

    /// A maximal free block of order 6 or more has come to be at `position` or above.
    #[inline(always)]
    pub(crate) fn note_large(&mut self, position: u64) {
        self.low_large = self.low_large.min(Self::row(position));
    }

    /// A row has come to reach so many small orders.
    #[inline(always)]
    pub(crate) fn note_small(&mut self, position: u64, reach: u32) {
        let row = if reach == 0 { NO_ROW } else { Self::row(position) };
        self.low_small = self.low_small.min(row);
    }

    /// No small block is found below the row of `position` than there: may one be taken, or is a
    /// large one lower down?
    #[inline(always)]
    pub(crate) fn takes_small(&self, position: u64) -> bool {
        Self::row(position) < self.low_large || !self.has_plenty()
    }

    /// Whether a large part of the space is still one free block.
    #[inline(always)]
    pub(crate) fn has_plenty(&self) -> bool {
        self.orders >> self.plenty != 0 || self.whole
    }

    /// Says how many granules the space has.
    pub(crate) fn set_size(&mut self, granules: u128) {
        let order = granules.checked_ilog2().unwrap_or(0);
        self.plenty = order.saturating_sub(PLENTY_SHIFT).max(ROW_ORDERS) as u8;
        // Bounds for other orders than before: look again.
        self.low_large = 0;
    }

    /// Orders of the large blocks that are taken by address while there is plenty.
    pub(crate) fn packed(&self) -> u128 {
        ((1 << self.plenty) - 1) & (u128::MAX << ROW_ORDERS)
    }
}
