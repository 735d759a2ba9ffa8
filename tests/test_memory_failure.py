"""What happens when memory fails: who is told, and what is out of service then."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from described import PAGE, Owner, found

import potad
from potad import Outcome


@pytest.fixture
def space() -> potad.Space:
    return potad.Space(1 << 24)


def test_a_free_granule_fails(space: potad.Space) -> None:
    assert space.memory_failure(5000) == Outcome.RECOVERED
    assert space.retired().tolist() == [4096]
    # Once more, which changes nothing.
    assert space.memory_failure(4096) is Outcome.RECOVERED
    with pytest.raises(potad.OutOfSpace):
        space.alloc_at(0, 8192)
    space.restore(4096)
    space.alloc_at(0, 8192)


@pytest.mark.parametrize("answer", list(Outcome))
@pytest.mark.parametrize("size", [4096, 12288, 8 << 20])
def test_the_owner_is_told(space: potad.Space, size: int, answer: Outcome) -> None:
    owner = Owner(answer)
    start = space.alloc_run(size, kind=PAGE, owner=owner)
    bad = start + size // 2 // 4096 * 4096
    assert space.memory_failure(bad + 5) is answer
    (failure,) = owner.failures
    assert (failure.address, failure.start, failure.size) == (bad + 5, start, size)
    assert (failure.kind, failure.owner) == (PAGE, owner)
    assert failure.record is not None
    failure.record[...] = 3
    assert found(space, start).record == 3
    assert found(space, start).state == "retiring"
    assert space.available == space.size - size
    # Freed, it is out of service, whatever else is free around it.
    space.free(start)
    assert space.available == space.size - 4096
    space.alloc_many(4096, space.available // 4096)
    assert space.lookup(bad) is None
    space.check()


def test_nobody_is_told(space: potad.Space) -> None:
    for owner in (None, object(), Owner(None)):
        start = space.alloc(8192, owner=owner)
        assert space.memory_failure(start) is Outcome.FAILED


@pytest.mark.parametrize("answer", [3, "RECOVERED", True, object()])
def test_an_answer_that_is_none(
    space: potad.Space, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    owner = Owner(answer if not callable(answer) else lambda failure: answer)
    start = space.alloc(8192, owner=owner)
    assert space.memory_failure(start) is Outcome.FAILED
    assert isinstance(told[0].exc_value, potad.PotadError)
    assert isinstance(told[0].exc_value.__cause__, TypeError)
    assert space.retired().tolist() == [start]


def test_an_owner_that_raises(space: potad.Space, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(failure: potad.Failure) -> Outcome:
        raise KeyError(failure.address)

    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    start = space.alloc(8192, owner=Owner(fails))
    assert space.memory_failure(start + 4096) is Outcome.FAILED
    assert isinstance(told[0].exc_value.__cause__, KeyError)
    assert space.retired().tolist() == [start + 4096]
    assert found(space, start).size == 8192
    space.check()

    def interrupted(failure: potad.Failure) -> Outcome:
        raise KeyboardInterrupt

    start = space.alloc(8192, owner=Owner(interrupted))
    with pytest.raises(KeyboardInterrupt):
        space.memory_failure(start)
    assert start in space.retired().tolist()
    space.check()


def test_owners_that_fail_in_every_other_way(
    space: potad.Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses:
        @property
        def on_memory_failure(self) -> Any:
            raise ValueError

    class Unspeakable(Owner):
        def __repr__(self) -> str:
            raise ValueError

    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for owner in (Refuses(), Unspeakable("nonsense")):
        start = space.alloc(4096, owner=owner)
        assert space.memory_failure(start) is Outcome.FAILED
        assert start in space.retired()
    assert len(told) == 2


def test_what_an_owner_raises_is_seen() -> None:
    code = """if True:
        import potad
        class Owner:
            def on_memory_failure(self, failure):
                raise KeyError("lost")
        space = potad.Space(1 << 20)
        print(space.memory_failure(space.alloc(4096, owner=Owner())).name)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "FAILED\n"
    assert "KeyError: 'lost'" in done.stderr
    assert "PotadError: the owner of the allocation of 4096 at 0x0" in done.stderr


def test_owners_that_use_the_space(space: potad.Space) -> None:
    def frees(failure: potad.Failure) -> Outcome:
        space.free(failure.start)
        return Outcome.RECOVERED

    def relocates(failure: potad.Failure) -> Outcome:
        new = space.alloc(failure.size, kind=failure.kind, owner=failure.owner)
        record, descriptor = failure.record, space.lookup(new)
        assert record is not None
        assert descriptor is not None
        assert descriptor.record is not None
        descriptor.record[...] = record
        space.free(failure.start)
        return Outcome.RECOVERED

    def fails_again(failure: potad.Failure) -> Outcome:
        if failure.address == failure.start:
            return space.memory_failure(failure.start + 4096)
        return Outcome.DELAYED

    start = space.alloc(8192, owner=Owner(frees))
    assert space.memory_failure(start) is Outcome.RECOVERED
    assert space.lookup(start) is None

    mover = Owner(relocates)
    start = space.alloc(8192, kind=PAGE, owner=mover)
    record = found(space, start).record
    assert record is not None
    record[...] = 8
    assert space.memory_failure(start) is Outcome.RECOVERED
    (moved,) = space.owned_by(mover)
    assert moved.start != start
    assert moved.record == 8

    start = space.alloc(8192, owner=Owner(fails_again))
    assert space.memory_failure(start) is Outcome.DELAYED
    space.check()


def test_failures_outside(space: potad.Space) -> None:
    for address in (1 << 24, (1 << 64) - 1):
        with pytest.raises(ValueError, match="address"):
            space.memory_failure(address)
    assert space.retired().size == 0


def test_a_failed_granule_in_the_largest_block_is_never_handed_out() -> None:
    space = potad.Space(1 << 24)
    whole = space.alloc(1 << 24)
    bad = (1 << 23) + 3 * 4096
    assert space.memory_failure(bad) is Outcome.FAILED
    space.free(whole)
    assert space.largest_free == 1 << 23
    everything = space.alloc_many(4096, (1 << 12) - 1)
    assert bad not in everything
    space.free_many(everything)
    space.restore(bad)
    assert space.largest_free == 1 << 24
    space.check()
