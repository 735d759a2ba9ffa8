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

/// Granules of a sheet, as a shift.
const SHEET_SHIFT: u32 = 12;

/// The bits of 64 rows.
pub(crate) type Bits = [u64; 64];

struct Sheet {
    bits: Bits,
    /// Movable allocations that start here, loose or not, and places kept for such.
    count: u32,
}

#[derive(Default)]
pub(crate) struct Loose {
    /// By absolute granule number, shifted.
    sheets: HashMap<u64, Box<Sheet>, BuildHasherDefault<Spread>>,
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
    /// Keeps a place for a movable allocation that starts, or will start, at a granule. It is not loose
    /// before that is said.
    pub(crate) fn keep(&mut self, granule: u64) -> Result<(), Error> {
        let key = granule >> SHEET_SHIFT;
        if let Some(sheet) = self.sheets.get_mut(&key) {
            sheet.count += 1;
            return Ok(());
        }
        if self.sheets.try_reserve(1).is_err() {
            return Err(Error::Metadata { bytes: size_of::<Sheet>() });
        }
        self.sheets.insert(key, Box::new(Sheet { bits: [0; 64], count: 1 }));
        Ok(())
    }

    /// Gives a place back that was kept. Never needs memory.
    pub(crate) fn give(&mut self, granule: u64) {
        let key = granule >> SHEET_SHIFT;
        let sheet = self.sheets.get_mut(&key).expect("the place was kept");
        sheet.count -= 1;
        if sheet.count == 0 {
            self.sheets.remove(&key);
            return;
        }
        let (row, bit) = place(granule);
        sheet.bits[row] &= !bit;
    }

    /// Says whether the movable allocation that starts at a granule is loose. Never needs memory.
    pub(crate) fn set(&mut self, granule: u64, loose: bool) {
        let sheet = self.sheets.get_mut(&(granule >> SHEET_SHIFT)).expect("the place was kept");
        let (row, bit) = place(granule);
        sheet.bits[row] = if loose { sheet.bits[row] | bit } else { sheet.bits[row] & !bit };
    }

    /// Whether a loose allocation starts at a granule.
    pub(crate) fn get(&self, granule: u64) -> bool {
        let (row, bit) = place(granule);
        self.sheet(granule).is_some_and(|bits| bits[row] & bit != 0)
    }

    /// The bits of the 4,096 granules around one, if any place is kept there.
    pub(crate) fn sheet(&self, granule: u64) -> Option<&Bits> {
        self.sheets.get(&(granule >> SHEET_SHIFT)).map(|sheet| &sheet.bits)
    }

    /// Bits that are set, and places that are kept.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.sheets.values().fold((0, 0), |(bits, places), sheet| {
            let ones: u32 = sheet.bits.iter().map(|row| row.count_ones()).sum();
            (bits + ones as u64, places + sheet.count as u64)
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.sheets.len() * (size_of::<Sheet>() + 16)
    }
}
