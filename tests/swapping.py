"""What the tests of swap files share: data that can be told apart, and looking at the system."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import potad

KIB, MIB = 1 << 10, 1 << 20


def data_of(number: int, size: int) -> bytes:
    """Bytes that are others for each number."""
    return random.Random(number).randbytes(size)


def descriptors() -> set[str]:
    """Where this process's open descriptors lead, as far as they lead to files."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name}: {os.readlink('/proc/self/fd/' + name)}")
        except OSError:
            continue  # that of the listing itself
    return {it for it in found if "/" in it.partition(": ")[2]}


def content(swap: potad.SwapFile) -> dict[int, bytes]:
    """Everything that is in a swap file."""
    return {slot: swap.read(slot) for slot in swap}


def state(swap: potad.SwapFile) -> tuple[Any, ...]:
    """All there is to see of a swap file, so that it can be seen to be unchanged."""
    space = swap.space
    space.check()
    known = [(it.start, it.size, it.kind, it.owner, it.pins) for it in space]
    return swap.size, space.used, space.available, known, content(swap)


def private(path: Path, data: bytes) -> None:
    """Writes a file that a swap file may be made of: of its user alone."""
    path.write_bytes(data)
    path.chmod(0o600)


def has_holes(directory: Path) -> bool:
    """Whether a file system gives back what is punched out of a file."""
    path = directory / "holes"
    with potad.SwapFile(path, MIB) as swap:
        slot = swap.write(b"x" * MIB)
        before = swap.disk_size
        swap.free(slot)
        try:
            swap.trim()
        except OSError:
            return False
        answer = swap.disk_size <= before - MIB
        swap.unlink()
    return answer


class Mover:
    """Owns slots, and agrees to each of its moves or not."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.moves: list[tuple[int, int]] = []

    def on_relocate(self, move: potad.Move) -> Any:
        self.moves.append((move.old, move.new))
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, BaseException):
            raise answer
        return answer


def in_child(work: Any) -> int:
    """Runs something in a process that is forked; its status, 0 if it has not raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a swap file may be made."""
    return tmp_path / "swap"


@pytest.fixture
def swap(path: Path) -> Iterator[potad.SwapFile]:
    """A swap file of 256 granules of 4,096 bytes."""
    with potad.SwapFile(path, MIB) as file:
        yield file
        if not file.closed:
            file.space.check()
