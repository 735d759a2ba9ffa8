"""Any sequence of calls on a swap file against a dictionary, with all compared after every step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from swapping import KIB, content, data_of, has_holes

import potad

KEPT = 64 * KIB
"""What is kept of what was freed, less than usually, so that small files come to it."""

GRANULES_MAX = 200

with tempfile.TemporaryDirectory() as _directory:
    HAS_HOLES = has_holes(Path(_directory))


class Owner:
    """Follows its slot, or does not."""

    def __init__(self, agrees: bool) -> None:
        self.agrees = agrees
        self.places: list[int] = []

    def on_relocate(self, move: potad.Move) -> bool:
        assert move.owner is self
        if not self.agrees:
            return False
        self.places.remove(move.old)
        self.places.append(move.new)
        return True


class Machine(RuleBasedStateMachine):
    """A swap file and its model: data and owner of each slot."""

    @initialize(
        granule=st.sampled_from([512, 4096, 16384]),
        granules=st.integers(1, GRANULES_MAX),
        checksums=st.booleans(),
        direct=st.booleans(),
    )
    def make(self, granule: int, granules: int, checksums: bool, direct: bool) -> None:
        self.patch = mock.patch("potad.swap.holes.KEPT_MIN", KEPT)
        self.patch.start()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "swap")
        self.granule = granule
        self.size = granules * granule
        self.options: dict[str, Any] = {"checksums": checksums, "direct": direct}
        self.swap = potad.SwapFile(self.path, self.size, granule=granule, **self.options)
        self.model: dict[int, tuple[bytes, Owner | None]] = {}
        self.next = 0

    def teardown(self) -> None:
        if hasattr(self, "swap"):
            self.swap.close()
            self.directory.cleanup()
            self.patch.stop()

    # ---- what is drawn -------------------------------------------------------------------------

    def data(self, data: st.DataObject) -> bytes:
        """Data of about so many granules."""
        granules = data.draw(st.integers(0, 3) | st.integers(0, 40))
        size = max(granules * self.granule + data.draw(st.sampled_from([-1, 0, 1, 100])), 0)
        self.next += 1
        return data_of(self.next, size)

    def owner(self, data: st.DataObject) -> Owner | None:
        answer = data.draw(st.sampled_from([None, True, True, True, False]))
        return None if answer is None else Owner(answer)

    def some(self, data: st.DataObject) -> list[int]:
        if not self.model:
            return []
        return data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True))

    def taken(self, data: bytes) -> int:
        return max(-(-len(data) // self.granule), 1) * self.granule

    @property
    def used(self) -> int:
        return sum(self.taken(data) for data, _ in self.model.values())

    def hold(self, slot: int, data: bytes, owner: Owner | None) -> None:
        assert slot not in self.model
        self.model[slot] = data, owner
        if owner is not None:
            owner.places.append(slot)

    # ---- calls ---------------------------------------------------------------------------------

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        content, owner = self.data(data), self.owner(data)
        try:
            slot = self.swap.write(content, owner=owner)
        except potad.OutOfSpace as error:
            assert error.requested == self.taken(content)
            assert error.available == self.size - self.used
            return
        self.hold(slot, content, owner)

    @rule(data=st.data(), count=st.integers(0, 6))
    def write_many(self, data: st.DataObject, count: int) -> None:
        contents = [self.data(data) for _ in range(count)]
        owners = [self.owner(data) for _ in range(count)]
        try:
            slots = self.swap.write_many(contents, owners=owners)
        except potad.OutOfSpace:
            return
        for it in zip(slots, contents, owners, strict=True):
            self.hold(*it)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        slots = self.some(data)
        want = [self.model[slot][0] for slot in slots]
        assert self.swap.read_many(slots) == want
        buffers = [bytearray(b"?" * (len(it) + 3)) for it in want]
        assert self.swap.read_many_into(slots, buffers) == [*map(len, want)]
        assert buffers == [it + b"???" for it in want]

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        slots = self.some(data)
        if len(slots) == 1:
            self.swap.free(slots[0])
        else:
            self.swap.free_many(slots)
        for slot in slots:
            del self.model[slot]
            with pytest.raises(potad.NotAllocated):
                self.swap.free(slot)

    @rule(data=st.data())
    def free_what_is_pinned(self, data: st.DataObject) -> None:
        slots = self.some(data)
        if slots:
            with self.swap.space.pinned(slots[0]), pytest.raises(potad.Busy):
                self.swap.free_many(slots)

    @precondition(lambda self: len(self.model) > 5)
    @rule()
    def clear(self) -> None:
        self.swap.clear()
        self.model.clear()

    @rule()
    def trim(self) -> None:
        self.swap.trim()
        if HAS_HOLES:
            assert self.disk_size <= self.blocks * 4096 + 16 * KIB

    @rule()
    def sync(self) -> None:
        self.swap.sync()

    @rule(granules=st.integers(0, GRANULES_MAX))
    def grow(self, granules: int) -> None:
        self.size = max(granules * self.granule, self.size)
        self.swap.grow(self.size)

    @rule(granules=st.integers(1, GRANULES_MAX))
    def shrink(self, granules: int) -> None:
        size = min(granules * self.granule, self.size)
        tail = {slot for slot, (data, _) in self.model.items() if slot + self.taken(data) > size}
        owners = [owner for slot in tail if (owner := self.model[slot][1]) is not None]
        places = [list(owner.places) for owner in owners]
        try:
            moved = self.swap.shrink(size)
        except potad.OutOfSpace as error:
            assert tail
            assert [owner.places for owner in owners] == places
            if error.in_the_way:
                assert error.in_the_way[0].why == "refused"
                assert error.in_the_way[0].owner in [it for it in owners if not it.agrees]
            # What was copied is noted only.
            self.swap.trim()
            return
        assert all(owner.agrees for owner in owners)
        assert set(moved) == tail
        self.size = size
        self.model = {moved.get(slot, slot): it for slot, it in self.model.items()}
        for slot, (_, owner) in self.model.items():
            assert owner is None or owner.places == [slot]

    @rule(
        data=st.data(),
        checksums=st.booleans(),
        direct=st.booleans(),
        keep=st.sampled_from([True, True, True, False]),
    )
    def reopen(self, data: st.DataObject, checksums: bool, direct: bool, keep: bool) -> None:
        was_kept = self.options.get("keep", True)
        if data.draw(st.booleans()):
            self.swap.close()
        else:
            del self.swap
        size = data.draw(st.none() | st.integers(self.size // self.granule, GRANULES_MAX))
        size = None if size is None else size * self.granule
        if not keep or not was_kept:
            # A file that is not kept is a new one, and leaves none.
            for path in self.path.parent.iterdir():
                path.unlink()
            size = size or self.size
        self.options = {"checksums": checksums, "direct": direct, "keep": keep}
        self.swap = potad.SwapFile(self.path, size, granule=self.granule, **self.options)
        self.size = size or self.size
        if not keep or not was_kept:
            self.model.clear()
        self.model = {slot: (content, None) for slot, (content, _) in self.model.items()}

    # ---- what holds ----------------------------------------------------------------------------

    @property
    def disk_size(self) -> int:
        return self.swap._store.file.disk_size

    @property
    def blocks(self) -> int:
        """Blocks of a file system that slots lie in."""
        blocks: set[int] = set()
        for slot, (data, _) in self.model.items():
            blocks.update(range(slot // 4096, -(-(slot + self.taken(data)) // 4096)))
        return len(blocks)

    @invariant()
    def it_is_as_the_model(self) -> None:
        self.swap.space.check()
        assert self.swap.size == self.size == self.swap._store.file.size
        assert len(self.swap) == len(self.model)
        assert content(self.swap) == {slot: data for slot, (data, _) in self.model.items()}
        space = self.swap.space
        assert (space.used, space.available) == (self.used, self.size - self.used)
        for it in space:
            data, owner = self.model[it.start]
            assert (it.size, it.owner, it.pins) == (self.taken(data), owner, 0)
        if HAS_HOLES:
            kept = max(KEPT, self.used // 64)
            # Freed at once it may be the last call's as well, if that came to less.
            assert self.disk_size <= self.blocks * 4096 + kept + 16 * KIB


TestModel = Machine.TestCase
TestModel.settings = settings(max_examples=80, stateful_step_count=40)
