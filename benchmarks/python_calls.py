"""What calls from Python cost, beside peers from PyPI and a call that does nothing.

    python benchmarks/python_calls.py [ROW ...]

runs all rows or those named: `calls`, `many`, `lookup`, `kinds`, `arena`, `resident`, `replay`. It
needs the extra
`bench` (the peers) and for `replay` the extra `cli`.

A space of 2^18 granules of 4 KiB is half full of blocks of orders 0 to 9 with P(k) ~ 2^-k, which
is 4 KiB to 2 MiB, and 100,000 of them were replaced since it was filled. Every contender is first
shown to hand out what it says: blocks that lie inside the space and do not overlap, before and
after the timed work. Rounds of the contenders are interleaved. A ratio is that of the medians of
all rounds, loops included; behind it stands its range over single rounds, and whether it meets
its bar.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing.heap import Heap
from pathlib import Path
from typing import Any

import numpy as np
from figures import show, show_ratio, verdict

import potad
from potad._core import _Nothing

GRANULE = 4096
GRANULES = 1 << 18
SIZES = [GRANULE << order for order in range(10)]
CALLS = 20_000
ROUNDS = 21
BLOCKS = 100_000
SEED = 20_240_817

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_TRACE = REPOSITORY.parent / "shared" / "data" / "linux-compile.ftrace.xz"
BUNDLED_TRACE = REPOSITORY / "examples" / "traces" / "linux-numpy-thp.ftrace.xz"


# ---- contenders --------------------------------------------------------------------------------


class Contender(ABC):
    """An allocator as it is timed: its own two methods, bound, with nothing around them."""

    name: str
    unit: int = 1
    """Address units of the space in one unit of the sizes `alloc` takes."""
    alloc: Callable[[int], Any]
    free: Callable[[Any], object]

    @abstractmethod
    def address(self, handle: Any) -> int:
        """Where the block is that `alloc` returned, in its units."""


class Potad(Contender):
    name = "potad"

    def __init__(self) -> None:
        self.space = potad.Space(GRANULES * GRANULE, granule=GRANULE)
        self.alloc = self.space.alloc
        self.free = self.space.free

    def address(self, handle: int) -> int:
        return handle


class Tinygrad(Contender):
    """tinygrad's allocator of device memory, in Python."""

    name = "tinygrad"

    def __init__(self) -> None:
        from tinygrad.runtime.support.memory import TLSFAllocator

        allocator = TLSFAllocator(GRANULES * GRANULE, block_size=GRANULE)
        self.alloc = allocator.alloc
        self.free = allocator.free

    def address(self, handle: int) -> int:
        return handle


class Tlsf(Contender):
    """`tlsfallocator`, which is OffsetAllocator in C++. It counts in 32 bits, so in granules."""

    name = "tlsfallocator"
    unit = GRANULE

    def __init__(self) -> None:
        from TLSFAllocator import OffsetAllocator

        allocator = OffsetAllocator(GRANULES, GRANULES)
        self.alloc = allocator.allocate
        self.free = allocator.free

    def address(self, handle: Any) -> int:
        return int(handle.offset)


class Nothing(Contender):
    """A call of the binding that takes an integer and returns it."""

    name = "nothing"

    def __init__(self) -> None:
        self.alloc = self.free = _Nothing().identity

    def address(self, handle: int) -> int:
        return handle


# ---- the workload ------------------------------------------------------------------------------


def random_order(rng: random.Random) -> int:
    """Each order half as frequent as the one before."""
    order = 0
    while order < len(SIZES) - 1 and rng.getrandbits(1):
        order += 1
    return order


