"""What a pool and its swap file cost, beside peers from PyPI, `dd`, and other policies.

    python benchmarks/pools.py [ROW ...]

runs all rows or those named: `zipf`, `hits`, `sequential`, `blocks`. It needs the extra `bench`,
and some gigabytes of disk where temporary files go.

`zipf` and `hits`: 512 MiB of objects of 4 KiB to 4 MiB, evenly in their logarithm, and memory for a
quarter of them. Requests are for objects by Zipf's law with 0.9, three quarters of them reads. A
read has the whole object in memory at its end, and looks at both ends of it. A write replaces all
of it, from a buffer that its producer uses again: whoever keeps the object has a copy of his own.
Peers are `zict.File` under a `zict.Buffer`, which keeps what was used least recently out of so much
memory, and `diskcache`, which keeps all of it in files. Every contender is first shown to return
what was written, and at the end again, all of it. Rounds are interleaved.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import show, show_ratio, verdict
from policies import Arc, Lru, Policy, Sieve, hit_ratio

import potad

KIB, MIB = 1 << 10, 1 << 20
SEED = 20_261_125
WORKING_SET = 512 * MIB
MEMORY = WORKING_SET // 4
REQUESTS = 4_000
ROUNDS = 7
EXPONENT = 0.9
READS = 0.75
VARIANTS = 3

Request = tuple[int, int | None]
"""The number of an object, and which variant is written to it; None to read it."""


# ---- the load ----------------------------------------------------------------------------------


class Load:
    """Objects and requests, the same for all contenders."""

    def __init__(self) -> None:
        rng = random.Random(SEED)
        steps = [
            int(scale * size) for size in (4 * KIB << i for i in range(10)) for scale in (1, 1.5)
        ]
        self.steps = [*steps, 4 * MIB]
        self.contents = {
            size: [memoryview(bytearray(rng.randbytes(size))) for _ in range(VARIANTS)]
            for size in self.steps
        }
        self.sizes: list[int] = []
        while sum(self.sizes) < WORKING_SET:
            self.sizes.append(rng.choice(self.steps))
        # Which object is how popular has nothing to do with its size or when it was made.
        weights = 1 / np.arange(1, len(self.sizes) + 1) ** EXPONENT
        rng.shuffle(ranks := list(range(len(self.sizes))))
        self.popularity = (weights / weights.sum())[ranks]
        self.variants = [rng.randrange(VARIANTS) for _ in self.sizes]
        self._rng = np.random.default_rng(SEED)

    def requests(self, count: int) -> list[Request]:
        """The next requests. A write writes something else than there is."""
        keys = self._rng.choice(len(self.sizes), count, p=self.popularity)
        reads = self._rng.random(count) < READS
        made: list[Request] = []
        for key, is_read in zip(map(int, keys), reads, strict=True):
            if is_read:
                made.append((key, None))
            else:
                self.variants[key] = (self.variants[key] + 1) % VARIANTS
                made.append((key, self.variants[key]))
        return made


class Contender(ABC):
    """A store of objects by number."""

    name: str

    @abstractmethod
    def write(self, key: int, content: memoryview) -> None:
        """Replaces an object."""

    @abstractmethod
    def read(self, key: int) -> tuple[int, int]:
        """Has an object in memory; its first and last byte."""

    @abstractmethod
    def get(self, key: int) -> bytes:
        """An object."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""

    def run(self, load: Load, requests: Sequence[Request]) -> float:
        """Seconds for requests."""
        contents, sizes, write, read = load.contents, load.sizes, self.write, self.read
        start = time.perf_counter()
        for key, variant in requests:
            if variant is None:
                read(key)
            else:
                write(key, contents[sizes[key]][variant])
        return time.perf_counter() - start

    def verify(self, load: Load, variants: Sequence[int]) -> None:
        """Fails unless all is as it was written last."""
        for key, (size, variant) in enumerate(zip(load.sizes, variants, strict=True)):
            if self.get(key) != load.contents[size][variant]:
                raise AssertionError(f"{self.name}: object {key} is wrong")


