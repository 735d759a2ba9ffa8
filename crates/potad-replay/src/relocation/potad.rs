//! `potad` as a relocator: no reserve, and of all windows the one with the fewest bytes to move.

use potad::{Error, Fit, NoProbe};

use super::relocator::{Move, Relocator};
use crate::allocator::PageAllocator;
use crate::fallible::push;
use crate::potad_space::{PotadSpace, address, bytes, out_of_memory};
use crate::stop::{Interrupts, OutOfMemory, Stop};
use crate::trace::PAGE_BYTES;

impl Relocator for PotadSpace<NoProbe> {
    fn pin(&mut self, page: u32) -> Result<(), OutOfMemory> {
        let pinned = self.space.pin(address(page)).map(drop);
        pinned.map_err(|error| out_of_memory(error, "a pin of a live block"))
    }

    fn unpin(&mut self, page: u32) {
        self.space.unpin(address(page)).expect("only what is pinned is unpinned");
    }

    /// Halved on the way down to the part: a piece is moved to a multiple of its size only if it was cut
    /// from one that was.
    fn free_part(
        &mut self,
        mut first: u32,
        whole: u32,
        page: u32,
        order: u32,
    ) -> Result<(), OutOfMemory> {
        for half in (order..whole).rev() {
            let size = bytes(1 << half);
            let split = self.space.split(address(first), size);
            split.map_err(|error| out_of_memory(error, "a split of a block of twice the size"))?;
            first += (page - first) & (1 << half);
        }
        self.free(page, order)
    }

    fn alloc_run(
        &mut self,
        pages: u32,
        align: u32,
        moves: &mut Vec<Move>,
        _: &mut Interrupts<'_>,
    ) -> Result<Option<u32>, Stop> {
        let page = |address: u64| (address / PAGE_BYTES) as u32;
        let (size, align) = (bytes(pages.into()), bytes(align.into()));
        let mut noted = Ok(());
        let made = self.space.alloc_run_moving(size, align, None, Fit::Aligned, |made| {
            let order = (made.size / u128::from(PAGE_BYTES)).ilog2();
            debug_assert_eq!(made.size, bytes(1 << order), "all blocks are powers of two");
            let made = Move { old: page(made.old), new: page(made.new), order };
            noted = noted.and_then(|()| push(moves, made));
        });
        match made {
            Ok(address) => noted.map(|()| Some(page(address))).map_err(Stop::from),
            Err(Error::OutOfSpace { .. }) => Ok(None),
            Err(error) => Err(out_of_memory(error, "a run").into()),
        }
    }

    fn free_run(&mut self, page: u32, pages: u32, _: &mut Interrupts<'_>) -> Result<(), Stop> {
        match self.space.free(address(page)) {
            Ok(size) => debug_assert_eq!(size, bytes(pages.into())),
            Err(error) => return Err(out_of_memory(error, "a free of a run").into()),
        }
        Ok(())
    }
}
