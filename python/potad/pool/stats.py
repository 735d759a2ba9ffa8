"""What a pool counts, and what it says of that.

Terms. An object is *resident* while it is in memory, and *dirty* while what is in memory differs
from what is in the swap file. To pin an object that is resident is a *hit*, one that is not a
*fault*. An *eviction* takes an object out of memory: *clean* if nothing had to be written for it.
Bytes *in* are read from the swap file, bytes *out* written to it.

Representation. Counters that change with each pin are mutable and cheap: `Account`, one for each
kind and owner, and `Histogram`. They are of no thread: the pool changes them under its lock.
Everything that is handed out is frozen: `PoolUsage`, `Latency`, and `PoolStats` with all of them.

A histogram has a bucket for each power of two of nanoseconds. So adding is two operations on
integers, and a percentile is right to a factor of two, always to the larger side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potad import plain
from potad.printable import printable
from potad.usage import OWNER_WIDTH_MAX, aligned

# Bucket i is for durations of i bits, 2^(i-1) to 2^i - 1 ns; bucket 0 for none. 2^64 ns are 584
# years.
_BUCKETS = 65


@dataclass(frozen=True)
class Latency:
    """How long something took, in nanoseconds; all 0 where it never happened.

    A percentile is the upper end of the power of two it lies in, but never above `max_ns`.
    """

    count: int
    mean_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int


class Histogram:
    """Durations counted by powers of two of nanoseconds.

    >>> from potad.pool.stats import Histogram
    >>> times = Histogram()
    >>> for ns in (900, 1000, 1100, 50_000):
    ...     times.add(ns)
    >>> times.percentile(0.5), times.percentile(0.75), times.percentile(0.99)
    (1023, 2047, 50000)
    """

    __slots__ = ("_buckets", "max_ns", "total_ns")

    def __init__(self) -> None:
        self._buckets = [0] * _BUCKETS
        self.total_ns = 0
        self.max_ns = 0

    def add(self, ns: int) -> None:
        """Counts a duration, which must be from 0 to 2^64 - 1."""
        self._buckets[ns.bit_length()] += 1
        self.total_ns += ns
        if ns > self.max_ns:
            self.max_ns = ns

    @property
    def count(self) -> int:
        """Durations that were added."""
        return sum(self._buckets)

    def percentile(self, q: float) -> int:
        """The least end of a bucket, at most `max_ns`, below which a share `q` of all lies.

        0 if there are none. Raises `ValueError` unless `q` is from 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be from 0 to 1, not {q}")
        left = max(1, math.ceil(q * self.count))
        for bits, count in enumerate(self._buckets):
            left -= count
            if left <= 0:
                return min((1 << bits) - 1, self.max_ns)
        return self.max_ns

    def snapshot(self) -> Latency:
        """What they come to by now."""
        count = self.count
        mean = self.total_ns // count if count else 0
        return Latency(count, mean, self.percentile(0.5), self.percentile(0.99), self.max_ns)


@dataclass(frozen=True)
class PoolUsage:
    """What the objects of one kind and one owner come to; kind and owner are texts.

    `objects`, `bytes`, `resident_bytes` and `pins` are as things stand, the rest since the pool was
    made.
    """

    kind: str
    owner: str
    objects: int
    bytes: int
    resident_bytes: int
    pins: int
    hits: int
    faults: int
    evictions: int
    bytes_in: int
    bytes_out: int


@dataclass(slots=True)
class Account:
    """The counters of one kind and one owner: a `PoolUsage` that changes."""

    kind: str
    owner: str
    objects: int = 0
    bytes: int = 0
    resident_bytes: int = 0
    pins: int = 0
    hits: int = 0
    faults: int = 0
    evictions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def snapshot(self) -> PoolUsage:
        """What they are by now."""
        return PoolUsage(*(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class PoolStats:
    """What is in a pool, and what happened in it since it was made.

    `memory_bytes` is how much may be resident, `resident_bytes` how much is; of that,
    `pinned_bytes` are pinned and `dirty_bytes` not in the swap file as they are. `swap_bytes` is
    the size of the swap file, `swap_used_bytes` what of it is in use. `objects` are live, and
    `lost` were lost to failures. `hits` and `faults` are pins of objects that were in memory and
    of ones that were not; `evictions_clean` are the `evictions` for which nothing had to be
    written. `bytes_in` were read, `bytes_out` written, `moved_bytes` moved in memory to make
    runs. `written_ahead` are objects written by the background thread, `read_ahead` ones read
    because of a hint, and `read_ahead_hits` those of them that were pinned before they were
    evicted. `io_errors` are reads and writes that failed. `rows` is the same by kind and owner,
    largest first.
    """

    memory_bytes: int
    resident_bytes: int
    pinned_bytes: int
    dirty_bytes: int
    swap_bytes: int
    swap_used_bytes: int
    objects: int
    lost: int
    hits: int
    faults: int
    evictions: int
    evictions_clean: int
    bytes_in: int
    bytes_out: int
    written_ahead: int
    read_ahead: int
    read_ahead_hits: int
    moved_bytes: int
    io_errors: int
    fault_latency: Latency
    read_latency: Latency
    write_latency: Latency
    rows: tuple[PoolUsage, ...]

    @property
    def hit_ratio(self) -> float:
        """Share of all pins that found their object in memory; 0 if there were none."""
        pins = self.hits + self.faults
        return self.hits / pins if pins else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, texts and numbers, as JSON has them."""
        made: dict[str, Any] = plain.write(self)
        return made

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PoolStats:
        """What `to_dict` made, read back.

        Raises `ValueError` if anything is missing, not known, or not of its type.
        """
        return plain.read(cls, data)

    def __str__(self) -> str:
        memory = (
            f"{self.resident_bytes:,} of {self.memory_bytes:,} bytes,"
            f" {self.pinned_bytes:,} pinned, {self.dirty_bytes:,} dirty"
        )
        ahead = (
            f"{self.written_ahead:,} written, {self.read_ahead:,} read,"
            f" {self.read_ahead_hits:,} of them pinned"
        )
        head = [
            ("memory", memory),
            ("swap", f"{self.swap_used_bytes:,} of {self.swap_bytes:,} bytes"),
            ("pins", f"{self.hits:,} hits, {self.faults:,} faults, hit ratio {self.hit_ratio:.1%}"),
            ("evicted", f"{self.evictions:,}, {self.evictions_clean:,} without writing"),
            ("bytes", f"{self.bytes_in:,} in, {self.bytes_out:,} out, {self.moved_bytes:,} moved"),
            ("ahead", ahead),
            ("failed", f"{self.lost:,} objects lost, {self.io_errors:,} reads and writes failed"),
        ]
        latencies: list[tuple[str, ...]] = [("nanoseconds", "count", "mean", "p50", "p99", "max")]
        for name, of in (
            ("fault", self.fault_latency),
            ("read", self.read_latency),
            ("write", self.write_latency),
        ):
            figures = (of.count, of.mean_ns, of.p50_ns, of.p99_ns, of.max_ns)
            latencies.append((name, *(f"{figure:,}" for figure in figures)))
        rows: list[tuple[str, ...]] = [
            ("kind", "owner", "objects", "bytes", "resident", "pins", "hits", "faults")
        ]
        for row in self.rows:
            amounts = (row.objects, row.bytes, row.resident_bytes, row.pins, row.hits, row.faults)
            texts = (printable(text, OWNER_WIDTH_MAX) for text in (row.kind, row.owner))
            rows.append((*texts, *(f"{amount:,}" for amount in amounts)))
        return "\n\n".join((aligned(head, 2), aligned(latencies, 1), aligned(rows, 2)))
