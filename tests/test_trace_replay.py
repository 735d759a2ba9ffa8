"""Traces through allocators: what a result holds, and that its figures agree."""

from __future__ import annotations

import math
import subprocess
import sys
import types
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_samples import BUNDLED_TRACE, SHARED_DATA, Raised, raising_soon

from potad._core import Replay
from potad.trace import (
    CMA,
    PEERS,
    POTAD,
    RunRequests,
    default_memory_bytes,
    read_trace,
    replay,
    replay_runs,
)
from potad.trace.replay import page_rounded
from potad.trace.result import PAGE_BYTES, Result, RunsResult

MIB = 1 << 20


def assert_shaped(value: Any, kind: Any, path: str) -> None:
    """That `value` has exactly the keys and types of the `TypedDict` `kind`."""
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        assert set(value) == set(hints), path
        for key, hint in hints.items():
            assert_shaped(value[key], hint, f"{path}.{key}")
    elif typing.get_origin(kind) is list:
        for item in value:
            assert_shaped(item, typing.get_args(kind)[0], f"{path}[]")
    elif typing.get_origin(kind) is dict:
        for item in value.values():
            assert_shaped(item, typing.get_args(kind)[1], f"{path}{{}}")
    elif typing.get_origin(kind) is types.UnionType:
        assert type(value) in typing.get_args(kind), path
    elif kind is float:
        assert isinstance(value, int | float), path
        assert math.isfinite(value), path
    else:
        assert type(value) is kind, path


def assert_consistent(result: Result, memory_bytes: int) -> None:
    """What must hold of any result whatever the allocator."""
    assert_shaped(result, Result, result["allocator"])
    assert result["memory_bytes"] == memory_bytes
    assert result["events"] == result["allocations"] + result["frees"]
    assert 0 <= result["failures"] <= result["allocations"]
    assert result["live_bytes"] <= result["peak_bytes"] <= memory_bytes
    free = sum(int(size) * count for size, count in result["free_blocks"].items())
    assert free == memory_bytes - result["live_bytes"]
    assert result["largest_free_bytes"] == max(map(int, result["free_blocks"]), default=0)
    for size, index in result["unusable_free_index"].items():
        smaller = sum(int(s) * n for s, n in result["free_blocks"].items() if int(s) < int(size))
        assert index == pytest.approx(smaller / free if free else 0.0, abs=1e-6)
    times = result["nanoseconds_per_operation"]
    assert 0 < times["min"] <= times["median"] <= times["max"]
    lines = result["cache_lines"]
    assert lines["missing_l2"]["mean"] <= lines["missing_l1"]["mean"]
    assert 0 < lines["distinct"]["mean"] <= lines["distinct"]["p99"] * 2
    runs = result["runs"]
    assert runs["possible"] <= runs["probes"]
    curves = result["curves"]
    assert len({len(curve) for curve in typing.cast(dict[str, Any], curves).values()}) == 1
    for live, left in zip(curves["live_bytes"], curves["free_bytes"], strict=True):
        assert live + left == memory_bytes
    assert curves["event"] == sorted(curves["event"])
    assert curves["seconds"] == sorted(curves["seconds"])
    assert set(curves["run_possible"]) <= {0, 1}
    assert curves["failures"][-1] <= result["failures"]
    cells = result["map"]
    for shares in (cells["at_peak"], cells["at_end"]):
        assert all(0 <= share <= 255 for share in shares)
        assert (len(shares) - 1) * cells["cell_bytes"] < memory_bytes
        assert len(shares) * cells["cell_bytes"] >= memory_bytes
    if result["allocator"] == "potad":
        unmovable = result["live_unmovable_bytes"]
        assert unmovable is not None
        assert 0 <= unmovable <= result["live_bytes"]
        for used, not_movable in (
            (cells["at_peak"], cells["unmovable_at_peak"]),
            (cells["at_end"], cells["unmovable_at_end"]),
        ):
            assert len(used) == len(not_movable)
            assert all(part <= whole for part, whole in zip(not_movable, used, strict=True))
        marked = sum(cells["unmovable_at_end"]) / 255 * cells["cell_bytes"]
        assert marked == pytest.approx(unmovable, abs=2 * cells["cell_bytes"], rel=0.05)
    else:
        assert result["live_unmovable_bytes"] is None
        assert cells["unmovable_at_peak"] == cells["unmovable_at_end"] == []
    in_use = sum(cells["at_end"]) / 255 * cells["cell_bytes"]
    assert in_use == pytest.approx(result["live_bytes"], abs=2 * cells["cell_bytes"], rel=0.02)


