"""Kinds and owners for tests of what is known about allocations."""

from __future__ import annotations

from typing import Any

import numpy as np

import potad

XFS_BUF = potad.Kind("xfs_buf", record=np.dtype([("daddr", "u8"), ("state", "S352")]))
PAGE = potad.Kind("page", record="u8", movable=True)
PLAIN = potad.Kind("plain")
KINDS = [None, XFS_BUF, PAGE, PLAIN]


class Owner:
    """Something that owns memory and is told of its failure."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.failures: list[potad.Failure] = []

    def on_memory_failure(self, failure: potad.Failure) -> Any:
        self.failures.append(failure)
        return self.answer(failure) if callable(self.answer) else self.answer


def found(space: potad.Space, address: int) -> potad.Descriptor:
    descriptor = space.lookup(address)
    assert descriptor is not None
    return descriptor
