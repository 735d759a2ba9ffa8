//! Searching for a run: any contiguous sequence of free granules.
//!
//! A run of `n` granules need not start or end where a free block does, but it cannot avoid
//! containing one: among any `2^(j+1) - 1` consecutive granules there are `2^j` aligned ones. So
//! every place a run of `n` could be is found by going through the maximal free blocks of at least
//! that order `j`, which the tree enumerates without looking at smaller ones, and reading off how
//! far the free space around each reaches on both sides. That makes the search complete, and
//! independent of how many holes too small to matter lie in the way.
//!
//! Where there is a choice, [`Fit::Aligned`] takes the start with the largest alignment, counted
//! up to the size rounded up to a power of two: a run of 8 MiB takes one block of 8 MiB if there
//! is one, else two adjacent ones of 4 MiB, and so on. It keeps a run from being cut out of the
//! middle of a block that something else could have used whole. A start of the best class begins a
//! free block of the largest power of two within `n`, so this class is searched first, by itself,
//! and almost always ends the search at once.

use crate::probe::Probe;
use crate::tree::Tree;
use crate::word::low_bits;

/// Which of several possible runs to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// The start with the largest alignment, up to the size rounded up to a power of two; of
    /// those the lowest.
    #[default]
    Aligned,
    /// The lowest address.
    First,
}

/// A run that is looked for. Lengths and alignments are in granules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) length: u64,
    /// Any number above 0: the start's absolute granule number is a multiple of it.
    pub(crate) align: u128,
    /// Absolute granule number of position 0.
    pub(crate) origin: u64,
    /// First and last position the run may cover.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Wanted {
    /// The lowest start at or after `from` that is a multiple of `align`, if the run then ends at
    /// or before `last`.
    pub(crate) fn start(&self, from: u64, last: u64, align: u128) -> Option<u64> {
        let absolute = (self.origin as u128 + from as u128).checked_next_multiple_of(align)?;
        let start = absolute - self.origin as u128;
        let end = start.checked_add(self.length as u128 - 1)?;
        (end <= last as u128).then_some(start as u64)
    }

    /// `align` and a multiple of `2^order` at once.
    fn align_to(&self, order: u32) -> u128 {
        self.align << order.saturating_sub(self.align.trailing_zeros())
    }
}

/// Every order from `order` up.
fn at_least(order: u32) -> u128 {
    u128::MAX << order
}

impl<P: Probe> Tree<P> {
    /// The free run that `fit` prefers, if there is any at all.
    pub(crate) fn find_run(&self, wanted: &Wanted, fit: Fit) -> Option<u64> {
        // Classes of alignment, 2^0 to 2^best.
        let best = 64 - (wanted.length - 1).leading_zeros();
        if wanted.last < wanted.first || wanted.last - wanted.first < wanted.length - 1 {
            return None;
        }
        match fit {
            Fit::First => self.find_first(wanted),
            Fit::Aligned if best == 0 => self.find_first(wanted),
            Fit::Aligned => {
                self.find_best_class(wanted, best).or_else(|| self.find_lower_class(wanted, best))
            }
        }
    }

    fn find_first(&self, wanted: &Wanted) -> Option<u64> {
        self.extents(*wanted).find_map(|(first, last)| wanted.start(first, last, wanted.align))
    }

    /// The lowest run that starts at a multiple of its length rounded up to a power of two.
    fn find_best_class(&self, wanted: &Wanted, class: u32) -> Option<u64> {
        let align = wanted.align_to(class);
        let order = wanted.length.ilog2();
        let mut from = self.free_from(wanted.first);
        loop {
            let (block, found) = self.next_block(at_least(order), from)?;
            if block > wanted.last {
                return None;
            }
            if found < class && block & low_bits(class) != 0 {
                from = block.checked_add(1 << found)?;
                continue;
            }
            let last = self.free_to(block).min(wanted.last);
            if let Some(start) = wanted.start(block.max(wanted.first), last, align) {
                return Some(start);
            }
            from = last.checked_add(1)?;
        }
    }

    /// The best run of any lower class of alignment.
    fn find_lower_class(&self, wanted: &Wanted, class: u32) -> Option<u64> {
        let mut found = None;
        // Classes at or above this one would be better than what was found.
        let mut better = 0;
        for (first, last) in self.extents(*wanted) {
            let start = |order| wanted.start(first, last, wanted.align_to(order));
            if let Some((order, start)) =
                (better..class).rev().find_map(|order| start(order).map(|start| (order, start)))
            {
                found = Some(start);
                better = order + 1;
                if better == class {
                    break;
                }
            }
        }
        found
    }

    /// The maximal free ranges that could hold the run, cut to where it may be, ascending: all that do,
    /// and some that are a little too short or not aligned.
    pub(crate) fn extents(&self, wanted: Wanted) -> impl Iterator<Item = (u64, u64)> + '_ {
        // See above for runs that start anywhere; one that starts at a multiple of a power of two begins
        // with a block of that, or of the largest within its length.
        let anywhere = wanted.length.checked_add(1).map_or(63, |n| n.ilog2() - 1);
        let aligned = wanted.length.ilog2().min(wanted.align.trailing_zeros());
        let order = anywhere.max(aligned);
        let mut from = Some(self.free_from(wanted.first));
        // What is free of a row and was not given yet, where ranges of any length do: to look for each of
        // them from the top of the tree would take several times as long.
        let mut row = (0, 0);
        std::iter::from_fn(move || {
            if row.1 == 0 {
                let (block, _) = self.next_block(at_least(order), from?)?;
                if order != 0 || self.state_with_level(block).0 != 0 {
                    let last = self.free_to(block);
                    from = last.checked_add(1);
                    return Some((self.free_from(block), last));
                }
                let (used, head) = self.row(self.section(block), block);
                row = (block & !63, !(used | head) & u64::MAX << (block & 63));
            }
            let start = row.1.trailing_zeros();
            let length = (row.1 >> start).trailing_ones();
            let first = row.0 | start as u64;
            if start + length < 64 {
                row.1 &= u64::MAX << (start + length);
                // Where the search goes on if there is no more in the row.
                from = Some(row.0 | 63);
                return Some((first, first + (length - 1) as u64));
            }
            row.1 = 0;
            let last = self.free_to(first);
            from = last.checked_add(1);
            Some((first, last))
        })
        .take_while(move |&(first, _)| first <= wanted.last)
        .map(move |(first, last)| (first.max(wanted.first), last.min(wanted.last)))
    }

    /// First position of the free range that `position` lies in, or `position` if it is not free.
    pub(crate) fn free_from(&self, position: u64) -> u64 {
        self.previous_occupied(position).map_or(0, |occupied| occupied + 1)
    }
}
