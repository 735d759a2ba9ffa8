"""What is taken of a buffer, or of a pin's view, pins the memory while it is there.

Some libraries keep a view, some an array, and some give the view back at once and keep only the
object that it names as its source. Here all of them meet all that frees, moves or writes out
memory.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from described import PAGE

import potad

KIB, MIB = 1 << 10, 1 << 20


class View(ctypes.Structure):
    """`Py_buffer`."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class Source:
    """What `torch.frombuffer` keeps: the source that the view names, and the address."""

    def __init__(self, seen: Any) -> None:
        view = View()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(seen), ctypes.byref(view), 1)
        self.source, self.address = view.obj, view.buf
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


def bytes_of(seen: Any) -> Any:
    """An array over what it is given."""
    return np.frombuffer(seen, np.uint8)


def write(seen: Any, value: int) -> None:
    """Writes a byte through whatever sees it."""
    if isinstance(seen, Source):
        ctypes.memset(seen.address, value, 1)
    elif isinstance(seen, np.ndarray):
        # Before NumPy 2.1 an array from DLPack is read-only, as far as it knows.
        ctypes.memset(seen.ctypes.data, value, 1)
    else:
        memoryview(seen).cast("B")[0] = value


def read(seen: Any) -> int:
    if isinstance(seen, Source):
        return ctypes.string_at(seen.address, 1)[0]
    return memoryview(seen).cast("B")[0]


