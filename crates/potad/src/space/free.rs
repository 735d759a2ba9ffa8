//! Freeing: whole allocations, many at once, ranges of granules; and cutting allocations in two.

use super::Space;
use crate::error::Error;
use crate::fallible::{Grow, with_room};
use crate::many::Freed;
use crate::probe::Probe;
use crate::tree::State;
use crate::word::{ROW_ORDERS, low_bits};

impl<P: Probe> Space<P> {
    /// Frees the allocation that starts at `address`; its size.
    #[inline]
    pub fn free(&mut self, address: u64) -> Result<u128, Error> {
        if self.descriptors.is_some() || !self.retired.is_empty() {
            return self.free_known(address);
        }
        match self.position(address).and_then(|first| Some((first, self.tree.free(first, true)?))) {
            Some((first, last)) => Ok(self.units((last - first) as u128 + 1)),
            None => Err(self.not_start(address)),
        }
    }

    /// The same in a space that has descriptors, or anything retired.
    #[inline(never)]
    fn free_known(&mut self, address: u64) -> Result<u128, Error> {
        self.must_not_be_pinned(address)?;
        if let Some(position) = self.position(address)
            && let Some(last) = self.tree.free(position, self.retired.is_empty())
        {
            if !self.retired.is_empty() {
                self.withdraw(position, last);
            }
            self.undescribe(position);
            return Ok(self.units((last - position) as u128 + 1));
        }
        Err(self.not_start(address))
    }

    #[cold]
    pub(super) fn not_start(&self, address: u64) -> Error {
        let inside = self.lookup(address).map(|found| (found.start, found.size));
        Error::NotAllocated { address, inside }
    }

    /// Frees every address of `addresses`, or none, and names the first that is not an
    /// allocation's start.
    ///
    /// A batch in random order is sorted first, so that what lies together in the metadata is
    /// freed together: each cache line is waited for once, and a row is told of once. Recent blocks go
    /// back to the tree first, also where nothing is freed in the end.
    pub fn free_many(&mut self, addresses: &[u64]) -> Result<(), Error> {
        self.tree.settle();
        let pinned = self.descriptors.as_ref().is_some_and(|descriptors| descriptors.has_pins());
        if pinned {
            addresses.iter().try_for_each(|&address| self.must_not_be_pinned(address))?;
        }
        let mut freed = Vec::new();
        let done = if addresses.is_sorted() {
            self.free_ascending(addresses, &mut freed)
        } else {
            let mut sorted = with_room(addresses.len())?;
            sorted.extend_from_slice(addresses);
            sorted.sort_unstable();
            self.free_ascending(&sorted, &mut freed)
        };
        let refused = match done {
            Ok(true) => None,
            Ok(false) => {
                self.undo(&mut freed);
                self.first_wrong(addresses, &mut freed)
            }
            Err(error) => Some(error),
        };
        if let Some(error) = refused {
            self.undo(&mut freed);
            return Err(match error {
                Error::NotAllocated { address, .. } => self.not_start(address),
                other => other,
            });
        }
        if self.descriptors.is_some() || !self.retired.is_empty() {
            for (first, last) in freed.iter().flat_map(Freed::allocations) {
                self.withdraw(first, last);
                self.undescribe(first);
            }
        }
        Ok(())
    }

    /// Frees addresses one by one until one is not a start, and says which.
    fn first_wrong(&mut self, addresses: &[u64], freed: &mut Vec<Freed>) -> Option<Error> {
        for &address in addresses {
            match self.free_ascending(&[address], freed) {
                Ok(true) => {}
                Ok(false) => return Some(Error::NotAllocated { address, inside: None }),
                Err(error) => return Some(error),
            }
        }
        None
    }

