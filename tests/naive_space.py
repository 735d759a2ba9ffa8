"""The naive model: a state for each granule, and everything worked out by looking at all of them.

Slow, and obviously right. Numbers are granules, counted from address 0. Where the contract leaves
open which address a call takes (`alloc`, `alloc_many`, `alloc_scattered`), the model says only
whether the call succeeds, and is told afterwards what was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum


class Unused(Enum):
    """The state of a granule that is in no allocation."""

    FREE = "free"
    RETIRED = "retired"


FREE, RETIRED = Unused.FREE, Unused.RETIRED

Window = tuple[int, int]
"""First granule, and the one after the last."""


class NaiveSpace:
    """Granules by number: `FREE`, `RETIRED`, or the first granule of the allocation it is in."""

    def __init__(self) -> None:
        self.cells: dict[int, Unused | int] = {}
        self.retired: set[int] = set()
        """Out of service, whether in an allocation, removed from the space, or neither."""

    # ---- what is there -------------------------------------------------------------------------

    def is_in_space(self, start: int, length: int) -> bool:
        return all(granule in self.cells for granule in range(start, start + length))

    def is_free(self, start: int, length: int) -> bool:
        return all(self.cells.get(granule) is FREE for granule in range(start, start + length))

    def having(self, state: Unused) -> list[int]:
        return [granule for granule, cell in self.cells.items() if cell is state]

    def is_used(self, granule: int) -> bool:
        return isinstance(self.cells.get(granule), int)

    def is_start(self, granule: int) -> bool:
        return self.cells.get(granule) == granule

    def available(self) -> int:
        return len(self.having(FREE))

    def used(self) -> int:
        return sum(isinstance(cell, int) for cell in self.cells.values())

    def allocations(self) -> dict[int, int]:
        """Start and length of each, ascending."""
        lengths: dict[int, int] = {}
        for _, cell in sorted(self.cells.items()):
            if isinstance(cell, int):
                lengths[cell] = lengths.get(cell, 0) + 1
        return lengths

    def ranges(self, granules: Iterable[int]) -> list[tuple[int, int]]:
        """Start and length of the contiguous ranges that these granules make up."""
        ranges: list[tuple[int, int]] = []
        for granule in sorted(granules):
            if ranges and sum(ranges[-1]) == granule:
                ranges[-1] = ranges[-1][0], ranges[-1][1] + 1
            else:
                ranges.append((granule, 1))
        return ranges

    def spans(self) -> list[tuple[int, int]]:
        return self.ranges(self.cells)

    def retired_in_space(self) -> list[int]:
        return sorted(self.retired & self.cells.keys())

    # ---- free blocks ---------------------------------------------------------------------------

    def blocks(self, order: int, window: Window | None = None) -> Iterator[int]:
        """Starts of all aligned free blocks of an order, whether part of larger ones or not."""
        low, high = window or (0, 1 << 65)
        for granule in sorted(self.cells):
            inside = low <= granule <= high - (1 << order)
            if inside and granule % (1 << order) == 0 and self.is_free(granule, 1 << order):
                yield granule

    def orders(self) -> range:
        return range(len(self.cells).bit_length())

    def free_blocks(self) -> dict[int, int]:
        """Blocks that are not part of a larger free one: length to how many."""
        found = {}
        for order in self.orders():
            larger = set(self.blocks(order + 1))
            count = sum(
                block >> order + 1 << order + 1 not in larger for block in self.blocks(order)
            )
            if count:
                found[1 << order] = count
        return found

    def largest_free(self) -> int:
        return max(self.free_blocks(), default=0)

    def unusable_free_index(self, order: int) -> float:
        available = self.available()
        usable = sum(
            length * count for length, count in self.free_blocks().items() if length >> order
        )
        return (available - usable) / available if available else 0.0

    def scattered(self, length: int, min_order: int, window: Window | None) -> list[int] | None:
        """Lengths of the fewest blocks that come to `length`, largest first."""
        left = -(-length >> min_order) << min_order
        counts = {order: sum(1 for _ in self.blocks(order, window)) for order in self.orders()}
        lengths = []
        for order in reversed(self.orders()):
            if order < min_order:
                break
            taken = min(left >> order, counts[order])
            lengths += [1 << order] * taken
            left -= taken << order
            for smaller in range(order):
                counts[smaller] -= taken << (order - smaller)
        return None if left else lengths

    def run(
        self, length: int, align: int, granule: int, window: Window | None, fit: str
    ) -> int | None:
        """Where a run is put: the start is a multiple of `align` address units."""
        low, high = window or (0, 1 << 65)
        starts = [
            start
            for start in sorted(self.cells)
            if start * granule % align == 0
            and start >= low
            and start + length <= high
            and self.is_free(start, length)
        ]
        if not starts:
            return None
        if fit == "first":
            return starts[0]
        largest = 1 << (length - 1).bit_length()
        return max(starts, key=lambda start: (min(start & -start or largest, largest), -start))

    # ---- changes -------------------------------------------------------------------------------

    def take(self, start: int, length: int) -> None:
        assert self.is_free(start, length)
        for granule in range(start, start + length):
            self.cells[granule] = start

    def release(self, start: int, length: int) -> None:
        """Frees granules that are all allocated; what follows in a cut allocation is a new one."""
        for granule in range(start, start + length):
            assert self.is_used(granule)
            self.cells[granule] = RETIRED if granule in self.retired else FREE
        self.restart(start + length)

    def restart(self, granule: int) -> None:
        """Makes an allocation that goes on at a granule start there."""
        old = self.cells.get(granule)
        if not isinstance(old, int) or old == granule:
            return
        at = granule
        while self.cells.get(at) == old:
            self.cells[at] = granule
            at += 1

    def add(self, start: int, length: int) -> None:
        for granule in range(start, start + length):
            self.cells[granule] = RETIRED if granule in self.retired else FREE

    def remove(self, start: int, length: int) -> None:
        for granule in range(start, start + length):
            del self.cells[granule]

    def retire(self, start: int, length: int) -> None:
        for granule in range(start, start + length):
            self.retired.add(granule)
            if self.cells[granule] is FREE:
                self.cells[granule] = RETIRED

    def restore(self, start: int, length: int) -> None:
        for granule in range(start, start + length):
            self.retired.discard(granule)
            if self.cells[granule] is RETIRED:
                self.cells[granule] = FREE
