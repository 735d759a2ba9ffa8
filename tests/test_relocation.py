"""Runs and blocks by moving what is in the way: owners who agree, refuse, and do anything else."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from described import PAGE, found

import potad

GRANULE = 4096


class Mover:
    """Owns allocations, knows where they are, and agrees to moves; does something else first."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.moves: list[tuple[int, int]] = []
        self.places: set[int] = set()

    def on_relocate(self, move: potad.Move) -> Any:
        assert move.owner is self
        assert move.kind is PAGE
        assert move.size == move.descriptor.size
        self.moves.append((move.old, move.new))
        answer = self.answer(move) if callable(self.answer) else self.answer
        if answer is True:
            assert move.old in self.places
            self.places.remove(move.old)
            self.places.add(move.new)
        return answer


PLACES = (1, 3, 7, 8, 12, 14)
"""With pages at these of 16 granules, a run of 8 costs least from the fourth on: two pages."""


def scattered(owner: Any, granules: tuple[int, ...] = PLACES) -> potad.Space:
    """16 granules, a movable page at some of them, with its first granule in its record."""
    space = potad.Space(16 * GRANULE)
    for granule in granules:
        space.alloc_at(granule * GRANULE, GRANULE, kind=PAGE, owner=owner)
        record(space, granule * GRANULE)[...] = granule
        if isinstance(owner, Mover):
            owner.places.add(granule * GRANULE)
    return space


def record(space: potad.Space, address: int) -> Any:
    return found(space, address).record


def pages(space: potad.Space) -> dict[int, int]:
    """By the number in its record, the granule at which each page is."""
    return {
        int(it.record): it.start // GRANULE
        for it in space
        if it.kind is PAGE and it.record is not None
    }


