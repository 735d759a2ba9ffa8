//! The head: what every operation reads and updates, and the summit: what the others do.
//!
//! Beside the figures they hold shortcuts. `near` bounds from below where a free part of a row is,
//! so that the search for one mostly starts at its end. Where the tree has no more sections than
//! the head knows of, up to a million granules, the summit says what each of them reaches, and no
//! upper node is read or written to find a row. `low_large` bounds from below where the lowest free
//! whole row is.
//!
//! # Recent blocks
//!
//! A block that was freed a moment ago is likely to be what the next request of its order gets. So
//! for the smallest orders one such block each is kept as it is: the tree goes on taking it for
//! allocated, and the next request of its order takes it over without a word of the tree being
//! written. It counts as free in every figure and for every address asked about, and before anything
//! is said to be full, or a whole row is broken for a small request, all of them are given back to
//! the tree. Only blocks that lie where requests are served from anyway are kept, so that use goes
//! on gathering at low addresses; none that end with their row, where an allocation that follows
//! would have to be told apart from them; and none in a space that has anything retired.

use crate::pool::{NONE, Node};
use crate::word::{ROW_ORDERS, low_bits};

/// No row: there is no such block.
pub(crate) const NO_ROW: u32 = u32::MAX;

/// Rows at or beyond this one are all noted as this one.
const ROW_MAX: u32 = u32::MAX - 1;

/// The space is looked at in parts of this fraction, as a shift: see the policy in `block`.
const PART_SHIFT: u32 = 4;

/// Sections the head knows of: what fits in its line.
pub(crate) const SECTIONS: usize = 4;

/// Orders of which one recent block each is kept, from 0 up: seven requests of eight where each order
/// is half as frequent as the one before. More would cost large blocks and gain little.
pub(crate) const RECENT: usize = 3;

/// No recent block.
pub(crate) const NOTHING: u32 = u32::MAX;

/// Rows beyond this one have positions that are not kept in mind.
const RECENT_ROW_MAX: u32 = (NOTHING >> ROW_ORDERS) - 1;

/// How fast `usual` follows requests down, as a shift. The slower, the more blocks are recent ones,
/// and the fewer large blocks are left.
const USUAL_SHIFT: u32 = 2;

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// Granules in allocations, modulo 2^64; recent blocks do not count.
    pub(crate) used: u64,
    /// Positions of the recent blocks, by order; [`NOTHING`] where there is none.
    pub(crate) recent: [u32; RECENT],
    /// A row below which no row has a free part; [`NO_ROW`] if none has at all.
    pub(crate) near: u32,
    /// Live allocations. Not beside `used`: the compiler would update both as one vector in some
    /// places and not in others, and each time wait for what was stored the other way.
    pub(crate) allocations: u64,
    /// Sections over the first positions, where they exist.
    pub(crate) sections: [Node; SECTIONS],
    /// Parts of rows from this row on are not taken without looking at the whole rows below.
    pub(crate) limit: u32,
    /// About the highest row that requests are served from. What is freed above is not kept, so that
    /// use gathers below. Not moved along when positions are: it finds its way.
    pub(crate) usual: u32,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summit {
    /// Bit `k`, 6 or above: a maximal free block of order `k` exists. Order 64 has no bit here.
    pub(crate) orders: u64,
    /// While the tree is flat, how many small orders each of the head's sections reaches; 0 where
    /// there is none.
    pub(crate) reach: SectionReach,
    /// A row below which no row belongs to a free block of one of the `packed` orders; [`NO_ROW`]
    /// only if there is none.
    pub(crate) low_large: u32,
    pub(crate) root: Node,
    /// Level of the root.
    pub(crate) top: u8,
    /// A part of the space is `2^part` granules; while a free block of that size exists there is
    /// plenty.
    pub(crate) part: u8,
    /// Whether all 2^64 granules are one free block of order 64.
    pub(crate) whole: bool,
    /// Whether there are no sections but those the head knows, right below the root or the root
    /// itself. Then `reach` stands for the small `has` words of a root above sections, which are
    /// zero.
    pub(crate) flat: bool,
}

/// How many small orders each of the head's sections reaches: a byte each, read and written as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SectionReach(u32);

const _: () = assert!(SECTIONS == 4);

impl SectionReach {
    const EACH: u32 = 0x0101_0101;

