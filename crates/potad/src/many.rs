//! Many blocks at once: what single calls would do, a row at a time.
//!
//! Blocks that are allocated together mostly come from the same rows, and blocks that were
//! allocated together are often freed together. A row takes or gives back all its part of a batch
//! in one step, and the levels above hear of it once.

use crate::error::Error;
use crate::pool::{NONE, Node};
use crate::probe::Probe;
use crate::tree::{DETAIL, Mark, OCCUPIED, Tree, child_of, level1};
use crate::word::{self, ROW_ORDERS, low_bits};

impl<P: Probe> Tree<P> {
    /// Allocates `count` blocks of `2^order` granules, appending their positions: parts of rows
    /// first, from the lowest row, then the smallest blocks of whole rows. True if there was room
    /// for all.
    pub(crate) fn alloc_blocks(
        &mut self,
        order: u32,
        count: usize,
        positions: &mut Vec<u64>,
    ) -> Result<bool, Error> {
        self.settle();
        let level = order / ROW_ORDERS;
        let (order_in_row, shift) = (order % ROW_ORDERS, ROW_ORDERS * level);
        let mut left = count;
        while left > 0 {
            self.ensure_detail(1)?;
            let Some((position, from)) = self.best_fit(order) else { return Ok(false) };
            if level == 0 && from >= ROW_ORDERS {
                left -= self.fill_rows(position, 1 << (from - ROW_ORDERS), order, left, positions);
                continue;
            }
            self.open(position, level);
            // Starts of blocks to take here: all that are exactly of the order, else those that one
            // larger block splits into.
            let starts = if from == order {
                let node = self.node_or_section(position, level);
                word::maximal(!self.occupied(node, level, position))[order_in_row as usize]
            } else {
                let whole = if from - shift >= ROW_ORDERS { 64 } else { 1 << (from - shift) };
                (word::starts(order_in_row) & low_bits(whole)) << child_of(position, level)
            };
            let starts = lowest_of(starts, left);
            let children = starts.wrapping_mul(low_bits(1 << order_in_row));
            self.set_children(position, level, children, starts, Mark::Start);
            let row_first = position & !low_bits(shift + ROW_ORDERS);
            left -= self.hand_out(row_first, starts, order, positions);
        }
        Ok(true)
    }

    /// Fills so many free whole rows from `position` on with blocks of a small order, as far as
    /// they lie in one node and blocks are wanted; how many that were.
    fn fill_rows(
        &mut self,
        position: u64,
        rows: u64,
        order: u32,
        wanted: usize,
        positions: &mut Vec<u64>,
    ) -> usize {
        let of_row = 64usize >> order;
        let first = child_of(position, 1);
        let rows = rows.min(wanted.div_ceil(of_row) as u64).min(64 - first as u64) as u32;
        self.open(position, 1);
        let section = self.section(position);
        let over = self.pool.line_mut(level1(section, position));
        let before = over[OCCUPIED];
        let after = before | low_bits(rows) << first;
        over[OCCUPIED] = after;
        over[DETAIL] |= low_bits(rows) << first;
        let mut left = wanted;
        for row in 0..rows as u64 {
            let row_first = position + (row << ROW_ORDERS);
            let starts = lowest_of(word::starts(order), left);
            let used = starts.wrapping_mul(low_bits(1 << order));
            self.set_row(section, row_first, used, starts);
            if used != u64::MAX {
                self.set_reach(section, row_first, word::reach(!used));
            }
            left -= self.hand_out(row_first, starts, order, positions);
        }
        self.tell(position, 1, before, after);
        wanted - left
    }

