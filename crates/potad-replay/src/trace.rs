//! A trace: what was asked of the page allocator, as steps any allocator can be asked to repeat.
//!
//! A step is 8 bytes. The times are in an array of their own, as the timed loop has no use for them.

use crate::error::LineFault;

/// Bytes of a page. Linux on x86-64 has no other base page, and the events do not carry the size.
pub const PAGE_BYTES: u64 = 4096;

/// The largest order accepted: 1 GiB of 4 KiB pages. Linux itself stops at 10 (4 MiB) unless it is
/// built otherwise; anything above 18 in a trace is damage.
pub const ORDER_MAX: u32 = 18;

/// One thing to ask of an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Allocate a block and remember it in a slot.
    Alloc {
        /// Where to remember it.
        slot: u32,
        /// Its order.
        order: u32,
        /// The kernel's migrate type: 0 unmovable, 1 movable, 2 reclaimable, and so on.
        migratetype: u32,
    },
    /// Free the whole of what is in a slot.
    Free {
        /// Where it is remembered.
        slot: u32,
        /// Its order.
        order: u32,
    },
    /// Free a naturally aligned piece of what is in a slot.
    FreePiece {
        /// Where it is remembered.
        slot: u32,
        /// The piece's order.
        order: u32,
        /// The piece's distance from the allocation's start, in pages.
        offset: u32,
    },
}

/// A [`Step`] in 8 bytes: the slot, then kind (2 bits), order (5 bits) and payload (25 bits), which
/// is the migrate type of an `Alloc` and the offset of a `FreePiece`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedStep {
    slot: u32,
    word: u32,
}

const KIND_ALLOC: u32 = 0;
const KIND_FREE: u32 = 1;
const KIND_FREE_PIECE: u32 = 2;
const ORDER_SHIFT: u32 = 2;
const ORDER_MASK: u32 = 0x1f;
const PAYLOAD_SHIFT: u32 = 7;
/// The largest payload, to which a migrate type is cut off; an offset is below `1 << ORDER_MAX`.
pub(crate) const PAYLOAD_MAX: u32 = (1 << (32 - PAYLOAD_SHIFT)) - 1;

const _: () = assert!(size_of::<PackedStep>() == 8);
const _: () = assert!(ORDER_MAX <= ORDER_MASK);
const _: () = assert!((1 << ORDER_MAX) - 1 <= PAYLOAD_MAX);

impl PackedStep {
    pub(crate) fn pack(step: Step) -> PackedStep {
        let (kind, slot, order, payload) = match step {
            Step::Alloc { slot, order, migratetype } => (KIND_ALLOC, slot, order, migratetype),
            Step::Free { slot, order } => (KIND_FREE, slot, order, 0),
            Step::FreePiece { slot, order, offset } => (KIND_FREE_PIECE, slot, order, offset),
        };
        debug_assert!(order <= ORDER_MAX && payload <= PAYLOAD_MAX);
        PackedStep { slot, word: kind | (order << ORDER_SHIFT) | (payload << PAYLOAD_SHIFT) }
    }

    #[inline(always)]
    pub(crate) fn unpack(self) -> Step {
        let order = (self.word >> ORDER_SHIFT) & ORDER_MASK;
        let payload = self.word >> PAYLOAD_SHIFT;
        match self.word & 3 {
            KIND_ALLOC => Step::Alloc { slot: self.slot, order, migratetype: payload },
            KIND_FREE => Step::Free { slot: self.slot, order },
            _ => Step::FreePiece { slot: self.slot, order, offset: payload },
        }
    }
}

/// Which program wrote the text, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFormat {
    /// The kernel's own `trace` or `trace_pipe` file.
    Ftrace,
    /// `perf script`.
    PerfScript,
    /// `trace-cmd report`.
    TraceCmd,
}

