"""A cache of disk blocks whose descriptors stand beside the memory, not in it.

Each buffer is 512 to 65,536 bytes of memory and 360 bytes of record, as an xfs_buf of Linux has.
The cache owns its buffers: when memory fails under one, it is told, gives the buffer up and reads
the block again when it is asked for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import potad

BUFFER = potad.Kind(
    "xfs_buf",
    record=np.dtype(
        [("block", "u8"), ("dirty", "?"), ("reads", "u4"), ("verified", "?"), ("log", "V346")],
        align=False,
    ),
)


class Cache:
    """Buffers over `size` bytes of memory, found by block number."""

    def __init__(self, size: int) -> None:
        self.space = potad.Space(size, granule=512)
        self.buffers: dict[int, int] = {}
        self.lost: list[int] = []

    def read(self, block: int, length: int) -> int:
        """The address of the buffer of a block, read from the disk if it is not here."""
        if block not in self.buffers:
            self.buffers[block] = self._room(length)
            self.record(block)["block"] = block
        self.record(block)["reads"] += 1
        return self.buffers[block]

    def record(self, block: int) -> npt.NDArray[np.void]:
        """What is known about the buffer of a block, to be written in place."""
        found = self.space.lookup(self.buffers[block])
        assert found is not None
        assert found.record is not None
        return found.record

    def _room(self, length: int) -> int:
        try:
            return self.space.alloc(length, kind=BUFFER, owner=self)
        except potad.OutOfSpace:
            self.evict()
            return self.space.alloc(length, kind=BUFFER, owner=self)

    def evict(self) -> None:
        """Writes dirty buffers out and gives up all that nobody has pinned."""
        buffers = self.space.records(BUFFER)
        unpinned = buffers[buffers["pins"] == 0]
        for block in unpinned["record"]["block"].tolist():
            del self.buffers[block]
        self.space.free_many(unpinned["start"])

    def on_memory_failure(self, failure: potad.Failure) -> potad.Outcome:
        """A clean buffer is read again when it is needed; what a dirty one held is lost."""
        assert failure.record is not None
        block, dirty = int(failure.record["block"]), bool(failure.record["dirty"])
        del self.buffers[block]
        self.space.free(failure.start)
        if dirty:
            self.lost.append(block)
        return potad.Outcome.FAILED if dirty else potad.Outcome.RECOVERED


def main() -> None:
    """Reads and dirties blocks while memory fails under them."""
    cache = Cache(16 << 20)
    random = np.random.default_rng(1)
    for _ in range(5000):
        block = int(random.integers(2000))
        address = cache.read(block, 512 << (block % 8))
        cache.record(block)["dirty"] = block % 3 == 0
        if random.random() < 0.01:
            outcome = cache.space.memory_failure(address + 100)
            assert (outcome is potad.Outcome.FAILED) == (block in cache.lost[-1:])
    print(cache.space.report())
    retired = len(cache.space.retired())
    print(f"{retired} granules of 512 bytes out of service, {len(cache.lost)} blocks lost")
    cache.space.check()


if __name__ == "__main__":
    main()
