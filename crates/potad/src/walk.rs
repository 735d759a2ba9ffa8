//! Walks over a tree that change nothing: what a position is, where its allocation starts and
//! ends, and what comes next.
//!
//! All of them descend from the root along one position and, where a node has nothing in the
//! wanted direction, start again at the first position beyond that node. A descent is at most
//! eleven short steps, so nothing is gained by remembering the way.

use crate::pool::{NONE, Node};
use crate::probe::Probe;
use crate::tree::{ABSENT, DETAIL, HEAD, LEVEL_MAX, OCCUPIED, State, Tree};
use crate::word::{self, ROW_ORDERS, low_bits};

/// The node or row over a position in which its state stands.
struct Place {
    node: Node,
    level: u32,
    child: u32,
}

/// First position of the child of level `level` over `position`.
#[inline(always)]
fn child_first(position: u64, level: u32) -> u64 {
    position & !low_bits(ROW_ORDERS * level)
}

/// First position of the node of level `level` over `position`.
#[inline(always)]
fn node_first(position: u64, level: u32) -> u64 {
    position & !low_bits(ROW_ORDERS * (level + 1))
}

/// Children of a node of level `level` that lie below 2^64.
#[inline(always)]
fn below_2_to_64(level: u32) -> u64 {
    if level == LEVEL_MAX { low_bits(1 << (64 - ROW_ORDERS * LEVEL_MAX)) } else { u64::MAX }
}

impl<P: Probe> Tree<P> {
    fn place(&self, position: u64) -> Place {
        let mut node = self.root();
        let mut level = self.top();
        loop {
            let child = (position >> (ROW_ORDERS * level) & 63) as u32;
            if level == 0
                || self.pool.get(self.line(node, level, position), DETAIL) >> child & 1 == 0
            {
                return Place { node, level, child };
            }
            node = self.child_node(node, level, position);
            level -= 1;
        }
    }

    fn state_at(&self, place: &Place, position: u64) -> State {
        let bit = |word: u64| word >> place.child & 1 == 1;
        if place.level == 0 {
            let (used, head) = self.row(place.node, position);
            return match (bit(used), bit(head)) {
                (false, false) => State::Free,
                (false, true) => State::Absent,
                (true, head) => State::Used { head },
            };
        }
        let line = self.line(place.node, place.level, position);
        if !bit(self.pool.get(line, OCCUPIED)) {
            State::Free
        } else if bit(self.pool.get(line, ABSENT)) {
            State::Absent
        } else {
            let first = position == child_first(position, place.level);
            State::Used { head: bit(self.pool.get(line, HEAD)) && first }
        }
    }

    /// What a granule is: free, absent, or used, and then whether its allocation starts there.
    pub(crate) fn state(&self, position: u64) -> State {
        self.state_at(&self.place(position), position)
    }

    /// The same, and the level of the node in which it stands.
    pub(crate) fn state_with_level(&self, position: u64) -> (u32, State) {
        let place = self.place(position);
        (place.level, self.state_at(&place, position))
    }

    /// Whether an allocation starts at `position`.
    pub(crate) fn is_start(&self, position: u64) -> bool {
        self.state(position) == State::Used { head: true }
    }

    /// Children of a node or row that an allocation goes on through, covering them as a whole.
    fn continuations(&self, place: &Place, position: u64) -> u64 {
        if place.level == 0 {
            let (used, head) = self.row(place.node, position);
            return used & !head;
        }
        let line = self.line(place.node, place.level, position);
        self.pool.get(line, OCCUPIED)
            & !self.pool.get(line, DETAIL)
            & !self.pool.get(line, HEAD)
            & !self.pool.get(line, ABSENT)
    }

    /// Start of the allocation that `position` lies in.
    pub(crate) fn first(&self, position: u64) -> u64 {
        let mut at = position;
        loop {
            let place = self.place(at);
            let shift = ROW_ORDERS * place.level;
            let stops = !self.continuations(&place, at) & low_bits(place.child + 1);
            if stops == 0 {
                at = node_first(at, place.level) - 1;
                continue;
            }
            let stop = stops.ilog2();
            let first = node_first(at, place.level) | (stop as u64) << shift;
            // A head ends the walk; a child with detail holds it, left of its end.
            let here = Place { child: stop, ..place };
            if place.level == 0 || !self.has_detail(&here, at) {
                return first;
            }
            at = first | low_bits(shift);
        }
    }

    /// Last granule of the allocation that `position` lies in.
    pub(crate) fn last(&self, position: u64) -> u64 {
        let mut at = position;
        loop {
            let place = self.place(at);
            let stops = !self.continuations(&place, at) & (u64::MAX << place.child << 1);
            let last = if stops == 0 {
                at | low_bits(ROW_ORDERS * (place.level + 1))
            } else {
                let stop = (stops.trailing_zeros() as u64) << (ROW_ORDERS * place.level);
                // At the highest level the stop may be 2^64, which is 0 here.
                (node_first(at, place.level) | stop).wrapping_sub(1)
            };
            match self.after(last) {
                Some(next) if self.state(next) == (State::Used { head: false }) => at = next,
                _ => return last,
            }
        }
    }