@given(st.integers(0, 1 << 50))
def test_default_memory(peak: int) -> None:
    memory = default_memory_bytes(peak)
    assert memory % MIB == 0
    assert peak + peak // 16 <= memory < max(peak + peak // 16, 1) + MIB


@given(st.integers(1, 1 << 62))
def test_page_rounding(size: int) -> None:
    assert page_rounded(size) % PAGE_BYTES == 0
    assert 0 <= page_rounded(size) - size < PAGE_BYTES


@pytest.fixture(scope="module")
def bundled() -> Any:
    return read_trace(str(BUNDLED_TRACE))


@pytest.mark.parametrize("allocator", [POTAD, *PEERS])
def test_bundled_trace_end_to_end(bundled: Any, allocator: str) -> None:
    memory = default_memory_bytes(bundled.peak_bytes)
    seen: list[tuple[int, int]] = []
    result = replay(
        bundled,
        allocator,
        memory_bytes=memory,
        points=120,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result["allocator"] == allocator
    assert result["events"] == bundled.events
    assert result["frees_before_recording"] == bundled.frees_before_recording
    assert_consistent(result, memory)
    assert 100 <= len(result["curves"]["event"]) <= 140
    assert seen[-1][0] == seen[-1][1]
    if not result["failures"]:
        assert result["live_bytes"] == bundled.live_bytes
        assert result["peak_bytes"] == bundled.peak_bytes


@pytest.mark.parametrize("allocator", [POTAD, *PEERS])
def test_too_little_memory_is_counted_in_failures(bundled: Any, allocator: str) -> None:
    memory = page_rounded(bundled.peak_bytes // 2)
    result = replay(bundled, allocator, memory_bytes=memory, points=10)
    assert result["failures"] > 0
    assert result["frees_of_failed"] > 0
    assert_consistent(result, memory)


def test_bad_arguments_are_refused(bundled: Any) -> None:
    with pytest.raises(ValueError, match="slab"):
        replay(bundled, "slab", memory_bytes=MIB)
    with pytest.raises(ValueError, match="memory"):
        replay(bundled, POTAD, memory_bytes=MIB + 1)
    with pytest.raises(ValueError, match="points"):
        replay(bundled, POTAD, memory_bytes=MIB, points=1)
    with pytest.raises(ValueError, match="probe_interval"):
        replay(bundled, POTAD, memory_bytes=MIB, probe_interval_events=0)


@pytest.mark.parametrize("name", ["linux-compile", "linux-files", "linux-numpy-thp"])
@pytest.mark.parametrize("allocator", [POTAD, *PEERS])
def test_recorded_traces_to_the_end(name: str, allocator: str) -> None:
    file = SHARED_DATA / f"{name}.ftrace.xz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    trace = read_trace(str(file))
    memory = default_memory_bytes(trace.peak_bytes)
    result = replay(trace, allocator, memory_bytes=memory, probe_interval_events=20_000, points=30)
    assert result["events"] == trace.events
    assert_consistent(result, memory)


def runs_of(trace: Any, relocator: str, memory_bytes: int, **changes: Any) -> RunsResult:
    """What comes of asking for 16 runs of 8 MiB at a time, checked for what must hold of any."""
    requests = RunRequests(8 * MIB, MIB, **{"at_once": 16, **changes})
    seen: list[tuple[int, int]] = []
    result = replay_runs(
        trace,
        relocator,
        requests,
        memory_bytes=memory_bytes,
        points=30,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert_shaped(result, RunsResult, relocator)
    assert seen[-1][0] == seen[-1][1]
    assert (result["relocator"], result["memory_bytes"]) == (relocator, memory_bytes)
    assert result["granted"] <= result["wanted"]
    assert result["wanted"] % 16 == 0
    assert result["bytes_moved"] == result["pages_moved"] * PAGE_BYTES
    assert result["bytes_wasted"] <= result["bytes_moved"]
    times = result["nanoseconds_per_request"]
    assert 0 < times["min"] <= times["median"] <= times["max"]
    curves = result["curves"]
    assert {len(curve) for curve in typing.cast(dict[str, Any], curves).values()} == {30}
    for curve in (curves["granted"], curves["bytes_moved"]):
        assert curve == sorted(curve)
    assert curves["granted"][-1] == result["granted"]
    assert curves["bytes_moved"][-1] == result["bytes_moved"]
    return result


def assert_bars(potad: RunsResult, cma: RunsResult) -> None:
    """That potad grants every run that is possible, moves nothing in vain and reserves nothing."""
    assert potad["wanted"] == cma["wanted"]
    assert (potad["missed"], potad["bytes_wasted"], potad["reserve"]["bytes"]) == (0, 0, 0)
    assert potad["granted"] >= cma["granted"]
    assert 0.1 <= cma["reserve"]["bytes"] / cma["memory_bytes"] < 0.12


def test_runs_of_the_bundled_trace(bundled: Any) -> None:
    memory = page_rounded(bundled.peak_bytes * 11 // 10)
    potad, cma = (runs_of(bundled, relocator, memory) for relocator in (POTAD, CMA))
    assert_bars(potad, cma)
    # The reserve has room for 6 of 16.
    assert potad["granted"] >= 2 * cma["granted"] > 0
    assert cma["missed"] > 0


def test_pins_are_in_the_way(bundled: Any) -> None:
    memory = page_rounded(bundled.peak_bytes * 11 // 10)
    granted = [runs_of(bundled, POTAD, memory, pinned=share)["granted"] for share in (0, 0.05, 1)]
    assert granted[0] > granted[1] > granted[2] > 0


@pytest.mark.parametrize("relocator", [POTAD, CMA])
def test_a_signal_is_heard_while_many_runs_are_asked_for(bundled: Any, relocator: str) -> None:
    memory = 32 * default_memory_bytes(bundled.peak_bytes)
    requests = RunRequests(PAGE_BYTES, interval_events=1, at_once=1 << 40)
    with raising_soon(), pytest.raises(Raised):
        replay_runs(bundled, relocator, requests, memory_bytes=memory)


@pytest.mark.parametrize("allocator", [POTAD, *PEERS])
def test_a_signal_is_heard_within_one_step(bundled: Any, allocator: str) -> None:
    # The measured pass looks at all that is free after each event.
    memory = default_memory_bytes(bundled.peak_bytes)
    run = Replay(bundled, allocator, memory, 1, 1 << 40)
    with raising_soon(), pytest.raises(Raised):
        run.step(1 << 62)
    for call in (run.result, lambda: run.step(1)):
        with pytest.raises(ValueError, match="make a new one"):
            call()


def test_a_memory_too_large_for_its_tables_is_an_error(bundled: Any) -> None:
    program = (
        "import resource, sys\n"
        "from potad.trace import RunRequests, read_trace, replay, replay_runs\n"
        "trace = read_trace(sys.argv[1])\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
        "calls = [lambda: replay(trace, 'linux-buddy', memory_bytes=1 << 40)]\n"
        "calls += [lambda name=name: replay_runs(\n"
        "    trace, name, RunRequests(4096), memory_bytes=1 << 40) for name in ('potad', 'cma')]\n"
        "for call in calls:\n"
        "    try: call()\n"
        "    except MemoryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(BUNDLED_TRACE)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 3, done.stdout


def test_bad_requests_are_refused(bundled: Any) -> None:
    def refused(said: str, relocator: str = CMA, **changes: Any) -> None:
        requests = RunRequests(**{"size_bytes": MIB, **changes})
        with pytest.raises(ValueError, match=said):
            replay_runs(bundled, relocator, requests, memory_bytes=64 * MIB)

    refused("first-fit", "first-fit")
    refused("run: 4097 bytes", size_bytes=4097)
    refused("alignment: 12288 bytes", align_bytes=12288)
    refused("at least 1 event", interval_events=0)
    refused("at least 1 run", at_once=0)
    refused("pinned: NaN", pinned=math.nan)
    refused("must leave some", reserve=0.99)


@pytest.mark.parametrize("name", ["linux-compile", "linux-files", "linux-numpy-thp"])
def test_runs_of_recorded_traces(name: str) -> None:
    file = SHARED_DATA / f"{name}.ftrace.xz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    trace = read_trace(str(file))
    memory = page_rounded(trace.peak_bytes * 11 // 10)
    potad, cma = (
        runs_of(trace, relocator, memory, interval_events=10_000) for relocator in (POTAD, CMA)
    )
    assert_bars(potad, cma)
    assert potad["failures"] == 0
