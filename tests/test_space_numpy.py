"""Many addresses at once: arrays of all kinds in, arrays of uint64 out."""

from __future__ import annotations

import array
import random
import threading
from typing import Any

import numpy as np
import pytest

import potad

COUNT = 100


@pytest.fixture
def space() -> potad.Space:
    return potad.Space(1 << 20, granule=1, base=0)


def addresses_of(space: potad.Space) -> list[int]:
    return [found.start for found in space]


def test_alloc_many_gives_a_plain_array(space: potad.Space) -> None:
    blocks = space.alloc_many(3, COUNT)
    assert type(blocks) is np.ndarray
    assert (blocks.dtype, blocks.shape, blocks.ndim) == (np.dtype("u8"), (COUNT,), 1)
    assert blocks.flags.c_contiguous
    assert blocks.flags.aligned
    assert blocks.flags.writeable
    assert len(set(blocks.tolist())) == COUNT
    assert not (blocks % 4).any()
    assert sorted(blocks.tolist()) == addresses_of(space)
    # The array is the caller's: what is done to it does nothing to the space.
    blocks[:] = 5
    space.check()
    assert len(space) == COUNT


@pytest.mark.parametrize("count", [0, 1, np.int16(7), True])
def test_alloc_many_of_few(space: potad.Space, count: Any) -> None:
    blocks = space.alloc_many(1, count)
    assert (blocks.dtype, blocks.shape) == (np.dtype("u8"), (int(count),))
    space.free_many(blocks)
    assert len(space) == 0


