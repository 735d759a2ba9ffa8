//! A space: spans of addresses, what is allocated in them, and what is out of service.
//!
//! This is the layer that speaks in address units and knows which addresses exist. It checks
//! arguments, turns addresses into positions of the [`Tree`], and sees to it that a call does all
//! it says or changes nothing: whatever can fail is asked first, and where that cannot be known
//! beforehand, what was done is undone, which brings the same allocations back; only recent blocks
//! (see `head`) may have become like any other free space.

mod alloc;
mod compact;
mod describe;
mod draft;
mod free;
mod relocate;
mod spans;

use std::ops::Range;

pub use describe::Described;
pub use relocate::{Call, Made, Move, Obstacle, Relocation, Why};

use crate::descriptor::Descriptors;
use crate::error::Error;
use crate::probe::{NoProbe, Probe};
use crate::ranges::Ranges;
use crate::run::Wanted;
use crate::tree::{SECTION_LEVEL, SECTION_SHIFT, Tree};
use crate::word::low_bits;

/// The addresses a call is confined to: from the first to the second, exclusive.
pub type Window = Option<(u64, u128)>;

/// What is known about an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its first address.
    pub start: u64,
    /// Its size in address units.
    pub size: u128,
}

/// A range of integers from which blocks and runs are allocated.
///
/// Sizes and addresses are in address units and multiples of the granule unless said otherwise;
/// sizes are `u128` because a space may hold all 2^64 addresses.
///
/// ```
/// let mut space = potad::Space::new(0, 1 << 30, 4096)?;
/// let block = space.alloc(1 << 20)?;
/// assert_eq!(block % (1 << 20), 0);
/// assert_eq!(space.lookup(block + 5000).unwrap().size, 1 << 20);
/// space.free(block)?;
/// # Ok::<(), potad::Error>(())
/// ```
pub struct Space<P: Probe = NoProbe> {
    pub(crate) tree: Tree<P>,
    /// log2 of the granule.
    shift: u32,
    /// Absolute granule number of position 0: a multiple of the tree's span.
    origin: u64,
    /// Highest position any span has had; positions beyond may have no metadata at all.
    last: u64,
    /// The address the space was made with.
    base: u64,
    /// What belongs to the space, in absolute granule numbers.
    pub(crate) spans: Ranges,
    /// What is out of service or will be when it is freed. Kept over `remove`, so that taking a
    /// span away and adding it again does not bring a bad granule back.
    pub(crate) retired: Ranges,
    /// Granules in spans.
    pub(crate) total: u128,
    /// Granules in spans that are retired and not in an allocation.
    pub(crate) absent: u128,
    /// Kinds, owners, records and pins; none until the space is told of the first.
    descriptors: Option<Descriptors>,
    /// Calls that move things, so far: see [`Call`].
    calls: u64,
}

const ADDRESS_END: u128 = 1 << 64;

impl Space<NoProbe> {
    /// A space of `size` address units from `base` on, both multiples of `granule`, a power of two.
    ///
    /// Takes the same few words of memory and the same time whatever the size; `size` may be 0,
    /// and `base + size` may be 2^64.
    pub fn new(base: u64, size: u128, granule: u64) -> Result<Self, Error> {
        Space::with_probe(base, size, granule, NoProbe)
    }
}

impl<P: Probe> Space<P> {
    /// The same as [`Space::new`], with a probe that sees each access to metadata.
    pub fn with_probe(base: u64, size: u128, granule: u64, probe: P) -> Result<Self, Error> {
        if !granule.is_power_of_two() {
            return Err(Error::argument("granule", granule, "a power of two"));
        }
        let shift = granule.trailing_zeros();
        if base & (granule - 1) != 0 {
            let expected = format_args!("a multiple of the granule {granule}");
            return Err(Error::argument("base", base, expected));
        }
        let span = Self::granules_of("size", base, size, shift)?;
        let (tree, origin, last) = Self::tree_for(&span, probe)?;
        let mut space = Space {
            tree,
            shift,
            origin,
            last,
            base,
            spans: Ranges::default(),
            retired: Ranges::default(),
            total: 0,
            absent: 0,
            descriptors: None,
            calls: 0,
        };
        if !span.is_empty() {
            space.admit(span)?;
        }
        Ok(space)
    }

