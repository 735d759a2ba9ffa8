//! Blocks: which free block an allocation takes, and what a free makes of its surroundings.
//!
//! # Policy
//!
//! Two things ruin large blocks: breaking one where a smaller would do, and spreading small
//! allocations over all addresses.
//!
//! *While there is plenty*, that is one free block of at least a sixteenth of the space, use is
//! gathered at low addresses, so that what lies above drains, and the plenty itself is spared: a
//! request of whole rows takes the lowest other block that is large enough; for a smaller one the
//! space is seen as sixteenths, and a part of a row is not taken from a higher one while a lower one
//! has whole rows.
//!
//! *Otherwise* what is left is guarded: no whole row is broken while a part of one will do, and no
//! block of whole rows while one of a smaller order will; of equals the lowest is taken.
//!
//! *Less than a row* comes, before all that, from a block of the very order that was freed a moment
//! ago (see `head`). Parts of rows are taken from the lowest row that can serve, and in it from the
//! smallest block that will do.
//!
//! Holes are filled at the lowest address at once; putting that off, to take several from one place,
//! was tried and leaves a quarter fewer large blocks. What can be put off is telling the tree.
//!
//! # Cost
//!
//! A block freed and taken again while it is recent costs the tree nothing. Any other allocation
//! inside a row goes down one word a level to the row, or starts at the head's `near`, and tells the
//! levels above what the row still reaches; a free tells them what it has come to reach. Both do that
//! in straight-line code as far as the section, since whether a word changes is as good as random.

use crate::error::Error;
use crate::head::{Head, NO_ROW, NOTHING, RECENT, SECTIONS};
use crate::pool::{NONE, Node};
use crate::probe::Probe;
use crate::reach::Reach;
use crate::tree::{
    ABSENT, DETAIL, HAS, HEAD, OCCUPIED, SECTION_LEVEL, SECTION_SHIFT, State, Tree, child_of,
    has_small, level1,
};
use crate::word::{self, ROW_ORDERS, low_bits};

impl<P: Probe> Tree<P> {
    // ---- allocating ------------------------------------------------------------------------

    /// Allocates the block of `2^order` granules that the policy chooses, if there is one.
    #[inline(always)]
    pub(crate) fn alloc_block(&mut self, order: u32) -> Result<Option<u64>, Error> {
        match self.alloc_recent(order) {
            None => self.alloc_from_tree(order),
            recent => Ok(recent),
        }
    }

    /// The same where there is no recent block.
    #[inline(never)]
    fn alloc_from_tree(&mut self, order: u32) -> Result<Option<u64>, Error> {
        if order < ROW_ORDERS
            && let Some(position) = self.alloc_small(order)
        {
            return Ok(Some(position));
        }
        self.alloc_large(order)
    }

    /// Allocates the recent block of the order, if there is one.
    #[inline(always)]
    fn alloc_recent(&mut self, order: u32) -> Option<u64> {
        self.touch_head();
        let recent = self.head.recent.get_mut(order as usize)?;
        if *recent == NOTHING {
            return None;
        }
        let position = std::mem::replace(recent, NOTHING) as u64;
        self.head.used = self.head.used.wrapping_add(1 << order);
        self.head.allocations += 1;
        Some(position)
    }

    /// Gives the recent blocks back to the tree. Whether there were any.
    #[inline]
    pub(crate) fn settle(&mut self) -> bool {
        self.touch_head();
        let any = self.head.recent != [NOTHING; RECENT];
        if any {
            self.settle_recent();
        }
        any
    }

    #[inline(never)]
    fn settle_recent(&mut self) {
        for order in 0..RECENT as u32 {
            if let Some(position) = self.alloc_recent(order) {
                self.free(position, false).expect("the tree takes it for allocated");
            }
        }
    }

    /// Allocates from a block inside a row, if there is one and the policy would have it taken.
    #[inline(always)]
    fn alloc_small(&mut self, order: u32) -> Option<u64> {
        let (section, row_first) = self.lowest_row(order)?;
        if Head::row(row_first) >= self.head.limit {
            return None;
        }
        self.head.note_usual(row_first);
        Some(self.take_in_row(section, row_first, order))
    }

