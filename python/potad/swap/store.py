"""What a swap file keeps: slots in a space, their bytes in a file, their records in a table.

A file whose slots are not to be kept has no table, and no name in its directory either.

Order. A slot is allocated, its bytes are written, its record is put into the table, and only then
is its number told to anybody. To free it, its record is cleared first. What fails is undone, so an
error leaves all as it was: no slot more, no slot less.

A slot that is being written, or freed, is in the space but not good, and nobody gets it. To find a
slot and pin it, or to find that it is not pinned and have it be good no more, is done under a lock.

Whoever calls is inside the file's gate, alone where the file as a whole is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from potad._core import Descriptor, Kind, Space, xxh3
from potad.errors import Busy, Corrupt, NotAllocated, OutOfSpace, Poisoned
from potad.swap.file import File, FileEnd, System
from potad.swap.holes import Holes
from potad.swap.table import HEADER_SIZE, Header, Record, Table

SLOT = Kind(
    "swap slot",
    np.dtype([("length", "u8"), ("checksum", "u8"), ("checked", "?"), ("good", "?")]),
)

_TABLE_SUFFIX = ".slots"

# Bytes that are copied at once where a slot is moved.
_COPIED = 1 << 20

# Bytes between the data of two slots that are sooner read or written than passed over.
_GAP_MAX = 1 << 16

# What a disk says that is full, or as good as full for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Slot:
    """What is known about a slot, read once."""

    __slots__ = ("checksum", "length", "size", "start")

    def __init__(self, descriptor: Descriptor) -> None:
        assert descriptor.record is not None
        length, checksum, checked, _ = descriptor.record.item()
        self.start: int = descriptor.start
        self.size: int = descriptor.size
        self.length: int = length
        self.checksum: int | None = checksum if checked else None

    def record(self, granule: int) -> Record:
        """As the table has it."""
        return Record(self.start // granule, self.size // granule, self.length, self.checksum)


class Store:
    """Slots in a space, their bytes in a file, and their records, if kept, in a table beside it."""

    def __init__(
        self,
        path: str,
        size: int | None,
        granule: int,
        *,
        checksums: bool,
        direct: bool,
        keep: bool,
        system: System,
    ) -> None:
        self.path = path
        self.granule = granule
        self.checksums = checksums
        # None if slots are not kept.
        self.table: Table | None = None
        # Held while slots are found and pinned, or found to be free to go: never for long. These
        # locks can be had again by who has them, as finalisers may free slots.
        self._changes = threading.RLock()
        # Held while slots are allocated: room that is looked for in one piece is taken meanwhile.
        self._allocations = threading.RLock()
        # Whether the directory is known to have the files after the machine's end.
        self._is_in_directory = False
        self.file = _opened(path, system, direct, keep)
        try:
            if keep:
                self._open(size, system)
            else:
                self._make_space(self._of_new(size))
                self.file.truncate(self.space.size)
        except BaseException:
            if self.file.is_new:
                with contextlib.suppress(OSError):
                    self.file.remove()
            self.file.close()
            raise

    def _open(self, wanted: int | None, system: System) -> None:
        table_path = self.path + _TABLE_SUFFIX
        if self.file.size and not os.path.exists(table_path):
            raise ValueError(
                f"path must be a swap file or a new one: {self.path!r} has"
                f" {self.file.size} bytes and no table of slots beside it"
            )
        if not os.path.exists(table_path):
            self._of_new(wanted)
        self.table = table = Table(table_path, system)
        try:
            self._fill(table, wanted)
        except BaseException:
            if table.was_made:
                with contextlib.suppress(OSError):
                    table.remove()
            table.close()
            raise

    def _of_new(self, wanted: int | None) -> int:
        """The size of a new file, which must be given."""
        if wanted is None:
            raise ValueError(f"size must be given for a new file, such as {self.path!r}")
        return wanted

    def _make_space(self, size: int) -> None:
        self.space = Space(size, granule=self.granule)
        self.holes = Holes(self.space, self.file)

    def _fill(self, table: Table, wanted: int | None) -> None:
        """The space, with what the table says is in it."""
        if table.is_new:
            if self.file.size:
                raise ValueError(f"{self.path!r} has {self.file.size} bytes and an empty table")
            stored = Header(self.granule, self._of_new(wanted), 0)
        else:
            stored = table.read_header()
            if self.file.is_new:
                raise ValueError(
                    f"path must be a swap file or a new one: {self.path!r} is not there, but its"
                    f" table of slots is, {table.path!r}: remove that to begin anew"
                )
        if stored.granule != self.granule:
            raise ValueError(
                f"granule must be {stored.granule}, as the file was made, not {self.granule}"
            )
        if wanted is not None and wanted < stored.size:
            raise ValueError(
                f"size must be at least {stored.size}, which the file has, not {wanted}:"
                " open it without one and shrink it"
            )
        size = wanted or stored.size
        self._make_space(size)
        if table.is_new:
            # First, so that a process that ends in between leaves an empty swap file.
            self._write_header(size)
            self.file.truncate(size)
            return
        self._restore(table)
        if size > stored.size:
            self.resize(stored.size, size)
        else:
            self._write_header(size)

    def _write_header(self, size: int) -> None:
        if self.table is not None:
            self.table.write_header(Header(self.granule, size, os.getpid()))

    def _restore(self, table: Table) -> None:
        """Allocates what the table has; what is between may be given back to the file system."""
        end = 0
        for it in table.records():
            start, size = it.at * self.granule, it.granules * self.granule
            self.holes.find(end, start)
            end = start + size
            if it.length > size:
                raise Corrupt(f"{self.path!r}: the slot at {start:#x} has {it.length} of {size}")
            try:
                self.space.alloc_at(start, size, kind=SLOT)
            except (OutOfSpace, ValueError, OverflowError) as error:
                raise Corrupt(f"{self.path!r}: the slot at {start:#x}: {error}") from error
            self._describe(start, it.length, it.checksum, good=True)
        self.holes.find(end, self.space.size)
        if self.holes.is_enough:
            self._make_room()

    def disk_size(self) -> int:
        """Bytes that the file and its table take of the file system."""
        return self.file.disk_size + (0 if self.table is None else self.table.disk_size)

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        # The bytes first: a record without them would be worse than none.
        self.file.sync()
        if self.table is None:
            return
        self.table.sync()
        if not self._is_in_directory:
            self.file.sync_directory()
            self._is_in_directory = True

    def close(self) -> None:
        """Closes the files."""
        try:
            if self.table is not None:
                self.table.close()
        finally:
            self.file.close()

    def leave(self) -> None:
        """Closes the files in a process that was forked."""
        try:
            if self.table is not None:
                self.table.leave()
        finally:
            self.file.leave()

    def remove(self) -> None:
        """Removes the files, which are open still, so that nobody else has others there."""
        if self.table is not None:
            self.file.remove()
            self.table.remove()

    def checksum(self, view: memoryview) -> int | None:
        """The checksum that some data is to be kept with, if any."""
        return xxh3(view) if self.checksums else None

    def write(
        self, views: Sequence[memoryview], checksums: Sequence[int | None], owners: Sequence[Any]
    ) -> list[int]:
        """Writes data to new slots: all, or none."""
        self.settle()
        starts = self._allocate([self._granules(view.nbytes) for view in views], owners)
        try:
            try:
                self._write(starts, views, checksums)
            except OSError as error:
                if error.errno not in _FULL or not self._make_room():
                    raise
                self._write(starts, views, checksums)
        except BaseException:
            self._undo(starts)
            for start, view in zip(starts, views, strict=True):
                self.holes.note(start, view.nbytes)
            # They may have filled the disk.
            self._make_room()
            raise
        for start, view, checksum in zip(starts, views, checksums, strict=True):
            self.space.unpin(start)
            self._describe(start, view.nbytes, checksum, good=True)
        return starts

    def rewrite(
        self,
        slots: Sequence[int],
        views: Sequence[memoryview],
        checksums: Sequence[int | None],
    ) -> None:
        """Writes data to slots that had as much: it goes where blocks of the file system are
        already.

        If it raises, what the slots have is of no use.
        """
        found = self.pinned(slots)
        try:
            if self.table is not None:
                records = [it.record(self.granule) for it in found]
                self.table.clear(sorted(records, key=lambda record: record.at))
            # Until all is there, no checksum fits: what is read meanwhile, or after an error, is
            # not taken for good.
            self._write(slots, views, checksums)
            for it, checksum in zip(found, checksums, strict=True):
                self._describe(it.start, it.length, checksum, good=True)
        finally:
            self.unpin(found)

    def _make_room(self) -> int:
        """Gives back to the file system what was freed, if it can; how many bytes that was."""
        with contextlib.suppress(OSError):
            return self.give_back()
        return 0

    def give_back(self) -> int:
        """As `_make_room`; `OSError` if it cannot."""
        self.settle()
        return self.holes.punch()

    def settle(self) -> None:
        """Has the table on disk be as it should be; `OSError` if it cannot.

        Until then bytes of slots that are not to be may not be written over, nor given back: who
        opens the file next may find those slots.
        """
        if self.table is not None:
            self.table.settle()

    def _granules(self, length: int) -> int:
        """Granules of a slot for so many bytes; also nothing has a place."""
        return max(-(-length // self.granule), 1)

    def _allocate(self, granules: Sequence[int], owners: Sequence[Any]) -> list[int]:
        """Slots of so many granules, pinned: one behind the other, or wherever there is room."""
        try:
            with self._allocations:
                return self._allocate_now(granules, owners)
        except OutOfSpace:
            # What is being given back to the file system is not free meanwhile.
            with self.holes.at_work, self._allocations:
                return self._allocate_now(granules, owners)

    def _allocate_now(self, granules: Sequence[int], owners: Sequence[Any]) -> list[int]:
        sizes = [count * self.granule for count in granules]
        at = self._room_for(sum(sizes)) if len(sizes) > 1 else None
        starts: list[int] = []
        try:
            for size, owner in zip(sizes, owners, strict=True):
                start = self._alloc(size, owner, at)
                starts.append(start)
                self.space.pin(start)
                # Where the next would lie behind it.
                at = None if at is None else start + size
        except BaseException:
            self._undo(starts)
            raise
        return starts

    def _room_for(self, size: int) -> int | None:
        """Where a run of a size would be, if there is one."""
        try:
            start = self.space.alloc_run(size)
        except OutOfSpace:
            return None
        self.space.free(start)
        return start

    def _alloc(self, size: int, owner: Any, at: int | None) -> int:
        """A slot of a size, at a place if it is free still, otherwise anywhere."""
        space = self.space
        if at is not None:
            with contextlib.suppress(OutOfSpace):
                return space.alloc_at(at, size, kind=SLOT, owner=owner)
        count = size // self.granule
        if not count & (count - 1):
            # A block is much sooner found than a run of its size.
            with contextlib.suppress(OutOfSpace):
                return space.alloc(size, kind=SLOT, owner=owner)
        return space.alloc_run(size, kind=SLOT, owner=owner)

    def _undo(self, starts: Iterable[int]) -> None:
        """Frees slots that were allocated, pinned, and never told to anybody."""
        for start in starts:
            if (found := self.space.lookup(start)) is not None:
                for _ in range(found.pins):
                    self.space.unpin(start)
                self.space.free(start)

    def _describe(self, start: int, length: int, checksum: int | None, *, good: bool) -> None:
        found = self.space.lookup(start)
        if found is None or (record := found.record) is None:
            raise Corrupt(f"{self.path!r}: the slot at {start:#x} has no record")
        record[()] = (length, checksum or 0, checksum is not None, good)

    def _write(
        self,
        starts: Sequence[int],
        views: Sequence[memoryview],
        checksums: Sequence[int | None],
    ) -> None:
        """Writes data to slots, and puts them into the table."""
        self._write_data(starts, views)
        if self.table is None:
            return
        records = [
            Record(start // self.granule, self._granules(view.nbytes), view.nbytes, checksum)
            for start, view, checksum in zip(starts, views, checksums, strict=True)
        ]
        records.sort(key=lambda record: record.at)
        self.table.put(records)

    def _write_data(self, starts: Sequence[int], views: Sequence[memoryview]) -> None:
        """Writes data to slots, those that lie together with one call."""
        for group in self._together(starts, [view.nbytes for view in views]):
            buffers: list[memoryview] = []
            for at in group:
                buffers.append(views[at])
                if at != group[-1]:
                    size = self._granules(views[at].nbytes) * self.granule
                    buffers.append(_ZEROS[: size - views[at].nbytes])
            self.file.write(buffers, starts[group[0]])

    def read(self, found: Sequence[Slot], views: Sequence[memoryview]) -> None:
        """Reads slots, those that lie together with one call, and looks at their checksums."""
        if not found:
            return
        order = sorted(range(len(found)), key=lambda at: found[at].start)
        starts = [found[at].start for at in order]
        try:
            for group in self._together(starts, [found[at].length for at in order]):
                members = [(found[order[at]], views[order[at]]) for at in group]
                self._read_group(members)
                for it, view in members:
                    self._must_be_good(it, view)
        except BaseException:
            for view in views:
                view[:] = bytes(view.nbytes)
            raise

    def read_one(self, it: Slot) -> bytes:
        """What is in a slot, without a copy where that is possible."""
        if self.file.direct:
            buffer = bytearray(it.length)
            self.read([it], [memoryview(buffer)])
            return bytes(buffer)
        try:
            data = self.file.read(it.length, it.start)
        except FileEnd as error:
            raise self._ends(error, it.start) from error
        self._must_be_good(it, data)
        return data

    def _must_be_good(self, it: Slot, data: bytes | memoryview) -> None:
        if it.checksum is not None and xxh3(data) != it.checksum:
            raise Poisoned(
                f"the slot at {it.start:#x} of {self.path!r} is not as it was written:"
                f" its {it.length} bytes have another checksum"
            )

    def _ends(self, error: FileEnd, slot: int) -> Poisoned:
        return Poisoned(
            f"{self.path!r} ends at {error.size:#x}, before the data of the slot at {slot:#x}"
            " does: somebody has cut it"
        )

    def _read_group(self, group: Sequence[tuple[Slot, memoryview]]) -> None:
        buffers: list[memoryview] = []
        for at, (it, view) in enumerate(group):
            buffers.append(view)
            if at + 1 < len(group) and (rest := it.size - it.length):
                buffers.append(memoryview(bytearray(rest)))
        try:
            self.file.read_into(buffers, group[0][0].start)
        except FileEnd as error:
            past = [it.start for it, _ in group if it.start + it.length > error.size]
            raise self._ends(error, past[0] if past else group[-1][0].start) from error

    def _together(self, starts: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Which slots lie one behind the other, by number."""
        if not starts:
            return
        group = [0]
        for at in range(1, len(starts)):
            start, length = starts[at - 1], lengths[at - 1]
            end = start + self._granules(length) * self.granule
            # Direct I/O wants buffers that start and end with pages, as data seldom does.
            if starts[at] != end or end - (start + length) > _GAP_MAX or self.file.direct:
                yield group
                group = []
            group.append(at)
        yield group

    def slots(self) -> Iterator[int]:
        """Slots that are good, in order."""
        return (it.start for it in self.space if _is_good(it))

    def slot(self, start: int) -> Descriptor:
        """The descriptor of a slot."""
        found = self.space.lookup(start)
        if found is None or found.start != start or not _is_good(found):
            message = f"there is no slot at {start:#x} of {self.path!r}"
            if found is not None and found.start != start:
                message += f", but inside an allocation at {found.start:#x}"
            raise NotAllocated(message, start)
        return found

    def pinned(self, slots: Sequence[int]) -> list[Slot]:
        """Slots that are pinned from now on, so that nobody frees them."""
        found: list[Slot] = []
        try:
            for slot in slots:
                with self._changes:
                    it = self.slot(slot)
                    self.space.pin(slot)
                found.append(Slot(it))
        except BaseException:
            self.unpin(found)
            raise
        return found

    def unpin(self, found: Iterable[Slot]) -> None:
        for it in found:
            self.space.unpin(it.start)

    def free(self, slots: Iterable[int]) -> None:
        """Frees slots: all, or none."""
        with self._changes:
            found = sorted(map(self.slot, slots), key=lambda it: it.start)
            _must_be_free_to_go(found)
            _mark(found, good=False)
        try:
            self._free(found)
        except BaseException:
            _mark(found, good=True)
            raise
        # Every one is to be noted.
        if sum(self.holes.note(it.start, it.size) for it in found):
            # Where that fails, it is tried again with what is freed next.
            self._make_room()

    def _free(self, found: Sequence[Descriptor]) -> None:
        """Frees slots, which are in order: from the table first, then from the space."""
        records = [Slot(it).record(self.granule) for it in found]
        if self.table is not None:
            self.table.clear(records)
        try:
            self.space.free_many([it.start for it in found])
        except BaseException:
            # Somebody has pinned one through the space.
            if self.table is not None:
                self.table.put_back(records)
            raise

    def resize(self, before: int, size: int) -> None:
        """Sets the size of the file and of its table; if that fails, both are as they were."""
        try:
            self.file.truncate(size)
            self._write_header(size)
        except BaseException:
            with contextlib.suppress(OSError):
                self._write_header(before)
            with contextlib.suppress(OSError):
                self.file.truncate(before)
            raise

    # For `shrinking`, while nobody else is inside.

    def copy(self, old: int, new: int) -> None:
        """Copies a slot, its record included, to an allocation that is to be one."""
        it = Slot(self.slot(old))
        buffer = memoryview(bytearray(min(it.length, _COPIED)))
        for start in range(0, it.length, _COPIED):
            piece = buffer[: min(_COPIED, it.length - start)]
            try:
                self.file.read_into([piece], old + start)
            except FileEnd as error:
                raise self._ends(error, old) from error
            self.file.write([piece], new + start)
        self._describe(new, it.length, it.checksum, good=False)
        if self.table is not None:
            record = it.record(self.granule)
            self.table.put([dataclasses.replace(record, at=new // self.granule)])

    def release(self, slots: Sequence[Descriptor]) -> None:
        """Frees slots, whose places are to be cut off, in part at least."""
        ordered = sorted(slots, key=lambda it: it.start)
        _mark(ordered, good=False)
        self._free(ordered)
        for it in ordered:
            self.holes.note(it.start, it.size)

    def drop(self, starts: Iterable[int]) -> None:
        """Frees allocations that were to be slots, whatever the disk says to it."""
        found = [it for it in map(self.space.lookup, starts) if it is not None]
        try:
            if self.table is not None:
                self.table.drop(Slot(it).record(self.granule) for it in found)
        finally:
            self.space.free_many([it.start for it in found])
            for it in found:
                self.holes.note(it.start, it.size)

    def make_good(self, starts: Iterable[int]) -> None:
        """Has slots be good that were copied to allocations."""
        _mark((it for it in map(self.space.lookup, starts) if it is not None), good=True)

    def reinstate(self, slots: Sequence[Slot], owners: Sequence[Any]) -> None:
        """Has slots be there again whose bytes are still in the file."""
        for it, owner in zip(slots, owners, strict=True):
            if self.space.lookup(it.start) is None:
                self.space.alloc_at(it.start, it.size, kind=SLOT, owner=owner)
            self._describe(it.start, it.length, it.checksum, good=True)
        if self.table is not None:
            self.table.put_back(it.record(self.granule) for it in slots)

    def cut(self, before: int, size: int) -> None:
        """Takes away what is behind `size`, where no slot is, from all but the file itself."""
        self.space.remove(size, before - size)
        try:
            self._write_header(size)
        except BaseException:
            self.space.add(size, before - size)
            with contextlib.suppress(OSError):
                self._write_header(before)
            raise

    def cut_file(self, size: int) -> None:
        """Cuts the file itself, if it can."""
        # What is behind the size belongs to nothing, so a file that stays long is whole.
        with contextlib.suppress(OSError):
            self.file.truncate(size)
        # What the tail's slots have left before it.
        if self.holes.is_enough:
            self._make_room()


# What is between the data of two slots.
_ZEROS = memoryview(bytes(_GAP_MAX))


def _is_good(it: Descriptor) -> bool:
    """Whether an allocation is a slot that is neither being written nor freed."""
    if it.kind is not SLOT:
        return False
    assert it.record is not None
    return bool(it.record["good"])


def _mark(slots: Iterable[Descriptor], *, good: bool) -> None:
    """Has slots be good or not."""
    for it in slots:
        assert it.record is not None
        it.record["good"] = good


def _must_be_free_to_go(slots: Sequence[Descriptor]) -> None:
    """Raises an error if slots, which are in order, come twice or are pinned."""
    for before, it in itertools.pairwise(slots):
        if before.start == it.start:
            raise ValueError(f"slots must be different ones, but {it.start:#x} comes twice")
    for it in slots:
        if it.pins:
            raise Busy(f"the slot at {it.start:#x} is pinned {it.pins} times", it.start, it.pins)


def _opened(path: str, system: System, direct: bool, keep: bool) -> File:
    """The file, locked; the error says who has it where that is known."""
    try:
        return File(path, system, direct=direct, named=keep)
    except BlockingIOError as error:
        who = "somebody"
        with contextlib.suppress(OSError, ValueError):
            who = f"process {_process(path + _TABLE_SUFFIX, system)}"
        message = f"the swap file is open already, by {who}"
        raise BlockingIOError(errno.EWOULDBLOCK, message, path) from error


def _process(path: str, system: System) -> int:
    """The process that a table says it belongs to, without waiting for what is no table."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = system.open(path, flags)
    try:
        return Header.unpack(system.pread(descriptor, HEADER_SIZE, 0), path).process
    finally:
        system.close(descriptor)
