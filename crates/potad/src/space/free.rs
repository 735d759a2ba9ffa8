//! Freeing: whole allocations, many at once, ranges of granules; and cutting allocations in two.

use super::Space;
use crate::error::Error;
use crate::probe::Probe;
use crate::tree::State;
use crate::word::low_bits;

/// How many frees of a batch are looked at together before any is done: enough to keep all of a
/// core's outstanding misses busy, few enough that what was fetched is still there when used.
const FREE_AHEAD: usize = 64;

impl<P: Probe> Space<P> {
    /// Frees the allocation that starts at `address`; its size.
    #[inline]
    pub fn free(&mut self, address: u64) -> Result<u128, Error> {
        if let Some(position) = self.position(address)
            && let Some(last) = self.tree.free(position)
        {
            if !self.retired.is_empty() {
                self.withdraw(position, last);
            }
            return Ok(self.units((last - position) as u128 + 1));
        }
        Err(self.not_start(address))
    }

    #[cold]
    fn not_start(&self, address: u64) -> Error {
        let inside = self.lookup(address).map(|found| (found.start, found.size));
        Error::NotAllocated { address, inside }
    }

    /// Frees every address of `addresses`, or none, and names the first that is not an
    /// allocation's start.
    pub fn free_many(&mut self, addresses: &[u64]) -> Result<(), Error> {
        let mut freed: Vec<(u64, u64)> = Vec::new();
        if freed.try_reserve_exact(addresses.len()).is_err() {
            return Err(Error::Metadata { bytes: addresses.len() * size_of::<(u64, u64)>() });
        }
        for ahead in addresses.chunks(FREE_AHEAD) {
            // Loads that do not wait for each other: what follows finds its rows in the cache.
            let mut seen = 0;
            for &address in ahead {
                if let Some(position) = self.position(address) {
                    seen |= self.tree.glance(position);
                }
            }
            std::hint::black_box(seen);
            let mut rest = ahead;
            while let [address, behind @ ..] = rest {
                let together = self.in_one_row(rest);
                if let Some((row_first, heads)) = together
                    && self.tree.free_together(row_first, heads, &mut freed)
                {
                    rest = &rest[heads.count_ones() as usize..];
                    continue;
                }
                let position = self.position(*address);
                let last = position.and_then(|position| self.tree.free(position));
                let (Some(first), Some(last)) = (position, last) else {
                    for &(first, last) in freed.iter().rev() {
                        self.tree.occupy(first, last);
                    }
                    return Err(self.not_start(*address));
                };
                freed.push((first, last));
                rest = behind;
            }
        }
        if !self.retired.is_empty() {
            for (first, last) in freed {
                self.withdraw(first, last);
            }
        }
        Ok(())
    }

    /// How many of the first of some addresses lie in one row, none twice, if more than one does:
    /// the row's first position, and a bit for each.
    fn in_one_row(&self, addresses: &[u64]) -> Option<(u64, u64)> {
        let first = self.position(addresses[0])?;
        let mut heads = 1u64 << (first & 63);
        for &address in &addresses[1..] {
            let Some(position) = self.position(address) else { break };
            let bit = 1u64 << (position & 63);
            if position >> 6 != first >> 6 || heads & bit != 0 {
                break;
            }
            heads |= bit;
        }
        (heads.count_ones() > 1).then_some((first & !63, heads))
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
            if !matches!(self.tree.state(at), State::Used { .. }) {
                return not_allocated(self.address(at));
            }
            let used = self.tree.last(at);
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
        if !self.tree.is_start(first) {
            self.tree.split(first);
        }
        if last < self.last && self.tree.state(last + 1) == (State::Used { head: false }) {
            self.tree.split(last + 1);
        }
        let mut at = first;
        loop {
            let freed = self.tree.free(at).expect("an allocation starts here");
            if !self.retired.is_empty() {
                self.withdraw(at, freed);
            }
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
            let expected = format!(
                "a multiple of the granule {granule} between 0 and the allocation's size {}",
                whole.size
            );
            return Err(Error::argument("size", size, expected));
        }
        self.tree.ensure_detail(1)?;
        let (first, _) = self.positions(&self.granules(address, size));
        self.tree.split(first + (size >> self.shift) as u64);
        Ok(())
    }
}