    /// The lowest row with a part of at least `order`, up to 5, that is not all of it: its
    /// section and its first position.
    #[inline(always)]
    pub(crate) fn lowest_row(&mut self, order: u32) -> Option<(Node, u64)> {
        if self.head.near == NO_ROW {
            return None;
        }
        let near = (self.head.near as u64) << ROW_ORDERS;
        let section = self.section(near);
        if section != NONE {
            let words = self.pool.line(level1(section, near));
            let has = words[has_small(order)] & words[DETAIL];
            let above = has & (u64::MAX << child_of(near, 1));
            if above != 0 {
                let child = above.trailing_zeros() as u64;
                let position = near & !low_bits(2 * ROW_ORDERS) | child << ROW_ORDERS;
                if order == 0 {
                    self.head.near = Head::row(position);
                }
                return Some((section, position));
            }
        }
        self.find_lowest_row(order)
    }

    /// The same from the top down.
    #[inline(never)]
    fn find_lowest_row(&mut self, order: u32) -> Option<(Node, u64)> {
        let has = |line| {
            let words = self.pool.line(line);
            (words[has_small(order)] & words[DETAIL]).trailing_zeros() as u64
        };
        self.touch_summit();
        let (section, position) = if self.summit.flat {
            let at = self.summit.reach.first(order)?;
            (self.head.sections[at], (at as u64) << SECTION_SHIFT)
        } else {
            let (mut node, mut position) = (self.summit.root, 0);
            for level in (SECTION_LEVEL + 1..=self.top()).rev() {
                let child = has(node as usize);
                if child == 64 {
                    return None;
                }
                position |= child << (ROW_ORDERS * level);
                node = self.pool.child(node, child as u32);
            }
            (node, position)
        };
        let position = position | has(section as usize) << (2 * ROW_ORDERS);
        let position = position | has(level1(section, position)) << ROW_ORDERS;
        if order == 0 {
            self.head.near = Head::row(position);
        }
        Some((section, position))
    }

    /// Allocates in a row that has a free block of at least `order`, from the smallest such block.
    #[inline(always)]
    fn take_in_row(&mut self, section: Node, row_first: u64, order: u32) -> u64 {
        let (used, head) = self.row(section, row_first);
        let (from, candidates, orders) = word::smallest(!(used | head), order);
        let at = candidates.trailing_zeros();
        let position = row_first | at as u64;
        self.set_row(section, position, used | word::block(order) << at, head | 1 << at);
        self.head.used = self.head.used.wrapping_add(1 << order);
        self.head.allocations += 1;
        // What is left: the others, and the halves that splitting this one left.
        let last = (candidates & (candidates - 1) == 0) as u32;
        let left = orders & !(last << from) | ((1 << from) - (1 << order));
        self.set_reach(section, position, word::reach_of(left));
        position
    }

    /// Allocates from a block that is made of whole rows, or says that there is none.
    #[inline(never)]
    fn alloc_large(&mut self, order: u32) -> Result<Option<u64>, Error> {
        self.touch_summit();
        if order < ROW_ORDERS {
            if let Some(position) = self.alloc_below_limit(order) {
                return Ok(Some(position));
            }
            // Rather a part of a recent block than of a whole row.
            if self.settle()
                && let Some(position) =
                    self.alloc_small(order).or_else(|| self.alloc_below_limit(order))
            {
                return Ok(Some(position));
            }
        } else {
            self.settle();
        }
        let least = order.max(ROW_ORDERS);
        let orders = self.summit.large_orders() >> least;
        if orders == 0 {
            return Ok(None);
        }
        self.ensure_detail(1)?;
        if let Some((position, from)) = self.lowest_packed(least) {
            self.take_large(position, order, from);
            if order < ROW_ORDERS {
                // It was the lowest of all, not only of those that are large enough.
                self.set_low_large(position.checked_add(64).map_or(NO_ROW, Head::row));
            }
            return Ok(Some(position));
        }
        let from = least + orders.trailing_zeros();
        let position = self.lowest(from);
        self.take_large(position, order, from);
        Ok(Some(position))
    }

    /// The lowest block of at least `order`, 6 or above, of those taken by address: none unless
    /// there is plenty.
    fn lowest_packed(&self, order: u32) -> Option<(u64, u32)> {
        let from = (self.summit.low_large as u64) << ROW_ORDERS;
        let orders = if self.summit.has_plenty() { self.summit.packed() } else { 0 };
        self.next_block(orders & u128::MAX << order, from)
    }

