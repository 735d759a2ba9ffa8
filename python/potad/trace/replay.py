"""A parsed trace run through an allocator.

The replay itself is Rust: every event goes through the allocator several times, timed
without instruments, and once more with every access to its metadata counted. Here are the
allocators' names, the size of the memory they are given, and the loop that lets a caller
show progress and be interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

from potad._core import Replay, Trace
from potad.trace.result import PAGE_BYTES, Result, TraceSummary

POTAD = "potad"
PEERS = ("linux-buddy", "first-fit")
"""What a trace can be replayed against, in the order of the report."""

DEFAULT_PROBE_INTERVAL_EVENTS = 1000
DEFAULT_POINTS = 600

# Events from one call of `progress` to the next. Signals are looked for within a step.
STEP_EVENTS = 1 << 15

# Allocations from which on a trace without a single free is odd.
_ALLOCATIONS_WITHOUT_FREES = 100

_MIB = 1 << 20


def default_memory_bytes(peak_bytes: int) -> int:
    """The trace's peak and a sixteenth of it, up to a whole MiB.

    So little room is left that fragmentation shows, and so much that an allocator that
    keeps it low need not fail.

    >>> default_memory_bytes(512 << 20) >> 20
    544
    """
    return max(1, -(-(peak_bytes + peak_bytes // 16) // _MIB)) * _MIB


def page_rounded(size_bytes: int) -> int:
    """`size_bytes` rounded up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def replay(
    trace: Trace,
    allocator: str,
    *,
    memory_bytes: int,
    probe_interval_events: int = DEFAULT_PROBE_INTERVAL_EVENTS,
    points: int = DEFAULT_POINTS,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Runs all of `trace` through `allocator`, `"potad"` or one of `PEERS`.

    Arguments: `memory_bytes`, the size of the space, a multiple of the page;
    `probe_interval_events`, how often a run of 8 MiB at 1 MiB alignment is looked for;
    `points`, samples of each curve; `progress`, called with the events done and of how many.

    Raises `ValueError` for a bad argument, `MemoryError` where memory runs out. The allocator's
    whole state is checked at the end.
    """
    run = Replay(trace, allocator, memory_bytes, probe_interval_events, points)
    done = 0
    while step := run.step(STEP_EVENTS):
        done += step
        if progress is not None:
            progress(done, run.total)
    return cast(Result, json.loads(run.result()))


def summarise(name: str, trace: Trace) -> TraceSummary:
    """The reader's findings as plain data."""
    return {
        "name": name,
        "format": trace.format,
        "seconds": trace.seconds,
        "events": trace.events,
        "allocations": trace.allocations,
        "failed_allocations": trace.failed_allocations,
        "frees": trace.frees,
        "partial_frees": trace.partial_frees,
        "frees_before_recording": trace.frees_before_recording,
        "lost_frees": trace.lost_frees,
        "dropped": trace.dropped,
        "malformed": trace.malformed,
        "malformed_lines": list(trace.malformed_lines),
        "live_bytes": trace.live_bytes,
        "peak_bytes": trace.peak_bytes,
        "notes": _notes(trace),
    }


def _notes(trace: Trace) -> list[str]:
    """What is odd about a trace as a whole."""
    if trace.frees or trace.allocations < _ALLOCATIONS_WITHOUT_FREES:
        return []
    note = (
        f"There are {trace.allocations:,} allocations and not one free. The event mm_page_free"
        " was probably not recorded, or its kernel gives it a name that is not known here."
    )
    return [note]
