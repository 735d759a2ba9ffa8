//! Blocks: which free block an allocation takes, and what a free makes of its surroundings.
//!
//! # Policy
//!
//! Two things ruin large blocks: breaking one where a smaller would do, and spreading small
//! allocations over all addresses. Which one hurts depends on how much is left unbroken, so one
//! figure decides between two rules for blocks of whole rows.
//!
//! *While there is plenty* (one free block of at least a sixteenth of the space), allocations are
//! packed by address: the lowest free block that is large enough is taken, though not one that is
//! part of the plenty. Use gathers at low addresses, and what lies above drains.
//!
//! *Otherwise* what is left is guarded: no whole row is broken while a part of one would do, and
//! no block of whole rows while one of a smaller order would; of equals the lowest is taken.
//!
//! Parts of rows are taken from the lowest row that can serve, and in it from the smallest block
//! that will do.
//!
//! # Cost
//!
//! An allocation inside a row descends through one word a level to the row, none of which it has
//! to write unless it took the row's largest block. A free reads and writes its row, and one word
//! over it to see that nothing new is to be told. The levels above come in only when a node's
//! last block of an order goes, or its first comes.

use crate::error::Error;
use crate::head::{Head, NO_ROW};
use crate::pool::{NONE, Node};
use crate::probe::Probe;
use crate::tree::{
    ABSENT, DETAIL, HAS, HEAD, OCCUPIED, SECTION_LEVEL, SECTION_SHIFT, State, Tree, child_of,
    level1,
};
use crate::word::{self, ROW_ORDERS, low_bits};

impl<P: Probe> Tree<P> {
    // ---- allocating ------------------------------------------------------------------------

    /// Allocates the block of `2^order` granules that the policy chooses, if there is one.
    #[inline]
    pub(crate) fn alloc_block(&mut self, order: u32) -> Result<Option<u64>, Error> {
        self.touch_head();
        if order < ROW_ORDERS
            && let Some(position) = self.alloc_small(order)
        {
            return Ok(Some(position));
        }
        self.alloc_large(order)
    }

    /// Allocates from a block inside a row, if there is one and the policy would have it taken.
    #[inline(always)]
    fn alloc_small(&mut self, order: u32) -> Option<u64> {
        if self.head.orders >> order & 1 == 0 {
            return None;
        }
        let (section, row_first) = self.lowest_row(order)?;
        if !self.head.takes_small(row_first) {
            return None;
        }
        Some(self.take_in_row(section, row_first, order))
    }

    /// The lowest row with a free block of at least `order`, up to 5: its section and its first
    /// position.
    #[inline(always)]
    pub(crate) fn lowest_row(&mut self, order: u32) -> Option<(Node, u64)> {
        let near = (self.head.low_small as u64) << ROW_ORDERS;
        let section = self.section(near);
        if section != NONE {
            let words = self.pool.line(level1(section, near));
            let has = words[(HAS + order as usize) & 7] & words[DETAIL];
            let above = has & (u64::MAX << child_of(near, 1));
            if above != 0 {
                let child = above.trailing_zeros() as u64;
                return Some((section, near & !0xfff | child << ROW_ORDERS));
            }
        }
        self.find_lowest_row(order)
    }

    /// The same from the top down. Where it is led to a node that does not reach the order any
    /// more, it says so above and starts again.
    #[inline]
    fn find_lowest_row(&mut self, order: u32) -> Option<(Node, u64)> {
        let has = |words: &[u64; 8]| words[(HAS + order as usize) & 7] & words[DETAIL];
        while self.head.orders >> order & 1 != 0 {
            let (section, position) = if self.top() == SECTION_LEVEL {
                (self.head.sections[0], 0)
            } else if let Some(at) = self.head.first_section(order) {
                (self.head.sections[at], (at as u64) << SECTION_SHIFT)
            } else {
                match self.first_far_section(order) {
                    Ok(found) => found,
                    Err((level, position)) => {
                        self.mend(level, position);
                        continue;
                    }
                }
            };
            let over = has(self.pool.line(section as usize));
            if over == 0 {
                self.mend(SECTION_LEVEL, position);
                continue;
            }
            let position = position | (over.trailing_zeros() as u64) << (2 * ROW_ORDERS);
            let rows = has(self.pool.line(level1(section, position)));
            if rows == 0 {
                self.mend(1, position);
                continue;
            }
            let position = position | (rows.trailing_zeros() as u64) << ROW_ORDERS;
            let row = Head::row(position);
            self.head.low_small = if order == 0 { row } else { self.head.low_small };
            return Some((section, position));
        }
        None
    }

