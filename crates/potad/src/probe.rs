//! The probe: a type parameter that sees every access to a space's metadata.
//!
//! How many cache lines an operation touches is a figure this allocator is judged by, so it is
//! counted where it happens and not estimated. A [`Space`](crate::Space) calls its probe with the
//! address of each word of metadata it reads or writes. The default, [`NoProbe`], does nothing and
//! has no size: a normal build contains neither the call nor a branch around it.

/// Sees every access to metadata.
pub trait Probe {
    /// Called with the address and the length in bytes of the metadata read or written.
    fn touch(&self, address: usize, bytes: usize);
}

/// The probe of a normal build: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    #[inline(always)]
    fn touch(&self, _address: usize, _bytes: usize) {}
}
