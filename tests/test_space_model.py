"""Any sequence of calls against the naive model, with everything compared after every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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


class Owner:
    """Answers a memory failure always the same way."""

    def __init__(self, answer: potad.Outcome) -> None:
        self.on_memory_failure = lambda failure: answer
        self.answer = answer


@dataclass(frozen=True)
class Known:
    """What is known of an allocation beside where it lies; `value` is in its record."""

    kind: potad.Kind | None = None
    owner: Any = None
    pins: int = 0
    value: int = 0


class Mover:
    """Agrees to every move of what it owns, or to none."""

    def __init__(self, agrees: bool) -> None:
        self.agrees = agrees
        self.moves: list[tuple[int, int]] = []

    def on_relocate(self, move: potad.Move) -> bool:
        self.moves.append((move.old, move.new))
        return self.agrees and move.owner is self and move.kind is MOVABLE


MOVABLE = potad.Kind("page", record="u8", movable=True)
STUBBORN = Mover(False)

KINDS = [
    potad.Kind("plain"),
    MOVABLE,
    potad.Kind("word", record="u8"),
    potad.Kind("xfs_buf", record=np.dtype([("value", "u8"), ("rest", "V352")])),
]
OWNERS = [
    "someone",
    Owner(potad.Outcome.DELAYED),
    Owner(potad.Outcome.RECOVERED),
    Mover(True),
    STUBBORN,
]

LABELS = (
    st.just(Known())
    | st.builds(Known, st.sampled_from([None, *KINDS]), st.sampled_from([None, *OWNERS]))
    | st.builds(Known, st.just(MOVABLE), st.sampled_from([None, None, "someone", OWNERS[3]]))
)


def value_of(record: Any) -> Any:
    """The place of the number in a record, of whichever kind."""
    return record["value"] if record.dtype.names else record


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
        self.known: dict[int, Known] = {}

    def take(self, start: int, length: int, label: Known) -> None:
        self.model.take(start, length)
        self.known[start] = label

    def release(self, start: int, length: int) -> None:
        """Frees granules in the model; what is left behind them is known as before."""
        end = start + length
        behind = self.model.cells.get(end)
        if isinstance(behind, int) and behind < end:
            self.known[end] = self.known[behind]
        self.model.release(start, length)
        allocations = self.model.allocations()
        self.known = {at: known for at, known in self.known.items() if at in allocations}

    def pins(self, granule: int) -> int:
        cell = self.model.cells.get(granule)
        return self.known[cell].pins if isinstance(cell, int) else 0

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
        label=LABELS,
    )
    def alloc(self, data: st.DataObject, granules: int, less: int, label: Known) -> None:
        size = self.units(granules, less)
        order = order_of(-(-size // self.unit))
        within, window = self.window(data)
        possible = set(self.model.blocks(order, window))
        try:
            address = self.space.alloc(size, within=within, kind=label.kind, owner=label.owner)
        except potad.OutOfSpace as error:
            assert not possible
            self.check_no_room(error, self.rounded(size))
            return
        assert address % self.unit == 0
        assert address // self.unit in possible
        self.take(address // self.unit, 1 << order, label)

    @rule(
        data=st.data(),
        granules=st.integers(1, 8) | st.integers(1, 40) | st.integers(1, WINDOW_GRANULES),
        less=st.integers(0, 1 << 21),
        align=st.none() | st.sampled_from([1, 2, 3, 4, 7, 8, 16, 64]),
        fine=st.booleans(),
        fit=st.sampled_from(["aligned", "first"]),
        label=LABELS,
    )
    def alloc_run(
        self,
        data: st.DataObject,
        granules: int,
        less: int,
        align: int | None,
        fine: bool,
        fit: Any,
        label: Known,
    ) -> None:
        size = self.units(granules, less)
        length = -(-size // self.unit)
        within, window = self.window(data)
        # Alignments below the granule as well, which ask for nothing unless they are odd.
        align = align if align is None or fine else align * self.unit
        expected = self.model.run(length, align or 1, self.unit, window, fit)
        try:
            address = self.space.alloc_run(
                size, align=align, within=within, fit=fit, kind=label.kind, owner=label.owner
            )
        except potad.OutOfSpace as error:
            assert expected is None
            self.check_no_room(error, self.rounded(size))
            return
        assert expected is not None
        assert address == expected * self.unit
        self.take(expected, length, label)

    @rule(data=st.data(), label=LABELS)
    def alloc_at(self, data: st.DataObject, label: Known) -> None:
        start, length = self.range(data, self.model.having(FREE))
        address, size = start * self.unit, length * self.unit
        if self.model.is_free(start, length):
            at = self.space.alloc_at(address, size, kind=label.kind, owner=label.owner)
            assert at == address
            self.take(start, length, label)
            return
        with pytest.raises(potad.OutOfSpace) as caught:
            self.space.alloc_at(address, size, kind=label.kind, owner=label.owner)
        assert (caught.value.reason, caught.value.requested) == ("occupied", size)

    @rule(
        data=st.data(),
        granules=st.integers(1, 20) | st.integers(1, WINDOW_GRANULES),
        less=st.integers(0, 1 << 21),
        smallest=st.none() | st.integers(1, 16),
        label=LABELS,
    )
    def alloc_scattered(
        self, data: st.DataObject, granules: int, less: int, smallest: int | None, label: Known
    ) -> None:
        size = self.units(granules, less)
        within, window = self.window(data)
        expected = self.model.scattered(-(-size // self.unit), order_of(smallest or 1), window)
        min_block = None if smallest is None else smallest * self.unit
        try:
            blocks = self.space.alloc_scattered(
                size, min_block=min_block, within=within, kind=label.kind, owner=label.owner
            )
        except potad.OutOfSpace as error:
            assert expected is None
            self.check_no_room(error, self.rounded(size))
            return
        assert [size // self.unit for _, size in blocks] == expected
        for address, size in blocks:
            start, length = address // self.unit, size // self.unit
            assert window is None or window[0] <= start <= window[1] - length
            assert address % size == 0
            self.take(start, length, label)

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
            self.take(address // self.unit, length, Known())

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
            if self.pins(start):
                with pytest.raises(potad.Busy) as busy:
                    self.space.free(address)
                assert (busy.value.address, busy.value.pins) == (address, self.pins(start))
                return
            self.space.free(address)
            self.release(start, self.model.allocations()[start])
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
        pinned = [start for start in starts if self.known.get(start, Known()).pins]
        if pinned:
            with pytest.raises(potad.Busy) as busy:
                self.space.free_many(addresses)
            assert busy.value.address == pinned[0] * self.unit
            return
        if wrong:
            with pytest.raises(potad.NotAllocated) as caught:
                self.space.free_many(addresses)
            assert caught.value.address == wrong[0] * self.unit
            return
        self.space.free_many(addresses)
        for start in starts:
            self.release(start, allocations[start])

    @rule(data=st.data())
    def free_range(self, data: st.DataObject) -> None:
        start, length = self.range(data, filter(self.model.is_used, self.model.cells))
        granules = range(start, start + length)
        unused = [at for at in granules if not self.model.is_used(at)]
        pinned = [at for at in granules if self.pins(at)]
        if pinned and (not unused or pinned[0] < unused[0]):
            with pytest.raises(potad.Busy) as busy:
                self.space.free_range(start * self.unit, length * self.unit)
            first = self.model.cells[pinned[0]]
            assert isinstance(first, int)
            assert busy.value.address == first * self.unit
            return
        if unused:
            with pytest.raises(potad.NotAllocated) as caught:
                self.space.free_range(start * self.unit, length * self.unit)
            assert caught.value.address == unused[0] * self.unit
            return
        self.space.free_range(start * self.unit, length * self.unit)
        self.release(start, length)

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
        elif self.pins(start):
            with pytest.raises(potad.Busy):
                self.space.split(start * self.unit, part * self.unit)
        else:
            self.space.split(start * self.unit, part * self.unit)
            self.model.restart(start + part)
            self.known[start + part] = self.known[start]

    # ---- what is known -------------------------------------------------------------------------

    @rule(data=st.data(), call=st.sampled_from(["pin", "unpin"]))
    def pin_or_unpin(self, data: st.DataObject, call: str) -> None:
        granule = self.pick(data, filter(self.model.is_used, self.model.cells))
        cell = self.model.cells.get(granule)
        if not isinstance(cell, int):
            with pytest.raises(potad.NotAllocated):
                getattr(self.space, call)(granule * self.unit)
            return
        known = self.known[cell]
        if call == "unpin" and not known.pins:
            with pytest.raises(ValueError, match="pinned"):
                self.space.unpin(granule * self.unit)
            return
        pins = known.pins + (1 if call == "pin" else -1)
        assert getattr(self.space, call)(granule * self.unit) == pins
        self.known[cell] = replace(known, pins=pins)

    @rule(data=st.data())
    def pin_range(self, data: st.DataObject) -> None:
        start, length = self.range(data, self.model.cells)
        cells = {self.model.cells.get(at) for at in range(start, start + length)}
        starts = sorted(cell for cell in cells if isinstance(cell, int))
        if not starts:
            with pytest.raises(potad.NotAllocated):
                self.space.pin_range(start * self.unit, length * self.unit)
            return
        pinned = self.space.pin_range(start * self.unit, length * self.unit)
        assert pinned.tolist() == [at * self.unit for at in starts]
        for at in starts:
            self.known[at] = replace(self.known[at], pins=self.known[at].pins + 1)

    @rule(data=st.data(), value=st.integers(0, 1 << 60))
    def write(self, data: st.DataObject, value: int) -> None:
        having = [at for at, known in self.known.items() if known.kind in KINDS[1:]]
        if having:
            start = data.draw(st.sampled_from(sorted(having)))
            found = self.space.lookup(start * self.unit)
            assert found is not None
            value_of(found.record)[...] = value
            self.known[start] = replace(self.known[start], value=value)

    @rule(data=st.data(), within=st.integers(0, 1 << 21))
    def memory_failure(self, data: st.DataObject, within: int) -> None:
        granule = self.pick(data, self.model.cells)
        address = granule * self.unit + within % self.unit
        cell = self.model.cells.get(granule)
        if not self.model.is_in_space(granule, 1):
            with pytest.raises(ValueError, match="address must be"):
                self.space.memory_failure(address)
            return
        outcome = self.space.memory_failure(address)
        self.model.retire(granule, 1)
        if isinstance(cell, int):
            owner = self.known[cell].owner
            answer = owner.answer if isinstance(owner, Owner) else potad.Outcome.FAILED
            assert outcome is answer
        else:
            assert outcome is potad.Outcome.RECOVERED

    @rule()
    def report(self) -> None:
        sums: dict[Any, list[int]] = {}
        for start, length in self.model.allocations().items():
            known = self.known[start]
            row = sums.setdefault((known.kind, known.owner), [0, 0])
            row[0] += 1
            row[1] += length * self.unit
        found = {(r.kind, r.owner): [r.allocations, r.size] for r in self.space.report()}
        assert found == sums
        for kind in KINDS:
            starts = [at for at, known in self.known.items() if known.kind is kind]
            records = self.space.records(kind)
            assert records["start"].tolist() == sorted(start * self.unit for start in starts)
        for owner in OWNERS:
            starts = [at for at, known in self.known.items() if known.owner is owner]
            owned = [found.start for found in self.space.owned_by(owner)]
            assert owned == sorted(start * self.unit for start in starts)

    # ---- moving --------------------------------------------------------------------------------

    def number_movables(self) -> None:
        """Gives each movable allocation a number of its own in its record, to tell it by."""
        for number, (start, known) in enumerate(self.known.items()):
            if known.kind is MOVABLE:
                found = self.space.lookup(start * self.unit)
                assert found is not None
                assert found.record is not None
                found.record[...] = number
                self.known[start] = replace(known, value=number)

    def follow_moves(self) -> int:
        """Moves in the model what was moved, all of which may be; how many granules."""
        places = {
            int(found.record): found.start // self.unit
            for found in self.space
            if found.kind is MOVABLE and found.record is not None
        }
        lengths = self.model.allocations()
        moved = {
            start: (places[known.value], lengths[start], known)
            for start, known in self.known.items()
            if known.kind is MOVABLE and places[known.value] != start
        }
        for start, (_, length, known) in moved.items():
            assert not known.pins
            assert known.owner is not STUBBORN
            del self.known[start]
            self.model.release(start, length)
        for new, length, known in moved.values():
            self.take(new, length, known)
        return sum(length for _, length, _ in moved.values())

    def cheapest(self, length: int, align: int) -> int | None:
        """Granules that have to be moved at least for a run, if nobody refuses."""
        lengths = self.model.allocations()
        costs = []
        for start in self.model.cells:
            cells = [self.model.cells.get(at, RETIRED) for at in range(start, start + length)]
            victims = {cell for cell in cells if isinstance(cell, int)}
            retired = any(at in self.model.retired for at in range(start, start + length))
            loose = all(self.known[at].kind is MOVABLE and not self.pins(at) for at in victims)
            if start % align == 0 and loose and not retired and RETIRED not in cells:
                costs.append(sum(lengths[at] for at in victims))
        return min(costs, default=None)

    @rule(
        granules=st.integers(1, 8) | st.integers(1, 40),
        align=st.sampled_from([1, 1, 2, 3, 8]),
        label=LABELS,
    )
    def alloc_run_by_moving(self, granules: int, align: int, label: Known) -> None:
        self.number_movables()
        least = self.cheapest(granules, align)
        free = self.model.run(granules, align * self.unit, self.unit, None, "aligned")
        size = granules * self.unit
        try:
            address = self.space.alloc_run(
                size, align=align * self.unit, relocate=True, kind=label.kind, owner=label.owner
            )
        except potad.OutOfSpace as error:
            assert free is None
            assert self.follow_moves() == 0
            self.check_no_room(error, size)
            return
        assert address % (align * self.unit) == 0
        start = address // self.unit
        # The run itself is not one of those that were numbered.
        run = self.space.lookup(address)
        assert run is not None
        assert (run.start, run.size, run.kind, run.owner) == (
            address,
            size,
            label.kind,
            label.owner,
        )
        if label.kind is MOVABLE:
            assert run.record is not None
            run.record[...] = -1 % (1 << 64)
        moved = self.follow_moves()
        assert least is not None
        assert moved >= least
        assert free is None or (moved, start) == (0, free)
        if run.record is not None:
            value_of(run.record)[...] = 0
        self.take(start, granules, label)

    @rule(order=st.integers(0, 5), count=st.integers(0, 6), budget=st.none() | st.integers(0, 60))
    def compact(self, order: int, count: int, budget: int | None) -> None:
        self.number_movables()
        before = sum(1 for _ in self.model.blocks(order))
        limit = None if budget is None else budget * self.unit
        done = self.space.compact(self.unit << order, count, budget=limit)
        self.follow_moves()
        blocks = sum(1 for _ in self.model.blocks(order))
        assert min(before, count) <= done.blocks <= min(blocks, count)
        assert budget is None or done.size <= budget * self.unit
        assert done.size == sum(size for _, _, size in done.moves)

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
        for found, (start, length) in zip(space, allocations.items(), strict=True):
            known = self.known[start]
            assert (found.start, found.size) == (start * unit, length * unit)
            assert (found.kind, found.owner, found.pins) == (known.kind, known.owner, known.pins)
            if found.record is not None:
                assert value_of(found.record) == known.value
        assert space.spans() == [(start * unit, length * unit) for start, length in model.spans()]
        retired = model.retired_in_space()
        assert space.retired().tolist() == [granule * unit for granule in retired]
        assert space.retired_ranges() == [
            (start * unit, length * unit) for start, length in model.ranges(retired)
        ]
        # Not after every step: asking for these gives recent blocks back to the tree.
        if len(allocations) % 3:
            return
        assert space.largest_free == model.largest_free() * unit
        assert list(space.free_blocks().items()) == [
            (length * unit, count) for length, count in model.free_blocks().items()
        ]
        space.check()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=50)
