"""The sizes and addresses at which arithmetic goes wrong, and the scenarios that have names."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

import potad

END = 1 << 64
KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))


def fill(space: potad.Space, size: int) -> list[int]:
    """Allocates blocks of one size until there is no room."""
    blocks = []
    while True:
        try:
            blocks.append(space.alloc(size))
        except potad.OutOfSpace:
            return blocks


@pytest.mark.parametrize("granule", [1, 512, 4096, 1 << 40, 1 << 63])
def test_one_granule(granule: int) -> None:
    for base in (0, granule, END - granule):
        space = potad.Space(granule, granule=granule, base=base)
        assert space.largest_free == granule
        assert space.alloc(1) == base
        assert (space.used, space.available, space.largest_free) == (granule, 0, 0)
        assert space.free_blocks() == {}
        assert space.unusable_free_index(granule) == 0.0
        with pytest.raises(potad.OutOfSpace) as caught:
            space.alloc(1)
        assert caught.value.reason == "exhausted"
        assert [(found.start, found.size) for found in space] == [(base, granule)]
        space.check()
        space.free(base)
        assert space.alloc_run(granule) == base
        space.free_range(base, granule)
        assert space.alloc_scattered(1) == [(base, granule)]
        space.free_many([base])
        assert space.alloc_many(1, 1).tolist() == [base]
        space.check()


@pytest.mark.parametrize("granule", [1, 512, 4096])
@pytest.mark.parametrize(
    "granules", [3 << k for k in range(12)] + [(1 << k) - 1 for k in range(1, 14)]
)
def test_sizes_that_are_no_power_of_two(granule: int, granules: int) -> None:
    """Every granule is handed out, in blocks and as one run, and all comes back as it was."""
    for base in (0, granule, 7 * granule, END - granules * granule):
        space = potad.Space(granules * granule, granule=granule, base=base)
        blocks = space.free_blocks()
        assert sum(size * count for size, count in blocks.items()) == space.size
        assert space.largest_free == max(blocks)

        assert space.alloc_run(space.size) == base
        assert space.available == 0
        space.free(base)

        scattered = space.alloc_scattered(space.size)
        assert sorted(size for _, size in scattered) == sorted(
            size for size, count in blocks.items() for _ in range(count)
        )
        space.free_many([start for start, _ in scattered])

        single = space.alloc_many(granule, granules)
        assert sorted(single.tolist()) == [base + at * granule for at in range(granules)]
        assert len(space) == granules
        space.free_many(single)
        assert space.free_blocks() == blocks
        space.check()


@pytest.mark.parametrize("granule", [1, 512, 4096])
@pytest.mark.parametrize("offset", [1, 3, 5, 63, 64, 65, 4095])
def test_a_base_that_is_not_aligned_to_the_size(granule: int, offset: int) -> None:
    """Blocks are aligned to their size at their absolute address, wherever the space begins."""
    granules = 1000
    space = potad.Space(granules * granule, granule=granule, base=offset * granule)
    for order in range(10):
        size = granule << order
        blocks = fill(space, size)
        first = -(-offset >> order)
        assert len(blocks) == (offset + granules >> order) - first
        assert all(block % size == 0 for block in blocks)
        assert all(space.base <= block <= space.base + space.size - size for block in blocks)
        space.check()
        space.free_many(blocks)


@pytest.mark.parametrize("size", [4096, 3 * 4096, 1 << 30, 3 << 40, 1 << 63, END - 4096])
def test_an_end_of_exactly_2_to_the_64(size: int) -> None:
    space = potad.Space(size, base=END - size)
    assert space.spans() == [(END - size, size)]
    last = END - 4096
    assert space.alloc_at(last, 4096) == last
    assert space.lookup(END - 1) == space.lookup(last)
    assert [found.start for found in space] == [last]
    space.free_range(last, 4096)
    with pytest.raises(potad.NotAllocated):
        space.free_range(last, 4096)
    assert space.alloc_run(4096, within=(last, END)) == last
    space.retire(last)
    space.free(last)
    assert space.retired().tolist() == [last]
    space.restore(last)
    assert space.available == size
    space.remove(last, 4096)
    assert space.size == size - 4096
    space.add(last, 4096)
    space.check()
    assert space.alloc_run(size) == END - size
    with pytest.raises(ValueError, match="2\\^64"):
        potad.Space(size + 4096, base=END - size)


def test_address_0() -> None:
    space = potad.Space(16 * 4096)
    assert space.alloc_at(0, 4096) == 0
    assert 0 in space
    found = space.lookup(0)
    assert found is not None
    assert (found.start, found.size) == (0, 4096)
    starts, sizes = space.lookup_many([0, 4096])
    assert (starts.tolist(), sizes.tolist()) == ([0, 0], [4096, 0])
    space.free(0)
    assert 0 not in space
    with pytest.raises(potad.NotAllocated):
        space.free(0)


def test_nothing_at_all() -> None:
    space = potad.Space(0, base=1 << 30)
    assert (space.size, space.used, space.available, space.largest_free) == (0, 0, 0, 0)
    assert (len(space), list(space), space.spans(), space.free_blocks()) == (0, [], [], {})
    assert space
    assert space.unusable_free_index(4096) == 0.0
    assert space.lookup(1 << 30) is None
    for call in (space.alloc, space.alloc_run, space.alloc_scattered):
        with pytest.raises(potad.OutOfSpace) as caught:
            call(1)
        assert (caught.value.reason, caught.value.largest) == ("exhausted", 0)
    with pytest.raises(potad.OutOfSpace):
        space.alloc_at(1 << 30, 4096)
    assert space.alloc_many(4096, 0).tolist() == []
    space.free_many([])
    space.check()
    # Spans may be added anywhere then, on both sides of the base.
    space.add(0, 4096)
    space.add(END - 8192, 8192)
    assert space.alloc(8192) == END - 8192
    assert space.alloc(1) == 0
    space.check()


def test_all_there_is() -> None:
    space = potad.Space(END, granule=1)
    assert (space.size, space.available, space.largest_free) == (END, END, END)
    assert space.free_blocks() == {END: 1}
    assert space.alloc(END) == 0
    assert (space.used, space.available) == (END, 0)
    for address in (0, 1, 1 << 63, END - 1):
        assert address in space
        found = space.lookup(address)
        assert found is not None
        assert (found.start, found.size) == (0, END)
    with pytest.raises(OverflowError, match="uint64"):
        space.lookup_many([5])
    starts, sizes = space.lookup_many([])
    assert len(starts) == len(sizes) == 0
    assert [found.size for found in space] == [END]
    space.check()
    space.split(0, 1 << 63)
    _, sizes = space.lookup_many([5])
    assert sizes.tolist() == [1 << 63]
    space.free_range(1, END - 1)
    assert [(found.start, found.size) for found in space] == [(0, 1)]
    space.free(0)
    assert space.alloc_run(END) == 0
    space.free_range(0, END)
    assert space.alloc_run(END - 1, align=1, within=(1, END)) == 1
    space.free(1)
    assert space.alloc_at(0, END) == 0
    space.retire(0, END)
    assert space.retired_ranges() == [(0, END)]
    with pytest.raises(MemoryError):
        space.retired()
    space.free(0)
    assert (space.available, space.largest_free) == (0, 0)
    space.restore(0, END)
    assert space.available == END
    space.retire(END - 1, 1)
    assert [size for _, size in space.alloc_scattered(END - 1)] == [
        1 << order for order in reversed(range(64))
    ]
    space.check()


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="what is resident can only be read on Linux"
)
def test_a_block_of_a_terabyte_takes_next_to_no_memory() -> None:
    """In processes of their own, where what becomes resident is the space's doing."""
    script = (
        "import potad\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "potad.Space(1 << 20).alloc(1)\n"
        "before = resident()\n"
        "space = potad.Space(3 << 39, granule=512)\n"
        "address = space.alloc(1 << 40)\n"
        "grown = resident() - before\n"
        "space.check()\n"
        "print(address, space.used, grown, space.metadata_bytes)\n"
    )
    rounds = []
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        rounds.append([int(word) for word in result.stdout.split()])
    address, used, resident, metadata = (min(column) for column in zip(*rounds, strict=True))
    assert (address % TIB, used) == (0, TIB)
    assert resident < MIB
    assert metadata < 16 * KIB