impl TraceFormat {
    /// The name people use.
    pub fn name(self) -> &'static str {
        match self {
            TraceFormat::Ftrace => "ftrace",
            TraceFormat::PerfScript => "perf script",
            TraceFormat::TraceCmd => "trace-cmd report",
        }
    }
}

/// What was counted while a trace was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub allocations: u64,
    pub frees: u64,
    pub failed_allocations: u64,
    pub frees_before_recording: u64,
    pub partial_frees: u64,
    pub lost_frees: u64,
    pub malformed: u64,
    pub malformed_lines: Vec<(u64, LineFault)>,
    pub dropped: u64,
    pub lines: u64,
}

/// A recorded stretch of page traffic, ready to be replayed. Made by a
/// [`TraceParser`](crate::TraceParser); immutable.
pub struct Trace {
    pub(crate) steps: Vec<PackedStep>,
    /// Nanoseconds since the first event, one for each step.
    pub(crate) times: Vec<u64>,
    /// Slots the steps name: 0 to `slots - 1`.
    pub(crate) slots: u32,
    pub(crate) tally: Tally,
    pub(crate) peak_pages: u64,
    /// Steps done when the live pages first reach their peak.
    pub(crate) peak_step: usize,
    pub(crate) live_pages: u64,
    pub(crate) nanoseconds: u64,
    pub(crate) format: TraceFormat,
}

impl Trace {
    /// Page events read: allocations and frees.
    pub fn events(&self) -> u64 {
        self.tally.allocations + self.tally.frees
    }

    /// Allocation events.
    pub fn allocations(&self) -> u64 {
        self.tally.allocations
    }

    /// Free events, those that are ignored included.
    pub fn frees(&self) -> u64 {
        self.tally.frees
    }

    /// Allocations the recorded kernel itself could not serve; not among the events.
    pub fn failed_allocations(&self) -> u64 {
        self.tally.failed_allocations
    }

    /// Free events that name, wholly or in part, pages never seen allocated. That part is ignored.
    pub fn frees_before_recording(&self) -> u64 {
        self.tally.frees_before_recording
    }

    /// Frees of a piece of an allocation. One free event can free several pieces.
    pub fn partial_frees(&self) -> u64 {
        self.tally.partial_frees
    }

    /// Live blocks that were allocated again: the event of their free was lost, so they are freed
    /// before the allocation.
    pub fn lost_frees(&self) -> u64 {
        self.tally.lost_frees
    }

    /// Lines that name a page event and could not be read.
    pub fn malformed(&self) -> u64 {
        self.tally.malformed
    }

    /// The first malformed lines: number, counted from 1, and what is wrong.
    pub fn malformed_lines(&self) -> &[(u64, LineFault)] {
        &self.tally.malformed_lines
    }

    /// Events the recorder says it lost.
    pub fn dropped(&self) -> u64 {
        self.tally.dropped
    }

    /// Lines read.
    pub fn lines(&self) -> u64 {
        self.tally.lines
    }

    /// The most bytes live at once.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_pages * PAGE_BYTES
    }

    /// Bytes live at the end.
    pub fn live_bytes(&self) -> u64 {
        self.live_pages * PAGE_BYTES
    }

    /// From the first event to the last.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds as f64 / 1e9
    }

    /// Which program wrote the text.
    pub fn format(&self) -> TraceFormat {
        self.format
    }

    /// The steps, in order.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = Step> + '_ {
        self.steps.iter().map(|packed| packed.unpack())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_packing() {
        for step in [
            Step::Alloc { slot: 0, order: 0, migratetype: 5 },
            Step::Alloc { slot: u32::MAX, order: ORDER_MAX, migratetype: PAYLOAD_MAX },
            Step::Free { slot: 77, order: 9 },
            Step::FreePiece { slot: 78, order: 3, offset: (1 << ORDER_MAX) - 8 },
        ] {
            assert_eq!(PackedStep::pack(step).unpack(), step);
        }
    }
}
