"""A mapping whose values live in a pool: the shape that spill layers have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from potad._core import Kind
from potad.arguments import readable
from potad.errors import Busy
from potad.pool.handle import Handle, Pin

if TYPE_CHECKING:
    from potad.pool.pool import Pool


class PoolDict(MutableMapping[str, Any]):
    """A dictionary from texts to bytes that live in a pool; made by `Pool.dict`.

    What is set is copied, so it may be changed afterwards; what is got is a copy, as `bytes`. `pin`
    shows a value where it lies instead. A value that is replaced or deleted while somebody sees it
    stays until he lets it go. Safe to use from many threads, as a dictionary is.

    >>> import tempfile, potad
    >>> directory = tempfile.TemporaryDirectory()
    >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
    >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
    ...     texts = pool.dict()
    ...     texts["greeting"] = b"hello"
    ...     texts["greeting"], len(texts), "other" in texts
    (b'hello', 1, False)
    >>> directory.cleanup()
    """

    def __init__(self, pool: Pool, kind: Kind | None, owner: Any) -> None:
        self._pool = pool
        self._kind = kind
        self._owner = owner
        # Nothing has no object.
        self._handles: dict[str, Handle | None] = {}

    def __getitem__(self, key: str) -> bytes:
        handle = self._handles[key]
        if handle is None:
            return b""
        with handle.pin(write=False) as view:
            return bytes(view)

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"a key must be a text, not {key!r}")
        view = readable("value", value)
        handle = None
        if view.nbytes:
            handle = self._pool.alloc(view.nbytes, kind=self._kind, owner=self._owner)
            with handle.pin() as room:
                room[:] = view
        _let_go(self._handles.get(key))
        self._handles[key] = handle

    def __delitem__(self, key: str) -> None:
        _let_go(self._handles.pop(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, key: object) -> bool:
        # Without getting the value, as the mixin would.
        return key in self._handles

    def pin(self, key: str, write: bool = False) -> Pin | contextlib.nullcontext[memoryview]:
        """A context in which a value can be seen where it lies; see `Handle.pin`.

        Arguments:
            key: of the value.
            write: whether it can be written to.

        Returns: a context manager whose value is a `memoryview`.

        Raises: KeyError, if there is no such value; and what `Handle.pin` does.

        Takes as long as `Handle.pin`.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     texts = pool.dict()
        ...     texts["greeting"] = b"hello"
        ...     with texts.pin("greeting") as view:
        ...         view[0]
        104
        >>> directory.cleanup()
        """
        handle = self._handles[key]
        return contextlib.nullcontext(memoryview(b"")) if handle is None else handle.pin(write)

    def nbytes(self, key: str) -> int:
        """How many bytes a value has, without getting it; KeyError if there is none."""
        handle = self._handles[key]
        return 0 if handle is None else handle.nbytes

    def will_need(self, keys: Any) -> int:
        """Has values read ahead of need; see `Pool.will_need`."""
        handles = [handle for key in keys if (handle := self._handles.get(key)) is not None]
        return self._pool.will_need(handles)

    def __repr__(self) -> str:
        return f"<potad.PoolDict of {len(self)} values in {self._pool!r}>"


def _let_go(handle: Handle | None) -> None:
    """Frees an object, now or when nobody sees it any more."""
    if handle is not None:
        with contextlib.suppress(Busy, ValueError):
            handle.free()
