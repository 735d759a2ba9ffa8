"""Swap files as a user has them: what goes in comes out, and what is refused changes nothing."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty import Faulty, failing
from swapping import (
    KIB,
    MIB,
    Mover,
    content,
    data_of,
    descriptors,
    has_holes,
    in_child,
    path,
    private,
    state,
    swap,
)

import potad
from potad.swap.file import File, System

__all__ = ["path", "swap"]

GRANULE = 4096

# ---- writing and reading -----------------------------------------------------------------------

SIZES = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 65535, 65536, 100_000]


@pytest.mark.parametrize("options", [{}, {"direct": True}, {"checksums": False}, {"keep": False}])
@pytest.mark.parametrize("granule", [512, 4096, 65536])
def test_data_of_every_size(path: Path, granule: int, options: dict[str, Any]) -> None:
    with potad.SwapFile(path, 2 * MIB, granule=granule, **options) as swap:
        told = {swap.write(data_of(size, size)): size for size in SIZES}
        told |= dict(zip(swap.write_many(data_of(it, it) for it in SIZES), SIZES, strict=True))
        swap.space.check()
        assert len(swap) == len(told) == 2 * len(SIZES)
        assert [*swap] == sorted(told)
        for slot, size in told.items():
            data = data_of(size, size)
            assert swap.read(slot) == data
            assert swap.length(slot) == size
            taken = swap.space.lookup(slot)
            assert taken is not None
            assert taken.size == max(-(-size // granule), 1) * granule
            buffer = bytearray(b"?" * (size + 5))
            assert swap.read_into(slot, buffer) == size
            assert buffer == data + b"?????"
        order = list(told)
        random.Random(granule).shuffle(order)
        assert swap.read_many(order) == [data_of(told[slot], told[slot]) for slot in order]
        buffers = [bytearray(told[slot]) for slot in order]
        assert swap.read_many_into(order, buffers) == [told[slot] for slot in order]
        assert buffers == [data_of(told[slot], told[slot]) for slot in order]
        # The same slot twice, and none at all.
        assert swap.read_many([order[0], order[0]]) == [data_of(told[order[0]], told[order[0]])] * 2
        assert swap.read_many([]) == []
        assert swap.read_many_into([], []) == []
        assert swap.write_many([]) == []
        swap.free_many([])
        swap.free_many(order)
        assert (len(swap), swap.space.used) == (0, 0)
        swap.space.check()


def test_direct_reads_and_writes_of_memory_that_is_aligned_or_not(path: Path) -> None:
    with potad.SwapFile(path, 16 * MIB, direct=True) as swap:
        arena = potad.Arena(8 * MIB)
        buffer = arena.alloc(3 * MIB + 8192)
        view = memoryview(buffer)
        for start in (0, 4096, 512, 1):
            for size in (4096, 5000, 8192, MIB + 1, 3 * MIB):
                part = view[start : start + size]
                part[:] = data_of(start + size, size)
                slot = swap.write(part)
                part[:] = bytes(size)
                assert swap.read_into(slot, part) == size
                assert part == data_of(start + size, size)
                swap.free(slot)
        assert swap.direct or not has_direct(path.parent)
    with potad.SwapFile(path.with_name("small"), MIB, granule=512, direct=True) as swap:
        assert not swap.direct


def has_direct(directory: Path) -> bool:
    try:
        os.close(os.open(directory / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


RECORD = np.dtype([("Owner", "u4"), ("x", "f8"), ("name", "S3")])

ARRAYS: dict[str, Any] = {
    "float64": np.linspace(0, 1, 1000),
    "two dimensions": np.arange(600, dtype=np.int32).reshape(20, 30),
    "structured": np.array([(1, 2.0, b"abc"), (3, 4.0, b"de")], RECORD),
    "datetime": np.array(["2020-01-01", "2021-12-31"], "datetime64[s]"),
    "a time in a structure": np.array([(1, 2)], [("a", "u1"), ("t", "timedelta64[ns]")]),
    "no dimension": np.array(7.5),
    "complex, big-endian": np.array([1 + 2j], ">c16"),
    "half": np.ones(3, np.float16),
    "empty": np.zeros((0, 4)),
    "of no size": np.zeros(3, "V0"),
    "a view's rows": np.arange(100)[10:20],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays(swap: potad.SwapFile, array: Any) -> None:
    slot = swap.write(array)
    assert swap.read(slot) == array.tobytes()
    into = np.zeros_like(array)
    assert swap.read_into(slot, into) == array.nbytes
    assert into.tobytes() == array.tobytes()
    array.flags.writeable = False
    assert swap.read(swap.write(array)) == array.tobytes()
    if array.nbytes:
        with pytest.raises(ValueError, match="buffer must be writable"):
            swap.read_into(slot, array)
    array.flags.writeable = True


@pytest.mark.parametrize(
    "data",
    [b"bytes", bytearray(b"array"), memoryview(b"view"), memoryview(ARRAYS["two dimensions"])],
)
def test_other_buffers(swap: potad.SwapFile, data: Any) -> None:
    assert swap.read(swap.write(data)) == bytes(data)


def test_slots_are_blocks_and_lie_together(swap: potad.SwapFile) -> None:
    swap.write(b"first")
    block = swap.write(bytes(16 * KIB))
    assert block % (16 * KIB) == 0
    together = swap.write_many([bytes(5000)] * 5)
    assert together == [together[0] + at * 8192 for at in range(5)]
    # Where there is no room in one piece, wherever there is.
    swap.clear()
    swap.write_many([b"x"] * 256)
    swap.free_many(range(0, MIB, 8192))
    assert swap.write_many([b"y"] * 128) == [*range(0, MIB, 8192)]


def test_owners(swap: potad.SwapFile) -> None:
    mine, yours = object(), object()
    slot = swap.write(b"a", owner=mine)
    others = swap.write_many([b"b", b"c"], owners=[yours, None])
    found = [swap.space.lookup(it) for it in (slot, *others)]
    assert [it and it.owner for it in found] == [mine, yours, None]
    references = sys.getrefcount(mine)
    for _ in range(5):
        with pytest.raises(potad.OutOfSpace):
            swap.write(bytes(2 * MIB), owner=mine)
        with pytest.raises(potad.OutOfSpace):
            swap.write_many([b"x"] * 300, owners=[mine] * 300)
    assert sys.getrefcount(mine) == references
    assert len(swap) == 3


def test_no_room(swap: potad.SwapFile) -> None:
    swap.write_many([b"x"] * 250)
    before = state(swap)
    with pytest.raises(potad.OutOfSpace) as caught:
        swap.write(bytes(28 * KIB))
    assert (caught.value.requested, caught.value.available) == (28 * KIB, 24 * KIB)
    with pytest.raises(potad.OutOfSpace):
        swap.write_many([b"x"] * 7)
    assert state(swap) == before
    assert len(swap.write_many([b"x"] * 6)) == 6


# ---- what is refused ---------------------------------------------------------------------------

BAD_SLOTS: list[tuple[Any, type[Exception], str]] = [
    (-1, OverflowError, "slot must be .* -1"),
    (1 << 63, OverflowError, f"slot must be .* {1 << 63}"),
    (1 << 70, OverflowError, f"slot must be .* {1 << 70}"),
    ("0", TypeError, "slot must be an integer, not '0' of type str"),
    (0.0, TypeError, "slot must be an integer, not 0.0"),
    (None, TypeError, "slot must be an integer, not None"),
    (4096, potad.NotAllocated, "inside an allocation at 0x0"),
    (1, potad.NotAllocated, "no slot at 0x1 of .*inside an allocation at 0x0"),
    (True, potad.NotAllocated, "no slot at 0x1 "),
    (512 * KIB, potad.NotAllocated, "no slot at 0x80000 of .*swap'$"),
    ((1 << 63) - 1, potad.NotAllocated, "no slot at 0x7f"),
    (768 * KIB, potad.NotAllocated, "no slot at 0xc0000"),  # allocated, but no slot
]

SLOT_CALLS: dict[str, Callable[[potad.SwapFile, Any], Any]] = {
    "read": lambda swap, slot: swap.read(slot),
    "read_many": lambda swap, slot: swap.read_many([0, slot]),
    "read_into": lambda swap, slot: swap.read_into(slot, bytearray(100)),
    "read_many_into": lambda swap, slot: swap.read_many_into([0, slot], [bytearray(9000)] * 2),
    "length": lambda swap, slot: swap.length(slot),
    "free": lambda swap, slot: swap.free(slot),
    "free_many": lambda swap, slot: swap.free_many([0, slot]),
}


@pytest.mark.parametrize(("slot", "error", "match"), BAD_SLOTS)
@pytest.mark.parametrize("call", SLOT_CALLS.values(), ids=SLOT_CALLS)
def test_what_is_no_slot(
    swap: potad.SwapFile, call: Any, slot: Any, error: type[Exception], match: str
) -> None:
    swap.write(data_of(1, 9000))
    swap.space.alloc_at(768 * KIB, 4096)
    before = state(swap)
    with pytest.raises(error, match=match):
        call(swap, slot)
    assert state(swap) == before


class Number(int):
    """An integer that takes itself for another one."""

    def __index__(self) -> int:
        return 77

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@pytest.mark.parametrize("kind", [int, np.int64, np.uint64, np.int16, Number])
def test_numbers_of_other_kinds(path: Path, kind: Any) -> None:
    with potad.SwapFile(path, kind(16384), granule=kind(512)) as swap:
        assert type(swap.granule) is int
        swap.write(b"a")
        slot = kind(swap.write(b"b"))
        assert swap.read(slot) == b"b"
        swap.grow(kind(20480))
        swap.shrink(kind(16384))
        swap.free(slot)
        assert (swap.size, len(swap)) == (16384, 1)


OBJECTS: Any = np.array([object(), None])

BAD_CALLS: list[tuple[Callable[[potad.SwapFile], Any], type[Exception], str]] = [
    (
        lambda swap: swap.write("text"),
        TypeError,
        "data must have .* not be a str",
    ),
    (lambda swap: swap.write(None), TypeError, "data must have the buffer protocol"),
    (lambda swap: swap.write_many([b"a", 1]), TypeError, "data must have the buffer protocol"),
    (lambda swap: swap.write_many(b"ab"), TypeError, "data must have the buffer protocol"),
    (lambda swap: swap.write(np.zeros(10)[::2]), ValueError, "data must be contiguous"),
    (lambda swap: swap.write(memoryview(b"abcd")[::2]), ValueError, "data must be contiguous"),
    (lambda swap: swap.write(np.zeros((3, 4)).T), ValueError, "data must be contiguous"),
    (lambda swap: swap.write(OBJECTS), TypeError, "data must be .* has objects"),
    (lambda swap: swap.write(memoryview(OBJECTS)), TypeError, "objects"),
    (lambda swap: swap.write_many([b"a"], owners=[]), ValueError, "owners must be 1, .* not 0"),
    (lambda swap: swap.write_many([b"a"], owners=[1, 2]), ValueError, "owners must be 1, .* not 2"),
    (lambda swap: swap.read_into(0, b"bytes" * 2000), ValueError, "buffer must be writable"),
    (lambda swap: swap.read_into(0, bytearray(8999)), ValueError, "buffer .* 9000 bytes, not 8999"),
    (lambda swap: swap.read_into(0, "text"), TypeError, "buffer must have the buffer protocol"),
    (
        lambda swap: swap.read_into(0, np.zeros(1125, object)),
        TypeError,
        "buffer .* objects",
    ),
    (lambda swap: swap.read_many_into([0], []), ValueError, "buffers must be 1, .*, not 0"),
    (lambda swap: swap.free_many([0, 0]), ValueError, "slots must be different .* 0x0 comes twice"),
    (lambda swap: swap.free_many(0), TypeError, "not iterable"),  # type: ignore[arg-type]
    (lambda swap: swap.grow(MIB + 1), ValueError, f"size must be .* not {MIB + 1}"),
    (lambda swap: swap.grow(MIB - 4096), ValueError, f"size must be .* not {MIB - 4096}"),
    (lambda swap: swap.grow(-1), OverflowError, "size must be .* -1"),
    (lambda swap: swap.grow(1 << 63), OverflowError, f"size must be .* {1 << 63}"),
    (lambda swap: swap.grow("1"), TypeError, "size must be an integer, not '1'"),  # type: ignore[arg-type]
    (lambda swap: swap.shrink(0), ValueError, "size must be .* not 0"),
    (lambda swap: swap.shrink(4097), ValueError, "size must be .* not 4097"),
    (lambda swap: swap.shrink(2 * MIB), ValueError, f"size must be .* not {2 * MIB}"),
    (lambda swap: swap.shrink(None), TypeError, "size must be an integer, not None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "match"), BAD_CALLS)
def test_arguments_that_are_refused(
    swap: potad.SwapFile, call: Any, error: type[Exception], match: str
) -> None:
    swap.write(data_of(1, 9000))
    before = state(swap)
    with pytest.raises(error, match=match):
        call(swap)
    assert state(swap) == before


BAD_FILES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"path": 3}, TypeError, "path must be a path, not 3"),
    ({"path": None}, TypeError, "path must be a path, not None"),
    ({"path": ""}, ValueError, "path must be that of a file, not ''"),
    ({"path": "a\0b"}, ValueError, "path must be .* 'a.x00b'"),
    ({"path": "/proc"}, OSError, "/proc"),
    ({"path": "/nowhere/at/all"}, FileNotFoundError, "/nowhere/at/all"),
    ({"path": "/dev/null"}, ValueError, "path must be a regular file, which '/dev/null' is not"),
    ({"size": None}, ValueError, "size must be given for a new file"),
    ({"size": 0}, ValueError, "size must be a multiple of 4096 above 0, not 0"),
    ({"size": 4097}, ValueError, "size must be a multiple of 4096 above 0, not 4097"),
    ({"size": -4096}, OverflowError, "size must be .* -4096"),
    ({"size": 1 << 63}, OverflowError, "size must be"),
    (
        {"size": (1 << 63) - 4096},
        OSError,
        "File too large, setting the size to ",
    ),
    ({"size": "4096"}, TypeError, "size must be an integer, not '4096'"),
    ({"granule": 256}, ValueError, "granule must be a power of two from 512 on, not 256"),
    ({"granule": 5000}, ValueError, "granule must be .* not 5000"),
    ({"granule": 0}, ValueError, "granule must be .* not 0"),
    ({"granule": True}, ValueError, "granule must be .* not 1"),
    ({"granule": -512}, OverflowError, "granule must be .* -512"),
    ({"granule": None}, TypeError, "granule must be an integer, not None"),
    ({"checksums": 1}, TypeError, "checksums must be True or False, not 1"),
    ({"direct": "yes"}, TypeError, "direct must be True or False, not 'yes'"),
    ({"keep": None}, TypeError, "keep must be True or False, not None"),
]


@pytest.mark.parametrize(("arguments", "error", "match"), BAD_FILES)
def test_files_that_are_refused(
    path: Path, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    before = descriptors()
    with pytest.raises(error, match=match):
        potad.SwapFile(**{"path": path, "size": MIB, **arguments})
    assert descriptors() == before
    assert list(path.parent.iterdir()) == []


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)) as caught:
        potad.SwapFile(tmp_path, MIB)
    assert caught.value.errno == errno.EISDIR
    os.mkdir(tmp_path / "swap.slots")
    with pytest.raises(IsADirectoryError, match=r"swap\.slots"):
        potad.SwapFile(tmp_path / "swap", MIB)
    assert sorted(os.listdir(tmp_path)) == ["swap.slots"]


@pytest.fixture
def anybodys_path() -> Iterator[Path]:
    """A directory that also users can reach that are not who runs the tests."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_no_permission(anybodys_path: Path) -> None:
    closed, file = anybodys_path / "closed", anybodys_path / "file"
    closed.mkdir(mode=0o555)
    file.write_bytes(b"")
    file.chmod(0o444)

    def work() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        for name in (closed / "swap", file):
            with pytest.raises(PermissionError, match=str(name)):
                potad.SwapFile(name, MIB)

    assert in_child(work) == 0
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "table"),
    [
        (b"a letter", None),
        (b"a letter", b""),
        (b"a letter", b"another"),
        (None, b"another"),
        (None, b"x" * 5000),
        (b"", b"another"),
        (b"\0" * 8192, b"potadswp" + bytes(5000)),
    ],
)
def test_what_is_no_swap_file(path: Path, file: bytes | None, table: bytes | None) -> None:
    names = {path: file, path.with_name("swap.slots"): table}
    for name, text in names.items():
        if text is not None:
            private(name, text)
    before = descriptors()
    with pytest.raises(ValueError, match="swap"):
        potad.SwapFile(path, MIB)
    for name, text in names.items():
        assert (name.read_bytes() if name.exists() else None) == text
    assert descriptors() == before


