"""Pools when the system, memory or a process fails: no object is lost that need not be."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty import Faulty, failing, interrupted, some_bytes, some_bytes_and_no_more

import potad
from potad.swap.file import System

KIB, MIB = 1 << 10, 1 << 20

FAULTS = [
    ("pwritev", failing(errno.EIO), False),
    ("pwritev", failing(errno.EIO), True),
    ("pwritev", failing(errno.ENOSPC), True),
    ("pwritev", some_bytes, False),
    ("pwritev", some_bytes_and_no_more, False),
    ("pwritev", interrupted, False),
    ("preadv", failing(errno.EIO), False),
    ("preadv", some_bytes, False),
    ("preadv", interrupted, False),
]


class Load:
    """A scripted load of a pool beside a dictionary of what is in it."""

    def __init__(self, pool: potad.Pool) -> None:
        self.pool = pool
        self.model: dict[potad.Handle, bytes] = {}
        self.refused = 0

    def step(self, rng: random.Random) -> None:
        choice = rng.random()
        if choice < 0.3 and len(self.model) < 40:
            content = rng.randbytes(rng.choice([100, 5000, 30_000, 90_000]))
            handle = self.pool.alloc(len(content))
            # What cannot be pinned cannot be in the model either.
            with handle.pin() as view:
                view[:] = content
            self.model[handle] = content
            return
        if not self.model:
            return
        handle = rng.choice(list(self.model))
        if choice < 0.4:
            del self.model[handle]
            handle.free()
        elif choice < 0.7:
            with handle.pin(write=False) as view:
                assert view == self.model[handle]
        else:
            content = rng.randbytes(handle.nbytes)
            with handle.pin() as view:
                assert view == self.model[handle]
                view[:] = content
            self.model[handle] = content

    def run(self, steps: int) -> None:
        rng = random.Random(11)
        for _ in range(steps):
            try:
                self.step(rng)
            except (OSError, potad.OutOfSpace, KeyboardInterrupt):
                self.refused += 1

    def check(self) -> None:
        self.pool.check()
        self.pool.memory.space.check()
        self.pool.swap.space.check()
        for handle, content in self.model.items():
            with handle.pin(write=False) as view:
                assert view == content


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("call", "fault", "lasts"), FAULTS)
def test_every_call_that_fails(
    tmp_path: Path, call: str, fault: Any, lasts: bool, keep: bool
) -> None:
    for number in (*range(1, 20), *range(20, 400, 23)):
        system = Faulty(call, number, fault, lasts)
        system.is_on = False
        path = tmp_path / f"swap{number}"
        arena = potad.Arena(512 * KIB)
        with potad.SwapFile(path, 4 * MIB, keep=keep, _system=system) as swap:
            system.is_on = True
            with potad.Pool(memory=arena, swap=swap, write_ahead=0) as pool:
                load = Load(pool)
                load.run(150)
                system.is_on = False
                if fault is some_bytes:
                    assert not load.refused
                load.check()
                load.run(50)
                load.check()
            assert swap.space.used == 0
            swap.unlink()
        assert arena.space.used == 0
        if not system.has_failed:
            assert number > 1
            return


class Gated(System):
    """Reads or writes wait until they are let go."""

    def __init__(self, call: str) -> None:
        self.is_on = False
        self.reached = threading.Event()
        self.go = threading.Event()
        setattr(self, call, self._gated(getattr(System, call)))

    def _gated(self, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if self.is_on:
                self.reached.set()
                assert self.go.wait(60)
            return real(*arguments)

        return call


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_pin_waits_for_its_own_object_only(tmp_path: Path) -> None:
    system = Gated("preadv")
    with (
        potad.SwapFile(tmp_path / "swap", 4 * MIB, _system=system) as swap,
        potad.Pool(memory=potad.Arena(256 * KIB), swap=swap, write_ahead=0) as pool,
    ):
        handles = [pool.alloc(32 * KIB) for _ in range(12)]
        for number, handle in enumerate(handles):
            with handle.pin() as view:
                view[:] = bytes([number]) * handle.nbytes
        away = next(handle for handle in handles if not handle.resident)
        here = [handle for handle in handles if handle.resident]
        found: list[int] = []

        def read() -> None:
            with away.pin(write=False) as view:
                found.append(view[0])

        reads = pool.stats().read_latency.count
        system.is_on = True
        threads = [in_thread(read)]
        assert system.reached.wait(60)
        threads.append(in_thread(read))
        for handle in here:
            if handle.resident:
                with handle.pin(write=False) as view:
                    assert view[0] == handles.index(handle)
        assert not found
        system.go.set()
        for thread in threads:
            thread.join()
        assert found == [handles.index(away)] * 2
        # It was read once for both.
        assert pool.stats().read_latency.count == reads + 1


def test_what_is_written_to_while_it_is_written_out_stays(tmp_path: Path) -> None:
    system = Gated("pwritev")
    with (
        potad.SwapFile(tmp_path / "swap", 4 * MIB, keep=False, _system=system) as swap,
        potad.Pool(memory=potad.Arena(256 * KIB), swap=swap, write_ahead=0) as pool,
    ):
        handle = pool.alloc(100_000)
        with handle.pin() as view:
            view[:] = b"a" * 100_000
        for _ in range(2):  # to a new slot, and over the old one
            system.go.clear()
            system.reached.clear()
            system.is_on = True
            with handle.pin() as view:
                view[0] ^= 1
            thread = in_thread(pool.flush)
            assert system.reached.wait(60)
            with handle.pin() as view:
                view[:] = b"b" * 100_000
            system.go.set()
            thread.join()
            system.is_on = False
            assert pool.stats().dirty_bytes > 0
            pool.flush()
            pool.resize(4 * KIB)
            assert not handle.resident
            pool.resize(256 * KIB)
            with handle.pin() as view:
                assert view == b"b" * 100_000


def test_memory_that_fails_while_it_is_read_into(tmp_path: Path) -> None:
    system = Gated("preadv")
    arena = potad.Arena(256 * KIB)
    with (
        potad.SwapFile(tmp_path / "swap", 4 * MIB, _system=system) as swap,
        potad.Pool(memory=arena, swap=swap, write_ahead=0) as pool,
    ):
        handle = pool.alloc(50_000)
        with handle.pin() as view:
            view[:] = b"a" * 50_000
        pool.flush()
        pool.resize(4096)
        pool.resize(256 * KIB)
        system.is_on = True
        found: list[bytes] = []

        def read() -> None:
            with handle.pin(write=False) as view:
                found.append(bytes(view))

        thread = in_thread(read)
        assert system.reached.wait(60)
        (descriptor,) = list(arena.space)
        assert arena.memory_failure(descriptor.start) is potad.Outcome.RECOVERED
        system.go.set()
        thread.join()
        assert found == [b"a" * 50_000]
        with handle.pin(write=False) as view:
            address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        assert address != descriptor.start


def test_granules_that_fail_one_after_the_other(rng: random.Random, tmp_path: Path) -> None:
    arena = potad.Arena(MIB)
    with (
        potad.SwapFile(tmp_path / "swap", 8 * MIB) as swap,
        potad.Pool(memory=arena, swap=swap) as pool,
    ):
        handles = {}
        for _ in range(100):
            handle = pool.alloc(16_000)
            content = rng.randbytes(16_000)
            with handle.pin() as view:
                view[:] = content
            handles[handle] = content
        # Few enough that there is a run of four between them.
        for _ in range(40):
            pool.flush()
            address = arena.space.base + rng.randrange(MIB)
            assert arena.memory_failure(address) is potad.Outcome.RECOVERED
            handle = rng.choice(list(handles))
            with handle.pin(write=False) as view:
                assert view == handles[handle]
        pool.check()
        for handle, content in handles.items():
            with handle.pin(write=False) as view:
                assert view == content
        assert pool.stats().lost == 0


CHILD = """
import os, random, sys
import potad
swap = potad.SwapFile(sys.argv[1], 16 << 20)
pool = potad.Pool(memory=potad.Arena(1 << 20), swap=swap)
rng = random.Random(5)
handles = []
while True:
    if len(handles) < 60:
        handles.append(pool.alloc(rng.choice([4096, 100_000])))
    with rng.choice(handles).pin() as view:
        view[:] = rng.randbytes(len(view))
    os.write(1, b".")
