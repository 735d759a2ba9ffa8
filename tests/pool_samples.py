"""A pool's figures for tests that need any: a few that hang together, or random ones."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from potad.pool.stats import Latency, PoolStats, PoolUsage

MIB = 1 << 20


def latency(rng: random.Random | None = None) -> Latency:
    """Times of reads and writes."""
    if rng is None:
        return Latency(34, 105_000, 131_071, 1_048_575, 1_500_000)
    return Latency(*(rng.randrange(1 << 40) for _ in range(5)))


def usage(kind: str = "tensor", owner: str = "'cache'", **figures: Any) -> PoolUsage:
    """One row."""
    sample = PoolUsage(
        kind, owner, objects=40, bytes=80 * MIB, resident_bytes=50 * MIB, pins=2, hits=900,
        faults=100, evictions=90, bytes_in=100 * MIB, bytes_out=30 * MIB,
    )  # fmt: skip
    return dataclasses.replace(sample, **figures)


def stats(**figures: Any) -> PoolStats:
    """What a pool of 64 MiB might say."""
    sample = PoolStats(
        memory_bytes=64 * MIB,
        resident_bytes=62 * MIB,
        pinned_bytes=4 * MIB,
        dirty_bytes=16 * MIB,
        swap_bytes=256 * MIB,
        swap_used_bytes=96 * MIB,
        objects=60,
        lost=0,
        hits=1000,
        faults=250,
        evictions=200,
        evictions_clean=150,
        bytes_in=250 * MIB,
        bytes_out=60 * MIB,
        written_ahead=20,
        read_ahead=30,
        read_ahead_hits=27,
        moved_bytes=3 * MIB,
        io_errors=0,
        fault_latency=latency(),
        read_latency=latency(),
        write_latency=latency(),
        rows=(
            usage(),
            usage("page", "-", bytes=16 * MIB, resident_bytes=12 * MIB, hits=100, faults=150),
        ),
    )
    return dataclasses.replace(sample, **figures)


def random_stats(rng: random.Random) -> PoolStats:
    """Figures of any size, which need not hang together."""
    values: dict[str, Any] = {
        field.name: rng.randrange(1 << rng.randrange(1, 65))
        for field in dataclasses.fields(PoolStats)
        if field.type == "int"
    }
    rows = tuple(
        usage("".join(rng.choices('aé\x1b"\\☃', k=5)), objects=rng.randrange(9))
        for _ in range(rng.randrange(4))
    )
    values |= {f"{name}_latency": latency(rng) for name in ("fault", "read", "write")}
    return PoolStats(**values, rows=rows)
