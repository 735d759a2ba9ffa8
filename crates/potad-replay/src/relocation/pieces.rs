//! Where the allocations of a trace lie, when they move and come apart.
//!
//! A trace frees by slot, and parts of slots; an allocator moves pages. So each slot has its **pieces**:
//! naturally aligned blocks, at first the allocation itself, then what is left of it when parts of it are
//! freed or moved. From a page leads a table to the slot whose piece lies there.

use std::ops::Range;

use super::relocator::{Move, remainder};
use crate::fallible::{extend, filled, push};
use crate::stop::{Interrupts, OutOfMemory, Stop};

/// A live block that is an allocation or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub page: u32,
    pub order: u32,
    /// Its distance from the allocation's start, when that was whole.
    pub offset: u32,
}

impl Piece {
    pub fn pages(&self) -> Range<u32> {
        self.page..self.page + (1 << self.order)
    }

    /// The part of the piece that lies at these pages.
    fn part(&self, page: u32, order: u32) -> Piece {
        Piece { page, order, offset: self.offset + (page - self.page) }
    }
}

/// What freeing a part of a slot's memory comes to, piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    /// All of a piece.
    Whole(Piece),
    /// The second, a part of the first.
    Part(Piece, Piece),
}

#[derive(Clone, Default)]
struct Slot {
    movable: bool,
    pieces: Vec<Piece>,
}

/// Of no further use after a call that was refused memory.
pub(crate) struct Pieces {
    slots: Vec<Slot>,
    /// For each page the number of the slot whose piece lies there plus 1, or 0.
    slot_of: Vec<u32>,
}

impl Pieces {
    pub fn new(slots: u32, pages: u64, interrupts: &mut Interrupts<'_>) -> Result<Pieces, Stop> {
        Ok(Pieces {
            slots: filled(Slot::default(), slots as usize, interrupts)?,
            slot_of: filled(0, pages as usize, interrupts)?,
        })
    }

    /// A new allocation, in a slot that has none.
    pub fn put(
        &mut self,
        slot: u32,
        page: u32,
        order: u32,
        movable: bool,
    ) -> Result<(), OutOfMemory> {
        let piece = Piece { page, order, offset: 0 };
        self.mark(piece, slot + 1);
        let slot = &mut self.slots[slot as usize];
        debug_assert!(slot.pieces.is_empty());
        slot.movable = movable;
        push(&mut slot.pieces, piece)
    }

    /// Takes out the 2^`order` pages from `offset` on of a slot's allocation: of which pieces they
    /// are all or a part. None where the allocation failed.
    pub fn take(&mut self, slot: u32, offset: u32, order: u32) -> Result<Vec<Freed>, OutOfMemory> {
        let end = offset + (1 << order);
        let pieces = &mut self.slots[slot as usize].pieces;
        let mut freed = Vec::new();
        let mut left = Vec::new();
        for piece in pieces.drain(..) {
            // Two aligned blocks lie one in the other, or apart.
            let piece_end = piece.offset + (1 << piece.order);
            if (offset..end).contains(&piece.offset) && piece_end <= end {
                push(&mut freed, Freed::Whole(piece))?;
            } else if (piece.offset..piece_end).contains(&offset) {
                let part = piece.part(piece.page + (offset - piece.offset), order);
                let rest = remainder(piece.page, piece.order, part.page, order);
                extend(&mut left, rest.map(|(page, order)| piece.part(page, order)))?;
                push(&mut freed, Freed::Part(piece, part))?;
            } else {
                push(&mut left, piece)?;
            }
        }
        *pieces = left;
        for &freed in &freed {
            let (Freed::Whole(gone) | Freed::Part(_, gone)) = freed;
            self.mark(gone, 0);
        }
        Ok(freed)
    }

    /// A piece, or a part of one, was moved.
    pub fn moved(&mut self, Move { old, new, order }: Move) -> Result<(), OutOfMemory> {
        let slot = self.slot_of[old as usize].checked_sub(1).expect("only what is live is moved");
        let pieces = &mut self.slots[slot as usize].pieces;
        let place = pieces
            .iter()
            .position(|piece| piece.pages().contains(&old))
            .expect("the table names the slot of a piece");
        let piece = pieces.swap_remove(place);
        let rest = remainder(piece.page, piece.order, old, order);
        extend(pieces, rest.map(|(page, order)| piece.part(page, order)))?;
        let gone = piece.part(old, order);
        push(pieces, Piece { page: new, ..gone })?;
        self.mark(gone, 0);
        self.mark(Piece { page: new, ..gone }, slot + 1);
        Ok(())
    }

