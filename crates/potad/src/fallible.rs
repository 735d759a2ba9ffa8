//! Growth that can fail, for this crate and those that build upon it.
//!
//! Rust's own `push`, `collect`, `format!` and `Box::new` end the process where it has no memory
//! left. A space must not: whatever a call needs, it asks for through these functions. Without it the
//! call returns [`Error::Metadata`] and changes nothing.
//!
//! Taking things out of a list or table needs no memory, and putting them in needs none after room
//! was reserved. One trap remains: a hash table from which as much was removed as is put in may have
//! to grow all the same, as a removed entry can leave a mark that takes its room. So a reservation
//! covers a number of insertions, not a number of entries.

use std::collections::HashMap;
use std::fmt::{self, Display, Write};
use std::hash::{BuildHasher, Hash};

use crate::error::Error;

/// The error for memory that could not be had.
#[cold]
pub fn no_memory(bytes: usize) -> Error {
    Error::Metadata { bytes }
}

/// Lists that grow or say why not.
pub trait Grow<T>: Sized {
    /// Reserves room for so many more items.
    fn room(&mut self, more: usize) -> Result<(), Error>;

    /// Appends an item.
    fn add(&mut self, item: T) -> Result<(), Error>;
}

impl<T> Grow<T> for Vec<T> {
    #[inline]
    fn room(&mut self, more: usize) -> Result<(), Error> {
        let bytes = |len: usize| len.saturating_add(more).saturating_mul(size_of::<T>());
        let reserved = self.try_reserve(more);
        reserved.map_err(|_| no_memory(bytes(self.len())))
    }

    #[inline]
    fn add(&mut self, item: T) -> Result<(), Error> {
        self.room(1)?;
        self.push(item);
        Ok(())
    }
}

/// An empty list with room for so many items, and no more.
pub fn with_room<T>(count: usize) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    let reserved = list.try_reserve_exact(count);
    reserved.map_err(|_| no_memory(count.saturating_mul(size_of::<T>())))?;
    Ok(list)
}

/// Reserves room in a hash table for so many insertions.
pub fn room_in_table<K: Eq + Hash, V, S: BuildHasher>(
    table: &mut HashMap<K, V, S>,
    more: usize,
) -> Result<(), Error> {
    let bytes = |len: usize| len.saturating_add(more).saturating_mul(size_of::<(K, V)>());
    let reserved = table.try_reserve(more);
    reserved.map_err(|_| no_memory(bytes(table.len())))
}

/// A list of all items of an iterator.
pub fn collect<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>, Error> {
    let mut list = with_room(items.size_hint().0)?;
    for item in items {
        list.add(item)?;
    }
    Ok(list)
}

/// A list of so many copies of an item.
pub fn repeat<T: Clone>(item: T, count: usize) -> Result<Vec<T>, Error> {
    let mut list = with_room(count)?;
    list.resize(count, item);
    Ok(list)
}

/// What a value is written as, for an error. Where there is no memory for all of it, it is cut off:
/// an error is not to turn into another one on its way.
#[cold]
pub fn text(value: impl Display) -> String {
    struct Text(String);
    impl Write for Text {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0.try_reserve(part.len()).map_err(|_| fmt::Error)?;
            self.0.push_str(part);
            Ok(())
        }
    }
    let mut text = Text(String::new());
    let _ = write!(text, "{value}");
    text.0
}
