"""What a replay reports: the keys and units of the JSON, for renderers and for users.

One `Report` stands for one trace; it holds one `Result` for each allocator the trace was
run through. Bytes count pages of 4096. *Live* is what the trace holds at that moment,
*free* is the space less that. A *curve* is a list of samples, taken at the same events in
every allocator. Indices lie between 0 and 1. A *step* is what one event asks for: a free of
several allocations is several steps, one of pages never seen allocated is none. An
*operation* is a call of the allocator. `event` and `interval_events` count steps.
"""

from __future__ import annotations

from typing import TypedDict

PAGE_BYTES = 4096


class Spread(TypedDict):
    """A figure measured several times."""

    median: float
    min: float
    max: float


class Distribution(TypedDict):
    """A figure counted for every operation."""

    mean: float
    p99: int


class CacheLines(TypedDict):
    """Cache lines of 64 bytes an operation touches in the allocator's own metadata."""

    distinct: Distribution
    missing_l1: Distribution
    missing_l2: Distribution


class Runs(TypedDict):
    """How often a run of this size and alignment could have been had."""

    size_bytes: int
    align_bytes: int
    interval_events: int
    probes: int
    possible: int


class Curves(TypedDict):
    """Samples along the trace; all lists are equally long."""

    event: list[int]
    seconds: list[float]
    live_bytes: list[int]
    free_bytes: list[int]
    largest_free_bytes: list[int]
    unusable_64kib: list[float]
    unusable_2mib: list[float]
    unusable_32mib: list[float]
    run_possible: list[int]
    failures: list[int]


class AddressMap(TypedDict):
    """The space cut into equal cells, in address order: 0 is a free cell, 255 one all in use."""

    cell_bytes: int
    columns: int
    peak_event: int
    at_peak: list[int]
    at_end: list[int]
    unmovable_at_peak: list[int]
    unmovable_at_end: list[int]
    """How much of each cell is not movable; empty where the allocator does not tell."""


class Result(TypedDict):
    """One trace through one allocator."""

    allocator: str
    title: str
    memory_bytes: int
    events: int
    allocations: int
    failures: int
    frees: int
    partial_frees: int
    frees_before_recording: int
    frees_of_failed: int
    steps: int
    operations: int
    live_bytes: int
    live_unmovable_bytes: int | None
    peak_bytes: int
    metadata_bytes: int
    nanoseconds_per_operation: Spread
    cache_lines: CacheLines
    largest_free_bytes: int
    unusable_free_index: dict[str, float]
    runs: Runs
    free_blocks: dict[str, int]
    curves: Curves
    map: AddressMap


class ReserveLoss(TypedDict):
    """What a reserve for runs takes from everything else; all 0 where there is none."""

    bytes: int
    free_bytes_mean: float
    """Free in it when runs were asked for, and of no use to pages that cannot be moved."""
    failures: int
    """Allocations refused that a free block in it would have served."""


class RunsCurves(TypedDict):
    """Samples along the trace; all lists are equally long."""

    event: list[int]
    seconds: list[float]
    granted: list[int]
    bytes_moved: list[int]


class RunsResult(TypedDict):
    """One trace through one allocator that is asked for runs and moves pages to make them."""

    relocator: str
    title: str
    memory_bytes: int
    size_bytes: int
    align_bytes: int
    interval_events: int
    at_once: int
    pinned: float
    allocations: int
    failures: int
    wanted: int
    granted: int
    missed: int
    """Refusals although what was in place could have been moved to make the run."""
    bytes_moved: int
    pages_moved: int
    bytes_wasted: int
    """Of the bytes moved, those out of windows that were then not granted."""
    nanoseconds_per_request: Spread
    reserve: ReserveLoss
    curves: RunsCurves


class TraceSummary(TypedDict):
    """What was read, before any allocator saw it."""

    name: str
    format: str
    seconds: float
    events: int
    allocations: int
    failed_allocations: int
    frees: int
    partial_frees: int
    frees_before_recording: int
    lost_frees: int
    dropped: int
    malformed: int
    malformed_lines: list[tuple[int, str]]
    live_bytes: int
    peak_bytes: int
    notes: list[str]
    """Sentences on what is odd about the trace as a whole."""


class Report(TypedDict):
    """One trace and what every allocator made of it."""

    trace: TraceSummary
    memory_bytes: int
    allocators: list[Result]
    relocation: list[RunsResult]
    """Empty where no runs were asked for."""
