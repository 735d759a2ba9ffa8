//! Packing: whether things of given lengths fit into given gaps, and how.
//!
//! Blocks of powers of two fit if they fit largest first, whichever gap each takes: what is left is the
//! same number of blocks of every smaller order. Runs of any length are bin packing, which takes a
//! search in the worst case. This is that search, for when largest first has failed: gap by gap, every
//! order of things in it, each as far to the left as its alignment lets it (any packing can be pushed
//! together like that). It stops after so many steps, and so is exact for the few things that stand in
//! the way of a run mostly, and never takes long.

use crate::error::Error;
use crate::fallible::{Grow, collect, repeat};
use crate::run::Wanted;

/// Things beyond this number are not searched for: the search would not end in time.
pub(crate) const ITEMS_MAX: usize = 64;

/// Steps that all searches of one call may take.
pub(crate) const STEPS: u32 = 1 << 16;

/// What is to be packed, and what is done: things of one length and alignment are one class.
struct Packing<'a> {
    classes: Vec<(Wanted, Vec<usize>)>,
    gaps: &'a [(u64, u64)],
    /// Length of the gaps from each on.
    room: Vec<u128>,
    /// Of the things not placed yet.
    length: u128,
    placed: Vec<u64>,
    steps: &'a mut u32,
}

/// Where each of `items` goes: `gaps`, first and last positions, are disjoint, and filled in their order. `None` if
/// they do not fit, or `steps` ran out.
pub(crate) fn pack(
    items: &[Wanted],
    gaps: &[(u64, u64)],
    steps: &mut u32,
) -> Result<Option<Vec<u64>>, Error> {
    let Some(&(from, _)) = gaps.first().filter(|_| items.len() <= ITEMS_MAX) else {
        return Ok(None);
    };
    let mut classes: Vec<(Wanted, Vec<usize>)> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        match classes.iter_mut().find(|(of, _)| (of.length, of.align) == (item.length, item.align))
        {
            Some((_, members)) => members.add(at)?,
            None => classes.add((*item, collect(std::iter::once(at))?))?,
        }
    }
    classes.sort_unstable_by_key(|(of, _)| std::cmp::Reverse((of.length, of.align)));
    let mut room = repeat(0, gaps.len() + 1)?;
    for (at, &(first, last)) in gaps.iter().enumerate().rev() {
        room[at] = room[at + 1] + (last - first) as u128 + 1;
    }
    let length = items.iter().map(|item| item.length as u128).sum();
    let placed = repeat(0, items.len())?;
    let mut packing = Packing { classes, gaps, room, length, placed, steps };
    Ok(packing.fill(0, from).then_some(packing.placed))
}

impl Packing<'_> {
    /// Places what is left from a position of a gap on.
    fn fill(&mut self, gap: usize, from: u64) -> bool {
        if self.length == 0 {
            return true;
        }
        let (mut gap, mut from) = (gap, Some(from));
        while gap < self.gaps.len() && self.length <= self.room[gap] {
            if *self.steps == 0 {
                return false;
            }
            *self.steps -= 1;
            let last = self.gaps[gap].1;
            for class in 0..self.classes.len() {
                let (of, members) = &mut self.classes[class];
                let (length, align) = (of.length, of.align);
                if let Some(from) = from
                    && let Some(start) = of.start(from, last, align)
                    && let Some(item) = members.pop()
                {
                    self.placed[item] = start;
                    self.length -= length as u128;
                    let end = start.checked_add(length);
                    // At the very last position there is, the gap is full.
                    let done = match end.filter(|&end| end <= last) {
                        Some(end) => self.fill(gap, end),
                        None if gap + 1 < self.gaps.len() => {
                            self.fill(gap + 1, self.gaps[gap + 1].0)
                        }
                        None => self.length == 0,
                    };
                    if done {
                        return true;
                    }
                    self.length += length as u128;
                    self.classes[class].1.push(item);
                }
            }
            gap += 1;
            from = self.gaps.get(gap).map(|gap| gap.0);
        }
        false
    }
}
