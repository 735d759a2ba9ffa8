"""What a pool counts: histograms beside sorted lists, and figures through JSON and back."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_samples import latency, random_stats, stats, usage

import potad
from potad import plain
from potad.pool.stats import Account, Histogram, Latency, PoolStats, PoolUsage

durations = st.integers(0, (1 << 64) - 1)


def test_a_histogram_of_nothing() -> None:
    assert Histogram().snapshot() == Latency(0, 0, 0, 0, 0)
    assert Histogram().percentile(1) == 0


@given(st.lists(durations, min_size=1), st.floats(0, 1))
def test_a_percentile_is_the_end_of_its_power_of_two(times: list[int], q: float) -> None:
    histogram = Histogram()
    for ns in times:
        histogram.add(ns)
    exact = sorted(times)[max(1, math.ceil(q * len(times))) - 1]
    found = histogram.percentile(q)
    assert found == min((1 << exact.bit_length()) - 1, max(times))
    assert exact <= found <= max(2 * exact - 1, 0)
    assert (histogram.count, histogram.total_ns) == (len(times), sum(times))
    snapshot = histogram.snapshot()
    assert (snapshot.max_ns, snapshot.mean_ns) == (max(times), sum(times) // len(times))
    assert snapshot.p50_ns <= snapshot.p99_ns <= snapshot.max_ns


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_what_is_no_percentile(q: float) -> None:
    with pytest.raises(ValueError, match="q must be from 0 to 1"):
        Histogram().percentile(q)


def test_an_account_becomes_a_row() -> None:
    account = Account("tensor", "'cache'")
    assert account.snapshot() == PoolUsage("tensor", "'cache'", *[0] * 9)
    account.hits += 3
    account.bytes_out += 5
    row = account.snapshot()
    assert (row.hits, row.bytes_out) == (3, 5)
    account.hits += 1
    assert row.hits == 3
    with pytest.raises(AttributeError):
        account.hit = 1  # type: ignore[attr-defined]


def test_hit_ratio() -> None:
    assert stats().hit_ratio == 0.8
    assert stats(hits=0, faults=0).hit_ratio == 0


def test_figures_go_through_json_and_back(rng: random.Random) -> None:
    for _ in range(50):
        figures = random_stats(rng)
        text = json.dumps(figures.to_dict(), allow_nan=False)
        assert potad.PoolStats.from_dict(json.loads(text)) == figures


def changed(**fields: Any) -> dict[str, Any]:
    return {**stats().to_dict(), **fields}


def without(name: str) -> dict[str, Any]:
    data = stats().to_dict()
    del data[name]
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], r"PoolStats must be an object, not \[\]"),
        (None, "PoolStats must be an object, not None"),
        (without("hits"), "PoolStats has no field 'hits'"),
        (without("rows"), "PoolStats has no field 'rows'"),
        (changed(hitz=1), "PoolStats has a field that is not known: 'hitz'"),
        (changed(hits=-1), "PoolStats.hits must be a whole number from 0 to 2.64, not -1"),
        (changed(hits=(1 << 64) + 1), "PoolStats.hits must be a whole number"),
        (changed(hits=1.0), "PoolStats.hits must be a whole number"),
        (changed(hits=True), "PoolStats.hits must be a whole number"),
        (changed(hits="1"), "PoolStats.hits must be a whole number"),
        (changed(hits=None), "PoolStats.hits must be a whole number"),
        (changed(rows=None), "PoolStats.rows must be a list, not None"),
        (changed(rows={}), "PoolStats.rows must be a list"),
        (changed(rows=[1]), r"PoolStats.rows\[0\] must be an object, not 1"),
        (changed(rows=[{**usage().__dict__, "owner": 5}]), r"rows\[0\].owner must be a text"),
        (changed(rows=["x" * 10_000]), r"rows\[0\] must be an object, not 'x{58}…$"),
        (changed(read_latency={}), "PoolStats.read_latency has no field 'count'"),
        (changed(read_latency={**latency().__dict__, "max_ns": -1}), "read_latency.max_ns must"),
    ],
)
def test_nonsense_is_refused(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PoolStats.from_dict(data)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_json_is_refused_or_read(value: Any) -> None:
    with pytest.raises(ValueError, match="rows"):
        PoolStats.from_dict(changed(rows=[value]))


def test_plain_data_know_few_types() -> None:
    assert plain.write((1, {2: 0.5}, None, "x")) == [1, {"2": 0.5}, None, "x"]


def test_as_text() -> None:
    lines = str(stats()).splitlines()
    assert lines[0] == (
        "memory   65,011,712 of 67,108,864 bytes, 4,194,304 pinned, 16,777,216 dirty"
    )
    assert "1,000 hits, 250 faults, hit ratio 80.0%" in lines[2]
    assert lines[-2].split()[:3] == ["tensor", "'cache'", "40"]
    assert str(stats(rows=())).endswith("faults")
    assert all(line == line.rstrip() for line in lines)