class Run:
    """A half-full contender, and the calls that are made on it."""

    def __init__(self, contender: Contender, seed: int) -> None:
        self.contender = contender
        self.rng = random.Random(seed)
        # The contender's size for each order: ten numbers that every call shares.
        self.sizes = [size // contender.unit for size in SIZES]
        self.live: list[Any] = []
        self.orders: list[int] = []
        left = GRANULES // 2
        while left > 0:
            order = random_order(self.rng)
            self.live.append(contender.alloc(self.sizes[order]))
            self.orders.append(order)
            left -= 1 << order
        for _ in range(5):
            self.time_churn()

    def verify(self) -> None:
        """That no two live blocks overlap, and none lies outside."""
        contender = self.contender
        blocks = sorted(
            (contender.address(handle) * contender.unit, SIZES[order])
            for handle, order in zip(self.live, self.orders, strict=True)
        )
        end = 0
        for start, size in blocks:
            assert start >= end, f"{contender.name}: {start:#x} is allocated twice"
            end = start + size
        assert end <= GRANULES * GRANULE, f"{contender.name}: {end:#x} is outside"

    def time_pairs(self) -> float:
        """Nanoseconds to allocate a block and free it."""
        alloc, free = self.contender.alloc, self.contender.free
        sizes = [self.sizes[random_order(self.rng)] for _ in range(CALLS)]
        start = time.perf_counter_ns()
        for size in sizes:
            free(alloc(size))
        return (time.perf_counter_ns() - start) / CALLS

    def time_churn(self) -> float:
        """Nanoseconds to free one of the live blocks, any, and allocate another."""
        alloc, free, live = self.contender.alloc, self.contender.free, self.live
        orders = [random_order(self.rng) for _ in range(CALLS)]
        sizes = [self.sizes[order] for order in orders]
        victims = [self.rng.randrange(len(live)) for _ in range(CALLS)]
        start = time.perf_counter_ns()
        for size, victim in zip(sizes, victims, strict=True):
            free(live[victim])
            live[victim] = alloc(size)
        elapsed = time.perf_counter_ns() - start
        for order, victim in zip(orders, victims, strict=True):
            self.orders[victim] = order
        return elapsed / CALLS


# ---- rows --------------------------------------------------------------------------------------


def calls() -> None:
    """One block at a time."""
    ours = Potad()
    runs = [Run(contender, SEED) for contender in (ours, Tlsf(), Tinygrad())]
    nothing = Run(Nothing(), SEED)
    for what, timing, bars in [
        ("alloc + free of that block", Run.time_pairs, (1.7, 1 / 4, 1 / 10)),
        ("free of any block + alloc", Run.time_churn, (1.7, 1 / 4, 1 / 10)),
    ]:
        print(f"\n{what}, mixed sizes, half full, ns for the two")
        for run in runs:
            run.verify()
        times: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for run in (*runs, nothing):
                times.setdefault(run.contender.name, []).append(timing(run))
        for run in runs:
            run.verify()
        ours.space.check()
        for name, values in times.items():
            show(name, values, "ns")
        for name, bar in zip(("nothing", "tlsfallocator", "tinygrad"), bars, strict=True):
            label = "two calls of nothing" if name == "nothing" else name
            show_ratio(f"potad to {label}", times["potad"], times[name], bar)


def many() -> None:
    """All at once."""
    run = Run(contender := Potad(), SEED)
    space = contender.space
    print(f"\nalloc_many + free_many of {BLOCKS:,} blocks in the same space, ns a block")
    run.verify()
    rng = np.random.default_rng(SEED)
    times: dict[str, list[float]] = {"freed in order": [], "freed in random order": []}
    for round_ in range(ROUNDS + 1):
        for name, values in times.items():
            start = time.perf_counter_ns()
            blocks = space.alloc_many(GRANULE, BLOCKS)
            elapsed = time.perf_counter_ns() - start
            assert len(np.unique(blocks)) == BLOCKS
            if name != "freed in order":
                rng.shuffle(blocks)
            start = time.perf_counter_ns()
            space.free_many(blocks)
            elapsed += time.perf_counter_ns() - start
            # The first round is the one that grows the metadata.
            if round_:
                values.append(elapsed / BLOCKS)
    run.verify()
    space.check()
    for name, values in times.items():
        bar = 15 if name == "freed in order" else None
        show(name, values, "ns", verdict(statistics.median(values), bar))


def lookup() -> None:
    """From an address anywhere inside an allocation to the allocation."""
    from intervaltree import IntervalTree
    from sortedcontainers import SortedKeyList

    run = Run(contender := Potad(), SEED)
    space = contender.space
    live = [(found.start, found.size) for found in space]
    starts = SortedKeyList(live, key=lambda block: block[0])
    tree = IntervalTree.from_tuples((start, start + size, start) for start, size in live)
    rng = np.random.default_rng(SEED)
    picked = rng.integers(len(live), size=CALLS)
    asked = [live[at][0] + int(rng.integers(live[at][1])) for at in picked]
    print(f"\nlookup of a random live address among {len(live):,} allocations, ns")
    run.verify()

    def by_bisect(address: int) -> Any:
        return starts[starts.bisect_key_right(address) - 1]

    for address, at in zip(asked, picked, strict=True):
        (interval,) = tree[address]
        found = space.lookup(address)
        assert found is not None
        assert (found.start, found.size) == live[at] == by_bisect(address)
        assert interval.begin == found.start
    contenders: list[tuple[str, Callable[[int], Any]]] = [
        ("potad", space.lookup),
        ("sortedcontainers, bisect", by_bisect),
        ("intervaltree", tree.__getitem__),
    ]
    times: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for _ in range(ROUNDS):
        for name, look in contenders:
            start = time.perf_counter_ns()
            for address in asked:
                look(address)
            times[name].append((time.perf_counter_ns() - start) / CALLS)
    for name, values in times.items():
        show(name, values, "ns")
    show_ratio("potad to bisect", times["potad"], times["sortedcontainers, bisect"], 0.2)
    show_ratio("potad to intervaltree", times["potad"], times["intervaltree"], 0.1)

    many = rng.choice(np.array(asked, dtype=np.uint64), 1_000_000)
    values = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        found_starts, _ = space.lookup_many(many)
        values.append((time.perf_counter_ns() - start) / len(many))
    assert (found_starts <= many).all()
    print("lookup_many of 1,000,000 random live addresses, ns each")
    show("potad", values, "ns", verdict(statistics.median(values), 40))


def kinds() -> None:
    """Allocating and freeing with a record of 360 bytes, and without."""
    run = Run(contender := Potad(), SEED)
    space = contender.space
    kind = potad.Kind("xfs_buf", record="V360")
    print("\nalloc + free of that block, with a kind of 360 bytes, ns for the two")
    run.verify()
    stay = [space.alloc(GRANULE, kind=kind) for _ in range(1000)]
    sizes = [SIZES[random_order(run.rng)] for _ in range(CALLS)]
    alloc, free = space.alloc, space.free
    without, with_kind = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for size in sizes:
            free(alloc(size))
        middle = time.perf_counter_ns()
        for size in sizes:
            free(alloc(size, kind=kind))
        with_kind.append((time.perf_counter_ns() - middle) / CALLS)
        without.append((middle - start) / CALLS)
    space.free_many(stay)
    space.check()
    show("without a kind", without, "ns")
    show("with one", with_kind, "ns")
    show_ratio("with one to without", with_kind, without, 1.6)


def arena() -> None:
    print("\nbuffers of 64 bytes to 1 MiB, allocated and freed, ns for the two")
    rng = random.Random(SEED)
    sizes = [int(2 ** rng.uniform(6, 20)) for _ in range(2000)]
    large = [size for size in sizes if size >= GRANULE]
    ours, heap = potad.Arena(1 << 30, granule=512), Heap()
    # Some that stay, so that neither is empty.
    kept = [(ours.alloc(size), heap.malloc(size)) for size in rng.sample(sizes, 500)]
    for size in sizes[:200]:
        buffer = ours.alloc(size)
        view = np.frombuffer(memoryview(buffer), np.uint8)
        view[:] = 1
        assert buffer.nbytes == size == view.sum()
        del view

    def with_arena(sizes: Sequence[int]) -> None:
        for size in sizes:
            ours.alloc(size).free()

    def with_heap(sizes: Sequence[int]) -> None:
        for size in sizes:
            heap.free(heap.malloc(size))

    def with_bytearray(sizes: Sequence[int]) -> None:
        for size in sizes:
            bytearray(size)

    times: list[list[float]] = [[], [], [], []]
    works = [(with_arena, sizes), (with_heap, sizes), (with_arena, large), (with_bytearray, large)]
    for _ in range(ROUNDS):
        for (work, given), rounds in zip(works, times, strict=True):
            before = time.perf_counter()
            work(given)
            rounds.append((time.perf_counter() - before) * 1e9 / len(given))
    del kept
    show("Arena", times[0], "ns")
    show("multiprocessing.heap.Heap", times[1], "ns")
    show("Arena, 4 KiB and up", times[2], "ns")
    show("bytearray, 4 KiB and up", times[3], "ns")
    show_ratio("Arena, to Heap", times[0], times[1], 0.2)
    show_ratio("Arena, to bytearray", times[2], times[3], 1.5)


def resident() -> None:
    print("\n1 GiB in an arena, nine tenths of it freed in random order, compacted")
    ratios = []
    for seed in range(3):
        program = RESIDENT.format(seed=seed)
        done = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        )
        live, kept = map(int, done.stdout.split())
        ratios.append(kept / live)
        print(f"  {live / 2**20:.0f} MiB live, {kept / 2**20:.0f} MiB resident")
    show("resident, of what is live", ratios, f"x, {verdict(max(ratios), 1.15)}")