@pytest.mark.parametrize("owner", [None, "someone", Mover()])
def test_the_cheapest_place_is_emptied(owner: Any) -> None:
    space = scattered(owner)
    views = {granule: record(space, granule * GRANULE) for granule in PLACES}
    plan = space.plan_run(8 * GRANULE)
    assert (plan.start, plan.blocks, plan.size) == (4 * GRANULE, 1, 2 * GRANULE)
    assert [move.old // GRANULE for move in plan.moves] == [7, 8]
    assert all(move.kind is PAGE and move.owner is owner for move in plan.moves)
    assert pages(space) == {granule: granule for granule in views}

    assert space.alloc_run(8 * GRANULE, relocate=True, owner="driver") == 4 * GRANULE
    space.check()
    assert found(space, 11 * GRANULE).owner == "driver"
    places = pages(space)
    assert places == {granule: granule for granule in PLACES} | {
        move.old // GRANULE: move.new // GRANULE for move in plan.moves
    }
    for granule, view in views.items():
        # A record that was looked at before goes on being the allocation's.
        view[...] += 100
        assert record(space, places[granule] * GRANULE) == granule + 100
    if isinstance(owner, Mover):
        assert owner.places == {granule * GRANULE for granule in places.values()}
        assert owner.moves == [(move.old, move.new) for move in plan.moves]


def test_a_run_that_is_free_moves_nothing() -> None:
    owner = Mover()
    space = scattered(owner, (0,))
    plan = space.plan_run(8 * GRANULE)
    assert plan.moves == ()
    assert space.alloc_run(8 * GRANULE, relocate=True) == plan.start == 8 * GRANULE
    assert not owner.moves


def test_what_has_no_movable_kind_is_not_moved() -> None:
    for kind in (None, potad.Kind("fixed")):
        space = potad.Space(4 * GRANULE)
        space.alloc_at(GRANULE, GRANULE, kind=kind, owner=Mover())
        with pytest.raises(potad.OutOfSpace) as caught:
            space.alloc_run(3 * GRANULE, relocate=True)
        assert caught.value.reason == "fragmented"
        (obstacle,) = caught.value.in_the_way
        assert (obstacle.kind, obstacle.why, obstacle.allocations) == (kind, "unmovable", 1)
        assert space.lookup(GRANULE) is not None


def test_a_refusal_is_final_and_another_place_is_taken() -> None:
    owner = Mover(lambda move: move.old != 7 * GRANULE)
    space = scattered(owner)
    assert space.alloc_run(8 * GRANULE, relocate=True) == 8 * GRANULE
    assert pages(space)[7] == 7
    assert [old for old, _ in owner.moves].count(7 * GRANULE) == 1
    assert owner.places == {granule * GRANULE for granule in pages(space).values()}
    space.check()


def test_what_was_moved_before_a_refusal_comes_back_if_there_is_no_run() -> None:
    owner = Mover(lambda move: move.old != 8 * GRANULE)
    space = scattered(owner)
    space.alloc_at(0, GRANULE)
    space.alloc_at(15 * GRANULE, GRANULE)
    before = [*space]
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_run(8 * GRANULE, relocate=True)
    assert [*space] == before
    assert owner.places == {granule * GRANULE for granule in PLACES}
    assert [it.why for it in caught.value.in_the_way] == ["unmovable", "refused"]
    assert "refused" in str(caught.value)
    # Each that was moved was asked twice: there and back.
    there = [(old, new) for old, new in owner.moves if old != 8 * GRANULE]
    assert sorted(there) == sorted((new, old) for old, new in there)
    assert there
    space.check()


@pytest.mark.parametrize(
    "answer", [None, 1, "yes", ValueError("no"), lambda move: np.bool_(False), [True]]
)
def test_an_owner_that_does_not_agree_in_so_many_words_refuses(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def reply(move: potad.Move) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer(move) if callable(answer) else answer

    space = scattered(Mover(reply))
    before = [*space]
    with pytest.raises(potad.OutOfSpace):
        space.alloc_run(8 * GRANULE, relocate=True)
    assert [*space] == before
    if callable(answer):
        assert not told
    else:
        assert all(isinstance(it.exc_value, potad.PotadError) for it in told)
        cause = told[0].exc_value.__cause__
        assert cause is answer if isinstance(answer, Exception) else isinstance(cause, TypeError)


def test_numpys_true_is_true() -> None:
    space = scattered(Mover(lambda move: np.bool_(True)))
    assert space.alloc_run(8 * GRANULE, relocate=True) == 4 * GRANULE


def test_an_attribute_that_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Odd:
        @property
        def on_relocate(self) -> Any:
            raise RuntimeError("not today")

    space = scattered(Odd())
    with pytest.raises(potad.OutOfSpace):
        space.alloc_run(8 * GRANULE, relocate=True)
    assert isinstance(told[0].exc_value.__cause__, RuntimeError)


def test_an_interrupt_comes_through_and_nothing_is_changed() -> None:
    def reply(move: potad.Move) -> bool:
        if move.old == 8 * GRANULE:
            raise KeyboardInterrupt
        return True

    owner = Mover(reply)
    space = scattered(owner)
    before = [*space]
    with pytest.raises(KeyboardInterrupt):
        space.alloc_run(8 * GRANULE, relocate=True)
    assert [*space] == before
    assert owner.places == {granule * GRANULE for granule in PLACES}
    assert (len(space), space.used) == (6, 6 * GRANULE)
    space.check()


# ---- what an owner may do while it is asked ----------------------------------------------------


def test_an_owner_may_free_instead() -> None:
    def reply(move: potad.Move) -> bool:
        space.free(move.old)
        return False

    space = scattered(Mover(reply))
    start = space.alloc_run(8 * GRANULE, relocate=True)
    # Whatever was asked for is gone, and what is in its place is the run.
    assert found(space, start).size == 8 * GRANULE
    space.check()
    assert space.used == 8 * GRANULE + len(pages(space)) * GRANULE


def test_an_owner_that_frees_and_agrees() -> None:
    def reply(move: potad.Move) -> Any:
        space.free(move.old)
        return np.bool_(True)

    owner = Mover(reply)
    space = scattered(owner)
    assert space.alloc_run(8 * GRANULE, relocate=True) == 4 * GRANULE
    assert pages(space) == {granule: granule for granule in (1, 3, 12, 14)}
    space.check()


def test_an_owner_that_pins_and_agrees_is_told_that_it_stays() -> None:
    def reply(move: potad.Move) -> bool:
        if move.old == 7 * GRANULE:
            space.pin(move.old)
        return True

    owner = Mover(reply)
    space = scattered(owner)
    start = space.alloc_run(8 * GRANULE, relocate=True)
    assert start == 8 * GRANULE
    assert pages(space)[7] == 7
    assert found(space, 7 * GRANULE).pins == 1
    there, back = [pair for pair in owner.moves if 7 * GRANULE in pair]
    assert there == back[::-1]
    assert owner.places == {granule * GRANULE for granule in pages(space).values()}
    space.check()


def test_pins_that_come_and_go_while_it_is_asked_change_nothing() -> None:
    def reply(move: potad.Move) -> bool:
        with space.pinned(move.old), pytest.raises(potad.Busy):
            space.free(move.old)
        return True

    space = scattered(Mover(reply))
    assert space.alloc_run(8 * GRANULE, relocate=True) == 4 * GRANULE
    space.check()


def test_an_owner_may_split_what_is_to_move() -> None:
    space = potad.Space(16 * GRANULE)

    def reply(move: potad.Move) -> bool:
        if move.old == 6 * GRANULE and move.size > GRANULE:
            space.split(move.old, GRANULE)
            space.free(move.old + GRANULE)
        return True

    owner = Mover(reply)
    space.alloc_at(6 * GRANULE, 2 * GRANULE, kind=PAGE, owner=owner)
    owner.places.add(6 * GRANULE)
    # It stays, and what it gave up makes room.
    assert space.alloc_run(9 * GRANULE, relocate=True) == 7 * GRANULE
    space.check()
    (page,) = owner.places
    assert found(space, page).size == GRANULE


def test_an_owner_may_allocate_and_free_elsewhere() -> None:
    mine: list[int] = []

    def reply(move: potad.Move) -> bool:
        assert space.lookup(move.new) is not None
        with pytest.raises(potad.Busy, match="held"):
            space.free(move.new)
        with pytest.raises(potad.Busy, match="held"):
            space.pin(move.new)
        mine.append(space.alloc(GRANULE))
        return True

    space = scattered(Mover(reply))
    start = space.alloc_run(8 * GRANULE, relocate=True)
    assert start == 4 * GRANULE
    assert len(mine) == 2
    for address in mine:
        assert not start <= address < start + 8 * GRANULE
        space.free(address)
    space.check()


def test_an_owner_may_ask_for_a_run_itself() -> None:
    inner: list[Any] = []

    def reply(move: potad.Move) -> bool:
        if not inner:
            inner.append(None)
            inner[0] = space.alloc_run(3 * GRANULE, relocate=True)
        return True

    space = potad.Space(32 * GRANULE)
    owner = Mover(reply)
    for granule in range(0, 32, 4):
        space.alloc_at(granule * GRANULE, GRANULE, kind=PAGE, owner=owner)
        owner.places.add(granule * GRANULE)
    start = space.alloc_run(8 * GRANULE, relocate=True)
    space.check()
    assert not start <= inner[0] < start + 8 * GRANULE
    assert owner.places == {it.start for it in space if it.owner is owner}


def test_a_failure_of_memory_while_owners_are_asked() -> None:
    failed: list[int] = []

    def reply(move: potad.Move) -> bool:
        if not failed:
            failed.append(move.new)
            assert space.memory_failure(move.new) is potad.Outcome.FAILED
        return True

    owner = Mover(reply)
    space = scattered(owner)
    start = space.alloc_run(6 * GRANULE, relocate=True)
    space.check()
    assert space.retired().tolist() == failed
    assert not start <= failed[0] < start + 6 * GRANULE
    assert space.lookup(failed[0]) is None
    assert owner.places == {it.start for it in space if it.owner is owner}


def test_held_space_can_be_seen() -> None:
    states: list[str] = []

    def reply(move: potad.Move) -> bool:
        states.extend(it.state for it in space)
        assert found(space, move.new).owner is None
        return True

    space = scattered(Mover(reply))
    space.alloc_run(8 * GRANULE, relocate=True)
    assert {"held", "live"} == set(states)
    assert {it.state for it in space} == {"live"}


def test_what_another_owner_puts_in_a_place_is_not_moved_back() -> None:
    """The page that was moved is freed, and another's lies where it went when all is taken back."""
    stubborn = Mover(False)

    def reply(move: potad.Move) -> bool:
        if move.old == 8 * GRANULE:
            (there,) = [new for old, new in good.moves if old == 7 * GRANULE]
            space.free(there)
            space.alloc_at(there, GRANULE, kind=PAGE, owner=stubborn)
            stubborn.places.add(there)
            return False
        return True

    good = Mover(reply)
    space = scattered(good)
    space.alloc_at(0, GRANULE)
    space.alloc_at(15 * GRANULE, GRANULE)
    with pytest.raises(potad.OutOfSpace):
        space.alloc_run(8 * GRANULE, relocate=True)
    assert {it.start for it in space if it.owner is stubborn} == stubborn.places
    assert all(new not in stubborn.places for _, new in good.moves[2:])
    space.check()


def test_what_comes_in_the_place_of_what_was_refused_is_asked_for_itself() -> None:
    other = Mover()

    def reply(move: potad.Move) -> bool:
        if move.old == 7 * GRANULE:
            space.free(move.old)
            space.alloc_at(move.old, GRANULE, kind=PAGE, owner=other)
            other.places.add(move.old)
            return False
        return True

    space = scattered(Mover(reply))
    assert space.alloc_run(8 * GRANULE, relocate=True) == 4 * GRANULE
    assert [old for old, _ in other.moves] == [7 * GRANULE]
    space.check()


def test_refusals_in_the_error_are_by_kind_and_owner() -> None:
    one, other = Mover(False), Mover(False)
    space = potad.Space(8 * GRANULE)
    for granule, owner in [(0, one), (3, other), (6, one)]:
        space.alloc_at(granule * GRANULE, GRANULE, kind=PAGE, owner=owner)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_run(3 * GRANULE, relocate=True)
    rows = [(it.kind, it.owner, it.why, it.allocations) for it in caught.value.in_the_way]
    assert rows == [(PAGE, one, "refused", 2), (PAGE, other, "refused", 1)]


class Unshowable(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no notes")


NOT_A_LINE: Any = ("f", "nope", "x", "y")


@pytest.mark.parametrize("error", [SyntaxError("a", NOT_A_LINE), Unshowable()])
def test_an_error_that_cannot_be_shown_is_a_refusal_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def reply(move: potad.Move) -> bool:
        raise error

    space = scattered(Mover(reply))
    with pytest.raises(potad.OutOfSpace):
        space.alloc_run(8 * GRANULE, relocate=True)
    assert told[0].exc_value.__cause__ is error


def test_an_owner_is_looked_up_once() -> None:
    looks: list[str] = []

    class Looked:
        @property
        def on_relocate(self) -> Any:
            looks.append("looked")
            return lambda move: move.old != 7 * GRANULE

    space = scattered(Looked())
    assert space.alloc_run(8 * GRANULE, relocate=True) == 8 * GRANULE
    assert len(looks) == 1


def test_what_is_being_moved_is_not_said_to_be_unmovable() -> None:
    whys: list[set[str]] = []

    def reply(move: potad.Move) -> bool:
        with pytest.raises(potad.OutOfSpace) as caught:
            space.alloc_run(12 * GRANULE, relocate=True)
        whys.append({it.why for it in caught.value.in_the_way})
        return True

    space = scattered(Mover(reply))
    space.alloc_run(8 * GRANULE, relocate=True)
    assert whys[0] == {"moving"}


def test_an_interrupt_while_it_is_taken_back_does_not_stop_that() -> None:
    def reply(move: potad.Move) -> bool:
        asked.append(move.old)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return len(asked) < 2

    asked: list[int] = []
    space = scattered(Mover(reply))
    space.alloc_at(0, GRANULE)
    space.alloc_at(15 * GRANULE, GRANULE)
    with pytest.raises(potad.OutOfSpace):
        space.alloc_run(8 * GRANULE, relocate=True)
    space.check()
    assert {it.state for it in space} == {"live"}


# ---- compaction --------------------------------------------------------------------------------


def holes(owner: Any) -> potad.Space:
    """256 pages, of which every other is free."""
    space = potad.Space(256 * GRANULE)
    for address in range(0, 256 * GRANULE, 2 * GRANULE):
        space.alloc_at(address, GRANULE, kind=PAGE, owner=owner)
        if isinstance(owner, Mover):
            owner.places.add(address)
    return space


@pytest.mark.parametrize("owner", [None, Mover()])
def test_blocks_are_brought_back(owner: Any) -> None:
    space = holes(owner)
    plan = space.plan_compaction(16 * GRANULE, 5)
    assert (plan.start, plan.blocks, plan.size) == (None, 5, 5 * 8 * GRANULE)
    done = space.compact(16 * GRANULE, 5)
    assert (done.blocks, done.size) == (5, plan.size)
    assert sorted(done.moves) == sorted((move.old, move.new, move.size) for move in plan.moves)
    blocks = space.free_blocks().items()
    assert sum(size // (16 * GRANULE) * count for size, count in blocks) == 5
    assert space.compact(16 * GRANULE, 5) == potad.Compaction(5, ())
    space.check()
    if owner:
        assert owner.places == {it.start for it in space}


def test_a_budget_is_kept() -> None:
    space = holes(None)
    for budget, blocks in [(0, 0), (7, 0), (8, 1), (23, 2), (24, 3)]:
        assert space.plan_compaction(16 * GRANULE, 5, budget=budget * GRANULE).blocks == blocks
    assert space.compact(16 * GRANULE, 5, budget=20 * GRANULE).size == 16 * GRANULE


def test_what_is_refused_is_left_and_the_rest_compacted() -> None:
    owner = Mover(lambda move: move.old not in (0, 32 * GRANULE))
    space = holes(owner)
    done = space.compact(16 * GRANULE, 5)
    assert done.blocks == 5
    assert {0, 32 * GRANULE} <= owner.places == {it.start for it in space}
    space.check()


def test_blocks_that_are_free_already_count() -> None:
    space = potad.Space(128 * GRANULE)
    for granule in range(0, 64, 2):
        space.alloc_at(granule * GRANULE, GRANULE, kind=PAGE)
    planned = [space.plan_compaction(16 * GRANULE, count).size // GRANULE for count in (3, 4, 5, 6)]
    assert planned == [0, 0, 8, 16]
    assert space.compact(16 * GRANULE, 100).blocks == 6


def test_blocks_within_a_window() -> None:
    space = holes(None)
    within = (64 * GRANULE, 128 * GRANULE)
    assert space.compact(16 * GRANULE, 100, within=within).blocks == 4
    assert space.plan_run(64 * GRANULE, within=within).size == 0


def test_no_blocks_at_all() -> None:
    space = potad.Space(1 << 20)
    assert space.compact(4096, 0) == potad.Compaction(0, ())
    assert space.compact(1 << 21) == potad.Compaction(0, ())
    # More than there is room for costs nothing to ask for.
    assert space.compact(4096, 1 << 63).blocks == 256
    huge = potad.Space(1 << 64, granule=1)
    assert huge.compact(1, 1 << 62).blocks == 1 << 62


# ---- errors ------------------------------------------------------------------------------------


def test_the_error_names_kinds_and_owners() -> None:
    space = scattered("someone", (0, 4, 8, 12))
    space.pin(4 * GRANULE)
    space.alloc_at(9 * GRANULE, 2 * GRANULE, owner="device")
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_run(11 * GRANULE, relocate=True)
    error = caught.value
    assert error.reason == "exhausted"
    assert [(it.owner, it.kind, it.why, it.size) for it in error.in_the_way] == [
        ("device", None, "unmovable", 2 * GRANULE),
        ("someone", PAGE, "pinned", GRANULE),
    ]
    assert "'device'" in str(error)
    assert "4096 pinned of kind 'page' of 'someone'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason, again.in_the_way) == (str(error), "exhausted", ())
    with pytest.raises(potad.OutOfSpace) as caught:
        space.plan_run(11 * GRANULE)
    assert caught.value.in_the_way == error.in_the_way


def test_nothing_is_kept_alive() -> None:
    owner = Mover()
    space = scattered(owner)
    space.alloc_run(8 * GRANULE, relocate=True)
    dead = weakref.ref(owner), weakref.ref(space)
    del owner, space
    gc.collect()
    assert [it() for it in dead] == [None, None]


# ---- threads and processes ---------------------------------------------------------------------


@pytest.mark.parametrize("with_owners", [False, True])
def test_threads_that_allocate_and_free_while_runs_are_taken(
    with_owners: bool, rng: random.Random
) -> None:
    space = potad.Space(768 * GRANULE)
    stop = threading.Event()
    errors: list[BaseException] = []
    lock = threading.RLock()
    moved: list[int] = []
    # Of each owned page, by its number, where it is: owners write it when they agree.
    places: dict[int, int] = {}

    class Table:
        def on_relocate(self, move: potad.Move) -> bool:
            with lock:
                number = int(move.record)  # type: ignore[arg-type]
                if places.get(number) != move.old:
                    return False
                places[number] = move.new
                moved.append(number)
            return True

    table = Table() if with_owners else None
    # A page in every other granule, so that no run is free.
    for number in range(0, 768, 2):
        address = space.alloc_at(number * GRANULE, GRANULE, kind=PAGE, owner=table)
        record(space, address)[...] = number
        if with_owners:
            places[number] = address

    def churn(seed: int) -> None:
        random_ = random.Random(seed)
        mine: list[int] = []
        plain: list[int] = []
        step = 0
        while not stop.is_set():
            step += 1
            try:
                if random_.random() < 0.5 and len(mine) < 150:
                    size = GRANULE << random_.randrange(3)
                    if random_.random() < 0.3:
                        plain.append(space.alloc(size))
                    elif with_owners:
                        with lock:
                            address = space.alloc(size, kind=PAGE, owner=table)
                            number = 1000 + seed * 100_000 + step
                            record(space, address)[...] = number
                            places[number] = address
                            mine.append(number)
                elif plain and random_.random() < 0.5:
                    space.free(plain.pop(random_.randrange(len(plain))))
                elif mine:
                    with lock:
                        number = mine.pop(random_.randrange(len(mine)))
                        space.free(places.pop(number))
            except potad.OutOfSpace:
                pass

    def take_runs(seed: int) -> None:
        random_ = random.Random(seed)
        for _ in range(150):
            size = random_.choice([16, 64, 200]) * GRANULE
            try:
                start = space.alloc_run(size, align=16 * GRANULE, relocate=True, owner="run")
            except potad.OutOfSpace:
                space.compact(32 * GRANULE, 3, budget=64 * GRANULE)
                continue
            run = found(space, start)
            assert (run.start, run.size, run.owner) == (start, size, "run")
            space.free(start)

    def guard(work: Callable[[int], None], seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:
            errors.append(error)
        finally:
            if work is take_runs:
                stop.set()

    works = [churn, churn, churn, take_runs, take_runs]
    threads = [
        threading.Thread(target=guard, args=(work, rng.randrange(1, 1 << 30))) for work in works
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    space.check()
    assert {it.state for it in space} <= {"live"}
    assert not with_owners or moved
    if not with_owners:
        assert {int(it.record) for it in space if it.kind is PAGE and it.record is not None} == {
            *range(0, 768, 2)
        }
    for number, address in places.items():
        page = found(space, address)
        assert (page.start, page.owner) == (address, table)
        assert page.record == number


def test_nothing_is_moved_unasked_while_pins_come_and_go() -> None:
    stubborn = Mover(False)
    space = scattered(Mover(), (1, 3, 7, 12, 14))
    space.alloc_at(8 * GRANULE, GRANULE, kind=PAGE, owner=stubborn)
    stop = threading.Event()

    def pin() -> None:
        while not stop.is_set():
            with space.pinned(8 * GRANULE):
                pass

    threads = [threading.Thread(target=pin) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2000):
            with contextlib.suppress(potad.OutOfSpace):
                space.free(space.alloc_run(8 * GRANULE, relocate=True))
            assert found(space, 8 * GRANULE).owner is stubborn
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    space.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_an_owner_is_asked() -> None:
    asked, forked = threading.Event(), threading.Event()

    def reply(move: potad.Move) -> bool:
        asked.set()
        assert forked.wait(60)
        return True

    space = scattered(Mover(reply))
    runs: list[int] = []
    thread = threading.Thread(
        target=lambda: runs.append(space.alloc_run(8 * GRANULE, relocate=True))
    )
    thread.start()
    assert asked.wait(60)
    child = os.fork()
    if child == 0:
        # The thread that asks is not here: what it held is free, and nothing was moved.
        status = 1
        try:
            space.check()
            whole = [it.start // GRANULE for it in space] == list(PLACES)
            status = 0 if whole and space.used == 6 * GRANULE else 2
        finally:
            os._exit(status)
    forked.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert runs == [4 * GRANULE]
    space.check()


def test_the_figures_of_a_refusal_are_those_of_the_space() -> None:
    """Also where moves were made meanwhile, and taken back."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    refusals = 0
    for _ in range(300):
        space = potad.Space(16 * GRANULE)

        class Refusing:
            def on_relocate(self, move: potad.Move) -> bool:
                return rng.random() < 0.7

        owner = Refusing()
        for start in range(0, 16 * GRANULE, GRANULE):
            if rng.random() < 0.4:
                with contextlib.suppress(potad.OutOfSpace):
                    space.alloc_at(start, GRANULE * rng.choice([1, 1, 2]), kind=PAGE, owner=owner)
        size = rng.choice([4, 5, 6, 8]) * GRANULE
        calls: list[tuple[Callable[..., object], tuple[int, ...], dict[str, Any]]] = [
            (space.alloc_run, (size,), {"relocate": True}),
            (space.alloc_run, (size,), {"relocate": True, "align": 2 * GRANULE}),
            (space.alloc_run, (size,), {}),
            (space.alloc, (size,), {}),
            (space.alloc_scattered, (13 * GRANULE,), {"min_block": 2 * GRANULE}),
            (space.alloc_many, (2 * GRANULE, 6), {}),
            (space.alloc_at, (0, 16 * GRANULE), {}),
            (space.remove, (0, 16 * GRANULE), {}),
        ]
        for call, arguments, options in calls:
            try:
                call(*arguments, **options)
            except potad.OutOfSpace as error:
                refusals += 1
                assert (error.largest, error.available) == (space.largest_free, space.available)
            space.check()
    assert refusals > 300


@pytest.mark.parametrize("act", ["alloc_run", "compact"])
@pytest.mark.parametrize("other", [False, True])
def test_owners_that_free_and_allocate_again_are_not_asked_for_ever(act: str, other: bool) -> None:
    """What was refused is forgotten when it is freed, whoever does that."""
    asked = 0
    places = [6 * GRANULE, 12 * GRANULE]

    def replace(move: potad.Move) -> bool:
        nonlocal asked
        asked += 1
        if asked > 1000:
            raise KeyboardInterrupt
        place = places[1 - places.index(move.old)] if other else move.old
        space.free(place)
        space.alloc_at(place, GRANULE, kind=PAGE, owner=owner)
        return False

    owner = Mover(replace)
    space = scattered(owner, granules=(6, 12))
    if act == "compact":
        assert space.compact(8 * GRANULE, 1).blocks == 0
    else:
        with pytest.raises(potad.OutOfSpace):
            space.alloc_run(8 * GRANULE, align=8 * GRANULE, relocate=True)
    assert asked < 100
    space.check()
