//! The recount: everything a space keeps, counted again from the ground truth.
//!
//! The ground truth is the states of granules: the `used` and `head` bits of rows and the states of
//! children without detail. From these the recount derives what every word of `has`, every figure
//! and every list must be, and compares. It shares no code with what keeps them up to date: free
//! blocks are found by halving, not by folding words.

use std::collections::HashSet;
use std::fmt::Display;

use crate::error::Error;
use crate::fallible::{Grow, no_memory, repeat};
use crate::head::Head;
use crate::pool::{LEVEL1, NONE, Node, ROWS, SECTION_LINES, UPPER_LINES};
use crate::probe::Probe;
use crate::space::Space;
use crate::tree::{ABSENT, DETAIL, HAS, HEAD, OCCUPIED, SECTION_LEVEL, SECTION_SHIFT, State, Tree};

/// What the granules under one child come to.
#[derive(Clone, Default)]
struct Count {
    /// Orders of maximal free blocks below, by `has` or by the child's own row; below 6 all up to
    /// the largest of any row.
    orders: u128,
    free: u128,
    used: u128,
    absent: u128,
    heads: u64,
}

impl Count {
    fn add(&mut self, other: &Count) {
        self.orders |= other.orders;
        self.free += other.free;
        self.used += other.used;
        self.absent += other.absent;
        self.heads += other.heads;
    }
}

struct Recount<'a, P> {
    tree: &'a Tree<P>,
    /// Nodes that hang in the tree, sections and upper nodes.
    sections: HashSet<Node>,
    uppers: HashSet<Node>,
    /// Whether the granule before the next one to be visited is in an allocation.
    running: bool,
    /// Stretches of absent granules seen, in positions: adjoining ones are joined.
    absents: Vec<(u128, u128)>,
}

type Found<T> = Result<T, Error>;

fn corrupt<T>(what: impl Display) -> Found<T> {
    Err(Error::corrupt(what))
}

/// Notes a node; whether it was not noted before.
fn note(nodes: &mut HashSet<Node>, node: Node) -> Found<bool> {
    let bytes = (nodes.len() + 1) * size_of::<Node>();
    nodes.try_reserve(1).map_err(|_| no_memory(bytes))?;
    Ok(nodes.insert(node))
}

/// Maximal free blocks among 64 siblings, by halving: orders relative to one sibling.
fn orders_by_halving(free: u64) -> u32 {
    fn halve(free: u64, at: u32, order: u32) -> u32 {
        let all = if order == 6 { u64::MAX } else { ((1u64 << (1 << order)) - 1) << at };
        if free & all == 0 {
            0
        } else if free & all == all {
            1 << order
        } else {
            halve(free, at, order - 1) | halve(free, at + (1 << (order - 1)), order - 1)
        }
    }
    halve(free, 0, 6)
}

