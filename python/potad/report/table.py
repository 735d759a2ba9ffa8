"""The report's table, before it is drawn: what its rows are and what each means.

The terminal and the page show the same rows, so they are made once, as text. A *cell* has a
value and, where comparing with the Linux buddy allocator says more than the figure itself,
a *ratio* to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from potad.report.humanise import count, decimals, duration, share, significant, size
from potad.trace.result import Distribution, Report, Result, Runs, RunsResult

BASELINE = "linux-buddy"

UNUSABLE_SIZES = (64 << 10, 2 << 20, 32 << 20)


@dataclass(frozen=True)
class Cell:
    """One figure of one allocator."""

    value: str
    ratio: str = ""


@dataclass(frozen=True)
class Row:
    """One figure of all allocators."""

    label: str
    meaning: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Rows under one heading."""

    heading: str
    rows: tuple[Row, ...]


def headline(report: Report) -> str:
    """What was replayed, in one line.

    It holds no name: the renderers show that as their own kind of text.
    """
    trace = report["trace"]
    return (
        f"{trace['format']}, {count(trace['events'])} events"
        f" in {duration(trace['seconds'])},"
        f" {size(report['memory_bytes'])} of memory for a peak of {size(trace['peak_bytes'])}"
    )


def remarks(report: Report) -> list[str]:
    """What a reader of the figures should know about the trace itself."""
    trace = report["trace"]
    found = []
    if trace["frees_before_recording"]:
        found.append(
            f"{count(trace['frees_before_recording'])} frees of pages that were allocated"
            " before recording began are left out."
        )
    if trace["failed_allocations"]:
        found.append(
            f"{count(trace['failed_allocations'])} allocations failed when they were recorded"
            " and are left out."
        )
    if trace["partial_frees"]:
        found.append(f"{count(trace['partial_frees'])} frees gave back a part of an allocation.")
    if trace["lost_frees"]:
        found.append(
            f"{count(trace['lost_frees'])} pages were allocated again without having been freed:"
            " their free is missing from the trace and is made just before."
        )
    if trace["dropped"]:
        found.append(f"The recorder says it lost {count(trace['dropped'])} events.")
    if trace["malformed"]:
        found.append(f"{count(trace['malformed'])} malformed lines were passed over.")
    return found + trace["notes"]


def sections(report: Report) -> list[Section]:
    """The table of one trace; each row has a cell for each allocator, in their order."""
    results = report["allocators"]
    baseline = next((r for r in results if r["allocator"] == BASELINE), None)

    def row(label: str, meaning: str, value: Callable[[Result], str]) -> Row:
        return Row(label, meaning, tuple(Cell(value(result)) for result in results))

    def compared(
        label: str,
        meaning: str,
        value: Callable[[Result], str],
        figure: Callable[[Result], float],
    ) -> Row:
        return Row(
            label,
            meaning,
            tuple(Cell(value(r), _ratio(r, baseline, figure)) for r in results),
        )

    def lines(label: str, meaning: str, of: Callable[[Result], Distribution]) -> tuple[Row, Row]:
        return (
            compared(
                f"{label}, mean",
                meaning,
                lambda r: decimals(of(r)["mean"]),
                lambda r: of(r)["mean"],
            ),
            row(
                "… 99th percentile",
                "one operation in a hundred takes as many or more",
                lambda r: count(of(r)["p99"]),
            ),
        )

    runs = results[0]["runs"]
    run_size, run_align = runs["size_bytes"], runs["align_bytes"]
    probes, interval = runs["probes"], runs["interval_events"]
    return [
        Section(
            "What was asked",
            (
                row("Events", "allocations and frees replayed", lambda r: count(r["events"])),
                row("Allocations", "requests for pages", lambda r: count(r["allocations"])),
                row("Failures", "requests the allocator could not serve", _failures),
                row(
                    "Live at the end",
                    "in use after the last event",
                    lambda r: size(r["live_bytes"]),
                ),
                row(
                    "… not movable",
                    "of these, where the allocator tells them apart",
                    lambda r: _size_if_known(r["live_unmovable_bytes"]),
                ),
                row(
                    "Live at the peak",
                    "the most in use at any event",
                    lambda r: size(r["peak_bytes"]),
                ),
            ),
        ),
        Section(
            "What it cost",
            (
                compared(
                    "Time an operation",
                    "median of the timed rounds",
                    lambda r: f"{significant(r['nanoseconds_per_operation']['median'])} ns",
                    lambda r: r["nanoseconds_per_operation"]["median"],
                ),
                row("… quickest, slowest", "of the timed rounds", _extremes),
                compared(
                    "Metadata",
                    "memory the allocator keeps about the space",
                    lambda r: size(r["metadata_bytes"]),
                    lambda r: r["metadata_bytes"],
                ),
                *lines(
                    "Cache lines",
                    "different lines of metadata an operation touches",
                    lambda r: r["cache_lines"]["distinct"],
                ),
                *lines(
                    "L1 misses",
                    "accesses that a simulated cache of 32 KiB, 8 ways, did not hold",
                    lambda r: r["cache_lines"]["missing_l1"],
                ),
                *lines(
                    "L2 misses",
                    "of these, what a simulated cache of 1 MiB, 16 ways, did not hold either",
                    lambda r: r["cache_lines"]["missing_l2"],
                ),
            ),
        ),
        Section(
            "What is left",
            (
                row(
                    "Largest free block",
                    "naturally aligned, a power of two, after the last event",
                    lambda r: size(r["largest_free_bytes"]),
                ),
                *(
                    row(
                        f"Unusable for {size(wanted)}",
                        "share of the free memory that lies in smaller blocks, at the end",
                        lambda r, wanted=wanted: share(  # type: ignore[misc]
                            r["unusable_free_index"][str(wanted)]
                        ),
                    )
                    for wanted in UNUSABLE_SIZES
                ),
                row(
                    f"{size(run_size)} run possible",
                    f"share of {count(probes)} looks, one every {count(interval)} steps, that"
                    f" found {size(run_size)} of free memory at a multiple of {size(run_align)}",
                    _runs,
                ),
            ),
        ),
    ]