class Interface:
    """An object with nothing but `__array_interface__`."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


def out_of_band(buffer: potad.Buffer) -> pickle.PickleBuffer:
    found: list[pickle.PickleBuffer] = []
    pickle.dumps(buffer, 5, buffer_callback=found.append)
    return found[0]


# What can be taken of a buffer, and of a pin's view as well.
OF_BOTH: dict[str, Callable[[Any], Any]] = {
    "memoryview": memoryview,
    "slice": lambda seen: memoryview(seen)[:80],
    "cast": lambda seen: memoryview(seen).cast("Q"),
    "numpy.frombuffer": bytes_of,
    "numpy.frombuffer of a memoryview": lambda seen: bytes_of(memoryview(seen)),
    "numpy.asarray": np.asarray,
    "a slice of an array": lambda seen: bytes_of(seen)[:80],
    "array interface": lambda seen: np.asarray(Interface(bytes_of(seen))),
    "from_dlpack of an array": lambda seen: np.from_dlpack(bytes_of(seen)),
    "PickleBuffer": pickle.PickleBuffer,
    "ctypes": (ctypes.c_char * 80).from_buffer,
    "the source": lambda seen: memoryview(seen).obj,
}

OF_BUFFERS = OF_BOTH | {
    "kept source": Source,
    "kept source of the source": lambda buffer: Source(memoryview(buffer).obj),
    "from_dlpack": np.from_dlpack,
    "pickle out of band": out_of_band,
}

OF_VIEWS = OF_BOTH | {"kept source of the source": lambda view: Source(view.obj)}


# What is not to be written through, but pins.
PINS: dict[str, Callable[[potad.Buffer], Any]] = {
    "pin": lambda buffer: buffer.pin(),
    "entered pin": lambda buffer: buffer.pin().__enter__(),
    "capsule": lambda buffer: buffer.__dlpack__(),
}


# ---- buffers -----------------------------------------------------------------------------------

FREES: dict[str, Callable[[potad.Arena, potad.Buffer], object]] = {
    "Buffer.free": lambda arena, buffer: buffer.free(),
    "end of a with block": lambda arena, buffer: buffer.__exit__(None, None, None),
    "free": lambda arena, buffer: arena.space.free(buffer.address),
    "free_many": lambda arena, buffer: arena.space.free_many([buffer.address]),
    "free_range": lambda arena, buffer: arena.space.free_range(buffer.address, 4096),
    "split": lambda arena, buffer: arena.space.split(buffer.address, 4096),
    "close": lambda arena, buffer: arena.close(),
}


@pytest.mark.parametrize("free", FREES.values(), ids=FREES)
@pytest.mark.parametrize("take", (OF_BUFFERS | PINS).values(), ids=OF_BUFFERS | PINS)
def test_what_is_taken_of_a_buffer_is_not_freed(take: Any, free: Any) -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(8192)
    taken = take(buffer)
    assert buffer.pins >= 1
    with pytest.raises(potad.Busy):
        free(arena, buffer)
    with pytest.raises(ValueError, match="looked at"):
        arena.space.unpin(buffer.address)
    if take not in PINS.values():
        write(taken, 7)
        assert read(buffer) == read(taken) == 7
    del taken
    gc.collect()
    assert buffer.pins == 0
    buffer.free()
    arena.close()


MOVES: dict[str, Callable[[potad.Arena], object]] = {
    "alloc_run": lambda arena: arena.alloc_run(128 * KIB, relocate=True),
    "compact": lambda arena: arena.compact(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("take", (OF_BUFFERS | PINS).values(), ids=OF_BUFFERS | PINS)
def test_what_is_taken_of_a_buffer_is_not_moved(take: Any, move: Any) -> None:
    def arrange() -> tuple[potad.Arena, list[potad.Buffer]]:
        arena = potad.Arena(64 * 4096)
        buffers = [arena.alloc(4096) for _ in range(64)]
        for number, buffer in enumerate(buffers):
            write(buffer, number)
        return arena, buffers[1::2]

    # What would be moved if nothing of it was taken.
    arena, buffers = arrange()
    before = [buffer.address for buffer in buffers]
    made = move(arena)
    places = [at for at, buffer in enumerate(buffers) if buffer.address != before[at]]
    assert places
    del made

    arena, buffers = arrange()
    before = [buffer.address for buffer in buffers]
    taken = {at: take(buffers[at]) for at in places[:3]}
    made = move(arena)
    for at, seen in taken.items():
        assert buffers[at].address == before[at]
        if take not in PINS.values():
            assert read(seen) == 2 * at + 1
    assert [read(buffer) for buffer in buffers] == list(range(1, 64, 2))
    # It may be moved again when nothing sees it.
    del taken, seen, made
    gc.collect()
    arena.compact()
    assert [buffer.address for buffer in buffers] != before
    assert [read(buffer) for buffer in buffers] == list(range(1, 64, 2))
    arena.space.check()


@pytest.mark.parametrize("take", OF_BUFFERS.values(), ids=OF_BUFFERS)
def test_what_is_taken_keeps_the_memory_when_all_else_is_gone(take: Any) -> None:
    arena = potad.Arena(MIB)
    space = arena.space
    buffer = arena.alloc(8192)
    taken = take(buffer)
    write(taken, 9)
    del buffer
    gc.collect()
    assert len(space) == 1
    assert arena.alloc(MIB - 8192).nbytes == MIB - 8192  # all but that
    assert read(taken) == 9
    del taken
    gc.collect()
    assert len(space) == 0


def test_each_export_is_one_pin() -> None:
    buffer = potad.Arena(MIB).alloc(100)
    views = [memoryview(buffer) for _ in range(3)]
    assert buffer.pins == 3
    # What is made of a view is the view's.
    made = [views[0][1:], np.asarray(views[0]), memoryview(views[0]), memoryview(views[0].obj)]
    assert buffer.pins == 3
    views.clear()
    gc.collect()
    assert buffer.pins == 1
    del made
    assert buffer.pins == 0


def test_an_export_is_not_made_by_callers() -> None:
    export = type(memoryview(potad.Arena(MIB).alloc(100)).obj)
    for thing in (export, potad.BufferPin):
        with pytest.raises(TypeError):
            thing()


def test_a_pin_ends_once() -> None:
    buffer = potad.Arena(MIB).alloc(100)
    with buffer.pin() as pin:
        assert isinstance(pin, potad.BufferPin)
        assert buffer.pins == 1
        with buffer.pin():
            assert buffer.pins == 2
    assert buffer.pins == 0
    assert "ended" in repr(pin)
    pin.__exit__(None, None, None)
    other = buffer.pin()
    pin.__exit__(None, None, None)
    del pin
    assert buffer.pins == 1
    with other, pytest.raises(potad.Busy):
        buffer.free()
    with pytest.raises(RuntimeError, match="another"):
        other.__enter__()
    buffer.free()
    with pytest.raises(potad.NotAllocated):
        buffer.pin()


def test_a_pin_keeps_its_buffer() -> None:
    arena = potad.Arena(MIB)
    pin = arena.alloc(100).pin()
    gc.collect()
    assert len(arena.space) == 1
    del pin
    assert len(arena.space) == 0


def test_pins_in_cycles_are_collected() -> None:
    class Owner:
        held: Any

    for take in (memoryview, potad.Buffer.pin):
        owner = Owner()
        owner.held = take(potad.Arena(MIB).alloc(100, owner=owner))
        dead = weakref.ref(owner)
        del owner
        gc.collect()
        assert dead() is None


def test_exports_that_end_on_other_threads_and_in_collections() -> None:
    arena = potad.Arena(4 * MIB)
    buffers = [arena.alloc(4096) for _ in range(64)]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(1500):
                buffer = buffers[number % len(buffers)]
                cycle: list[Any] = [memoryview(buffer), buffer.pin(), bytes_of(buffer)]
                cycle.append(cycle)
                if number % 100 == 0:
                    arena.compact()
        except BaseException as error:
            errors.append(error)

    before = gc.get_threshold()
    gc.set_threshold(5)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
    assert not errors
    gc.collect()
    assert not any(buffer.pins for buffer in buffers)
    arena.space.check()


SHORT_OF_MEMORY = """
import sys, _testcapi, potad
arena = potad.Arena(1 << 20)
buffer = arena.alloc(100)
take = {"memoryview": memoryview, "pin": potad.Buffer.pin, "bytes": bytes}[sys.argv[1]]
take(buffer)
failed = 0
for number in range(200):
    taken = None
    _testcapi.set_nomemory(number, number + 1)
    try:
        taken = take(buffer)
    except MemoryError:
        failed += 1
    finally:
        _testcapi.remove_mem_hooks()
    pins = 0 if taken is None or isinstance(taken, bytes) else 1
    assert buffer.pins == pins, (number, buffer.pins)
