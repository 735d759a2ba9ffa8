"""Swap files when the system fails: at every call, of every kind, nothing that was told is lost."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import Faulty

import potad

KIB, MIB = 1 << 10, 1 << 20

FAULTS = [
    ("pwritev", errno.EIO),
    ("pwritev", errno.ENOSPC),
    ("pwritev", None),
    ("pread", errno.EIO),
    ("pread", None),
    ("preadv", errno.EIO),
    ("preadv", None),
    ("fdatasync", errno.EIO),
    ("ftruncate", errno.EIO),
    ("punch_hole", errno.EIO),
    ("punch_hole", errno.EOPNOTSUPP),
]


class Script:
    """A scripted use of a swap file beside a dictionary of what it has told."""

    def __init__(self, swap: potad.SwapFile) -> None:
        self.swap = swap
        self.model: dict[int, bytes] = {}
        self.errors: list[OSError] = []
        self.rng = random.Random(7)

    def data(self) -> bytes:
        return self.rng.randbytes(self.rng.choice([0, 1, 511, 4096, 5000, 70_000]))

    def write(self) -> None:
        data = self.data()
        self.model[self.swap.write(data)] = data

    def write_many(self) -> None:
        data = [self.data() for _ in range(5)]
        self.model.update(zip(self.swap.write_many(data), data, strict=True))

    def free(self) -> None:
        slot = self.rng.choice(sorted(self.model))
        self.swap.free(slot)
        del self.model[slot]

    def free_many(self) -> None:
        slots = self.rng.sample(sorted(self.model), min(4, len(self.model)))
        self.swap.free_many(slots)
        for slot in slots:
            del self.model[slot]

    def read(self) -> None:
        slots = self.rng.choices(sorted(self.model), k=3)
        assert self.swap.read_many(slots) == [self.model[slot] for slot in slots]
        assert self.swap.read(slots[0]) == self.model[slots[0]]
        buffer = bytearray(len(self.model[slots[1]]))
        self.swap.read_into(slots[1], buffer)
        assert buffer == self.model[slots[1]]

    def grow(self) -> None:
        self.swap.grow(self.swap.size + 64 * KIB)

    def shrink(self) -> None:
        used = sum(-(-max(len(data), 1) // 4096) * 4096 for data in self.model.values())
        moved = self.swap.shrink(max(used * 2, 4096))
        self.model = {moved.get(slot, slot): data for slot, data in self.model.items()}

    def run(self) -> None:
        steps: list[Callable[[], None]] = [self.write_many, self.write, self.read, self.write_many]
        steps += [self.free_many, self.write, self.swap.trim, self.read, self.grow, self.free]
        steps += [self.write_many, self.swap.sync, self.free_many, self.shrink, self.read]
        steps += [self.write, self.swap.trim, self.read]
        for step in steps:
            try:
                step()
            except OSError as error:
                assert error.filename is not None
                self.errors.append(error)

    def check(self, swap: potad.SwapFile) -> None:
        swap.space.check()
        assert set(swap) == set(self.model)
        for slot, data in self.model.items():
            assert swap.read(slot) == data
        assert swap.space.used == sum(
            -(-max(len(data), 1) // 4096) * 4096 for data in self.model.values()
        )


@pytest.mark.parametrize(("call", "error"), FAULTS)
def test_every_call_that_fails(tmp_path: Path, call: str, error: int | None) -> None:
    for number in range(1, 1000):
        path = tmp_path / f"swap{number}"
        system = Faulty(call, number, error)
        system.is_on = False
        swap = potad.SwapFile(path, 2 * MIB, _system=system)
        system.is_on = True
        script = Script(swap)
        script.run()
        system.is_on = False
        if error is None:
            # What is done in part is done as a whole in the end.
            assert not script.errors
        script.check(swap)
        swap.close()
        with potad.SwapFile(path) as again:
            script.check(again)
            again.unlink()
        if not system.failed:
            assert number > 1
            return
    pytest.fail("there was always another call")


@pytest.mark.parametrize("call", ["open", "pwritev", "ftruncate", "preadv"])
def test_an_opening_that_fails_leaves_the_file_as_it_was(tmp_path: Path, call: str) -> None:
    path = tmp_path / "swap"
    with potad.SwapFile(path, 2 * MIB) as swap:
        script = Script(swap)
        script.run()
    for number in range(1, 100):
        system = Faulty(call, number, errno.EIO)
        try:
            potad.SwapFile(path, 4 * MIB, _system=system).close()
        except OSError as error:
            assert error.errno == errno.EIO
        with potad.SwapFile(path) as swap:
            script.check(swap)
            size = swap.size
        if not system.failed:
            assert size == 4 * MIB
            return
    pytest.fail("there was always another call")


CHILD = """
import os, random, sys
import potad
rng = random.Random(int(sys.argv[2]))
swap = potad.SwapFile(sys.argv[1], 8 << 20)
told = []
while True:
    if told and rng.random() < 0.4:
        slot = told.pop(rng.randrange(len(told)))
        # From here on it may be gone.
        os.write(1, f"freeing {slot} 0 0\\n".encode())
        swap.free(slot)
        os.write(1, f"freed {slot} 0 0\\n".encode())
    else:
        seed, size = rng.getrandbits(32), rng.choice([0, 100, 4096, 50_000, 300_000])
        try:
            slot = swap.write(random.Random(seed).randbytes(size))
        except potad.OutOfSpace:
            continue
        os.write(1, f"wrote {slot} {seed} {size}\\n".encode())
        told.append(slot)
