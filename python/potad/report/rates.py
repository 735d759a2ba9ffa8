"""What happens in a second, from two snapshots of a running pool, arena or space.

Rates are by the clock of the process that is looked at, which is never set. Where there is
nothing to compare with there is no rate, and None stands for that: no snapshot before, one of
another process, or a counter that fell, which is then that of another pool.
"""

from __future__ import annotations

from potad.monitor import Snapshot
from potad.pool.stats import PoolUsage

# Less than anybody looks twice in; a clock that says so is not to be divided by.
SECONDS_MIN = 0.001


class Rates:
    """What changed in a second between two snapshots, where they can be compared."""

    def __init__(self, now: Snapshot, before: Snapshot | None) -> None:
        self.seconds = 0.0
        self._now = now
        self._before = None
        if before is not None and (before.pid, before.kind) == (now.pid, now.kind):
            self.seconds = now.clock_s - before.clock_s
            if self.seconds >= SECONDS_MIN:
                self._before = before
        self._rows: dict[tuple[str, str], PoolUsage | None] = {}
        pool = self._before.pool if self._before else None
        for row in pool.rows if pool else ():
            # Different owners may look the same; then nobody knows which is which.
            key = row.kind, row.owner
            self._rows[key] = None if key in self._rows else row

    def pool(self, name: str) -> float | None:
        """Of a counter of a pool."""
        now, before = self._now.pool, self._before.pool if self._before else None
        if now is None or before is None:
            return None
        return self._rate(getattr(now, name), getattr(before, name))

    def row(self, row: PoolUsage, name: str) -> float | None:
        """Of a counter of a row."""
        before = self._rows.get((row.kind, row.owner))
        return None if before is None else self._rate(getattr(row, name), getattr(before, name))

    def used(self) -> float | None:
        """What is in use of a space, which may become less."""
        now, before = self._now.space, self._before.space if self._before else None
        if now is None or before is None:
            return None
        return (now.used - before.used) / self.seconds

    def hit_ratio(self) -> float | None:
        """Share of the pins since the snapshot before that were hits; None if there were none."""
        hits, faults = self.pool("hits"), self.pool("faults")
        if hits is None or faults is None or not hits + faults:
            return None
        return hits / (hits + faults)

    def _rate(self, now: int, before: int) -> float | None:
        # A counter that fell is that of another pool.
        return None if now < before else (now - before) / self.seconds
