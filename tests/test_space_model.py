"""Any sequence of calls against the naive model, with everything compared after every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from naive_space import FREE, RETIRED, NaiveSpace, Window

import potad

WINDOW_GRANULES = 200
"""Granules at each of the places that spans are added and removed."""

GRANULES = [1, 512, 4096, 1 << 21]

PLACES = [
    0,  # address 0
    1,  # a first granule that nothing larger than a granule is aligned to
    (1 << 18) - 100,  # across the boundary of what one part of the tree covers
    3 << 30,
    (1 << 34) - 77,
    -WINDOW_GRANULES,  # up to 2**64 exactly
]
"""First granules of the places; negative ones count from 2**64."""


def order_of(granules: int) -> int:
    """The order of the smallest block that holds so many granules."""
    return (granules - 1).bit_length()


class Machine(RuleBasedStateMachine):
    """A space and its model; sizes in the rules are in granules, scaled by `unit`."""

    @initialize(
        unit=st.sampled_from(GRANULES),
        places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=2, unique=True),
        first=st.integers(0, 60),
        length=st.integers(0, WINDOW_GRANULES - 60) | st.just(WINDOW_GRANULES - 60),
    )
    def make(self, unit: int, places: list[int], first: int, length: int) -> None:
        self.unit = unit
        end = (1 << 64) // unit
        self.places = [place % end for place in places]
        first += self.places[0]
        self.base = first * unit
        self.space = potad.Space(length * unit, granule=unit, base=self.base)
        self.model = NaiveSpace()
        self.model.add(first, length)

    # ---- what is drawn -------------------------------------------------------------------------

    def units(self, granules: int, less: int = 0) -> int:
        """A size of so many granules, or up to one granule less."""
        return max(1, granules * self.unit - less % self.unit)

    def granule(self, data: st.DataObject) -> int:
        """Any granule of the places, in the space or not."""
        place = data.draw(st.sampled_from(self.places))
        return place + data.draw(st.integers(0, WINDOW_GRANULES - 1))

    def pick(self, data: st.DataObject, granules: Iterable[int]) -> int:
        """Most often one of these granules, now and then any."""
        some = sorted(granules)
        if not some or data.draw(st.integers(0, 7)) == 0:
            return self.granule(data)
        return data.draw(st.sampled_from(some))

    def start(self, data: st.DataObject) -> int:
        """Most often the first granule of an allocation."""
        return self.pick(data, self.model.allocations())

    def range(self, data: st.DataObject, granules: Iterable[int]) -> tuple[int, int]:
        """Start and length of a range, short most often, that starts at one of these granules."""
        start = self.pick(data, granules)
        length = data.draw(st.integers(1, 4) | st.integers(1, 20) | st.integers(1, WINDOW_GRANULES))
        return start, min(length, (1 << 64) // self.unit - start)

    def window(self, data: st.DataObject) -> tuple[tuple[int, int] | None, Window | None]:
        """Bounds in address units, or none, and the whole granules between them."""
        if data.draw(st.integers(0, 2)) > 0:
            return None, None
        low = self.granule(data) * self.unit + data.draw(st.integers(0, self.unit - 1))
        high = self.granule(data) * self.unit + data.draw(st.integers(0, self.unit))
        low, high = min(low, high), max(low, high)
        return (low, high), (-(-low // self.unit), high // self.unit)

    def check_no_room(self, error: potad.OutOfSpace, requested: int) -> None:
        available = self.model.available() * self.unit
        assert error.requested == requested
        assert error.available == available
        assert error.largest == self.model.largest_free() * self.unit
        assert error.reason == ("exhausted" if available < requested else "fragmented")

    def rounded(self, size: int) -> int:
        return -(-size // self.unit) * self.unit

    # ---- allocating ----------------------------------------------------------------------------

    @rule(
        data=st.data(),
        granules=st.integers(1, 4) | st.integers(1, 20) | st.integers(1, WINDOW_GRANULES),
        less=st.integers(0, 1 << 21),
    )
    def alloc(self, data: st.DataObject, granules: int, less: int) -> None:
        size = self.units(granules, less)
        order = order_of(-(-size // self.unit))
        within, window = self.window(data)
        possible = set(self.model.blocks(order, window))
        try:
            address = self.space.alloc(size, within=within)
        except potad.OutOfSpace as error:
            assert not possible
            self.check_no_room(error, self.rounded(size))
            return
        assert address % self.unit == 0
        assert address // self.unit in possible
        self.model.take(address // self.unit, 1 << order)

    @rule(
        data=st.data(),
        granules=st.integers(1, 8) | st.integers(1, 40) | st.integers(1, WINDOW_GRANULES),
        less=st.integers(0, 1 << 21),
        align=st.none() | st.sampled_from([1, 2, 3, 4, 7, 8, 16, 64]),
        fine=st.booleans(),
        fit=st.sampled_from(["aligned", "first"]),
    )
    def alloc_run(
        self,
        data: st.DataObject,
        granules: int,
        less: int,
        align: int | None,
        fine: bool,
        fit: Any,
    ) -> None:
        size = self.units(granules, less)
        length = -(-size // self.unit)
        within, window = self.window(data)
        # Alignments below the granule as well, which ask for nothing unless they are odd.
        align = align if align is None or fine else align * self.unit
        expected = self.model.run(length, align or 1, self.unit, window, fit)
        try:
            address = self.space.alloc_run(size, align=align, within=within, fit=fit)
        except potad.OutOfSpace as error:
            assert expected is None
            self.check_no_room(error, self.rounded(size))
            return
        assert expected is not None
        assert address == expected * self.unit
        self.model.take(expected, length)

    @rule(data=st.data())
    def alloc_at(self, data: st.DataObject) -> None:
        start, length = self.range(data, self.model.having(FREE))
        address, size = start * self.unit, length * self.unit
        if self.model.is_free(start, length):
            assert self.space.alloc_at(address, size) == address
            self.model.take(start, length)
            return
        with pytest.raises(potad.OutOfSpace) as caught:
            self.space.alloc_at(address, size)
        assert (caught.value.reason, caught.value.requested) == ("occupied", size)

    @rule(
        data=st.data(),
        granules=st.integers(1, 20) | st.integers(1, WINDOW_GRANULES),
        less=st.integers(0, 1 << 21),
        smallest=st.none() | st.integers(1, 16),
    )
    def alloc_scattered(
        self, data: st.DataObject, granules: int, less: int, smallest: int | None
    ) -> None:
        size = self.units(granules, less)
        within, window = self.window(data)
        expected = self.model.scattered(-(-size // self.unit), order_of(smallest or 1), window)
        min_block = None if smallest is None else smallest * self.unit
        try:
            blocks = self.space.alloc_scattered(size, min_block=min_block, within=within)
        except potad.OutOfSpace as error:
            assert expected is None
            self.check_no_room(error, self.rounded(size))
            return
        assert [size // self.unit for _, size in blocks] == expected
        for address, size in blocks:
            start, length = address // self.unit, size // self.unit
            assert window is None or window[0] <= start <= window[1] - length
            assert address % size == 0
            self.model.take(start, length)

    @rule(
        granules=st.integers(1, 2) | st.integers(1, 20),
        count=st.integers(0, 4) | st.integers(0, 40),
    )
    def alloc_many(self, granules: int, count: int) -> None:
        size = granules * self.unit
        length = 1 << order_of(granules)
        room = sum(1 for _ in self.model.blocks(order_of(granules)))
        try:
            addresses = self.space.alloc_many(size, count)
        except potad.OutOfSpace as error:
            assert count > room
            self.check_no_room(error, size * count)
            return
        assert addresses.dtype == np.uint64
        assert addresses.shape == (count,)
        for address in addresses.tolist():
            assert address % (length * self.unit) == 0
            self.model.take(address // self.unit, length)

    # ---- freeing -------------------------------------------------------------------------------

    def check_not_allocated(self, error: potad.NotAllocated, address: int) -> None:
        assert error.address == address
        inside = self.model.cells.get(address // self.unit)
        assert ("inside" in str(error)) == isinstance(inside, int)
        if isinstance(inside, int):
            assert f"{inside * self.unit:#x}" in str(error)

    @rule(data=st.data(), within=st.integers(0, 3))
    def free(self, data: st.DataObject, within: int) -> None:
        start = self.start(data)
        address = start * self.unit + within % self.unit
        if self.model.is_start(start) and address % self.unit == 0:
            self.space.free(address)
            self.model.release(start, self.model.allocations()[start])
            return
        with pytest.raises(potad.NotAllocated) as caught:
            self.space.free(address)
        self.check_not_allocated(caught.value, address)

    @rule(data=st.data())
    def free_many(self, data: st.DataObject) -> None:
        allocations = self.model.allocations()
        starts: list[int] = []
        if allocations:
            starts = data.draw(st.lists(st.sampled_from(sorted(allocations)), unique=True))
        for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]))):
            at = data.draw(st.integers(0, len(starts)))
            starts.insert(at, self.start(data))
        addresses = np.array([start * self.unit for start in starts], dtype=np.uint64)
        wrong = [
            start
            for at, start in enumerate(starts)
            if start not in allocations or start in starts[:at]
        ]
        if wrong:
            with pytest.raises(potad.NotAllocated) as caught:
                self.space.free_many(addresses)
            assert caught.value.address == wrong[0] * self.unit
            return
        self.space.free_many(addresses)
        for start in starts:
            self.model.release(start, allocations[start])

    @rule(data=st.data())
    def free_range(self, data: st.DataObject) -> None:
        start, length = self.range(data, filter(self.model.is_used, self.model.cells))
        unused = [at for at in range(start, start + length) if not self.model.is_used(at)]
        if unused:
            with pytest.raises(potad.NotAllocated) as caught:
                self.space.free_range(start * self.unit, length * self.unit)
            assert caught.value.address == unused[0] * self.unit
            return
        self.space.free_range(start * self.unit, length * self.unit)
        self.model.release(start, length)

    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        allocations = self.model.allocations()
        start = self.pick(data, (start for start, length in allocations.items() if length > 1))
        length = allocations.get(start)
        part = data.draw(st.integers(1, length or WINDOW_GRANULES))
        if length is None:
            with pytest.raises(potad.NotAllocated) as caught:
                self.space.split(start * self.unit, part * self.unit)
            self.check_not_allocated(caught.value, start * self.unit)
        elif part >= length:
            with pytest.raises(ValueError, match="size must be"):
                self.space.split(start * self.unit, part * self.unit)
        else:
            self.space.split(start * self.unit, part * self.unit)
            self.model.restart(start + part)

    # ---- the extent ----------------------------------------------------------------------------

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        everywhere = {place + at for place in self.places for at in range(WINDOW_GRANULES)}
        start, length = self.range(data, everywhere - self.model.cells.keys())
        if any(granule in self.model.cells for granule in range(start, start + length)):
            with pytest.raises(ValueError, match="start must be"):
                self.space.add(start * self.unit, length * self.unit)
            return
        self.space.add(start * self.unit, length * self.unit)
        self.model.add(start, length)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        start, length = self.range(data, self.model.having(FREE) + self.model.having(RETIRED))
        if not self.model.is_in_space(start, length):
            with pytest.raises(ValueError, match="start must be"):
                self.space.remove(start * self.unit, length * self.unit)
        elif any(self.model.is_used(granule) for granule in range(start, start + length)):
            with pytest.raises(potad.OutOfSpace) as caught:
                self.space.remove(start * self.unit, length * self.unit)
            assert caught.value.reason == "occupied"
        else:
            self.space.remove(start * self.unit, length * self.unit)
            self.model.remove(start, length)

    @rule(data=st.data(), call=st.sampled_from(["retire", "retire", "restore"]))
    def retire_or_restore(self, data: st.DataObject, call: str) -> None:
        start, length = self.range(data, self.model.cells)
        arguments = [start * self.unit, length * self.unit][: data.draw(st.integers(1, 2))]
        length = length if len(arguments) == 2 else 1
        if not self.model.is_in_space(start, length):
            with pytest.raises(ValueError, match="start must be"):
                getattr(self.space, call)(*arguments)
            return
        getattr(self.space, call)(*arguments)
        getattr(self.model, call)(start, length)

    # ---- looking -------------------------------------------------------------------------------

    @rule(data=st.data(), within=st.integers(0, 1 << 21))
    def look(self, data: st.DataObject, within: int) -> None:
        granules = [self.granule(data) for _ in range(5)]
        addresses = [granule * self.unit + within % self.unit for granule in granules]
        allocations = self.model.allocations()
        starts, sizes = self.space.lookup_many(addresses)
        for granule, address, start, size in zip(
            granules, addresses, starts.tolist(), sizes.tolist(), strict=True
        ):
            cell = self.model.cells.get(granule)
            found = self.space.lookup(address)
            assert (address in self.space) == isinstance(cell, int)
            if isinstance(cell, int):
                assert found is not None
                assert (found.start, found.size) == (
                    cell * self.unit,
                    allocations[cell] * self.unit,
                )
                assert (start, size) == (found.start, found.size)
            else:
                assert found is None
                assert (start, size) == (0, 0)

    @rule(granules=st.integers(1, 2 * WINDOW_GRANULES))
    def unusable_free_index(self, granules: int) -> None:
        index = self.space.unusable_free_index(granules * self.unit)
        assert index == pytest.approx(self.model.unusable_free_index(order_of(granules)))

    @invariant()
    def agrees(self) -> None:
        space, model, unit = self.space, self.model, self.unit
        space.check()
        assert bool(space)
        assert (space.granule, space.base) == (unit, self.base)
        assert space.size == len(model.cells) * unit
        assert space.used == model.used() * unit
        assert space.available == model.available() * unit
        allocations = model.allocations()
        assert len(space) == len(allocations)
        assert [(found.start, found.size) for found in space] == [
            (start * unit, length * unit) for start, length in allocations.items()
        ]
        assert space.largest_free == model.largest_free() * unit
        assert list(space.free_blocks().items()) == [
            (length * unit, count) for length, count in model.free_blocks().items()
        ]
        assert space.spans() == [(start * unit, length * unit) for start, length in model.spans()]
        retired = model.retired_in_space()
        assert space.retired().tolist() == [granule * unit for granule in retired]
        assert space.retired_ranges() == [
            (start * unit, length * unit) for start, length in model.ranges(retired)
        ]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=50)
