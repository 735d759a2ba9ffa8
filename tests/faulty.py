"""A system whose n-th call fails, or does less than it was asked to."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

from potad.swap.file import System

CALLS = ("open", "pread", "preadv", "pwritev", "fdatasync", "ftruncate", "punch_hole")


class Faulty(System):
    """Fails the n-th of the calls that are counted, or all from it on; made anew for each run."""

    def __init__(
        self, call: str, number: int, error: int | None, *, for_good: bool = False
    ) -> None:
        self.call = call
        self.number = number
        # None for a call that is done in part.
        self.error = error
        self.for_good = for_good
        self.is_on = True
        self.counts: Counter[str] = Counter()
        self.failed = 0
        for name in CALLS:
            setattr(self, name, self._counted(name, getattr(System, name)))

    def _counted(self, name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if not self.is_on or name != self.call:
                return real(*arguments)
            self.counts[name] += 1
            count = self.counts[name]
            if count < self.number or (count > self.number and not self.for_good):
                return real(*arguments)
            self.failed += 1
            if self.error is not None:
                raise OSError(self.error, errno.errorcode[self.error])
            return real(*self._less(name, arguments))

        return call

    @staticmethod
    def _less(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same call for half of the bytes, as far as it has any."""
        descriptor, what, *rest = arguments
        if name == "pread":
            return descriptor, max(what // 2, 1), *rest
        size = sum(it.nbytes for it in what)
        left = max(size // 2, 1)
        buffers = []
        for it in what:
            buffers.append(it[:left])
            left -= buffers[-1].nbytes
        return descriptor, [it for it in buffers if it.nbytes], *rest