"""


def test_a_killed_process_leaves_a_file_that_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read(300)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with potad.SwapFile(path) as swap:
        for slot in swap:
            swap.read(slot)  # each that is there is whole
        swap.clear()
        with potad.Pool(memory=potad.Arena(256 * KIB), swap=swap) as pool:
            load = Load(pool)
            load.run(100)
            load.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_fork_is_refused(tmp_path: Path) -> None:
    with (
        potad.SwapFile(tmp_path / "swap", 4 * MIB) as swap,
        potad.Pool(memory=potad.Arena(256 * KIB), swap=swap) as pool,
    ):
        load = Load(pool)
        load.run(60)
        child = os.fork()
        if not child:
            status = 1
            try:
                next(iter(load.model)).pin().__enter__()
            except potad.PotadError as error:
                status = 0 if "forked" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        load.run(60)
        load.check()


def test_a_soak(rng: random.Random, tmp_path: Path) -> None:
    """Threads that do everything at once; `POTAD_SOAK_SECONDS` has them do it for longer."""
    end = time.monotonic() + float(os.environ.get("POTAD_SOAK_SECONDS", "3"))
    with (
        potad.SwapFile(tmp_path / "swap", 64 * MIB, keep=False) as swap,
        potad.Pool(memory=potad.Arena(4 * MIB), swap=swap) as pool,
    ):
        errors: list[BaseException] = []

        def work(seed: float) -> None:
            own = random.Random(seed)
            load: dict[potad.Handle, tuple[int, int]] = {}
            try:
                while time.monotonic() < end:
                    choice = own.random()
                    if choice < 0.2 and len(load) < 60:
                        size = own.choice([1, 4096, 30_000, 200_000])
                        load[pool.alloc(size)] = (0, 0)
                        handle = next(reversed(load))
                        with handle.pin() as view:
                            view[:] = bytes(size)
                        load[handle] = (0, size)
                    elif choice < 0.3 and load:
                        handle = own.choice(list(load))
                        del load[handle]
                        if own.random() < 0.5:
                            handle.free()
                        del handle
                    elif choice < 0.32 and load:
                        pool.will_need(own.sample(list(load), min(5, len(load))))
                    elif choice < 0.322:
                        pool.resize(own.randrange(3 * MIB, 4 * MIB, 4096))
                    elif choice < 0.323:
                        pool.flush()
                    elif load:
                        handle = own.choice(list(load))
                        value, size = load[handle]
                        with handle.pin(write=own.random() < 0.4) as view:
                            assert view == bytes([value]) * size
                            if not view.readonly:
                                value = own.randrange(256)
                                view[:] = bytes([value]) * size
                                load[handle] = value, size
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        pool.check()
        swap.space.check()
        pool.memory.space.check()


def test_memory_that_fails_while_it_is_written_over(tmp_path: Path) -> None:
    """Its slot is thrown away once, not twice: the second time it would be somebody else's."""
    system = Gated("pwritev")
    arena = potad.Arena(256 * KIB)
    with (
        potad.SwapFile(tmp_path / "swap", 4 * MIB, keep=False, _system=system) as swap,
        potad.Pool(memory=arena, swap=swap, write_ahead=0) as pool,
    ):
        handle = pool.alloc(50_000)
        with handle.pin() as view:
            view[:] = b"a" * 50_000
        pool.flush()
        with handle.pin() as view:
            view[0] = 1
            address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        system.is_on = True
        thread = in_thread(pool.flush)
        assert system.reached.wait(60)
        assert arena.memory_failure(address) is potad.Outcome.FAILED
        system.go.set()
        thread.join()
        assert handle.lost
        pool.check()
        assert swap.space.used == 0
        slot = swap.write(b"other")
        handle.free()
        pool.flush()
        assert swap.read(slot) == b"other"
        assert not pool._core.trash


