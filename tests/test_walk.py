"""Walks over a range of a space: its allocations, and what is free in it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import potad

G = 4096
COUNT = 200


def mixed(rng: random.Random) -> potad.Space:
    """Two spans with runs of 1 to 6 granules in them, some freed, and a few granules retired."""
    space = potad.Space(COUNT * G, base=3 * G)
    space.remove((3 + COUNT // 2) * G, 5 * G)
    runs = []
    for _ in range(COUNT // 3):
        try:
            runs.append(space.alloc_run(G * rng.randrange(1, 7), fit="first"))
        except potad.OutOfSpace:
            break
    for start in rng.sample(runs, len(runs) // 2):
        space.free(start)
    for _ in range(6):
        granule = 3 + rng.randrange(COUNT // 2)
        space.retire(granule * G)
    return space


def state(space: potad.Space) -> list[bool]:
    """Which granules are free, by asking for each."""
    retired = set(space.retired().tolist())
    spans = [range(start, start + size) for start, size in space.spans()]
    return [
        any(at in span for span in spans) and at not in space and at not in retired
        for at in range(0, (3 + COUNT + 8) * G, G)
    ]


def rows(found: np.ndarray[tuple[int, int], np.dtype[np.uint64]]) -> list[list[int]]:
    """An array of two columns as lists."""
    assert found.dtype == np.uint64
    assert found.shape == (len(found), 2)
    return [[int(start), int(size)] for start, size in found]


def expected_ranges(
    free: list[bool], low: int, high: int, min_size: int, align: int
) -> list[list[int]]:
    ranges: list[list[int]] = []
    for at, is_free in enumerate(free):
        start = at * G
        if not is_free or start < low or start + G > high:
            continue
        if ranges and sum(ranges[-1]) == start:
            ranges[-1][1] += G
        else:
            ranges.append([start, G])
    step = align if align % G == 0 else G * align
    return [
        [start, size]
        for start, size in ranges
        if -(-start // step) * step + min_size <= start + size
    ]


def test_walks_beside_what_every_granule_says(rng: random.Random) -> None:
    for _ in range(40):
        space = mixed(rng)
        free = state(space)
        everything = list(space)
        whole = expected_ranges(free, 0, 1 << 64, G, 1)
        assert rows(space.free_ranges()) == whole
        assert sum(size for _, size in whole) == space.available
        for _ in range(20):
            end = (3 + COUNT + 8) * G
            low, high = sorted(rng.choices(range(end), k=2))
            if rng.random() < 0.3:
                low, high = low // G * G, high // G * G
            min_size, align = G * rng.randrange(1, 6), G << rng.randrange(3)
            found = space.free_ranges((low, high), min_size, align)
            assert rows(found) == expected_ranges(free, low, high, min_size, align)
            walked = [it.start for it in space.allocations((low, high))]
            touched = [
                it.start for it in everything if it.start < high and it.start + it.size > low
            ]
            assert walked == (touched if low < high else [])
        assert [it.start for it in space.allocations()] == [it.start for it in everything]
        space.check()


def test_a_walk_is_lazy_and_sees_what_lies_further_on() -> None:
    space = potad.Space(16, granule=1)
    for start in (0, 4, 8, 12):
        space.alloc_at(start, 2)
    walk = space.allocations(within=(1, 12))
    assert iter(walk) is walk
    assert next(walk).start == 0  # across the beginning of the range
    space.free(4)
    space.alloc_at(2, 1)
    space.alloc_at(11, 1)
    assert [it.start for it in walk] == [2, 8, 11]
    assert list(walk) == []
    assert list(space.allocations(within=(2, 2))) == []


def test_what_a_user_gets_can_be_allocated(rng: random.Random) -> None:
    space = mixed(rng)
    ranges = space.free_ranges(min_size=2 * G, align=2 * G)
    assert len(ranges)
    for start, size in rows(ranges):
        run = space.alloc_run(2 * G, align=2 * G, within=(start, start + size))
        assert start <= run <= start + size - 2 * G
    assert len(potad.Space(0).free_ranges()) == 0
    full = potad.Space(4 * G)
    full.alloc(4 * G)
    assert full.free_ranges().shape == (0, 2)


def test_the_largest_numbers() -> None:
    space = potad.Space(1 << 64, granule=1)
    with pytest.raises(OverflowError, match=r"2\*\*64"):
        space.free_ranges()
    assert rows(space.free_ranges(within=(1, 1 << 64))) == [[1, (1 << 64) - 1]]
    last = (1 << 64) - 1
    space.alloc_at(last, 1)
    assert [it.start for it in space.allocations((last, 1 << 64))] == [last]
    assert rows(space.free_ranges()) == [[0, last]]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"within": (2, 1)}, ValueError, "within must be"),
        ({"within": (0, (1 << 64) + 1)}, OverflowError, r"within\[1\] must be"),
        ({"within": 5}, TypeError, "within"),
        ({"min_size": 0}, ValueError, "min_size must be"),
        ({"min_size": -1}, ValueError, "min_size"),
        ({"min_size": 1.5}, TypeError, "min_size"),
        ({"align": 0}, ValueError, "align must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    space = potad.Space(1 << 20)
    with pytest.raises(error, match=text):
        space.free_ranges(**arguments)
    if "within" in arguments:
        with pytest.raises(error, match=text):
            space.allocations(**arguments)
    space.check()
