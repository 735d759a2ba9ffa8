"""Room for an object: what goes for it, and what is moved.

An object needs so many bytes of the pool's memory, and a run of them. The bytes are had first:
victims go until there are enough, in the policy's order, and then they are reserved, so that nobody
else takes them. If they are in pieces then, the run is made by moving what lies in between, which
is memory copied and no input or output: so little more is evicted than is needed. Where what is in
the way has no room elsewhere, more goes, and at last what is in the place from which the least
would have to go.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import numpy as np

from potad._core import Buffer
from potad.errors import OutOfSpace
from potad.pool.object import Object

if TYPE_CHECKING:
    from potad.pool.core import Core
    from potad.pool.transfer import Leaving


# How often a run is looked for while pins come and go that may be in its way.
_ROUNDS = 100

# In so many of the first rounds that fail, victims of the policy's make room for what is to be
# moved.
_SLACK_ROUNDS = 3

# Shares of the object, and of all memory, that are to be free beside it where others are to be
# moved for it. Measured at four times as many objects as memory: with none, every fourth try to
# move fails for want of gaps to move to, at four times the price of one that does not.
_SLACK_OF_OBJECT = 4
_SLACK_OF_MEMORY = 32


class Room:
    """Takes memory for objects; none of it is called with the lock held, but where it says so."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._placing = threading.Lock()

    def take(self, it: Object, *, is_patient: bool = True) -> Buffer:
        """A buffer for an object, whose bytes are reserved from then on, and which is landing.

        Raises `OutOfSpace` if what is pinned leaves no room, or nothing else can be swapped out; if
        not patient, also where somebody else's transfer would have to be waited for.
        """
        self.reserve(it.size, is_patient=is_patient)
        try:
            return self._place(it, is_patient)
        except BaseException:
            core = self._core
            with core.lock:
                core.resident -= it.size
                core.reserved -= it.size
                core.changed.notify_all()
            raise

    def give_back(self, it: Object, buffer: Buffer) -> None:
        """Undoes `take`."""
        core = self._core
        with core.lock:
            core.give_up(buffer)
            core.resident -= it.size
            core.landed(it)

    def reserve(self, size: int, *, is_patient: bool = True) -> None:
        """Reserves so many bytes, evicting what has to go."""
        core = self._core
        cause: Exception | None = None
        while True:
            with core.lock:
                core.bury_dead()
                core.must_be_usable()
                lacking = core.resident + size - core.limit
                if lacking <= 0:
                    core.resident += size
                    core.reserved += size
                    return
                # Enough, if all goes that is not pinned and in nobody's hands. Otherwise there may
                # be when others have what they have reserved memory for.
                is_enough = lacking <= core.resident - core.reserved - core.pinned
                leaving: list[Leaving] = []
                evicted = 0
                if is_enough:
                    leaving, evicted = self._victims(lacking, only_clean=cause is not None)
                if not leaving and not evicted:
                    if not is_patient or not (core.moving or core.reserved):
                        raise core.no_room(size, cause)
                    core.changed.wait()
            cause = core.transfer.write_out(leaving, evict=True) or cause
            core.worker.write_ahead()

    def _victims(self, size: int, *, only_clean: bool) -> tuple[list[Leaving], int]:
        """Evicts clean victims, and begins to write the others: so many bytes, if there are.
        Locked.

        Returns what is to be written, and how many bytes were evicted.
        """
        core = self._core
        leaving: list[Leaving] = []
        evicted = found = 0
        while found < size:
            it = core.policy.clean_victim() if only_clean else core.policy.victim()
            if it is None:
                break
            if it.clean:
                if core.evict(it):
                    core.counters.evictions_clean += 1
                    evicted += it.size
                    found += it.size
            elif (begun := core.transfer.begin(it)) is not None:
                leaving.append(begun)
                found += it.size
        return leaving, evicted

    def _place(self, it: Object, is_patient: bool) -> Buffer:
        """A run for an object whose bytes are reserved."""
        if (buffer := self._free_run(it)) is not None:
            return buffer
        # One at a time: what one moves is in the way of another. Who is not patient has memory in
        # his hands that another may wait for.
        if not self._placing.acquire(blocking=is_patient):
            with self._core.lock:
                raise self._core.no_room(it.size)
        try:
            for round_ in range(_ROUNDS):
                changes = self._core.changes
                buffer, leaving, evicted = self._try_to_place(it, round_)
                if buffer is not None:
                    return buffer
                error = self._core.transfer.write_out(leaving, evict=True)
                if error is not None or (not leaving and not evicted):
                    self._wait(it.size, changes, is_patient, error)
        finally:
            self._placing.release()
        with self._core.lock:
            raise self._core.no_room(it.size)

    def _try_to_place(self, it: Object, round_: int) -> tuple[Buffer | None, list[Leaving], int]:
        """A run for an object; or what is to be written to make one, and how much was evicted."""
        core, space = self._core, self._core.arena.space
        if (buffer := self._free_run(it)) is not None:
            return buffer, [], 0
        slack = max(it.size // _SLACK_OF_OBJECT, core.limit // _SLACK_OF_MEMORY)
        # Where others use the arena as well, there may not be enough as it is.
        lacking = it.size + (slack if round_ == 0 else 0) - space.available
        if lacking > 0 and (found := self._evict_some(lacking)) is not None:
            return None, *found
        window = space.cheapest_window(it.size, align=it.align)
        if window is None:
            return None, [], 0
        start, cost = window
        with contextlib.suppress(OutOfSpace):
            # Not locked: others' owners are asked. Who else makes a run waits for us.
            buffer = core.arena.alloc_run(
                it.nbytes, align=it.align, relocate=True, kind=it.kind, owner=it
            )
            with core.lock:
                core.landing += 1
                core.counters.moved_bytes += cost
            return buffer, [], 0
        if round_ < _SLACK_ROUNDS and (found := self._evict_some(slack)) is not None:
            return None, *found
        with core.lock:
            return None, *self._clear(start, it.size)

    def _evict_some(self, size: int) -> tuple[list[Leaving], int] | None:
        """What `_victims` finds, if that is anything."""
        with self._core.lock:
            leaving, evicted = self._victims(size, only_clean=False)
        return (leaving, evicted) if leaving or evicted else None

    def _wait(self, size: int, changes: int, is_patient: bool, cause: Exception | None) -> None:
        """Waits for something to land or to be written: it can be moved then, or evicted.

        `changes` is how many there had been when all was looked at: if there were others since, it
        is worth another look.
        """
        core = self._core
        with core.lock:
            if changes != core.changes and cause is None:
                return
            if cause is not None or not is_patient or not (core.moving or core.landing):
                raise core.no_room(size, cause)
            core.changed.wait()

    def _free_run(self, it: Object) -> Buffer | None:
        """A run for an object that is free as things are; it is landing."""
        core, arena = self._core, self._core.arena
        with core.lock:
            try:
                if it.align is None:
                    buffer = arena.alloc(it.nbytes, it.kind, it)
                else:
                    buffer = arena.alloc_run(it.nbytes, align=it.align, kind=it.kind, owner=it)
            except OutOfSpace:
                return None
            core.landing += 1
        return buffer

    def _clear(self, start: int, size: int) -> tuple[list[Leaving], int]:
        """Evicts what touches a range, or begins to write it, as far as it is ours. Locked."""
        core = self._core
        granules = np.arange(start, start + size, core.granule, dtype=np.uint64)
        starts, sizes = core.arena.space.lookup_many(granules)
        leaving: list[Leaving] = []
        evicted = 0
        for address in map(int, np.unique(starts[sizes != 0])):
            found = core.arena.space.lookup(address)
            it = None if found is None else found.owner
            if not isinstance(it, Object) or it not in core.objects or it.buffer is None:
                continue
            if it.pins or it.is_moving or it.lingers():
                continue
            core.policy.remove(it)
            if it.clean:
                evicted += core.evict(it) * it.size
            elif (begun := core.transfer.begin(it)) is not None:
                leaving.append(begun)
        return leaving, evicted