assert failed
buffer.pins
del taken
buffer.free()
print("done")
"""


@pytest.mark.parametrize("take", ["memoryview", "pin", "bytes"])
def test_an_export_that_cannot_be_made_leaves_no_pin(take: str) -> None:
    pytest.importorskip("_testcapi", reason="this Python cannot be made short of memory")
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, take],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


# ---- what was freed ----------------------------------------------------------------------------

USES: dict[str, Callable[[potad.Buffer], object]] = {
    "address": lambda buffer: buffer.address,
    "descriptor": lambda buffer: buffer.descriptor,
    "kind": lambda buffer: buffer.kind,
    "owner": lambda buffer: buffer.owner,
    "pins": lambda buffer: buffer.pins,
    "pin": lambda buffer: buffer.pin(),
    "free": lambda buffer: buffer.free(),
    "memoryview": memoryview,
    "bytes": bytes,
    "frombuffer": bytes_of,
    "dlpack": lambda buffer: buffer.__dlpack__(),
    "pickle 4": lambda buffer: pickle.dumps(buffer, 4),
    "pickle 5": lambda buffer: pickle.dumps(buffer, 5),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("is_moved", [False, True])
@pytest.mark.parametrize("is_taken", [False, True])
def test_the_error_says_where_a_buffer_was(use: Any, is_moved: bool, is_taken: bool) -> None:
    arena = potad.Arena(64 * 4096)
    buffers = [arena.alloc(4000) for _ in range(64)]
    buffer, first = buffers[1], buffers[1].address
    if is_moved:
        del buffers[::2]
        run = arena.alloc_run(32 * 4096, relocate=True)
        assert buffer.address != first
        del run
    address = buffer.address
    buffer.free()
    if is_taken:
        # That something else is there now does not matter.
        arena.space.alloc_at(address, 4096)
    with pytest.raises(potad.NotAllocated, match=f"4000 bytes at {address:#x} was freed") as caught:
        use(buffer)
    assert caught.value.address == address


def test_the_error_of_an_unpin_names_the_address_that_was_given() -> None:
    arena = potad.Arena(MIB)
    buffer = arena.alloc(4096)
    inside = buffer.address + 5
    with pytest.raises(ValueError, match=f"{inside:#x}"):
        arena.space.unpin(inside)
    with buffer.pin(), pytest.raises(ValueError, match=f"{inside:#x}"):
        arena.space.unpin(inside)


# ---- pools -------------------------------------------------------------------------------------


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[potad.SwapFile]:
    with potad.SwapFile(tmp_path / "swap", 8 * MIB, keep=False) as file:
        yield file


@pytest.fixture
def pool(swap: potad.SwapFile) -> Iterator[potad.Pool]:
    with potad.Pool(memory=potad.Arena(MIB), swap=swap, write_ahead=0) as made:
        yield made
        made.check()


def drive_out(pool: potad.Pool, handle: potad.Handle) -> None:
    """Has an object go to the swap file."""
    pool.resize(4096)
    pool.resize(MIB)
    assert not handle.resident


def crowd(pool: potad.Pool) -> None:
    """Makes so many objects that others have to go."""
    others = [pool.alloc(64 * KIB) for _ in range(40)]
    for other in others:
        with other.pin() as view:
            view[0] = 1


def fail_to_shrink(pool: potad.Pool) -> None:
    with pytest.raises(potad.OutOfSpace):
        pool.resize(4096)


def make_a_run(pool: potad.Pool) -> None:
    small = [pool.alloc(4096) for _ in range(256)]
    run = pool.alloc(512 * KIB, align=128 * KIB)
    del small, run


PRESSES: dict[str, Callable[[potad.Pool], object]] = {
    "flush": potad.Pool.flush,
    "eviction": crowd,
    "resize": fail_to_shrink,
    "run": make_a_run,
    "compact": lambda pool: pool.memory.compact(),
    "alloc_run": lambda pool: pool.memory.alloc_run(256 * KIB, relocate=True),
}


@pytest.mark.parametrize("press", PRESSES.values(), ids=PRESSES)
@pytest.mark.parametrize("take", OF_VIEWS.values(), ids=OF_VIEWS)
def test_writes_through_what_outlives_a_pin_are_kept(
    pool: potad.Pool, take: Any, press: Any
) -> None:
    handle = pool.alloc(64 * KIB)
    with handle.pin() as view:
        view[:] = bytes(64 * KIB)
        taken = take(view)
    assert handle.pins == 0
    with pytest.raises(potad.Busy) as caught:
        handle.free()
    assert caught.value.pins == 1
    assert pool.find(caught.value.address) is handle
    press(pool)
    assert handle.resident
    pool.flush()
    assert pool.stats().dirty_bytes >= 64 * KIB
    write(taken, 99)
    with handle.pin(write=False) as view:
        assert view[0] == 99
    del taken
    gc.collect()
    drive_out(pool, handle)
    with handle.pin(write=False) as view:
        assert view[0] == 99
    handle.free()


@pytest.mark.parametrize("take", OF_VIEWS.values(), ids=OF_VIEWS)
def test_what_outlives_a_pin_is_not_written_ahead(swap: potad.SwapFile, take: Any) -> None:
    with potad.Pool(memory=potad.Arena(MIB), swap=swap, write_ahead=MIB) as pool:
        handle = pool.alloc(64 * KIB)
        with handle.pin() as view:
            view[:] = bytes(64 * KIB)
            taken = take(view)
        for _ in range(3):
            crowd(pool)
            write(taken, read(taken) + 1)
        del taken, view
        gc.collect()
        drive_out(pool, handle)
        with handle.pin(write=False) as view:
            assert view[0] == 3
        pool.check()


@pytest.mark.parametrize("take", OF_VIEWS.values(), ids=OF_VIEWS)
def test_a_pool_is_not_closed_under_what_outlives_a_pin(pool: potad.Pool, take: Any) -> None:
    handle = pool.alloc(1000 * 8)
    with handle.pin() as view:
        taken = take(view)
    with pytest.raises(potad.Busy) as caught:
        pool.close()
    assert caught.value.pins == 1
    write(taken, 5)
    del taken
    gc.collect()
    with handle.pin(write=False) as view:
        assert view[0] == 5


@pytest.mark.parametrize("take", OF_VIEWS.values(), ids=OF_VIEWS)
def test_an_object_that_is_collected_under_what_outlives_its_pin(
    pool: potad.Pool, take: Any
) -> None:
    """In a dictionary that is when a value is replaced."""
    texts = pool.dict()
    texts["one"] = bytes(64 * KIB)
    with texts.pin("one", write=True) as view:
        taken = take(view)
    texts["one"] = b"other"
    del view
    gc.collect()
    crowd(pool)
    write(taken, 7)
    assert read(taken) == 7
    assert texts["one"] == b"other"
    used = pool.memory.space.used
    del taken
    gc.collect()
    assert pool.memory.space.used == used - 64 * KIB


@pytest.mark.parametrize("take", OF_VIEWS.values(), ids=OF_VIEWS)
def test_memory_that_fails_under_what_outlives_a_pin(pool: potad.Pool, take: Any) -> None:
    handle = pool.alloc(64 * KIB)
    with handle.pin() as view:
        view[:] = bytes(64 * KIB)
    pool.flush()
    with handle.pin() as view:
        taken = take(view)
        address = bytes_of(view).ctypes.data
    pool.flush()
    # What may have been written since is nowhere else.
    assert pool.memory.memory_failure(address) is potad.Outcome.FAILED
    assert handle.lost
    write(taken, 8)
    assert read(taken) == 8
    with pytest.raises(potad.Poisoned), handle.pin():
        pass
    del taken, view
    gc.collect()
    assert pool.memory.space.used == 0


def test_memory_that_fails_under_a_reader(pool: potad.Pool) -> None:
    handle = pool.alloc(64 * KIB)
    with handle.pin() as view:
        view[:] = b"a" * (64 * KIB)
    pool.flush()
    with handle.pin(write=False) as view:
        readers = [np.asarray(view), pickle.PickleBuffer(view)]
        address = np.asarray(view).ctypes.data
    # It cannot have been written, so the copy is as good.
    assert pool.memory.memory_failure(address) is potad.Outcome.RECOVERED
    del readers
    with handle.pin(write=False) as view:
        assert bytes(view) == b"a" * (64 * KIB)


def test_a_pin_by_address_keeps_an_object(pool: potad.Pool) -> None:
    handle = pool.alloc(64 * KIB)
    with handle.pin() as view:
        view[:] = bytes(64 * KIB)
        address = bytes_of(view).ctypes.data
        pool.memory.space.pin(address)
    crowd(pool)
    pool.flush()
    assert handle.resident
    ctypes.memset(address, 6, 1)
    assert pool.memory.space.unpin(address) == 0
    drive_out(pool, handle)
    with handle.pin(write=False) as view:
        assert view[0] == 6


def test_busy_says_where_an_object_was(pool: potad.Pool) -> None:
    """Its user has released the view, so somebody else could free its memory."""
    handle = pool.alloc(64 * KIB)
    with handle.pin() as view:
        address = bytes_of(view).ctypes.data
        view.release()
        pool.memory.space.free(address)
        with pytest.raises(potad.Busy) as caught:
            handle.free()
        assert caught.value.address == address
    handle.free()


def test_an_object_that_is_being_written_can_be_freed(pool: potad.Pool) -> None:
    """The view through which it is written is nobody's."""
    handle = pool.alloc(64 * KIB)
    core = pool._core
    with core.lock:
        begun = core.transfer.begin(handle._object)
    assert begun is not None
    handle.free()
    core.transfer.write_out([begun], evict=False)
    assert pool.memory.space.used == 0


