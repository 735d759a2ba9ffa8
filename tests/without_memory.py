"""Every public call of a space or an arena, with the n-th request for memory failing, for every n.

    LD_PRELOAD=failing_malloc.so python without_memory.py rust|python

Run by `test_without_memory.py`. `rust` fails the requests of the compiled module, by a `malloc` in
place of the system's. Each call is made in a world of its own: it does what it does with memory, or
it raises MemoryError and the world is as before. `python` fails the requests of the interpreter,
which has a hook for that: a call does what it does with memory or raises MemoryError, and the space
is sound.

Prints what is not so.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

import numpy as np

import potad
from potad import _core

GRANULE = 4096
RECORD = potad.Kind("record", record=np.dtype([("a", "u8", 32)]), movable=True)
PAGE = potad.Kind("page", movable=True)
FIXED = potad.Kind("fixed", record="u4")
KINDS = (RECORD, PAGE, FIXED)


class Owner:
    """Agrees to everything, or refuses everything."""

    def __init__(self, name: str, agrees: bool = True) -> None:
        self.name = name
        self.agrees = agrees

    def on_relocate(self, move: potad.Move) -> bool:
        return self.agrees

    def on_memory_failure(self, failure: potad.Failure) -> potad.Outcome:
        return potad.Outcome.DELAYED

    def __repr__(self) -> str:
        return f"<{self.name}>"


class World:
    """A space with a bit of everything in it."""

    def __init__(self) -> None:
        self.space = space = potad.Space(256 * GRANULE)
        space.add(300 * GRANULE, 100 * GRANULE)
        self.owner, self.refusing = Owner("owner"), Owner("refusing", agrees=False)
        self.new_owner, self.new_kind = Owner("new"), potad.Kind("new", record="u8", movable=True)
        self.plain = space.alloc(4 * GRANULE)
        self.recorded = space.alloc(GRANULE, kind=RECORD, owner=self.owner)
        self.pinned = space.alloc(8 * GRANULE, kind=FIXED)
        space.pin(self.pinned)
        for start in range(64, 128, 4):
            space.alloc_at(start * GRANULE, GRANULE, kind=PAGE)
            space.alloc_at((start + 64) * GRANULE, GRANULE, kind=PAGE, owner=self.owner)
        space.alloc_at(200 * GRANULE, GRANULE, kind=PAGE, owner=self.refusing)
        space.retire(250 * GRANULE)
        space.retire(self.plain)
        self.descriptor = cast(potad.Descriptor, space.lookup(self.recorded))
        self.record = self.descriptor.record
        self.pin_context = space.pinned(self.recorded)
        self.iterator = iter(space)
        next(self.iterator)

        self.arena = potad.Arena(128 * GRANULE)
        self.buffer = self.arena.alloc(5000, owner=self.owner)
        self.looked_at = self.arena.alloc(3 * GRANULE)
        self.view = memoryview(self.looked_at)
        self.small = [self.arena.alloc(GRANULE) for _ in range(32)]
        del self.small[::2]
        self.numpy = self.arena.numpy()
        with self.numpy:
            self.array = np.arange(1000)
        self.empty = potad.Arena(16 * GRANULE)
        self.pin = self.buffer.pin()
        self.pin.__exit__(None, None, None)

    def spaces(self) -> list[potad.Space]:
        return [self.space, self.arena.space, self.empty.space]

    def check(self) -> None:
        for space in self.spaces():
            space.check()

    def figures(self, wherever: bool) -> list[str]:
        """All that can be seen of it, in lines; `wherever` what there is may be."""
        lines = list(map(repr, (self.arena, self.empty)))
        for space in self.spaces():
            for it in space:
                record = None if it.record is None else it.record.tobytes()
                what = (it.size, it.kind, it.owner, it.pins) if wherever else it
                lines.append(f"{what} {it.state} {record!r}")
            lines += map(repr, space.report())
            lines += [str(len(space.records(kind))) for kind in KINDS]
            lines += [str(len(space.owned_by(owner))) for owner in self.owners()]
            lines += map(str, (space.spans(), space.retired_ranges()))
            lines += map(str, (space.size, space.available, space.used))
            if not wherever:
                lines += map(str, (space.free_blocks(), space.largest_free))
        return sorted(lines)

    def owners(self) -> list[Owner]:
        return [self.owner, self.refusing, self.new_owner]


def array_in(world: World) -> object:
    with world.numpy:
        return np.zeros(2000)


Call = Callable[[World], object]


class Asking:
    """A call that asks owners about moves, and cannot take all of them back without memory."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self, world: World) -> object:
        return self.call(world)


