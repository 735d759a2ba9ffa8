//! Kinds, owners, records and pins of allocations.
//!
//! Descriptors are found by the absolute granule that their allocation starts at, which stays what
//! it is when a space grows. The layers below know nothing of them.

use std::collections::HashMap;

use super::{ADDRESS_END, Space, Window};
use crate::descriptor::{Descriptors, HELD, Kind, Label};
use crate::error::Error;
use crate::fallible::{Grow, collect, room_in_table};
use crate::probe::Probe;
use crate::record::Record;
use crate::word::low_bits;

/// What is known about an allocation that has a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its first address.
    pub start: u64,
    /// Its size in address units.
    pub size: u128,
    /// What it is, and whose.
    pub label: Label,
    /// How often it is pinned.
    pub pins: u32,
    /// Whether it is no allocation of a caller's, but what is held while others are moved.
    pub held: bool,
}

impl<P: Probe> Space<P> {
    /// Makes a kind known whose allocations have records of so many bytes, 0 to 65,536, and may be moved
    /// or not.
    pub fn add_kind(&mut self, record: usize, movable: bool) -> Result<Kind, Error> {
        self.descriptors_mut()?.add_kind(record, movable)
    }

    /// Forgets a kind, and gives back what is kept for it. Where it is still needed, nothing is changed,
    /// and the answer is `false`: if an allocation is of the kind, a record of it is looked at, or the
    /// owner of one that was freed is still to be given by [`Space::take_released`].
    ///
    /// The next kind that is added may have the same number. Never needs memory; takes time in proportion
    /// to the allocations of the kind that there were at once.
    pub fn remove_kind(&mut self, kind: Kind) -> bool {
        self.descriptors.as_mut().is_some_and(|descriptors| descriptors.remove_kind(kind))
    }

    pub(super) fn descriptors_mut(&mut self) -> Result<&mut Descriptors, Error> {
        match &mut self.descriptors {
            Some(descriptors) => Ok(descriptors),
            none => Ok(none.insert(Descriptors::new()?)),
        }
    }

    /// Absolute granule of an address of the space.
    pub(super) fn granule_at(&self, address: u64) -> u64 {
        address >> self.shift
    }

    /// Allocates a block as [`Space::alloc_within`] does, with a kind and an owner. Its record is zero.
    pub fn alloc_described(
        &mut self,
        size: u128,
        within: Window,
        label: Label,
    ) -> Result<u64, Error> {
        self.must_know(label)?;
        let address = self.alloc_within(size, within)?;
        let start = self.granule_at(address);
        if label != Label::default()
            && let Err(error) = self.add_block_descriptor(start, label, size)
        {
            self.free(address).expect("it was just allocated");
            return Err(error);
        }
        Ok(address)
    }

    fn must_know(&self, label: Label) -> Result<(), Error> {
        let Some(kind) = label.kind else { return Ok(()) };
        match &self.descriptors {
            Some(descriptors) if descriptors.knows(kind) => Ok(()),
            _ => Err(Error::argument("kind", kind.index(), "a kind of this space")),
        }
    }

    /// Gives the allocation that starts at `address`, and has no descriptor yet, a kind and an owner.
    /// Its record is zero. If it is moved, it starts at a multiple of `align` address units: what it was
    /// allocated with.
    ///
    /// To allocate a run with a descriptor, allocate, describe, and free what was allocated if that
    /// fails.
    pub fn describe(&mut self, address: u64, label: Label, align: u128) -> Result<(), Error> {
        if align == 0 || align > ADDRESS_END {
            return Err(Error::argument("align", align, "1 to 2^64"));
        }
        if label == Label::default() {
            return Ok(());
        }
        self.start_of(address)?;
        self.must_know(label)?;
        if self.pins(address) == HELD {
            return Err(Error::Busy { address, pins: HELD });
        }
        let start = self.granule_at(address);
        let align = self.align_in_granules(align);
        let descriptors = self.descriptors_mut()?;
        if descriptors.id(start).is_some() {
            return Err(Error::argument("address", address, "that of an allocation without any"));
        }
        descriptors.add(start, label, || align).map(drop)
    }

    /// Makes sure that the next [`Space::describe`], or the next block with a descriptor, needs no memory
    /// for that: for callers who cannot undo what they do before.
    pub fn make_room_to_describe(&mut self, label: Label, align: u128) -> Result<(), Error> {
        self.must_know(label)?;
        if label == Label::default() {
            return Ok(());
        }
        let align = self.align_in_granules(align);
        self.descriptors_mut()?.room(label, align)
    }

    /// The same of a block of at least `size`, which keeps to its own size.
    #[inline]
    fn add_block_descriptor(&mut self, start: u64, label: Label, size: u128) -> Result<(), Error> {
        let shift = self.shift;
        let align = || (((size - 1) >> shift) + 1).next_power_of_two();
        self.descriptors_mut()?.add(start, label, align).map(drop)
    }

    /// Whether an allocation starts at `address`; otherwise what there is.
    fn start_of(&self, address: u64) -> Result<(), Error> {
        match self.lookup(address) {
            Some(found) if found.start == address => Ok(()),
            _ => Err(self.not_start(address)),
        }
    }

