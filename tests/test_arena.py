"""Arenas and buffers: real memory, written and read back through everything that happens to it."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from described import PAGE

import potad

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def pattern(seed: int, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def bytes_of(buffer: Any) -> npt.NDArray[np.uint8]:
    """An array over a buffer; NumPy's own annotations know no classes but some."""
    return np.frombuffer(buffer, np.uint8)


def fill(buffer: potad.Buffer, seed: int) -> None:
    bytes_of(buffer)[:] = pattern(seed, buffer.nbytes)


def holds(buffer: potad.Buffer, seed: int) -> bool:
    return bool((bytes_of(buffer) == pattern(seed, buffer.nbytes)).all())


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- arenas ------------------------------------------------------------------------------------


def test_a_terabyte_costs_nothing() -> None:
    before = resident()
    arena = potad.Arena(1 << 40)
    assert arena.space.size == 1 << 40
    assert resident() - before < 4 * MIB
    buffer = arena.alloc(100)
    assert arena.space.used == 4096
    assert buffer.address % 4096 == 0


@pytest.mark.parametrize("size", [4096, 12 * KIB, MIB, 3 * MIB, 64 * MIB, GIB + 4096])
def test_addresses_are_real_and_aligned_as_in_the_space(size: int) -> None:
    arena = potad.Arena(size)
    largest = 1 << size.bit_length() - 1
    assert arena.space.base % largest == 0
    block = arena.alloc(largest, block=True)
    array = bytes_of(block)
    assert array.ctypes.data == block.address
    assert block.address % largest == 0
    array[-1] = 7
    assert array[-1] == 7


