"""What other policies would keep, simulated: hit ratios by bytes of memory, not by entries.

Plain models, each as its authors describe it: least recently used; SIEVE (Zhang, Yang, Yue,
Vigfusson and Rashmi, NSDI 2024); ARC (Megiddo and Modha, FAST 2003), its lists and its target in
bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence


class Policy(ABC):
    """A cache of so many bytes that only knows which keys it has."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    @abstractmethod
    def request(self, key: int, size: int) -> bool:
        """Whether the key was there; it is now."""


class Lru(Policy):
    """Least recently used."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.kept: OrderedDict[int, int] = OrderedDict()
        self.size = 0

    def request(self, key: int, size: int) -> bool:
        if key in self.kept:
            self.kept.move_to_end(key)
            return True
        self.size += size
        while self.size > self.limit and self.kept:
            self.size -= self.kept.popitem(last=False)[1]
        self.kept[key] = size
        return False


class Sieve(Policy):
    """A hand that goes from old to new, and evicts what was not visited since it came by."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        # From new to old; a list is slow, and as its authors draw it.
        self.queue: list[int] = []
        self.sizes: dict[int, int] = {}
        self.visited: dict[int, bool] = {}
        self.hand: int | None = None
        self.size = 0

    def request(self, key: int, size: int) -> bool:
        if key in self.sizes:
            self.visited[key] = True
            return True
        self.size += size
        while self.size > self.limit and self.queue:
            self._evict()
        self.queue.insert(0, key)
        if self.hand is not None:
            self.hand += 1
        self.sizes[key], self.visited[key] = size, False
        return False

    def _evict(self) -> None:
        at = len(self.queue) - 1 if self.hand is None or self.hand < 0 else self.hand
        while self.visited[self.queue[at]]:
            self.visited[self.queue[at]] = False
            at = at - 1 if at else len(self.queue) - 1
        key = self.queue.pop(at)
        del self.visited[key]
        self.size -= self.sizes.pop(key)
        self.hand = at - 1 if at else None


class Arc(Policy):
    """Two lists of what was asked for once and more often, and two of what was evicted of each."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.target = 0
        names = ("once", "often", "once_gone", "often_gone")
        self.lists: dict[str, OrderedDict[int, int]] = {name: OrderedDict() for name in names}
        self.sizes = dict.fromkeys(names, 0)

    def _add(self, name: str, key: int, size: int) -> None:
        self.lists[name][key] = size
        self.sizes[name] += size

    def _take(self, name: str, key: int | None = None) -> tuple[int, int]:
        if key is None:
            key, size = self.lists[name].popitem(last=False)
        else:
            size = self.lists[name].pop(key)
        self.sizes[name] -= size
        return key, size

    def request(self, key: int, size: int) -> bool:
        lists, sizes = self.lists, self.sizes
        if key in lists["once"] or key in lists["often"]:
            self._take("once" if key in lists["once"] else "often", key)
            self._add("often", key, size)
            return True
        if key in lists["once_gone"]:
            share = max(sizes["often_gone"] / sizes["once_gone"], 1)
            self.target = min(self.limit, self.target + int(share * size))
            self._take("once_gone", key)
            self._replace(size, is_often_gone=False)
            self._add("often", key, size)
        elif key in lists["often_gone"]:
            share = max(sizes["once_gone"] / sizes["often_gone"], 1)
            self.target = max(0, self.target - int(share * size))
            self._take("often_gone", key)
            self._replace(size, is_often_gone=True)
            self._add("often", key, size)
        else:
            while lists["once_gone"] and sizes["once"] + sizes["once_gone"] + size > self.limit:
                self._take("once_gone")
            while lists["often_gone"] and sum(sizes.values()) + size > 2 * self.limit:
                self._take("often_gone")
            self._replace(size, is_often_gone=False)
            self._add("once", key, size)
        return False

    def _replace(self, size: int, is_often_gone: bool) -> None:
        sizes, lists = self.sizes, self.lists
        while sizes["once"] + sizes["often"] + size > self.limit:
            is_over = sizes["once"] > self.target
            is_at = is_often_gone and sizes["once"] == self.target
            name = "once" if lists["once"] and (is_over or is_at or not lists["often"]) else "often"
            self._add(f"{name}_gone", *self._take(name))


def hit_ratio(
    policy: Policy, before: Sequence[int], keys: Sequence[int], sizes: Sequence[int]
) -> float:
    """The share of hits among some requests, after others."""
    for key in before:
        policy.request(key, sizes[key])
    return sum(policy.request(key, sizes[key]) for key in keys) / len(keys)
