"""Two tables that are larger than memory, joined.

Orders and the items in them have a key in common. Both tables are cut into partitions by a hash of
the key, which live in a pool: what memory has no room for goes to a swap file, and comes back when
its partition's turn comes. Then each pair of partitions fits into memory and is joined there; while
one is, the next is read ahead. Known as the Grace hash join, of Kitsuregawa, Tanaka and Moto-oka,
1983.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import potad

MEMORY = 8 << 20
ORDERS, ITEMS = 400_000, 1_600_000
PARTITIONS = 32
BATCH = 50_000

ORDER = np.dtype([("order", "u8"), ("customer", "u4"), ("discount", "u4")])
ITEM = np.dtype([("order", "u8"), ("price", "u4"), ("count", "u4")])

Table = npt.NDArray[np.void]


def orders(rng: np.random.Generator, start: int, count: int) -> Table:
    table = np.zeros(count, ORDER)
    table["order"] = np.arange(start, start + count)
    table["customer"] = rng.integers(0, 1000, count)
    table["discount"] = rng.integers(0, 10, count)
    return table


def items(rng: np.random.Generator, count: int) -> Table:
    table = np.zeros(count, ITEM)
    table["order"] = rng.integers(0, ORDERS, count)
    table["price"] = rng.integers(1, 500, count)
    table["count"] = rng.integers(1, 4, count)
    return table


class Partitioned:
    """A table in partitions by its key, batch by batch."""

    def __init__(self, pool: potad.Pool, name: str, dtype: np.dtype[np.void]) -> None:
        self.pieces = pool.dict(owner=name)
        self.dtype = dtype
        self.batches = 0

    def add(self, table: Table) -> None:
        where = (table["order"] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(59)
        for number in range(PARTITIONS):
            self.pieces[f"{number}/{self.batches}"] = table[where == number]
        self.batches += 1

    def names(self, number: int) -> list[str]:
        return [f"{number}/{batch}" for batch in range(self.batches)]

    def partition(self, number: int) -> Table:
        pieces = [np.frombuffer(self.pieces[name], self.dtype) for name in self.names(number)]
        return np.concatenate(pieces)


def main() -> None:
    rng = np.random.default_rng(1983)
    with tempfile.TemporaryDirectory() as directory:
        swap = potad.SwapFile(Path(directory, "swap"), 256 << 20, keep=False)
        with swap, potad.Pool(memory=potad.Arena(MEMORY), swap=swap) as pool:
            left, right = Partitioned(pool, "orders", ORDER), Partitioned(pool, "items", ITEM)
            for start in range(0, ORDERS, BATCH):
                left.add(orders(rng, start, BATCH))
            for _ in range(0, ITEMS, BATCH):
                right.add(items(rng, BATCH))
            revenue = np.zeros(1000)
            for number in range(PARTITIONS):
                for table in (left, right):
                    table.pieces.will_need(
                        table.names(number + 1) if number + 1 < PARTITIONS else []
                    )
                build, probe = left.partition(number), right.partition(number)
                build = build[np.argsort(build["order"])]
                found = build[np.searchsorted(build["order"], probe["order"])]
                assert (found["order"] == probe["order"]).all()
                amount = probe["price"] * probe["count"] * (100 - found["discount"]) / 100
                revenue += np.bincount(found["customer"], amount, minlength=1000)
            tables = ORDERS * ORDER.itemsize + ITEMS * ITEM.itemsize
            print(f"joined {tables >> 20} MiB of tables in {MEMORY >> 20} MiB of memory")
            print(f"total revenue {revenue.sum():,.0f}, best customer {revenue.argmax()}")
            print(pool.stats())


if __name__ == "__main__":
    main()
