//! The allocators a replay can be run through, by name.
//!
//! Each is a type with a family of allocators: one for each probe, so that the timed passes run code
//! without a probe in it and the counting pass the same code with one.

use potad::Probe;

use crate::allocator::PageAllocator;
use crate::error::BuildError;
use crate::first_fit::FirstFit;
use crate::linux_buddy::LinuxBuddy;
use crate::potad_space::{self, PotadSpace};
use crate::stop::Interrupts;

/// Metadata up to which the kernel's page structures are made resident beforehand: above, a memory
/// much larger than its trace would take the machine's own.
const POPULATE_BYTES_MAX: u64 = 1 << 30;

/// A family of allocators.
pub(crate) trait Contender: 'static {
    /// What a user calls it.
    const NAME: &'static str;
    /// What a report calls it.
    const TITLE: &'static str;
    /// The allocator with a probe.
    type With<P: Probe + Send + 'static>: PageAllocator + Send + 'static;

    /// An allocator of so many pages, all free.
    fn build<P: Probe + Send + 'static>(
        pages: u64,
        probe: P,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self::With<P>, BuildError>;

    /// The probe of an allocator.
    fn probe<P: Probe + Send + 'static>(allocator: &Self::With<P>) -> &P;
}

pub(crate) struct PotadContender;

impl Contender for PotadContender {
    const NAME: &'static str = potad_space::ALLOCATOR;
    const TITLE: &'static str = "potad";
    type With<P: Probe + Send + 'static> = PotadSpace<P>;

    fn build<P: Probe + Send + 'static>(
        pages: u64,
        probe: P,
        _: &mut Interrupts<'_>,
    ) -> Result<Self::With<P>, BuildError> {
        PotadSpace::with_probe(pages, probe)
    }

    fn probe<P: Probe + Send + 'static>(allocator: &Self::With<P>) -> &P {
        allocator.space.probe()
    }
}

pub(crate) struct LinuxBuddyContender;

impl Contender for LinuxBuddyContender {
    const NAME: &'static str = "linux-buddy";
    const TITLE: &'static str = "Linux buddy (restated)";
    type With<P: Probe + Send + 'static> = LinuxBuddy<P>;

    fn build<P: Probe + Send + 'static>(
        pages: u64,
        probe: P,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Self::With<P>, BuildError> {
        let mut buddy = LinuxBuddy::with_probe(pages, probe, interrupts)?;
        // A running kernel's page structures are resident: their page faults are not an operation's.
        if buddy.metadata_bytes() <= POPULATE_BYTES_MAX {
            buddy.populate(interrupts)?;
        }
        Ok(buddy)
    }

    fn probe<P: Probe + Send + 'static>(allocator: &Self::With<P>) -> &P {
        allocator.probe()
    }
}

pub(crate) struct FirstFitContender;

impl Contender for FirstFitContender {
    const NAME: &'static str = "first-fit";
    const TITLE: &'static str = "First fit (address-ordered)";
    type With<P: Probe + Send + 'static> = FirstFit<P>;

    fn build<P: Probe + Send + 'static>(
        pages: u64,
        probe: P,
        _: &mut Interrupts<'_>,
    ) -> Result<Self::With<P>, BuildError> {
        FirstFit::with_probe(pages, probe)
    }

    fn probe<P: Probe + Send + 'static>(allocator: &Self::With<P>) -> &P {
        allocator.probe()
    }
}

/// Names of all allocators, in the order a report shows them.
pub fn allocator_names() -> &'static [&'static str] {
    &[PotadContender::NAME, LinuxBuddyContender::NAME, FirstFitContender::NAME]
}