def test_an_empty_file_is_as_good_as_none(path: Path) -> None:
    private(path, b"")
    with potad.SwapFile(path, MIB) as swap:
        slot = swap.write(b"data")
    with potad.SwapFile(path) as swap:
        assert content(swap) == {slot: b"data"}


# ---- what other users may have put there -------------------------------------------------------


def to_link(path: Path) -> None:
    private(path.with_name("aim"), b"")
    path.symlink_to("aim")


def to_dangling_link(path: Path) -> None:
    path.symlink_to("aim")


def to_second_name(path: Path) -> None:
    private(path.with_name("aim"), b"")
    path.hardlink_to(path.with_name("aim"))


def of_mode(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(b"")
        path.chmod(mode)

    return make


PREPARED: list[tuple[Callable[[Path], None], type[Exception], str]] = [
    (of_mode(0o644), PermissionError, "open to other users, with mode 644: chmod 600 .*/swap"),
    (of_mode(0o620), PermissionError, "with mode 620: chmod 600"),
    (of_mode(0o601), PermissionError, "with mode 601: chmod 600"),
    (of_mode(0o4666), PermissionError, "with mode 4666: chmod 600"),
    (to_link, OSError, "symbolic link, which is not followed: give the path it leads to: '.*swap"),
    (to_dangling_link, OSError, "symbolic link"),
    (to_second_name, PermissionError, "has 2 names: remove all but one, or take another path"),
    (os.mkfifo, ValueError, "path must be a regular file"),
]


def every_name(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Names in a directory, with mode, size and content of what is there."""
    found = {}
    for name in directory.iterdir():
        status = name.lstat()
        text = name.read_bytes() if name.is_file() and not name.is_symlink() else b""
        found[name.name] = status.st_mode, status.st_nlink, text
    return found


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("prepare", "error", "match"), PREPARED)
def test_a_file_that_is_not_of_this_user_alone(
    path: Path, prepare: Callable[[Path], None], error: type[Exception], match: str, keep: bool
) -> None:
    prepare(path)
    before = descriptors(), every_name(path.parent)
    if not keep:
        error, match = FileExistsError, "is there already: remove it, or take another path"
    with pytest.raises(error, match=match):
        potad.SwapFile(path, MIB, keep=keep)
    assert (descriptors(), every_name(path.parent)) == before


@pytest.mark.parametrize(("prepare", "error", "match"), PREPARED)
def test_a_table_that_is_not_of_this_user_alone(
    path: Path, prepare: Callable[[Path], None], error: type[Exception], match: str
) -> None:
    prepare(path.with_name("swap.slots"))
    before = descriptors(), every_name(path.parent)
    with pytest.raises(error, match=match):
        potad.SwapFile(path, MIB)
    assert (descriptors(), every_name(path.parent)) == before


@pytest.mark.parametrize("name", ["swap", "swap.slots"])
def test_a_file_of_another_user(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    private(path.with_name(name), b"")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    before = descriptors()
    with pytest.raises(PermissionError, match=f"belongs to user {user}, not to 12345: take"):
        potad.SwapFile(path, MIB)
    assert descriptors() == before
    assert path.with_name(name).read_bytes() == b""


def test_a_file_that_changes_hands_while_it_is_opened(path: Path) -> None:
    """What counts is the file that was opened, not what was at its path before."""

    private(path, b"")
    system = System()

    def open_late(*arguments: Any) -> int:
        descriptor = os.open(*arguments)
        path.chmod(0o666)
        return descriptor

    system.open = open_late  # type: ignore[assignment]
    with pytest.raises(PermissionError, match="with mode 666"):
        potad.SwapFile(path, MIB, _system=system)


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_new_files_are_of_this_user_alone_whatever_the_mask(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        swap = potad.SwapFile(path, MIB)
    finally:
        os.umask(before)
    with swap:
        found = {name: mode & 0o7777 for name, (mode, _, _) in every_name(path.parent).items()}
    assert found == {"swap": 0o600, "swap.slots": 0o600}
    with potad.SwapFile(path) as swap:
        assert [*swap] == []


def test_a_file_that_is_open_and_has_a_pipe_for_a_table(path: Path) -> None:
    """Who has the file is looked up in the table, without waiting for anybody to write to it."""
    code = f"import potad\npotad.SwapFile({str(path)!r}, 1 << 20)"
    with potad.SwapFile(path, MIB):
        table = path.with_name("swap.slots")
        table.unlink()
        os.mkfifo(table)
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
        )
    assert "the swap file is open already, by somebody" in other.stderr.decode()


# ---- files that are not kept -------------------------------------------------------------------


def test_a_file_that_is_not_kept_has_no_name(path: Path) -> None:
    before = descriptors()
    with potad.SwapFile(path, MIB, keep=False) as swap:
        assert os.listdir(path.parent) == []
        # Nor can it be given one.
        root = os.open("/", os.O_RDONLY)
        with pytest.raises(FileNotFoundError):
            os.link(f"/proc/self/fd/{swap._store.file.descriptor}", path, src_dir_fd=root)
        os.close(root)
        assert swap.path == str(path)
        assert "keep=False" in repr(swap)
        slots = swap.write_many([b"x" * 5000] * 100)
        assert swap.disk_size >= 100 * 5000
        swap.free_many(slots[::2])
        swap.grow(2 * MIB)
        assert swap.read_many(slots[1::2]) == [b"x" * 5000] * 50
        swap.clear()
        swap.shrink(MIB)
        swap.sync()
        # Each has its own.
        with potad.SwapFile(path, MIB, keep=False) as other:
            assert other.write(b"other") == swap.write(b"swap")
            assert (content(other), content(swap)) == ({0: b"other"}, {0: b"swap"})
        assert os.listdir(path.parent) == []
    assert os.listdir(path.parent) == []
    assert descriptors() == before
    with pytest.raises(ValueError, match="size must be given for a new file"):
        potad.SwapFile(path, keep=False)
    assert descriptors() == before


def test_slots_that_were_kept_are_not_emptied(path: Path) -> None:
    with potad.SwapFile(path, MIB) as swap:
        slot = swap.write(b"data")
        for _ in range(2):
            with pytest.raises(FileExistsError, match="keep=False makes a new file") as caught:
                potad.SwapFile(path, MIB, keep=False)
            assert caught.value.filename == str(path)
            swap.close()
    with potad.SwapFile(path) as swap:
        assert content(swap) == {slot: b"data"}


def test_what_came_to_the_path_of_a_file_that_is_not_kept_stays(path: Path) -> None:
    with potad.SwapFile(path, MIB, keep=False) as swap, potad.SwapFile(path, MIB) as other:
        kept = other.write(b"kept")
        swap.write(b"not kept")
        swap.unlink()
        assert swap.closed
        assert content(other) == {kept: b"kept"}
    with potad.SwapFile(path) as other:
        assert content(other) == {kept: b"kept"}


def test_a_process_that_is_killed_leaves_nothing_of_a_file_that_is_not_kept(path: Path) -> None:
    code = """
import os, sys, potad
swap = potad.SwapFile(sys.argv[1], 1 << 20, keep=False)
swap.write(b"secret" * 1000)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == -9
    assert os.listdir(path.parent) == []


def test_a_child_has_no_part_in_a_file_that_is_not_kept(path: Path) -> None:
    with potad.SwapFile(path, MIB, keep=False) as swap:
        slot = swap.write(b"data")
        mine = swap._store.file.descriptor

        def work() -> None:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(mine)
            with pytest.raises(potad.PotadError, match="forked"):
                swap.read(slot)

        assert in_child(work) == 0
        assert swap.read(slot) == b"data"


# ---- opening again -----------------------------------------------------------------------------


def test_opening_again(path: Path) -> None:
    with potad.SwapFile(path, MIB, granule=512) as swap:
        told = {swap.write(data_of(it, 700 * it)): it for it in range(20)}
        swap.free_many([*told][::3])
        for slot in [*told][::3]:
            del told[slot]
        space = [(it.start, it.size) for it in swap.space]
    for arguments, message in [
        ({}, "granule must be 512, as the file was made, not 4096"),
        ({"granule": 1024}, "granule must be 512"),
        ({"granule": 512, "size": MIB - 512}, f"size must be at least {MIB}.* {MIB - 512}"),
    ]:
        sizes = path.stat().st_size, path.with_name("swap.slots").read_bytes()
        with pytest.raises(ValueError, match=message):
            potad.SwapFile(path, **arguments)  # type: ignore[arg-type]
        assert (path.stat().st_size, path.with_name("swap.slots").read_bytes()) == sizes
    for size in (None, MIB, 2 * MIB, None):
        with potad.SwapFile(path, size, granule=512) as swap:
            assert swap.size == (size or swap.size)
            assert content(swap) == {slot: data_of(it, 700 * it) for slot, it in told.items()}
            assert [(it.start, it.size) for it in swap.space] == space
            swap.space.check()
    assert (path.stat().st_size, swap.size) == (2 * MIB, 2 * MIB)
    with potad.SwapFile(path, granule=512) as swap:
        swap.clear()
        assert swap.write(bytes(2 * MIB)) == 0


def test_a_larger_size_that_cannot_be_had_changes_nothing(path: Path) -> None:
    with potad.SwapFile(path, MIB) as swap:
        slot = swap.write(b"data")
        before = state(swap)
        with pytest.raises(OSError, match="File too large, setting the size") as caught:
            swap.grow((1 << 63) - 4096)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert state(swap) == before
    with pytest.raises(OSError, match="File too large"):
        potad.SwapFile(path, (1 << 63) - 4096)
    with potad.SwapFile(path) as swap:
        assert (swap.size, content(swap)) == (MIB, {slot: b"data"})


def test_a_table_without_its_file(path: Path) -> None:
    with potad.SwapFile(path, MIB) as swap:
        swap.write(b"data")
    path.unlink()
    for size in (None, MIB):
        with pytest.raises(ValueError, match=r"not there, but its table .*swap\.slots'.* remove"):
            potad.SwapFile(path, size)
    assert not path.exists()


def test_checksums_are_kept_by_slot(path: Path) -> None:
    with potad.SwapFile(path, MIB) as swap:
        checked = swap.write(b"checked")
    with potad.SwapFile(path, checksums=False) as swap:
        plain = swap.write(b"plain")
    for slot in (checked, plain):
        with open(path, "r+b") as file:
            file.seek(slot)
            file.write(b"P")
    with potad.SwapFile(path) as swap:
        assert swap.read(plain) == b"Plain"
        with pytest.raises(potad.Poisoned, match=r"at 0x0 of .*swap' is not as it was written"):
            swap.read(checked)


@pytest.mark.parametrize("table", [False, True])
def test_a_second_opening(path: Path, table: bool) -> None:
    with potad.SwapFile(path, MIB) as swap:
        slot = swap.write(b"data")
        before = descriptors()
        # The table is no swap file, and its own lock is in force.
        name = f"{path}.slots" if table else path
        message = "open already" if table else f"open already, by process {os.getpid()}"
        with pytest.raises(BlockingIOError, match=message) as caught:
            potad.SwapFile(name, MIB)
        assert caught.value.filename == str(name)
        assert descriptors() == before
        assert swap.read(slot) == b"data"
        code = f"import potad\npotad.SwapFile({str(name)!r}, 1 << 20)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert f"BlockingIOError: [Errno 11] the swap file is {message}" in other.stderr.decode()
    assert sorted(os.listdir(path.parent)) == ["swap", "swap.slots"]
    with potad.SwapFile(path) as swap:
        assert content(swap) == {slot: b"data"}


def test_a_table_that_another_file_has_locked(path: Path) -> None:
    with potad.SwapFile(f"{path}.slots", MIB):
        before = descriptors()
        with pytest.raises(BlockingIOError, match=r"locking: .*swap\.slots"):
            potad.SwapFile(path, MIB)
        assert descriptors() == before
        assert not path.exists()


@pytest.mark.parametrize("name", [b"n\xf6n-utf8", "näme".encode(), b"with\nlines", b"%s {x}"])
def test_names(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    with potad.SwapFile(os.fsdecode(path), MIB) as swap:
        slot = swap.write(b"data")
        repr(swap).encode()
        with pytest.raises(BlockingIOError) as caught:
            potad.SwapFile(os.fsdecode(path))
        assert os.fsencode(caught.value.filename) == path
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [name, name + b".slots"]
    with potad.SwapFile(Path(os.fsdecode(path))) as swap:
        assert swap.read(slot) == b"data"
        swap.unlink()
    assert os.listdir(tmp_path) == []


def test_a_path_is_that_of_when_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    swap = potad.SwapFile("swap", MIB)
    monkeypatch.chdir("/")
    assert swap.path == str(tmp_path / "swap")
    swap.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_terabyte(path: Path) -> None:
    with potad.SwapFile(path, 1 << 40) as swap:
        assert swap.disk_size < 64 * KIB
        slot = swap.write(b"low")
        last = swap.space.alloc_at((1 << 40) - 4096, 4096)
        swap.space.alloc_at(1 << 39, 4096)
        swap.space.free(last)
        high = swap.write(bytes((1 << 20) + 1))
        swap.shrink((1 << 39) + 4096)
        swap.grow(1 << 40)
    start = time.perf_counter()
    with potad.SwapFile(path) as swap:
        assert swap.read(slot) == b"low"
        assert [*swap] == [slot, high]
        swap.free(high)
        swap.trim()
        assert swap.disk_size < 64 * KIB
    assert time.perf_counter() - start < 60


def test_granules_larger_than_anything(path: Path) -> None:
    with potad.SwapFile(path, 1 << 34, granule=1 << 32) as swap:
        slots = swap.write_many([b"a", b"", b"b"])
        assert slots == [0, 1 << 32, 2 << 32]
        assert swap.read_many(slots) == [b"a", b"", b"b"]
        assert swap.disk_size < 64 * KIB


# ---- freeing -----------------------------------------------------------------------------------


def test_freeing(swap: potad.SwapFile) -> None:
    slots = swap.write_many([b"a", b"b", b"c", b"d"])
    swap.free(slots[1])
    with pytest.raises(potad.NotAllocated):
        swap.free(slots[1])
    with pytest.raises(potad.NotAllocated):
        swap.free_many([slots[0], slots[1]])
    swap.free_many(np.array(slots[2:], np.uint64))
    assert content(swap) == {slots[0]: b"a"}
    swap.clear()
    swap.clear()
    assert swap.space.available == MIB


def test_pins(swap: potad.SwapFile) -> None:
    slots = swap.write_many([b"a", b"b"])
    with swap.space.pinned(slots[1]):
        calls: list[Callable[[], None]] = [
            lambda: swap.free(slots[1]),
            lambda: swap.free_many(slots),
            swap.clear,
        ]
        for call in calls:
            with pytest.raises(potad.Busy, match="slot at 0x1000 is pinned 1 times") as caught:
                call()
            assert (caught.value.address, caught.value.pins) == (slots[1], 1)
        assert swap.read_many(slots) == [b"a", b"b"]
        with pytest.raises(potad.OutOfSpace, match="pinned") as refused:
            swap.shrink(4096)
        assert refused.value.in_the_way[0].why == "pinned"
    swap.clear()


def test_a_slot_that_is_pinned_behind_the_files_back_stays(swap: potad.SwapFile) -> None:
    """Through the space a pin may come between a free's look and its deed."""
    slots = swap.write_many([b"a", b"b"])
    table = swap._store.table
    assert table is not None
    clear = table.clear

    def pin_and_clear(records: Any) -> None:
        clear(records)
        swap.space.pin(slots[1])

    table.clear = pin_and_clear  # type: ignore[method-assign]
    with pytest.raises(potad.Busy):
        swap.free_many(slots)
    table.clear = clear  # type: ignore[method-assign]
    swap.space.unpin(slots[1])
    assert swap.read_many(slots) == [b"a", b"b"]
    swap.close()
    with potad.SwapFile(swap.path) as again:
        assert content(again) == {slots[0]: b"a", slots[1]: b"b"}


def test_what_the_space_has_beside_slots(swap: potad.SwapFile) -> None:
    """The file leaves alone what others have allocated of its space."""
    space = swap.space
    mine = space.alloc(8192, kind=potad.Kind("mine", record="u8"), owner="me")
    slot = swap.write(b"data")
    assert [*swap] == [slot]
    swap.clear()
    swap.trim()
    found = space.lookup(mine)
    assert found is not None
    assert found.owner == "me"
    space.free(mine)
    mine = space.alloc_at(MIB - 4096, 4096)
    with pytest.raises(potad.OutOfSpace, match=f"slot of 4096 at {mine:#x} .* cannot be moved"):
        swap.shrink(MIB - 4096)
    assert swap.size == MIB


def test_retired_granules(path: Path) -> None:
    with potad.SwapFile(path, 64 * MIB) as swap:
        big = swap.write(bytes(16 * MIB))
        swap.space.retire(big + 8 * MIB)
        before = blocks(path)
        swap.free(big)
        swap.trim()
        if has_holes(path.parent):
            assert blocks(path) <= before - 16 * MIB + 4096
        slots = swap.write_many([bytes(MIB)] * 62)
        assert all(not slot <= big + 8 * MIB < slot + MIB for slot in slots)
        swap.free_many(slots[:42])
        assert swap.shrink(33 * MIB)
        swap.space.check()
        swap.grow(64 * MIB)
        assert swap.space.retired().tolist() == [big + 8 * MIB]


# ---- the file as a whole -----------------------------------------------------------------------


def test_growing_and_shrinking(path: Path) -> None:
    with potad.SwapFile(path, 64 * KIB) as swap:
        told = {swap.write(data_of(it, 4096 * (it % 3) + 7)): it for it in range(8)}
        swap.grow(MIB)
        swap.grow(MIB)
        assert path.stat().st_size == swap.size == MIB
        more = {swap.write(data_of(it, 4096 * (it % 5))): it for it in range(8, 60)}
        for slot in list(told | more)[::2]:
            (told if slot in told else more).pop(slot)
            swap.free(slot)
        sizes = {**dict.fromkeys(told, 3), **dict.fromkeys(more, 5)}
        want = {
            slot: data_of(it, 4096 * (it % sizes[slot]) + (7 if slot in told else 0))
            for slot, it in (told | more).items()
        }
        assert content(swap) == want
        size = swap.space.used + 8 * KIB
        moved = swap.shrink(size)
        assert moved
        assert swap.size == path.stat().st_size == size
        want = {moved.get(slot, slot): data for slot, data in want.items()}
        assert all(slot < size for slot in want)
        assert content(swap) == want
        assert swap.shrink(size) == {}
    with potad.SwapFile(path) as swap:
        assert (swap.size, content(swap)) == (size, want)


def test_owners_are_asked_by_shrink(swap: potad.SwapFile) -> None:
    owner = Mover()
    slots = swap.write_many([b"%d" % at for at in range(8)], owners=[None, *[owner] * 7])
    swap.free_many(slots[:4])
    moved = swap.shrink(16 * KIB)
    assert moved == dict(owner.moves)
    assert set(moved) == set(slots[4:])
    assert [swap.read(moved[slot]) for slot in slots[4:]] == [b"4", b"5", b"6", b"7"]
    assert all(it.owner is owner for it in swap.space)
    swap.grow(MIB)


def test_owners_that_do_not_agree(path: Path) -> None:
    failure = RuntimeError("not today")
    interrupt = KeyboardInterrupt()
    for answer, back in [
        (False, True),
        (failure, True),
        (None, True),
        (1, True),
        (interrupt, True),
        (False, failure),
        (np.False_, False),
    ]:
        with potad.SwapFile(path, MIB) as swap:
            owner = Mover(True, True, answer, back)
            slots = swap.write_many([b"%d" % at for at in range(8)], owners=[owner] * 8)
            swap.free_many(slots[:4])
            before = state(swap)
            expected = KeyboardInterrupt if answer is interrupt else potad.OutOfSpace
            with pytest.raises(expected) as caught:
                swap.shrink(16 * KIB)
            assert state(swap) == before
            # The two that had agreed were asked to move back.
            there, back_again = owner.moves[:2], owner.moves[3:]
            assert back_again == [(new, old) for old, new in reversed(there)]
            if isinstance(caught.value, potad.OutOfSpace):
                assert caught.value.in_the_way[0].why == "refused"
                assert caught.value.in_the_way[0].owner is owner
                cause = caught.value.__cause__
                assert (
                    cause is failure
                    if answer is failure
                    else (cause is None) != (answer in (None, 1))
                )
            if back is failure:
                assert any("not today" in note for note in caught.value.__notes__)
        with potad.SwapFile(path) as swap:
            assert content(swap) == before[-1]
            swap.unlink()


def test_no_room_to_shrink_into(swap: potad.SwapFile) -> None:
    swap.write_many([b"x"] * 8)
    big = swap.write(bytes(32 * KIB))
    before = state(swap)
    with pytest.raises(potad.OutOfSpace):
        swap.shrink(32 * KIB)
    assert state(swap) == before
    assert big == 32 * KIB


def test_a_call_within_another_that_it_would_wait_for(swap: potad.SwapFile) -> None:
    class Caller:
        def __init__(self, call: Callable[[], Any]) -> None:
            self.call = call

        def on_relocate(self, move: potad.Move) -> bool:
            assert move.owner is self
            self.call()
            return True

    for call in (
        lambda: swap.read(0),
        lambda: swap.write(b"x"),
        lambda: swap.free(0),
        lambda: swap.grow(2 * MIB),
        lambda: swap.shrink(4096),
        swap.close,
        swap.unlink,
        swap.clear,
    ):
        swap.clear()
        first, _ = swap.write_many([b"a", b"b"], owners=[None, Caller(call)])
        swap.free(first)
        with pytest.raises(potad.OutOfSpace) as caught:
            swap.shrink(4096)
        assert isinstance(caught.value.__cause__, potad.PotadError)
        assert "a call that this one is made within" in str(caught.value.__cause__)
        assert content(swap) == {4096: b"b"}
    swap.clear()
    first, _ = swap.write_many([b"a", b"b"], owners=[None, Caller(lambda: swap.space.lookup(0))])
    swap.free(first)
    assert swap.shrink(4096) == {4096: 0}


def test_iterables_may_use_the_file(swap: potad.SwapFile) -> None:
    slots = swap.write_many([b"a", b"b", b"c"])

    def changing(wanted: list[int]) -> Any:
        for slot in wanted:
            swap.grow(swap.size + 4096)
            yield slot

    assert swap.read_many(changing(slots)) == [b"a", b"b", b"c"]
    swap.free_many(changing(slots))
    assert swap.size == MIB + 6 * 4096


def blocks(path: Path) -> int:
    """Bytes that a file takes of the file system."""
    return path.stat().st_blocks * 512


def test_trim(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potad.swap.holes.KEPT_MIN", 4 * MIB)
    if not has_holes(path.parent):
        pytest.skip("the file system has no holes")
    with potad.SwapFile(path, 64 * MIB) as swap:
        slots = swap.write_many([bytes(64 * KIB)] * 40)
        full = blocks(path)
        assert full >= 40 * 64 * KIB
        swap.free_many(slots[::2])
        # Less than is worth a call.
        assert blocks(path) == full
        swap.trim()
        assert blocks(path) <= full - 20 * 64 * KIB
        swap.free_many(slots[1::2])
        swap.trim()
        assert blocks(path) <= full - 40 * 64 * KIB
        swap.trim()
        # By itself, once it is enough.
        swap.free_many(swap.write_many([bytes(64 * KIB)] * 100))
        assert blocks(path) <= full - 40 * 64 * KIB
        assert swap.disk_size == blocks(path) + blocks(path.with_name("swap.slots"))


def test_what_another_process_left_is_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was freed and not given back is found when the file is opened again."""
    monkeypatch.setattr("potad.swap.holes.KEPT_MIN", 4 * MIB)
    if not has_holes(path.parent):
        pytest.skip("the file system has no holes")
    with potad.SwapFile(path, 64 * MIB, granule=512) as swap:
        slots = swap.write_many([bytes(60 * KIB)] * 60)
        swap.free_many(slots[::2])
        full = swap.disk_size
        want = content(swap)
    with potad.SwapFile(path, granule=512) as swap:
        swap.trim()
        assert swap.disk_size <= full - 30 * 56 * KIB
        assert content(swap) == want


def test_sync(swap: potad.SwapFile) -> None:
    slot = swap.write(b"data")
    swap.sync()
    swap.sync()
    assert swap.read(slot) == b"data"


# ---- closing -----------------------------------------------------------------------------------

CLOSED_CALLS: dict[str, Callable[[potad.SwapFile], Any]] = {
    "write": lambda swap: swap.write(b"x"),
    "write_many": lambda swap: swap.write_many([b"x"]),
    "read": lambda swap: swap.read(0),
    "read_many": lambda swap: swap.read_many([0]),
    "read_into": lambda swap: swap.read_into(0, bytearray(10)),
    "read_many_into": lambda swap: swap.read_many_into([0], [bytearray(10)]),
    "length": lambda swap: swap.length(0),
    "free": lambda swap: swap.free(0),
    "free_many": lambda swap: swap.free_many([0]),
    "clear": lambda swap: swap.clear(),
    "grow": lambda swap: swap.grow(2 * MIB),
    "shrink": lambda swap: swap.shrink(4096),
    "trim": lambda swap: swap.trim(),
    "sync": lambda swap: swap.sync(),
    "unlink": lambda swap: swap.unlink(),
    "disk_size": lambda swap: swap.disk_size,
}


@pytest.mark.parametrize("call", CLOSED_CALLS.values(), ids=CLOSED_CALLS)
def test_a_closed_file(swap: potad.SwapFile, call: Any) -> None:
    swap.write(b"data")
    before = descriptors()
    swap.close()
    swap.close()
    assert len(before - descriptors()) == 2
    with pytest.raises(ValueError, match=f"the swap file '{swap.path}' is closed"):
        call(swap)
    assert swap.closed
    assert "closed" in repr(swap)
    assert (len(swap), swap.size, bool(swap)) == (1, MIB, True)


def test_a_file_that_was_closed_is_not_removed_from_under_others(path: Path) -> None:
    first = potad.SwapFile(path, MIB)
    first.close()
    with potad.SwapFile(path) as second:
        with pytest.raises(ValueError, match="closed"):
            first.unlink()
        assert second.read(second.write(b"data")) == b"data"
        # Somebody else has put another one there.
        os.replace(path, path.with_name("moved"))
        path.write_bytes(b"another")
        second.unlink()
    assert path.read_bytes() == b"another"
    assert sorted(os.listdir(path.parent)) == ["moved", "swap"]


def test_unlink_that_is_refused_leaves_the_file_open(path: Path) -> None:
    system = Faulty("unlink", 1, failing(errno.EPERM))
    swap = potad.SwapFile(path, MIB, _system=system)
    slot = swap.write(b"data")
    with pytest.raises(PermissionError):
        swap.unlink()
    assert swap.read(slot) == b"data"
    swap.unlink()
    assert swap.closed
    assert os.listdir(path.parent) == []


def test_a_file_that_nobody_closed(path: Path) -> None:
    before = descriptors()
    swap = potad.SwapFile(path, MIB)
    slot = swap.write(b"data")
    cycle: list[Any] = [swap]
    cycle.append(cycle)
    del swap, cycle
    gc.collect()
    assert descriptors() == before
    with potad.SwapFile(path) as again:
        assert again.read(slot) == b"data"


def test_finalisers(swap: potad.SwapFile) -> None:
    """Slots are freed by finalisers that run at any point of other calls, without a deadlock."""
    swap.grow(256 * MIB)

    class Holder:
        def __init__(self) -> None:
            self.slot = swap.write(bytes(9000))
            self.itself = self

        def __del__(self) -> None:
            swap.free(self.slot)

    keep = [swap.write(data_of(it, 5000)) for it in range(10)]
    before = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for _ in range(300):
            Holder()
            swap.free(swap.write(b"x"))
            swap.trim()
        assert swap.read_many(keep) == [data_of(it, 5000) for it in range(10)]
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert sorted(swap) == sorted(keep)


def test_a_finaliser_that_closes(path: Path) -> None:
    swap = potad.SwapFile(path, MIB)

    class Closer:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            swap.close()

    Closer()
    gc.collect()
    assert swap.closed
    # Within a call it is told that it cannot be waited for.
    with potad.SwapFile(path) as again:
        gate = again._gate
        with gate, pytest.raises(potad.PotadError, match="within"):
            again.close()
        assert again.read(again.write(b"data")) == b"data"


def test_a_finaliser_may_come_in_while_another_waits_to_be_alone(swap: potad.SwapFile) -> None:
    slot = swap.write(b"data")
    with swap._gate:
        other = threading.Thread(target=swap.grow, args=(2 * MIB,))
        other.start()
        while swap._gate._thread_alone is None:
            time.sleep(0.001)
        assert swap.read(slot) == b"data"
    other.join()
    assert swap.size == 2 * MIB


# ---- other threads -----------------------------------------------------------------------------


def run_together(*work: Callable[[], None]) -> None:
    """Runs each in a thread; raises what any raised."""
    errors: list[BaseException] = []

    def run(it: Callable[[], None]) -> None:
        try:
            it()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(it,)) for it in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("granule", [512, 4096])
def test_8_threads(path: Path, rng: random.Random, granule: int) -> None:
    """What a thread has written it reads, whatever others do; and so does who opens it next."""
    end = time.monotonic() + 2.5
    mine: list[dict[int, bytes]] = [{} for _ in range(8)]
    swap = potad.SwapFile(path, 12 * MIB, granule=granule)

    def work(seed: int, held: dict[int, bytes]) -> None:
        own = random.Random(seed)
        while time.monotonic() < end:
            match own.randrange(8):
                case 0 | 1 | 2:
                    data = [own.randbytes(own.choice([0, 100, 5000, 70_000])) for _ in range(4)]
                    held |= zip(swap.write_many(data), data, strict=True)
                case 3 | 4 if held:
                    some = own.sample([*held], own.randrange(len(held)) + 1)
                    assert swap.read_many(some) == [held[slot] for slot in some]
                case 5 if held:
                    slot = own.choice([*held])
                    buffer = bytearray(len(held[slot]))
                    swap.read_into(slot, buffer)
                    assert buffer == held[slot]
                case 6:
                    swap.trim()
            # Never more than all can have at once.
            while len(held) > 16:
                some = own.sample([*held], 6)
                swap.free_many(some)
                for slot in some:
                    del held[slot]

    run_together(*(functools.partial(work, rng.getrandbits(32), held) for held in mine))
    swap.space.check()
    told = {slot: data for held in mine for slot, data in held.items()}
    assert len(told) == sum(map(len, mine))
    assert content(swap) == told
    swap.close()
    with potad.SwapFile(path, granule=granule) as again:
        assert content(again) == told


def test_reading_what_others_free_and_write_anew(path: Path) -> None:
    """A slot is read as it was or not at all: never as another one, nor half of it."""
    end = time.monotonic() + 2
    with potad.SwapFile(path, 64 * KIB, checksums=False) as swap:

        def write() -> None:
            number = 0
            while time.monotonic() < end:
                number = (number + 1) % 250
                slots = swap.write_many([bytes([number]) * 5000] * 2)
                while slots:
                    try:
                        swap.free(slots[-1])
                        slots.pop()
                    except potad.Busy as error:
                        # It is being read.
                        assert error.pins > 0

        def read() -> None:
            while time.monotonic() < end:
                for slot in swap:
                    try:
                        data = swap.read(slot)
                    except potad.NotAllocated:
                        continue
                    assert len(data) == 5000
                    assert len(set(data)) == 1

        run_together(write, write, read, read)
        assert len(swap) == 0
        assert swap.space.used == 0


def test_room_that_is_free_is_had_whatever_others_do(path: Path) -> None:
    """Neither looking for room in one piece nor giving holes back takes room from others."""
    end = time.monotonic() + 1.5
    with potad.SwapFile(path, 64 * KIB) as swap:

        def work() -> None:
            while time.monotonic() < end:
                slots = swap.write_many([b"x" * 100] * 4)
                swap.free_many(slots)
                swap.trim()

        run_together(*[work] * 4)
        assert swap.space.used == 0


def test_the_file_changes_while_others_use_it(path: Path, rng: random.Random) -> None:
    end = time.monotonic() + 1.5
    with potad.SwapFile(path, 4 * MIB) as swap:

        class Held:
            """Knows where its slot is, as a moved one's owner does."""

            def __init__(self, number: int) -> None:
                self.lock = threading.Lock()
                self.data = data_of(number, 30_000)
                self.slot = swap.write(self.data, owner=self)

            def on_relocate(self, move: potad.Move) -> bool:
                self.slot = move.new
                return True

        held = [Held(number) for number in range(20)]

        def read(seed: int) -> None:
            own = random.Random(seed)
            while time.monotonic() < end:
                it = own.choice(held)
                # It may be moved between the look and the read.
                with contextlib.suppress(potad.NotAllocated):
                    assert swap.read(it.slot) == it.data
                swap.free(swap.write(b"x"))

        def change() -> None:
            while time.monotonic() < end:
                swap.grow(8 * MIB)
                swap.shrink(2 * MIB)

        run_together(change, lambda: read(rng.getrandbits(32)), lambda: read(7), swap.sync)
        assert {it.slot: it.data for it in held} == content(swap)


def test_closing_while_others_use_it(path: Path) -> None:
    for _ in range(20):
        before = descriptors()
        swap = potad.SwapFile(path, MIB)
        closed = 0

        def work(swap: potad.SwapFile = swap) -> None:
            nonlocal closed
            try:
                while True:
                    slot = swap.write(b"data")
                    assert swap.read(slot) == b"data"
                    swap.free(slot)
            except ValueError as error:
                assert re.search("is closed", str(error))
                closed += 1

        run_together(work, work, swap.close, swap.close)
        assert closed == 2
        assert descriptors() == before


# ---- other processes ---------------------------------------------------------------------------


def test_a_fork(path: Path) -> None:
    swap = potad.SwapFile(path, MIB)
    slot = swap.write(b"data")
    open_before = descriptors()

    def work() -> None:
        assert not {it for it in descriptors() if str(path) in it}
        for name, call in CLOSED_CALLS.items():
            with pytest.raises(potad.PotadError, match=r"belongs to process .* forked"):
                call(swap)
            assert name
        swap.close()
        with swap:
            pass
        with pytest.raises(BlockingIOError):
            potad.SwapFile(path)
        # It may have files of its own.
        with potad.SwapFile(f"{path}2", MIB) as own:
            own.unlink()

    assert in_child(work) == 0
    assert descriptors() == open_before
    assert swap.read(slot) == b"data"
    with pytest.raises(BlockingIOError):
        potad.SwapFile(path)
    swap.close()


def test_a_child_does_not_keep_the_lock(path: Path) -> None:
    swap = potad.SwapFile(path, MIB)
    # A descriptor that a child keeps, as one does that was forked past Python.
    kept = os.dup(swap._store.file.descriptor)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    swap.close()
    potad.SwapFile(path).unlink()
    os.write(done[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (*ready, *done, kept):
        os.close(descriptor)


def test_a_fork_while_others_use_it(path: Path) -> None:
    end = time.monotonic() + 1
    with potad.SwapFile(path, MIB) as swap:

        def work() -> None:
            while time.monotonic() < end:
                swap.free_many(swap.write_many([b"x" * 5000] * 3))

        def change() -> None:
            while time.monotonic() < end:
                swap.grow(swap.size + 4096)

        def refused() -> None:
            for call in (swap.clear, lambda: swap.read(0)):
                with pytest.raises(potad.PotadError, match="forked"):
                    call()

        def fork() -> None:
            while time.monotonic() < end:
                assert in_child(refused) == 0

        run_together(work, work, change, fork)
        assert swap.space.used == 0


def test_who_opens_a_file_that_is_being_removed(path: Path) -> None:
    """Of those that wait for a file none gets one that is in no directory."""
    end = time.monotonic() + 1

    def work() -> None:
        while time.monotonic() < end:
            try:
                swap = potad.SwapFile(path, MIB)
            except (BlockingIOError, FileNotFoundError):
                continue
            except ValueError as error:
                # Between the removal of the one and of the other.
                assert "no table" in str(error) or "not there" in str(error)
                continue
            assert os.path.samestat(os.stat(path), os.fstat(swap._store.file.descriptor))
            swap.unlink()

    run_together(work, work)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_goes_while_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "s"
    private(place, b"")
    opened: list[int] = []

    def late(path: str, flags: int, mode: int = 0o777) -> int:
        opened.append(flags)
        if len(opened) == 2:
            place.unlink()  # after the first has found it there
        return os.open(path, flags, mode)

    monkeypatch.setattr(System, "open", staticmethod(late))
    file = File(str(place), System())
    try:
        assert (len(opened), file.is_new, file.is_in_place) == (3, True, True)
    finally:
        file.close()
