"""The class `Pool`: objects that are in memory when needed, and otherwise in a swap file."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, SupportsIndex

from potad._core import Arena, Kind
from potad.arguments import whole
from potad.pool.core import OBJECT, Core
from potad.pool.handle import Handle
from potad.pool.mapping import PoolDict
from potad.pool.object import Object
from potad.pool.stats import PoolStats
from potad.swap import SwapFile

# The share of the memory that is to be free or clean at the policy's end.
_AHEAD_SHARE = 16


class Pool:
    """Memory that outgrows RAM: objects live in an arena while they are needed, and in a swap file
    otherwise.

    An object stays in memory while it is pinned, and after that until others need its place: which
    goes first is S3-FIFO's choice, so a scan through much does not drive out what is used. It is
    written to the swap file only if it was changed since it was last there, ahead of need where
    that is possible. Large and small objects share the memory: what goes for an object is so much
    as it needs, and a run is made of it by moving what lies between.

    Arguments:
        memory: an arena. Others may use it as well.
        swap: a swap file. Others may use it as well. If it has room for all objects, whatever is
            not pinned can always go; with less, a pin may find that nothing can. Objects end with
            the process, so one that is opened with `keep=False` will do; of another one slots are
            left if the process is killed.
        limit: bytes of memory that objects may take; by default as many as the arena has.
        write_ahead: bytes that are kept clean ahead of need; by default a sixteenth of `limit`, and
            0 for none.

    Raises:
        ValueError, TypeError, OverflowError: an argument is not as above.

    Takes some microseconds, and starts a thread.

    >>> import tempfile, potad
    >>> directory = tempfile.TemporaryDirectory()
    >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 30, keep=False)
    >>> pool = potad.Pool(memory=potad.Arena(1 << 20), swap=swap)
    >>> handles = [pool.alloc(100_000) for _ in range(50)]
    >>> for number, handle in enumerate(handles):
    ...     with handle.pin() as view:
    ...         view[:] = bytes([number]) * 100_000
    >>> with handles[0].pin(write=False) as view:
    ...     view[99_999], pool.stats().resident_bytes <= 1 << 20
    (0, True)
    >>> pool.close(); swap.close(); directory.cleanup()

    The idea of an address space larger than memory is as old as the Atlas of 1962; S3-FIFO is Yang,
    Zhang, Qiu, Yue and Rashmi's, SOSP 2023.
    """

    def __init__(
        self,
        memory: Arena,
        swap: SwapFile,
        *,
        limit: SupportsIndex | None = None,
        write_ahead: SupportsIndex | None = None,
    ) -> None:
        if not isinstance(memory, Arena):
            raise TypeError(f"memory must be an Arena, not {memory!r}")
        if not isinstance(swap, SwapFile):
            raise TypeError(f"swap must be a SwapFile, not {swap!r}")
        if swap.closed:
            raise ValueError(f"swap must be open, which {swap!r} is not")
        self._memory = memory
        most = memory.space.size
        bytes_max = most if limit is None else _limit("limit", limit, most)
        ahead = bytes_max // _AHEAD_SHARE
        if write_ahead is not None:
            ahead = whole("write_ahead", write_ahead)
        self._core = Core(memory, swap, bytes_max, ahead)

    @property
    def memory(self) -> Arena:
        """The arena that objects are in."""
        return self._memory

    @property
    def swap(self) -> SwapFile:
        """The swap file that objects go to."""
        return self._core.swap

    @property
    def limit(self) -> int:
        """Bytes of memory that objects may take."""
        return self._core.limit

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._core.refused is not None

    def __len__(self) -> int:
        """How many objects there are."""
        return self._core.count()

    def __bool__(self) -> bool:
        """True, also without objects."""
        return True

    def alloc(
        self,
        nbytes: SupportsIndex,
        kind: Kind | None = None,
        owner: Any = None,
        *,
        align: SupportsIndex | None = None,
    ) -> Handle:
        """Makes an object, in memory. What is in it is not defined until it is written.

        Arguments:
            nbytes: above 0; what it takes of memory is rounded up to granules.
            kind: by default one named "pool object". One that is not movable is never moved in
                memory, but swapped out and in like any other. A record goes with the object.
            owner: any object; `on_memory_failure(failure)` is called on it if the object is lost,
                `failure.handle` being the object.
            align: the object's address in memory is a multiple of this, wherever it is.

        Returns: a `Handle`. The object is freed with it, or when it is collected.

        Raises:
            OutOfSpace: it is larger than the memory that is not pinned; `in_the_way` says whose
                that is. Or what has to go for it cannot be written: then that is the error's cause.
            ValueError, TypeError, OverflowError: an argument is not as above, or the pool is
            closed.
            MemoryError: there is no memory for metadata.

        Takes some microseconds, and as long as to write what has to go for it and was not written
        yet.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 24), swap=swap) as pool:
        ...     handle = pool.alloc(8 << 20, owner="me", align=1 << 20)
        ...     handle.nbytes, handle.resident
        (8388608, True)
        >>> directory.cleanup()
        """
        size = whole("nbytes", nbytes)
        if not size:
            raise ValueError("nbytes must be above 0, not 0")
        if kind is not None and not isinstance(kind, Kind):
            raise TypeError(f"kind must be a Kind, not {kind!r}")
        wanted = None if align is None else whole("align", align)
        if wanted is not None and (not wanted or wanted & (wanted - 1)):
            raise ValueError(f"align must be a power of two, not {wanted}")
        return self._core.alloc(size, wanted, kind or OBJECT, owner)

    def will_need(self, handles: Iterable[Handle]) -> int:
        """Has objects read ahead of need, by a thread of the pool's, in the order they are named.

        A hint, no more: what there is no room for is not read, nor what fails.

        Arguments:
            handles: of this pool. Objects that come to half of the memory are read, the rest is
                ignored.

        Returns: how many objects will be read.

        Raises:
            TypeError, ValueError: something is no handle, or of another pool; or the pool is
            closed.

        Takes a microsecond an object.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 14), swap=swap) as pool:
        ...     handles = [pool.alloc(4096) for _ in range(8)]
        ...     pool.will_need(handles) <= 2
        True
        >>> directory.cleanup()
        """
        wanted: list[Object] = []
        for handle in handles:
            if not isinstance(handle, Handle):
                raise TypeError(f"handles must be handles, not {handle!r}")
            if handle._core is not self._core:
                raise ValueError(f"handles must be of this pool, which {handle!r} is not")
            wanted.append(handle._object)
        core = self._core
        with core.lock:
            core.must_be_usable()
            away: list[Object] = []
            left = core.limit // 2
            for it in wanted:
                if it.buffer is not None or it.arriving is not None or it.copy is None:
                    continue
                left -= it.size
                if left < 0:
                    break
                away.append(it)
            core.worker.read_ahead(away)
        return len(away)

    def resize(self, memory: SupportsIndex) -> None:
        """Sets how many bytes of memory objects may take; swaps out what is too much.

        Arguments:
            memory: bytes, above 0, and no more than the arena has. An arena takes memory only where
                it is used, so it can be made as large as a pool will ever be.

        Raises:
            OutOfSpace: more is pinned, or what has to go cannot be written. Then the limit is as
                before.
            ValueError, TypeError, OverflowError: `memory` is not as above, or the pool is closed.

        Takes as long as to write what has to go.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 30), swap=swap, limit=1 << 20) as pool:
        ...     pool.resize(1 << 24)
        ...     pool.limit
        16777216
        >>> directory.cleanup()
        """
        self._core.resize(_limit("memory", memory, self._memory.space.size))
        self._memory.trim()

    def flush(self) -> None:
        """Writes all objects to the swap file that are not there as they are, and not pinned.

        A failure of memory finds a good copy of them then.

        Raises:
            OutOfSpace: the swap file has no room for all.
            OSError: the system refuses.
            ValueError: the pool is closed.

        Takes as long as to write them.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     handle = pool.alloc(4096)
        ...     pool.flush()
        ...     pool.stats().dirty_bytes
        0
        >>> directory.cleanup()
        """
        self._core.flush()

    def find(self, pointer: SupportsIndex) -> Handle | None:
        """The handle of the object that a pointer points into, if any.

        Arguments:
            pointer: such as `array.ctypes.data` of an array over a view.

        Returns: its handle; None where there is no object of this pool.

        Raises: TypeError, OverflowError, as `Arena.find` does.

        Takes as long as a look-up.

        >>> import numpy, tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     handle = pool.alloc(4096)
        ...     with handle.pin() as view:
        ...         pool.find(numpy.frombuffer(view, "u1").ctypes.data + 100) is handle
        True
        >>> directory.cleanup()
        """
        found = self._memory.find(pointer)
        it = None if found is None else found.owner
        return it.owned() if isinstance(it, Object) and it.core() is self._core else None

    def stats(self) -> PoolStats:
        """What is in the pool, and what happened in it: hits, faults, evictions, bytes, latencies.

        Returns: a `PoolStats`; as text, tables for people.

        Takes a microsecond for each kind and owner.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     handle = pool.alloc(4096, owner="me")
        ...     stats = pool.stats()
        ...     stats.objects, stats.resident_bytes, stats.rows[0].owner
        (1, 4096, "'me'")
        >>> directory.cleanup()
        """
        return self._core.stats()

    def dict(self, kind: Kind | None = None, owner: Any = None) -> PoolDict:
        """A new, empty dictionary from texts to bytes, whose values are objects of the pool.

        Arguments:
            kind: of its values, as for `alloc`.
            owner: of its values, as for `alloc`.

        Returns: a `PoolDict`.

        Takes no time; its calls take as long as those of the pool.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     blocks = pool.dict(owner="cache")
        ...     blocks["a"] = b"one"
        ...     dict(blocks)
        {'a': b'one'}
        >>> directory.cleanup()
        """
        return PoolDict(self, kind, owner)

    def check(self) -> None:
        """Recounts everything from the objects themselves.

        Raises: Corrupt, with what disagrees.

        Takes a microsecond or so for each object: for tests.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> with swap, potad.Pool(memory=potad.Arena(1 << 20), swap=swap) as pool:
        ...     pool.check()
        >>> directory.cleanup()
        """
        self._core.check()

    def close(self) -> None:
        """Frees all objects. Their handles are of no use any more; arena and swap file stay open.

        Raises: Busy, if objects are pinned; nothing is changed.

        Takes as long as to free their slots. To close it again does nothing.

        >>> import tempfile, potad
        >>> directory = tempfile.TemporaryDirectory()
        >>> swap = potad.SwapFile(directory.name + "/swap", 1 << 20)
        >>> pool = potad.Pool(memory=potad.Arena(1 << 20), swap=swap)
        >>> pool.close()
        >>> pool.closed
        True
        >>> swap.close(); directory.cleanup()
        """
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = " closed" if self.closed else ""
        return f"<potad.Pool limit={self.limit} objects={len(self)}{closed}>"


def _limit(name: str, value: Any, most: int) -> int:
    number = whole(name, value)
    if not 0 < number <= most:
        raise ValueError(f"{name} must be above 0 and at most {most}, not {number}")
    return number
