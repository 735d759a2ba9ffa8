"""The exceptions: their places, their figures, and that they cross process boundaries."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import potad

ERRORS = [
    potad.OutOfSpace("no room", 10, 20, 5, "fragmented"),
    potad.NotAllocated("not there", 4096),
    potad.Busy("pinned", 4096, 2),
    potad.Poisoned("gone"),
    potad.Corrupt("3, recounted 4"),
    potad.PotadError("something"),
]

FIGURES: dict[str, dict[str, Any]] = {
    "OutOfSpace": {"requested": 10, "available": 20, "largest": 5, "reason": "fragmented"},
    "NotAllocated": {"address": 4096},
    "Busy": {"address": 4096, "pins": 2},
}


def name_of(error: Exception) -> str:
    return type(error).__name__


def test_their_places() -> None:
    for error in ERRORS:
        assert isinstance(error, potad.PotadError)
        assert name_of(error) in potad.__all__
    assert issubclass(potad.OutOfSpace, MemoryError)
    assert issubclass(potad.NotAllocated, LookupError)
    assert not issubclass(potad.PotadError, (ValueError, MemoryError, LookupError))


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_their_figures(error: potad.PotadError) -> None:
    for name, value in FIGURES.get(name_of(error), {}).items():
        assert getattr(error, name) == value
    assert error.args == (str(error),)


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_and_copied(error: potad.PotadError, protocol: int) -> None:
    error.add_note("while testing")
    for same in (
        pickle.loads(pickle.dumps(error, protocol)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(same) is type(error)
        assert str(same) == str(error)
        assert same.args == error.args
        assert vars(same) == vars(error)
        assert "while testing" in same.__notes__


def exhaust() -> None:
    """In another process."""
    potad.Space(4096).alloc(8192)


def test_through_a_process_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(exhaust).exception()
    assert isinstance(error, potad.OutOfSpace)
    assert (error.requested, error.available, error.largest) == (8192, 4096, 4096)
    assert error.reason == "exhausted"


def test_out_of_space_exhausted() -> None:
    space = potad.Space(8 * 4096)
    space.alloc_at(0, 4096)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_run(8 * 4096 - 1)
    error = caught.value
    assert (error.requested, error.available, error.largest) == (8 * 4096, 7 * 4096, 4 * 4096)
    assert error.reason == "exhausted"
    for figure in (8 * 4096, 7 * 4096, 4 * 4096):
        assert str(figure) in str(error)


def test_out_of_space_fragmented() -> None:
    space = potad.Space(8 * 4096)
    space.alloc_at(4 * 4096, 4096)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_run(5 * 4096)
    assert caught.value.reason == "fragmented"
    assert caught.value.available == 7 * 4096


def test_out_of_space_occupied() -> None:
    space = potad.Space(8 * 4096)
    space.alloc_at(4 * 4096, 4096)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_at(2 * 4096, 4 * 4096)
    assert caught.value.reason == "occupied"
    # It says what is in the way.
    assert f"{4 * 4096:#x}" in str(caught.value)
    with pytest.raises(MemoryError):
        space.remove(0, 8 * 4096)


def test_not_allocated_says_where_it_lies() -> None:
    space = potad.Space(8 * 4096, base=1 << 40)
    start = (1 << 40) + 2 * 4096
    space.alloc_at(start, 3 * 4096)
    inside = start + 5000
    with pytest.raises(potad.NotAllocated) as caught:
        space.free(inside)
    assert caught.value.address == inside
    message = str(caught.value)
    assert f"{inside:#x}" in message
    assert f"{start:#x}" in message
    assert str(3 * 4096) in message
    with pytest.raises(potad.NotAllocated, match="not in an allocation") as caught:
        space.free(1 << 40)
    assert caught.value.address == 1 << 40
    # Twice is once too often.
    space.free(start)
    with pytest.raises(LookupError):
        space.free(start)


def test_the_same_error_again_is_another() -> None:
    """Errors are made when they are raised: what a handler does to one is its own."""
    space = potad.Space(0)
    errors = []
    for _ in range(2):
        with pytest.raises(potad.OutOfSpace) as caught:
            space.alloc(1)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[0].__traceback__ is not errors[1].__traceback__
