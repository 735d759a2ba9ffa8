//! The memory that records lie in: a piece that never moves, shared by the space and by whoever looks
//! at a record without copying it.
//!
//! Records are written from outside, through pointers handed out ([`Memory::record`]), while the
//! space may read or copy them. They are bytes without meaning to it, so whatever such a copy comes
//! to is a value it could have had; nothing of the space depends on one. What the space itself keeps
//! here, where an allocation starts, lies behind the record and is never handed out.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// What every record is aligned to.
pub(crate) const ALIGN: usize = 16;

/// Bytes behind each record for the start of its allocation.
const START: usize = size_of::<u64>();

/// Records of one size, some of them in use, zero until they are written.
pub struct Memory {
    bytes: NonNull<u8>,
    layout: Layout,
    /// From one record to the next: the record, what aligns the next, and `START`.
    stride: usize,
    record: usize,
}

// SAFETY: a `Memory` is the address of bytes that it owns. All access through a shared reference is
// to records, by pointers, and to starts, by the space that the caller has to itself.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// Bytes that a record of so many takes.
    pub(crate) fn stride(record: usize) -> usize {
        (record + START).next_multiple_of(ALIGN)
    }

    /// Room for `count` records of so many bytes each; `None` if there is no memory for them.
    pub(crate) fn new(record: usize, count: usize) -> Option<Self> {
        let stride = Memory::stride(record);
        let layout = Layout::from_size_align(stride * count, ALIGN).ok()?;
        // SAFETY: no layout here has no bytes, since a stride has some.
        let bytes = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Memory { bytes, layout, stride, record })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.layout.size()
    }

    #[inline(always)]
    fn at(&self, slot: usize) -> *mut u8 {
        assert!(slot * self.stride < self.layout.size());
        // SAFETY: it lies in the piece.
        unsafe { self.bytes.as_ptr().add(slot * self.stride) }
    }

    /// Where a record starts. Its bytes live as long as this piece does.
    pub(crate) fn record(&self, slot: usize) -> *mut u8 {
        self.at(slot)
    }

    #[inline(always)]
    fn start_at(&self, slot: usize) -> *mut u64 {
        // SAFETY: the last bytes of the slot, aligned to them as the stride is.
        unsafe { self.at(slot).add(self.stride - START).cast() }
    }

    /// First granule of the allocation that a record belongs to.
    #[inline(always)]
    pub(crate) fn start(&self, slot: usize) -> u64 {
        // SAFETY: see above; only the space reads and writes it.
        unsafe { self.start_at(slot).read() }
    }

    /// A record now belongs to the allocation that starts at this granule.
    pub(crate) fn set_start(&self, slot: usize, start: u64) {
        // SAFETY: see above.
        unsafe { self.start_at(slot).write(start) }
    }

    /// Makes a record zero.
    pub(crate) fn clear(&self, slot: usize) {
        // SAFETY: the record's own bytes.
        unsafe { self.at(slot).write_bytes(0, self.record) }
    }

    /// Makes a record what one of the same size is.
    pub(crate) fn copy(&self, slot: usize, from: &Memory, from_slot: usize) {
        assert_eq!(self.record, from.record);
        // SAFETY: two different records' own bytes.
        unsafe { self.at(slot).copy_from(from.at(from_slot), self.record) }
    }

    /// The bytes of a record, as they are now.
    pub(crate) fn read(&self, slot: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.record];
        // SAFETY: the record's own bytes.
        unsafe { bytes.as_mut_ptr().copy_from(self.at(slot), self.record) };
        bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) }
    }
}

/// A record that can be looked at and written in place. It keeps the bytes alive, and as long as it
/// has not been given back to the space they belong to no other allocation.
pub struct Record {
    memory: std::sync::Arc<Memory>,
    slot: usize,
    pub(crate) id: u32,
}

impl Record {
    pub(crate) fn new(memory: std::sync::Arc<Memory>, slot: usize, id: u32) -> Self {
        Record { memory, slot, id }
    }

    /// The record's first byte, aligned to 16.
    ///
    /// Others may write the bytes at any time.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.record(self.slot)
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.memory.record
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