# ---- leaks -------------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Rounds:
    """Calls that leave nothing behind."""

    def __init__(self) -> None:
        self.arena = potad.Arena(16 * MIB)
        self.buffer = self.arena.alloc(100, PAGE, self)
        self.freed = self.arena.alloc(100)
        self.freed.free()
        self.context = self.arena.numpy()

    def make_context(self) -> None:
        self.arena.numpy()

    def enter_context(self) -> None:
        with self.arena.numpy():
            pass

    def enter_contexts(self) -> None:
        with self.context, self.arena.numpy():
            np.zeros(1000)

    def views(self) -> None:
        memoryview(self.buffer)
        bytes_of(memoryview(self.buffer)[:80])
        Source(self.buffer)

    def dlpack(self) -> None:
        np.from_dlpack(self.buffer)
        self.buffer.__dlpack__()

    def pins(self) -> None:
        with self.buffer.pin():
            self.buffer.pin()
        with self.arena.space.pinned(self.buffer.address):
            pass

    def pickles(self) -> None:
        pickle.dumps(self.buffer, 4)
        out_of_band(self.buffer)

    def buffers(self) -> None:
        self.arena.alloc(100)
        with self.arena.alloc(100, PAGE, object()):
            pass
        self.arena.alloc_run(8192, owner=object())

    def records(self) -> None:
        descriptor = self.buffer.descriptor
        assert descriptor.record is not None
        assert descriptor.owner is self
        assert repr(descriptor)

    def space(self) -> None:
        space = self.arena.space
        start = space.alloc(8192, kind=PAGE, owner=object())
        space.split(start, 4096)
        space.free_many(space.pin_range(start, 8192)[:0])
        space.unpin(start)
        space.unpin(start + 4096)
        space.free_range(start, 8192)
        list(space)

    def errors(self) -> None:
        for call in (lambda: memoryview(self.freed), self.freed.free, self.freed.pin):
            with pytest.raises(potad.NotAllocated):
                call()
        with self.buffer.pin(), pytest.raises(potad.Busy):
            self.buffer.free()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no figures of the process")