    /// The allocation that `address` lies in, with what is known about it.
    pub fn lookup_described(&self, address: u64) -> Option<Described> {
        let found = self.lookup(address)?;
        Some(self.described(found.start, found.size))
    }

    /// What is known about the allocation that starts at `start` and has this size.
    pub fn described(&self, start: u64, size: u128) -> Described {
        let mut described =
            Described { start, size, label: Label::default(), pins: 0, held: false };
        if let Some(descriptors) = &self.descriptors {
            let granule = self.granule_at(start);
            described.label = descriptors.label_at(granule);
            match descriptors.pins(granule) {
                HELD => described.held = true,
                pins => described.pins = pins,
            }
        }
        described
    }

    /// What the allocation that starts at an address is, and whose, if it has a descriptor.
    #[inline]
    pub fn label_at(&self, start: u64) -> Label {
        let granule = self.granule_at(start);
        let label = self.descriptors.as_ref().map(|descriptors| descriptors.label_at(granule));
        label.unwrap_or_default()
    }

    /// Whether some of a range is retired.
    pub fn is_retiring(&self, start: u64, size: u128) -> bool {
        !self.retired.is_empty()
            && self.retired.overlap(self.granules(start, size)).next().is_some()
    }

    /// All live allocations of a kind, ascending by start.
    pub fn of_kind(&self, kind: Kind) -> Result<Vec<Described>, Error> {
        self.all_described(|descriptors, id| descriptors.label(id).kind == Some(kind))
    }

    /// All live allocations of an owner, ascending by start.
    pub fn of_owner(&self, owner: u32) -> Result<Vec<Described>, Error> {
        self.of_owners(|it| it == owner)
    }

    /// All live allocations of some owners, ascending by start.
    pub fn of_owners(&self, wanted: impl Fn(u32) -> bool) -> Result<Vec<Described>, Error> {
        self.all_described(|descriptors, id| wanted(descriptors.label(id).owner))
    }

    /// How many live allocations there are of each kind and owner, and how much they come to, most
    /// first. Takes time in proportion to the allocations.
    pub fn tally(&self) -> Result<Vec<(Label, u64, u128)>, Error> {
        let mut sums: HashMap<Label, (u64, u128)> = HashMap::new();
        for found in self.allocations() {
            room_in_table(&mut sums, 1)?;
            let sum = sums.entry(self.described(found.start, found.size).label).or_default();
            sum.0 += 1;
            sum.1 += found.size;
        }
        let mut tally =
            collect(sums.into_iter().map(|(label, (count, size))| (label, count, size)))?;
        tally.sort_unstable_by_key(|&(label, count, size)| {
            (std::cmp::Reverse((size, count)), label.kind.map_or(0, Kind::index), label.owner)
        });
        Ok(tally)
    }

    fn all_described(
        &self,
        wanted: impl Fn(&Descriptors, u32) -> bool,
    ) -> Result<Vec<Described>, Error> {
        let Some(descriptors) = &self.descriptors else { return Ok(Vec::new()) };
        let ids = descriptors.ids(None).filter(|&id| wanted(descriptors, id));
        let mut starts = collect(ids.map(|id| descriptors.start_of(id)))?;
        starts.sort_unstable();
        let lookup = |granule: u64| self.lookup_described(granule << self.shift);
        collect(
            starts.into_iter().map(|start| lookup(start).expect("descriptors are of allocations")),
        )
    }

