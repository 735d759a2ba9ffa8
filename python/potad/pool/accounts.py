"""What a pool's objects come to, by kind and owner."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from potad._core import Kind
from potad.pool.stats import Account, PoolUsage
from potad.relocation import Why
from potad.usage import short

# Groups without objects that are kept, for what happened to them.
_EMPTY_MAX = 1000


class Group:
    """The objects of one kind and one owner, who is not kept alive as far as that is possible."""

    __slots__ = ("_owner", "account", "kind", "pinned", "pinned_size")

    def __init__(self, kind: Kind, owner: Any) -> None:
        self.kind = kind
        self.account = Account(kind.name, "-" if owner is None else short(owner))
        # Objects that are pinned, and what they come to.
        self.pinned = 0
        self.pinned_size = 0
        try:
            self._owner: Any = weakref.ref(owner)
        except TypeError:
            # Texts and numbers.
            self._owner = lambda: owner

    @property
    def owner(self) -> Any:
        """Whose objects these are; None if it is no more."""
        return self._owner()


class Accounts:
    """The groups of a pool, guarded by its lock."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int], Group] = {}
        # Of owners that are no more, where another object has come to be, as long as objects of
        # theirs have not been put away.
        self._displaced: list[Group] = []

    def group(self, kind: Kind, owner: Any) -> Group:
        """The group for a new object."""
        key = id(kind), id(owner)
        found = self._groups.get(key)
        if found is None or found.owner is not owner:
            if found is not None and found.account.objects:
                self._displaced.append(found)
            self._drop_empty()
            found = self._groups[key] = Group(kind, owner)
        return found

    def _drop_empty(self) -> None:
        """What is over is interesting for a while."""
        if len(self._groups) + len(self._displaced) > 2 * _EMPTY_MAX:
            live = [it for it in self._displaced if it.account.objects]
            self._displaced = live
            empty = [key for key, it in self._groups.items() if not it.account.objects]
            for key in empty[:_EMPTY_MAX]:
                del self._groups[key]

    def _all(self) -> Iterator[Group]:
        yield from self._groups.values()
        yield from self._displaced

    def pinned(self) -> Iterator[tuple[Kind, Any, Why, int, int]]:
        """What is pinned, by kind and owner."""
        for it in self._all():
            if it.pinned:
                yield it.kind, it.owner, "pinned", it.pinned, it.pinned_size

    def rows(self) -> tuple[PoolUsage, ...]:
        """All of them, the largest first."""
        accounts = [it.account for it in self._all()]
        accounts.sort(key=lambda it: (it.bytes, it.hits + it.faults), reverse=True)
        return tuple(it.snapshot() for it in accounts)