    /// The piece that a page lies in, its slot, and whether it is movable.
    pub fn over(&self, page: u32) -> Option<(u32, Piece, bool)> {
        let slot = self.slot_of[page as usize].checked_sub(1)?;
        let Slot { movable, pieces } = &self.slots[slot as usize];
        let piece = pieces.iter().find(|piece| piece.pages().contains(&page));
        piece.map(|&piece| (slot, piece, *movable))
    }

    /// All movable pieces and their slots.
    pub fn movable(&self) -> impl Iterator<Item = (u32, Piece)> {
        let slots = (0..).zip(&self.slots).filter(|(_, slot)| slot.movable);
        slots.flat_map(|(number, slot)| slot.pieces.iter().map(move |&piece| (number, piece)))
    }

    fn mark(&mut self, piece: Piece, slot: u32) {
        let pages = piece.pages();
        self.slot_of[pages.start as usize..pages.end as usize].fill(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug)]
    enum Action {
        /// Free this part of the slot's 16 pages: order and place among the parts of that order.
        Take(u32, u32),
        /// Move the piece over a page, or a part of it, to free pages.
        Move(u32, u32),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let take = (0_u32..5, 0_u32..16).prop_map(|(order, place)| Action::Take(order, place));
        let moved = (0_u32..16, 0_u32..5).prop_map(|(page, order)| Action::Move(page, order));
        prop::collection::vec(prop_oneof![1 => take, 3 => moved], 1..40)
    }

    proptest! {
        /// Against a map from each page of the allocation to where it lies.
        #[test]
        fn as_a_map_of_single_pages(actions in actions()) {
            let mut pieces = Pieces::new(3, 4096, &mut Interrupts::none()).unwrap();
            pieces.put(1, 16, 4, true).unwrap();
            let mut place: BTreeMap<u32, u32> = (0..16).map(|offset| (offset, 16 + offset)).collect();
            // Never used before: so where a block moves to is always free.
            let mut next = 32;
            for action in actions {
                match action {
                    Action::Take(order, at) => {
                        let offset = (at << order) % 16;
                        let expected: Vec<u32> =
                            (offset..offset + (1 << order)).filter_map(|o| place.remove(&o)).collect();
                        let mut freed: Vec<u32> = Vec::new();
                        for part in pieces.take(1, offset, order).unwrap() {
                            match part {
                                Freed::Whole(piece) => freed.extend(piece.pages()),
                                Freed::Part(piece, part) => {
                                    prop_assert!(piece.order > part.order);
                                    prop_assert!(piece.pages().contains(&part.page));
                                    freed.extend(part.pages());
                                }
                            }
                        }
                        freed.sort_unstable();
                        let mut sorted = expected;
                        sorted.sort_unstable();
                        prop_assert_eq!(freed, sorted);
                    }
                    Action::Move(offset, order) => {
                        let Some(&old) = place.get(&offset) else { continue };
                        let (slot, piece, movable) = pieces.over(old).unwrap();
                        prop_assert_eq!((slot, movable), (1, true));
                        let order = order.min(piece.order);
                        let old = old & !((1 << order) - 1);
                        next = u32::next_multiple_of(next, 1 << order);
                        pieces.moved(Move { old, new: next, order }).unwrap();
                        for page in place.values_mut() {
                            if (old..old + (1 << order)).contains(page) {
                                *page = next + (*page - old);
                            }
                        }
                        next += 1 << order;
                    }
                }
                let live: Vec<u32> =
                    (0..4096).filter(|&page| pieces.over(page).is_some()).collect();
                let mut expected: Vec<u32> = place.values().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(live, expected);
                for (_, piece) in pieces.movable() {
                    prop_assert_eq!(piece.page % (1 << piece.order), 0);
                    for (offset, page) in (piece.offset..).zip(piece.pages()) {
                        prop_assert_eq!(place.get(&offset), Some(&page));
                    }
                }
            }
        }
    }
}