def runs_section(report: Report) -> Section | None:
    """What came of asking for runs, a cell for each allocator asked; None if none was."""
    results = report["relocation"]
    if not results:
        return None

    def row(label: str, meaning: str, value: Callable[[RunsResult], str]) -> Row:
        return Row(label, meaning, tuple(Cell(value(result)) for result in results))

    return Section(
        runs_heading(results[0]),
        (
            row(
                "Granted",
                f"of {count(results[0]['wanted'])} wanted,"
                f" {count(results[0]['at_once'])} every {count(results[0]['interval_events'])}"
                f" steps, with {share(results[0]['pinned'])} of movable allocations pinned",
                _granted,
            ),
            row(
                "Missed",
                "refused although what was in place could have been moved to make the run",
                lambda r: count(r["missed"]),
            ),
            row("Moved", "what was moved to make room", lambda r: size(r["bytes_moved"])),
            row("… pages", "the same in pages of 4 KiB", lambda r: count(r["pages_moved"])),
            row("… a run granted", "the mean over all runs granted", _moved_a_run),
            row(
                "… in vain",
                "out of windows that then could not be emptied",
                lambda r: size(r["bytes_wasted"]),
            ),
            row(
                "Time a request",
                "median over all requests, without copying",
                lambda r: duration(r["nanoseconds_per_request"]["median"] / 1e9),
            ),
            row(
                "… slowest",
                "of all requests",
                lambda r: duration(r["nanoseconds_per_request"]["max"] / 1e9),
            ),
            row("Allocations refused", "requests of the trace that were not served", _failures),
            row(
                "Reserve",
                "memory kept for runs, which movable pages may use meanwhile",
                lambda r: size(r["reserve"]["bytes"]) if r["reserve"]["bytes"] else "none",
            ),
            row(
                "… free in it",
                "of no use to pages that cannot be moved; the mean when runs were asked for",
                lambda r: size(r["reserve"]["free_bytes_mean"]),
            ),
            row(
                "… refused beside it",
                "allocations that a free block in the reserve would have served",
                lambda r: count(r["reserve"]["failures"]),
            ),
        ),
    )


def runs_heading(runs: Runs | RunsResult) -> str:
    """Of what size the runs are, and where."""
    return f"Runs of {size(runs['size_bytes'])} at multiples of {size(runs['align_bytes'])}"


def _granted(result: RunsResult) -> str:
    if not result["wanted"]:
        return "not asked"
    return f"{count(result['granted'])} ({share(result['granted'] / result['wanted'])})"


def _moved_a_run(result: RunsResult) -> str:
    return size(result["bytes_moved"] / result["granted"]) if result["granted"] else "–"


def _ratio(result: Result, baseline: Result | None, figure: Callable[[Result], float]) -> str:
    if baseline is None or result is baseline or not figure(baseline):
        return ""
    ratio = figure(result) / figure(baseline)
    if 0 < ratio < 0.001:
        return "<0.001×"
    return f"{decimals(ratio)}×"


def _size_if_known(value: int | None) -> str:
    return "–" if value is None else size(value)


def _failures(result: Result | RunsResult) -> str:
    failures = result["failures"]
    if not failures:
        return "0"
    return f"{count(failures)} ({share(failures / result['allocations'])})"


def _extremes(result: Result) -> str:
    spread = result["nanoseconds_per_operation"]
    return f"{significant(spread['min'])}-{significant(spread['max'])} ns"


def _runs(result: Result) -> str:
    runs = result["runs"]
    return share(runs["possible"] / runs["probes"]) if runs["probes"] else "not probed"