impl<P: Probe> Recount<'_, P> {
    fn children(&mut self, node: Node, level: u32, first: u128) -> Found<Count> {
        let tree = self.tree;
        let name = format_args!("node of level {level} at granule {first}");
        let (used, head, absent, detail);
        if level == 0 {
            let (row_used, row_head) = tree.row(node, first as u64);
            (used, head, absent, detail) = (row_used, row_used & row_head, row_head & !row_used, 0);
        } else {
            let line = tree.line(node, level, first as u64);
            let occupied = tree.pool.get(line, OCCUPIED);
            detail = tree.pool.get(line, DETAIL);
            if detail & !occupied != 0 {
                return corrupt(format_args!("{name}: children with detail are marked free"));
            }
            let states = occupied & !detail;
            head = tree.pool.get(line, HEAD) & !detail;
            absent = tree.pool.get(line, ABSENT) & !detail;
            if (head | absent) & !states != 0 || head & absent != 0 {
                return corrupt(format_args!("{name}: states of children contradict each other"));
            }
            used = states & !absent;
        }
        let free = !(used | absent | detail);
        let is_root = level == tree.top();
        if !is_root && (free == u64::MAX || absent == u64::MAX) {
            return corrupt(format_args!("{name} is in one state as a whole but has detail"));
        }
        let size = 1u128 << (6 * level);
        let mut count =
            Count { orders: (orders_by_halving(free) as u128) << (6 * level), ..Count::default() };
        if !is_root {
            count.orders &= !(1 << (6 * level + 6));
        }
        if level == 0 && count.orders != 0 {
            // A row's largest block stands for all smaller orders.
            count.orders = (2 << count.orders.ilog2()) - 1;
        }
        let mut below = [0u128; 64];
        for child in 0..64u32 {
            let bit = |word: u64| word >> child & 1 == 1;
            let at = first + child as u128 * size;
            if bit(detail) {
                let found = self.descend(node, level, at)?;
                below[child as usize] = found.orders;
                count.add(&found);
                continue;
            }
            if bit(free) {
                count.free += size;
            } else if bit(absent) {
                count.absent += size;
                match self.absents.last_mut() {
                    Some(last) if last.1 == at => last.1 = at + size,
                    _ => self.absents.add((at, at + size))?,
                }
            } else {
                count.used += size;
                count.heads += bit(head) as u64;
                if !bit(head) && !self.running {
                    return corrupt(format_args!("{name}: child {child} goes on from nothing"));
                }
            }
            self.running = bit(used);
        }
        if level > 0 {
            let line = tree.line(node, level, first as u64);
            for order in 0..6 * level {
                let has = tree.has(line, level, order);
                let stored = tree.pool.get(line, HAS + order as usize);
                // A flat root's own words for small orders are not used, and zero.
                let elsewhere = tree.summit.flat && level > SECTION_LEVEL && order < 6;
                let stale = if elsewhere { stored & detail } else { 0 };
                if order >= 2 && stored & !has != 0 || stale != 0 {
                    return corrupt(format_args!(
                        "{name}: order {order} in children without detail"
                    ));
                }
                let expected = (0..64)
                    .fold(0, |word, child| word | ((below[child] >> order & 1) as u64) << child);
                if has != expected {
                    return corrupt(format_args!(
                        "{name}: blocks of order {order} in children {has:#x}, recounted {expected:#x}"
                    ));
                }
            }
        }
        Ok(count)
    }

    fn descend(&mut self, node: Node, level: u32, first: u128) -> Found<Count> {
        let child = self.tree.child_node(node, level, first as u64);
        if level > SECTION_LEVEL {
            let nodes =
                if level - 1 == SECTION_LEVEL { &mut self.sections } else { &mut self.uppers };
            if child == NONE || !note(nodes, child)? {
                return corrupt(format_args!("granule {first}: node {child} is missing or shared"));
            }
        }
        let heads_before = self.absents.len();
        let running = self.running;
        let count = self.children(child, level - 1, first)?;
        // An allocation that covers a child as a whole is stored there and not below.
        let all_one = count.free == 0 && count.absent == 0 && self.absents.len() == heads_before;
        if all_one && (count.heads == 0 && running || count.heads == 1 && self.starts_at(first)) {
            return corrupt(format_args!(
                "one allocation fills level {} at granule {first}",
                level - 1
            ));
        }
        Ok(count)
    }

    fn starts_at(&self, position: u128) -> bool {
        self.tree.is_start(position as u64)
    }
}

impl<P: Probe> Space<P> {
    /// Recounts everything from the ground truth and says what disagrees.
    ///
    /// Takes time in proportion to the metadata in use.
    pub fn check(&self) -> Result<(), Error> {
        let tree = &self.tree;
        let mut recount = Recount {
            tree,
            sections: HashSet::new(),
            uppers: HashSet::new(),
            running: false,
            absents: Vec::new(),
        };
        let root_is_section = tree.top() == SECTION_LEVEL;
        let nodes = if root_is_section { &mut recount.sections } else { &mut recount.uppers };
        note(nodes, tree.root())?;
        let count = recount.children(tree.root(), tree.top(), 0)?;

        if count.orders != tree.orders() {
            return corrupt(format_args!(
                "orders of free blocks {:#x}, recounted {:#x}",
                tree.orders(),
                count.orders
            ));
        }
        // Recent blocks are free, though the bits say that they are allocated.
        let (mut recent, mut recent_granules) = (0, 0);
        for (position, order) in tree.head.recent_blocks() {
            let last = position + (1 << order) - 1;
            if !tree.is_start(position) || tree.last(position) != last {
                return corrupt(format_args!(
                    "no block of order {order} at granule {position}, kept"
                ));
            }
            if !self.retired.is_empty() || last % 64 == 63 {
                return corrupt(format_args!(
                    "a block at granule {position} is kept but must not be"
                ));
            }
            recent += 1;
            recent_granules += 1 << order;
        }
        let used = tree.used() + recent_granules;
        let figures = [
            ("granules in use", used, count.used),
            ("allocations", (tree.allocations() + recent) as u128, count.heads as u128),
            ("granules free", self.total - used - self.absent, count.free),
        ];
        for (name, kept, recounted) in figures {
            if kept != recounted {
                return corrupt(format_args!("{name}: {kept}, recounted {recounted}"));
            }
        }
        for (at, &section) in tree.head.sections.iter().enumerate() {
            let found = tree.find_section((at as u64) << SECTION_SHIFT);
            if at as u64 <= tree.end() >> SECTION_SHIFT && section != found {
                return corrupt(format_args!("section {at}: node {section}, recounted {found}"));
            }
        }
        let noted = tree.head.sections.iter().filter(|&&section| section != NONE).count();
        let all_noted = noted == recount.sections.len() && tree.top() <= SECTION_LEVEL + 1;
        if tree.summit.flat && !all_noted {
            return corrupt(format_args!("{noted} sections noted of {}", recount.sections.len()));
        }
        if let Some((position, order)) = tree.next_block(tree.summit.packed(), 0)
            && Head::row(position) < tree.summit.low_large
        {
            return corrupt(format_args!(
                "a block of order {order} at granule {position}, noted from row {} on",
                tree.summit.low_large
            ));
        }
        if let Some((position, _)) = tree.next_block(63, 0)
            && Head::row(position) < tree.head.near
        {
            let near = tree.head.near;
            return corrupt(format_args!("granule {position} is free, noted from row {near} on"));
        }
        if tree.head.limit != tree.summit.limit() {
            let (limit, expected) = (tree.head.limit, tree.summit.limit());
            return corrupt(format_args!("the limit is row {limit}, recounted {expected}"));
        }
        self.check_absent(&recount.absents)?;
        self.check_descriptors()?;
        check_pool(tree, &recount)
    }

