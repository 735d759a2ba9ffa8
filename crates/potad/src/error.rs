//! What can go wrong, with the numbers a person needs to see why.

use std::fmt;

use crate::descriptor::HELD;
use crate::fallible::text;

/// Why there was no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Less is available than was asked for.
    Exhausted,
    /// Enough is available, but not in one piece that would do.
    Fragmented,
    /// The range that was named is not free, or not in the space.
    Occupied,
}

impl Reason {
    /// The word for it, as the Python exception's `reason` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Exhausted => "exhausted",
            Reason::Fragmented => "fragmented",
            Reason::Occupied => "occupied",
        }
    }
}

/// Why a call did nothing. Sizes and addresses are in address units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No free block or run would do.
    OutOfSpace {
        /// What was asked for, rounded up to granules.
        requested: u128,
        /// What is free altogether.
        available: u128,
        /// The largest free block.
        largest: u128,
        /// Why.
        reason: Reason,
        /// What would have had to be free, where it is not simply `requested`.
        detail: String,
    },
    /// The address is not the start of an allocation, or not in one.
    NotAllocated {
        /// The address.
        address: u64,
        /// Start and size of the allocation it lies inside, if it lies in one.
        inside: Option<(u64, u128)>,
    },
    /// The allocation is pinned, and so is not to be freed or changed.
    Busy {
        /// Where it starts.
        address: u64,
        /// How often it is pinned; `u32::MAX` where it is held while allocations are moved.
        pins: u32,
    },
    /// An argument makes no sense whatever the space holds.
    Argument {
        /// Its name in the call.
        name: &'static str,
        /// Its value, as text.
        value: String,
        /// What it would have to be.
        expected: String,
    },
    /// The process has no memory for the metadata, or for the list that was asked for.
    Metadata {
        /// How many bytes it would have taken.
        bytes: usize,
    },
    /// A recount disagrees with what the space keeps.
    Corrupt {
        /// What disagrees.
        what: String,
    },
}

impl Error {
    /// An argument that makes no sense. Where there is no memory for all of a text, it is cut off.
    pub fn argument(
        name: &'static str,
        value: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        Error::Argument { name, value: text(value), expected: text(expected) }
    }

    pub(crate) fn corrupt(what: impl fmt::Display) -> Self {
        Error::Corrupt { what: text(what) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::OutOfSpace { requested, available, largest, reason, detail } => {
                write!(
                    f,
                    "no room for {requested}: {}, {available} available, largest free block {largest}",
                    reason.as_str()
                )?;
                if detail.is_empty() { Ok(()) } else { write!(f, " ({detail})") }
            }
            Error::NotAllocated { address, inside: None } => {
                write!(f, "address {address:#x} is not in an allocation")
            }
            Error::NotAllocated { address, inside: Some((start, _)) } if address == start => {
                write!(f, "address {address:#x} is named twice")
            }
            Error::NotAllocated { address, inside: Some((start, size)) } => write!(
                f,
                "address {address:#x} is not the start of an allocation, \
                 but inside the one of {size} at {start:#x}"
            ),
            Error::Busy { address, pins: HELD } => {
                write!(f, "{address:#x} is held while allocations are moved")
            }
            Error::Busy { address, pins } => {
                write!(f, "the allocation at {address:#x} is pinned ")?;
                if *pins == 1 { f.write_str("once") } else { write!(f, "{pins} times") }
            }
            Error::Argument { name, value, expected } => {
                write!(f, "{name} must be {expected}, not {value}")
            }
            Error::Metadata { bytes } => {
                write!(f, "no memory for {bytes} bytes of metadata")
            }
            Error::Corrupt { what } => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}