    #[inline(always)]
    pub(crate) fn get(self, section: usize) -> u32 {
        self.0 >> (8 * section) & 0xff
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, section: usize, orders: u32) {
        self.0 = self.0 & !(0xff << (8 * section)) | orders << (8 * section);
    }

    /// The first section that reaches an order.
    #[inline(always)]
    pub(crate) fn first(self, order: u32) -> Option<usize> {
        // Adding carries into the top bit of the bytes that are above `order`.
        let above = (self.0 + (0x7f - order) * Self::EACH) & (0x80 * Self::EACH);
        (above != 0).then(|| above.trailing_zeros() as usize / 8)
    }

    /// The most that any reaches.
    pub(crate) fn most(self) -> u32 {
        (0..SECTIONS).map(|section| self.get(section)).max().unwrap_or(0)
    }
}

const _: () = assert!(size_of::<Head>() == 64 && size_of::<Summit>() == 64);

impl Head {
    /// Of a tree in which nothing is present.
    pub(crate) fn new() -> Self {
        Head {
            used: 0,
            allocations: 0,
            recent: [NOTHING; RECENT],
            sections: [NONE; SECTIONS],
            limit: NO_ROW,
            near: NO_ROW,
            usual: 0,
        }
    }

    /// Granules in allocations.
    pub(crate) fn used(&self) -> u128 {
        // 2^64 granules are in use only as whole, and then something is.
        if self.used == 0 && self.allocations != 0 { 1 << 64 } else { self.used as u128 }
    }

    /// The row of a position, as it is noted here.
    #[inline(always)]
    pub(crate) fn row(position: u64) -> u32 {
        (position >> ROW_ORDERS).min(ROW_MAX as u64) as u32
    }

    /// The row of `position` has come to have a free part.
    #[inline(always)]
    pub(crate) fn note_near(&mut self, position: u64) {
        self.near = self.near.min(Self::row(position));
    }

    /// A request of a small order was served from the row of `position`.
    #[inline(always)]
    pub(crate) fn note_usual(&mut self, position: u64) {
        let row = Self::row(position).min(RECENT_ROW_MAX);
        self.usual = row.max(self.usual - (self.usual >> USUAL_SHIFT));
    }

    /// The recent blocks: position and order.
    pub(crate) fn recent_blocks(&self) -> impl Iterator<Item = (u64, u32)> {
        let blocks = (0..).zip(self.recent).filter(|&(_, position)| position != NOTHING);
        blocks.map(|(order, position)| (position as u64, order))
    }

    /// Whether a recent block starts at `position`.
    #[inline(always)]
    pub(crate) fn is_recent(&self, position: u64) -> bool {
        self.recent.iter().any(|&recent| recent as u64 == position && recent != NOTHING)
    }
}

impl Summit {
    pub(crate) fn new(top: u32, root: Node) -> Self {
        Summit {
            orders: 0,
            reach: SectionReach(0),
            low_large: NO_ROW,
            root,
            top: top as u8,
            part: ROW_ORDERS as u8,
            whole: false,
            flat: false,
        }
    }

    /// The orders of free blocks that are made of whole rows.
    #[inline(always)]
    pub(crate) fn large_orders(&self) -> u128 {
        self.orders as u128 | (self.whole as u128) << 64
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

    /// Whether a large part of the space is still one free block.
    #[inline(always)]
    pub(crate) fn has_plenty(&self) -> bool {
        self.orders >> self.part != 0 || self.whole
    }

    /// Says how many granules the space has.
    pub(crate) fn set_size(&mut self, granules: u128) {
        let order = granules.checked_ilog2().unwrap_or(0);
        self.part = order.saturating_sub(PART_SHIFT).max(ROW_ORDERS) as u8;
        // A bound for other orders than before: look again.
        self.low_large = 0;
    }

    /// Orders of the blocks of whole rows that are taken by address while there is plenty: not of the
    /// plenty itself.
    pub(crate) fn packed(&self) -> u128 {
        ((1 << self.part) - 1) & (u128::MAX << ROW_ORDERS)
    }

    /// The end of the part with the lowest free whole row while there is plenty; no row otherwise.
    #[inline(always)]
    pub(crate) fn limit(&self) -> u32 {
        let last = self.low_large as u64 | low_bits(self.part as u32 - ROW_ORDERS);
        if self.has_plenty() { u32::try_from(last + 1).unwrap_or(NO_ROW) } else { NO_ROW }
    }
}
