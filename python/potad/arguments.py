"""Arguments of the package's own calls: numbers, flags, and bytes as flat views of them.

Errors name the argument and its value.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt


def readable(name: str, data: Any) -> memoryview:
    """A flat view of the bytes of anything with the buffer protocol."""
    if isinstance(data, np.ndarray):
        return _of_array(name, np.asarray(data))
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
    if "O" in view.format:
        return _of_array(name, np.asarray(view))
    # A view's own `cast` refuses what has fields, and other formats.
    return np.frombuffer(view, np.uint8).data


def _of_array(name: str, array: npt.NDArray[Any]) -> memoryview:
    """As `readable`; also of dates and times, which have no buffer of their own."""
    if array.dtype.hasobject:
        # Their bytes are addresses, which mean nothing to whoever reads them.
        raise TypeError(f"{name} must be an array of values, but {array.dtype} has objects")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous")
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def writable(name: str, data: Any) -> memoryview:
    """A flat view of the bytes of anything with the buffer protocol that may be written to."""
    view = readable(name, data)
    if view.readonly and view.nbytes:
        raise ValueError(f"{name} must be writable")
    return view


def whole(name: str, value: Any) -> int:
    """A number from 0 to 2^63 - 1, which is as far as files go, and memory."""
    try:
        # Exactly an `int`, whatever a subclass does.
        number = int.__index__(operator.index(value))
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer, not {value!r} of type {kind}") from None
    if not 0 <= number < 1 << 63:
        raise OverflowError(f"{name} must be from 0 to 2**63 - 1, not {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)