def test_slots_that_somebody_else_frees(tmp_path: Path) -> None:
    """What comes to be where a slot was is neither taken for the object nor freed with it."""
    with (
        potad.SwapFile(tmp_path / "swap", 256 * KIB) as swap,
        potad.Pool(memory=potad.Arena(256 * KIB), swap=swap, write_ahead=0) as pool,
    ):
        handles = [pool.alloc(50_000) for _ in range(3)]
        for handle in handles:
            with handle.pin() as view:
                view[:] = b"a" * 50_000
        pool.flush()
        pool.resize(4096)
        pool.resize(256 * KIB)
        swap.clear()
        others = [swap.write(b"b" * 50_000) for _ in range(4)]
        for handle in handles[:2]:
            with pytest.raises(potad.Poisoned), handle.pin(write=False):
                pass
        for handle in handles:
            handle.free()
        pool.check()
        for slot in others:
            assert swap.read(slot) == b"b" * 50_000


def test_a_swap_file_that_is_closed_under_its_pool(tmp_path: Path) -> None:
    swap = potad.SwapFile(tmp_path / "swap", 4 * MIB)
    pool = potad.Pool(memory=potad.Arena(256 * KIB), swap=swap)
    load = Load(pool)
    load.run(100)
    away = [handle for handle in load.model if not handle.resident]
    assert away
    swap.close()
    for _ in range(2):
        pool.will_need(away)
        with pytest.raises(ValueError, match="closed"), away[0].pin():
            pass
    here = [handle for handle in load.model if handle.resident]
    for handle in here:
        with handle.pin(write=False) as view:
            assert view == load.model[handle]
    pool.close()
    assert pool.memory.space.used == 0