    /// The absolute granule numbers of `size` units from `start` on.
    fn granules_of(
        name: &'static str,
        start: u64,
        size: u128,
        shift: u32,
    ) -> Result<Range<u128>, Error> {
        let granule = 1u128 << shift;
        if size & (granule - 1) != 0 {
            let expected = format_args!("a multiple of the granule {granule}");
            return Err(Error::argument(name, size, expected));
        }
        let end = start as u128 + size.min(ADDRESS_END + 1);
        if end > ADDRESS_END {
            let expected = format_args!(
                "at most {}, so that the range ends at or before 2^64",
                ADDRESS_END - start as u128
            );
            return Err(Error::argument(name, size, expected));
        }
        Ok(start as u128 >> shift..end >> shift)
    }

    /// A tree in which nothing is present, just large enough for `span`, with its origin and the
    /// last position of the span.
    fn tree_for(span: &Range<u128>, probe: P) -> Result<(Tree<P>, u64, u64), Error> {
        let (first, last) = Self::bounds(span);
        let top = Self::top_for(first, last, SECTION_LEVEL);
        let origin = first & !low_bits(6 * (top + 1));
        let last = last - origin;
        let rows = (top == SECTION_LEVEL).then_some((last >> 6) as usize + 1);
        let mut tree = Tree::new(top, rows, probe)?;
        tree.pool.expect(Self::lines_expected(span));
        Ok((tree, origin, last))
    }

    fn bounds(span: &Range<u128>) -> (u64, u64) {
        let first = span.start.min(ADDRESS_END - 1) as u64;
        (first, if span.is_empty() { first } else { (span.end - 1) as u64 })
    }

    /// Lines of metadata if all of `span` were used in single granules.
    fn lines_expected(span: &Range<u128>) -> usize {
        let sections = ((span.end - span.start) >> SECTION_SHIFT) + 2;
        usize::try_from(sections * 1120).unwrap_or(usize::MAX)
    }

    /// The lowest level at which one node spans both positions, with more room than they fill: a
    /// root is never free as a whole.
    fn top_for(first: u64, last: u64, at_least: u32) -> u32 {
        let mut top = at_least;
        loop {
            let span = low_bits(6 * (top + 1));
            let whole = first & span == 0 && last & span == span && span != u64::MAX;
            if first & !span == last & !span && !whole {
                return top;
            }
            top += 1;
        }
    }

    /// The probe.
    pub fn probe(&self) -> &P {
        &self.tree.pool.probe
    }

    /// The granule, in address units.
    pub fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// The address the space was made with.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Position of an address that is a multiple of the granule and may be in the space.
    #[inline(always)]
    fn position(&self, address: u64) -> Option<u64> {
        let position = (address >> self.shift).wrapping_sub(self.origin);
        (position <= self.last && address & low_bits(self.shift) == 0).then_some(position)
    }

    #[inline(always)]
    fn address(&self, position: u64) -> u64 {
        (self.origin + position) << self.shift
    }

    fn units(&self, granules: u128) -> u128 {
        granules << self.shift
    }

    /// Positions of a range of absolute granules inside the spans.
    fn positions(&self, granules: &Range<u128>) -> (u64, u64) {
        (granules.start as u64 - self.origin, (granules.end - 1) as u64 - self.origin)
    }

    fn granules(&self, start: u64, size: u128) -> Range<u128> {
        let end = start as u128 + size;
        start as u128 >> self.shift..end >> self.shift
    }

    /// Checks a named range: `start` and `size` multiples of the granule, `size` not 0, the end
    /// not beyond 2^64.
    fn range(
        &self,
        start_name: &'static str,
        start: u64,
        size: u128,
    ) -> Result<Range<u128>, Error> {
        if start & low_bits(self.shift) != 0 {
            let expected = format_args!("a multiple of the granule {}", self.granule());
            return Err(Error::argument(start_name, start, expected));
        }
        if size == 0 {
            return Err(Error::argument("size", size, "above 0"));
        }
        Self::granules_of("size", start, size, self.shift)
    }

