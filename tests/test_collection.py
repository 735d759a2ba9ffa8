"""Spaces and the garbage collector: it waits for no call, clears nothing in use, finds cycles."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

import potad

GRANULE = 4096
PAGE = potad.Kind("page", movable=True)


class Owner:
    """Something that refers to what it is told to."""

    def __init__(self, *others: object) -> None:
        self.others: list[object] = list(others)


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Lets Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def scattered(granules: int) -> potad.Space:
    """A space in which a run is hard to make room for."""
    space = potad.Space(granules * GRANULE)
    for _ in range(0, granules, 8):
        space.alloc_run(5 * GRANULE, kind=PAGE)
    return space


def search(space: potad.Space) -> None:
    """A call that takes long."""
    with suppress(potad.OutOfSpace):
        space.plan_run(space.size // 64)


class Ticker:
    """Measures the longest time for which this thread could not run."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        last = time.perf_counter()
        while not self.stopped.wait(0.002):
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now

    def __enter__(self) -> Ticker:
        self.thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stopped.set()
        self.thread.join()


def finaliser_of_a_buffer(arena: potad.Arena, buffers: list[potad.Buffer]) -> None:
    buffers.pop()


def end_of_a_view(arena: potad.Arena, buffers: list[potad.Buffer]) -> None:
    memoryview(buffers[-1]).release()


def arrays_memory(arena: potad.Arena, buffers: list[potad.Buffer]) -> None:
    np.zeros(1000)


def look(arena: potad.Arena, buffers: list[potad.Buffer]) -> None:
    arena.space.lookup(arena.space.base)


def collection(arena: potad.Arena, buffers: list[potad.Buffer]) -> None:
    gc.collect()


