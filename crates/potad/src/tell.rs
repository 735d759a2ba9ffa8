//! What the levels above a row or node are told of it, so that every `has` word is what it says.
//!
//! Two kinds of words are told differently. Orders of 6 and above come and go one by one, rarely, and
//! upwards only as far as a node's first or last block of that order ([`Tree::gain`],
//! [`Tree::lose`]). What a row reaches of the small ones changes with nearly every allocation and
//! free ([`Tree::set_reach`], [`Tree::add_reach`]): all six words are written at once, and the level
//! above hears of it if the node itself reaches more or less than before. In a flat tree that ends
//! at the summit.

use crate::head::{Head, SECTIONS};
use crate::pool::Node;
use crate::probe::Probe;
use crate::reach::Reach;
use crate::tree::{
    DETAIL, HAS, Mark, SECTION_LEVEL, SECTION_SHIFT, Tree, child_of, has_small, level1,
};
use crate::word::{self, ROW_ORDERS, low_bits};

impl<P: Probe> Tree<P> {
    /// Child of node `level` over `position` now has `order`, in the sense of its word, and did not.
    pub(crate) fn gain(&mut self, position: u64, level: u32, order: u32) {
        let mut level = level;
        while level <= self.top() {
            let line = self.node(position, level) as usize;
            if !self.gain_at(line, child_of(position, level), order) {
                return;
            }
            level += 1;
        }
        self.touch_summit();
        self.summit.add_order(order);
        self.set_limit();
    }

    /// The same for one node; true if the node itself had none before.
    #[inline(always)]
    pub(crate) fn gain_at(&mut self, line: usize, child: u32, order: u32) -> bool {
        let before = self.pool.get(line, HAS + order as usize);
        self.pool.set(line, HAS + order as usize, before | 1 << child);
        before & self.pool.get(line, DETAIL) == 0
    }

    /// Child of node `level` over `position` does not have `order` any more.
    pub(crate) fn lose(&mut self, position: u64, level: u32, order: u32) {
        let mut level = level;
        while level <= self.top() {
            let line = self.node(position, level) as usize;
            if !self.lose_at(line, child_of(position, level), order) {
                return;
            }
            level += 1;
        }
        self.touch_summit();
        self.summit.remove_order(order);
        self.set_limit();
    }

    /// The same for one node; true if the node itself has none now.
    #[inline(always)]
    pub(crate) fn lose_at(&mut self, line: usize, child: u32, order: u32) -> bool {
        let after = self.pool.get(line, HAS + order as usize) & !(1 << child);
        self.pool.set(line, HAS + order as usize, after);
        after & self.pool.get(line, DETAIL) == 0
    }

    /// The row of `position`, which has detail, now reaches so many small orders.
    #[inline(always)]
    pub(crate) fn set_reach(&mut self, section: Node, position: u64, orders: u32) {
        self.touch_head();
        if orders != 0 {
            self.head.note_near(position);
        }
        let over = self.pool.line_mut(level1(section, position));
        let before = Reach::of_node(over).orders();
        Reach::new(orders).set(over, child_of(position, 1));
        let reach = Reach::of_node(over);
        if reach.orders() != before {
            self.set_node_reach(section, position, reach);
        }
    }

    /// The node of level 1 over `position` now reaches this.
    #[inline(always)]
    fn set_node_reach(&mut self, section: Node, position: u64, reach: Reach) {
        let over = self.pool.line_mut(section as usize);
        reach.set(over, child_of(position, SECTION_LEVEL));
        let reach = Reach::of_node(over);
        self.set_section_reach(position, reach);
    }

    /// The row of `position`, which has detail, reaches so many small orders, at least one, perhaps
    /// more than it did, but not fewer.
    #[inline(always)]
    pub(crate) fn add_reach(&mut self, section: Node, position: u64, orders: u32) {
        self.head.note_near(position);
        let over = self.pool.line_mut(level1(section, position));
        let known = over[has_small(orders - 1)] & over[DETAIL] != 0;
        Reach::new(orders).add(over, child_of(position, 1));
        if !known {
            self.set_node_reach(section, position, Reach::new(orders));
        }
    }

