"""Dataclasses as plain data and back: what goes through JSON, looked at piece by piece.

Plain data are dicts with texts for keys, lists, texts, numbers and None. Types of fields may be
int, float, str, dataclasses of such fields, `tuple[X, ...]`, `dict[int, X]` and `X | None`. All
numbers here are sizes, counts, times and shares: from 0 to 2^64, which is as large as a space can
be.

Whoever reads does not trust who wrote. A field that is missing, one that is not known, and a
value of another type are all a `ValueError` that says where it is: a change of fields is a change
of version.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from potad.usage import short

NUMBER_MAX = 1 << 64

_DIGITS = re.compile(r"\d{1,20}", re.ASCII)

T = TypeVar("T")


def write(value: Any) -> Any:
    """The plain data of a dataclass, or of a value that may stand in one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: write(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [write(item) for item in value]
    if isinstance(value, dict):
        return {str(key): write(item) for key, item in value.items()}
    return value


def read(kind: type[T], data: object, where: str = "") -> T:
    """The dataclass that plain data stand for; `where` is what errors call it.

    Raises `ValueError` for anything else.
    """
    where = where or kind.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {short(data)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    for name in data:
        if name not in hints:
            raise ValueError(f"{where} has a field that is not known: {short(name)}")
    values = {}
    for name, hint in hints.items():
        if name not in data:
            raise ValueError(f"{where} has no field {name!r}")
        values[name] = _read(hint, data[name], f"{where}.{name}")
    return kind(**values)


def _read(hint: Any, data: object, where: str) -> Any:
    if hint is int:
        # A bool is an int to Python and to nobody else.
        if type(data) is int and 0 <= data <= NUMBER_MAX:
            return data
        raise ValueError(f"{where} must be a whole number from 0 to 2^64, not {short(data)}")
    if hint is float:
        if type(data) in (int, float) and 0 <= data <= NUMBER_MAX:  # type: ignore[operator]
            return float(data)  # type: ignore[arg-type]
        raise ValueError(f"{where} must be a number from 0 to 2^64, not {short(data)}")
    if hint is str:
        if isinstance(data, str):
            return data
        raise ValueError(f"{where} must be a text, not {short(data)}")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (some,) = (it for it in arguments if it is not types.NoneType)
        return None if data is None else _read(some, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} must be a list, not {short(data)}")
        return tuple(_read(arguments[0], item, f"{where}[{at}]") for at, item in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where} must be an object, not {short(data)}")
        return {_key(key, where): _read(arguments[1], it, where) for key, it in data.items()}
    return read(hint, data, where)


def _key(key: object, where: str) -> int:
    """The number that a key of an object stands for: JSON has only texts there."""
    if not isinstance(key, str) or not _DIGITS.fullmatch(key) or int(key) > NUMBER_MAX:
        raise ValueError(f"{where} has a key that is no number up to 2^64: {short(key)}")
    return int(key)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields, which annotations only name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