class PoolContender(Contender):
    name = "potad.Pool"

    def __init__(self, directory: Path, load: Load) -> None:
        self.swap = potad.SwapFile(directory / "pool", 2 * WORKING_SET, keep=False)
        self.pool = potad.Pool(memory=potad.Arena(MEMORY), swap=self.swap)
        self.handles: list[potad.Handle] = []
        for key, size in enumerate(load.sizes):
            self.handles.append(self.pool.alloc(size))
            self.write(key, load.contents[size][load.variants[key]])

    def write(self, key: int, content: memoryview) -> None:
        with self.handles[key].pin() as view:
            view[:] = content

    def read(self, key: int) -> tuple[int, int]:
        with self.handles[key].pin(write=False) as view:
            return view[0], view[-1]

    def get(self, key: int) -> bytes:
        with self.handles[key].pin(write=False) as view:
            return bytes(view)

    def close(self) -> None:
        self.pool.check()
        self.pool.close()
        self.swap.unlink()


class Mapping(Contender):
    """A mapping from texts to bytes."""

    store: Any

    def fill(self, load: Load) -> None:
        for key, size in enumerate(load.sizes):
            self.write(key, load.contents[size][load.variants[key]])

    def write(self, key: int, content: memoryview) -> None:
        self.store[str(key)] = bytes(content)

    def read(self, key: int) -> tuple[int, int]:
        content = self.store[str(key)]
        return content[0], content[-1]

    def get(self, key: int) -> bytes:
        return bytes(self.store[str(key)])


class Zict(Mapping):
    name = "zict.File under LRU"

    def __init__(self, directory: Path, load: Load) -> None:
        import zict

        file = zict.File(directory / "zict")
        self.store = zict.Buffer({}, file, MEMORY, weight=lambda key, content: len(content))
        self.fill(load)

    def close(self) -> None:
        self.store.close()


class DiskCache(Mapping):
    name = "diskcache"

    def __init__(self, directory: Path, load: Load) -> None:
        import diskcache

        self.store = diskcache.Cache(
            str(directory / "diskcache"), eviction_policy="none", size_limit=1 << 40
        )
        self.fill(load)

    def close(self) -> None:
        self.store.close()


# ---- rows --------------------------------------------------------------------------------------


def zipf(directory: Path) -> None:
    """Reads and writes of a working set of four times the memory."""
    load = Load()
    contenders: list[Contender] = [
        make(directory, load) for make in (PoolContender, Zict, DiskCache)
    ]
    print(f"\nzipf, {len(load.sizes):,} objects, {REQUESTS:,} requests a round, ms")
    times: dict[str, list[float]] = {it.name: [] for it in contenders}
    for number in range(ROUNDS + 1):
        before = list(load.variants)
        requests = load.requests(REQUESTS)
        if number == 0:
            for it in contenders:
                it.verify(load, before)
        for it in contenders:
            took = it.run(load, requests)
            # The first round brings each to how it will be.
            if number:
                times[it.name].append(took * 1e3)
    for it in contenders:
        it.verify(load, load.variants)
        it.close()
    for name, values in times.items():
        show(name, values, "ms")
    ours = times[PoolContender.name]
    show_ratio("potad to zict.File", ours, times[Zict.name], 0.5)
    show_ratio("potad to diskcache", ours, times[DiskCache.name], 0.8)


def hits(directory: Path) -> None:
    """How many requests find their object in memory."""
    load = Load()
    filling = range(len(load.sizes))
    warm = [key for key, _ in load.requests(4 * REQUESTS)]
    keys = [key for key, _ in load.requests(4 * REQUESTS)]
    ours = PoolContender(directory, load)
    for key in warm:
        ours.read(key)
    before = ours.pool.stats()
    for key in keys:
        ours.read(key)
    after = ours.pool.stats()
    ours.close()
    found = (after.hits - before.hits) / len(keys)
    print(f"\nhits, {len(keys):,} requests, share that found their object in memory")
    policies: list[Policy] = [Lru(MEMORY), Sieve(MEMORY), Arc(MEMORY)]
    ratios = {
        type(policy).__name__: hit_ratio(policy, [*filling, *warm], keys, load.sizes)
        for policy in policies
    }
    for name, ratio in {"potad.Pool": found, **ratios}.items():
        print(f"  {name:<34} {ratio:>12.4f}")
    short = max(ratios.values()) - found
    print(f"  {'short of the best by':<34} {short:>12.4f} {'':<37} {verdict(short, 0.03)}")