    /// The section over `position` now reaches this.
    #[inline(always)]
    fn set_section_reach(&mut self, position: u64, reach: Reach) {
        self.touch_summit();
        if self.summit.flat {
            let section = (position >> SECTION_SHIFT) as usize % SECTIONS;
            self.summit.reach.set(section, reach.orders());
        } else {
            self.set_reach_from(position, SECTION_LEVEL + 1, reach);
        }
    }

    /// The child of the node of `level` over `position`, which has detail, now reaches this.
    #[inline(never)]
    pub(crate) fn set_reach_from(&mut self, position: u64, level: u32, reach: Reach) {
        let mut reach = reach;
        for level in level..=self.top() {
            if level > SECTION_LEVEL && self.summit.flat {
                return self.set_section_reach(position, reach);
            }
            let line = self.node(position, level) as usize;
            let over = self.pool.line_mut(line);
            let before = Reach::of_node(over);
            reach.set(over, child_of(position, level));
            reach = Reach::of_node(over);
            if reach.orders() == before.orders() {
                return;
            }
        }
        if self.summit.flat {
            self.set_section_reach(position, reach);
        }
    }

    /// A row from `position` on has come to be free as a whole.
    #[inline(always)]
    pub(crate) fn note_large(&mut self, position: u64) {
        self.set_low_large(self.summit.low_large.min(Head::row(position)));
    }

    /// No row below this one is free as a whole.
    #[inline(always)]
    pub(crate) fn set_low_large(&mut self, row: u32) {
        self.touch_summit();
        self.summit.low_large = row;
        self.set_limit();
    }

    /// Keeps the head's `limit` what the summit makes it.
    #[inline(always)]
    pub(crate) fn set_limit(&mut self) {
        self.touch_head();
        self.head.limit = self.summit.limit();
    }

    /// Says how many granules the space has.
    pub(crate) fn set_size(&mut self, granules: u128) {
        self.summit.set_size(granules);
        self.set_limit();
    }

    /// The node or row at `level` over `position` went from `before` to `after` occupied children:
    /// tells the levels above which orders came and went. Neither may be wholly free unless its
    /// parent already shows it as detail without any order.
    pub(crate) fn tell(&mut self, position: u64, level: u32, before: u64, after: u64) {
        if level == 0 {
            return self.set_reach(self.section(position), position, word::reach(!after));
        }
        let (had, has) = (word::orders(!before), word::orders(!after));
        let mut lost = had & !has;
        while lost != 0 {
            self.lose(position, level + 1, ROW_ORDERS * level + lost.trailing_zeros());
            lost &= lost - 1;
        }
        let mut gained = has & !had;
        while gained != 0 {
            self.gain(position, level + 1, ROW_ORDERS * level + gained.trailing_zeros());
            gained &= gained - 1;
        }
        if has != 0 {
            self.note_large(position & !low_bits(ROW_ORDERS * (level + 1)));
        }
    }

    /// The child of node `level` over `position`, which has detail, has no free block any more, or
    /// is about to be free as a whole: it has no order that the node should know of.
    pub(crate) fn lose_all(&mut self, position: u64, level: u32) {
        let (line, child) = (self.node(position, level) as usize, child_of(position, level));
        self.set_reach_from(position, level, Reach::new(0));
        for order in ROW_ORDERS..ROW_ORDERS * level {
            if self.pool.get(line, HAS + order as usize) >> child & 1 != 0
                && self.lose_at(line, child, order)
            {
                self.lose(position, level + 1, order);
            }
        }
    }

    /// The child of node `level` over `position` is in one state as a whole now, free or absent,
    /// and what is below it is zero: takes its node back and marks it here instead.
    pub(crate) fn collapse(&mut self, position: u64, level: u32, mark: Mark) {
        let node = self.node(position, level);
        let line = node as usize;
        let bit = 1u64 << child_of(position, level);
        self.lose_all(position, level);
        let detail = self.pool.get(line, DETAIL) & !bit;
        self.pool.set(line, DETAIL, detail);
        if level > SECTION_LEVEL {
            self.detach(node, level, position);
        }
        self.set_children(position, level, bit, 0, mark);
    }
}