RESIDENT = """
import random, re
import numpy as np
import potad

def resident():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1))

rng = random.Random({seed})
arena = potad.Arena(1 << 31)
buffers, left, seen = [], 1 << 30, {{}}
while left > 0:
    buffer = arena.alloc(int(2 ** rng.uniform(6, 20)))
    left -= buffer.descriptor.size
    buffers.append(buffer)
rng.shuffle(buffers)
# Python's own objects are there already: what follows is the arena's.
before = resident()
for number, buffer in enumerate(buffers):
    np.frombuffer(buffer, np.uint8)[:] = number % 251
for buffer in buffers[: len(buffers) * 9 // 10]:
    buffer.free()
arena.compact()
after = resident()
for number in range(len(buffers) * 9 // 10, len(buffers)):
    assert (np.frombuffer(buffers[number], np.uint8) == number % 251).all()
arena.space.check()
print(arena.space.used, after - before)
"""


def replay() -> None:
    """A recorded trace, from the compressed file to the report, in a process of its own."""
    trace, bar = (REAL_TRACE, 500_000) if REAL_TRACE.exists() else (BUNDLED_TRACE, None)
    print(f"\npotad replay {trace.name} --against none, decompression and all")
    command = [sys.executable, "-m", "potad.cli", "replay", str(trace)]
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run(
            [*command, "--against", "none", "--quiet", "--json", "-"],
            capture_output=True,
            check=True,
        )
        elapsed = time.perf_counter() - start
        (report,) = json.loads(result.stdout)
        rates.append(report["trace"]["events"] / elapsed)
    show("", rates, "events/s", verdict(statistics.median(rates), bar, at_most=False))


ROWS = {
    "calls": calls,
    "many": many,
    "lookup": lookup,
    "kinds": kinds,
    "arena": arena,
    "resident": resident,
    "replay": replay,
}


def main(names: Sequence[str]) -> int:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        print(f"no row {unknown[0]!r}: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    print(f"potad {potad.__version__}, Python {sys.version.split()[0]}, seed {SEED}")
    for name in names or ROWS:
        ROWS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
