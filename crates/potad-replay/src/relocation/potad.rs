//! `potad` as a relocator: no reserve, and of all windows the one with the fewest bytes to move.

use potad::{Error, Fit, NoProbe};

use super::relocator::{Move, Relocator};
use crate::allocator::PageAllocator;
use crate::potad_space::{PotadSpace, address, bytes};
use crate::trace::PAGE_BYTES;

impl Relocator for PotadSpace<NoProbe> {
    fn pin(&mut self, page: u32) {
        self.space.pin(address(page)).expect("only live blocks are pinned");
    }

    fn unpin(&mut self, page: u32) {
        self.space.unpin(address(page)).expect("only what is pinned is unpinned");
    }

    /// Halved on the way down to the part: a piece is moved to a multiple of its size only if it was cut
    /// from one that was.
    fn free_part(&mut self, mut first: u32, whole: u32, page: u32, order: u32) {
        for half in (order..whole).rev() {
            let size = bytes(1 << half);
            self.space.split(address(first), size).expect("a block of twice the size");
            first += (page - first) & (1 << half);
        }
        self.free(page, order);
    }

    fn alloc_run(&mut self, pages: u32, align: u32, moves: &mut Vec<Move>) -> Option<u32> {
        let page = |address: u64| (address / PAGE_BYTES) as u32;
        let (size, align) = (bytes(pages.into()), bytes(align.into()));
        let made = self.space.alloc_run_moving(size, align, None, Fit::Aligned, |made| {
            let order = (made.size / u128::from(PAGE_BYTES)).ilog2();
            debug_assert_eq!(made.size, bytes(1 << order), "all blocks are powers of two");
            moves.push(Move { old: page(made.old), new: page(made.new), order });
        });
        match made {
            Ok(address) => Some(page(address)),
            Err(Error::OutOfSpace { .. }) => None,
            Err(error) => panic!("a run of {pages} pages: {error}"),
        }
    }

    fn free_run(&mut self, page: u32, pages: u32) {
        match self.space.free(address(page)) {
            Ok(size) => debug_assert_eq!(size, bytes(pages.into())),
            Err(error) => panic!("free of a run at page {page}: {error}"),
        }
    }
}