@pytest.mark.parametrize("name", [name for name in vars(Rounds) if not name.startswith("_")])
def test_calls_leave_nothing_behind(name: str) -> None:
    call = getattr(Rounds(), name)
    count = 10_000 if name == "errors" else 30_000

    def grown() -> tuple[int, int]:
        blocks, size = sys.getallocatedblocks(), resident()
        for _ in range(count):
            call()
        gc.collect()
        return sys.getallocatedblocks() - blocks, resident() - size

    call()
    # What else is in the process may come to need memory once, but not each time.
    blocks, sizes = zip(*(grown() for _ in range(4)), strict=True)
    assert min(blocks) < count // 20
    assert min(sizes) < 16 * count


# ---- contexts of NumPy -------------------------------------------------------------------------


def test_contexts_that_are_left_in_another_order() -> None:
    def where() -> str:
        array = np.ones(10)
        found = [name for name, arena in arenas.items() if arena.find(array.ctypes.data)]
        return found[0] if found else "outside"

    arenas = {name: potad.Arena(MIB) for name in ("one", "two", "three")}
    one, two, three = (arena.numpy() for arena in arenas.values())
    one.__enter__()
    two.__enter__()
    three.__enter__()
    one.__exit__()
    assert where() == "three"
    three.__exit__()
    assert where() == "two"
    with pytest.raises(RuntimeError, match="not entered"):
        three.__exit__()
    two.__exit__()
    assert where() == "outside"
