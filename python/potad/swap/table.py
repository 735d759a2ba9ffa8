"""Which slots a swap file has, on disk: a table in a file of its own, beside it.

Concept. A slot is good once its record is in the table, and gone once its record is cleared. So the
bytes of a slot are written before its record is, and its record is cleared before its space is
given to anybody else: whenever a process ends, however it does, whoever opens the file next finds
every slot whose writing had returned, and none that was freed. Of a call that was under way each
slot may be there or not, whole if it is.

A call that fails half-way is undone. What of that fails as well is owed, and written before any
other record is; so two that overlap are never there. Only where the process ends before that can
the next one find a slot whose writing had failed, or miss one whose freeing had.

Representation. A header of a page, then a record of 32 bytes for each granule of the file, at the
slot's first granule:

    length      8   bytes of data in the slot
    checksum    8   XXH3 of them
    granules    8   how much of the file the slot takes
    flags       4   1: the checksum is to be looked at
    check       4   CRC-32 of the 28 bytes before and of the granule's number

A record lies within a sector. One that is not whole counts as none, as does one of zeros; the
number in it makes one that came to the wrong place count as none. The file is sparse: it takes
blocks where there are slots, 32 bytes for each granule there.

Limits. What a process wrote is there after it was killed. After the machine was, only what was
synced is there for certain (`SwapFile.sync`): of the rest some records may be there and the bytes
not, which the checksums find out.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from potad.errors import Corrupt
from potad.swap.file import File, FileEnd, System

HEADER_SIZE = 4096
RECORD_SIZE = 32

_HEADER = struct.Struct("<8s I I Q Q Q I")
_RECORD = struct.Struct("<Q Q Q I")
_CHECK = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
_MAGIC = b"potadswp"
_VERSION = 1

_CHECKED = 1
_NONE = bytes(RECORD_SIZE)

# Records that are read at once when a file is opened.
_READ_RECORDS = 1 << 15


@dataclass(frozen=True, slots=True)
class Record:
    """What the table has about a slot; `at` is the number of its first granule."""

    at: int
    granules: int
    length: int
    checksum: int | None

    def pack(self) -> bytes:
        """The record as it is in the file."""
        flags, checksum = (0, 0) if self.checksum is None else (_CHECKED, self.checksum)
        body = _RECORD.pack(self.length, checksum, self.granules, flags)
        return body + _CHECK.pack(zlib.crc32(body + _NUMBER.pack(self.at)))


@dataclass(frozen=True, slots=True)
class Header:
    """What holds for the file as a whole; `process` has it open, or had it last."""

    granule: int
    size: int
    process: int

    def pack(self) -> bytes:
        """The header as it is in the file."""
        body = _HEADER.pack(_MAGIC, _VERSION, 0, self.granule, self.size, self.process, 0)
        return body + _CHECK.pack(zlib.crc32(body))

    @staticmethod
    def unpack(content: bytes, path: str) -> Header:
        """The header at the start of a file; `ValueError` if there is none."""
        body, check = content[: _HEADER.size], content[_HEADER.size : _HEADER.size + _CHECK.size]
        if len(check) < _CHECK.size or _CHECK.unpack(check) != (zlib.crc32(body),):
            raise ValueError(f"{path!r} is not the table of a swap file")
        magic, version, _, granule, size, process, _ = _HEADER.unpack(body)
        if magic != _MAGIC or version != _VERSION:
            raise ValueError(f"{path!r} is a table {magic!r} of version {version}, not {_VERSION}")
        return Header(granule, size, process)


def _unpack(at: int, content: bytes) -> Record | None:
    body = content[: _RECORD.size]
    (check,) = _CHECK.unpack(content[_RECORD.size :])
    if check != zlib.crc32(body + _NUMBER.pack(at)):
        return None
    length, checksum, granules, flags = _RECORD.unpack(body)
    return Record(at, granules, length, checksum if flags & _CHECKED else None)


class Table:
    """The table of a swap file's slots. Its user sees to it that records do not overlap."""

    def __init__(self, path: str, system: System) -> None:
        """Opens the table at a path; a new one is empty, and has no header."""
        self.path = path
        self._file = File(path, system)
        self._lock = threading.RLock()
        # Guarded by the lock: what is to be at granules, and could not be written.
        self._owed: dict[int, bytes] = {}

    @property
    def is_new(self) -> bool:
        """Whether there was no file, or nothing in it."""
        return self._file.size == 0

    @property
    def disk_size(self) -> int:
        """Bytes that the table takes of the file system."""
        return self._file.disk_size

    def read_header(self) -> Header:
        """The header; `ValueError` if there is none, so that the file is not one of ours."""
        content = bytearray(_HEADER.size + _CHECK.size)
        with contextlib.suppress(FileEnd):
            self._file.read_into([memoryview(content)], 0)
        return Header.unpack(bytes(content), self.path)

    def write_header(self, header: Header) -> None:
        """Writes the header, and has the file be as long as its records need."""
        self._file.write([memoryview(header.pack())], 0)
        self._file.truncate(HEADER_SIZE + header.size // header.granule * RECORD_SIZE)

    def put(self, records: Sequence[Record]) -> None:
        """Writes records, which are in order: all, or none. Slots are good from here on."""
        self.settle()
        try:
            for group in _groups(records):
                content = b"".join(record.pack() for record in group)
                self._file.write([memoryview(content)], _offset(group[0].at))
        except BaseException:
            self.drop(records)
            raise

    def clear(self, records: Sequence[Record]) -> None:
        """Clears records, which are in order: all, or none."""
        if self._owed:
            with self._lock:
                for record in records:
                    self._owed.pop(record.at, None)
        try:
            for group in _groups(records):
                self._file.write([memoryview(_NONE * len(group))], _offset(group[0].at))
        except BaseException:
            self.put_back(records)
            raise

    def put_back(self, records: Iterable[Record]) -> None:
        """Writes records of slots that are not to be freed after all, once that is possible."""
        self._owe({record.at: record.pack() for record in records})

    def drop(self, records: Iterable[Record]) -> None:
        """Clears records of slots that are not to be after all, once that is possible."""
        self._owe(dict.fromkeys((record.at for record in records), _NONE))

    def _owe(self, contents: dict[int, bytes]) -> None:
        with self._lock:
            self._owed.update(contents)
        with contextlib.suppress(OSError):
            self.settle()

    def settle(self) -> None:
        """Writes what is owed; `OSError` if that is not possible."""
        if not self._owed:
            return
        with self._lock:
            for at, content in list(self._owed.items()):
                try:
                    self._file.write([memoryview(content)], _offset(at))
                except OSError:
                    # On a full disk zeros cannot be written where there are none but zeros.
                    if not self._has(at, content):
                        raise
                self._owed.pop(at, None)

    def _has(self, at: int, content: bytes) -> bool:
        found = bytearray(RECORD_SIZE)
        with contextlib.suppress(FileEnd, OSError):
            self._file.read_into([memoryview(found)], _offset(at))
            return found == content
        return False

    def records(self) -> Iterator[Record]:
        """All records, in order."""
        end = 0
        for record in self._stored():
            if record.at < end:
                raise Corrupt(f"{self.path!r}: two slots overlap at granule {record.at}")
            end = record.at + record.granules
            yield record

    def _stored(self) -> Iterator[Record]:
        size, end = self._file.size, HEADER_SIZE
        while (data := self._file.next_data(end)) is not None and data < size:
            # A whole number of records into the table, wherever the hole ends.
            start = _offset(max(data - HEADER_SIZE, 0) // RECORD_SIZE)
            length = min(_READ_RECORDS * RECORD_SIZE, size - start)
            content = bytearray(length)
            try:
                self._file.read_into([memoryview(content)], start)
            except FileEnd as error:
                raise Corrupt(
                    f"{self.path!r} was cut to {error.size:#x} while it was read"
                ) from error
            first = (start - HEADER_SIZE) // RECORD_SIZE
            words = np.frombuffer(content, np.uint64, length // RECORD_SIZE * 4).reshape(-1, 4)
            for at in map(int, np.flatnonzero(words.any(axis=1))):
                stored = bytes(content[at * RECORD_SIZE : (at + 1) * RECORD_SIZE])
                record = _unpack(first + at, stored)
                if record is not None:
                    yield record
            end = start + length

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        self.settle()
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self.settle()
        self._file.close()

    def leave(self) -> None:
        """Closes the file in a process that was forked."""
        self._file.leave()

    def remove(self) -> None:
        """Removes the file from its directory."""
        self._file.remove()

    @property
    def was_made(self) -> bool:
        """Whether opening it has made the file."""
        return self._file.is_new


def _offset(at: int) -> int:
    """Where the record of a granule is in the file."""
    return HEADER_SIZE + at * RECORD_SIZE


def _groups(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Records that lie one behind the other, together."""
    start = 0
    for at in range(1, len(records) + 1):
        if at == len(records) or records[at].at != records[at - 1].at + 1:
            yield records[start:at]
            start = at