@pytest.fixture(scope="module")
def full() -> tuple[potad.Arena, list[potad.Buffer], float]:
    """An arena in which a run is hard to find, buffers in it, and how long the search takes."""
    took, granules = 0.0, 1 << 14
    while took < 1.0:
        granules *= 2
        arena = potad.Arena(granules * GRANULE)
        buffers = [arena.alloc_run(5 * GRANULE) for _ in range(granules // 8)]
        buffers += [arena.alloc(GRANULE) for _ in range(4)]
        started = time.perf_counter()
        search(arena.space)
        took = time.perf_counter() - started
    with arena.numpy():
        pass
    return arena, buffers, took


@pytest.mark.parametrize(
    "act", [collection, finaliser_of_a_buffer, end_of_a_view, arrays_memory, look]
)
def test_other_threads_run_while_one_waits_for_a_long_call(
    full: tuple[potad.Arena, list[potad.Buffer], float],
    act: Callable[[potad.Arena, list[potad.Buffer]], None],
) -> None:
    arena, buffers, took = full
    thread = threading.Thread(target=search, args=(arena.space,))
    with arena.numpy(), Ticker() as ticker:
        thread.start()
        time.sleep(took / 20)
        act(arena, buffers)
        thread.join()
    # Where all stand still it is nearly as long as the call.
    assert ticker.longest < 0.6 * took, (took, ticker.longest)
    arena.space.check()


@pytest.mark.parametrize("count", [1, 4])
def test_a_look_up_gets_its_turn_among_long_calls(count: int) -> None:
    """Threads that make one long call after the other do not keep it waiting."""
    space = scattered(1 << 17)
    block = space.alloc(GRANULE, owner="owner")
    stop = threading.Event()
    calls = [0] * count

    def work(number: int) -> None:
        while not stop.is_set():
            space.check()
            calls[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        longest = 0
        for _ in range(100):
            before = sum(calls)
            found = space.lookup(block)
            longest = max(longest, sum(calls) - before)
            assert found is not None
            assert found.owner == "owner"
        # Where it has no turn, hundreds of calls come first.
        assert longest < 50
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_owners_of_allocations_are_never_cleared(rng: random.Random) -> None:
    """Nothing but an allocation refers to them, while long calls and collections run."""
    space = scattered(1 << 11)
    seconds = 3.0
    stop = threading.Event()
    errors: list[BaseException] = []

    def guard(work: Callable[[random.Random], None], seed: int) -> None:
        try:
            random_ = random.Random(seed)
            while not stop.is_set():
                work(random_)
        except BaseException as error:
            errors.append(error)
            stop.set()

    def collect(_: random.Random) -> None:
        gc.collect(random.randrange(3))

    def come_and_go(random_: random.Random) -> None:
        blocks = []
        for _ in range(random_.randrange(1, 20)):
            owner = Owner(space)
            # Each refers to itself as well: only the space keeps the collector from it.
            owner.others.append(owner)
            owner.others.append("whole")
            blocks.append(space.alloc(GRANULE, owner=owner))
            del owner
        for block in blocks:
            found = space.lookup(block)
            assert found is not None
            assert isinstance(found.owner, Owner)
            assert found.owner.others[0] is space
            assert found.owner.others[2] == "whole"
            del found
            space.free(block)

    works = [collect, come_and_go, come_and_go, lambda _: search(space), lambda _: search(space)]
    threads = [
        threading.Thread(target=guard, args=(work, rng.randrange(1 << 30))) for work in works
    ]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    space.check()


@pytest.mark.parametrize("with_long_calls", [False, True])
def test_cycles_through_a_space_are_collected(with_long_calls: bool) -> None:
    """Of an owner and its space, also of many spaces that own one another."""
    stop = threading.Event()
    other = scattered(1 << 10)

    def work() -> None:
        while not stop.is_set():
            search(other)

    thread = threading.Thread(target=work)
    if with_long_calls:
        thread.start()
    try:
        gone = []
        for _ in range(50):
            spaces = [potad.Space(1 << 20) for _ in range(5)]
            for space, next_space in zip(spaces, spaces[1:] + spaces[:1], strict=True):
                owner = Owner(next_space)
                space.alloc(GRANULE, owner=owner)
                gone.append(weakref.ref(owner))
            del spaces, space, next_space, owner
        gc.collect()
        assert all(owner() is None for owner in gone)
    finally:
        stop.set()
        if with_long_calls:
            thread.join()


def test_kinds_without_allocations_are_forgotten() -> None:
    """A space keeps kinds in use, and not many others."""
    space = potad.Space(1 << 24)
    in_use = [potad.Kind(f"{number}", record="u8") for number in range(40)]
    blocks = [space.alloc(GRANULE, kind=kind) for kind in in_use]
    metadata = 0
    gone = []
    for number in range(2000):
        kind = potad.Kind("short-lived", record=f"S{number % 50 + 1}")
        block = space.alloc(GRANULE, kind=kind)
        found = space.lookup(block)
        assert found is not None
        assert found.kind is kind
        del found
        space.free(block)
        gone.append(weakref.ref(kind))
        del kind
        if number == 200:
            metadata = space.metadata_bytes
    assert sum(kind() is not None for kind in gone) <= 2 * len(in_use)
    assert space.metadata_bytes <= 2 * metadata
    # Those in use are still what they were, and so is one that comes again.
    for kind, block in zip(in_use, blocks, strict=True):
        found = space.lookup(block)
        assert found is not None
        assert found.kind is kind
        space.free(block)
        assert space.lookup(space.alloc_at(block, GRANULE, kind=kind)).kind is kind  # type: ignore[union-attr]
    space.check()


def test_a_record_that_is_looked_at_keeps_its_kind() -> None:
    space = potad.Space(1 << 24)
    kind = potad.Kind("looked at", record="u8")
    block = space.alloc(GRANULE, kind=kind)
    found = space.lookup(block)
    assert found is not None
    record = found.record
    assert record is not None
    record[...] = 7
    space.free(block)
    for _ in range(200):
        other = potad.Kind("other", record="u8")
        block = space.alloc(GRANULE, kind=other)
        assert space.records(other)["record"].tolist() == [0]
        space.free(block)
    assert record == 7
    space.check()


def test_arenas_keep_the_kinds_of_their_own() -> None:
    arena = potad.Arena(1 << 24)
    with arena.numpy():
        pass
    for number in range(200):
        arena.alloc(100, potad.Kind(f"{number}")).free()
    buffer = arena.alloc(100)
    assert buffer.kind is not None
    assert buffer.kind.name == "buffer"
    with arena.numpy():
        array = np.zeros(1000)
    found = arena.find(array.ctypes.data)
    assert found is not None
    assert found.kind is not None
    assert found.kind.name == "numpy"
    arena.space.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_collector_sees_a_space_in_a_child_of_a_fork() -> None:
    """Also one that a thread was using, which the child does not have."""
    space = scattered(1 << 12)
    owner = Owner()
    space.alloc(GRANULE, owner=owner)
    assert owner in gc.get_referents(space)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            search(space)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            time.sleep(0.01)
            child = os.fork()
            if child == 0:
                os._exit(0 if owner in gc.get_referents(space) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


AT_THE_END = """
import builtins, sys, threading, time
import potad

space = potad.Space(1 << 30)
blocks = [space.alloc(4096, kind=potad.Kind("page", movable=True)) for _ in range(1 << 12)]

class Last:
    def __del__(self):
        space.check()
        sys.stdout.write("checked")

def look():
    while True:
        space.lookup(blocks[0])

def check():
    while True:
        space.check()

builtins.last = Last()
for work in [look] * 8 + [check] * 2:
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""


def test_a_long_call_at_the_end_of_the_interpreter_waits_for_no_daemon_thread() -> None:
    """A thread that waits for the interpreter then never comes back."""
    for _ in range(5):
        command = [sys.executable, "-c", AT_THE_END]
        done = subprocess.run(command, timeout=60, check=True, capture_output=True)
        assert done.stdout == b"checked"