    fn has_detail(&self, place: &Place, position: u64) -> bool {
        self.pool.get(self.line(place.node, place.level, position), DETAIL) >> place.child & 1 == 1
    }

    /// The position after `position`, if it is still in the tree.
    fn after(&self, position: u64) -> Option<u64> {
        let next = position.checked_add(1)?;
        (next <= self.end()).then_some(next)
    }

    /// Last position of the tree.
    pub(crate) fn end(&self) -> u64 {
        low_bits(ROW_ORDERS * (self.top() + 1))
    }

    /// The first position at or after `from` for which `wanted` names its child at some node:
    /// children without detail that are wanted, of those with a given line of a node.
    fn seek(
        &self,
        from: u64,
        wanted: impl Fn(&Self, &Place, u64) -> u64,
        starts: bool,
    ) -> Option<u64> {
        let mut at = (from <= self.end()).then_some(from)?;
        loop {
            let (mut node, mut level) = (self.root(), self.top());
            loop {
                let child = (at >> (ROW_ORDERS * level) & 63) as u32;
                let place = Place { node, level, child };
                let detail =
                    if level == 0 { 0 } else { self.pool.get(self.line(node, level, at), DETAIL) };
                let mut hits = wanted(self, &place, at) & !detail;
                if starts && at != child_first(at, level) {
                    // What starts at this child's first granule starts before `at`.
                    hits &= !(1 << child);
                }
                let candidates = (hits | detail) & (u64::MAX << child) & below_2_to_64(level);
                if candidates == 0 {
                    at = self.after(at | low_bits(ROW_ORDERS * (level + 1)))?;
                    break;
                }
                let found = candidates.trailing_zeros();
                if found != child {
                    at = node_first(at, level) | (found as u64) << (ROW_ORDERS * level);
                }
                if hits >> found & 1 == 1 {
                    return Some(at);
                }
                node = self.child_node(node, level, at);
                level -= 1;
            }
        }
    }

    /// Start of the first allocation at or after `from`.
    pub(crate) fn next_start(&self, from: u64) -> Option<u64> {
        let heads = |tree: &Self, place: &Place, at: u64| {
            if place.level == 0 {
                let (used, head) = tree.row(place.node, at);
                used & head
            } else {
                let line = tree.line(place.node, place.level, at);
                tree.pool.get(line, OCCUPIED) & tree.pool.get(line, HEAD)
            }
        };
        self.seek(from, heads, true)
    }

    /// First granule at or after `from` that is not free.
    pub(crate) fn next_occupied(&self, from: u64) -> Option<u64> {
        self.seek(from, |tree, place, at| tree.occupied(place.node, place.level, at), false)
    }

    /// First granule at or after `from` that is in an allocation.
    pub(crate) fn next_used(&self, from: u64) -> Option<u64> {
        let used = |tree: &Self, place: &Place, at: u64| {
            if place.level == 0 {
                tree.row(place.node, at).0
            } else {
                let line = tree.line(place.node, place.level, at);
                tree.pool.get(line, OCCUPIED) & !tree.pool.get(line, ABSENT)
            }
        };
        self.seek(from, used, false)
    }

    /// First granule at or after `from` that is in the space and not out of service.
    pub(crate) fn next_present(&self, from: u64) -> Option<u64> {
        let present = |tree: &Self, place: &Place, at: u64| {
            if place.level == 0 {
                let (used, head) = tree.row(place.node, at);
                used | !head
            } else {
                let line = tree.line(place.node, place.level, at);
                !tree.pool.get(line, OCCUPIED) | !tree.pool.get(line, ABSENT)
            }
        };
        self.seek(from, present, false)
    }

    /// First and last granule of the allocation that `position` lies in, if it lies in one.
    #[inline]
    pub(crate) fn allocation(&self, position: u64) -> Option<(u64, u64)> {
        // Most often it starts and ends in one row.
        let section = self.section(position);
        if section != NONE {
            let at = (position & 63) as u32;
            let (used, head) = self.row(section, position);
            if used >> at & 1 != 0 {
                let heads = used & head & low_bits(at + 1);
                let ends = (head | !used) & (u64::MAX << at << 1);
                if heads != 0 && (ends != 0 || !self.goes_on_after_row(section, position | 63)) {
                    let row_first = position & !63;
                    let last = ends.trailing_zeros() - 1;
                    return Some((row_first | heads.ilog2() as u64, row_first | last as u64));
                }
            } else if used | head != 0 {
                return None;
            }
        }
        self.allocation_anywhere(position)
    }

    #[inline(never)]
    fn allocation_anywhere(&self, position: u64) -> Option<(u64, u64)> {
        match self.state(position) {
            State::Used { .. } => Some((self.first(position), self.last(position))),
            _ => None,
        }
    }

