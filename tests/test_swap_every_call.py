"""Swap files when the system fails: every call once, files cut and changed, kill -9, a full disk.

After a fault all is as before the call that it came to, and the call can be made again. What the
table has on disk is as that says; but where undoing failed as well and the process ended before the
next call, an opening may find slots of a write or a shrink that raised, and miss slots of a free
that raised: never half of one, and never anything of others.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import (
    Faulty,
    failing,
    interrupted,
    interrupted_behind,
    some_bytes,
    some_bytes_and_no_more,
)
from swapping import KIB, MIB, Mover, content, data_of, descriptors, in_child, path, state

import potad
from potad.swap.file import System

__all__ = ["path"]

GRANULE = 4096


@pytest.fixture(autouse=True)
def _punches_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potad.swap.holes.KEPT_MIN", 8 * KIB)


# ---- calls of the system that fail -------------------------------------------------------------

EIO, ENOSPC = failing(errno.EIO), failing(errno.ENOSPC)
FAULTS: dict[str, list[Any]] = {
    "open": [EIO, failing(errno.EMFILE), interrupted],
    "fstat": [EIO, interrupted],
    "lstat": [EIO, interrupted],
    "fchmod": [EIO, interrupted, interrupted_behind],
    "pread": [EIO, some_bytes, interrupted],
    "preadv": [EIO, some_bytes, interrupted],
    "pwritev": [EIO, ENOSPC, some_bytes, some_bytes_and_no_more, interrupted, interrupted_behind],
    "fdatasync": [EIO, interrupted],
    "ftruncate": [EIO, ENOSPC, interrupted, interrupted_behind],
    "punch_hole": [EIO, interrupted],
}


class Scenario:
    """Calls on a swap file, each made once more where it fails, and what they have told."""

    def __init__(self, path: Path, system: Faulty) -> None:
        self.path = path
        self.system = system
        self.swap: potad.SwapFile | None = None
        self.size = 40 * GRANULE
        self.told: dict[int, bytes] = {}
        self.owner = Mover()
        # What is being freed, and whether slots are being moved.
        self.leaving: set[int] = set()
        self.is_moving = False
        self.data = (data_of(number, number * 1777 % 20_000) for number in itertools.count(1))

    def open(self, size: int | None) -> None:
        self.swap = potad.SwapFile(self.path, size, _system=self.system)
        self.size = size or self.size

    def close(self) -> None:
        if self.swap is not None:
            self.swap.close()
            self.swap = None

    @property
    def file(self) -> potad.SwapFile:
        assert self.swap is not None
        return self.swap

    def write(self, data: bytes) -> None:
        self.told[self.file.write(data, owner=self.owner)] = data

    def write_many(self, data: list[bytes]) -> None:
        owners = [self.owner if at % 2 else None for at in range(len(data))]
        slots = self.file.write_many(data, owners=owners)
        self.told |= zip(slots, data, strict=True)

    def read(self) -> None:
        slots = [*reversed(self.told)]
        assert self.file.read(slots[0]) == self.told[slots[0]]
        assert self.file.read_many(slots) == [self.told[slot] for slot in slots]
        buffers = [bytearray(len(self.told[slot])) for slot in slots]
        self.file.read_many_into(slots, buffers)
        assert buffers == [self.told[slot] for slot in slots]

    def free(self, places: slice) -> None:
        slots = sorted(self.told)[places]
        self.leaving = set(slots)
        if len(slots) == 1:
            self.file.free(slots[0])
        else:
            self.file.free_many(slots)
        self.leaving = set()
        for slot in slots:
            del self.told[slot]

    def grow(self, size: int) -> None:
        self.file.grow(size)
        self.size = size

    def shrink(self, size: int, *answers: Any) -> None:
        self.owner.answers = list(answers)
        self.is_moving = True
        try:
            moved = self.file.shrink(size)
        except potad.OutOfSpace:
            assert answers
            self.is_moving = False
            return
        assert moved
        assert not answers
        self.is_moving = False
        self.size = size
        self.told = {moved.get(slot, slot): data for slot, data in self.told.items()}

    def sync(self) -> None:
        self.file.sync()

    def trim(self) -> None:
        self.file.trim()

    def clear(self) -> None:
        self.leaving = set(self.told)
        self.file.clear()
        self.leaving = set()
        self.told.clear()

    def steps(self) -> Iterator[Callable[[], None]]:
        more = [next(self.data) for _ in range(40)]
        yield lambda: self.open(40 * GRANULE)
        yield lambda: self.write(more[0])
        yield lambda: self.write_many([*more[1:6], b""])
        yield self.read
        yield lambda: self.free(slice(1, 2))
        yield lambda: self.write(more[6] * 4)
        yield lambda: self.free(slice(0, None, 3))
        yield self.sync
        yield lambda: self.grow(100 * GRANULE)
        yield lambda: self.write_many(more[7:20])
        yield lambda: self.free(slice(0, None, 2))
        yield lambda: self.shrink(60 * GRANULE, True, False)
        yield lambda: self.shrink(60 * GRANULE, True, RuntimeError("no"))
        yield lambda: self.shrink(60 * GRANULE)
        yield self.read
        # Too little to be given back before it is asked for.
        yield lambda: self.write(b"x")
        yield lambda: self.free(slice(at := sorted(self.told).index([*self.told][-1]), at + 1))
        yield self.trim
        yield self.close
        yield lambda: self.open(90 * GRANULE)
        yield lambda: self.write_many(more[20:24])
        yield lambda: self.free(slice(0, None, 2))
        yield self.close
        yield lambda: self.open(None)
        yield self.read
        yield self.clear
        yield lambda: self.write(more[24])

    def run(self) -> bool:
        """Makes all calls; whether one has failed."""
        has_raised = False
        for step in self.steps():
            before = self.seen()
            try:
                step()
            except (OSError, KeyboardInterrupt) as error:
                assert not has_raised
                has_raised = True
                self.check_error(error)
                self.system.is_failing = False
                if self.is_moving and self.is_cut(error):
                    continue
                if self.leaving and self.is_freed(error):
                    continue
                assert self.seen() == before
                step()
            self.system.is_failing = False
            assert self.system.has_failed or not has_raised
            self.check()
        self.close()
        return has_raised

    def is_cut(self, error: BaseException) -> bool:
        """Whether an interrupt has come where all was done but cutting the file itself."""
        if not isinstance(error, KeyboardInterrupt) or self.file.size == self.size:
            return False
        with self.without_faults():
            found = content(self.file)
        assert sorted(found.values()) == sorted(self.told.values())
        self.told, self.size, self.is_moving = found, self.file.size, False
        return True

    def is_freed(self, error: BaseException) -> bool:
        """Whether an interrupt has come where all was done but giving back what was freed."""
        if not isinstance(error, KeyboardInterrupt) or self.leaving & set(self.file):
            return False
        self.told = {slot: it for slot, it in self.told.items() if slot not in self.leaving}
        self.leaving = set()
        return True

    def seen(self) -> Any:
        """All there is to see, without a call that may fail."""
        if self.swap is None:
            return {name: stored(name) for name in sorted(self.path.parent.iterdir())}
        # It would be the calls' turn.
        with self.without_faults():
            return state(self.swap)

    @contextlib.contextmanager
    def without_faults(self) -> Iterator[None]:
        system, self.file._store.file.system = self.file._store.file.system, System()
        try:
            yield
        finally:
            self.file._store.file.system = system

    def check_error(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            assert error.errno in (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EOPNOTSUPP)
            if error.filename is not None:  # the descriptor's own `open` does not say it
                assert str(error.filename).startswith(str(self.path))
                assert os.strerror(error.errno) in str(error)

    def check(self) -> None:
        if self.swap is not None:
            with self.without_faults():
                self.swap.space.check()
                assert content(self.swap) == self.told
                assert self.swap.size == self.size


def stored(path: Path) -> Any:
    """What a file has, but for who has opened it, and for how much is behind that."""
    text = path.read_bytes()
    return (text[4096:] if path.suffix == ".slots" else text).rstrip(b"\0")


def counts(directory: Path) -> dict[str, int]:
    system = Faulty()
    scenario = Scenario(directory / "swap", system)
    assert not scenario.run()
    return system.counts


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "until the call has returned"])
@pytest.mark.parametrize("call", FAULTS)
def test_every_call_that_fails(tmp_path: Path, call: str, lasts: bool) -> None:
    if lasts and call in ("fstat", "lstat"):
        pytest.skip("a new file cannot be removed while nothing says that it is the one to remove")
    (tmp_path / "whole").mkdir()
    count = counts(tmp_path / "whole")[call]
    assert count
    before = descriptors()
    raised = 0
    for number, fault in itertools.product(range(1, count + 1), FAULTS[call]):
        if lasts and fault in (some_bytes, interrupted, interrupted_behind):
            continue
        directory = tmp_path / "swaps"
        directory.mkdir()
        scenario = Scenario(directory / "swap", Faulty(call, number, fault, lasts))
        try:
            raised += scenario.run()
            with potad.SwapFile(scenario.path) as swap:
                assert content(swap) == scenario.told
                swap.space.check()
        except BaseException as error:
            error.add_note(f"{call} {number} of {count}: {fault.__name__}")
            raise
        finally:
            scenario.close()
        shutil.rmtree(directory)
        assert descriptors() == before
    assert raised


def without_tmpfile(system: Faulty) -> Faulty:
    """As on a file system that makes no file without a name."""
    make = system.open

    def open_(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return make(path, flags, *mode)

    system.open = open_  # type: ignore[assignment]
    return system


@pytest.mark.parametrize("wrapped", [lambda system: system, without_tmpfile])
def test_every_call_that_fails_of_a_file_that_is_not_kept(path: Path, wrapped: Any) -> None:
    """Whatever fails, when the file is closed nothing is left of it: no name and no descriptor."""

    def work(system: Faulty) -> None:
        with potad.SwapFile(path, 64 * GRANULE, keep=False, _system=wrapped(system)) as swap:
            assert os.listdir(path.parent) == []
            slots = swap.write_many([data_of(1, 50_000), b"data"])
            swap.free(slots[0])
            swap.grow(128 * GRANULE)
            swap.shrink(4 * GRANULE)
            swap.trim()
            swap.sync()
            swap.unlink()

    whole = Faulty()
    work(whole)
    assert (whole.counts["unlink"] == 1) == (wrapped is without_tmpfile)
    before = descriptors()
    for call, count in whole.counts.items():
        for number, fault in itertools.product(range(1, count + 1), (EIO, interrupted)):
            system = Faulty(call, number, fault)
            with contextlib.suppress(OSError, KeyboardInterrupt):
                work(system)
            assert system.has_failed
            assert (os.listdir(path.parent), descriptors()) == ([], before), (call, number)


@pytest.mark.parametrize("fault", [EIO, ENOSPC, some_bytes_and_no_more])
def test_a_process_that_ends_where_nothing_can_be_written(tmp_path: Path, fault: Any) -> None:
    (tmp_path / "whole").mkdir()
    count = counts(tmp_path / "whole")["pwritev"]
    for number in range(1, count + 1):
        directory = tmp_path / "swaps"
        directory.mkdir()
        scenario = Scenario(directory / "swap", Faulty("pwritev", number, fault, lasts=True))
        with contextlib.suppress(OSError):
            for step in scenario.steps():
                step()
        if scenario.swap is not None:
            # As a process that ends: nothing is written any more.
            scenario.swap._gate.closed = True
            scenario.swap._store.leave()
        scenario.swap = None
        if not scenario.path.exists():
            shutil.rmtree(directory)
            continue
        all_data = {data_of(n, n * 1777 % 20_000) for n in range(1, 41)}
        all_data |= {data * 4 for data in all_data} | {b"", b"x"}
        with potad.SwapFile(scenario.path) as swap:
            swap.space.check()
            found = content(swap)
        # What was told is there, but for what was being freed, and all that is there is whole.
        assert set(found.values()) <= all_data
        if scenario.is_moving:
            assert set(found.values()) >= set(scenario.told.values())
        else:
            missing = {slot for slot, data in scenario.told.items() if found.get(slot) != data}
            assert missing <= scenario.leaving
        shutil.rmtree(directory)


def test_a_file_system_without_holes(path: Path) -> None:
    none = Faulty("punch_hole", 1, failing(errno.EOPNOTSUPP), lasts=True)
    with potad.SwapFile(path, MIB, _system=none) as swap:
        for _ in range(50):
            swap.free(swap.write(bytes(100_000)))
            swap.space.check()
        with pytest.raises(OSError, match=r"giving back \d+ bytes at .*swap") as caught:
            swap.trim()
        assert caught.value.errno == errno.EOPNOTSUPP
        # It was asked for once, and nothing is noted any more.
        assert none.counts["punch_hole"] == 1
        assert swap._store.holes._ranges == []
        assert swap.space.used == 0


def test_holes_that_fail_are_tried_again(path: Path) -> None:
    system = Faulty("punch_hole", 1, EIO, lasts=True)
    with potad.SwapFile(path, MIB, _system=system) as swap:
        for _ in range(200):
            swap.free(swap.write(bytes(GRANULE)))
        # Not each time.
        assert 1 < system.counts["punch_hole"] < 100
        with pytest.raises(OSError, match="giving back"):
            swap.trim()
        system.is_failing = False
        system.counts["punch_hole"] = 1
        swap.trim()
        assert path.stat().st_blocks == 0


def test_a_disk_that_is_mended_later(path: Path) -> None:
    """What could not be undone is written first, so that records never overlap."""
    system = Faulty("pwritev", 4, EIO, lasts=True)
    swap = potad.SwapFile(path, 64 * GRANULE, _system=system)
    kept = swap.write(b"kept")
    # A record that came there, and its undoing that did not.
    table = swap._store.table
    assert table is not None
    put = table._file.write
    calls = 0

    def write_and_fail(buffers: Any, offset: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            put(buffers, offset)
        raise OSError(errno.EIO, "no")

    table._file.write = write_and_fail  # type: ignore[method-assign]
    system.counts["pwritev"] = 100
    with pytest.raises(OSError, match="no"):
        swap.write(bytes(3 * GRANULE))
    # As long as that lasts nothing can be written, and what is there can be read.
    with pytest.raises(OSError, match="no"):
        swap.write(b"x")
    assert content(swap) == {kept: b"kept"}
    del table._file.write
    slots = [swap.write(b"%d" % at) for at in range(20)]
    swap.close()
    with potad.SwapFile(path) as again:
        assert content(again) == {kept: b"kept", **{it: b"%d" % at for at, it in enumerate(slots)}}


def test_reads_that_fail_leave_zeros(path: Path) -> None:
    with potad.SwapFile(path, MIB) as swap:
        slots = swap.write_many([b"a" * 5000, b"b" * 100, b"c" * 5000])
    with potad.SwapFile(path, _system=Faulty("preadv", 3, EIO, lasts=True)) as swap:
        buffers = [bytearray(b"?" * 6000) for _ in slots]
        with pytest.raises(OSError, match=r"reading \d+ bytes at 0x0: '.*swap'") as caught:
            swap.read_many_into(slots, buffers)
        assert caught.value.errno == errno.EIO
        assert [bytes(it) for it in buffers] == [
            bytes(5000) + b"?" * 1000,
            bytes(100) + b"?" * 5900,
            bytes(5000) + b"?" * 1000,
        ]
        assert all(it.pins == 0 for it in swap.space)


# ---- files that somebody changes ---------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("size", [0, 1, 4096, 6000, 12288, 20_000])
def test_a_file_that_somebody_cuts(path: Path, size: int, direct: bool) -> None:
    with potad.SwapFile(path, 16 * GRANULE, direct=direct) as swap:
        data = [data_of(number, 4000 + number * 100) for number in range(8)]
        slots = swap.write_many(data)
        os.truncate(path, size)
        for reopened in (False, True):
            file = potad.SwapFile(path, direct=direct) if reopened else swap
            for slot, want in zip(slots, data, strict=True):
                buffer = bytearray(b"?" * (len(want) + 1))
                # Direct reads are of whole pages.
                if slot + len(want) <= (size // GRANULE * GRANULE if direct else size):
                    assert file.read(slot) == want
                    continue
                message = f"swap' ends at {size:#x}, before"
                with pytest.raises(potad.Poisoned, match=message):
                    file.read(slot)
                with pytest.raises(potad.Poisoned, match=message):
                    file.read_many([slots[0], slot])
                with pytest.raises(potad.Poisoned, match=message):
                    file.read_into(slot, buffer)
                assert buffer == bytes(len(want)) + b"?"
            assert all(it.pins == 0 for it in file.space)
            if not reopened:
                swap.close()
        # What is written there anew is good again.
        last = file.write(b"new")
        file.free(slots[-1])
        assert file.read(last) == b"new"
        file.space.check()
        file.close()


@pytest.mark.parametrize("table_size", [0, 60, 4096, 4096 + 32, 4096 + 50, 4096 + 100])
def test_a_table_that_somebody_cuts(path: Path, table_size: int) -> None:
    with potad.SwapFile(path, 16 * GRANULE) as swap:
        slots = swap.write_many([b"%d" % number for number in range(8)])
    os.truncate(f"{path}.slots", table_size)
    if table_size == 0:
        with pytest.raises(ValueError, match="empty table"):
            potad.SwapFile(path)
        return
    with potad.SwapFile(path) as swap:
        whole = (table_size - 4096) // 32 if table_size > 4096 else 0
        assert content(swap) == {slots[at]: b"%d" % at for at in range(whole)}
        swap.write_many([b"new"] * (16 - whole))
        swap.space.check()
    with potad.SwapFile(path) as swap:
        assert len(swap) == 16


def test_bytes_that_flip(path: Path, rng: random.Random) -> None:
    data = [data_of(number, 1 + number * 700) for number in range(12)]
    with potad.SwapFile(path, 64 * GRANULE) as swap:
        slots = swap.write_many(data)
        for slot, want in zip(slots, data, strict=True):
            at = slot + rng.randrange(len(want))
            bit = 1 << rng.randrange(8)
            with open(path, "r+b") as file:
                file.seek(at)
                before = file.read(1)[0]
                file.seek(at)
                file.write(bytes([before ^ bit]))
                file.flush()
                buffer = bytearray(b"?" * (len(want) + 2))
                for call in (
                    lambda slot=slot: swap.read(slot),
                    lambda slot=slot: swap.read_many([slot]),
                    lambda slot=slot, buffer=buffer: swap.read_into(slot, buffer),
                ):
                    with pytest.raises(potad.Poisoned, match=f"slot at {slot:#x} of"):
                        call()
                assert buffer == bytes(len(want)) + b"??"
                others = [it for it in slots if it != slot]
                assert swap.read_many(others) == [it for it in data if it != want]
                file.seek(at)
                file.write(bytes([before]))
        assert swap.read_many(slots) == data


def test_records_that_flip(path: Path, rng: random.Random) -> None:
    """A record that is not as it was is none: its slot is gone, and the others are there."""
    with potad.SwapFile(path, 64 * GRANULE) as swap:
        told = dict(zip(swap.write_many([b"%d" % it for it in range(20)]), range(20), strict=True))
    table = path.with_name("swap.slots")
    good, data = table.read_bytes(), path.read_bytes()
    for _ in range(60):
        path.write_bytes(data)
        at = rng.randrange(4096, 4096 + 20 * 32)
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        table.write_bytes(changed)
        gone = (at - 4096) // 32 * GRANULE
        with potad.SwapFile(path) as swap:
            assert content(swap) == {s: b"%d" % it for s, it in told.items() if s != gone}
            with pytest.raises(potad.NotAllocated):
                swap.read(gone)
            assert swap.write(b"new") % GRANULE == 0
            swap.space.check()
    # A record that came to another place, and a header that is none.
    moved = bytearray(good)
    moved[4096 + 30 * 32 : 4096 + 31 * 32] = good[4096:4128]
    path.write_bytes(data)
    table.write_bytes(moved)
    with potad.SwapFile(path) as swap:
        assert set(swap) == set(told)
    for at in (0, 8, 20, 30, 45):
        changed = bytearray(good)
        changed[at] ^= 1
        table.write_bytes(changed)
        with pytest.raises(ValueError, match=r"swap\.slots' is not the table of a swap file"):
            potad.SwapFile(path)
        assert table.read_bytes() == changed


def test_records_that_overlap(path: Path) -> None:
    """Slots that were freed past the file, which its documentation says not to do."""
    with potad.SwapFile(path, 4 * GRANULE) as swap:
        swap.write_many([bytes(GRANULE)] * 4)
        swap.space.free(GRANULE)
        swap.space.free(0)
        swap.write(bytes(2 * GRANULE))
    before = descriptors()
    with pytest.raises(potad.Corrupt, match=r"swap\.slots': two slots overlap at granule 1"):
        potad.SwapFile(path)
    assert descriptors() == before


# ---- processes that are killed -----------------------------------------------------------------


def work_until_killed(path: Path, seed: int, told: dict[int, int], report: int) -> None:
    """Any calls; each slot is told once its writing has returned, and before it is to be freed."""
    own = random.Random(seed)
    swap = potad.SwapFile(path)
    # Written by processes that were killed, and told by none.
    swap.free_many([slot for slot in swap if slot not in told])
    number = seed << 20

    def tell(*words: object) -> None:
        os.write(report, (" ".join(map(str, words)) + "\n").encode())

    while True:
        match own.randrange(7):
            case 0 | 1 | 2:
                numbers = range(number, number := number + own.randrange(1, 5))
                with contextlib.suppress(potad.OutOfSpace):
                    slots = swap.write_many([killed_data(it) for it in numbers])
                    told |= zip(slots, numbers, strict=True)
                    tell("+", *itertools.chain(*zip(slots, numbers, strict=True)))
            case 3 | 4 if told:
                slots = own.sample([*told], own.randrange(1, min(len(told), 6) + 1))
                tell("?", *slots)
                swap.free_many(slots)
                tell("-", *slots)
                for slot in slots:
                    del told[slot]
            case 5:
                swap.grow(256 * GRANULE)
            case 6:
                tell("<")
                with contextlib.suppress(potad.OutOfSpace):
                    for old, new in (moved := swap.shrink(128 * GRANULE)).items():
                        told[new] = told.pop(old)
                    tell(">", *itertools.chain(*moved.items()))
                    continue
                tell(">")


def killed_data(number: int) -> bytes:
    return data_of(number, number * 7919 % 20_000)


def test_processes_that_are_killed(path: Path, rng: random.Random) -> None:
    potad.SwapFile(path, 128 * GRANULE).close()
    told: dict[int, int] = {}
    slots_seen = 0
    for _ in range(60):
        seed = rng.getrandbits(20)
        print("seed", seed)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work_until_killed(path, seed, dict(told), writing)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(rng.uniform(0.01, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        with open(reading) as reports:
            lines = reports.read().splitlines()
        leaving: set[int] = set()
        gone: set[int] = set()
        is_moving = False
        for line in lines:
            what, *words = line.split()
            numbers = [*map(int, words)]
            pairs = dict(zip(numbers[::2], numbers[1::2], strict=False))
            match what:
                case "+":
                    told |= pairs
                    gone -= set(pairs)
                case "?":
                    leaving = set(numbers)
                case "-":
                    leaving = set()
                    gone |= set(numbers)
                    for slot in numbers:
                        del told[slot]
                case "<":
                    is_moving = True
                case ">":
                    is_moving = False
                    for old, new in pairs.items():
                        told[new] = told.pop(old)
                        gone.add(old)
                    gone -= set(pairs.values())
        with potad.SwapFile(path) as swap:
            swap.space.check()
            found = content(swap)
            slots_seen += len(found)
            if is_moving:
                # Each is where it was or where it was to go, or at both.
                places = {data: slot for slot, data in found.items()}
                wanted = {it: killed_data(it) for it in told.values()}
                told = {places[data]: it for it, data in wanted.items()}
                gone -= set(told)
            for slot, number in told.items():
                if slot not in leaving or slot in found:
                    assert found[slot] == killed_data(number)
            # What was being written when the end came may be there, where what was freed was.
            for slot in gone & set(found):
                assert slot not in told
                assert found[slot] not in map(killed_data, told.values()) or is_moving
            told = {slot: it for slot, it in told.items() if slot in found}
    assert slots_seen > 100


# ---- full disks --------------------------------------------------------------------------------

FULL = """
import errno, os, random, sys
import potad
from potad.swap.file import System

