//! Allocating: arguments and windows on the outside, positions and orders on the inside.

use super::{ADDRESS_END, Space, Window};
use crate::error::{Error, Reason};
use crate::fallible::{Grow, text, with_room};
use crate::probe::Probe;
use crate::run::{Fit, Wanted};
use crate::word::low_bits;

impl<P: Probe> Space<P> {
    /// The order of the smallest block of at least `size`; above 64 if there is no such block.
    #[inline(always)]
    pub(super) fn order(&self, name: &'static str, size: u128) -> Result<u32, Error> {
        if size == 0 {
            return Err(Error::argument(name, size, "above 0"));
        }
        if size > ADDRESS_END {
            return Ok(65);
        }
        Ok(64 - ((size - 1) as u64 >> self.shift).leading_zeros())
    }

    /// A block of at least `size`, rounded up to a power of two and aligned to its own size.
    ///
    /// A handful of words, whatever the sizes. Which of several free blocks it is, is not promised;
    /// one that spares the large ones.
    #[inline(always)]
    pub fn alloc(&mut self, size: u128) -> Result<u64, Error> {
        let order = self.order("size", size)?;
        match self.tree.alloc_block(order)? {
            Some(position) => Ok(self.address(position)),
            None => Err(self.no_block(size, order)),
        }
    }

    /// The same, confined to a window.
    pub fn alloc_within(&mut self, size: u128, within: Window) -> Result<u64, Error> {
        if within.is_none() {
            return self.alloc(size);
        }
        let order = self.order("size", size)?;
        let window = self.window(within)?;
        match window.and_then(|window| self.block_within(order, window)) {
            Some(position) => {
                self.tree.ensure_detail(1)?;
                self.tree.take_block(position, order);
                Ok(self.address(position))
            }
            None => Err(self.no_block(size, order)),
        }
    }

    /// Where the best-fitting block of `order` inside the window would be.
    fn block_within(&mut self, order: u32, (first, last): (u64, u64)) -> Option<u64> {
        self.tree.settle();
        let orders = self.tree.orders();
        if order > 64 || orders >> order == 0 {
            return None;
        }
        // Only whole blocks of the order count, so the window may as well end at their bounds.
        let first = first.checked_add(low_bits(order))? & !low_bits(order);
        let end = (last as u128 + 1) & !(low_bits(order) as u128);
        // Parts of rows first, all orders of them together; then whole rows, the smallest first.
        let small = (order < 6).then_some(63 & u128::MAX << order);
        let large = (order.max(6)..=64).map(|from| 1 << from);
        small.into_iter().chain(large.filter(|&from| orders & from != 0)).find_map(|wanted| {
            // The block that `first` may lie in starts below it.
            let size = (wanted & !63).max(64) as u64;
            let mut from = first & !size.wrapping_sub(1);
            loop {
                let (block, found) = self.tree.next_block(wanted, from)?;
                let position = block.max(first);
                if position as u128 >= end {
                    return None;
                }
                if found >= order && position - block <= low_bits(found) {
                    return Some(position);
                }
                from = block.checked_add(1 << found)?;
            }
        })
    }

    /// Size of a block, in address units, of whatever order was asked for.
    fn block_size(&self, order: u32) -> u128 {
        1 << (order + self.shift).min(127)
    }

    #[cold]
    fn no_block(&mut self, size: u128, order: u32) -> Error {
        let block = self.block_size(order);
        let detail = if block == size {
            String::new()
        } else {
            text(format_args!("a power of two of at least that: {block}; a run need not be one"))
        };
        self.no_room(size, detail)
    }

    #[cold]
    pub(super) fn no_room(&mut self, size: u128, detail: String) -> Error {
        let requested = size.checked_next_multiple_of(1 << self.shift).unwrap_or(size);
        let available = self.available();
        let reason = if available < requested { Reason::Exhausted } else { Reason::Fragmented };
        Error::OutOfSpace { requested, available, largest: self.largest_free(), reason, detail }
    }

    #[cold]
    pub(super) fn occupied(&mut self, size: u128, detail: String) -> Error {
        Error::OutOfSpace {
            requested: size,
            available: self.available(),
            largest: self.largest_free(),
            reason: Reason::Occupied,
            detail,
        }
    }

    /// Where [`Space::alloc_run`] would allocate.
    pub fn find_run(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
        fit: Fit,
    ) -> Result<u64, Error> {
        let position = self.find_run_position(size, align, within, fit)?;
        Ok(self.address(position))
    }

    fn find_run_position(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
        fit: Fit,
    ) -> Result<u64, Error> {
        let (wanted, window) = self.run_wanted(size, align, within)?;
        self.tree.settle();
        let found = match (window, wanted) {
            (Some((first, last)), Some(wanted)) => {
                self.tree.find_run(&Wanted { first, last, ..wanted }, fit)
            }
            // All 2^64 granules: the block of order 64, if the whole space is it.
            (Some((0, u64::MAX)), None) if size.div_ceil(1 << self.shift) == ADDRESS_END => {
                self.tree.next_block(1 << 64, 0).map(|(block, _)| block)
            }
            _ => None,
        };
        found.ok_or_else(|| self.no_run(size, align))
    }

