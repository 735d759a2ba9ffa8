//! Which allocations may be moved as things stand: a bit for each, at the granule it starts at.
//!
//! An allocation is *loose* while its kind is movable, nobody has pinned it and no move of it is under
//! way. Whoever chooses what to move reads 64 granules at a time, beside the row that says which of
//! them start allocations ([`window`](crate::window)); to ask for the descriptor of each would take a
//! hundred times as long.
//!
//! The bits of 4,096 granules are a *sheet*, and there is one only where a movable allocation starts
//! or is about to. So an allocation of any size costs one bit, and one that is not movable nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::error::Error;
use crate::fallible::{Grow, collect, no_memory, room_in_table};

/// Granules of a sheet, as a shift.
const SHEET_SHIFT: u32 = 12;

/// The bits of 64 rows.
pub(crate) type Bits = [u64; 64];

struct Sheet {
    bits: Bits,
    /// Movable allocations that start here, loose or not, and places kept for such.
    count: u32,
}

/// Sheets next to each other: those of neighbouring granules mostly are, as they are first used, so
/// that the processor foresees who reads them in order.
const BUNDLE: usize = 64;

#[derive(Default)]
pub(crate) struct Loose {
    /// Numbers of sheets, by absolute granule number, shifted.
    index: HashMap<u64, u32, BuildHasherDefault<Spread>>,
    bundles: Vec<Box<[Sheet; BUNDLE]>>,
    /// Sheets without a place kept; with room for all, since to give a place back must not need memory.
    unused: Vec<u32>,
}

/// Spreads small numbers over 64 bits.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing, see `descriptor`; tables take the low bits, where it spreads least.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn place(granule: u64) -> (usize, u64) {
    ((granule >> 6 & 63) as usize, 1 << (granule & 63))
}

impl Loose {
    fn at(&self, number: u32) -> &Sheet {
        &self.bundles[number as usize / BUNDLE][number as usize % BUNDLE]
    }

    fn at_mut(&mut self, number: u32) -> &mut Sheet {
        &mut self.bundles[number as usize / BUNDLE][number as usize % BUNDLE]
    }

    /// The number of the sheet of a granule, at which a place is kept.
    fn kept(&self, granule: u64) -> u32 {
        self.index[&(granule >> SHEET_SHIFT)]
    }

    /// Keeps a place for a movable allocation that starts, or will start, at a granule. It is not loose
    /// before that is said.
    pub(crate) fn keep(&mut self, granule: u64) -> Result<(), Error> {
        let key = granule >> SHEET_SHIFT;
        let number = match self.index.get(&key) {
            Some(&number) => number,
            None => self.new_sheet(key)?,
        };
        self.at_mut(number).count += 1;
        Ok(())
    }

    /// Makes sure that the next so many places, wherever they are, can be kept without memory.
    pub(crate) fn room(&mut self, places: usize) -> Result<(), Error> {
        room_in_table(&mut self.index, places)?;
        while self.unused.len() < places {
            self.new_bundle()?;
        }
        Ok(())
    }

    #[cold]
    fn new_sheet(&mut self, key: u64) -> Result<u32, Error> {
        room_in_table(&mut self.index, 1)?;
        if self.unused.is_empty() {
            self.new_bundle()?;
        }
        let number = self.unused.pop().expect("there is one now");
        self.index.insert(key, number);
        Ok(number)
    }

    fn new_bundle(&mut self) -> Result<(), Error> {
        let all = (self.bundles.len() + 1) * BUNDLE;
        self.unused.room(all - self.unused.len())?;
        let sheets = collect((0..BUNDLE).map(|_| Sheet { bits: [0; 64], count: 0 }))?;
        let bundle = sheets.try_into().map_err(|_| no_memory(size_of::<[Sheet; BUNDLE]>()))?;
        self.bundles.add(bundle)?;
        // The lowest is taken first.
        self.unused.extend((all - BUNDLE..all).rev().map(|number| number as u32));
        Ok(())
    }

    /// Gives a place back that was kept. Never needs memory.
    pub(crate) fn give(&mut self, granule: u64) {
        self.give_in(self.kept(granule), granule);
    }

    /// The movable allocation that started at a granule is gone, and with it its place.
    pub(crate) fn remove(&mut self, granule: u64) {
        let number = self.kept(granule);
        let (row, bit) = place(granule);
        self.at_mut(number).bits[row] &= !bit;
        self.give_in(number, granule);
    }

    fn give_in(&mut self, number: u32, granule: u64) {
        let sheet = self.at_mut(number);
        sheet.count -= 1;
        if sheet.count == 0 {
            self.index.remove(&(granule >> SHEET_SHIFT));
            self.unused.push(number);
        }
    }

    /// Says whether the movable allocation that starts at a granule is loose. Never needs memory.
    pub(crate) fn set(&mut self, granule: u64, loose: bool) {
        let (row, bit) = place(granule);
        let number = self.kept(granule);
        let bits = &mut self.at_mut(number).bits[row];
        *bits = if loose { *bits | bit } else { *bits & !bit };
    }

    /// Whether a loose allocation starts at a granule.
    pub(crate) fn get(&self, granule: u64) -> bool {
        let (row, bit) = place(granule);
        self.sheet(granule).is_some_and(|bits| bits[row] & bit != 0)
    }

    /// The bits of the 4,096 granules around one, if any place is kept there.
    pub(crate) fn sheet(&self, granule: u64) -> Option<&Bits> {
        self.index.get(&(granule >> SHEET_SHIFT)).map(|&number| &self.at(number).bits)
    }

    /// Bits that are set, and places that are kept.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.bundles.iter().flat_map(|bundle| bundle.iter()).fold(
            (0, 0),
            |(bits, places), sheet| {
                let ones: u32 = sheet.bits.iter().map(|row| row.count_ones()).sum();
                (bits + ones as u64, places + sheet.count as u64)
            },
        )
    }

    pub(crate) fn bytes(&self) -> usize {
        let each = size_of::<Sheet>() + size_of::<u32>();
        self.bundles.len() * BUNDLE * each + self.index.capacity() * 16
    }
}
