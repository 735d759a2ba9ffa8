"""What a pool knows, and what it does under its lock: objects come, are pinned, leave and fail.

Locks. One lock guards all of it, for some microseconds at a time. Nothing is read, written or moved
while it is held, and nobody else's code is called; it is taken before a space's. A finaliser may
run at any moment, also on a thread that holds it: so the lock can be taken again, handles that are
collected are only noted (`dead`), and what a pin's end does is right at any moment.

Who waits for whom. A pin waits for its own object to be read, and a request for memory for writes
that are under way: both end by themselves. Nobody waits for a pin to end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from potad._core import Arena, Buffer, Kind
from potad.errors import Busy, Corrupt, NotAllocated, OutOfSpace, Poisoned, PotadError
from potad.failure import Failure, Outcome
from potad.pool.accounts import Accounts
from potad.pool.counters import Counters
from potad.pool.handle import Handle, Told
from potad.pool.object import Copy, Held, Object
from potad.pool.policy import Policy
from potad.pool.room import Room
from potad.pool.transfer import Transfer
from potad.pool.worker import Worker
from potad.relocation import no_room
from potad.swap import SwapFile

if TYPE_CHECKING:
    from potad.pool.stats import PoolStats

# Objects that are written together where all are to be.
_FLUSHED = 64

OBJECT = Kind("pool object", movable=True)


class Core:
    """A pool without its documentation."""

    def __init__(self, arena: Arena, swap: SwapFile, limit: int, ahead: int) -> None:
        self.arena = arena
        self.swap = swap
        self.granule: int = arena.space.granule
        self.lock = threading.RLock()
        # Told whenever a transfer has ended.
        self.changed = threading.Condition(self.lock)

        # All below is guarded by the lock.
        self.limit = limit
        # Bytes in objects that are resident or about to be: never above the limit, but for a moment
        # after that was lowered.
        self.resident = 0
        # Of these: bytes that are pinned, not in the swap file as they are, and reserved for what
        # is about to be resident.
        self.pinned = 0
        self.dirty = 0
        self.reserved = 0
        # Objects that are being written.
        self.moving = 0
        # Objects that are being read, or will be once there is memory.
        self.arriving = 0
        # Objects that have memory, and need nobody else to arrive.
        self.landing = 0
        # How often one of those has arrived, one has been written, or one has come to be pinned or
        # not: all that changes what is in the way of others.
        self.changes = 0
        self.objects: set[Object] = set()
        self.policy = Policy(limit)
        self.accounts = Accounts()
        self.counters = Counters()
        # Why nothing may be done any more.
        self.refused: Exception | None = None

        # Not guarded, but safe to add to from a finaliser: handles and pins that nobody has any
        # more.
        self.dead: deque[Object | Held] = deque()
        # Slots to be freed, when that is convenient.
        self.trash: deque[Copy] = deque()
        self.room = Room(self)
        self.transfer = Transfer(self)
        self.worker = Worker(self, ahead)
        _CORES.add(self)

    # Objects come and go.

    def alloc(self, nbytes: int, align: int | None, kind: Kind, owner: Any) -> Handle:
        """A new object, in memory."""
        size = -(-nbytes // self.granule) * self.granule
        with self.lock:
            self.must_be_usable()
            group = self.accounts.group(kind, owner)
        it = Object(self, nbytes, size, align, kind, group)
        handle = Handle(self, it, owner)
        it.handle = weakref.ref(handle)
        try:
            buffer = self.room.take(it)
        except BaseException:
            it.is_dead = True  # so that its handle does not put it away
            raise
        with self.lock:
            self.objects.add(it)
            account = group.account
            account.objects += 1
            account.bytes += nbytes
            self.dirty += size
            self.arrive(it, buffer)
        self.worker.write_ahead()
        return handle

    def arrive(self, it: Object, buffer: Buffer) -> None:
        """An object is in memory, in the place of what was reserved for it; locked."""
        it.buffer = buffer
        self.landed(it)
        it.group.account.resident_bytes += it.nbytes
        self.policy.insert(it)

    def landed(self, it: Object) -> None:
        """An object needs no memory any more, since it has some or gives it up; locked."""
        self.reserved -= it.size
        self.landing -= 1
        self.changes += 1
        self.changed.notify_all()

    def leave(self, it: Object) -> None:
        """An object has no buffer any more, and is in no queue; locked."""
        if it.pins:
            self._unpinned(it, it.pins)
        if not it.clean:
            self.dirty -= it.size
        it.buffer = None
        it.pins = it.writers = 0
        self.resident -= it.size
        it.group.account.resident_bytes -= it.nbytes

    def evict(self, it: Object) -> bool:
        """Takes a clean object that is in no queue out of memory; whether it could. Locked."""
        buffer = it.buffer
        assert buffer is not None
        assert it.clean
        assert not it.pins
        try:
            _keep_record(it, buffer)
            buffer.free()
        except NotAllocated:
            pass  # somebody else has freed it; the copy is as good
        except Busy:
            # Somebody has pinned it by its address since that was looked at.
            self.policy.put_back(it)
            return False
        self.leave(it)
        it.is_ahead = False
        it.group.account.evictions += 1
        self.counters.evictions += 1
        return True

    def free(self, it: Object) -> None:
        """Frees an object whose handle says so."""
        with self.lock:
            self.must_be_usable()
            if it.is_dead:
                raise ValueError("the object was freed before")
            if pins := it.pins + it.lingers():
                raise Busy(f"the object is pinned {pins} times", _address(it.buffer), pins)
            self.bury(it)
        self.transfer.empty_trash()

    def bury(self, it: Object) -> None:
        """Puts away an object that nobody has a handle for; locked."""
        if it.is_dead:
            return
        it.is_dead = True
        if not it.is_moving and it.arriving is None:
            self.put_away(it)

    def put_away(self, it: Object) -> None:
        """Gives up all that a dead object has; locked."""
        self.policy.remove(it)
        buffer = it.buffer
        if buffer is not None:
            self.leave(it)
            self.give_up(buffer)
        if it.copy is not None:
            self.trash.append(it.copy)
            it.copy = None
        self.objects.discard(it)
        account = it.group.account
        account.objects -= 1
        account.bytes -= it.nbytes

    @staticmethod
    def give_up(buffer: Buffer) -> None:
        """Frees a buffer, at once or when nobody sees it any more."""
        # Whoever sees it keeps it, and it is freed when he lets it go.
        with contextlib.suppress(Busy, NotAllocated):
            buffer.free()

    def bury_dead(self) -> None:
        """Puts away what was collected; locked."""
        while self.dead:
            it = self.dead.popleft()
            if isinstance(it, Held):
                self.unpin(it)
            else:
                self.bury(it)

    # Pins.

    def pin(self, it: Object, write: bool) -> Held:
        """An object's bytes, which stay where they are from now on."""
        with self.lock:
            self.must_be_usable(it)
            if it.buffer is not None:
                try:
                    return self.pinned_at(it, it.buffer, write, is_hit=True)
                except NotAllocated:
                    self.forsake(it, "somebody else has freed its memory")
        return self._fault(it, write)

    def pinned_at(self, it: Object, buffer: Buffer, write: bool, *, is_hit: bool) -> Held:
        """Pins an object that is resident, for the arena as well; locked."""
        view = memoryview(buffer) if write else memoryview(buffer).toreadonly()
        account = it.group.account
        if not it.pins:
            self.changes += 1
            self.pinned += it.size
            it.group.pinned += 1
            it.group.pinned_size += it.size
        it.pins += 1
        account.pins += 1
        if write:
            it.writers += 1
            self.soil(it)
        if is_hit:
            account.hits += 1
            self.counters.hits += 1
            # What was made or read for this pin is used once by it, not twice.
            if it.is_ahead:
                self.counters.read_ahead_hits += 1
            elif not it.is_fresh:
                self.policy.use(it)
        else:
            account.faults += 1
            self.counters.faults += 1
        it.is_fresh = it.is_ahead = False
        return Held(it, buffer, view, write)

    def soil(self, it: Object) -> None:
        """Somebody may write to an object from now on; locked."""
        it.version += 1
        if it.clean:
            it.clean = False
            self.dirty += it.size

    def unpin(self, held: Held) -> None:
        """Ends a pin."""
        it = held.it
        with self.lock:
            try:  # noqa: SIM105 (`suppress` takes as long as a seventh of a pin)
                held.view.release()
            except BufferError:
                # What uses the view keeps it, and so the buffer's pin: see `lingers`.
                pass
            # Otherwise its memory has failed meanwhile, and the pin with it.
            if it.buffer is held.buffer:
                it.pins -= 1
                it.writers -= held.write
                it.group.account.pins -= 1
                if not it.pins:
                    self._unpinned(it, 0)
                    self.changes += 1

    def _unpinned(self, it: Object, pins: int) -> None:
        it.group.account.pins -= pins
        self.pinned -= it.size
        it.group.pinned -= 1
        it.group.pinned_size -= it.size

    def _fault(self, it: Object, write: bool) -> Held:
        began = time.perf_counter_ns()
        while True:
            with self.lock:
                self.must_be_usable(it)
                if it.buffer is not None:
                    # Somebody else has read it.
                    self.counters.fault_latency.add(time.perf_counter_ns() - began)
                    return self.pinned_at(it, it.buffer, write, is_hit=False)
                arriving = it.arriving
                if arriving is None:
                    it.arriving = threading.Event()
            if arriving is not None:
                arriving.wait()
                continue
            # What comes in is pinned at once, before anybody can take its memory again.
            held = self.transfer.fetch(it, write)
            with self.lock:
                self.counters.fault_latency.add(time.perf_counter_ns() - began)
            return held

    # What goes wrong.

    def on_failure(self, it: Object, failure: Failure) -> Outcome | None:
        """Memory of an object has failed: it is read again from its copy, or lost."""
        with self.lock:
            buffer = it.buffer
            if buffer is None:
                # If it is on its way into the memory that failed, it starts again.
                it.is_spoiled = it.arriving is not None
                return Outcome.RECOVERED
            if failure.start != _address(buffer):
                return Outcome.RECOVERED  # it has been elsewhere since
            is_good = self.forsake(it, f"memory at {failure.address:#x} failed")
            handle = it.owned()
        self.give_up(buffer)
        if is_good:
            return Outcome.RECOVERED
        tell = None if handle is None else getattr(handle.owner, "on_memory_failure", None)
        if handle is None or tell is None:
            return None
        told: Outcome | None = tell(Told(failure, handle))
        return told

    def forsake(self, it: Object, why: str) -> bool:
        """An object's buffer is of no use any more; whether it has a good copy. Locked."""
        is_good = it.clean
        if it.buffer is not None:
            # That is not in the memory which failed.
            with contextlib.suppress(NotAllocated):
                _keep_record(it, it.buffer)
        self.policy.remove(it)
        # A write that is under way may have read anything.
        it.version += 1
        self.leave(it)
        it.is_fresh = False
        if not is_good:
            self.lose(it, why)
        return is_good

    def lose(self, it: Object, why: str) -> None:
        """An object is lost; locked."""
        it.lost = why
        it.clean = False
        self.counters.lost += 1
        if it.copy is not None:
            self.trash.append(it.copy)
            it.copy = None

    def must_be_usable(self, it: Object | None = None) -> None:
        """Raises if the pool or the object is of no use any more; locked."""
        if self.refused is not None:
            raise type(self.refused)(*self.refused.args)
        if it is not None:
            if it.is_dead:
                raise ValueError("the object was freed")
            if it.lost is not None:
                raise Poisoned(f"the object of {it.nbytes} bytes is lost: {it.lost}")

    def no_room(self, size: int, cause: BaseException | None = None) -> OutOfSpace:
        """The error for an object that there is no room for, with what is pinned; locked."""
        space = self.arena.space
        available = min(self.limit - self.resident, space.available)
        why = "" if cause is None else f", and others cannot be swapped out: {cause}"
        error = no_room(
            f"no room for {size} in a pool of {self.limit}: {self.pinned} are pinned{why}",
            size,
            available,
            space.largest_free,
            "exhausted" if available < size else "fragmented",
            self.accounts.pinned(),
            [],
        )
        error.__cause__ = cause
        return error

    # The pool as a whole.

    def resize(self, limit: int) -> None:
        """Sets the limit, and evicts what is too much."""
        with self.lock:
            self.must_be_usable()
            before = self.limit
            self.limit = self.policy.limit = limit
        try:
            self.room.reserve(0)
        except BaseException:
            with self.lock:
                self.limit = self.policy.limit = before
            raise

    def flush(self) -> None:
        """Writes what is dirty and not pinned."""
        with self.lock:
            self.bury_dead()
            self.must_be_usable()
            todo = list(self.policy)
        for start in range(0, len(todo), _FLUSHED):
            with self.lock:
                leaving = [
                    begun
                    for it in todo[start : start + _FLUSHED]
                    if it.buffer is not None
                    and not (it.clean or it.pins or it.is_moving or it.is_dead or it.lingers())
                    and (begun := self.transfer.begin(it)) is not None
                ]
            if (error := self.transfer.write_out(leaving, evict=False)) is not None:
                raise error
        with self.lock:
            # What others were writing when we came by.
            while self.moving:
                self.changed.wait()

    def close(self) -> None:
        """Frees all objects, if none is pinned, and lets nothing more be done."""
        with self.lock:
            if self.refused is not None:
                return
            self.bury_dead()
            pinned = [it for it in self.objects if it.pins or it.lingers()]
            if pinned:
                raise Busy(
                    f"the pool has {len(pinned)} objects that are pinned",
                    _address(pinned[0].buffer),
                    sum(it.pins + it.lingers() for it in pinned),
                )
            self.refused = ValueError("the pool is closed")
            while self.moving or self.arriving:
                self.changed.wait()
            for it in list(self.objects):
                self.bury(it)
        _CORES.discard(self)
        self.worker.stop()
        self.transfer.empty_trash()

    def abandon(self) -> None:
        """Frees all slots, with nothing to come after."""
        with self.lock:
            if self.refused is None:
                self.refused = ValueError("the pool is closed")
                self.trash.extend(it.copy for it in self.objects if it.copy is not None)
        self.transfer.empty_trash()

    def __del__(self) -> None:
        # What was in the swap file is freed by its thread, which holds neither handles nor us.
        if hasattr(self, "worker"):
            self.worker.wake()

    def leave_to_parent(self) -> None:
        """In a process that was just forked: the pool is the parent's."""
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.refused = PotadError(
            f"the pool belongs to process {os.getppid()}, from which this one was forked"
        )

    def count(self) -> int:
        """How many objects there are."""
        with self.lock:
            self.bury_dead()
            return len(self.objects)

    def stats(self) -> PoolStats:
        """What happened so far."""
        with self.lock:
            self.bury_dead()
            return self.counters.stats(self)

    def check(self) -> None:
        """Recounts everything."""
        with self.lock:
            self.bury_dead()
            resident = [it for it in self.objects if it.buffer is not None]
            sums = {
                "resident": sum(it.size for it in resident) + self.reserved,
                "pinned": sum(it.size for it in resident if it.pins),
                "dirty": sum(it.size for it in resident if not it.clean),
            }
            for name, found in sums.items():
                if (kept := getattr(self, name)) != found:
                    raise Corrupt(f"{name} is kept as {kept} but is {found}")
            queued = Counter(self.policy)
            for it in resident:
                if not it.is_moving and queued[it] != 1:
                    raise Corrupt(f"{it!r} is resident and in {queued[it]} queues")
            for it in self.objects:
                if it.clean and it.copy is None:
                    raise Corrupt(f"{it!r} is clean and has no copy")
                if it.buffer is None and it.copy is None and it.lost is None and not it.arriving:
                    raise Corrupt(f"{it!r} is nowhere")
            for queue in (self.policy.small, self.policy.main, self.policy.ghosts):
                if queue.size != (found := sum(it.size for it in queue)):
                    raise Corrupt(f"a queue's size is kept as {queue.size} but is {found}")


def _keep_record(it: Object, buffer: Buffer) -> None:
    """Keeps an object's record for when it has a descriptor again."""
    if it.kind.record is not None and (record := buffer.descriptor.record) is not None:
        it.record = record.tobytes()


def _address(buffer: Buffer | None) -> int:
    """Where a buffer is, or was when it was freed; 0 if there is none."""
    try:
        return 0 if buffer is None else buffer.address
    except NotAllocated as error:
        return error.address


# All there are, for what happens to the process.
_CORES: weakref.WeakSet[Core] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for core in list(_CORES):
        core.leave_to_parent()


def _at_exit() -> None:
    """Slots of objects that end with the process are freed, in case the swap file does not."""
    for core in list(_CORES):
        with contextlib.suppress(Exception):
            core.abandon()


os.register_at_fork(after_in_child=_leave_to_parent)
atexit.register(_at_exit)
