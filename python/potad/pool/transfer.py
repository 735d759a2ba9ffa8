"""Objects' bytes between memory and the swap file.

Writing. An object may be pinned while it is written, and written to: then what came to the file is
not kept. What may have been changed and was not, its checksum says, is not written again. An object
that is being written has no copy: the one that it had is in the hands of whoever writes it, who
writes over it, gives it back, or throws it away.

Slots. A swap file that is cut moves slots, and anybody can free them. So the numbers of a copy's
slots are read, and used, inside the file's gate, where none are moved, and only if the slots are
the copy's own.

An object is one slot, if the file has room for it in one piece; otherwise it is cut in two as often
as it takes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from potad._core import Buffer, xxh3
from potad.errors import NotAllocated, OutOfSpace, Poisoned, PotadError
from potad.pool.object import Copy, Held, Object
from potad.swap import SwapFile

if TYPE_CHECKING:
    from potad.pool.core import Core

# With less than this share of the swap file free, what was read in gives up its copy, as Linux
# does.
_SCARCE_SHARE = 4

# Bytes that are written with one call: they fit into a cache.
_TOGETHER = 512 << 10


class Leaving:
    """An object that is being written: what of it, and as of when."""

    __slots__ = ("buffer", "checksum", "copy", "error", "is_good", "it", "version", "view")

    def __init__(self, it: Object, buffer: Buffer) -> None:
        self.it = it
        self.buffer = buffer
        # Pins it for the arena, so that it is not moved meanwhile.
        self.view = memoryview(buffer)
        self.version = it.version
        self.checksum: int | None = None
        # The copy that it had, or has now; and whether that is as good as the view was.
        self.copy, it.copy = it.copy, None
        self.is_good = False
        self.error: Exception | None = None

    def forget(self) -> None:
        """The copy is about to be written over."""
        if self.copy is not None:
            self.copy.checksum = None

    def succeed(self, copy: Copy | None, checksum: int | None) -> None:
        """The object was written to a copy."""
        assert copy is not None
        copy.checksum = checksum
        self.copy = copy
        self.is_good = True


class Transfer:
    """Writes objects and reads them; called without the lock, but where it says so."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # Out.

    def begin(self, it: Object) -> Leaving | None:
        """Begins to write an object that nobody may write to, if it has its memory. Locked."""
        assert it.buffer is not None
        assert not it.writers
        try:
            leaving = Leaving(it, it.buffer)
        except NotAllocated:
            self._core.forsake(it, "somebody else has freed its memory")
            return None
        it.is_moving = True
        self._core.moving += 1
        return leaving

    def write_out(self, batch: Sequence[Leaving], *, evict: bool) -> Exception | None:
        """Writes objects, and evicts them if they can go then; the first error, if any."""
        if not batch:
            return None
        try:
            self._write(batch)
        finally:
            # Also if it was interrupted: they are no longer being written.
            with self._core.lock:
                for it in batch:
                    it.view.release()
                    self._end(it, evict)
                self._core.changed.notify_all()
        self.empty_trash()
        return next((it.error for it in batch if it.error is not None), None)

    def _write(self, batch: Sequence[Leaving]) -> None:
        """Writes objects as far as they have changed, a few at a time."""
        # Where a copy is, there are blocks of the file system already: to write over it is much
        # cheaper than to write elsewhere.
        few: list[Leaving] = []
        over: list[Leaving] = []
        size = 0
        for it in batch:
            it.checksum = xxh3(it.view) if self._core.swap.checksums else None
            old = it.copy
            if old is not None and it.checksum is not None and old.checksum == it.checksum:
                it.is_good = True
                continue
            (over if old is not None and len(old.slots) == 1 else few).append(it)
            size += it.it.size
            # What the checksum was taken of is in the processor's cache still.
            if size >= _TOGETHER:
                self._write_few(few, over)
                few, over, size = [], [], 0
        self._write_few(few, over)

    def _write_few(self, new: Sequence[Leaving], over: Sequence[Leaving]) -> None:
        """Writes objects to new slots, and over the ones that they have."""
        core, batch = self._core, [*new, *over]
        if not batch:
            return
        began = time.perf_counter_ns()
        alone: list[Leaving] = []
        for some, write in ((over, self._write_over), (new, self._write_together)):
            if not some:
                continue
            try:
                write(some)
            except (OSError, PotadError):
                alone.extend(some)
        if alone:
            # One may fail where others need not.
            self.make_swap_room(sum(it.it.size for it in alone))
            for it in alone:
                self._write_alone(it)
        took = time.perf_counter_ns() - began
        with core.lock:
            core.counters.write_latency.add(took // len(batch))
            for it in batch:
                if it.is_good:
                    core.counters.bytes_out += it.it.nbytes
                    it.it.group.account.bytes_out += it.it.nbytes
                if isinstance(it.error, OSError):
                    core.counters.io_errors += 1

    def _write_over(self, batch: Sequence[Leaving]) -> None:
        """Writes objects over their copies, which are of no use if that fails."""
        swap = self._core.swap
        with swap._gate:
            slots = [self._slots_of(it.copy)[0] for it in batch if it.copy is not None]
            # In the order of the file, so that those that lie together are written together.
            order = sorted(range(len(slots)), key=slots.__getitem__)
            for it in batch:
                it.forget()
            swap._rewrite_views(
                [slots[at] for at in order],
                [batch[at].view for at in order],
                [batch[at].checksum for at in order],
            )
        for it in batch:
            it.succeed(it.copy, it.checksum)

    def _write_together(self, batch: Sequence[Leaving]) -> None:
        """Writes objects to new slots, one each."""
        copies = [Copy() for _ in batch]
        swap = self._core.swap
        with swap._gate:
            slots = swap._write_views(
                [it.view for it in batch], [it.checksum for it in batch], copies
            )
            for copy, slot in zip(copies, slots, strict=True):
                copy.slots = (slot,)
        for it, copy in zip(batch, copies, strict=True):
            self._throw_away(it.copy)
            it.succeed(copy, it.checksum)

    def _write_alone(self, it: Leaving) -> None:
        """Writes an object to new slots, as many as it takes."""
        copy = Copy()
        try:
            self._write_pieces(it.view, copy)
        except (OSError, PotadError) as error:
            it.error = _bare(error)
            self._throw_away(copy)
            return
        self._throw_away(it.copy)
        it.succeed(copy, it.checksum if len(copy.slots) == 1 else None)

    def _write_pieces(self, view: memoryview, copy: Copy) -> None:
        """Writes bytes to one slot, or to several where there is no room for one."""
        swap = self._core.swap
        try:
            with swap._gate:
                copy.slots += (swap.write(view, owner=copy),)
        except OutOfSpace as error:
            half = view.nbytes // 2 // swap.granule * swap.granule
            if error.reason != "fragmented" or not half:
                raise
            self._write_pieces(view[:half], copy)
            self._write_pieces(view[half:], copy)

    def _end(self, leaving: Leaving, evict: bool) -> None:
        """An object is written, or will not be; locked."""
        core, it, copy = self._core, leaving.it, leaving.copy
        it.is_moving = False
        core.moving -= 1
        core.changes += 1
        if it.is_dead or it.buffer is not leaving.buffer:
            # It is of no use to anybody, or its memory has failed before it was written.
            self._throw_away(copy)
        else:
            it.copy = copy
            if leaving.is_good and it.version == leaving.version:
                it.clean = True
                core.dirty -= it.size
            elif leaving.is_good and copy is not None:
                # Somebody wrote meanwhile, so it may be neither the one nor the other.
                copy.checksum = None
        if it.is_dead:
            core.put_away(it)
        elif evict and it.buffer is leaving.buffer:
            if it.clean and not it.pins and not it.lingers():
                core.evict(it)
            else:
                core.policy.put_back(it)

    def _throw_away(self, copy: Copy | None) -> None:
        if copy is not None:
            self._core.trash.append(copy)

    def _slots_of(self, copy: Copy) -> tuple[int, ...]:
        """The slots of a copy; `NotAllocated` if somebody has freed one. Inside the file's gate."""
        for slot in copy.slots:
            if (found := self._core.swap.space.lookup(slot)) is None or found.owner is not copy:
                raise NotAllocated(f"somebody has freed the slot at {slot:#x}", slot)
        return copy.slots

    def make_swap_room(self, size: int) -> None:
        """Frees copies that are not needed, if the swap file has not so much room."""
        core = self._core
        self.empty_trash()
        with core.lock:
            lacking = size - core.swap.space.available
            for it in chain(core.policy.main, core.policy.small):
                if lacking <= 0:
                    break
                if it.copy is not None and not it.is_moving:
                    lacking -= it.size
                    self._drop_copy(it)
        self.empty_trash()

    def _drop_copy(self, it: Object) -> None:
        """An object that is resident gives up its copy; locked."""
        assert it.copy is not None
        if it.clean:
            it.clean = False
            self._core.dirty += it.size
        self._core.trash.append(it.copy)
        it.copy = None

    def empty_trash(self) -> None:
        """Frees slots that are of no use any more; what cannot be freed now, the next time."""
        empty_trash(self._core.swap, self._core.trash)

    # In.

    def fetch(self, it: Object, write: bool) -> Held:
        """Reads an object that is marked as arriving, and pins it."""
        core = self._core
        with core.lock:
            core.arriving += 1
        try:
            while True:
                buffer = core.room.take(it)
                error: Exception | None = None
                has_arrived = False
                try:
                    error = self._read([(it, buffer)])[0]
                    with core.lock:
                        if error is None and not self._is_spoiled(it):
                            self._arrive(it, buffer)
                            has_arrived = True
                            return core.pinned_at(it, buffer, write, is_hit=False)
                finally:
                    if not has_arrived:
                        core.room.give_back(it, buffer)
                if error is not None:
                    raise error
        finally:
            self._end_arrival(it)

    @staticmethod
    def _is_spoiled(it: Object) -> bool:
        """Whether the memory that an object was read into has failed; locked."""
        is_spoiled, it.is_spoiled = it.is_spoiled, False
        return is_spoiled

    def fetch_ahead(self, batch: Sequence[Object]) -> None:
        """Reads objects that are marked as arriving, as far as there is room."""
        core = self._core
        with core.lock:
            core.arriving += len(batch)
        found: list[tuple[Object, Buffer]] = []
        try:
            for it in batch:
                try:
                    found.append((it, core.room.take(it, is_patient=False)))
                except (OSError, PotadError, ValueError):
                    break
            errors = self._read(found)
            with core.lock:
                while found:
                    (it, buffer), error = found.pop(), errors.pop()
                    if error is None and not self._is_spoiled(it):
                        self._arrive(it, buffer)
                        it.is_ahead = True
                        core.counters.read_ahead += 1
                    else:
                        core.room.give_back(it, buffer)
        finally:
            for it, buffer in found:
                core.room.give_back(it, buffer)
            for it in batch:
                self._end_arrival(it)

    def _read(self, batch: Sequence[tuple[Object, Buffer]]) -> list[Exception | None]:
        """Reads objects into buffers; what went wrong with each."""
        began = time.perf_counter_ns()
        errors: list[Exception | None] = [None] * len(batch)
        if not batch:
            return errors
        try:
            self._read_together(batch)
        except (OSError, PotadError) as raised:
            alone = len(batch) == 1
            errors = [_bare(raised)] if alone else [self._read_alone(it) for it in batch]
        took = time.perf_counter_ns() - began
        core = self._core
        with core.lock:
            core.counters.read_latency.add(took // len(batch))
            for at, (it, _) in enumerate(batch):
                error = errors[at]
                if error is None:
                    core.counters.bytes_in += it.nbytes
                    it.group.account.bytes_in += it.nbytes
                elif isinstance(error, OSError):
                    core.counters.io_errors += 1
                elif it.lost is None:
                    core.lose(it, str(error))
                    errors[at] = Poisoned(f"the object of {it.nbytes} bytes is lost: {error}")
        return errors

    def _read_alone(self, one: tuple[Object, Buffer]) -> Exception | None:
        try:
            self._read_together([one])
        except (OSError, PotadError) as error:
            return _bare(error)
        return None

    def _read_together(self, batch: Sequence[tuple[Object, Buffer]]) -> None:
        swap = self._core.swap
        slots: list[int] = []
        views: list[memoryview] = []
        with swap._gate:
            for it, buffer in batch:
                assert it.copy is not None
                view, start, own = memoryview(buffer), 0, self._slots_of(it.copy)
                for slot in own:
                    length = view.nbytes if len(own) == 1 else swap.length(slot)
                    slots.append(slot)
                    views.append(view[start : start + length])
                    start += length
            swap.read_many_into(slots, views)

    def _arrive(self, it: Object, buffer: Buffer) -> None:
        """An object has been read; locked."""
        core = self._core
        it.clean = True
        core.arrive(it, buffer)
        if it.record is not None and (record := buffer.descriptor.record) is not None:
            record[()] = np.frombuffer(it.record, record.dtype)[0]
        space = core.swap.space
        if space.available * _SCARCE_SHARE < space.size:
            self._drop_copy(it)

    def _end_arrival(self, it: Object) -> None:
        core = self._core
        with core.lock:
            event: threading.Event | None
            event, it.arriving = it.arriving, None
            core.arriving -= 1
            if it.is_dead:
                core.put_away(it)
            core.changed.notify_all()
        if event is not None:
            event.set()
        self.empty_trash()


def _bare(error: Exception) -> Exception:
    """An error without the frames it went through: they have views, which keep buffers."""
    it: BaseException | None = error
    while it is not None:
        it.__traceback__ = None
        it = it.__cause__ or it.__context__
    return error


def empty_trash(swap: SwapFile, trash: deque[Copy]) -> None:
    """Frees the slots of copies that are of no use any more; those that cannot be freed stay."""
    failed: list[Copy] = []
    while trash:
        try:
            copy = trash.popleft()
        except IndexError:
            break  # another thread was quicker
        try:
            with swap._gate:
                found = [it for slot in copy.slots if (it := swap.space.lookup(slot)) is not None]
                # What somebody else has freed may be somebody else's by now.
                swap.free_many(it.start for it in found if it.owner is copy)
        except (OSError, PotadError):
            failed.append(copy)
        except ValueError:
            pass  # the file is closed
    trash.extend(failed)