def test_blocks_of_huge_pages() -> None:
    arena = potad.Arena(64 * MIB, huge=True)
    block = arena.alloc(2 * MIB, block=True)
    assert block.address % (2 * MIB) == 0
    fill(block, 1)
    assert holds(block, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"size": 0}, ValueError, "size must be above 0"),
        ({"size": 4097}, ValueError, "size must be a multiple"),
        ({"size": -4096}, ValueError, "size must be at least 0"),
        ({"size": "4096"}, TypeError, "size must be an integer"),
        ({"size": 4096, "granule": 3000}, ValueError, "granule must be a power of two"),
        ({"size": 1 << 65}, OverflowError, "size must be at most"),
        ({"size": 1 << 62}, MemoryError, "addresses"),
        ({"size": 4096, "huge": 1}, TypeError, "huge must be True or False"),
    ],
)
def test_arguments_that_make_no_arena(arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        potad.Arena(**arguments)


@pytest.mark.parametrize("call", ["alloc", "alloc_run"])
@pytest.mark.parametrize(
    ("nbytes", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        (None, TypeError),
        (1 << 70, OverflowError),
    ],
)
def test_arguments_that_make_no_buffer(call: str, nbytes: Any, error: type[Exception]) -> None:
    arena = potad.Arena(MIB)
    with pytest.raises(error, match="nbytes"):
        getattr(arena, call)(nbytes)
    assert arena.space.used == 0


def test_an_arena_that_is_full() -> None:
    arena = potad.Arena(16 * 4096)
    owner = object()
    buffers = [arena.alloc(4096, owner=owner) for _ in range(16)]
    with pytest.raises(potad.OutOfSpace) as caught:
        arena.alloc(1, owner=owner)
    assert caught.value.reason == "exhausted"
    references = sys.getrefcount(owner)
    for _ in range(10):
        with pytest.raises(potad.OutOfSpace):
            arena.alloc(1, owner=owner)
    assert sys.getrefcount(owner) == references
    buffers.pop().free()
    assert arena.alloc(4096).nbytes == 4096


def test_sizes_are_exact() -> None:
    arena = potad.Arena(MIB, granule=16)
    for nbytes in (1, 15, 16, 17, 100, 1000, 5000):
        buffer = arena.alloc(nbytes)
        assert (buffer.nbytes, len(buffer)) == (nbytes, nbytes)
        assert buffer.descriptor.size == -(-nbytes // 16) * 16
        block = arena.alloc(nbytes, block=True)
        assert block.descriptor.size == max(16, 1 << (nbytes - 1).bit_length())
    # Runs fill what no block fits in.
    small = potad.Arena(7 * 4096)
    whole = small.alloc(7 * 4096)
    assert small.space.available == 0
    fill(whole, 3)
    assert holds(whole, 3)


def test_runs_have_their_alignment() -> None:
    arena = potad.Arena(MIB)
    first = arena.alloc(100)
    buffer = arena.alloc_run(12 * KIB, align=64 * KIB)
    assert buffer.address % (64 * KIB) == 0
    assert buffer.descriptor.size == 12 * KIB
    assert not first.freed


def test_an_arena_is_closed_when_nothing_is_in_it() -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(100)
    with pytest.raises(potad.Busy, match="1 live allocation"):
        arena.close()
    fill(buffer, 1)
    assert holds(buffer, 1)
    buffer.free()
    arena.close()
    arena.close()
    for call in (lambda: arena.alloc(1), lambda: arena.alloc_run(1), arena.numpy):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert "closed" in repr(arena)
    with potad.Arena(MIB) as other:
        other.alloc(1).free()
    assert "closed" in repr(other)


# ---- buffers -----------------------------------------------------------------------------------

EXPORTS: dict[str, Any] = {
    "memoryview": memoryview,
    "frombuffer": lambda buffer: np.frombuffer(buffer, np.float64),
    "asarray": np.asarray,
    "from_dlpack": np.from_dlpack,
    "slice of a view": lambda buffer: memoryview(buffer)[8:80],
    "PickleBuffer": pickle.PickleBuffer,
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_what_is_exported_stays(export: Any) -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(80, owner="me")
    seen = export(buffer)
    assert buffer.descriptor.pins == 1
    for free in (buffer.free, lambda: arena.space.free(buffer.address)):
        with pytest.raises(potad.Busy):
            free()
    # Nobody takes an export's pin back but the export.
    with pytest.raises(ValueError, match="looked at"):
        arena.space.unpin(buffer.address)
    arena.space.pin(buffer.address)
    assert arena.space.unpin(buffer.address) == 1
    del seen
    gc.collect()
    assert buffer.descriptor.pins == 0
    buffer.free()


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_an_export_outlives_everything(export: Any) -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(80)
    memoryview(buffer)[:] = bytes(range(80))
    seen = export(buffer)
    del arena, buffer
    gc.collect()
    content = bytes(memoryview(seen))
    assert content in bytes(range(80))
    assert content


# Of what has no buffer to give, `asarray` makes an array of one object.
@pytest.mark.parametrize("export", [it for name, it in EXPORTS.items() if name != "asarray"])
def test_use_after_free_is_an_error(export: Any) -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(80)
    buffer.free()
    assert buffer.freed
    with pytest.raises((potad.NotAllocated, BufferError, ValueError)):
        export(buffer)
    for use in ("address", "descriptor", "kind", "owner"):
        with pytest.raises(potad.NotAllocated):
            getattr(buffer, use)
    with pytest.raises(potad.NotAllocated):
        buffer.free()
    with buffer:
        pass


@pytest.mark.parametrize("how", ["free", "free_range", "free_many", "split"])
def test_a_buffer_whose_memory_is_gone_by_another_call(how: str) -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(8192)
    address = buffer.address
    match how:
        case "free":
            arena.space.free(address)
        case "free_range":
            arena.space.free_range(address + 4096, 4096)
        case "free_many":
            arena.space.free_many([address])
        case "split":
            arena.space.split(address, 4096)
    assert buffer.freed
    taken = arena.space.alloc_at(address, 8192) if how in ("free", "free_many") else None
    with pytest.raises(potad.NotAllocated):
        memoryview(buffer)
    del buffer
    gc.collect()
    # What is there now is not the buffer's to free.
    assert (taken is None) or taken in arena.space
    arena.space.check()


def test_a_buffer_that_is_collected_goes_back() -> None:
    arena = potad.Arena(MIB)
    for _ in range(1000):
        arena.alloc(64 * KIB)
    assert arena.space.used == 0
    with arena.alloc(100) as buffer:
        states = [buffer.freed]
    assert [*states, buffer.freed] == [False, True]
    # What was pinned by its address is not freed under who has pinned it.
    buffer = arena.alloc(100)
    address = buffer.address
    arena.space.pin(address)
    del buffer
    assert address in arena.space
    arena.space.unpin(address)
    arena.space.free(address)


def test_collected_in_cycles() -> None:
    class Cache:
        def __init__(self) -> None:
            self.buffers: list[Any] = []

    arena = potad.Arena(MIB)
    cache = Cache()
    cache.buffers = [arena.alloc(100, owner=cache), arena, memoryview(arena.alloc(50, owner=cache))]
    dead = weakref.ref(cache), weakref.ref(arena), weakref.ref(cache.buffers[0])
    del cache, arena
    gc.collect()
    assert [it() for it in dead] == [None] * 3


def test_kinds_owners_and_records() -> None:
    arena = potad.Arena(MIB)
    owner = object()
    buffer = arena.alloc(100, PAGE, owner)
    assert (buffer.kind, buffer.owner) == (PAGE, owner)
    record = buffer.descriptor.record
    assert record is not None
    record[...] = 77
    assert arena.space.records(PAGE)["record"].tolist() == [77]
    plain = arena.alloc(100)
    assert plain.owner is None
    assert plain.kind is not None
    assert plain.kind.movable
    others = [arena.alloc(4096, owner=owner) for _ in range(3)]
    assert len(arena.space.owned_by(owner)) == 4
    rows = {(row.kind, row.owner): row.allocations for row in arena.space.report()}
    assert rows == {(PAGE, owner): 1, (plain.kind, None): 1, (plain.kind, owner): 3}
    del others, record
    assert [it.start for it in arena.space.owned_by(owner)] == [buffer.address]


def test_pickles() -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(5000)
    fill(buffer, 5)
    content = bytes(memoryview(buffer))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert bytes(pickle.loads(pickle.dumps(buffer, protocol))) == content
    out_of_band: list[pickle.PickleBuffer] = []
    text = pickle.dumps(buffer, 5, buffer_callback=out_of_band.append)
    assert len(text) < 200
    with memoryview(out_of_band[0]) as view:
        assert np.frombuffer(view, np.uint8).ctypes.data == buffer.address
    assert bytes(pickle.loads(text, buffers=[bytearray(content)])) == content
    out_of_band[0].release()
    buffer.free()


def test_a_space_of_an_arena_has_no_other_memory() -> None:
    arena = potad.Arena(MIB)
    base = arena.space.base
    for start in (base + MIB, base - MIB, 0, 1 << 63):
        with pytest.raises(ValueError, match="arena's memory"):
            arena.space.add(start, MIB)
    arena.space.remove(base, MIB // 2)
    assert arena.alloc(MIB // 2).address >= base + MIB // 2
    arena.space.add(base, MIB // 2)
    assert arena.space.size == MIB


def test_buffers_that_cannot_be_freed_when_they_are_collected() -> None:
    """While an exception is on its way: nothing may come in between."""
    arena = potad.Arena(64 * MIB)

    def pinned() -> potad.Buffer:
        buffer = arena.alloc(100)
        arena.space.pin(buffer.address)
        return buffer

    def cut() -> potad.Buffer:
        buffer = arena.alloc(8192)
        arena.space.free_range(buffer.address, 4096)
        return buffer

    for make in (pinned, cut):
        for _ in range(100):
            with pytest.raises(ZeroDivisionError):
                print(make(), 1 // (make().nbytes * 0))


def test_the_end_of_a_buffer_is_never_taken_for_it() -> None:
    arena = potad.Arena(8 * 4096)
    base = arena.space.base
    buffer = arena.alloc(8192)
    address = buffer.address
    arena.space.free_range(address, 4096)
    for at in range(base, base + 8 * 4096, 4096):
        if at not in (address, address + 4096):
            arena.space.alloc_at(at, 4096)
    assert buffer.freed
    # What is left of it is moved to where it once began.
    within = (address + 4096, address + 8192)
    assert arena.space.alloc_run(4096, within=within, relocate=True) == address + 4096
    assert address in arena.space
    assert buffer.freed
    with pytest.raises(potad.NotAllocated):
        memoryview(buffer)


# ---- moves -------------------------------------------------------------------------------------


class Told:
    """Knows what was moved, and agrees."""

    def __init__(self, agrees: bool = True) -> None:
        self.agrees = agrees
        self.moves: list[tuple[int, int]] = []

    def on_relocate(self, move: potad.Move) -> bool:
        self.moves.append((move.old, move.new))
        return self.agrees


@pytest.mark.parametrize("owner", [None, Told(), Told(False)])
def test_content_is_moved_with_its_buffer(owner: Any) -> None:
    arena = potad.Arena(256 * 4096)
    buffers = [arena.alloc(3000, owner=owner) for _ in range(256)]
    for seed, buffer in enumerate(buffers):
        fill(buffer, seed)
    for buffer in buffers[::2]:
        buffer.free()
    kept = list(enumerate(buffers))[1::2]
    exported = memoryview(kept[5][1])
    before = {seed: buffer.address for seed, buffer in kept}
    try:
        run = arena.alloc_run(64 * 4096, relocate=True)
    except potad.OutOfSpace:
        assert isinstance(owner, Told)
        assert not owner.agrees
        assert {seed: buffer.address for seed, buffer in kept} == before
    else:
        fill(run, 1000)
        moved = {before[seed]: it.address for seed, it in kept if it.address != before[seed]}
        assert moved
        assert before[kept[5][0]] not in moved
        if isinstance(owner, Told):
            assert dict(owner.moves) == moved
        assert holds(run, 1000)
    assert all(holds(buffer, seed) for seed, buffer in kept)
    arena.space.check()
    del exported


def test_moves_that_are_taken_back_bring_the_content_back() -> None:
    asked: list[int] = []

    class Fickle:
        def on_relocate(self, move: potad.Move) -> bool:
            asked.append(move.old)
            return len(asked) != 10

    arena = potad.Arena(64 * 4096)
    owner = Fickle()
    buffers = [arena.alloc(4096, owner=owner) for _ in range(64)]
    for seed, buffer in enumerate(buffers):
        fill(buffer, seed)
    for buffer in buffers[::2]:
        buffer.free()
    kept = list(enumerate(buffers))[1::2]
    before = [buffer.address for _, buffer in kept]
    with pytest.raises(potad.OutOfSpace):
        arena.alloc_run(33 * 4096, relocate=True)
    with pytest.raises(potad.OutOfSpace):
        # The only window there is, and one in it refuses.
        arena.alloc_run(32 * 4096, align=64 * 4096, relocate=True)
    assert all(holds(buffer, seed) for seed, buffer in kept)
    assert len(asked) > 10
    assert [buffer.address for _, buffer in kept] == before
    arena.space.check()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no figures of the process")
def test_memory_goes_back_to_the_system(rng: random.Random) -> None:
    start = resident()
    arena = potad.Arena(GIB)
    buffers = [arena.alloc(rng.choice([4, 16, 64]) * KIB) for _ in range(4000)]
    for buffer in buffers:
        bytes_of(buffer)[:] = 1
    full = arena.space.used
    assert resident() - start >= full
    seeds = {}
    for number, buffer in enumerate(rng.sample(buffers, len(buffers))):
        if number % 10:
            buffer.free()
        else:
            seeds[number] = buffer
            fill(buffer, number)
    del buffers, buffer
    arena.compact()
    live = arena.space.used
    assert live < 0.15 * full
    # Beside the arena's there is what Python itself has come to use.
    assert resident() - start < 1.15 * live + 16 * MIB
    assert all(holds(buffer, seed) for seed, buffer in seeds.items())
    arena.space.check()


# ---- NumPy -------------------------------------------------------------------------------------


def in_arena(arena: potad.Arena, array: Any) -> bool:
    found = arena.find(array.ctypes.data)
    return found is not None and found.kind is not None and found.kind.name == "numpy"


def test_arrays_live_in_the_arena() -> None:
    arena = potad.Arena(64 * MIB)
    with arena.numpy():
        numbers = np.arange(100_000)
        zeros = np.zeros(50_000)
        small = np.array([1, 2, 3])
        grown = np.empty(10, np.uint8)
        grown[:] = 7
        grown.resize(100_000, refcheck=False)
        assert in_arena(arena, grown)
        inner = numbers * 2
    outside = np.arange(10)
    assert all(in_arena(arena, it) for it in (numbers, zeros, small, inner))
    assert not in_arena(arena, outside)
    assert not zeros.any()
    assert grown[:10].tolist() == [7] * 10
    assert not grown[10:].any()
    # An array that was made outside stays outside when it grows inside.
    with arena.numpy():
        outside.resize(1000, refcheck=False)
    assert not in_arena(arena, outside)
    dead = weakref.ref(arena)
    space = arena.space
    del arena
    assert numbers.sum() == 99_999 * 50_000
    assert dead() is None
    del numbers, zeros, small, grown, inner
    gc.collect()
    assert len(space) == 0
    space.check()


def test_memory_that_is_used_again_is_zero_where_zeros_are_asked_for() -> None:
    arena = potad.Arena(MIB)
    with arena.numpy():
        for _ in range(20):
            array = np.zeros(80_000, np.uint8)
            assert not array.any()
            array[:] = 255
            del array


def test_an_arena_that_is_too_small_for_an_array() -> None:
    arena = potad.Arena(64 * KIB)
    with arena.numpy():
        kept = np.ones(1000)
        with pytest.raises(MemoryError):
            np.ones(100_000)
        with pytest.raises(MemoryError):
            kept.resize(100_000, refcheck=False)
    assert kept.sum() == 1000


def test_contexts_nest_and_are_of_one_thread() -> None:
    one, other = potad.Arena(MIB), potad.Arena(MIB)
    with one.numpy():
        with other.numpy(), one.numpy(), other.numpy():
            assert in_arena(other, np.ones(10))
        assert in_arena(one, np.ones(10))
        elsewhere: list[Any] = []
        thread = threading.Thread(target=lambda: elsewhere.append(np.ones(10)))
        thread.start()
        thread.join()
        assert not in_arena(one, elsewhere[0])
    assert not in_arena(one, np.ones(10))
    context = one.numpy()
    with pytest.raises(RuntimeError, match="not entered"):
        context.__exit__(None, None, None)
    with context, context:
        assert in_arena(one, np.ones(10))
    assert not in_arena(one, np.ones(10))


def test_an_array_is_pinned_by_itself() -> None:
    arena = potad.Arena(MIB)
    with arena.numpy():
        array = np.arange(1000)
    pointer = array.ctypes.data
    space = arena.space
    calls: list[Callable[[], object]] = [
        lambda: space.free(pointer),
        lambda: space.free_range(pointer, 4096),
        lambda: space.free_many([pointer]),
        lambda: space.split(pointer, 4096),
    ]
    for call in calls:
        with pytest.raises(potad.Busy):
            call()
    with pytest.raises(ValueError, match="looked at"):
        space.unpin(pointer)
    assert array.sum() == 999 * 500
    del array
    assert len(space) == 0


def test_an_array_is_made_smaller_in_a_full_arena() -> None:
    arena = potad.Arena(16 * 4096)
    with arena.numpy():
        array = np.arange(16 * 512)
        array.resize(100, refcheck=False)
    assert array.tolist() == list(range(100))


def test_arrays_keep_no_cycle_alive() -> None:
    class Cycle:
        arena: Any
        buffer: Any

    cycle = Cycle()
    cycle.arena = potad.Arena(MIB)
    with cycle.arena.numpy():
        array = np.arange(1000)
    cycle.buffer = cycle.arena.alloc(100, owner=cycle)
    dead = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert dead() is None
    assert array.sum() == 999 * 500


def test_a_closed_arena_has_no_arrays_either() -> None:
    arena = potad.Arena(MIB)
    context = arena.numpy()
    with context:
        arena.close()
        with pytest.raises(MemoryError):
            np.ones(10)
    with pytest.raises(ValueError, match="closed"):
        context.__enter__()


def test_threads_that_share_a_context() -> None:
    one, other = potad.Arena(MIB), potad.Arena(MIB)
    shared = one.numpy()
    errors: list[BaseException] = []
    barrier = threading.Barrier(2)

    def outer(arena: potad.Arena | None) -> None:
        try:
            with contextlib.ExitStack() as stack:
                if arena is not None:
                    stack.enter_context(arena.numpy())
                barrier.wait()
                with shared:
                    barrier.wait()
                    assert in_arena(one, np.ones(10))
                barrier.wait()
                assert arena is None or in_arena(arena, np.ones(10))
                assert not in_arena(one, np.ones(10))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=outer, args=(arena,)) for arena in (None, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---- threads, processes, finalisers ------------------------------------------------------------


def test_threads_that_allocate_write_and_compact(rng: random.Random) -> None:
    arena = potad.Arena(32 * MIB, granule=512)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        mine: list[tuple[int, potad.Buffer]] = []
        try:
            for step in range(1500):
                action = random_.randrange(10)
                if action < 5:
                    with contextlib.suppress(potad.OutOfSpace):
                        buffer = arena.alloc(random_.randrange(1, 20_000), owner=random_.random())
                        fill(buffer, seed + step)
                        mine.append((seed + step, buffer))
                elif action < 8 and mine:
                    number, buffer = mine.pop(random_.randrange(len(mine)))
                    assert holds(buffer, number)
                    if action < 7:
                        buffer.free()
                    del buffer
                elif action == 8:
                    with contextlib.suppress(potad.OutOfSpace):
                        run = arena.alloc_run(
                            random_.choice([1, 2, 4]) * MIB, align=MIB, relocate=True
                        )
                        fill(run, seed)
                        assert holds(run, seed)
                elif step % 50 == 9:
                    arena.compact(budget=MIB)
            for number, buffer in mine:
                assert holds(buffer, number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rng.randrange(1 << 30),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    gc.collect()
    arena.space.check()
    assert len(arena.space) == 0


def test_finalisers_in_the_middle_of_calls() -> None:
    """The collector runs at almost every allocation of Python's, wherever that is."""
    arena = potad.Arena(16 * MIB)

    class Owner:
        def __del__(self) -> None:
            finals.append(arena.alloc(100).nbytes)

    finals: list[int] = []
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(300):
            cycle: list[Any] = [arena.alloc(1000, owner=Owner())]
            cycle.append(cycle)
            if number % 3:
                with contextlib.suppress(potad.OutOfSpace):
                    arena.alloc_run(MIB, relocate=True)
            del cycle
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert finals
    arena.space.check()
    assert len(arena.space) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_has_a_copy_of_its_own() -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(10_000)
    fill(buffer, 1)
    view = memoryview(buffer)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            good = holds(buffer, 1)
            view[:] = bytes(10_000)
            other = arena.alloc(100_000)
            fill(other, 2)
            arena.space.check()
            status = 0 if good and holds(other, 2) and not any(view) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert holds(buffer, 1)
    assert len(arena.space) == 1
    del view
    buffer.free()


def test_the_interpreter_exits_with_everything_in_use() -> None:
    program = """
import numpy as np, potad
arena = potad.Arena(1 << 30)
buffer = arena.alloc(1000, owner=arena)
view = memoryview(buffer)
array = np.frombuffer(arena.alloc(8000), np.float64)
capsule = buffer.__dlpack__()
context = arena.numpy()
context.__enter__()
inside = np.arange(1000)
class Cycle: pass
cycle = Cycle()
cycle.me, cycle.buffer = cycle, arena.alloc(10, owner=cycle)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
    assert done.stderr == ""


def test_memory_that_fails_under_a_buffer() -> None:
    told: list[Any] = []

    class Owner:
        def on_memory_failure(self, failure: potad.Failure) -> potad.Outcome:
            told.append((failure.address, failure.start, failure.owner))
            return potad.Outcome.DELAYED

    owner = Owner()
    arena = potad.Arena(MIB)
    buffer = arena.alloc(10_000, owner=owner)
    array = bytes_of(buffer)
    pointer = array.ctypes.data + 5000
    assert arena.memory_failure(pointer) is potad.Outcome.DELAYED
    assert told == [(pointer, buffer.address, owner)]
    assert arena.find(pointer) == buffer.descriptor
    assert arena.find(1) is None
    with pytest.raises(ValueError, match="pointer must be"):
        arena.memory_failure(1)
    del array
    buffer.free()
    assert arena.space.retired().tolist() == [pointer // 4096 * 4096]
