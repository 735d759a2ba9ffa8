"""What a pool counts as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potad.pool.stats import Histogram, PoolStats

if TYPE_CHECKING:
    from potad.pool.core import Core


class Counters:
    """Figures that only grow, guarded by the pool's lock."""

    def __init__(self) -> None:
        self.lost = 0
        self.hits = 0
        self.faults = 0
        self.evictions = 0
        self.evictions_clean = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.written_ahead = 0
        self.read_ahead = 0
        self.read_ahead_hits = 0
        self.moved_bytes = 0
        self.io_errors = 0
        self.fault_latency = Histogram()
        self.read_latency = Histogram()
        self.write_latency = Histogram()

    def stats(self, core: Core) -> PoolStats:
        """All of it, and how things stand."""
        return PoolStats(
            memory_bytes=core.limit,
            resident_bytes=core.resident,
            pinned_bytes=core.pinned,
            dirty_bytes=core.dirty,
            swap_bytes=core.swap.size,
            swap_used_bytes=core.swap.space.used,
            objects=len(core.objects),
            lost=self.lost,
            hits=self.hits,
            faults=self.faults,
            evictions=self.evictions,
            evictions_clean=self.evictions_clean,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            written_ahead=self.written_ahead,
            read_ahead=self.read_ahead,
            read_ahead_hits=self.read_ahead_hits,
            moved_bytes=self.moved_bytes,
            io_errors=self.io_errors,
            fault_latency=self.fault_latency.snapshot(),
            read_latency=self.read_latency.snapshot(),
            write_latency=self.write_latency.snapshot(),
            rows=core.accounts.rows(),
        )