    /// Finds out where the lowest whole row is, which may not have been known when the limit was
    /// set, and allocates as [`Tree::alloc_small`] does.
    fn alloc_below_limit(&mut self, order: u32) -> Option<u64> {
        if self.head.limit == NO_ROW {
            return None;
        }
        let lowest = self.lowest_packed(ROW_ORDERS);
        self.set_low_large(lowest.map_or(NO_ROW, |(position, _)| Head::row(position)));
        self.alloc_small(order)
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
            self.note_large(position);
            self.gain(position, level + 1, left);
        }
        if order >= shift {
            let children = low_bits(1 << (order - shift)) << at;
            self.pool.set(line, OCCUPIED, occupied | children);
            let heads = self.pool.get(line, HEAD);
            self.pool.set(line, HEAD, heads & !children | 1 << at);
            return;
        }
        if level > SECTION_LEVEL && position >> SECTION_SHIFT >= SECTIONS as u64 {
            self.unflatten();
        }
        // The first child gets detail, and so does the first of it, down to the order's level: each
        // had nothing below it, and all but its own first child stays free.
        self.pool.set(line, OCCUPIED, occupied | 1 << at);
        let detail = self.pool.get(line, DETAIL);
        self.pool.set(line, DETAIL, detail | 1 << at);
        self.note_large(position);
        if order < ROW_ORDERS {
            // The row that it comes to lie in has blocks left of all orders up to the largest.
            self.set_reach_from(position, level, Reach::new(ROW_ORDERS));
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
            if level == 0 {
                let section = self.section(position);
                self.set_row(section, position, low_bits(1 << order), 1);
                self.head.note_near(position);
                self.head.note_usual(position);
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
    /// there. With `keep` it may be kept as a recent block.
    #[inline]
    pub(crate) fn free(&mut self, position: u64, keep: bool) -> Option<u64> {
        let section = self.section(position);
        if section == NONE {
            return self.free_slowly(position);
        }
        let at = (position & 63) as u32;
        let (used, head) = self.row(section, position);
        // The allocation ends before the next granule that is free, absent or a head.
        let ends = (head | !used) & (u64::MAX << at << 1);
        let length = ends.trailing_zeros() - at;
        // A block that starts in this row and ends before the row does.
        if (used & head) >> at & 1 == 0
            || ends == 0
            || !length.is_power_of_two()
            || at & (length - 1) != 0
        {
            return self.free_otherwise(section, position);
        }
        self.touch_head();
        let order = length.trailing_zeros();
        let last = position + (length - 1) as u64;
        if let Some(recent) = self.head.recent.get_mut(order as usize) {
            if *recent != NOTHING {
                if *recent as u64 == position {
                    return None;
                }
            } else if keep && Head::row(position) <= self.head.usual {
                *recent = position as u32;
                self.head.used = self.head.used.wrapping_sub(length as u64);
                self.head.allocations -= 1;
                return Some(last);
            }
        }
        let block = (ends & ends.wrapping_neg()) - (1 << at);
        self.free_in_row(section, position, order, block, used, head);
        Some(last)
    }

    /// Frees what is not a block inside a row, or ends where its row does.
    #[inline(never)]
    fn free_otherwise(&mut self, section: Node, position: u64) -> Option<u64> {
        let at = (position & 63) as u32;
        let (used, head) = self.row(section, position);
        if used & head & 1 << at == 0 {
            return self.free_rows(section, position);
        }
        let ends = (head | !used) & (u64::MAX << at << 1);
        if ends != 0 || self.goes_on_after_row(section, position | 63) {
            return self.free_slowly(position);
        }
        debug_assert!(!self.head.is_recent(position), "what ends with its row is not kept");
        let last = position | 63;
        let length = 64 - at;
        if length.is_power_of_two() {
            let block = u64::MAX << at;
            self.free_in_row(section, position, length.trailing_zeros(), block, used, head);
        } else {
            self.vacate(position, last);
        }
        Some(last)
    }

    /// Whether the allocation that the last granule of a row lies in goes on in the next row.
    #[inline(never)]
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
    #[inline(never)]
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

    /// Frees the block of `order`, up to 5, at `position`, whose bits and row are given.
    #[inline(always)]
    fn free_in_row(
        &mut self,
        section: Node,
        position: u64,
        order: u32,
        block: u64,
        used: u64,
        head: u64,
    ) {
        let at = (position & 63) as u32;
        self.head.used = self.head.used.wrapping_sub(1 << order);
        self.head.allocations -= 1;
        let (used, head) = (used & !block, head & !block);
        self.set_row(section, position, used, head);
        let merged = word::merged_order(used | head, at);
        if merged == ROW_ORDERS {
            return self.merge(position, 0, order, 0);
        }
        self.add_reach(section, position, merged + 1);
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
                self.note_large(position & !low_bits(merged));
                return self.gain(position, above, merged);
            }
            // Free as a whole: all that was free in the parent's child were the buddies, one of each
            // order up to the highest here, and these it has lost.
            let node = self.node(position, above);
            let line = node as usize;
            let child = child_of(position, above);
            self.set_reach_from(position, above, Reach::new(0));
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