"""


def test_killed_while_it_writes(rng: random.Random, tmp_path: Path) -> None:
    path = tmp_path / "swap"
    for _ in range(6):
        seed = rng.getrandbits(32)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, os.fspath(path), str(seed)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(rng.randrange(20, 300))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        child.wait()
        child.stdout.close()
        told: dict[int, tuple[int, int]] = {}
        unsure: set[int] = set()
        for line in lines:
            what, slot, content, size = line.split()
            if what == b"wrote":
                told[int(slot)] = int(content), int(size)
                unsure.discard(int(slot))
            elif what == b"freeing":
                told.pop(int(slot))
                unsure.add(int(slot))
            else:
                unsure.discard(int(slot))
        with potad.SwapFile(path) as swap:
            swap.space.check()
            for number, (source, length) in told.items():
                assert swap.read(number) == random.Random(source).randbytes(length), seed
            # One more may be written, or half freed, that nobody was told of.
            assert len(set(swap) - set(told) - unsure) <= 1, seed
            swap.clear()


FULL = """
import errno, os, sys
import potad
swap = potad.SwapFile(sys.argv[1] + "/swap", 64 << 20)
told, full = {}, 0
for round_ in range(3):
    while True:
        data = os.urandom(100_000)
        try:
            told[swap.write(data)] = data
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EFBIG), error
            full += 1
            break
    swap.space.check()
    for slot, data in told.items():
        assert swap.read(slot) == data
    for slot in list(told)[::2]:
        del told[slot]
        swap.free(slot)
    swap.trim()
assert full == 3 and len(told) > 5
swap.close()
swap = potad.SwapFile(sys.argv[1] + "/swap")
assert {slot: swap.read(slot) for slot in swap} == told
print("held")
"""


def test_a_disk_that_fills(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=4m none {tmp_path}"
    unshare = ["unshare", *([] if os.getuid() == 0 else ["-U", "-r"]), "-m", "sh", "-c"]
    probe = subprocess.run([*unshare, mount], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no file system can be mounted here")
    program = f"{sys.executable} -c '{FULL}' {tmp_path}"
    done = subprocess.run(
        [*unshare, f"{mount} && {program}"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "held\n", done.stderr