    /// The first section that reaches an order and that the head does not know of, and its first
    /// position; or the level and position of a node that does not reach it after all.
    #[inline(never)]
    fn first_far_section(&self, order: u32) -> Result<(Node, u64), (u32, u64)> {
        let mut position = 0;
        let mut node = self.root();
        for level in (SECTION_LEVEL + 1..=self.top()).rev() {
            let words = self.pool.line(node as usize);
            let has = words[HAS + order as usize] & words[DETAIL];
            if has == 0 {
                return Err((level, position));
            }
            let child = has.trailing_zeros();
            position |= (child as u64) << (ROW_ORDERS * level);
            node = self.pool.child(node, child);
        }
        Ok((node, position))
    }

    /// Tells the levels above what the node of `level` over `position` reaches now.
    #[inline(never)]
    fn mend(&mut self, level: u32, position: u64) {
        let reach = self.reach(self.node(position, level));
        if level == SECTION_LEVEL {
            self.note_reach(position, reach);
        }
        self.set_reach_from(position, level + 1, reach);
    }

    /// Allocates in a row that has a free block of at least `order`, from the smallest such block.
    #[inline(always)]
    fn take_in_row(&mut self, section: Node, row_first: u64, order: u32) -> u64 {
        let (used, head) = self.row(section, row_first);
        let blocks = word::maximal(!(used | head));
        let orders = word::orders_of(&blocks);
        let from = order + (orders >> order).trailing_zeros();
        let candidates = blocks[from as usize];
        let at = candidates.trailing_zeros();
        let position = row_first | at as u64;
        self.set_row(section, position, used | low_bits(1 << order) << at, head | 1 << at);
        self.head.used = self.head.used.wrapping_add(1 << order);
        self.head.allocations += 1;

        if orders >> from == 1 && candidates & (candidates - 1) == 0 {
            // The row's largest block is gone. What is left: the others, and the halves that
            // splitting it left.
            let left = orders & !(1 << from) | ((1 << from) - (1 << order));
            self.set_reach(section, position, word::reach_of(left));
        }
        position
    }

    /// Allocates from a block that is made of whole rows, or says that there is none.
    #[inline(never)]
    fn alloc_large(&mut self, order: u32) -> Result<Option<u64>, Error> {
        let least = order.max(ROW_ORDERS);
        if self.head.orders() >> least == 0 {
            return Ok(None);
        }
        self.ensure_detail(1)?;
        if self.head.has_plenty() {
            let packed = self.head.packed();
            let lowest = self.next_block(packed, (self.head.low_large as u64) << ROW_ORDERS);
            self.head.low_large = lowest.map_or(NO_ROW, |(position, _)| Head::row(position));
            if order < ROW_ORDERS
                && let Some(position) = self.alloc_small(order)
            {
                return Ok(Some(position));
            }
            let found = match lowest {
                Some((from, found)) if found < order => {
                    self.next_block(packed & (u128::MAX << order), from)
                }
                lowest => lowest,
            };
            if let Some((position, from)) = found {
                self.take_large(position, order, from);
                return Ok(Some(position));
            }
        }
        let from = least + (self.head.orders() >> least).trailing_zeros();
        let position = self.lowest(from);
        self.take_large(position, order, from);
        Ok(Some(position))
    }

    /// Takes `2^order` granules from the start of the maximal free block of order `from`, 6 or
    /// above, at `position`. Room was ensured.
    fn take_large(&mut self, position: u64, order: u32, from: u32) {
        self.head.used = self.head.used.wrapping_add(low_bits(order).wrapping_add(1));
        self.head.allocations += 1;
        let mut level = from / ROW_ORDERS;
        let mut node = self.node(position, level);
        let line = node as usize;
        let at = child_of(position, level);
        let shift = ROW_ORDERS * level;
        let occupied = self.pool.get(line, OCCUPIED);
        let others = word::maximal(!occupied)[(from - shift) as usize] & !(1 << at);
        if others == 0 {
            self.lose(position, level + 1, from);
        }
        // What splitting leaves at this level.
        for left in order.max(shift)..from {
            self.head.note_large(position);
            self.gain(position, level + 1, left);
        }
        if order >= shift {
            let children = low_bits(1 << (order - shift)) << at;
            self.pool.set(line, OCCUPIED, occupied | children);
            let heads = self.pool.get(line, HEAD);
            self.pool.set(line, HEAD, heads & !children | 1 << at);
            return;
        }
        // The first child gets detail, and so does the first of it, down to the order's level: each
        // had nothing below it, and all but its own first child stays free.
        self.pool.set(line, OCCUPIED, occupied | 1 << at);
        let detail = self.pool.get(line, DETAIL);
        self.pool.set(line, DETAIL, detail | 1 << at);
        self.head.note_large(position);
        if order < ROW_ORDERS {
            // The row that it comes to lie in has blocks left of all orders up to the largest.
            self.set_reach_from(position, level, ROW_ORDERS);
        }
        for left in order.max(ROW_ORDERS)..shift {
            if self.gain_at(line, at, left) {
                self.gain(position, level + 1, left);
            }
        }
        let bottom = order / ROW_ORDERS;
        loop {
            if level > SECTION_LEVEL {
                node = self.attach(node, level, position);
            }
            level -= 1;
            if level == SECTION_LEVEL && order < ROW_ORDERS {
                self.note_reach(position, ROW_ORDERS);
            }
            if level == 0 {
                let section = self.section(position);
                self.set_row(section, position, low_bits(1 << order), 1);
                self.head.note_small(position, ROW_ORDERS);
                return;
            }
            let line = self.line(node, level, position);
            if level == bottom {
                let children = low_bits(1 << (order - ROW_ORDERS * level));
                self.pool.set(line, OCCUPIED, children);
                self.pool.set(line, HEAD, 1);
                return;
            }
            self.pool.set(line, OCCUPIED, 1);
            self.pool.set(line, DETAIL, 1);
            let first_left = if order < ROW_ORDERS { 0 } else { order };
            for left in first_left..ROW_ORDERS * level {
                self.pool.set(line, HAS + left as usize, 1);
            }
        }
    }