path = sys.argv[1] + "/swap"
data = random.Random(1).randbytes(100_000)
with potad.SwapFile(path, 64 << 20) as swap:
    slots = []
    for round in range(3):
        while True:
            before = os.statvfs(sys.argv[1]).f_bavail
            try:
                slots.append(swap.write(data))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                assert "No space left on device, writing" in str(error), error
                assert error.filename.startswith(path)
                break
        assert 60 < len(slots) < 90, len(slots)
        swap.space.check()
        assert len(swap) == len(slots)
        # Nothing is left of what failed.
        assert os.statvfs(sys.argv[1]).f_bavail == before
        for slot in slots:
            assert swap.read(slot) == data
        try:
            swap.write_many([data] * 20)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        assert len(swap) == len(slots)
        # Freed and not given back, it is had at once, wherever the slot lies.
        some = slots[::3]
        swap.free_many(some)
        slots = [slot for slot in slots if slot not in some]
        slots += swap.write_many([data] * (len(some) - 2))
        swap.sync()
with potad.SwapFile(path) as swap:
    assert sorted(swap) == sorted(slots)
    assert all(it == data for it in swap.read_many(slots))
print("full and well")
"""


def test_a_disk_that_fills(tmp_path: Path) -> None:
    mount = (
        f'mount -t tmpfs -o size=8m tmpfs {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    )
    for options in (["-m"], ["-r", "-m"]):
        try:
            probe = ["unshare", *options, "sh", "-c", f"mount -t tmpfs tmpfs {tmp_path}"]
            subprocess.run(probe, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        command = ["unshare", *options, "sh", "-c", mount, FULL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "full and well" in done.stdout, done.stderr
        return
    pytest.skip("no file system can be mounted here")


def test_a_file_that_may_not_be_so_large(path: Path) -> None:
    def work() -> None:
        with potad.SwapFile(path, MIB) as swap:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512 * KIB, 512 * KIB))
            slots: list[int] = []
            data = data_of(1, 60_000)
            with pytest.raises(OSError, match="File too large, writing") as caught:
                slots.extend(swap.write(data) for _ in range(1000))
            assert caught.value.errno == errno.EFBIG
            slots = [*swap]
            assert 2 < len(slots) < 9
            assert swap.read_many(slots) == [data] * len(slots)
            before = state(swap)
            with pytest.raises(OSError, match="File too large"):
                swap.write_many([data] * 4)
            assert state(swap) == before
            swap.free_many(slots[:2])
            slots = [*slots[2:], swap.write(data)]
            assert swap.read_many(slots) == [data] * len(slots)
        with potad.SwapFile(path) as swap:
            assert sorted(swap) == sorted(slots)

    assert in_child(work) == 0