def dd(*arguments: str) -> float:
    """Seconds that dd takes."""
    start = time.perf_counter()
    subprocess.run(["dd", "bs=1M", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def sequential(directory: Path) -> None:
    """1 GiB out and in again, in objects of 1 MiB, through a pool of 64 MiB."""
    count = 1024
    content = random.Random(SEED).randbytes(MIB)
    for mode in ("cached", "direct"):
        print(f"\nsequential, {mode}, 1 GiB in objects of 1 MiB, MiB/s")
        rates: dict[str, list[float]] = {}
        for _ in range(5):
            path = directory / "dd"
            flags = (["oflag=direct"], ["iflag=direct"]) if mode == "direct" else ([], [])
            took = {
                "dd out": dd("if=/dev/zero", f"of={path}", f"count={count}", *flags[0]),
                "dd in": dd(f"if={path}", "of=/dev/null", *flags[1]),
            }
            path.unlink()
            swap = potad.SwapFile(
                directory / "swap", 2 * count * MIB, keep=False, direct=mode == "direct"
            )
            pool = potad.Pool(memory=potad.Arena(64 * MIB), swap=swap)
            start = time.perf_counter()
            handles = []
            for number in range(count):
                handles.append(pool.alloc(MIB))
                with handles[-1].pin() as view:
                    view[:] = content
                    view[:8] = number.to_bytes(8, "little")
            pool.flush()
            took["potad out"] = time.perf_counter() - start
            start = time.perf_counter()
            for number, handle in enumerate(handles):
                if number % 16 == 0:
                    pool.will_need(handles[number + 1 : number + 17])
                with handle.pin(write=False) as view:
                    if int.from_bytes(view[:8], "little") != number:
                        raise AssertionError(f"object {number} is wrong")
            took["potad in"] = time.perf_counter() - start
            pool.close()
            swap.unlink()
            for name, seconds in took.items():
                rates.setdefault(name, []).append(count / seconds)
        for name, values in rates.items():
            show(name, values, "MiB/s")
        for way in ("out", "in"):
            show_ratio(
                f"potad to dd, {way}", rates[f"potad {way}"], rates[f"dd {way}"], 0.8, at_most=False
            )


def blocks(directory: Path) -> None:
    """What the file takes of the disk after nine in ten slots were freed."""
    print("\nblocks, bytes on the disk for a live byte, table included, after freeing 90 %")
    rng = random.Random(SEED)
    for name, sizes in [
        ("4 KiB to 4 MiB", [4 * KIB << i for i in range(11)]),
        ("4 KiB", [4 * KIB]),
    ]:
        with potad.SwapFile(directory / "blocks", 1 << 32) as swap:
            count = 256 * MIB // (sum(sizes) // len(sizes))
            slots = swap.write_many(rng.randbytes(rng.choice(sizes)) for _ in range(count))
            rng.shuffle(slots)
            live = slots[: count // 10]
            for slot in slots[count // 10 :]:
                swap.free(slot)
            os.sync()
            ratio = swap.disk_size / sum(map(swap.length, live))
            swap.unlink()
        print(f"  {name:<34} {ratio:>12.3f} {'':<24} {'x':<12} {verdict(ratio, 1.1)}")


ROWS: dict[str, Callable[[Path], None]] = {
    "zipf": zipf,
    "hits": hits,
    "sequential": sequential,
    "blocks": blocks,
}


def main(names: Sequence[str]) -> int:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        print(f"no row {unknown[0]!r}: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    print(f"potad {potad.__version__}, Python {sys.version.split()[0]}, seed {SEED}")
    for name in names or ROWS:
        directory = Path(tempfile.mkdtemp())
        try:
            ROWS[name](directory)
        finally:
            shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