def test_nine_of_sixteen() -> None:
    """A block of 9 granules is one of 16; a run of 9 is one of 9."""
    space = potad.Space(16 * 4096)
    assert space.alloc(9 * 4096) == 0
    assert space.used == 16 * 4096
    space.free(0)
    space.alloc_at(15 * 4096, 4096)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc(9 * 4096)
    error = caught.value
    assert (error.requested, error.available, error.largest) == (9 * 4096, 15 * 4096, 8 * 4096)
    assert error.reason == "fragmented"
    assert "65536" in str(error)
    assert space.alloc_run(9 * 4096) == 0
    space.check()


def test_nine_gigabytes_of_ten() -> None:
    space = potad.Space(10 * GIB)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc(9 * GIB)
    assert caught.value.reason == "fragmented"
    assert caught.value.largest == 8 * GIB
    assert space.alloc_run(9 * GIB) == 0


# ---- scenarios with names ----------------------------------------------------------------------


def test_optimistic() -> None:
    """One block of each order, from a space that is just large enough for all of them."""
    orders = 12
    space = potad.Space(((1 << orders) - 1) * 4096)
    for order in reversed(range(orders)):
        space.alloc(4096 << order)
    assert space.available == 0
    with pytest.raises(potad.OutOfSpace):
        space.alloc(1)
    space.check()


