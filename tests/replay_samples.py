"""Small traces and reports for the tests of the Python front."""

from __future__ import annotations

import gzip
import lzma
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from potad.trace.result import Report, Result, RunsResult

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLED_TRACE = REPOSITORY / "examples" / "traces" / "linux-numpy-thp.ftrace.xz"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}


class Raised(Exception):
    """What the handler of `raising_soon` raises."""


@contextmanager
def raising_soon(seconds: float = 0.05) -> Iterator[None]:
    """A signal after some time, whose handler raises `Raised`; it must do so within seconds."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Raised

    before = signal.signal(signal.SIGALRM, handler)
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - start < seconds + 10


def event_line(number: int, name: str, pfn: int, order: int) -> str:
    """One event as ftrace prints it, `number` milliseconds into the recording."""
    extra = " migratetype=1 gfp_flags=GFP_KERNEL" if name == "mm_page_alloc" else ""
    return (
        f"           sh-{number % 7 + 1:<7} [00{number % 2}] ..... {100 + number / 1000:.6f}:"
        f" {name}: page=00000000deadbeef pfn=0x{pfn:x} order={order}{extra}\n"
    )


def small_trace(pages: int = 2000) -> str:
    """So many pages allocated, then every second one freed; and two frees of older pages."""
    lines = ["# tracer: nop\n", "#\n"]
    lines += [event_line(n, "mm_page_alloc", 0x1000 + n, 0) for n in range(pages)]
    lines += [event_line(pages + n, "mm_page_free", 0x1000 + n, 0) for n in range(0, pages, 2)]
    lines += [event_line(2 * pages + n, "mm_page_free", 0x10 + n, 0) for n in range(2)]
    return "".join(lines)


def sample_result(allocator: str, title: str, **changes: Any) -> Result:
    """A result as a replay gives it, with figures that differ from one another."""
    samples = 40
    cells = 300
    result: dict[str, Any] = {
        "allocator": allocator,
        "title": title,
        "memory_bytes": 64 << 20,
        "events": 1200,
        "allocations": 800,
        "failures": 3,
        "frees": 400,
        "partial_frees": 5,
        "frees_before_recording": 17,
        "frees_of_failed": 2,
        "steps": 1190,
        "operations": 1185,
        "live_bytes": 20 << 20,
        "live_unmovable_bytes": None,
        "peak_bytes": 60 << 20,
        "metadata_bytes": 12345,
        "nanoseconds_per_operation": {"median": 41.52, "min": 40.1, "max": 47.9},
        "cache_lines": {
            "distinct": {"mean": 2.5, "p99": 6},
            "missing_l1": {"mean": 0.75, "p99": 4},
            "missing_l2": {"mean": 0.125, "p99": 2},
        },
        "largest_free_bytes": 8 << 20,
        "unusable_free_index": {"65536": 0.015, "2097152": 0.25, "33554432": 1.0},
        "runs": {
            "size_bytes": 8 << 20,
            "align_bytes": 1 << 20,
            "interval_events": 100,
            "probes": 12,
            "possible": 9,
        },
        "free_blocks": {"4096": 12, "65536": 3, "8388608": 1},
        "curves": {
            "event": [n * 30 for n in range(samples)],
            "seconds": [7.5 + n / 10 for n in range(samples)],
            "live_bytes": [n << 20 for n in range(samples)],
            "free_bytes": [(64 - n) << 20 for n in range(samples)],
            "largest_free_bytes": [0 if n == 39 else 1 << (26 - n // 3) for n in range(samples)],
            "unusable_64kib": [n / 100 for n in range(samples)],
            "unusable_2mib": [n / 60 for n in range(samples)],
            "unusable_32mib": [n / 40 for n in range(samples)],
            "run_possible": [int(n < 30 and n % 7 > 0) for n in range(samples)],
            "failures": [0] * samples,
        },
        "map": {
            "cell_bytes": 65536,
            "columns": 256,
            "peak_event": 1100,
            "at_peak": [n * 255 // cells for n in range(cells)],
            "at_end": [0] * cells,
            "unmovable_at_peak": [],
            "unmovable_at_end": [],
        },
    }
    result.update(changes)
    return result  # type: ignore[return-value]


def sample_runs(relocator: str, title: str, **changes: Any) -> RunsResult:
    """What came of asking for runs, with figures that differ from one another."""
    samples = 40
    result: dict[str, Any] = {
        "relocator": relocator,
        "title": title,
        "memory_bytes": 64 << 20,
        "size_bytes": 8 << 20,
        "align_bytes": 1 << 20,
        "interval_events": 300,
        "at_once": 20,
        "pinned": 0.05,
        "allocations": 800,
        "failures": 6,
        "wanted": 80,
        "granted": 39,
        "missed": 2,
        "bytes_moved": 78 << 20,
        "pages_moved": 19_968,
        "bytes_wasted": 5 << 20,
        "nanoseconds_per_request": {"median": 41_500.0, "min": 250.0, "max": 1_250_000.0},
        "reserve": {"bytes": 7 << 20, "free_bytes_mean": 3.5 * (1 << 20), "failures": 4},
        "curves": {
            "event": [n * 30 for n in range(samples)],
            "seconds": [7.5 + n / 10 for n in range(samples)],
            "granted": list(range(samples)),
            "bytes_moved": [n << 21 for n in range(samples)],
        },
    }
    result.update(changes)
    return result  # type: ignore[return-value]


def sample_relocation() -> list[RunsResult]:
    """What came of asking both for runs."""
    none = {"bytes": 0, "free_bytes_mean": 0.0, "failures": 0}
    return [
        sample_runs("potad", "potad, moving", granted=76, missed=0, reserve=none),
        sample_runs("cma", "Linux CMA (restated)"),
    ]


def sample_report(name: str = "sample.ftrace", **changes: Any) -> Report:
    """A report of three allocators that differ."""
    return {
        "trace": {
            "name": name,
            "format": "ftrace",
            "seconds": 35.77,
            "events": 1200,
            "allocations": 800,
            "failed_allocations": 6,
            "frees": 400,
            "partial_frees": 5,
            "frees_before_recording": 17,
            "lost_frees": 1,
            "dropped": 4,
            "malformed": 2,
            "malformed_lines": [(7, "pfn= is missing"), (9, "order= is missing")],
            "live_bytes": 20 << 20,
            "peak_bytes": 60 << 20,
            "notes": [],
        },
        "memory_bytes": 64 << 20,
        "allocators": [
            sample_result("potad", "potad", failures=0),
            sample_result("linux-buddy", "Linux buddy (restated)", metadata_bytes=1 << 20),
            sample_result("first-fit", "First fit", metadata_bytes=2 << 20),
        ],
        "relocation": [],
        **changes,  # type: ignore[typeddict-item]
    }