    /// Takes the block of `2^order` granules at `position` out of a free block; room was ensured.
    pub(crate) fn take_block(&mut self, position: u64, order: u32) {
        self.occupy(position, position + low_bits(order));
    }

    // ---- freeing ---------------------------------------------------------------------------

    /// Frees the allocation that starts at `position`; its last granule, or `None` if none starts
    /// there.
    #[inline]
    pub(crate) fn free(&mut self, position: u64) -> Option<u64> {
        let section = self.section(position);
        if section == NONE {
            return self.free_slowly(position);
        }
        let at = (position & 63) as u32;
        let (used, head) = self.row(section, position);
        if used & head & 1 << at == 0 {
            return self.free_rows(section, position);
        }
        // The allocation ends before the next granule that is free, absent or a head.
        let ends = (head | !used) & (u64::MAX << at << 1);
        if ends == 0 {
            return self.free_to_row_end(section, position, used, head);
        }
        let length = ends.trailing_zeros() - at;
        self.free_in_row(section, position, length, used, head);
        Some(position + (length - 1) as u64)
    }

    /// Frees the allocation at `position` that reaches the end of its row, and perhaps goes on.
    #[inline]
    fn free_to_row_end(
        &mut self,
        section: Node,
        position: u64,
        used: u64,
        head: u64,
    ) -> Option<u64> {
        let length = 64 - (position & 63) as u32;
        if !self.goes_on_after_row(section, position | 63) {
            self.free_in_row(section, position, length, used, head);
            return Some(position | 63);
        }
        self.free_slowly(position)
    }

    /// Whether the allocation that the last granule of a row lies in goes on in the next row.
    #[inline(always)]
    pub(crate) fn goes_on_after_row(&self, section: Node, last: u64) -> bool {
        let Some(next) = last.checked_add(1).filter(|&next| next <= self.end()) else {
            return false;
        };
        if next & low_bits(2 * ROW_ORDERS) == 0 {
            return self.state(next) == (State::Used { head: false });
        }
        // Under the same node, which has detail, the next row or its state there says so at once.
        let over = level1(section, next);
        let bit = 1u64 << child_of(next, 1);
        if self.pool.get(over, DETAIL) & bit != 0 {
            let (used, head) = self.row(section, next);
            return used & !head & 1 != 0;
        }
        let states = self.pool.get(over, HEAD) | self.pool.get(over, ABSENT);
        self.pool.get(over, OCCUPIED) & !states & bit != 0
    }

    /// Frees an allocation that starts with a whole row; most often a block of one or a few.
    #[inline]
    fn free_rows(&mut self, section: Node, position: u64) -> Option<u64> {
        let over = level1(section, position);
        let at = child_of(position, 1);
        let occupied = self.pool.get(over, OCCUPIED);
        let detail = self.pool.get(over, DETAIL);
        let heads = self.pool.get(over, HEAD);
        if position & 63 == 0 && occupied & !detail & heads & 1 << at != 0 {
            let goes_on = occupied & !detail & !heads & !self.pool.get(over, ABSENT);
            let ends = !goes_on & (u64::MAX << at << 1);
            let rows = ends.trailing_zeros().wrapping_sub(at);
            if ends != 0 && rows.is_power_of_two() && at & (rows - 1) == 0 {
                let granules = (rows as u64) << ROW_ORDERS;
                // What follows a block may go on from it inside a row.
                let next = position + granules;
                let next_row = 1 << child_of(next, 1);
                if detail & next_row == 0 || {
                    let (used, head) = self.row(section, next);
                    used & !head & 1 == 0
                } {
                    let rows = low_bits(rows) << at;
                    self.head.used = self.head.used.wrapping_sub(granules);
                    self.head.allocations -= 1;
                    self.pool.set(over, OCCUPIED, occupied & !rows);
                    self.pool.set(over, HEAD, heads & !(1 << at));
                    self.merge(position, 1, rows.count_ones().trailing_zeros(), occupied & !rows);
                    return Some(next - 1);
                }
            }
        }
        self.free_slowly(position)
    }

