"""Giving back to the file system what no slot uses any more, many ranges at a time.

Policy. To punch a hole is a system call, and to write there again has the file system look for
blocks; space that is used again soon should keep what it has. So what is freed is noted, and given
back once it comes to 256 KiB, or a sixty-fourth of what is in use if that is more. The file then
takes at most what slots take, that much, and what of blocks of the file system is shared with
slots.

A range may be in use again when its turn comes, in part or as a whole. So what is free of it is
allocated, which keeps others away, punched, and freed: a block of the file system at a time, if all
of it is free, since less of it gives nothing back.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import numpy as np

from potad._core import Space
from potad.errors import OutOfSpace
from potad.swap.file import PAGE, File

KEPT_MIN = 256 << 10
_KEPT_SHARE = 64

# Granules that are looked up at once.
_LOOKED_UP = 1 << 16


class Holes:
    """What was freed of a file and not given back yet."""

    def __init__(self, space: Space, file: File) -> None:
        self._space = space
        self._file = file
        # What holes begin and end with: a block of any usual file system.
        self._unit = max(PAGE, space.granule)
        # Held while ranges are being given back, which are not free meanwhile. Like the other one
        # it can be had again by who has it, as finalisers may free slots.
        self.at_work = threading.RLock()
        self._lock = threading.RLock()
        # Guarded by the lock: ranges that were freed, and what they come to.
        self._ranges: list[tuple[int, int]] = []
        self._size = 0
        # Likewise: after a failure it is not tried again before it comes to so much.
        self._failed_size = 0
        # What the file system has said if it has no holes at all.
        self._impossible: OSError | None = None

    def note(self, start: int, size: int) -> bool:
        """Notes that a range was freed; whether enough was to give it back."""
        if self._impossible is not None:
            return False
        with self._lock:
            self._ranges.append((start, start + size))
            self._size += size
            return self.is_enough

    @property
    def is_enough(self) -> bool:
        """Whether so much was noted that it is to be given back."""
        return self._size > max(KEPT_MIN, self._space.used // _KEPT_SHARE, self._failed_size)

    def find(self, start: int, end: int) -> None:
        """Notes what has blocks in a free range, as another process may have left them."""
        while start < end:
            data = self._file.next_data(start)
            if data is None or data >= end:
                return
            start = min(self._file.next_hole(data), end)
            self.note(data, start - data)

    def punch(self) -> int:
        """Gives back what was noted and is free; how many bytes that was.

        Raises `OSError`; what was not given back is noted again.
        """
        if (error := self._impossible) is not None:
            raise OSError(error.errno, error.strerror, error.filename)
        with self.at_work:
            with self._lock:
                ranges, self._ranges, self._size = self._ranges, [], 0
            size = self._punch_all(list(self._merged(ranges)))
            self._failed_size = 0
            return size

    def _punch_all(self, todo: list[tuple[int, int]]) -> int:
        size = 0
        while todo:
            start, end = todo.pop()
            try:
                size += self._punch(start, end)
            except BaseException as error:
                for left, right in [*todo, (start, end)]:
                    self.note(left, right - left)
                self._failed_size = self._size + max(KEPT_MIN, self._size)
                if isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP:
                    self._impossible = error
                    self._ranges.clear()
                raise
        return size

    def _merged(self, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Ranges widened to whole units, those that touch together."""
        unit, limit = self._unit, self._space.size
        last: tuple[int, int] | None = None
        for first, behind in sorted(ranges):
            start, end = first // unit * unit, min(-(-behind // unit) * unit, limit)
            if start >= end:
                continue  # the file was cut there
            if last is not None and start <= last[1]:
                last = (last[0], max(end, last[1]))
                continue
            if last is not None:
                yield last
            last = (start, end)
        if last is not None:
            yield last

    def _punch(self, start: int, end: int) -> int:
        # Mostly it is free as a whole.
        if self._punch_free(start, end):
            return end - start
        size = 0
        step = _LOOKED_UP * self._unit
        for first in range(start, end, step):
            for free_start, free_end in self._free_parts(first, min(first + step, end)):
                # If somebody was quicker, it is noted again when that is freed.
                if self._punch_free(free_start, free_end):
                    size += free_end - free_start
        return size

    def _punch_free(self, start: int, end: int) -> bool:
        """Punches a range if it is free; whether it was."""
        try:
            self._space.alloc_at(start, end - start)
        except OutOfSpace:
            return False
        try:
            self._file.punch(start, end - start)
        finally:
            self._space.free(start)
        return True

    def _free_parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """Whole units that are free in a range, those that touch together."""
        granule = self._space.granule
        places = np.arange(start, end, granule, dtype=np.uint64)
        _, sizes = self._space.lookup_many(places)
        # What is retired is nobody's, but not to be had.
        sizes[np.isin(places, self._space.retired())] = granule
        granules = self._unit // granule
        # What is behind the file's end is free, if not to be had.
        short = -len(sizes) % granules
        free = np.pad(sizes == 0, (0, short), constant_values=True)
        units = free.reshape(-1, granules).all(axis=1)
        edges = np.flatnonzero(np.diff(np.pad(units, 1).astype(np.int8)))
        return [
            (start + int(first) * self._unit, min(start + int(last) * self._unit, end))
            for first, last in edges.reshape(-1, 2)
        ]
