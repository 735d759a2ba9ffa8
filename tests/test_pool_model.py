"""Pools against a dictionary, step by step, with pins that are held across steps."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import potad

KIB = 1 << 10
MEMORY = 128 * KIB
SWAP = 1024 * KIB
SIZES = [1, 4095, 4096, 5000, 12_000, 20_000, 50_000]
KIND = potad.Kind("numbered", record=np.dtype([("number", "u8")]), movable=True)


class Machine(RuleBasedStateMachine):
    """A pool, others in its arena, and what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.swap = potad.SwapFile(Path(self.directory.name, "swap"), SWAP)
        self.arena = potad.Arena(MEMORY)
        self.pool = potad.Pool(memory=self.arena, swap=self.swap, write_ahead=0)
        self.rng = random.Random(0)
        self.numbers = 0
        # What is in each object, or None if it is lost; and its number.
        self.model: dict[potad.Handle, bytes | None] = {}
        self.number: dict[potad.Handle, int] = {}
        self.pins: list[tuple[potad.Handle, Any, memoryview]] = []
        self.others: list[potad.Buffer] = []

    def pick(self, data: st.DataObject) -> potad.Handle:
        # A place, since what is drawn is kept, and handles are to be collected.
        return list(self.model)[data.draw(st.integers(0, len(self.model) - 1))]

    @property
    def is_short(self) -> bool:
        """Whether there may be no room although nothing is pinned."""
        is_cut = self.pool.limit < MEMORY or self.arena.space.retired().size > 0
        return bool(self.others) or is_cut

    def is_pinned(self, handle: potad.Handle) -> bool:
        return any(it is handle for it, _, _ in self.pins)

    @precondition(lambda self: sum(it.nbytes for it in self.model) < SWAP // 2)
    @rule(size=st.sampled_from(SIZES), align=st.sampled_from([None, 4096, 16_384]))
    def alloc(self, size: int, align: int | None) -> None:
        try:
            handle = self.pool.alloc(size, KIND, self, align=align)
        except potad.OutOfSpace as error:
            # Never without something in the way.
            assert error.in_the_way or self.is_short
            return
        content = self.rng.randbytes(size)
        self.numbers += 1
        with handle.pin() as view:
            view[:] = content
            assert handle.record is not None
            handle.record["number"] = self.numbers
        self.model[handle], self.number[handle] = content, self.numbers

    @precondition(lambda self: self.model)
    @rule(data=st.data(), write=st.booleans(), hold=st.booleans())
    def pin(self, data: st.DataObject, write: bool, hold: bool) -> None:
        handle = self.pick(data)
        content = self.model[handle]
        pin = handle.pin(write)
        try:
            view = pin.__enter__()
        except potad.Poisoned:
            assert content is None
            return
        except potad.OutOfSpace as error:
            assert error.in_the_way or self.is_short
            return
        assert content is not None
        assert view == content
        assert handle.record is not None
        assert handle.record["number"] == self.number[handle]
        if write:
            new = self.rng.randbytes(handle.nbytes)
            view[:] = new
            self.model[handle] = new
        if hold and len(self.pins) < 3:
            self.pins.append((handle, pin, view))
        else:
            pin.__exit__(None, None, None)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        _, pin, _ = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        pin.__exit__(None, None, None)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        handle = self.pick(data)
        if handle.pins:
            try:
                handle.free()
            except potad.Busy:
                return
            raise AssertionError("a pinned object was freed")
        handle.free()
        del self.model[handle], self.number[handle]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        handle = self.pick(data)
        if not self.is_pinned(handle):
            del self.model[handle], self.number[handle]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def memory_fails(self, data: st.DataObject) -> None:
        handle = self.pick(data)
        if not handle.resident or self.is_pinned(handle) or self.arena.space.retired().size > 3:
            return
        try:
            with handle.pin(write=False) as view:
                address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        except potad.Poisoned:
            return
        outcome = self.arena.memory_failure(address)
        if outcome is not potad.Outcome.RECOVERED:
            assert outcome is potad.Outcome.FAILED
            self.model[handle] = None
        assert handle.lost is (self.model[handle] is None)

    @rule(size=st.sampled_from([16 * KIB, 64 * KIB, MEMORY]))
    def resize(self, size: int) -> None:
        try:
            self.pool.resize(size)
        except potad.OutOfSpace as error:
            assert error.in_the_way

    @rule()
    def flush(self) -> None:
        self.pool.flush()

    @rule(size=st.integers(SWAP * 3 // 4 // 4096, SWAP // 4096))
    def cut_swap(self, size: int) -> None:
        if size * 4096 < self.swap.size:
            try:
                self.swap.shrink(size * 4096)
            except potad.OutOfSpace:
                return
        else:
            self.swap.grow(size * 4096)

    @rule(size=st.sampled_from([4096, 20_000]))
    def others_come(self, size: int) -> None:
        if len(self.others) < 2:
            try:
                self.others.append(self.arena.alloc(size))
            except potad.OutOfSpace:
                return

    @precondition(lambda self: self.others)
    @rule()
    def others_go(self) -> None:
        self.others.pop().free()

    @invariant()
    def it_is_whole(self) -> None:
        self.pool.check()
        self.arena.space.check()
        self.swap.space.check()
        assert len(self.pool) == len(self.model)
        stats = self.pool.stats()
        assert stats.resident_bytes <= stats.memory_bytes
        # What is pinned stays as it was written.
        for handle, _, view in self.pins:
            assert bytes(view) == self.model[handle]

    def teardown(self) -> None:
        for _, pin, _ in self.pins:
            pin.__exit__(None, None, None)
        for buffer in self.others:
            buffer.free()
        self.pool.resize(MEMORY)
        for start, size in self.arena.space.retired_ranges():
            self.arena.space.restore(start, size)
        for handle, content in self.model.items():
            if content is not None:
                with handle.pin(write=False) as view:
                    assert view == content
        self.pool.close()
        assert self.swap.space.used == 0
        assert self.arena.space.used == 0
        self.swap.close()
        self.directory.cleanup()


TestModel = Machine.TestCase
TestModel.settings = settings(max_examples=80, stateful_step_count=40)