    /// Counts blocks that were just marked in a row or node and appends their positions.
    fn hand_out(
        &mut self,
        row_first: u64,
        starts: u64,
        order: u32,
        positions: &mut Vec<u64>,
    ) -> usize {
        let shift = order / ROW_ORDERS * ROW_ORDERS;
        let count = starts.count_ones();
        self.head.used = self.head.used.wrapping_add((count as u64) << order);
        self.head.allocations += count as u64;
        let mut starts = starts;
        while starts != 0 {
            positions.push(row_first | (starts.trailing_zeros() as u64) << shift);
            starts &= starts - 1;
        }
        count as usize
    }

    /// A free block of at least `order`: the smallest of the lowest row that can serve, or else the
    /// smallest block of whole rows. Its start and order.
    fn best_fit(&mut self, order: u32) -> Option<(u64, u32)> {
        if order < ROW_ORDERS
            && let Some((section, row_first)) = self.lowest_row(order)
        {
            let (used, head) = self.row(section, row_first);
            let (from, candidates, _) = word::smallest(!(used | head), order);
            return Some((row_first | candidates.trailing_zeros() as u64, from));
        }
        let least = order.max(ROW_ORDERS);
        let fits = self.orders() >> least;
        let from = least + fits.trailing_zeros();
        (fits != 0).then(|| (self.lowest(from), from))
    }

    /// What [`Tree::line`] and [`Tree::row`] take for the node or row of `level` over `position`.
    fn node_or_section(&self, position: u64, level: u32) -> Node {
        match level {
            0 | 1 => self.section(position),
            _ => self.node(position, level),
        }
    }

    /// Frees the allocations that start at `heads` in the row from `row_first` on. `None`, and nothing
    /// is done, if one does not start there or goes on beyond the row.
    pub(crate) fn free_together(&mut self, row_first: u64, heads: u64) -> Option<Freed> {
        let section = self.section(row_first);
        if section == NONE {
            return None;
        }
        let (used, head) = self.row(section, row_first);
        if heads & !(used & head) != 0 {
            return None;
        }
        // Each head, and the granules its allocation goes on through: adding one behind a head
        // carries through just these.
        let goes_on = used & !head;
        let granules = heads | goes_on & !goes_on.wrapping_add(heads << 1 & goes_on);
        if granules >> 63 != 0 && self.goes_on_after_row(section, row_first | 63) {
            return None;
        }
        self.touch_head();
        self.head.used = self.head.used.wrapping_sub(granules.count_ones() as u64);
        self.head.allocations -= heads.count_ones() as u64;
        let (used, head) = (used & !granules, head & !heads);
        self.set_row(section, row_first, used, head);
        if used | head == 0 {
            self.merge(row_first, 0, 0, 0);
        } else {
            self.set_reach(section, row_first, word::reach(!(used | head)));
        }
        Some(Freed { first: row_first, heads, granules })
    }
}

/// What a batch has freed at one place: one allocation, or several of one row.
pub(crate) struct Freed {
    /// The first granule of the allocation or the row.
    first: u64,
    /// Where in the row the allocations started; none for one allocation of any length.
    heads: u64,
    /// All granules in the row that they had; or the last granule of the one.
    granules: u64,
}

impl Freed {
    pub(crate) fn one(first: u64, last: u64) -> Self {
        Freed { first, heads: 0, granules: last }
    }

    /// First and last granule of each.
    pub(crate) fn allocations(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let Freed { first, heads, granules } = *self;
        let one = (heads == 0).then_some((first, granules));
        let mut starts = heads;
        let of_row = std::iter::from_fn(move || {
            let at = (starts != 0).then(|| starts.trailing_zeros())?;
            starts &= starts - 1;
            let ends = (heads | !granules) & (u64::MAX << at << 1);
            Some((first | at as u64, first | (ends.trailing_zeros() - 1) as u64))
        });
        one.into_iter().chain(of_row)
    }
}

/// The lowest `count` bits that are set in a word, or all if there are not so many.
fn lowest_of(bits: u64, count: usize) -> u64 {
    let mut bits = bits;
    while bits.count_ones() as usize > count {
        bits ^= 1 << bits.ilog2();
    }
    bits
}
