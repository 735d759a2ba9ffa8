"""The key-value cache of an inference server, in one arena.

Each sequence has blocks of 16 tokens, which are allocated as it grows, pinned while a step of the
model reads them, and evicted when the arena is full, of the sequence used longest ago. What comes
and goes in pieces leaves holes; a long prompt wants all of its blocks in one run, and gets it:
buffers that nobody reads are moved out of its way, bytes and all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt

import potad

TOKENS = 16
WIDTH = 2 * 8 * 128  # keys and values of 8 heads of 128
BLOCK = TOKENS * WIDTH * 2  # bytes, of float16

KV = potad.Kind("kv block", record=np.dtype([("sequence", "u4"), ("number", "u4")]), movable=True)


class Cache:
    """Blocks of sequences in `nbytes` of memory."""

    def __init__(self, nbytes: int) -> None:
        self.arena = potad.Arena(nbytes)
        self.sequences: OrderedDict[int, list[potad.Buffer]] = OrderedDict()
        self.evicted: list[int] = []

    def _allocate(self, nbytes: int, sequence: int, run: bool = False) -> potad.Buffer:
        """A buffer, for which others are evicted if need be, but not those of the sequence."""
        while True:
            try:
                if run:
                    return self.arena.alloc_run(nbytes, relocate=True, kind=KV, owner=self)
                return self.arena.alloc(nbytes, KV, self)
            except potad.OutOfSpace:
                others = [it for it in self.sequences if it != sequence and not self._is_read(it)]
                if not others:
                    raise
                self.evict(others[0])

    def _is_read(self, sequence: int) -> bool:
        return any(buffer.descriptor.pins for buffer in self.sequences[sequence])

    def append(self, sequence: int, tokens: npt.NDArray[np.float16]) -> None:
        """Adds a block of 16 tokens to a sequence."""
        blocks = self.sequences.setdefault(sequence, [])
        self.sequences.move_to_end(sequence)
        blocks.append(self._allocate(BLOCK, sequence))
        self._write(blocks[-1], sequence, len(blocks) - 1, tokens)

    def prefill(self, sequence: int, tokens: npt.NDArray[np.float16]) -> None:
        """Makes a sequence of a long prompt: one run for all of its tokens."""
        buffer = self._allocate(tokens.nbytes, sequence, run=True)
        self._write(buffer, sequence, 0, tokens)
        self.sequences[sequence] = [buffer]

    def _write(
        self, buffer: potad.Buffer, sequence: int, number: int, tokens: npt.NDArray[np.float16]
    ) -> None:
        np.frombuffer(memoryview(buffer), np.float16)[:] = tokens.ravel()
        if (record := buffer.descriptor.record) is not None:
            record["sequence"], record["number"] = sequence, number

    @contextmanager
    def reading(self, sequence: int) -> Iterator[list[npt.NDArray[np.float16]]]:
        """The tokens of a sequence, block by block, where they lie: they stay there meanwhile."""
        self.sequences.move_to_end(sequence)
        with ExitStack() as stack:
            for it in self.sequences[sequence]:
                stack.enter_context(self.arena.space.pinned(it.address))
            views = [memoryview(it) for it in self.sequences[sequence]]
            yield [np.frombuffer(view, np.float16).reshape(-1, WIDTH) for view in views]

    def evict(self, sequence: int) -> None:
        for buffer in self.sequences.pop(sequence):
            buffer.free()
        self.evicted.append(sequence)


def main() -> None:
    cache = Cache(256 * BLOCK)
    for number in range(24 * 8):
        cache.append(number % 8, np.full((TOKENS, WIDTH), number, np.float16))
    for sequence in (1, 3, 6):
        cache.evict(sequence)  # finished: its blocks lay between those of the others
    cache.prefill(100, np.ones((96 * TOKENS, WIDTH), np.float16))
    print(f"evicted {cache.evicted}, and made a run for 96 blocks")
    print(cache.arena.space.report())


if __name__ == "__main__":
    main()