    /// The bytes of the records of some allocations as they are now, one after the other; all must be
    /// starts of allocations of one kind.
    pub fn read_records(&self, starts: impl Iterator<Item = u64>) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let Some(descriptors) = &self.descriptors else { return Ok(bytes) };
        let mut ids = starts.filter_map(|start| descriptors.id(self.granule_at(start)));
        ids.try_for_each(|id| descriptors.read(id, &mut bytes))?;
        Ok(bytes)
    }

    /// The record of the allocation that starts at `address`, to be looked at and written in place,
    /// if it has one. To be given back by [`Space::look_away`]: until then its bytes belong to no
    /// other allocation, also when this one is freed.
    pub fn look(&mut self, address: u64) -> Result<Option<Record>, Error> {
        let granule = self.granule_at(address);
        let Some(descriptors) = &mut self.descriptors else { return Ok(None) };
        match descriptors.id(granule) {
            Some(id) if descriptors.label(id).kind.is_some() => descriptors.look(id).map(Some),
            _ => Ok(None),
        }
    }

    /// Gives back a record that was looked at.
    pub fn look_away(&mut self, record: Record) {
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.look_away(record);
        }
    }

    /// Calls `gone` with each owner that has lost its last allocation since this was last called.
    ///
    /// What was kept for allocations with owners is not used again before this is called.
    pub fn take_released(&mut self, gone: impl FnMut(u32)) {
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.take_released(gone);
        }
    }

    /// Whether an allocation with an owner was freed since.
    #[inline]
    pub fn has_released(&self) -> bool {
        self.descriptors.as_ref().is_some_and(|descriptors| descriptors.has_released())
    }

    // ---- pins ------------------------------------------------------------------------------

    /// Pins the allocation that `address` lies in once more: it is not freed, split or moved while
    /// it is pinned. How often it is pinned now.
    pub fn pin(&mut self, address: u64) -> Result<u32, Error> {
        let Some(found) = self.lookup(address) else { return Err(self.not_start(address)) };
        self.pin_all(&[found.start])?;
        Ok(self.pins(found.start))
    }

    /// Unpins the allocation that `address` lies in once. How often it is pinned now.
    pub fn unpin(&mut self, address: u64) -> Result<u32, Error> {
        let Some(found) = self.lookup(address) else { return Err(self.not_start(address)) };
        if self.pins(found.start) == HELD {
            return Err(Error::Busy { address: found.start, pins: HELD });
        }
        if self.pins(found.start) == 0 {
            let expected = "in an allocation that is pinned";
            return Err(Error::argument("address", format_args!("{address:#x}"), expected));
        }
        let granule = self.granule_at(found.start);
        Ok(self.descriptors_mut()?.unpin(granule))
    }

    /// Pins every allocation that a range touches, or none: their starts, ascending. Not all of the
    /// range need be allocated, but something.
    pub fn pin_range(&mut self, start: u64, size: u128) -> Result<Vec<u64>, Error> {
        let range = self.range("start", start, size)?;
        let end = range.end << self.shift;
        let mut starts = collect(self.lookup(start).map(|found| found.start).into_iter())?;
        let mut from = Some(start);
        while let Some(found) = from.and_then(|from| self.next_allocation(from))
            && (found.start as u128) < end
        {
            if starts.last() != Some(&found.start) {
                starts.add(found.start)?;
            }
            from = u64::try_from(found.start as u128 + found.size).ok();
        }
        if starts.is_empty() {
            return Err(Error::NotAllocated { address: start, inside: None });
        }
        self.pin_all(&starts)?;
        Ok(starts)
    }

    /// Pins allocations by their starts, all or none.
    fn pin_all(&mut self, starts: &[u64]) -> Result<(), Error> {
        if let Some(&most) = starts.iter().find(|&&start| self.pins(start) >= HELD - 1) {
            return Err(Error::Busy { address: most, pins: self.pins(most) });
        }
        let shift = self.shift;
        let descriptors = self.descriptors_mut()?;
        descriptors.ensure_pins(starts.len())?;
        for start in starts {
            descriptors.pin(start >> shift);
        }
        Ok(())
    }

    fn pins(&self, start: u64) -> u32 {
        if start & low_bits(self.shift) != 0 {
            return 0;
        }
        let granule = self.granule_at(start);
        self.descriptors.as_ref().map_or(0, |descriptors| descriptors.pins(granule))
    }

    /// Refuses what would change the allocation that starts at `start` if that is pinned.
    #[inline]
    pub(super) fn must_not_be_pinned(&self, start: u64) -> Result<(), Error> {
        match self.pins(start) {
            0 => Ok(()),
            pins => Err(Error::Busy { address: start, pins }),
        }
    }

    // ---- what other calls do to descriptors ------------------------------------------------

    /// The allocation that started at `position` has been freed.
    #[inline]
    pub(super) fn undescribe(&mut self, position: u64) {
        if let Some(descriptors) = &mut self.descriptors {
            descriptors.remove(self.origin + position);
        }
    }

    /// Says of what will start at `position`, inside the allocation `first..=last`, what is known of that.
    pub(super) fn describe_alike(
        &mut self,
        (first, last): (u64, u64),
        position: u64,
    ) -> Result<(), Error> {
        let (from, to) = (self.origin + first, self.origin + position);
        let Some(descriptors) = &mut self.descriptors else { return Ok(()) };
        let (whole, piece) = ((last - first) as u128 + 1, (last - position) as u128 + 1);
        let align = descriptors.align(from).unwrap_or(1);
        let kept = Self::piece_align(align, whole, piece, Some(to)).unwrap_or(0);
        descriptors.duplicate(from, to, 1 << kept).map(drop)
    }

    /// The allocation `first..=last` is about to end before `end`: it is not moved any more if it was
    /// about to be, and keeps to a smaller alignment, as its size does.
    pub(super) fn cut_short(&mut self, (first, last): (u64, u64), end: u64) {
        let from = self.origin + first;
        let Some(descriptors) = &mut self.descriptors else { return };
        let (whole, piece) = ((last - first) as u128 + 1, (end - first) as u128);
        descriptors.cut_short(from);
        if let Some(align) = descriptors.align(from)
            && let Some(kept) = Self::piece_align(align, whole, piece, None)
        {
            descriptors.set_align(from, kept);
        }
    }

    /// Recounts the descriptors.
    pub(crate) fn check_descriptors(&self) -> Result<(), Error> {
        let Some(descriptors) = &self.descriptors else { return Ok(()) };
        descriptors.check(|granule| {
            let address = granule << self.shift;
            self.lookup(address).is_some_and(|found| found.start == address)
        })
    }
}