    /// A run in granules, `None` where it is longer than 2^64 less one; and first and last position of
    /// the window, if that leaves any.
    #[expect(clippy::type_complexity, reason = "two options that have a sentence each")]
    pub(super) fn run_wanted(
        &self,
        size: u128,
        align: u128,
        within: Window,
    ) -> Result<(Option<Wanted>, Option<(u64, u64)>), Error> {
        if size == 0 {
            return Err(Error::argument("size", size, "above 0"));
        }
        if align == 0 || align > ADDRESS_END {
            return Err(Error::argument("align", align, "1 to 2^64"));
        }
        let window = self.window(within)?;
        let length = size.min(ADDRESS_END + 1).div_ceil(1 << self.shift);
        let align = self.align_in_granules(align);
        let (origin, first, last) = (self.origin, 0, self.last);
        let length = u64::try_from(length).ok();
        Ok((length.map(|length| Wanted { length, align, origin, first, last }), window))
    }

    /// An alignment in granules: a start is a multiple of both the alignment and the granule.
    pub(super) fn align_in_granules(&self, align: u128) -> u128 {
        align >> align.trailing_zeros().min(self.shift)
    }

    /// Exactly `size`, rounded up to granules, of contiguous space at a multiple of `align`. If
    /// there is such a run anywhere in the window, one is found.
    pub fn alloc_run(
        &mut self,
        size: u128,
        align: u128,
        within: Window,
        fit: Fit,
    ) -> Result<u64, Error> {
        let position = self.find_run_position(size, align, within, fit)?;
        let length = size.div_ceil(1 << self.shift);
        self.tree.ensure_detail(2)?;
        self.tree.occupy(position, position + (length - 1) as u64);
        Ok(self.address(position))
    }

    /// Exactly the range of `size` from `address` on.
    pub fn alloc_at(&mut self, address: u64, size: u128) -> Result<u64, Error> {
        let range = self.range("address", address, size)?;
        if !self.spans.covers(range.clone()) {
            return Err(
                self.occupied(size, text(format_args!("{address:#x} is not all in the space")))
            );
        }
        self.tree.settle();
        let (first, last) = self.positions(&range);
        if let Some(taken) = self.tree.next_occupied(first).filter(|&taken| taken <= last) {
            let taken = self.address(taken);
            return Err(self.occupied(size, text(format_args!("{taken:#x} is not free"))));
        }
        self.tree.ensure_detail(2)?;
        self.tree.occupy(first, last);
        Ok(address)
    }

    /// `size`, rounded up to a multiple of `min_block`, in as few blocks as the space allows, each
    /// a power of two of at least `min_block`: the start and size of each, largest first.
    ///
    /// Taking the largest block that both fits what is left and exists is optimal: each size
    /// divides the next, so no smaller choice leaves anything a larger one would not.
    pub fn alloc_scattered(
        &mut self,
        size: u128,
        min_block: u128,
        within: Window,
    ) -> Result<Vec<(u64, u128)>, Error> {
        let smallest = self.order("min_block", min_block)?;
        if size == 0 {
            return Err(Error::argument("size", size, "above 0"));
        }
        let window = self.window(within)?;
        let mut left = match size <= self.available() {
            true if smallest <= 64 => {
                size.div_ceil(1 << self.shift).next_multiple_of(1 << smallest)
            }
            _ => return Err(self.no_room(size, String::new())),
        };
        let mut blocks: Vec<(u64, u128)> = Vec::new();
        let mut order = left.ilog2();
        while left > 0 {
            order = order.min(left.ilog2());
            let block = window.and_then(|window| self.block_within(order, window));
            let made = match block {
                Some(position) => {
                    blocks.room(1).and_then(|()| self.tree.ensure_detail(1)).map(|()| {
                        self.tree.take_block(position, order);
                        blocks.push((self.address(position), self.units(1 << order)));
                        left -= 1 << order;
                    })
                }
                None if order > smallest => {
                    order -= 1;
                    Ok(())
                }
                None => {
                    let least = self.units(1 << smallest);
                    Err(self.no_room(size, text(format_args!("in blocks of at least {least}"))))
                }
            };
            if let Err(error) = made {
                for (start, size) in blocks {
                    let (first, last) = self.stretch_at(start, size);
                    self.tree.vacate(first, last);
                }
                // The figures are those of before the call again.
                return Err(match error {
                    Error::OutOfSpace { detail, .. } => self.no_room(size, detail),
                    other => other,
                });
            }
        }
        Ok(blocks)
    }

    /// `count` blocks of at least `size` each, or none: their addresses. Parts of rows are used up
    /// first, from the lowest address, then the smallest blocks that will do.
    pub fn alloc_many(&mut self, size: u128, count: usize) -> Result<Vec<u64>, Error> {
        let order = self.order("size", size)?;
        let block = self.block_size(order);
        let total = block.saturating_mul(count as u128);
        let refuse = |space: &mut Self| {
            let rounded = size.checked_next_multiple_of(1 << space.shift).unwrap_or(size);
            space.no_room(
                rounded.saturating_mul(count as u128),
                text(format_args!("{count} blocks of {block}")),
            )
        };
        if total > self.available() {
            return Err(refuse(self));
        }
        let mut positions = with_room(count)?;
        let done = self.tree.alloc_blocks(order, count, &mut positions);
        if !matches!(done, Ok(true)) {
            for &position in &positions {
                self.tree.vacate(position, position + low_bits(order));
            }
            done?;
            return Err(refuse(self));
        }
        for position in &mut positions {
            *position = self.address(*position);
        }
        Ok(positions)
    }
}
