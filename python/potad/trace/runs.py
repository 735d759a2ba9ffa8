"""Runs of contiguous memory asked for while a trace is replayed, with movable pages moved.

Two allocators are asked: potad, which looks for a run in the whole memory and empties the
window with the fewest bytes to move, and a restatement of Linux's contiguous memory allocator
(CMA), which keeps a reserve for runs that movable pages may use meanwhile. At each interval a
share of the live movable allocations, the same for both, is pinned, so many runs are asked
for one after the other until one is refused, and runs and pins go again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from potad._core import RunReplay, Trace
from potad.trace.replay import DEFAULT_POINTS, STEP_EVENTS
from potad.trace.result import PAGE_BYTES, RunsResult

CMA = "cma"

DEFAULT_INTERVAL_EVENTS = 1000
DEFAULT_PINNED = 0.05
DEFAULT_RESERVE = 0.1


@dataclass(frozen=True)
class RunRequests:
    """Which runs are asked for, and how often.

    `size_bytes` is a multiple of the page and `align_bytes` a power of two of at least a page;
    `at_once` is how many are wanted each time, `pinned` the share of movable allocations that
    cannot be moved then, `reserve` the share of the memory that CMA reserves.
    """

    size_bytes: int
    align_bytes: int = PAGE_BYTES
    interval_events: int = DEFAULT_INTERVAL_EVENTS
    at_once: int = 1
    pinned: float = DEFAULT_PINNED
    reserve: float = DEFAULT_RESERVE


def replay_runs(
    trace: Trace,
    relocator: str,
    requests: RunRequests,
    *,
    memory_bytes: int,
    points: int = DEFAULT_POINTS,
    progress: Callable[[int, int], None] | None = None,
) -> RunsResult:
    """Runs all of `trace` through `relocator`, `"potad"` or `"cma"`, and asks it for runs.

    Arguments: `memory_bytes`, the size of the space, a multiple of the page; `points`, samples
    of each curve; `progress`, called with the events done and of how many.

    Raises `ValueError` for a bad argument, `MemoryError` where memory runs out. The relocator's
    whole state is checked at the end.
    """
    run = RunReplay(trace, relocator, memory_bytes, requests, points)
    done = 0
    while step := run.step(STEP_EVENTS):
        done += step
        if progress is not None:
            progress(done, run.total)
    return cast(RunsResult, json.loads(run.result()))