    /// Absent is what lies outside all spans or is retired, and not in an allocation.
    fn check_absent(&self, absents: &[(u128, u128)]) -> Found<()> {
        let origin = self.origin_granule();
        let mut out_of_service = 0;
        for &(first, end) in absents {
            let range = origin + first..origin + end;
            for span in self.spans.overlap(range.clone()) {
                out_of_service += span.end - span.start;
                if !self.retired.covers(span.clone()) {
                    return corrupt(format_args!("granules {span:?} are absent but not retired"));
                }
            }
        }
        let total: u128 = self.spans.iter().map(|span| span.end - span.start).sum();
        if (total, out_of_service) != (self.total, self.absent) {
            return corrupt(format_args!(
                "granules in spans {}, out of service {}; recounted {total}, {out_of_service}",
                self.total, self.absent
            ));
        }
        let pledged = self.pledge_near(&(0..u128::MAX));
        if pledged != self.tree.pledged {
            return corrupt(format_args!(
                "{} ends are pledged, recounted {pledged}",
                self.tree.pledged
            ));
        }
        for retired in self.retired_ranges() {
            let free = self.parts(&retired).find(|part| part.2 == State::Free);
            if let Some((first, ..)) = free {
                return corrupt(format_args!(
                    "granule {} is retired but free",
                    origin + first as u128
                ));
            }
        }
        Ok(())
    }
}

/// Every line of the pool belongs to a node that hangs in the tree or was given back, and nodes
/// given back are zero but for their link.
fn check_pool<P: Probe>(tree: &Tree<P>, recount: &Recount<'_, P>) -> Found<()> {
    let (free_sections, free_uppers) = tree.pool.given_back()?;
    if (free_sections.len(), free_uppers.len()) != tree.pool.counts_given_back() {
        return corrupt(format_args!(
            "nodes given back {:?}, recounted {} and {}",
            tree.pool.counts_given_back(),
            free_sections.len(),
            free_uppers.len()
        ));
    }
    let mut owned = repeat(false, tree.pool.lines())?;
    owned[0] = true;
    let mut claim = |node: Node, lines: usize| {
        let end = (node as usize + lines).min(owned.len());
        let slots = &mut owned[node as usize..end];
        let fresh = slots.iter().all(|taken| !taken);
        slots.fill(true);
        if fresh { Ok(()) } else { corrupt(format_args!("node {node} overlaps another")) }
    };
    for &node in recount.sections.iter().chain(&free_sections) {
        claim(node, SECTION_LINES)?;
    }
    for &node in recount.uppers.iter().chain(&free_uppers) {
        claim(node, UPPER_LINES)?;
    }
    if let Some(line) = owned.iter().position(|owned| !owned) {
        return corrupt(format_args!("line {line} of the metadata belongs to no node"));
    }
    let all = free_sections.iter().map(|&node| (node, SECTION_LINES));
    for (node, lines) in all.chain(free_uppers.iter().map(|&node| (node, UPPER_LINES))) {
        let dirty = (1..8 * lines).find(|&word| tree.pool.get(node as usize, word) != 0);
        if let Some(word) = dirty {
            return corrupt(format_args!(
                "word {word} of node {node}, which was given back, is not 0"
            ));
        }
    }
    for &section in &recount.sections {
        check_section_is_zero_without_detail(tree, section)?;
    }
    Ok(())
}

/// Below a child without detail everything is zero, rows as well as nodes of level 1.
fn check_section_is_zero_without_detail<P: Probe>(tree: &Tree<P>, section: Node) -> Found<()> {
    let lines = tree.pool.lines();
    let head_detail = tree.pool.get(section as usize, DETAIL);
    for over in 0..64usize {
        let line = section as usize + LEVEL1 + over;
        let zero = (0..8).all(|word| tree.pool.get(line, word) == 0);
        if head_detail >> over & 1 == 0 && !zero {
            return corrupt(format_args!("level 1 node {over} of section {section} is stale"));
        }
        let detail = tree.pool.get(line, DETAIL);
        for child in 0..64 {
            let row = over * 64 + child;
            let at = section as usize + ROWS + row / 4;
            let has_detail = detail >> child & 1 == 1;
            if !has_detail
                && at < lines
                && (0..2).any(|word| tree.pool.get(at, row % 4 * 2 + word) != 0)
            {
                return corrupt(format_args!("row {row} of section {section} is stale"));
            }
        }
    }
    Ok(())
}