    /// Frees addresses that ascend, adding what was freed to `freed`; false where it came upon one
    /// that is not a start, or is there twice.
    fn free_ascending(&mut self, addresses: &[u64], freed: &mut Vec<Freed>) -> Result<bool, Error> {
        let mut rest = addresses;
        while let Some(&address) = rest.first() {
            let Some(first) = self.position(address) else { return Ok(false) };
            // Those in the same row, as bits.
            let (mut heads, mut count) = (0u64, 0);
            while let Some(&address) = rest.get(count)
                && let Some(position) = self.position(address)
                && position >> ROW_ORDERS == first >> ROW_ORDERS
            {
                let bit = 1 << (position & 63);
                if heads & bit != 0 {
                    return Ok(false);
                }
                heads |= bit;
                count += 1;
            }
            freed.room(count)?;
            if let Some(row) = self.tree.free_together(first & !low_bits(ROW_ORDERS), heads) {
                freed.push(row);
            } else {
                for &address in &rest[..count] {
                    let position = self.position(address).expect("it was looked at");
                    let Some(last) = self.tree.free(position, false) else { return Ok(false) };
                    freed.push(Freed::one(position, last));
                }
            }
            rest = &rest[count..];
        }
        Ok(true)
    }

    /// Allocates again what was freed: the same allocations as before.
    fn undo(&mut self, freed: &mut Vec<Freed>) {
        for (first, last) in freed.drain(..).flat_map(|row| row.allocations()) {
            self.tree.occupy(first, last);
        }
    }

    /// Frees the granules of a range wherever they lie: parts of allocations, or many of them. If
    /// any is not allocated, nothing is freed.
    ///
    /// What is left of an allocation that loses its middle is two allocations.
    pub fn free_range(&mut self, start: u64, size: u128) -> Result<(), Error> {
        let range = self.range("start", start, size)?;
        let not_allocated = |address| Err(Error::NotAllocated { address, inside: None });
        let Some(first) = self.position(start) else { return not_allocated(start) };
        let last = first as u128 + (range.end - range.start) - 1;
        let mut at = first;
        loop {
            let found = self.tree.allocation(at);
            let found = found.filter(|&(first, _)| !self.tree.head.is_recent(first));
            let Some((start, used)) = found else { return not_allocated(self.address(at)) };
            if self.descriptors.is_some() {
                self.must_not_be_pinned(self.address(start))?;
            }
            if used as u128 >= last {
                break;
            }
            if used == self.last {
                return not_allocated(self.address(used) + self.granule());
            }
            at = used + 1;
        }
        let last = last as u64;
        self.tree.ensure_detail(2)?;
        // What is left behind the range keeps the descriptor; of what is left before it, it is
        // already.
        let goes_on =
            last < self.last && self.tree.state(last + 1) == (State::Used { head: false });
        if goes_on {
            let whole = (self.tree.first(last), self.tree.last(last));
            self.describe_alike(whole, last + 1)?;
        }
        if !self.tree.is_start(first) {
            self.cut_short((self.tree.first(first), self.tree.last(first)), first);
            self.tree.split(first);
        }
        if goes_on {
            self.tree.split(last + 1);
        }
        let mut at = first;
        loop {
            let freed = self.tree.free(at, false).expect("an allocation starts here");
            if !self.retired.is_empty() {
                self.withdraw(at, freed);
            }
            self.undescribe(at);
            if freed == last {
                return Ok(());
            }
            at = freed + 1;
        }
    }

    /// Cuts the allocation that starts at `address` in two, the first of `size`.
    pub fn split(&mut self, address: u64, size: u128) -> Result<(), Error> {
        let Some(whole) = self.lookup(address).filter(|found| found.start == address) else {
            return Err(self.not_start(address));
        };
        if size == 0 || size >= whole.size || size & low_bits(self.shift) as u128 != 0 {
            let granule = self.granule();
            let expected = format_args!(
                "a multiple of the granule {granule} between 0 and the allocation's size {}",
                whole.size
            );
            return Err(Error::argument("size", size, expected));
        }
        self.must_not_be_pinned(address)?;
        self.tree.ensure_detail(1)?;
        let (first, _) = self.positions(&self.granules(address, size));
        let second = first + (size >> self.shift) as u64;
        let (_, last) = self.positions(&self.granules(address, whole.size));
        self.describe_alike((first, last), second)?;
        self.cut_short((first, last), second);
        self.tree.split(second);
        Ok(())
    }
}
