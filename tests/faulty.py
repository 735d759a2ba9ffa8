"""A system whose n-th call of a kind fails, does less than it is asked to, or is interrupted."""

from __future__ import annotations

import errno
import os
from typing import Any

from potad.swap.file import System

CALLS = (
    "open", "fstat", "lstat", "fchmod", "unlink",
    "pread", "preadv", "pwritev", "fdatasync", "ftruncate", "punch_hole",
)  # fmt: skip


class Faulty(System):
    """Lets one call of a kind fail, or all from it on until it is mended."""

    def __init__(self, call: str = "", number: int = 0, fault: Any = None, lasts: bool = False):
        self.counts = dict.fromkeys(CALLS, 0)
        # Calls are counted, and fail, only then.
        self.is_on = True
        self.has_failed = False
        self.is_failing = False
        for name in CALLS:
            ours = number if name == call else 0
            setattr(self, name, self._wrapped(name, getattr(System, name), ours, fault, lasts))

    def _wrapped(self, name: str, real: Any, number: int, fault: Any, lasts: bool) -> Any:
        def called(*arguments: Any) -> Any:
            if not self.is_on:
                return real(*arguments)
            self.counts[name] += 1
            if number and (self.counts[name] == number or self.is_failing):
                self.has_failed = True
                self.is_failing = lasts
                return fault(real, *arguments)
            return real(*arguments)

        return called


def failing(number: int) -> Any:
    def fault(real: Any, *arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fault


def interrupted(real: Any, *arguments: Any) -> Any:
    raise KeyboardInterrupt


def interrupted_behind(real: Any, *arguments: Any) -> Any:
    result = real(*arguments)
    if real is os.open:
        os.close(result)
    raise KeyboardInterrupt


def some_bytes(real: Any, descriptor: int, what: Any, offset: int) -> Any:
    """As much as is asked for less the half of it, as where a signal comes in between."""
    if isinstance(what, int):
        return real(descriptor, max(what // 2, 1), offset)
    size = max(sum(view.nbytes for view in what) // 2, 1)
    views = []
    for view in what:
        views.append(view[: min(view.nbytes, size)])
        size -= views[-1].nbytes
    return real(descriptor, views, offset)


def some_bytes_and_no_more(real: Any, *arguments: Any) -> Any:
    """Half of it is written, and then the call fails: as one that is tried again may."""
    some_bytes(real, *arguments)
    raise OSError(errno.EIO, os.strerror(errno.EIO))
