"""What callers hand in as bytes, as flat views of it."""

from __future__ import annotations

from typing import Any

import numpy as np


def readable(name: str, data: Any) -> memoryview:
    """A flat view of the bytes of anything with the buffer protocol."""
    try:
        view = memoryview(data)
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"{name} must have the buffer protocol, not be a {kind}") from None
    if view.ndim == 1 and view.format == "B" and view.contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError(f"{name} must be contiguous")
    if not view.nbytes:
        return memoryview(b"")
    # A view's own `cast` refuses what has fields, and other formats.
    return np.frombuffer(view, np.uint8).data


def writable(name: str, data: Any) -> memoryview:
    """A flat view of the bytes of anything with the buffer protocol that may be written to."""
    view = readable(name, data)
    if view.readonly and view.nbytes:
        raise ValueError(f"{name} must be writable")
    return view
