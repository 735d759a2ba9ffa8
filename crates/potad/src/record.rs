//! The memory that records lie in: a piece that never moves, shared by the space and by whoever looks
//! at a record without copying it.
//!
//! Records are written from outside, through pointers handed out ([`Memory::record`]), while the
//! space may read or copy them. They are bytes without meaning to it, so whatever such a copy comes
//! to is a value it could have had; nothing of the space depends on one. What the space itself keeps
//! here, where an allocation starts, lies behind the record and is never handed out.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::error::Error;
use crate::fallible::no_memory;

/// What every record is aligned to.
pub(crate) const ALIGN: usize = 16;

/// Bytes behind each record for the start of its allocation.
const START: usize = size_of::<u64>();

/// Bytes before the first record, for the number of references to the piece. It is counted here and not
/// by an `Arc`, which cannot be made where there may be no memory.
const COUNT: usize = ALIGN;

const _: () = assert!(size_of::<AtomicUsize>() <= COUNT && align_of::<AtomicUsize>() <= ALIGN);

/// A reference to a piece of memory with records of one size, some of them in use, zero until they are
/// written. The last reference frees it.
pub(crate) struct Memory {
    /// The first record; dangling if there are none.
    bytes: NonNull<u8>,
    /// Bytes of all records: 0 for a reference to nothing.
    size: usize,
    /// From one record to the next: the record, what aligns the next, and `START`.
    stride: usize,
    record: usize,
}

// SAFETY: a `Memory` is the address of bytes that all its clones own together. All access through a
// shared reference is to records, by pointers, to starts, by the space that the caller has to itself,
// and to the count, which is atomic.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// No memory, and no records.
    pub(crate) const NONE: Memory =
        Memory { bytes: NonNull::dangling(), size: 0, stride: 0, record: 0 };

    /// Bytes that a record of so many takes.
    pub(crate) fn stride(record: usize) -> usize {
        (record + START).next_multiple_of(ALIGN)
    }

    /// Room for `count` records of so many bytes each, neither of them so many that it would not fit.
    pub(crate) fn new(record: usize, count: usize) -> Result<Self, Error> {
        let stride = Memory::stride(record);
        let size = stride * count;
        let layout = Memory::layout(size);
        // SAFETY: the layout has at least the bytes of the count.
        let piece = NonNull::new(unsafe { alloc_zeroed(layout) });
        let piece = piece.ok_or_else(|| no_memory(layout.size()))?;
        // SAFETY: the count lies at the start of the piece, and nobody else has it yet.
        unsafe { piece.cast::<AtomicUsize>().write(AtomicUsize::new(1)) };
        // SAFETY: within the piece.
        let bytes = unsafe { piece.add(COUNT) };
        Ok(Memory { bytes, size, stride, record })
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(COUNT + size, ALIGN).expect("a chunk is small")
    }

    /// The number of references to the piece, which must not be [`Memory::NONE`].
    fn count(&self) -> &AtomicUsize {
        // SAFETY: it lies before the first record and lives as long as this reference.
        unsafe { self.bytes.sub(COUNT).cast().as_ref() }
    }

    pub(crate) fn bytes(&self) -> usize {
        if self.size == 0 { 0 } else { COUNT + self.size }
    }

    #[inline(always)]
    fn at(&self, slot: usize) -> *mut u8 {
        assert!(slot * self.stride < self.size);
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

    /// Appends the bytes of a record, as they are now, to a list with room for them.
    pub(crate) fn read(&self, slot: usize, bytes: &mut Vec<u8>) {
        assert!(bytes.capacity() - bytes.len() >= self.record);
        // SAFETY: the record's own bytes, copied into the room behind those of the list.
        unsafe {
            bytes.as_mut_ptr().add(bytes.len()).copy_from(self.at(slot), self.record);
            bytes.set_len(bytes.len() + self.record);
        }
    }

    /// Bytes of each record.
    pub(crate) fn record_size(&self) -> usize {
        self.record
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        if self.size != 0 {
            self.count().fetch_add(1, Ordering::Relaxed);
        }
        let Memory { bytes, size, stride, record } = *self;
        Memory { bytes, size, stride, record }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // As in `Arc`: what others did with the bytes comes before they are freed.
        if self.size != 0 && self.count().fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: allocated with this layout, and this was the last reference.
            unsafe { dealloc(self.bytes.sub(COUNT).as_ptr(), Memory::layout(self.size)) }
        }
    }
}

/// A record that can be looked at and written in place. It keeps the bytes alive, and as long as it
/// has not been given back to the space they belong to no other allocation.
pub struct Record {
    memory: Memory,
    slot: usize,
    pub(crate) id: u32,
}

impl Record {
    pub(crate) fn new(memory: Memory, slot: usize, id: u32) -> Self {
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
        self.memory.record_size()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
