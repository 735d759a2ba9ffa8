//! The memory behind an arena: one anonymous mapping, and what of it is given back to the system.
//!
//! # Addresses
//!
//! The mapping starts at a multiple of the largest block that fits in it, and the space's addresses are
//! the real ones. So whatever is aligned in the space is aligned in memory, and a pointer is an address.
//!
//! # What is resident
//!
//! Memory is committed by the system when it is touched. It is given back when enough has been freed:
//! once [`KEPT_MIN`], or a sixteenth of what is in use if that is more, has become free since the
//! last time, all free ranges that have an aligned piece of [`PIECE`] in them are (`madvise`).
//! So what is resident is never more than what is in use, that much, and free ranges smaller than two
//! pieces. An arena that goes up and down by less than that makes no system call.

use std::ptr::NonNull;

use potad::Space;

/// Bytes that may be free and still resident, at least.
const KEPT_MIN: u128 = 4 << 20;

/// The same as a share of what is in use, as a shift: a sixteenth.
const KEPT_SHIFT: u32 = 4;

/// Free ranges without an aligned piece of so many bytes in them are not given back.
const PIECE: u128 = 64 << 10;

/// A huge page.
pub const HUGE: usize = 2 << 20;

/// Address space that is the process's alone, readable and writable.
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: it is the address of memory that it owns; who reads and writes that is not its concern.
unsafe impl Send for Mapping {}
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves so many bytes, a multiple of the page size, at a multiple of `align`, a power of two.
    /// Nothing is committed.
    pub fn new(size: usize, align: usize, huge: bool) -> std::io::Result<Self> {
        let too_large = || std::io::Error::from_raw_os_error(libc::ENOMEM);
        let reserved = size.checked_add(align).ok_or_else(too_large)?;
        // SAFETY: a new mapping, at an address that the system chooses.
        let all = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if all == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = (all as usize).next_multiple_of(align);
        // What is left on either side goes back.
        let (before, after) = (start - all as usize, all as usize + reserved - (start + size));
        // SAFETY: parts of the mapping that was just made, multiples of the page size.
        unsafe {
            if before != 0 {
                libc::munmap(all, before);
            }
            if after != 0 {
                libc::munmap((start + size) as *mut libc::c_void, after);
            }
        }
        let start = NonNull::new(start as *mut u8).ok_or_else(too_large)?;
        let mapping = Mapping { start, size };
        #[cfg(target_os = "linux")]
        if huge {
            // SAFETY: the whole mapping. Advice; a system without huge pages does without.
            unsafe { libc::madvise(start.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = huge;
        Ok(mapping)
    }

    pub fn start(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The bytes at an address, if so many of them from there on are in the mapping.
    pub fn at(&self, address: u64, size: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(address.checked_sub(self.start())?).ok()?;
        let inside = offset <= self.size && size <= self.size - offset;
        // SAFETY: it lies in the mapping.
        inside.then(|| unsafe { self.start.add(offset) })
    }

    /// Copies what an allocation holds to its new home.
    pub fn copy(&self, from: u64, to: u64, size: usize) {
        if let (Some(from), Some(to)) = (self.at(from, size), self.at(to, size)) {
            // SAFETY: both lie in the mapping. What moves is not pinned, so nobody looks at it through
            // this module; who writes through a bare pointer meanwhile has what they ask for.
            unsafe { to.copy_from(from, size) };
        }
    }

    /// Gives a range back to the system: it reads as zeros from now on.
    fn give_back(&self, start: u64, size: usize) {
        if let Some(at) = self.at(start, size) {
            // SAFETY: in the mapping, and nothing in it is in use. That it fails changes nothing.
            unsafe { libc::madvise(at.as_ptr().cast(), size, libc::MADV_DONTNEED) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody refers to any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// A mapping, and how much of it may be resident without being in use.
pub struct Memory {
    pub mapping: Mapping,
    /// The system's page, or a huge one.
    page: u64,
    /// The most that was in use at once since memory was last given back.
    most_used: u128,
}

impl Memory {
    pub fn new(mapping: Mapping, page: usize) -> Self {
        Memory { mapping, page: page as u64, most_used: 0 }
    }

    /// What free ranges are made of that are given back: the smallest.
    pub fn piece(&self) -> u64 {
        self.page.max(PIECE as u64)
    }

    /// Gives memory back if enough of it has become free.
    #[inline]
    pub fn settle(&mut self, space: &mut Space) {
        let used = space.used();
        if used >= self.most_used {
            self.most_used = used;
        } else if self.most_used - used > KEPT_MIN.max(used >> KEPT_SHIFT) {
            self.trim(space);
        }
    }

    /// Whether all of a range is in the mapping.
    pub fn covers(&self, start: u64, size: u128) -> bool {
        usize::try_from(size).is_ok_and(|size| self.mapping.at(start, size).is_some())
    }

    /// Gives back all whole pages of a range, of which nothing is in use.
    pub fn give_back(&self, start: u64, size: u128) {
        let first = start.next_multiple_of(self.page);
        let end = (start as u128 + size) as u64 & !(self.page - 1);
        if end > first {
            self.mapping.give_back(first, (end - first) as usize);
        }
    }

    /// Gives back everything, of which nothing is in use.
    pub fn give_all_back(&self) {
        self.mapping.give_back(self.mapping.start(), self.mapping.size);
    }

    /// Gives back all free memory that is worth it.
    #[cold]
    pub fn trim(&mut self, space: &mut Space) {
        self.most_used = space.used();
        let ranges = space.free_ranges(None, PIECE, PIECE);
        for (start, size) in ranges.expect("it is a size and an alignment") {
            self.give_back(start, size);
        }
    }
}
