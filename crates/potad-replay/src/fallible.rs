//! Growth that may be refused, where the standard library's own would end the process.

use std::alloc::{Layout, alloc};
use std::io;

use serde::Serialize;

use crate::stop::{Interrupts, OutOfMemory, Stop};

/// Elements that are written between two looks at the caller.
const PART: usize = 1 << 16;

/// Adds an element.
#[inline]
pub(crate) fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), OutOfMemory> {
    if list.len() == list.capacity() {
        list.try_reserve(1)?;
    }
    list.push(value);
    Ok(())
}

/// Adds all elements.
pub(crate) fn extend<T>(
    list: &mut Vec<T>,
    values: impl IntoIterator<Item = T>,
) -> Result<(), OutOfMemory> {
    values.into_iter().try_for_each(|value| push(list, value))
}

/// So many copies of a value.
pub(crate) fn filled<T: Clone>(
    value: T,
    len: usize,
    interrupts: &mut Interrupts<'_>,
) -> Result<Vec<T>, Stop> {
    let mut list = with_room(len)?;
    while list.len() < len {
        list.resize(len.min(list.len() + PART), value.clone());
        interrupts.after(PART as u64)?;
    }
    Ok(list)
}

/// Room for so many elements.
pub(crate) fn with_room<T>(len: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(len)?;
    Ok(list)
}

/// A copy.
pub(crate) fn copied<T: Copy>(list: &[T]) -> Result<Vec<T>, OutOfMemory> {
    let mut copy = with_room(list.len())?;
    copy.extend_from_slice(list);
    Ok(copy)
}

/// A value on the heap: `Box::try_new`, which is not stable.
#[allow(unsafe_code)]
pub(crate) fn boxed<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    const { assert!(size_of::<T>() > 0) };
    // SAFETY: the size is not zero.
    let at = unsafe { alloc(Layout::new::<T>()) }.cast::<T>();
    if at.is_null() {
        return Err(OutOfMemory);
    }
    // SAFETY: memory for a `T`, of the allocator that boxes are from, and nobody else's.
    unsafe {
        at.write(value);
        Ok(Box::from_raw(at))
    }
}

/// Plain data as JSON.
///
/// It is written twice, first only to learn its length: `serde_json` cannot pass on that a writer was
/// refused memory without needing some itself.
pub(crate) fn json(data: &impl Serialize) -> Result<String, OutOfMemory> {
    // Fails only for keys that are no text or number and for writers that fail: neither is here.
    const WRITTEN: &str = "plain data is written";
    let mut length = Length(0);
    serde_json::to_writer(&mut length, data).expect(WRITTEN);
    let mut json = with_room(length.0)?;
    serde_json::to_writer(&mut json, data).expect(WRITTEN);
    Ok(String::from_utf8(json).expect("JSON is text"))
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.0 += part.len();
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
