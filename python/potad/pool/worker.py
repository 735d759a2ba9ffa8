"""What a pool does ahead of need, on two threads of its own: writing, and reading.

Writing ahead. Once memory is short, objects that will go soon are written before somebody has to
wait for it: up to a sixteenth of the memory, in the policy's order. What is pinned or written to
after all was written in vain; what is clean then goes at once.

Reading ahead. Objects that somebody says he will need are read in the order he names them, as far
as there is room.

A thread waits on a queue which finalisers may put something into at any moment. It holds the pool
only while it works, so a pool that nobody has any more is collected, and its thread ends; before
that it frees the slots of what was in the swap file.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from potad.pool.object import Copy, Held, Object
from potad.pool.transfer import Leaving, empty_trash
from potad.swap import SwapFile

if TYPE_CHECKING:
    from potad.pool.core import Core

# Bytes and objects that are written or read together.
_BATCH_SIZE = 8 << 20
_BATCH_COUNT = 64


class Worker:
    """The two threads of a pool."""

    def __init__(self, core: Core, ahead: int) -> None:
        # Bytes that are to be free or clean at the policy's end.
        self._ahead = ahead
        self._core = weakref.ref(core)
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._hints: SimpleQueue[Object | None] = SimpleQueue()
        self._is_woken = False
        self._reader: threading.Thread | None = None
        self._writer = threading.Thread(
            target=_write,
            args=(self._core, self._wakes, core.swap, core.dead, core.trash),
            name="potad-write-ahead",
            daemon=True,
        )
        self._writer.start()

    def wake(self) -> None:
        """There is something to be put away, or written. From anywhere, at any moment."""
        if not self._is_woken:
            self._is_woken = True
            self._wakes.put(True)

    def write_ahead(self) -> None:
        """Memory was short; locked or not."""
        if self._ahead:
            self.wake()

    def read_ahead(self, objects: Sequence[Object]) -> None:
        """These will be needed; locked."""
        if self._reader is None:
            self._reader = threading.Thread(
                target=_read, args=(self._core, self._hints), name="potad-read-ahead", daemon=True
            )
            self._reader.start()
        for it in objects:
            self._hints.put(it)

    def stop(self) -> None:
        """Ends the threads, and waits for that."""
        self._wakes.put(False)
        self._hints.put(None)
        for thread in (self._writer, self._reader):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def write_some(self, core: Core) -> bool:
        """Writes a batch of what will go soon; whether there was anything."""
        self._is_woken = False
        with core.lock:
            if core.refused is not None:
                return False
            core.bury_dead()
            wanted = self._ahead - max(core.limit - core.resident, 0)
            batch = self._soon(core, wanted) if wanted > 0 else []
            core.counters.written_ahead += len(batch)
        core.transfer.write_out(batch, evict=False)
        core.transfer.empty_trash()
        # What cannot be written now is somebody else's to try.
        return bool(batch) and all(it.error is None for it in batch)

    def _soon(self, core: Core, size: int) -> list[Leaving]:
        """What of the objects that come to so many bytes, and go next, is to be written; locked."""
        batch: list[Leaving] = []
        batch_size = 0
        for it in list(_first(core, size)):
            if it.clean or it.pins or it.is_moving or it.lingers():
                continue
            if batch_size >= _BATCH_SIZE or len(batch) >= _BATCH_COUNT:
                break
            if (begun := core.transfer.begin(it)) is not None:
                batch.append(begun)
                batch_size += it.size
        return batch


def _first(core: Core, size: int) -> list[Object]:
    """The objects that will go next, of so many bytes; locked."""
    found: list[Object] = []
    for it in core.policy.next_to_go():
        if size <= 0:
            break
        found.append(it)
        size -= it.size
    return found


def _write(
    ref: weakref.ref[Core],
    wakes: SimpleQueue[bool],
    swap: SwapFile,
    dead: deque[Object | Held],
    trash: deque[Copy],
) -> None:
    while wakes.get():
        core = ref()
        if core is None:
            break
        try:
            while core.worker.write_some(core):
                pass
        except ValueError:
            pass  # the file is closed: there is nothing to be done ahead of
        del core
    # Nobody has a handle, so nobody looks at these any more.
    while dead:
        it = dead.popleft()
        if isinstance(it, Object) and it.copy is not None:
            trash.append(it.copy)
    empty_trash(swap, trash)


def _read(ref: weakref.ref[Core], hints: SimpleQueue[Object | None]) -> None:
    while (it := hints.get()) is not None:
        core = ref()
        if core is None:
            break
        batch, size = [it], it.size
        is_last = False
        while not hints.empty() and size < _BATCH_SIZE and len(batch) < _BATCH_COUNT:
            it = hints.get()
            if it is None:
                is_last = True
                break
            batch.append(it)
            size += it.size
        with core.lock:
            wanted: list[Object] = []
            for it in batch:
                if core.refused is None and _is_away(it):
                    it.arriving = threading.Event()
                    wanted.append(it)
        with contextlib.suppress(ValueError):  # the file is closed: whoever pins is told
            core.transfer.fetch_ahead(wanted)
        del core, it, batch, wanted
        if is_last:
            break


def _is_away(it: Object) -> bool:
    """Whether an object is to be read if it is needed; locked."""
    return it.copy is not None and it.buffer is None and it.arriving is None and not it.is_dead