def test_pessimistic() -> None:
    """One block of each order, smallest first: each halves what is left, and fits."""
    orders = 12
    space = potad.Space(4096 << orders)
    for order in range(orders):
        space.alloc(4096 << order)
    assert space.free_blocks() == {4096: 1}
    space.alloc(1)
    assert space.available == 0
    space.check()


def test_pathological() -> None:
    """Every second granule in use: half is free, and no two granules together."""
    granules = 4096
    space = potad.Space(granules * 4096)
    blocks = space.alloc_many(4096, granules)
    blocks.sort()
    space.free_many(blocks[::2])
    assert space.available == space.size // 2
    assert space.free_blocks() == {4096: granules // 2}
    for call in (space.alloc, space.alloc_run):
        with pytest.raises(potad.OutOfSpace) as caught:
            call(8192)
        assert (caught.value.reason, caught.value.largest) == ("fragmented", 4096)
    assert space.unusable_free_index(8192) == 1.0
    assert space.unusable_free_index(4096) == 0.0
    assert len(space.alloc_scattered(space.available)) == granules // 2
    space.check()


def test_exhausted(rng: random.Random) -> None:
    """Filled to the last granule and freed in random order, again and again."""
    space = potad.Space(1000 * 4096, base=24 * 4096)
    whole = space.free_blocks()
    for _ in range(5):
        live: list[int] = []
        while space.available:
            size = min(rng.choice([1, 1, 2, 3, 5, 8]) * 4096, space.available)
            live += [start for start, _ in space.alloc_scattered(size)]
            if rng.random() < 0.2:
                space.free(live.pop(rng.randrange(len(live))))
        assert sum(found.size for found in space) == space.size
        rng.shuffle(live)
        for start in live:
            space.free(start)
        assert space.free_blocks() == whole
    space.check()


def test_an_exact_range() -> None:
    space = potad.Space(MIB, base=MIB)
    assert space.alloc_at(MIB + 12288, 20480) == MIB + 12288
    for address, size in [
        (MIB + 12288, 4096),
        (MIB + 8192, 8192),
        (MIB + 28672, 4096),
        (0, 4096),
        (2 * MIB - 4096, 8192),
        (3 * MIB, 4096),
    ]:
        with pytest.raises(potad.OutOfSpace) as caught:
            space.alloc_at(address, size)
        assert (caught.value.reason, caught.value.requested) == ("occupied", size)
    assert space.alloc_at(MIB, 12288) == MIB
    assert space.alloc_at(MIB + 32768, MIB - 32768) == MIB + 32768
    assert space.available == 0


def test_an_alignment_larger_than_the_size() -> None:
    space = potad.Space(8 * MIB, base=4096)
    assert space.alloc_run(4096, align=MIB) == MIB
    assert space.alloc_run(4096, align=MIB) == 2 * MIB
    assert space.alloc_run(4096, align=4 * MIB) == 4 * MIB
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_run(4096, align=16 * MIB)
    assert caught.value.reason == "fragmented"
    assert "16777216" in str(caught.value)
    # One that is neither a power of two nor a multiple of the granule.
    assert space.alloc_run(4096, align=1000) % (1000 * 512) == 0
    assert space.alloc_run(3 * 4096, align=5 * 4096) % (5 * 4096) == 0
    space.check()


def test_spans_with_holes() -> None:
    space = potad.Space(5 * 4096, base=3 * 4096)
    space.add(9 * 4096, 6 * 4096)
    space.add(1 << 50, 16 * 4096)
    assert space.spans() == [(3 * 4096, 5 * 4096), (9 * 4096, 6 * 4096), (1 << 50, 16 * 4096)]
    # What adjoins is one span, and one run may cross the seam.
    space.add(8 * 4096, 4096)
    assert space.spans()[0] == (3 * 4096, 12 * 4096)
    assert space.alloc_run(12 * 4096, within=(0, 1 << 49)) == 3 * 4096
    assert space.alloc(16 * 4096) == 1 << 50
    assert space.available == 0
    with pytest.raises(ValueError, match="start must be"):
        space.add(14 * 4096, 2 * 4096)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.remove(3 * 4096, 4096)
    assert caught.value.reason == "occupied"
    space.free(1 << 50)
    space.remove((1 << 50) + 4096, 4096)
    assert space.largest_free == 8 * 4096
    assert space.size == 27 * 4096
    space.check()


def test_runs_of_8_mib_from_the_best_pieces_there_are() -> None:
    """One whole 8 MiB, then two adjacent 4 MiB, down to eight adjacent pieces of 1 MiB."""
    space = potad.Space(64 * MIB)
    space.alloc_run(64 * MIB)
    for start, length in [(3, 8), (13, 9), (26, 10), (44, 12)]:
        space.free_range(start * MIB, length * MIB)
    for start in (48, 28, 14, 3):
        assert space.alloc_run(8 * MIB, align=MIB) == start * MIB
    with pytest.raises(potad.OutOfSpace):
        space.alloc_run(8 * MIB, align=MIB)
    space.check()


def test_retired_inside_a_larger_block() -> None:
    """A granule that fails in a block stays out of service when the block is freed."""
    space = potad.Space(MIB)
    assert space.alloc(MIB) == 0
    space.retire(40960)
    assert (space.used, space.available) == (MIB, 0)
    space.free(0)
    assert (space.used, space.available) == (0, MIB - 4096)
    assert space.largest_free == 512 * KIB
    with pytest.raises(potad.OutOfSpace):
        space.alloc_at(40960, 4096)
    everything = space.alloc_scattered(space.available)
    assert all(not start <= 40960 < start + size for start, size in everything)
    space.retire(40960)
    assert space.retired().tolist() == [40960]
    # Taken away and added again it is still bad; restored it is good.
    space.free_many([start for start, _ in everything])
    space.remove(0, MIB)
    assert space.retired().tolist() == []
    space.add(0, MIB)
    assert space.retired().tolist() == [40960]
    space.restore(0, MIB)
    assert space.alloc(MIB) == 0
    space.check()


def test_metadata_follows_use() -> None:
    space = potad.Space(GIB)
    empty = space.metadata_bytes
    blocks = space.alloc_many(4096, GIB // 4096)
    full = space.metadata_bytes
    assert empty < 8192
    # Where what is reserved and not touched is not counted.
    assert full < 0.35 * len(blocks) + 8192
    space.free_many(blocks)
    space.check()
