//! Lists that say when there is no memory for them.

use potad::Error;

/// Makes room for so many more elements.
pub fn reserve<T>(list: &mut Vec<T>, more: usize) -> Result<(), Error> {
    let bytes = || size_of::<T>().saturating_mul(list.len().saturating_add(more));
    let no_memory = Error::Metadata { bytes: bytes() };
    list.try_reserve(more).map_err(|_| no_memory)
}

/// An empty list with room for so many elements, and no more.
pub fn room<T>(count: usize) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    let bytes = size_of::<T>().saturating_mul(count);
    list.try_reserve_exact(count).map_err(|_| Error::Metadata { bytes })?;
    Ok(list)
}

/// A copy of a list.
pub fn copy<T: Copy>(list: &[T]) -> Result<Vec<T>, Error> {
    let mut copy = room(list.len())?;
    copy.extend_from_slice(list);
    Ok(copy)
}

/// A list of what an iterator gives.
pub fn gather<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    for item in items {
        reserve(&mut list, 1)?;
        list.push(item);
    }
    Ok(list)
}

/// A list of what an iterator gives, whose length is known.
pub fn collect<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, Error> {
    let mut list = room(items.len())?;
    list.extend(items);
    Ok(list)
}