    /// Frees an allocation wherever it starts and ends.
    #[inline(never)]
    fn free_slowly(&mut self, position: u64) -> Option<u64> {
        if !self.is_start(position) {
            return None;
        }
        let last = self.last(position);
        self.vacate(position, last);
        Some(last)
    }

    /// Frees `length` granules from `position` on: an allocation that lies in one row.
    #[inline(always)]
    fn free_in_row(&mut self, section: Node, position: u64, length: u32, used: u64, head: u64) {
        let at = (position & 63) as u32;
        if !length.is_power_of_two() || at & (length - 1) != 0 {
            return self.vacate(position, position + (length - 1) as u64);
        }
        self.touch_head();
        self.head.used = self.head.used.wrapping_sub(length as u64);
        self.head.allocations -= 1;
        let order = length.trailing_zeros();
        let (used, head) = (used & !(low_bits(length) << at), head & !(1 << at));
        self.set_row(section, position, used, head);
        let merged = word::merged_order(used | head, at);
        if merged == ROW_ORDERS {
            return self.merge(position, 0, order, 0);
        }
        // Most often the row had a block that large. If not, this one is its largest.
        let over = level1(section, position);
        if self.pool.get(over, HAS + merged as usize) >> child_of(position, 1) & 1 == 0 {
            self.set_reach(section, position, merged + 1);
        }
    }

    /// Children of the node or row of `level` over `position`, a block of `2^order` of them, have
    /// become free, and its `occupied` word says so: merges upwards as far as it goes.
    #[inline(never)]
    pub(crate) fn merge(&mut self, position: u64, level: u32, order: u32, occupied: u64) {
        let (mut level, mut buddy, mut occupied) = (level, order, occupied);
        loop {
            let shift = ROW_ORDERS * level;
            let at = child_of(position, level);
            let merged = word::merged_order(occupied, at);
            let above = level + 1;
            if merged < ROW_ORDERS {
                // The buddies it merged with are maximal no more; others may be of their order.
                let mut lost = ((1 << merged) - (1 << buddy)) & !word::orders(!occupied);
                while lost != 0 {
                    self.lose(position, above, shift + lost.trailing_zeros());
                    lost &= lost - 1;
                }
                let merged = shift + merged;
                self.head.note_large(position & !low_bits(merged));
                return self.gain(position, above, merged);
            }
            // Free as a whole: all that was free in the parent's child were the buddies, one of each
            // order up to the highest here, and these it has lost.
            let node = self.node(position, above);
            let line = node as usize;
            let child = child_of(position, above);
            self.set_reach_from(position, above, 0);
            if level > 0 {
                for order in shift + buddy..shift + ROW_ORDERS {
                    if self.lose_at(line, child, order) {
                        self.lose(position, above + 1, order);
                    }
                }
            }
            let detail = self.pool.get(line, DETAIL) & !(1 << child);
            self.pool.set(line, DETAIL, detail);
            if above > SECTION_LEVEL {
                self.detach(node, above, position);
            }
            occupied = self.pool.get(line, OCCUPIED) & !(1 << child);
            self.pool.set(line, OCCUPIED, occupied);
            level = above;
            buddy = 0;
        }
    }

    // ---- searching -------------------------------------------------------------------------

    /// Start of the lowest maximal free block of exactly `order`, 6 or above: one must exist.
    pub(crate) fn lowest(&self, order: u32) -> u64 {
        let mut position = 0;
        let mut node = self.root();
        let mut level = self.top();
        while ROW_ORDERS * level > order {
            let line = self.line(node, level, position);
            let has = self.pool.get(line, HAS + order as usize) & self.pool.get(line, DETAIL);
            position |= (has.trailing_zeros() as u64) << (ROW_ORDERS * level);
            node = self.child_node(node, level, position);
            level -= 1;
        }
        let free = !self.occupied(node, level, position);
        let blocks = word::maximal(free)[(order - ROW_ORDERS * level) as usize];
        position | (blocks.trailing_zeros() as u64) << (ROW_ORDERS * level)
    }

    /// Children of a node or row that are not free as a whole.
    #[inline(always)]
    pub(crate) fn occupied(&self, node: Node, level: u32, position: u64) -> u64 {
        if level == 0 {
            let (used, head) = self.row(node, position);
            used | head
        } else {
            self.pool.get(self.line(node, level, position), OCCUPIED)
        }
    }
}