def test_alloc_many_all_or_nothing(space: potad.Space) -> None:
    space.alloc_at(5, 1)
    space.alloc_at(100, 1)
    before = space.free_blocks()
    room = space.available
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_many(1, room + 1)
    assert (caught.value.requested, caught.value.available) == (room + 1, room)
    assert caught.value.reason == "exhausted"
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_many(8, room // 8)
    assert caught.value.reason == "fragmented"
    assert (len(space), space.free_blocks()) == (2, before)
    assert len(space.alloc_many(1, room)) == room
    space.check()


def forms(addresses: list[int]) -> dict[str, Any]:
    """The same addresses as everything that is taken for a list of them."""
    unsigned = np.array(addresses, np.uint64)
    spread = np.zeros(2 * len(addresses), np.uint64)
    spread[::2] = addresses
    raw = bytearray(1 + 8 * len(addresses))
    misaligned = np.frombuffer(raw, np.uint64, offset=1)
    misaligned[:] = addresses
    assert not (addresses and misaligned.flags.aligned)
    fixed = unsigned.copy()
    fixed.flags.writeable = False
    table = np.zeros(len(addresses), [("name", "S3"), ("address", "u8")])
    table["address"] = addresses
    return {
        "uint64": unsigned,
        "int64": np.array(addresses, np.int64),
        "uint32": np.array(addresses, np.uint32),
        "int32": np.array(addresses, np.int32),
        "int16": np.array(addresses, np.int16),
        "big-endian uint64": np.array(addresses, ">u8"),
        "big-endian int64": np.array(addresses, ">i8"),
        "big-endian int32": np.array(addresses, ">i4"),
        "every second element": spread[::2],
        "backwards": unsigned[::-1][::-1],
        "reversed": np.array(addresses[::-1], np.uint64)[::-1],
        "misaligned": misaligned,
        "read-only": fixed,
        "objects": np.array(addresses, object),
        "a field of a table": table["address"],
        "a column": np.array([addresses, addresses], np.uint64).T[:, 0],
        "list": addresses,
        "tuple": tuple(addresses),
        "iterator": iter(addresses),
        "generator": (address for address in addresses),
        "dictionary": dict.fromkeys(addresses),
        "NumPy integers": [np.int32(address) for address in addresses],
        "array.array of Q": array.array("Q", addresses),
        "array.array of l": array.array("l", addresses),
        "memoryview": memoryview(array.array("Q", addresses)),
        "longlong": np.array(addresses, np.longlong),
        "ulonglong": np.array(addresses, np.ulonglong),
        "descriptors' starts": (address for address in addresses),
    }


FORMS = sorted(forms([1]))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_list(space: potad.Space, form: str, rng: random.Random) -> None:
    blocks = space.alloc_many(16, COUNT).tolist()
    rng.shuffle(blocks)
    starts, sizes = space.lookup_many(forms(blocks)[form])
    assert (starts.tolist(), sizes.tolist()) == (blocks, [16] * COUNT)
    assert (starts.dtype, sizes.dtype) == (np.dtype("u8"), np.dtype("u8"))
    space.free_many(forms(blocks[: COUNT // 2])[form])
    assert addresses_of(space) == sorted(blocks[COUNT // 2 :])
    space.check()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_list_may_be_empty(space: potad.Space, form: str) -> None:
    starts, sizes = space.lookup_many(forms([])[form])
    assert len(starts) == len(sizes) == 0
    space.free_many(forms([])[form])


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_narrow_integers(kind: type[np.number[Any]]) -> None:
    space = potad.Space(100, granule=1)
    space.alloc_at(7, 1)
    space.alloc_at(99, 1)
    space.free_many(np.array([99, 7], kind))
    assert len(space) == 0


def test_addresses_above_the_signed_ones() -> None:
    base = (1 << 64) - 8
    space = potad.Space(8, granule=1, base=base)
    blocks = space.alloc_many(1, 8)
    assert sorted(blocks.tolist()) == list(range(base, 1 << 64))
    starts, _ = space.lookup_many([(1 << 64) - 1, 0, base])
    assert starts.tolist() == [(1 << 64) - 1, 0, base]
    # As signed numbers they would be negative, and are nothing else then.
    with pytest.raises(ValueError, match=r"addresses\[0\] must be at least 0, not -"):
        space.free_many(blocks.view(np.int64))
    space.free_many(blocks)
    assert len(space) == 0


def test_free_many_names_the_first_that_is_none(space: potad.Space) -> None:
    blocks = space.alloc_many(4, COUNT)
    wrong = int(blocks[3]) + 1
    for addresses, first in [
        ([blocks[0], wrong, 1 << 60], wrong),
        ([blocks[0], 1 << 60, wrong], 1 << 60),
        ([blocks[5], blocks[6], blocks[5]], int(blocks[5])),
        ([*blocks, (1 << 64) - 1], (1 << 64) - 1),
        ([*blocks, *blocks], int(blocks[0])),
    ]:
        before = list(space)
        with pytest.raises(potad.NotAllocated) as caught:
            space.free_many(np.array(addresses, np.uint64))
        assert caught.value.address == first
        assert list(space) == before
        space.check()
    space.free_many(blocks)


def test_lookup_many_from_anywhere(space: potad.Space, rng: random.Random) -> None:
    for _ in range(300):
        space.alloc_run(rng.randrange(1, 200))
    for found in list(space)[::3]:
        space.free(found.start)
    addresses = [rng.randrange(1 << 21) for _ in range(2000)] + [(1 << 64) - 1]
    starts, sizes = space.lookup_many(addresses)
    for address, start, size in zip(addresses, starts.tolist(), sizes.tolist(), strict=True):
        descriptor = space.lookup(address)
        expected = (0, 0) if descriptor is None else (descriptor.start, descriptor.size)
        assert (start, size) == expected


def test_what_other_threads_do_to_an_array_meanwhile(space: potad.Space) -> None:
    """The addresses are copied before anything else: overwriting them goes nowhere."""
    stop = threading.Event()
    blocks = space.alloc_many(1, 50_000)
    shown = blocks.copy()

    def scribble() -> None:
        while not stop.is_set():
            shown[:] = 1 << 63
            shown[:] = blocks

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(30):
            starts, sizes = space.lookup_many(shown)
            assert set(sizes.tolist()) <= {0, 1}
            assert ((starts == blocks) | (starts == 0)).all()
    finally:
        stop.set()
        thread.join()
    space.check()


def test_arrays_outlive_their_space() -> None:
    space = potad.Space(1 << 20)
    blocks = space.alloc_many(4096, 256)
    space.retire(0, 8192)
    retired = space.retired()
    starts, sizes = space.lookup_many(blocks)
    del space
    assert sorted(blocks.tolist()) == sorted(starts.tolist()) == list(range(0, 1 << 20, 4096))
    assert set(sizes.tolist()) == {4096}
    assert retired.tolist() == [0, 4096]


def test_retired_addresses(space: potad.Space) -> None:
    assert space.retired().dtype == np.uint64
    assert space.retired().tolist() == []
    space.alloc_at(100, 50)
    space.retire(90, 20)
    space.retire(95, 5)
    space.retire(1000)
    assert space.retired().tolist() == [*range(90, 110), 1000]
    assert space.retired_ranges() == [(90, 20), (1000, 1)]
    space.restore(95, 10)
    assert space.retired().tolist() == [*range(90, 95), *range(105, 110), 1000]
