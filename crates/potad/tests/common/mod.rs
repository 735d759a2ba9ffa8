//! The naive model: a state for each granule, and everything worked out from these by looking at
//! all of them. Slow, and obviously right.
//!
//! Numbers are absolute granules; the model knows nothing of sizes in address units, trees or
//! words. Where the contract fixes an address, of runs and of exact ranges, the model names it and
//! the space must give that one. Where it leaves the choice to the space, of blocks, the model says
//! whether there is one at all and then takes over what the space chose, provided it was free.

#![allow(dead_code, reason = "each test file uses its own part of the model")]

use std::collections::BTreeMap;

use potad::Fit;

pub mod intervals;
pub mod random;
pub mod wide;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Not in the space.
    Missing,
    Free,
    Retired,
    /// In the allocation that starts at this granule.
    Used(u64),
}

#[derive(Clone, Debug)]
pub struct Model {
    /// Absolute granule number of the first cell; a multiple of more than all cells.
    pub origin: u64,
    pub cells: Vec<Cell>,
    pub retired: Vec<bool>,
    /// Start to length of each allocation.
    pub live: BTreeMap<u64, u64>,
}

pub type Window = std::ops::Range<u64>;

impl Model {
    /// A model that can hold granules `first..end`.
    pub fn new(first: u64, end: u64) -> Self {
        let n = (end - first) as usize;
        Model {
            origin: first,
            cells: vec![Cell::Missing; n],
            retired: vec![false; n],
            live: BTreeMap::new(),
        }
    }

    pub fn end(&self) -> u64 {
        self.origin + self.cells.len() as u64
    }

    pub fn all(&self) -> Window {
        self.origin..self.end()
    }

    fn index(&self, granule: u64) -> Option<usize> {
        let index = granule.checked_sub(self.origin)? as usize;
        (index < self.cells.len()).then_some(index)
    }

    pub fn cell(&self, granule: u64) -> Cell {
        self.index(granule).map_or(Cell::Missing, |index| self.cells[index])
    }

    pub fn is_free(&self, start: u64, length: u64) -> bool {
        let end = start as u128 + length as u128;
        start >= self.origin
            && end <= self.end() as u128
            && self.cells[(start - self.origin) as usize..(end - self.origin as u128) as usize]
                .iter()
                .all(|cell| *cell == Cell::Free)
    }

    pub fn count(&self, wanted: impl Fn(Cell) -> bool) -> u64 {
        self.cells.iter().filter(|cell| wanted(**cell)).count() as u64
    }

    pub fn available(&self) -> u64 {
        self.count(|cell| cell == Cell::Free)
    }

    fn block_is_free(&self, start: u64, order: u32) -> bool {
        order < 63 && start.is_multiple_of(1 << order) && self.is_free(start, 1 << order)
    }

    /// Maximal free blocks: start and order.
    pub fn blocks(&self) -> Vec<(u64, u32)> {
        let mut blocks = Vec::new();
        let mut at = self.origin;
        while at < self.end() {
            if self.cell(at) != Cell::Free {
                at += 1;
                continue;
            }
            let order = (0..63).take_while(|&order| self.block_is_free(at, order)).last().unwrap();
            // Taken at its start, a block that grows as far as it can is maximal.
            blocks.push((at, order));
            at += 1 << order;
        }
        blocks
    }

    /// The lowest free block of `order` in the window.
    pub fn find_block(&self, order: u32, window: &Window) -> Option<u64> {
        self.free_starts(order, window).next()
    }

    /// How many blocks of `order` could be had from the window at once.
    pub fn count_free(&self, order: u32, window: &Window) -> usize {
        self.free_starts(order, window).count()
    }

    /// Where free blocks of `order` start that lie inside the window, ascending.
    fn free_starts(&self, order: u32, window: &Window) -> impl Iterator<Item = u64> {
        let (size, end) = (1u64 << order, window.end.min(self.end()));
        let first = window.start.max(self.origin).next_multiple_of(size);
        (first..end)
            .step_by(size as usize)
            .filter(move |&at| at + size <= end && self.block_is_free(at, order))
    }

