"""Pools: objects that outgrow memory, and what becomes of them when something fails."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import potad

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[potad.SwapFile]:
    with potad.SwapFile(tmp_path / "swap", 8 * MIB) as file:
        yield file


@pytest.fixture
def arena() -> potad.Arena:
    return potad.Arena(MIB)


@pytest.fixture
def pool(arena: potad.Arena, swap: potad.SwapFile) -> Iterator[potad.Pool]:
    with potad.Pool(memory=arena, swap=swap) as made:
        yield made
        made.check()


def put(handle: potad.Handle, content: bytes) -> None:
    with handle.pin() as view:
        view[:] = content


def get(handle: potad.Handle) -> bytes:
    with handle.pin(write=False) as view:
        return bytes(view)


def filled(pool: potad.Pool, count: int, size: int) -> list[potad.Handle]:
    """Objects that each have a byte of their own."""
    handles = [pool.alloc(size) for _ in range(count)]
    for number, handle in enumerate(handles):
        put(handle, bytes([number % 251]) * size)
    return handles


def check_filled(handles: list[potad.Handle]) -> None:
    for number, handle in enumerate(handles):
        assert get(handle) == bytes([number % 251]) * handle.nbytes


def test_more_than_memory(pool: potad.Pool) -> None:
    handles = filled(pool, 60, 100_000)
    assert pool.stats().resident_bytes <= pool.limit
    check_filled(handles)
    stats = pool.stats()
    assert stats.faults > 0
    assert stats.evictions > 0
    assert stats.objects == len(pool) == 60


def test_against_a_dictionary(rng: random.Random, tmp_path: Path) -> None:
    arena = potad.Arena(MIB)
    model: dict[potad.Handle, bytes] = {}
    with (
        potad.SwapFile(tmp_path / "model", 4 * MIB, keep=False) as swap,
        potad.Pool(memory=arena, swap=swap) as pool,
    ):
        for step in range(2_000):
            choice = rng.random()
            if choice < 0.25 and sum(map(len, model.values())) < 3 * MIB:
                content = rng.randbytes(rng.choice([1, 100, 4096, 5000, 70_000, 200_000]))
                handle = pool.alloc(len(content))
                put(handle, content)
                model[handle] = content
            elif choice < 0.35 and model:
                handle = rng.choice(list(model))
                del model[handle]
                if rng.random() < 0.5:
                    handle.free()
                del handle
            elif choice < 0.8 and model:
                handle = rng.choice(list(model))
                assert get(handle) == model[handle]
            elif choice < 0.95 and model:
                handle = rng.choice(list(model))
                content = rng.randbytes(handle.nbytes)
                put(handle, content)
                model[handle] = content
            elif choice < 0.97:
                pool.resize(rng.randrange(MIB // 4, MIB, 4096))
            elif choice < 0.99 and model:
                pool.will_need(rng.sample(list(model), min(len(model), 10)))
            else:
                pool.flush()
            if step % 20 == 0:
                pool.check()
                arena.space.check()
                swap.space.check()
        for handle, content in model.items():
            assert get(handle) == content
        pool.close()
        assert swap.space.used == 0
        assert arena.space.used == 0


def test_what_was_not_changed_is_not_written_again(pool: potad.Pool) -> None:
    handles = filled(pool, 4, 100_000)
    pool.flush()
    written = pool.stats().bytes_out
    check_filled(handles)
    for number, handle in enumerate(handles):
        put(handle, bytes([number % 251]) * handle.nbytes)  # the same as before
    pool.flush()
    assert pool.stats().bytes_out == written


def test_a_pin_for_reading_cannot_write(pool: potad.Pool) -> None:
    handle = pool.alloc(100)
    with handle.pin(write=False) as view, pytest.raises(TypeError):
        view[0] = 1


def test_pins_nest(pool: potad.Pool) -> None:
    handle = pool.alloc(100)
    with handle.pin() as outer:
        outer[:3] = b"abc"
        with handle.pin(write=False) as inner:
            assert handle.pins == 2
            assert bytes(inner[:3]) == b"abc"
        with pytest.raises(potad.Busy):
            handle.free()
    assert handle.pins == 0
    handle.free()


def test_an_array_that_outlives_its_pin_keeps_the_object(pool: potad.Pool) -> None:
    handle = pool.alloc(400_000)
    with handle.pin() as view:
        array = np.frombuffer(view, np.uint8)
    filled(pool, 20, 100_000)
    assert handle.resident
    with pytest.raises(potad.Busy):
        handle.free()
    array[:] = 7
    del array, view
    filled(pool, 20, 100_000)
    assert get(handle) == bytes([7]) * 400_000


def test_full_of_pins_says_whose_they_are(pool: potad.Pool) -> None:
    kind = potad.Kind("held", movable=True)
    handles = [pool.alloc(256 * KIB, kind=kind, owner="me") for _ in range(4)]
    pins = [handle.pin() for handle in handles]
    for pin in pins:
        pin.__enter__()
    start = time.monotonic()
    with pytest.raises(potad.OutOfSpace, match=r"'held' of 'me'") as caught:
        pool.alloc(4096)
    assert time.monotonic() - start < 60
    assert caught.value.in_the_way[0].allocations == 4
    for pin in pins:
        pin.__exit__(None, None, None)
    pool.alloc(4096)


def test_a_view_that_its_user_releases(pool: potad.Pool) -> None:
    handle = pool.alloc(100)
    with handle.pin() as view:
        view.release()
    assert handle.pins == 0
    handle.free()


def test_what_cannot_be_made_is_not_counted(pool: potad.Pool) -> None:
    for _ in range(3):
        with pytest.raises(potad.OutOfSpace):
            pool.alloc(2 * MIB, owner="me")
    gc.collect()
    pool.check()
    assert all(row.objects == row.bytes == 0 for row in pool.stats().rows)


def test_a_run_is_made_of_small_objects(pool: potad.Pool) -> None:
    handles = filled(pool, 256, 4096)
    large = pool.alloc(512 * KIB, align=128 * KIB)
    put(large, bytes(512 * KIB))
    check_filled(handles)


def test_a_record_goes_with_its_object(pool: potad.Pool) -> None:
    kind = potad.Kind("counted", record=np.dtype([("count", "u4")]), movable=True)
    handle = pool.alloc(400_000, kind=kind)
    with handle.pin():
        assert handle.record is not None
        handle.record["count"] = 42
    filled(pool, 40, 100_000)
    assert not handle.resident
    with handle.pin():
        assert handle.record is not None
        assert handle.record["count"] == 42
    with pytest.raises(ValueError, match="pinned"):
        handle.record  # noqa: B018


class Owner:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def on_memory_failure(self, failure: potad.Failure) -> potad.Outcome:
        self.told.append(failure)
        return potad.Outcome.DELAYED


def address_of(pool: potad.Pool, handle: potad.Handle) -> int:
    with handle.pin(write=False) as view:
        address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    assert pool.find(address + 50) is handle
    return address


def test_a_failure_is_recovered_from_a_good_copy(pool: potad.Pool, arena: potad.Arena) -> None:
    owner = Owner()
    handle = pool.alloc(50_000, owner=owner)
    put(handle, b"x" * 50_000)
    pool.flush()
    address = address_of(pool, handle)
    assert arena.memory_failure(address + 5000) is potad.Outcome.RECOVERED
    assert get(handle) == b"x" * 50_000
    assert not owner.told
    assert address_of(pool, handle) != address


def test_a_failure_without_a_copy_loses_the_object(pool: potad.Pool, arena: potad.Arena) -> None:
    owner = Owner()
    handle = pool.alloc(50_000, owner=owner)
    put(handle, b"x" * 50_000)
    assert arena.memory_failure(address_of(pool, handle)) is potad.Outcome.DELAYED
    (failure,) = owner.told
    assert getattr(failure, "handle") is handle  # noqa: B009
    assert handle.lost
    with pytest.raises(potad.Poisoned), handle.pin():
        pass
    assert pool.stats().lost == 1
    handle.free()


def test_a_corrupt_slot_is_poisoned(pool: potad.Pool, swap: potad.SwapFile) -> None:
    handles = filled(pool, 40, 100_000)
    pool.resize(100 * KIB)
    pool.resize(MIB)
    with open(swap.path, "r+b") as file:
        file.write(b"?" * swap.size)
    away = [handle for handle in handles if not handle.resident]
    assert away
    for handle in away:
        with pytest.raises(potad.Poisoned), handle.pin():
            pass


def test_a_swap_file_that_is_too_small(arena: potad.Arena, tmp_path: Path) -> None:
    with (
        potad.SwapFile(tmp_path / "small", 256 * KIB) as swap,
        potad.Pool(memory=arena, swap=swap) as pool,
    ):
        handles = filled(pool, 16, 50_000)
        # All of memory and all of the file, but no more; and what there is stays.
        with pytest.raises(potad.OutOfSpace, match="cannot be swapped out"):
            filled(pool, 20, 50_000)
        gc.collect()  # those that were made are in the error's frames
        check_filled(handles)


def test_slots_that_a_shrinking_file_moves(pool: potad.Pool, swap: potad.SwapFile) -> None:
    handles = filled(pool, 30, 100_000)
    pool.flush()
    swap.shrink(-(-swap.space.used // 4096) * 4096 + MIB)
    check_filled(handles)


def test_handles_that_are_collected(pool: potad.Pool, swap: potad.SwapFile) -> None:
    class Holder:
        handle: potad.Handle

    for _ in range(20):
        owner = Holder()
        owner.handle = pool.alloc(100_000, owner=owner)
        put(owner.handle, bytes(100_000))
    del owner
    gc.collect()
    pool.check()
    assert len(pool) == 0
    assert pool.stats().resident_bytes == 0


def test_a_pool_that_is_collected_gives_its_slots_back(tmp_path: Path) -> None:
    with potad.SwapFile(tmp_path / "collected", 8 * MIB) as swap:
        pool = potad.Pool(memory=potad.Arena(MIB), swap=swap)
        handles = filled(pool, 40, 100_000)
        assert swap.space.used
        del pool, handles
        gc.collect()
        end = time.monotonic() + 60
        while swap.space.used and time.monotonic() < end:
            time.sleep(0.01)
        assert swap.space.used == 0


def test_hints_are_read_ahead(pool: potad.Pool) -> None:
    handles = filled(pool, 40, 100_000)
    away = [handle for handle in handles if not handle.resident][:4]
    assert pool.will_need(away) == 4
    end = time.monotonic() + 60
    while not all(handle.resident for handle in away) and time.monotonic() < end:
        time.sleep(0.01)
    assert pool.stats().read_ahead == 4
    check_filled(handles)


def test_a_dictionary(pool: potad.Pool) -> None:
    blocks = pool.dict(owner="cache")
    model = {f"key {number}": bytes([number]) * (number * 10_000) for number in range(20)}
    blocks.update(model)
    assert dict(blocks) == model
    assert len(blocks) == 20
    with blocks.pin("key 3") as view:
        blocks["key 3"] = b"new"  # what is seen stays
        assert bytes(view) == model["key 3"]
    assert blocks["key 3"] == b"new"
    assert blocks["key 0"] == b""
    del blocks["key 3"]
    assert "key 3" not in blocks
    with pytest.raises(KeyError):
        blocks["key 3"]
    with pytest.raises(TypeError, match="5"):
        blocks[5] = b""  # type: ignore[index]
    assert blocks.pop("key 4") == model["key 4"]
    blocks.clear()
    assert len(pool) == 0


def test_after_closing(arena: potad.Arena, swap: potad.SwapFile) -> None:
    pool = potad.Pool(memory=arena, swap=swap)
    handle = pool.alloc(100)
    with handle.pin(), pytest.raises(potad.Busy):
        pool.close()
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closed"), handle.pin():
        pass
    with pytest.raises(ValueError, match="closed"):
        pool.alloc(100)
    assert arena.space.used == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"nbytes": 0}, ValueError),
        ({"nbytes": -1}, OverflowError),
        ({"nbytes": 1.5}, TypeError),
        ({"nbytes": 10, "align": 3}, ValueError),
        ({"nbytes": 10, "kind": "page"}, TypeError),
        ({"nbytes": 2 * MIB}, potad.OutOfSpace),
    ],
)
def test_bad_arguments_change_nothing(
    pool: potad.Pool, arguments: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        pool.alloc(**arguments)  # type: ignore[arg-type]
    assert len(pool) == 0
    assert pool.stats().resident_bytes == 0


def test_threads(rng: random.Random, tmp_path: Path) -> None:
    """Eight threads over one pool, whose objects have one byte each, all over."""
    count = 200
    with (
        potad.SwapFile(tmp_path / "threads", 64 * MIB, keep=False) as swap,
        potad.Pool(memory=potad.Arena(4 * MIB), swap=swap) as pool,
    ):
        sizes = [rng.choice([8, 4096, 20_000, 100_000, 300_000]) for _ in range(count)]
        handles = [pool.alloc(size) for size in sizes]
        values = [number % 256 for number in range(count)]
        locks = [threading.Lock() for _ in range(count)]
        for handle, value in zip(handles, values, strict=True):
            put(handle, bytes([value]) * handle.nbytes)
        errors: list[BaseException] = []
        end = time.monotonic() + 3

        def work(seed: float) -> None:
            own = random.Random(seed)
            try:
                while time.monotonic() < end:
                    at = own.randrange(count)
                    with locks[at]:
                        assert get(handles[at]) == bytes([values[at]]) * sizes[at]
                        if own.random() < 0.4:
                            values[at] = own.randrange(256)
                            put(handles[at], bytes([values[at]]) * sizes[at])
                    if own.random() < 0.01:
                        pool.will_need(own.sample(handles, 5))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        pool.check()
