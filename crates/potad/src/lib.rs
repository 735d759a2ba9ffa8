//! A power-of-two allocator with descriptors, for any range of integers.
//!
//! # Terms
//!
//! A [`Space`] hands out ranges of *addresses*: bytes of memory or of a file, slots, prefixes, any
//! integers below 2^64. It never touches what it manages. The *granule* is the smallest amount it
//! hands out, a power of two of address units. An *order* is log2 of a size in granules. A *block*
//! is 2^order granules, aligned to its own size at its absolute address; a *run* is any contiguous
//! sequence of granules. An *allocation* is a block or a run, and a *descriptor* is what is known
//! about one, found from any address inside it and kept apart from what it describes. A *span* is a
//! range of addresses contributed to a space; spans need not adjoin. A granule that is *retired* is
//! out of service until it is restored.
//!
//! # Representation
//!
//! Two bits a granule say which granules are in use and where allocations start. 64 of them are a
//! row; over the rows stands a tree with 64 children to a node, in which one cache line sums up 64
//! rows. Free space is not on any list: it is what the bits leave, and neighbours that become free
//! are one larger block without anything being done. A child that is in one state as a whole has
//! nothing below it, so a space of any size is made of a few words, and so is a block of any size.
//! All this is indices in one flat array; descriptors, where a space has any, lie beside it.
//!
//! # Layers
//!
//! Each uses only what stands before it.
//!
//! - `word`: the free blocks of a row, read off 64 bits. `reach`: one line of a node.
//! - `pool`: the flat array of lines that nodes are made of. `head`: figures and shortcuts.
//! - `tree`: states of granules, and the one operation that changes them. `tell`: what the levels
//!   above hear of that. `walk`: reading them.
//! - `block`: which block an allocation takes, and what a free merges. `many`: the same for batches.
//!   `run`: contiguous searches.
//! - `ranges`: sorted sets of granules. `loose`: what may be moved. `record`, `descriptor`: kinds, owners,
//!   records and pins.
//! - `window`: which place for a run is the cheapest to empty. `pack`: whether what was there fits
//!   elsewhere.
//! - `space`: addresses, spans, arguments and errors.
//! - `check`: the recount of everything from the bits.
//!
//! # Limits
//!
//! Addresses are below 2^64; a space may have all of them. Metadata comes to at most 0.27 bytes a
//! granule in use, less where blocks are large, and never to more than 256 GiB; a descriptor takes its
//! record and 24 bytes at most where that is of 360. The crate has no I/O and no threads; a space is `Send` and `Sync`, and locking it is the caller's.

mod block;
mod check;
mod descriptor;
mod error;
pub mod fallible;
mod head;
mod loose;
mod many;
mod pack;
mod pool;
mod probe;
mod ranges;
mod reach;
mod record;
mod run;
mod space;
mod tell;
mod tree;
mod walk;
mod window;
mod word;

pub use descriptor::{Kind, Label, RECORD_MAX};
pub use error::{Error, Reason};
pub use probe::{NoProbe, Probe};
pub use record::Record;
pub use run::Fit;
pub use space::{
    Call, Described, Descriptor, Made, Move, Obstacle, Relocation, Space, Why, Window,
};