    /// The run the contract prefers, by trying every start.
    pub fn find_run(&self, length: u64, align: u64, window: &Window, fit: Fit) -> Option<u64> {
        let class_max = length.next_power_of_two().trailing_zeros();
        let class = |start: u64| {
            if start == 0 { class_max } else { start.trailing_zeros().min(class_max) }
        };
        let starts = (window.start.max(self.origin)..window.end.min(self.end())).filter(|&start| {
            start % align == 0
                && start as u128 + length as u128 <= window.end as u128
                && self.is_free(start, length)
        });
        match fit {
            Fit::First => starts.min(),
            Fit::Aligned => starts.min_by_key(|&start| (std::cmp::Reverse(class(start)), start)),
        }
    }

    pub fn occupy(&mut self, start: u64, length: u64) {
        assert!(self.is_free(start, length));
        for at in start..start + length {
            let index = self.index(at).unwrap();
            self.cells[index] = Cell::Used(start);
        }
        self.live.insert(start, length);
    }

    pub fn free(&mut self, start: u64) -> Option<u64> {
        let length = self.live.remove(&start)?;
        for at in start..start + length {
            let index = self.index(at).unwrap();
            self.cells[index] = if self.retired[index] { Cell::Retired } else { Cell::Free };
        }
        Some(length)
    }

    pub fn split(&mut self, start: u64, length: u64) {
        let whole = self.live.insert(start, length).unwrap();
        let second = start + length;
        for at in second..start + whole {
            let index = self.index(at).unwrap();
            self.cells[index] = Cell::Used(second);
        }
        self.live.insert(second, whole - length);
    }

    /// The first granule of the range that is not allocated.
    pub fn first_unused(&self, start: u64, length: u64) -> Option<u64> {
        (start..start + length).find(|&at| !matches!(self.cell(at), Cell::Used(_)))
    }

    pub fn free_range(&mut self, start: u64, length: u64) {
        for cut in [start, start + length] {
            if let Cell::Used(first) = self.cell(cut)
                && first != cut
            {
                self.split(first, cut - first);
            }
        }
        let starts: Vec<u64> = self.live.range(start..start + length).map(|(&at, _)| at).collect();
        for at in starts {
            self.free(at);
        }
    }

    pub fn add(&mut self, start: u64, length: u64) {
        for at in start..start + length {
            let index = self.index(at).unwrap();
            self.cells[index] = if self.retired[index] { Cell::Retired } else { Cell::Free };
        }
    }

    pub fn remove(&mut self, start: u64, length: u64) {
        for at in start..start + length {
            let index = self.index(at).unwrap();
            self.cells[index] = Cell::Missing;
        }
    }

    pub fn retire(&mut self, start: u64, length: u64) {
        for at in start..start + length {
            let index = self.index(at).unwrap();
            self.retired[index] = true;
            if self.cells[index] == Cell::Free {
                self.cells[index] = Cell::Retired;
            }
        }
    }

    pub fn restore(&mut self, start: u64, length: u64) {
        for at in start..start + length {
            let index = self.index(at).unwrap();
            self.retired[index] = false;
            if self.cells[index] == Cell::Retired {
                self.cells[index] = Cell::Free;
            }
        }
    }

    pub fn present(&self, start: u64, length: u64) -> bool {
        (start..start + length).all(|at| self.cell(at) != Cell::Missing)
    }

    /// Stretches of granules for which `wanted` holds: start and length.
    pub fn stretches(&self, wanted: impl Fn(usize) -> bool) -> Vec<(u64, u64)> {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        for index in (0..self.cells.len()).filter(|&index| wanted(index)) {
            let at = self.origin + index as u64;
            match stretches.last_mut() {
                Some((start, length)) if *start + *length == at => *length += 1,
                _ => stretches.push((at, 1)),
            }
        }
        stretches
    }

    /// In how few blocks of at least order `smallest` the window could give `length`, if at all.
    pub fn fewest_blocks(&self, length: u64, smallest: u32, window: &Window) -> Option<usize> {
        // Larger blocks are used up first; that this is optimal, a brute force shows elsewhere.
        let mut left = length;
        let mut blocks = 0;
        let mut model = self.clone();
        for order in (smallest..40).rev() {
            while left >= 1 << order {
                let Some(at) = model.find_block(order, window) else { break };
                model.occupy(at, 1 << order);
                left -= 1 << order;
                blocks += 1;
            }
        }
        (left == 0).then_some(blocks)
    }
}