CALLS: dict[str, list[Call]] = {
    "Space": [
        lambda _: potad.Space(1 << 30),
        lambda _: potad.Space(1 << 64, granule=1 << 20),
        lambda _: potad.Space(1000, granule=3),
    ],
    "Space.size": [lambda w: w.space.size],
    "Space.granule": [lambda w: w.space.granule],
    "Space.base": [lambda w: w.space.base],
    "Space.available": [lambda w: w.space.available],
    "Space.used": [lambda w: w.space.used],
    "Space.largest_free": [lambda w: w.space.largest_free],
    "Space.metadata_bytes": [lambda w: w.space.metadata_bytes],
    "Space.__len__": [lambda w: len(w.space)],
    "Space.__bool__": [lambda w: bool(w.space)],
    "Space.__contains__": [lambda w: w.plain in w.space],
    "Space.__iter__": [lambda w: iter(w.space), lambda w: list(w.space)],
    "Space.__repr__": [lambda w: repr(w.space)],
    "Space.__reduce__": [lambda w: w.space.__reduce__()],
    "Space.alloc": [
        lambda w: w.space.alloc(3 * GRANULE),
        lambda w: w.space.alloc(GRANULE, kind=PAGE, owner=w.owner),
        lambda w: w.space.alloc(GRANULE, kind=w.new_kind, owner=w.new_owner),
        lambda w: w.space.alloc(GRANULE, owner=w.new_owner, within=(1 << 19, 1 << 20)),
        lambda w: w.space.alloc(1 << 40),
        lambda w: w.space.alloc(1 << 40, kind=w.new_kind, owner=w.new_owner),
        lambda w: w.space.alloc(0),
    ],
    "Space.alloc_run": [
        lambda w: w.space.alloc_run(3 * GRANULE, align=4 * GRANULE),
        lambda w: w.space.alloc_run(3 * GRANULE, kind=w.new_kind, owner=w.new_owner),
        lambda w: w.space.alloc_run(64 * GRANULE, within=(0, 256 * GRANULE)),
        # Nobody has to be asked.
        lambda w: w.space.alloc_run(
            60 * GRANULE, within=(64 * GRANULE, 128 * GRANULE), relocate=True
        ),
        lambda w: w.space.alloc_run(
            60 * GRANULE,
            within=(64 * GRANULE, 128 * GRANULE),
            relocate=True,
            kind=w.new_kind,
            owner=w.new_owner,
        ),
        # Owners agree, and refuse.
        Asking(
            lambda w: w.space.alloc_run(
                60 * GRANULE,
                within=(128 * GRANULE, 192 * GRANULE),
                relocate=True,
                kind=w.new_kind,
                owner=w.new_owner,
            )
        ),
        Asking(
            lambda w: w.space.alloc_run(
                100 * GRANULE, within=(100 * GRANULE, 256 * GRANULE), relocate=True
            )
        ),
    ],
    "Space.alloc_at": [
        lambda w: w.space.alloc_at(240 * GRANULE, GRANULE),
        lambda w: w.space.alloc_at(240 * GRANULE, 2 * GRANULE, kind=FIXED, owner=w.new_owner),
        lambda w: w.space.alloc_at(w.plain, GRANULE),
    ],
    "Space.alloc_scattered": [
        lambda w: w.space.alloc_scattered(150 * GRANULE),
        lambda w: w.space.alloc_scattered(150 * GRANULE, kind=w.new_kind, owner=w.new_owner),
        lambda w: w.space.alloc_scattered(1 << 40, owner=w.new_owner),
    ],
    "Space.alloc_many": [
        lambda w: w.space.alloc_many(GRANULE, 100),
        lambda w: w.space.alloc_many(GRANULE, 1000),
    ],
    "Space.free": [
        lambda w: w.space.free(w.plain),
        lambda w: w.space.free(w.recorded),
        lambda w: w.space.free(1),
        lambda w: w.space.free(w.pinned),
        lambda w: w.space.free(address=w.recorded),
    ],
    "Space.free_range": [
        lambda w: w.space.free_range(w.plain, 4 * GRANULE),
        lambda w: w.space.free_range(w.plain + GRANULE, GRANULE),
        lambda w: w.space.free_range(w.recorded, GRANULE),
        lambda w: w.space.free_range(w.pinned, GRANULE),
    ],
    "Space.free_many": [
        lambda w: w.space.free_many([w.plain, w.recorded]),
        lambda w: w.space.free_many(np.arange(64, 128, 4, dtype=np.uint64) * GRANULE),
        lambda w: w.space.free_many(np.arange(64, 128, 4, dtype=np.int32) * GRANULE),
        lambda w: w.space.free_many([w.plain, w.pinned]),
        lambda w: w.space.free_many(cast(Any, ["x"])),
    ],
    "Space.split": [
        lambda w: w.space.split(w.plain, GRANULE),
        lambda w: w.space.split(w.pinned, GRANULE),
    ],
    "Space.lookup": [
        lambda w: w.space.lookup(w.plain),
        lambda w: w.space.lookup(w.recorded),
        lambda w: w.space.lookup(1 << 40),
        lambda w: w.space.lookup(-1),
    ],
    "Space.lookup_many": [lambda w: w.space.lookup_many([w.plain, w.recorded, 5])],
    "Space.pin": [
        lambda w: w.space.pin(w.plain),
        lambda w: w.space.pin(w.pinned),
        lambda w: w.space.pin(1 << 40),
    ],
    "Space.unpin": [lambda w: w.space.unpin(w.pinned), lambda w: w.space.unpin(w.plain)],
    "Space.pinned": [
        lambda w: w.space.pinned(w.plain),
        lambda w: w.pin_context.__enter__(),
        lambda w: w.pin_context.__exit__(None, None, None),
    ],
    "Space.pin_range": [
        lambda w: w.space.pin_range(64 * GRANULE, 64 * GRANULE),
        lambda w: w.space.pin_range(240 * GRANULE, GRANULE),
    ],
    "Space.memory_failure": [
        lambda w: w.space.memory_failure(w.recorded),
        lambda w: w.space.memory_failure(240 * GRANULE),
        lambda w: w.space.memory_failure(1 << 40),
    ],
    "Space.records": [
        lambda w: w.space.records(RECORD),
        lambda w: w.space.records(w.new_kind),
    ],
    "Space.owned_by": [lambda w: w.space.owned_by(w.owner)],
    "Space.report": [lambda w: w.space.report()],
    "Space.add": [
        lambda w: w.space.add(1000 * GRANULE, 7 * GRANULE),
        lambda w: w.space.add(0, GRANULE),
    ],
    "Space.remove": [
        lambda w: w.space.remove(240 * GRANULE, GRANULE),
        lambda w: w.space.remove(0, GRANULE),
    ],
    "Space.spans": [lambda w: w.space.spans()],
    "Space.allocations": [
        lambda w: w.space.allocations(),
        lambda w: list(w.space.allocations((GRANULE, 64 * GRANULE))),
        lambda w: w.space.allocations((2, 1)),
    ],
    "Space.free_ranges": [
        lambda w: w.space.free_ranges(),
        lambda w: w.space.free_ranges((5000, 1 << 20), 2 * GRANULE, 2 * GRANULE),
        lambda w: w.space.free_ranges(min_size=0),
    ],
    "Space.retire": [
        lambda w: w.space.retire(240 * GRANULE),
        lambda w: w.space.retire(w.recorded),
        lambda w: w.space.retire(1 << 40),
    ],
    "Space.restore": [lambda w: w.space.restore(250 * GRANULE), lambda w: w.space.restore(1)],
    "Space.retired": [lambda w: w.space.retired()],
    "Space.retired_ranges": [lambda w: w.space.retired_ranges()],
    "Space.free_blocks": [lambda w: w.space.free_blocks()],
    "Space.unusable_free_index": [lambda w: w.space.unusable_free_index(GRANULE)],
    "Space.check": [lambda w: w.space.check()],
    "Space.plan_run": [
        lambda w: w.space.plan_run(60 * GRANULE),
        lambda w: w.space.plan_run(250 * GRANULE),
    ],
    "Space.plan_compaction": [lambda w: w.space.plan_compaction(16 * GRANULE, 3)],
    "Space.compact": [
        lambda w: w.space.compact(16 * GRANULE, 3, within=(64 * GRANULE, 128 * GRANULE)),
        Asking(lambda w: w.space.compact(16 * GRANULE, 100)),
    ],
    "Space.cheapest_window": [lambda w: w.space.cheapest_window(60 * GRANULE)],
    "Kind": [
        lambda _: potad.Kind("name"),
        lambda _: potad.Kind("name", record=np.dtype("u8"), movable=True),
        lambda _: potad.Kind("name", record=np.dtype("O")),
    ],
    "Kind.name": [lambda _: PAGE.name],
    "Kind.record": [lambda _: RECORD.record],
    "Kind.movable": [lambda _: PAGE.movable],
    "Kind.__repr__": [lambda _: repr(RECORD)],
    "Descriptor.start": [lambda w: w.descriptor.start],
    "Descriptor.size": [lambda w: w.descriptor.size],
    "Descriptor.kind": [lambda w: w.descriptor.kind],
    "Descriptor.owner": [lambda w: w.descriptor.owner],
    "Descriptor.pins": [lambda w: w.descriptor.pins],
    "Descriptor.state": [lambda w: w.descriptor.state],
    "Descriptor.record": [lambda w: w.descriptor.record],
    "Descriptor.__eq__": [lambda w: w.descriptor == w.descriptor],
    "Descriptor.__hash__": [lambda w: hash(w.descriptor)],
    "Descriptor.__repr__": [lambda w: repr(w.descriptor)],
    "SpaceIterator.__iter__": [lambda w: iter(w.iterator)],
    "SpaceIterator.__next__": [lambda w: next(w.iterator)],
    "Pinned.__enter__": [lambda w: w.pin_context.__enter__()],
    "Pinned.__exit__": [lambda w: w.pin_context.__exit__()],
    "Arena": [
        lambda _: potad.Arena(1 << 24),
        lambda _: potad.Arena(1 << 62),
        lambda _: potad.Arena(0),
    ],
    "Arena.space": [lambda w: w.arena.space],
    "Arena.alloc": [
        lambda w: w.arena.alloc(100),
        lambda w: w.arena.alloc(3 * GRANULE, w.new_kind, w.new_owner, block=True),
        lambda w: w.arena.alloc(3 * GRANULE, w.new_kind, w.new_owner),
        lambda w: w.arena.alloc(1 << 30, w.new_kind, w.new_owner),
    ],
    "Arena.alloc_run": [
        lambda w: w.arena.alloc_run(100),
        lambda w: w.arena.alloc_run(3 * GRANULE, kind=w.new_kind, owner=w.new_owner),
        lambda w: w.arena.alloc_run(80 * GRANULE, relocate=True, owner=w.new_owner),
        lambda w: w.arena.alloc_run(127 * GRANULE, relocate=True, owner=w.new_owner),
    ],
    "Arena.find": [lambda w: w.arena.find(w.array.ctypes.data), lambda w: w.arena.find(0)],
    "Arena.memory_failure": [
        lambda w: w.arena.memory_failure(w.buffer.address),
        lambda w: w.arena.memory_failure(1),
    ],
    "Arena.compact": [Asking(lambda w: w.arena.compact())],
    "Arena.trim": [lambda w: w.arena.trim()],
    "Arena.numpy": [
        lambda w: w.arena.numpy(),
        lambda w: w.empty.numpy(),
        lambda w: w.numpy.__enter__(),
        lambda w: w.numpy.__exit__(),
        array_in,
        lambda w: w.array.resize(5000, refcheck=False),
    ],
    "Arena.close": [lambda w: w.empty.close(), lambda w: w.arena.close()],
    "Arena.__enter__": [lambda w: w.arena.__enter__()],
    "Arena.__exit__": [lambda w: w.empty.__exit__()],
    "Arena.__repr__": [lambda w: repr(w.arena)],
    "Buffer.address": [lambda w: w.buffer.address],
    "Buffer.nbytes": [lambda w: w.buffer.nbytes],
    "Buffer.descriptor": [lambda w: w.buffer.descriptor],
    "Buffer.kind": [lambda w: w.buffer.kind],
    "Buffer.owner": [lambda w: w.buffer.owner],
    "Buffer.freed": [lambda w: w.buffer.freed],
    "Buffer.pins": [lambda w: w.buffer.pins],
    "Buffer.pin": [lambda w: w.buffer.pin()],
    "Buffer.free": [lambda w: w.buffer.free(), lambda w: w.looked_at.free()],
    "Buffer.__enter__": [lambda w: w.buffer.__enter__()],
    "Buffer.__exit__": [lambda w: w.buffer.__exit__()],
    "Buffer.__len__": [lambda w: len(w.buffer)],
    "Buffer.__repr__": [lambda w: repr(w.buffer)],
    "Buffer.__buffer__": [
        lambda w: memoryview(w.buffer),
        lambda w: np.frombuffer(cast(Any, w.buffer), dtype=np.uint8),
    ],
    "Buffer.__release_buffer__": [lambda w: w.view.release()],
    "Buffer.__dlpack__": [lambda w: w.buffer.__dlpack__()],
    "Buffer.__dlpack_device__": [lambda w: w.buffer.__dlpack_device__()],
    "Buffer.__reduce_ex__": [lambda w: pickle.dumps(w.buffer, protocol=4)],
    "BufferPin.__enter__": [lambda w: w.pin.__enter__()],
    "BufferPin.__exit__": [lambda w: w.pin.__exit__()],
    "BufferPin.__repr__": [lambda w: repr(w.pin)],
    "NumpyContext.__enter__": [lambda w: w.numpy.__enter__()],
    "NumpyContext.__exit__": [lambda w: w.numpy.__exit__()],
}
CLASSES = {name.split(".")[0] for name in CALLS}

