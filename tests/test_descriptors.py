"""Kinds, records, owners and pins."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from described import KINDS, PAGE, PLAIN, XFS_BUF, Owner, found

import potad
from potad import Outcome


@pytest.fixture
def space() -> potad.Space:
    return potad.Space(1 << 24)


# ---- kinds ----------------------------------------------------------------------------------


def test_a_kind_says_what_it_is() -> None:
    assert (XFS_BUF.name, XFS_BUF.movable, PAGE.movable) == ("xfs_buf", False, True)
    assert XFS_BUF.record is not None
    assert XFS_BUF.record.itemsize == 360
    assert PLAIN.record is None
    assert PAGE == PAGE
    assert potad.Kind("page", record="u8") != PAGE
    assert "xfs_buf" in repr(XFS_BUF)


@pytest.mark.parametrize("record", [object, [("x", "O")], "no dtype", 3, "V65537", ("u1", 70000)])
def test_a_kind_of_no_good_record(record: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        potad.Kind("bad", record=record)


def test_a_kind_of_any_record() -> None:
    records: list[Any] = ["V0", "u1", "V65536", ("u1", 65536), [("a", "u2"), ("b", "f8", (3,))]]
    for record in records:
        kind = potad.Kind("any", record=record)
        space = potad.Space(1 << 20)
        start = space.alloc(4096, kind=kind)
        view = found(space, start).record
        if np.dtype(record).itemsize:
            assert view is not None
            assert not view.tobytes().strip(b"\0")
        space.check()


@pytest.mark.parametrize("method", ["alloc", "alloc_run", "alloc_at", "alloc_scattered"])
@pytest.mark.parametrize("kind", [1, "page", object(), potad.Kind, np.dtype("u8")])
def test_what_is_no_kind(space: potad.Space, method: str, kind: Any) -> None:
    arguments = (0, 4096) if method == "alloc_at" else (4096,)
    with pytest.raises(TypeError, match="kind"):
        getattr(space, method)(*arguments, kind=kind)
    assert len(space) == 0


def test_all_calls_that_allocate_take_a_kind_and_an_owner(space: potad.Space) -> None:
    me = object()
    starts = [
        space.alloc(4096, kind=XFS_BUF, owner=me),
        space.alloc(4096, within=(1 << 20, 2 << 20), kind=XFS_BUF, owner=me),
        space.alloc_run(12288, kind=XFS_BUF, owner=me),
        space.alloc_at(8 << 20, 4096, kind=XFS_BUF, owner=me),
        *(start for start, _ in space.alloc_scattered(7 * 4096, kind=XFS_BUF, owner=me)),
    ]
    assert len(starts) == 7
    for start in starts:
        descriptor = found(space, start)
        assert (descriptor.start, descriptor.kind, descriptor.owner) == (start, XFS_BUF, me)
    assert [d.start for d in space.owned_by(me)] == sorted(starts)
    space.check()


def test_names_in_any_order_and_given_as_none(space: potad.Space) -> None:
    me = Owner()
    for _ in range(3):
        for names in (
            {"kind": PAGE, "owner": me},
            {"owner": me, "kind": PAGE},
            {"kind": None, "owner": me},
            {"owner": me},
            {"kind": PAGE, "owner": None},
            {"kind": PAGE},
            {"within": None, "kind": PLAIN, "owner": me},
            {"within": (0, 1 << 23), "kind": PLAIN},
            {},
        ):
            descriptor = found(space, space.alloc(4096, **names))
            assert descriptor.kind is names.get("kind")
            assert descriptor.owner is names.get("owner")
    with pytest.raises(TypeError):
        space.alloc(4096, kind=PAGE, colour=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        space.alloc(4096, kind=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size"):
        space.alloc(0, kind=PAGE, owner=me)
    space.check()


@pytest.mark.parametrize("names", [{"kind": PAGE}, {"owner": PAGE}, {"kind": PAGE, "owner": PAGE}])
def test_names_without_a_size(space: potad.Space, names: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="size"):
        space.alloc(**names)
    start = space.alloc(size=4096, **names)
    assert found(space, start).owner is names.get("owner")


def test_a_failed_allocation_leaves_nothing(space: potad.Space) -> None:
    owner = Owner()
    count = sys.getrefcount(owner)
    for method in ("alloc", "alloc_run", "alloc_scattered"):
        with pytest.raises(potad.OutOfSpace):
            getattr(space, method)(1 << 30, kind=XFS_BUF, owner=owner)
    assert sys.getrefcount(owner) == count
    assert space.owned_by(owner) == []
    space.check()


# ---- records --------------------------------------------------------------------------------


def test_a_record_is_written_in_place(space: potad.Space) -> None:
    start = space.alloc(65536, kind=XFS_BUF)
    record = found(space, start + 5000).record
    assert record is not None
    assert (record.shape, record.dtype, record.flags.writeable) == ((), XFS_BUF.record, True)
    assert record.ctypes.data % 16 == 0
    record["daddr"] = 77
    again = found(space, start + 65535).record
    assert again is not None
    assert again["daddr"] == 77
    assert np.shares_memory(record, again)


def test_a_record_of_a_freed_allocation_is_never_anothers(space: potad.Space) -> None:
    views = []
    for number in range(200):
        start = space.alloc(4096, kind=PAGE)
        record = found(space, start).record
        assert record is not None
        assert record == 0
        record[...] = number
        views.append(record)
        space.free(start)
    others = [space.alloc(4096, kind=PAGE) for _ in range(500)]
    for start in others:
        record = found(space, start).record
        assert record is not None
        record[...] = 10**6
    assert [int(view) for view in views] == list(range(200))
    # Once they are no longer looked at, their slots are used again.
    used = space.metadata_bytes
    views.clear()
    gc.collect()
    for _ in range(100):
        space.alloc(4096, kind=PAGE)
    space.check()
    assert space.metadata_bytes <= used + 4096


def test_a_record_outlives_the_space() -> None:
    space = potad.Space(1 << 20)
    record = found(space, space.alloc(4096, kind=PAGE)).record
    assert record is not None
    record[...] = 5
    reference = weakref.ref(space)
    del space
    gc.collect()
    assert reference() is None
    assert record == 5


def test_parts_have_copies_of_the_record(space: potad.Space) -> None:
    me = Owner()
    start = space.alloc_run(10 * 4096, kind=PAGE, owner=me)
    record = found(space, start).record
    assert record is not None
    record[...] = 9
    space.split(start, 4 * 4096)
    space.free_range(start + 6 * 4096, 2 * 4096)
    parts = list(space)
    assert [part.size // 4096 for part in parts] == [4, 2, 2]
    for part in parts:
        assert (part.kind, part.owner) == (PAGE, me)
        assert part.record is not None
        assert part.record == 9
    assert parts[1].record is not None
    parts[1].record[...] = 10
    assert [int(d.record) for d in space if d.record is not None] == [9, 10, 9]
    space.check()


def test_all_records_at_once(space: potad.Space) -> None:
    rng = np.random.default_rng(5)
    owners = [Owner(), None, Owner()]
    expected = {}
    for number in range(300):
        kind = KINDS[rng.integers(len(KINDS))]
        owner = owners[number % 3]
        start = space.alloc(4096 << int(rng.integers(3)), kind=kind, owner=owner)
        if kind is PAGE:
            record = found(space, start).record
            assert record is not None
            record[...] = number
            pins = number % 4
            for _ in range(pins):
                space.pin(start)
            expected[start] = (found(space, start).size, pins, owner, number)
    records = space.records(PAGE)
    assert records.dtype.names == ("start", "size", "pins", "owner", "record")
    assert records["start"].tolist() == sorted(expected)
    for row in records:
        assert (row["size"], row["pins"], row["owner"], row["record"]) == expected[row["start"]]
    assert space.records(potad.Kind("unknown", record="u4")).shape == (0,)
    assert space.records(PLAIN).dtype.names == ("start", "size", "pins", "owner")


# ---- owners ---------------------------------------------------------------------------------


def test_owners_are_held_while_they_have_allocations(space: potad.Space) -> None:
    owner = Owner()
    reference, count = weakref.ref(owner), sys.getrefcount(owner)
    starts = [space.alloc(4096, owner=owner) for _ in range(5)]
    starts += [start for start, _ in space.alloc_scattered(7 * 4096, kind=PAGE, owner=owner)]
    assert sys.getrefcount(owner) == count + 1
    space.free(starts[0])
    space.free_many(starts[1:3])
    space.free_range(starts[3], 4096)
    space.split(starts[5], 4096)
    assert sys.getrefcount(owner) == count + 1
    del owner
    assert reference() is not None
    space.free_many([descriptor.start for descriptor in space])
    assert reference() is None
    assert space.report().rows == ()
    space.check()


def test_an_owner_may_be_anything(space: potad.Space) -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            raise RuntimeError

    for owner in [Odd(), [], "text", 0, False, space]:
        start = space.alloc(4096, owner=owner)
        assert found(space, start).owner is owner
        assert len(space.owned_by(owner)) == 1
        assert len(str(space.report())) > 0
        space.free(start)
    start = space.alloc(4096, owner=None)
    assert found(space, start).owner is None


def test_an_owner_that_holds_the_space_is_collected() -> None:
    class Holder:
        space: potad.Space

    holder = Holder()
    holder.space = potad.Space(1 << 20)
    holder.space.alloc(4096, kind=PAGE, owner=holder)
    reference = weakref.ref(holder)
    del holder
    gc.collect()
    assert reference() is None


def test_an_owner_whose_finaliser_uses_the_space(space: potad.Space) -> None:
    class Last:
        def __del__(self) -> None:
            done.append(space.alloc(4096))

    done: list[int] = []
    start = space.alloc(4096, owner=Last())
    space.free(start)
    assert len(done) == 1
    start = space.alloc_run(8192, owner=Last())
    space.free_range(start, 8192)
    assert len(done) == 2
    space.check()


@pytest.mark.parametrize("holds", ["pinned", "__iter__"])
def test_an_owner_that_holds_what_holds_the_space_is_collected(holds: str) -> None:
    class Holder:
        held: Any

    holder, space = Holder(), potad.Space(1 << 20)
    start = space.alloc(4096, owner=holder)
    holder.held = space.pinned(start) if holds == "pinned" else iter(space)
    reference = weakref.ref(holder)
    del holder, space
    gc.collect()
    assert reference() is None


def test_chains_of_owners_are_dropped_one_by_one() -> None:
    space = potad.Space(1 << 30)
    starts, last = [], None
    for _ in range(100_000):
        starts.append(space.alloc(4096, owner=last))
        last = space.lookup(starts[-1])
    space.free_many(starts)
    reference = weakref.ref(space)
    del last, space
    assert reference() is None
    inner = potad.Space(4096)
    for _ in range(20_000):
        outer = potad.Space(4096)
        outer.alloc(4096, owner=inner)
        inner = outer
    reference = weakref.ref(inner)
    del inner, outer
    assert reference() is None


def test_a_live_owner_is_not_collected_while_other_threads_hold_the_lock() -> None:
    space = potad.Space(1 << 28)
    owners = [Owner() for _ in range(20)]
    references = [weakref.ref(owner) for owner in owners]
    for owner in owners:
        space.alloc(4096, owner=owner)
    space.alloc_many(4096, 50_000)
    del owners, owner
    stop = threading.Event()

    def counts() -> None:
        while not stop.is_set():
            space.free_blocks()

    threads = [threading.Thread(target=counts) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        gc.collect()
    stop.set()
    for thread in threads:
        thread.join()
    assert all(reference() is not None for reference in references)


def test_the_report(space: potad.Space) -> None:
    cache = Owner()
    for _ in range(3):
        space.alloc(65536, kind=XFS_BUF, owner=cache)
    space.alloc(4096)
    space.alloc(8192, kind=PAGE)
    report = space.report()
    rows = [(row.kind, row.owner, row.allocations, row.size) for row in report]
    assert rows == [
        (XFS_BUF, cache, 3, 3 * 65536),
        (PAGE, None, 1, 8192),
        (None, None, 1, 4096),
    ]
    assert (report.allocations, report.size, len(report)) == (5, space.used, 3)
    lines = str(report).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("xfs_buf")
    assert "100.0%" in lines[-1]
    assert str(potad.Space(1 << 20).report()).splitlines()[-1].split() == ["total", "0", "0", "-"]


# ---- pins -----------------------------------------------------------------------------------


def test_a_pinned_allocation_is_not_freed(space: potad.Space) -> None:
    start = space.alloc_run(3 * 4096)
    other = space.alloc(4096)
    assert space.pin(start + 5000) == 1
    assert space.pin(start) == 2
    calls: list[Callable[[], None]] = [
        lambda: space.free(start),
        lambda: space.free_many([other, start]),
        lambda: space.free_range(start + 4096, 4096),
        lambda: space.split(start, 4096),
    ]
    for call in calls:
        with pytest.raises(potad.Busy, match="2 times") as caught:
            call()
        assert (caught.value.address, caught.value.pins) == (start, 2)
        assert len(space) == 2
    assert found(space, start).pins == 2
    assert (space.unpin(start + 4096), space.unpin(start)) == (1, 0)
    with pytest.raises(ValueError, match="pinned"):
        space.unpin(start)
    space.free(start)
    with pytest.raises(potad.NotAllocated):
        space.pin(start)
    space.check()


def test_pinned_in_a_context(space: potad.Space) -> None:
    start = space.alloc(8192)
    context = space.pinned(start + 5000)
    with context as outer, context as inner:
        assert (outer.pins, inner.pins) == (1, 2)
        with pytest.raises(potad.Busy):
            space.free(start)
    with pytest.raises(KeyError), context:
        raise KeyError
    space.free(start)
    with pytest.raises(potad.NotAllocated), context:
        pass
    with pytest.raises(RuntimeError):
        context.__exit__(None, None, None)


def test_a_range_is_pinned_or_not(space: potad.Space) -> None:
    starts = [space.alloc_at(at * 4096, 2 * 4096) for at in (0, 2, 8)]
    assert space.pin_range(4096, 8 * 4096).tolist() == starts
    assert [descriptor.pins for descriptor in space] == [1, 1, 1]
    assert space.pin_range(4096, 4096).tolist() == [0]
    with pytest.raises(potad.NotAllocated):
        space.pin_range(5 * 4096, 4096)
    assert [descriptor.pins for descriptor in space] == [2, 1, 1]


# ---- threads --------------------------------------------------------------------------------


def test_threads_look_up_pin_and_fail_while_others_allocate() -> None:
    space = potad.Space(1 << 22)
    stop = threading.Event()
    errors: list[BaseException] = []
    owners = [Owner(Outcome.DELAYED) for _ in range(4)]
    before = [sys.getrefcount(owner) for owner in owners]

    def guarded(work: Any) -> None:
        # Made once: to seed one lets other threads run, just when nothing is allocated.
        rng = np.random.default_rng()
        try:
            while not stop.is_set():
                work(rng)
        except BaseException as error:
            errors.append(error)
            stop.set()

    def allocates(rng: np.random.Generator) -> None:
        mine = []
        for _ in range(50):
            try:
                kind = KINDS[rng.integers(len(KINDS))]
                owner = owners[rng.integers(len(owners))]
                mine.append(space.alloc(4096 << int(rng.integers(4)), kind=kind, owner=owner))
            except potad.OutOfSpace:
                break
        for start in mine:
            while True:
                try:
                    space.free(start)
                except potad.Busy:
                    continue
                break

    def looks(rng: np.random.Generator) -> None:
        descriptor = space.lookup(int(rng.integers(1 << 22)))
        if descriptor is not None:
            assert descriptor.owner is None or descriptor.owner in owners
            if descriptor.record is not None:
                descriptor.record.tobytes()

    def pins(rng: np.random.Generator) -> None:
        try:
            with space.pinned(int(rng.integers(1 << 22))) as descriptor:
                assert descriptor.pins > 0
        except potad.NotAllocated:
            pass

    def fails(rng: np.random.Generator) -> None:
        address = int(rng.integers(1 << 22)) & ~4095
        space.memory_failure(address)
        space.restore(address)
        space.report()
        space.records(PAGE)

    work = [allocates, allocates, looks, pins, fails]
    threads = [threading.Thread(target=guarded, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    stop.wait(3)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    space.check()
    assert len(space) == 0
    gc.collect()
    counts = [sys.getrefcount(owner) for owner in owners]
    # An owner remembers what it was told, and the descriptor in each failure refers to the owner.
    told = [len(owner.failures) for owner in owners]
    assert [count - once for count, once in zip(counts, before, strict=True)] == told
    assert space.report().rows == ()
