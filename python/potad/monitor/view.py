"""What a target comes to at one moment: figures and texts, so that it holds on to nothing.

A snapshot has `pool` for a pool, `space` for a space and for the space of an arena, or `error`
where the target could not be asked. The fields have a version: one that differs is not
understood.

A space is asked with one call after the other, so between two figures others may allocate: that
they come to the size is true of a space that stands still.

What it costs. All but one of the calls take microseconds. Adding up by kind and owner goes
through all allocations with the space locked and the GIL held: about 0.2 microseconds an
allocation, and 2.5 for each owner; with a million allocations that is 0.2 seconds in which nobody
allocates. So its rows are taken again only when that is at most a fiftieth of the time:
`rows_age_s` says how old they are.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from potad import plain
from potad._core import Arena, Space
from potad.pool.stats import PoolStats
from potad.usage import OWNER_WIDTH_MAX, short

VERSION = 1

# A row has at most 1.8 KiB, if its texts are all pictures, so an answer at most 180 KiB; usually a
# tenth. Of 208 KiB (net.core.wmem_default) the system takes all before anybody reads.
ROWS_MAX = 100

# Of errors, and of names of programs.
_TEXT_WIDTH_MAX = 300

# How many times as long as it took a summary by kind and owner is shown.
_ROWS_SHARE = 49

# Requests whose unusable free index is told, as orders: 64 KiB, 2 MiB and 32 MiB for pages of 4
# KiB.
_ORDERS = (4, 9, 13)

POOL, ARENA, SPACE = "pool", "arena", "space"


@runtime_checkable
class HasStats(Protocol):
    """A pool, as far as is seen of it here. Where it has `closed`, that says whether it is."""

    def stats(self) -> PoolStats:
        """What is in it, and what happened in it."""
        ...


Target = HasStats | Arena | Space


@dataclass(frozen=True)
class SpaceUsage:
    """What the allocations of one kind and one owner come to; kind and owner are texts."""

    kind: str
    owner: str
    allocations: int
    size: int


@dataclass(frozen=True)
class SpaceFigures:
    """A space in figures, as its properties of these names give them.

    `allocations` is its length. `retired` is what is out of service, or will be when it is freed.
    `unusable` is the unusable free index for requests of a few sizes. `rows` are the largest rows
    of its report.
    """

    size: int
    granule: int
    base: int
    available: int
    used: int
    largest_free: int
    allocations: int
    metadata_bytes: int
    retired: int
    free_blocks: dict[int, int]
    unusable: dict[int, float]
    rows: tuple[SpaceUsage, ...]


@dataclass(frozen=True)
class Snapshot:
    """What a process shows of its pool, arena or space at one moment.

    `pid`, `program` (as it was started) and `name` (as it was given to `potad.serve`) say who shows
    it, `kind` whether it is a "pool", an "arena" or a "space". `time` is in seconds since 1970,
    `clock_s` in seconds of a clock that is never set, for rates. `took_s` is how long it took.
    `rows_left_out` are rows by kind and owner that are smaller than those that are sent.
    """

    version: int
    pid: int
    program: str
    name: str | None
    kind: str
    time: float
    clock_s: float
    took_s: float
    rows_left_out: int
    rows_age_s: float
    error: str | None
    pool: PoolStats | None
    space: SpaceFigures | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, texts and numbers, as JSON has them."""
        made: dict[str, Any] = plain.write(self)
        return made

    @classmethod
    def from_dict(cls, data: object) -> Snapshot:
        """What `to_dict` made, read back.

        Raises `ValueError` for what is no snapshot of this version, and for texts or lists that
        are longer than those of any.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION and type(version) is int:
            raise ValueError(f"a snapshot of version {version}, and only {VERSION} is known here")
        _check_sizes(data)
        made = plain.read(cls, data)
        if made.kind not in (POOL, ARENA, SPACE):
            raise ValueError(f"Snapshot.kind must be a pool, arena or space, not {made.kind!r}")
        shown = made.pool if made.kind == POOL else made.space
        # Of these three there is one, and it is that of the kind.
        if [made.error, made.pool, made.space].count(None) != 2 or (
            made.error is None and shown is None
        ):
            raise ValueError("Snapshot must have an error or what its kind says, and no more")
        return made


def _check_sizes(data: object) -> None:
    """Raises `ValueError` for a text or a list, anywhere in plain data, that no snapshot has."""
    if isinstance(data, str):
        if len(data) > _TEXT_WIDTH_MAX:
            raise ValueError(
                f"a text of {len(data):,} characters: a snapshot has at most {_TEXT_WIDTH_MAX}"
            )
    elif isinstance(data, (list, dict)):
        if len(data) > ROWS_MAX:
            raise ValueError(f"{len(data):,} entries: a snapshot has at most {ROWS_MAX} of a sort")
        for item in data.values() if isinstance(data, dict) else data:
            _check_sizes(item)


def kind_of(target: object) -> str:
    """What a target is.

    Raises `TypeError` if it is nothing that can be shown.
    """
    if isinstance(target, Arena):
        return ARENA
    if isinstance(target, Space):
        return SPACE
    if isinstance(target, HasStats) and not isinstance(target, type):
        return POOL
    raise TypeError(f"target must be a Pool, Arena or Space, not {short(target)}")


def can_be_closed(target: Target) -> bool:
    """Whether there is any sense in asking whether it is."""
    return not isinstance(target, Space)


def is_closed(target: Target) -> bool:
    """Whether a target shows nothing any more."""
    if isinstance(target, Arena):
        # It has no other way to say so that changes nothing.
        return repr(target).endswith(" closed>")
    return bool(getattr(target, "closed", False))


class Viewer:
    """Takes snapshots of one target, and remembers what is too dear to be taken each time."""

    def __init__(self, kind: str, name: str | None) -> None:
        self._kind = kind
        self._name = None if name is None else short_text(name)
        self._rows: tuple[SpaceUsage, ...] = ()
        self._rows_left_out = 0
        self._rows_taken_s = 0.0
        self._rows_next_s = 0.0

    def look(self, target: Target) -> Snapshot:
        """The target as it is now. Whatever it raises is in the snapshot."""
        start = time.monotonic()
        pool = space = error = None
        left_out, age_s = 0, 0.0
        try:
            if isinstance(target, (Arena, Space)):
                space = self._space(target if isinstance(target, Space) else target.space)
                left_out = self._rows_left_out
                age_s = max(0.0, time.monotonic() - self._rows_taken_s)
            else:
                pool, left_out = _pool(target)
        except Exception as raised:
            text = f"{type(raised).__name__}: {short_text(raised, _TEXT_WIDTH_MAX)}"
            error = short_text(text, _TEXT_WIDTH_MAX)
        return Snapshot(
            version=VERSION,
            pid=os.getpid(),
            program=short_text((getattr(sys, "argv", None) or [""])[0], _TEXT_WIDTH_MAX),
            name=self._name,
            kind=self._kind,
            time=time.time(),
            clock_s=start,
            took_s=max(0.0, time.monotonic() - start),
            rows_left_out=left_out,
            rows_age_s=age_s,
            error=error,
            pool=pool,
            space=space,
        )

    def _space(self, space: Space) -> SpaceFigures:
        size, granule = space.size, space.granule
        retired = sum(size for _, size in space.retired_ranges())
        asked = [granule << order for order in _ORDERS if granule << order <= size]
        if time.monotonic() >= self._rows_next_s:
            self._take_rows(space)
        return SpaceFigures(
            size=size,
            granule=granule,
            base=space.base,
            available=space.available,
            used=space.used,
            largest_free=space.largest_free,
            allocations=len(space),
            metadata_bytes=space.metadata_bytes,
            retired=retired,
            free_blocks=space.free_blocks(),
            unusable={size: space.unusable_free_index(size) for size in asked},
            rows=self._rows,
        )

    def _take_rows(self, space: Space) -> None:
        start = time.monotonic()
        report = space.report()
        self._rows = tuple(
            SpaceUsage(
                short_text(row.kind.name) if row.kind else "-",
                "-" if row.owner is None else short(row.owner),
                row.allocations,
                row.size,
            )
            for row in report.rows[:ROWS_MAX]
        )
        self._rows_left_out = max(0, len(report) - ROWS_MAX)
        # Owners go before the clock is read: there may be a million of them.
        del report
        self._rows_taken_s = time.monotonic()
        self._rows_next_s = self._rows_taken_s + _ROWS_SHARE * (self._rows_taken_s - start)


def _pool(target: HasStats) -> tuple[PoolStats, int]:
    """A pool's figures with the largest rows, and how many are left out."""
    stats = target.stats()
    if not isinstance(stats, PoolStats):
        raise TypeError(f"stats() must return PoolStats, not {short(stats)}")
    rows = tuple(
        dataclasses.replace(row, kind=short_text(row.kind), owner=short_text(row.owner))
        for row in stats.rows[:ROWS_MAX]
    )
    return dataclasses.replace(stats, rows=rows), max(0, len(stats.rows) - ROWS_MAX)


def short_text(value: object, width_max: int = OWNER_WIDTH_MAX) -> str:
    """A text that fits in a line, whatever it is that is to be shown."""
    try:
        text = " ".join(str(value).split())
    except Exception as error:
        text = f"<{type(value).__name__}, whose text raised {type(error).__name__}>"
    return text if len(text) <= width_max else text[: width_max - 1] + "…"