    /// Positions a window leaves, first and last; `None` if it leaves nothing.
    fn window(&self, within: Window) -> Result<Option<(u64, u64)>, Error> {
        let Some((low, high)) = within else { return Ok(Some((0, self.last))) };
        if low as u128 > high || high > ADDRESS_END {
            let value = format_args!("({low}, {high})");
            let expected = "(low, high) with low <= high <= 2^64";
            return Err(Error::argument("within", value, expected));
        }
        let first = (low as u128).div_ceil(1 << self.shift).max(self.origin as u128);
        let end = (high >> self.shift).min(self.origin as u128 + self.last as u128 + 1);
        if first >= end {
            return Ok(None);
        }
        Ok(Some(((first - self.origin as u128) as u64, (end - 1 - self.origin as u128) as u64)))
    }

    /// Absolute granule number of position 0.
    pub(crate) fn origin_granule(&self) -> u128 {
        self.origin as u128
    }

    /// What of the space is out of service or will be, in absolute granules.
    pub(crate) fn retired_ranges(&self) -> impl Iterator<Item = Range<u128>> + '_ {
        self.spans.iter().flat_map(|span| self.retired.overlap(span))
    }

    /// Address units in all spans.
    pub fn size(&self) -> u128 {
        self.units(self.total)
    }

    /// Address units in allocations.
    pub fn used(&self) -> u128 {
        self.units(self.tree.used())
    }

    /// Address units that are free.
    pub fn available(&self) -> u128 {
        self.units(self.total - self.tree.used() - self.absent)
    }

    /// Live allocations.
    pub fn len(&self) -> u64 {
        self.tree.allocations()
    }

    /// Whether nothing is allocated.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the largest block that could be allocated now; 0 if nothing is free.
    pub fn largest_free(&mut self) -> u128 {
        self.tree.settle();
        self.tree.largest_order().map_or(0, |order| self.units(1 << order))
    }

    /// Sizes of maximal free blocks and how many there are of each, ascending.
    pub fn free_blocks(&mut self) -> impl Iterator<Item = (u128, u64)> + use<P> {
        let (counts, shift) = (self.count_blocks(), self.shift);
        let counts = (0u32..).zip(counts).filter(|&(_, count)| count != 0);
        counts.map(move |(order, count)| (1 << (order + shift), count))
    }

    fn count_blocks(&mut self) -> [u64; 65] {
        self.tree.settle();
        let mut counts = [0; 65];
        self.tree.count_blocks(&mut |order, blocks| counts[order as usize] += blocks as u64);
        counts
    }

    /// The share of free space that a block of `size` cannot use: 0 if all of it is in blocks at
    /// least that large, 1 if none is; 0 for a full space.
    pub fn unusable_free_index(&mut self, size: u128) -> Result<f64, Error> {
        let order = self.order("size", size)?;
        let counts = self.count_blocks();
        let sum = |from: u32| {
            (from..65).map(|order| (counts[order as usize] as u128) << order).sum::<u128>()
        };
        let free = sum(0);
        if free == 0 {
            return Ok(0.0);
        }
        let usable = if order > 64 { 0 } else { sum(order) };
        Ok((free - usable) as f64 / free as f64)
    }

    /// Bytes of metadata the space keeps.
    pub fn metadata_bytes(&self) -> usize {
        size_of::<Self>() + self.tree.pool.bytes() + self.descriptor_bytes()
    }

    /// Bytes of these that descriptors take.
    pub fn descriptor_bytes(&self) -> usize {
        self.descriptors.as_ref().map_or(0, |described| described.bytes())
    }

    /// The spans, ascending: start and size.
    pub fn spans(&self) -> impl Iterator<Item = (u64, u128)> + '_ {
        self.spans.iter().map(|span| self.range_of(span))
    }

    /// What is out of service or will be when freed, ascending: start and size.
    pub fn retired(&self) -> impl Iterator<Item = (u64, u128)> + '_ {
        self.retired_ranges().map(|range| self.range_of(range))
    }

    fn range_of(&self, granules: Range<u128>) -> (u64, u128) {
        ((granules.start as u64) << self.shift, self.units(granules.end - granules.start))
    }

    /// The allocation that `address` lies in, at its start or anywhere inside.
    #[inline]
    pub fn lookup(&self, address: u64) -> Option<Descriptor> {
        let position = self.position(address & !low_bits(self.shift))?;
        let found = self.tree.allocation(position)?;
        let (first, last) = Some(found).filter(|&(first, _)| !self.tree.head.is_recent(first))?;
        Some(Descriptor {
            start: self.address(first),
            size: self.units((last - first) as u128 + 1),
        })
    }

    /// The first allocation that starts at or after `address`.
    pub fn next_allocation(&self, address: u64) -> Option<Descriptor> {
        let granule = (address as u128).div_ceil(1 << self.shift);
        let from = granule.saturating_sub(self.origin as u128);
        let position = u64::try_from(from).ok().filter(|&from| from <= self.last)?;
        let mut first = self.tree.next_start(position)?;
        let mut last = self.tree.last(first);
        while self.tree.head.is_recent(first) {
            first = self.tree.next_start(last.checked_add(1)?)?;
            last = self.tree.last(first);
        }
        Some(Descriptor {
            start: self.address(first),
            size: self.units((last - first) as u128 + 1),
        })
    }

    /// Live allocations in address order.
    pub fn allocations(&self) -> impl Iterator<Item = Descriptor> + '_ {
        self.allocations_touching(0, ADDRESS_END)
    }

    /// Live allocations that touch a window, in address order. Each takes a search from the top of the
    /// tree, wherever it lies.
    pub fn allocations_within(
        &self,
        within: Window,
    ) -> Result<impl Iterator<Item = Descriptor> + '_, Error> {
        self.window(within)?;
        let (low, high) = within.unwrap_or((0, ADDRESS_END));
        Ok(self.allocations_touching(low, high))
    }

    fn allocations_touching(&self, low: u64, high: u128) -> impl Iterator<Item = Descriptor> + '_ {
        let mut next = self.lookup(low).or_else(|| self.next_allocation(low));
        std::iter::from_fn(move || {
            let found = next.filter(|found| (found.start.max(low) as u128) < high)?;
            let end = u64::try_from(found.start as u128 + found.size).ok();
            next = end.and_then(|end| self.next_allocation(end));
            Some(found)
        })
    }

    /// Maximal free ranges in address order: start and size.
    pub fn free_extents(&mut self) -> impl Iterator<Item = (u64, u128)> + '_ {
        let ranges = self.free_ranges(None, 1, 1);
        ranges.expect("any range has one address unit at any address")
    }

    /// Maximal free ranges in address order, cut to a window, in which a run of `min_size` at a multiple of
    /// `align` could be allocated: start and size of each. Nothing retired and nothing outside the spans is
    /// in them.
    ///
    /// Takes time in proportion to the ranges with room for half of that, however many others there are.
    pub fn free_ranges(
        &mut self,
        within: Window,
        min_size: u128,
        align: u128,
    ) -> Result<impl Iterator<Item = (u64, u128)> + '_, Error> {
        if min_size == 0 {
            return Err(Error::argument("min_size", min_size, "above 0"));
        }
        let (wanted, window) = self.run_wanted(min_size, align, within)?;
        self.tree.settle();
        let space = &*self;
        let wanted = wanted.zip(window);
        let wanted = wanted.map(|(wanted, (first, last))| Wanted { first, last, ..wanted });
        Ok(wanted.into_iter().flat_map(move |wanted| {
            let extents = space.tree.extents(wanted);
            let fits = move |&(first, last): &(u64, u64)| {
                wanted.start(first, last, wanted.align).is_some()
            };
            extents.filter(fits).map(|extent| space.stretch(extent))
        }))
    }
}