    /// Last granule before `from` that is not free.
    pub(crate) fn previous_occupied(&self, from: u64) -> Option<u64> {
        let mut at = from.checked_sub(1)?;
        loop {
            let (mut node, mut level) = (self.root(), self.top());
            loop {
                let child = (at >> (ROW_ORDERS * level) & 63) as u32;
                let candidates = self.occupied(node, level, at) & low_bits(child + 1);
                if candidates == 0 {
                    at = node_first(at, level).checked_sub(1)?;
                    break;
                }
                let found = candidates.ilog2();
                if found != child {
                    let first = node_first(at, level) | (found as u64) << (ROW_ORDERS * level);
                    at = first | low_bits(ROW_ORDERS * level);
                }
                if level == 0 || !self.has_detail(&Place { node, level, child: found }, at) {
                    return Some(at);
                }
                node = self.child_node(node, level, at);
                level -= 1;
            }
        }
    }

    /// Last position of the free range that `position`, which is free, lies in.
    pub(crate) fn free_to(&self, position: u64) -> u64 {
        self.next_occupied(position).map_or(self.end(), |occupied| occupied - 1)
    }

    /// The lowest maximal free block of one of `orders` that starts at or after `from`: its start
    /// and its order. Of the orders below 6 all from some order up must be wanted, or none.
    ///
    /// Nodes whose `has` words show none are passed over, so the cost does not depend on how many
    /// blocks of other orders lie in between.
    pub(crate) fn next_block(&self, orders: u128, from: u64) -> Option<(u64, u32)> {
        debug_assert!({
            let small = orders as u64 & low_bits(ROW_ORDERS);
            small == 0 || small == low_bits(ROW_ORDERS) & (u64::MAX << small.trailing_zeros())
        });
        let orders = orders & self.orders();
        if orders == 0 || from > self.end() {
            return None;
        }
        let mut at = from;
        loop {
            let (mut node, mut level) = (self.root(), self.top());
            loop {
                let shift = ROW_ORDERS * level;
                let child = (at >> shift & 63) as u32;
                // Blocks among this node's own children, by where they start.
                let mut starts = 0;
                let own = (orders >> shift) as u32 & low_bits(ROW_ORDERS) as u32;
                if own != 0 {
                    let maximal = word::maximal(!self.occupied(node, level, at));
                    for (order, blocks) in maximal.into_iter().enumerate() {
                        if own >> order & 1 == 1 {
                            starts |= blocks;
                        }
                    }
                    if at != child_first(at, level) {
                        starts &= !(1 << child);
                    }
                }
                // Children that contain one.
                let mut below = 0;
                if level > 0 {
                    let line = self.line(node, level, at);
                    // A row's largest block stands for all smaller orders: of these the least asks.
                    let small = orders as u64 & low_bits(ROW_ORDERS);
                    let large = orders as u64 & low_bits(shift) & !low_bits(ROW_ORDERS);
                    let mut smaller = small & small.wrapping_neg() | large;
                    while smaller != 0 {
                        below |= self.has(line, level, smaller.trailing_zeros());
                        smaller &= smaller - 1;
                    }
                }
                let candidates = (starts | below) & (u64::MAX << child);
                if candidates == 0 {
                    at = self.after(at | low_bits(ROW_ORDERS * (level + 1)))?;
                    break;
                }
                let found = candidates.trailing_zeros();
                if found != child {
                    at = node_first(at, level) | (found as u64) << shift;
                }
                if starts >> found & 1 == 1 {
                    let maximal = word::maximal(!self.occupied(node, level, at));
                    let order = (0..ROW_ORDERS)
                        .find(|&order| maximal[order as usize] >> found & 1 == 1)
                        .expect("the block was just found among these");
                    return Some((at, shift + order));
                }
                node = self.child_node(node, level, at);
                level -= 1;
            }
        }
    }

    /// Order of the largest free block, if there is one.
    pub(crate) fn largest_order(&self) -> Option<u32> {
        self.orders().checked_ilog2()
    }

    /// Calls `each` with every order and the number of maximal free blocks of it in one node.
    pub(crate) fn count_blocks(&self, each: &mut impl FnMut(u32, u32)) {
        self.count_below(self.root(), self.top(), 0, each);
    }

    fn count_below(&self, node: Node, level: u32, position: u64, each: &mut impl FnMut(u32, u32)) {
        let shift = ROW_ORDERS * level;
        for (order, blocks) in
            word::maximal(!self.occupied(node, level, position)).into_iter().enumerate()
        {
            if blocks != 0 {
                each(shift + order as u32, blocks.count_ones());
            }
        }
        if level == 0 {
            return;
        }
        let line = self.line(node, level, position);
        let mut any = (0..shift).fold(0, |any, order| any | self.has(line, level, order));
        while any != 0 {
            let position = position | (any.trailing_zeros() as u64) << shift;
            self.count_below(self.child_node(node, level, position), level - 1, position, each);
            any &= any - 1;
        }
    }
}
