"""What a user has of an object: a handle, and pins."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from potad._core import Kind
from potad.arguments import flag
from potad.failure import Failure

if TYPE_CHECKING:
    from potad.pool.core import Core
    from potad.pool.object import Held, Object


class Handle:
    """An object of a pool, made by `Pool.alloc`: in memory while it is pinned, and otherwise
    anywhere.

    It goes back when it is freed, or when the handle is collected.

    >>> import tempfile, potad
    >>> directory = tempfile.TemporaryDirectory()
    >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
    >>> pool = potad.Pool(memory=potad.Arena(1 << 20), swap=swap)
    >>> handle = pool.alloc(1000, owner="me")
    >>> with handle.pin() as view:
    ...     view[:3] = b"abc"
    >>> with handle.pin(write=False) as view:
    ...     bytes(view[:3]), handle.nbytes, handle.owner
    (b'abc', 1000, 'me')
    >>> pool.close(); swap.close(); directory.cleanup()
    """

    __slots__ = ("__weakref__", "_core", "_object", "_owner")

    def __init__(self, core: Core, it: Object, owner: Any) -> None:
        self._core = core
        self._object = it
        self._owner = owner

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self._object.nbytes

    @property
    def owner(self) -> Any:
        """Whose it is: who is told if it is lost."""
        return self._owner

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return self._object.kind

    @property
    def pins(self) -> int:
        """How often it is pinned."""
        return self._object.pins

    @property
    def resident(self) -> bool:
        """Whether it is in memory now."""
        return self._object.buffer is not None

    @property
    def lost(self) -> bool:
        """Whether its bytes are lost, so that it can only be freed."""
        return self._object.lost is not None

    @property
    def freed(self) -> bool:
        """Whether it was freed."""
        return self._object.is_dead

    @property
    def record(self) -> np.ndarray[Any, Any] | None:
        """Its descriptor's record, in place, if its kind has one. It goes with the object.

        Raises `ValueError` unless the object is pinned: only then does it stay where it is.
        """
        it = self._object
        with self._core.lock:
            if not it.pins or it.buffer is None:
                raise ValueError("an object's record can be seen while it is pinned")
            return it.buffer.descriptor.record

    def pin(self, write: bool = True) -> Pin:
        """A context in which the object is in memory and stays where it is; its value is a view.

        Pins nest, on any threads. What a view was taken further to, such as an array or a slice,
        may outlive the context; the object stays in memory as long as there is one. The view itself
        is released with the context. So what keeps only the view, as `torch.frombuffer(view)` does,
        must not outlive it; made of `view.obj` instead, it may.

        Arguments:
            write: whether the view can be written to. If not, the object need not be written to the
                swap file again for this pin.

        Returns: a context manager, to be entered once at a time; its value is a `memoryview` of
            bytes.

        Raises, when it is entered:
            OutOfSpace: everything else is pinned; `in_the_way` says whose it is.
            Poisoned: the object is lost, to a failure of memory or of the swap file.
            OSError: it cannot be read from the swap file, or others not be written there.
            ValueError: the object was freed, or the pool closed.

        Takes about a microsecond if it is in memory; otherwise as long as to read it, and to write
        what has to go for it.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     handle = pool.alloc(3)
        ...     with handle.pin() as view:
        ...         view[:] = b"abc"
        ...         handle.pins
        1
        >>> directory.cleanup()
        """
        return Pin(self, flag("write", write))

    def free(self) -> None:
        """Frees the object.

        Raises:
            Busy: it is pinned, or seen by what a view was taken further to.
            ValueError: it was freed before, or the pool is closed.

        Takes some microseconds, and a system call if it has a slot.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     pool.alloc(3).free()
        ...     len(pool)
        0
        >>> directory.cleanup()
        """
        self._core.free(self._object)

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        it = self._object
        state = "in memory" if it.buffer is not None else "swapped out"
        state = "freed" if it.is_dead else "lost" if it.lost is not None else state
        return f"<potad.Handle of {it.nbytes} bytes, {state}>"

    def __del__(self) -> None:
        # On any thread, at any moment: it is only noted here.
        core, it = self._core, self._object
        if not it.is_dead:
            core.dead.append(it)
            core.worker.wake()


class Pin:
    """An object in memory, from when this context is entered until it is left."""

    __slots__ = ("_handle", "_held", "_write")

    def __init__(self, handle: Handle, write: bool) -> None:
        self._handle = handle
        self._write = write
        self._held: Held | None = None

    def __enter__(self) -> memoryview:
        if self._held is not None:
            raise RuntimeError("the pin is entered already: take another one")
        handle = self._handle
        self._held = held = handle._core.pin(handle._object, self._write)
        return held.view

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._handle._core.unpin(held)

    def __del__(self) -> None:
        # Entered and never left. On any thread, at any moment: it is only noted here.
        if self._held is not None:
            core = self._handle._core
            core.dead.append(self._held)
            core.worker.wake()


class Told(Failure):
    """What the owner of a pool's object is told when it is lost; `handle` is the object."""

    def __init__(self, failure: Failure, handle: Handle) -> None:
        super().__init__(failure.address, failure.descriptor)
        self.handle = handle

    @property
    def owner(self) -> Any:
        """The object's owner."""
        return self.handle.owner