# Without memory in Python an owner gives no answer, which is a refusal; and Python itself loses an
# exception now and then, and says so.
ALSO = ("OutOfSpace", "SystemError")

# Without memory in Python these end in NumPy, which does not mind that everywhere.
NUMPYS = ("Space.records", "Arena.numpy", "NumpyContext.__enter__", "NumpyContext.__exit__")

# Dunders that every class has from `object`, or that only say which class it is.
NOT_CALLS = {*dir(object), "__doc__", "__module__", "__weakref__"}


def public_calls() -> set[str]:
    """Names of all that can be called or read of the classes here."""
    found = set()
    for name in CLASSES:
        class_ = getattr(_core, name)
        if class_ in (potad.Space, potad.Kind, potad.Arena):
            found.add(name)
        own = set(vars(class_)) - NOT_CALLS
        found |= {f"{name}.{call}" for call in own | set(vars(class_)) & {"__repr__", "__eq__"}}
    return found


def outcome(act: Callable[[], object]) -> str:
    """What a call comes to: nothing, or the class of what it raises."""
    try:
        act()
    except BaseException as error:
        return type(error).__name__
    return ""


class Rust:
    """Requests for memory of the compiled module."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        with open("/proc/self/maps") as maps:
            ranges = [line.split()[0].split("-") for line in maps if "/_core." in line]
        low, high = int(ranges[0][0], 16), int(ranges[-1][1], 16)
        library.fail_from(ctypes.c_size_t(low), ctypes.c_size_t(high))
        self.fail_at, self.fail_count = library.fail_at, library.fail_count

    def run(self, act: Callable[[], object], number: int, lasts: bool) -> tuple[str, bool]:
        """What a call comes to, and whether a request of it has failed."""
        self.fail_at(number, lasts)
        try:
            came = outcome(act)
        finally:
            failed = self.fail_count() != 0
            self.fail_at(0, 0)
        return came, failed


class Python:
    """Requests for memory of the interpreter."""

    def __init__(self) -> None:
        self.hooks = importlib.import_module("_testcapi")

    def run(self, act: Callable[[], object], number: int, lasts: bool) -> tuple[str, bool]:
        # So many succeed, and then one fails, or all.
        self.hooks.set_nomemory(number - 1, 0 if lasts else number)
        try:
            act()
        except BaseException as error:
            self.hooks.remove_mem_hooks()
            return type(error).__name__, True
        self.hooks.remove_mem_hooks()
        return "", False


def try_call(rig: Rust | Python, call: Call, is_strict: bool) -> None:
    """Makes a call again and again, with the first, the second, ... request for memory failing.

    Strictly, each time in a world of its own, which has to be as before if there is no memory.
    """
    # What owners have agreed to may stay moved.
    asks = isinstance(call, Asking)
    world = World()
    expected = outcome(lambda: call(world))
    for lasts in (False, True):
        world = World()
        for number in range(1, 10_000):
            if is_strict:
                world = World()
            before = world.figures(asks) if is_strict else []
            print(f"request {number}{' and all after it' if lasts else ''}", flush=True)
            came, failed = rig.run(lambda: call(world), number, lasts)  # noqa: B023
            world.check()
            known = (expected, "MemoryError") if is_strict else (*ALSO, expected, "MemoryError")
            assert came in known, f"{came or 'nothing'} was raised"
            if is_strict and came == "MemoryError":
                changes = set(before) ^ set(world.figures(asks))
                assert not changes, f"changed: {changes}"
            if not failed:
                break


def in_child(act: Callable[[], None]) -> tuple[int, str]:
    """What a child process comes to that does something, and what it prints."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with open(reader, errors="replace") as output:
        printed = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def main(which: str, *wanted: str) -> int:
    if missing := public_calls() - CALLS.keys():
        print("calls that are not made here:", *sorted(missing))
        return 1
    rig = Rust() if which == "rust" else Python()
    faults = 0
    for name, calls in CALLS.items():
        if (wanted and name not in wanted) or (which == "python" and name in NUMPYS):
            continue
        for at, call in enumerate(calls):
            status, printed = in_child(lambda: try_call(rig, call, which == "rust"))  # noqa: B023
            if status:
                faults += 1
                print(f"{name}[{at}]: {status}: {printed[-1500:]}", flush=True)
    return faults != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
