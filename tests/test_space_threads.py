"""One space, many threads: nothing lost, nothing twice, no deadlock; and what a fork inherits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest

import potad

THREADS = 8


def run_together(count: int, work: Callable[[int], None]) -> None:
    """Runs `work(0)`, `work(1)`, ... each in a thread, started at once; raises what any raised."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Lets Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def work_on(space: potad.Space, rng: random.Random, steps: int, owned: dict[int, int]) -> None:
    """Any calls on a shared space. What a thread allocated nobody else may touch or be given."""
    granule = space.granule

    def own(start: int, size: int) -> None:
        owned[start] = size

    for _ in range(steps):
        action = rng.randrange(12)
        try:
            match action:
                case 0 | 1:
                    size = rng.randrange(1, 20) * granule
                    start = space.alloc(size)
                    own(start, granule << (size // granule - 1).bit_length())
                case 2:
                    size = rng.randrange(1, 30) * granule
                    own(space.alloc_run(size), size)
                case 3:
                    for start, size in space.alloc_scattered(rng.randrange(1, 40) * granule):
                        own(start, size)
                case 4:
                    for start in space.alloc_many(granule, rng.randrange(30)).tolist():
                        own(start, granule)
                case 5 | 6 if owned:
                    start = rng.choice(list(owned))
                    del owned[start]
                    space.free(start)
                case 7 if owned:
                    some = rng.sample(list(owned), rng.randrange(min(len(owned), 6)))
                    for start in some:
                        del owned[start]
                    space.free_many(np.array(some, np.uint64))
                case 8 if owned:
                    start = rng.choice(list(owned))
                    if owned[start] > granule:
                        half = owned[start] // granule // 2 * granule
                        space.split(start, half)
                        owned[start + half] = owned[start] - half
                        owned[start] = half
                case 9 if owned:
                    start = rng.choice(list(owned))
                    space.free_range(start, granule)
                    size = owned.pop(start)
                    if size > granule:
                        owned[start + granule] = size - granule
                case 10:
                    # No two calls apart agree on a changing space, but one call does with itself.
                    starts, sizes = space.lookup_many(list(owned))
                    assert dict(zip(starts.tolist(), sizes.tolist(), strict=True)) == owned
                    assert space.largest_free <= space.size
                    assert sum(s * n for s, n in space.free_blocks().items()) <= space.size
                case 11:
                    space.check()
        except potad.OutOfSpace:
            pass


def test_8_threads_on_one_space(rng: random.Random) -> None:
    space = potad.Space(3000 * 512, granule=512, base=77 * 512)
    seeds = [rng.getrandbits(32) for _ in range(THREADS)]
    owned: list[dict[int, int]] = [{} for _ in range(THREADS)]
    run_together(
        THREADS,
        lambda number: work_on(space, random.Random(seeds[number]), 8000, owned[number]),
    )
    space.check()
    # Each allocation is owned by one thread, and as that thread knows it.
    everything = sorted(item for mine in owned for item in mine.items())
    assert [(found.start, found.size) for found in space] == everything
    space.free_many([start for start, _ in everything])
    assert space.available == space.size
    space.check()


def test_spans_and_retirement_under_way(rng: random.Random) -> None:
    """The space grows, shrinks and loses granules while others allocate from it."""
    space = potad.Space(512 * 4096)
    seeds = [rng.getrandbits(32) for _ in range(THREADS)]
    owned: list[dict[int, int]] = [{} for _ in range(THREADS)]

    def work(number: int) -> None:
        if number >= 2:
            work_on(space, random.Random(seeds[number]), 4000, owned[number])
            return
        own = random.Random(seeds[number])
        for _ in range(3000):
            start = (1 << 40) * (number + 1) + own.randrange(64) * 4096 * 16
            try:
                space.add(start, 16 * 4096)
                space.retire(start + 4096)
                space.restore(start + 4096)
                space.remove(start, 16 * 4096)
            except potad.OutOfSpace as error:
                assert error.reason == "occupied"
            except ValueError:
                pass  # it is still there from an earlier round

    run_together(THREADS, work)
    space.check()
    everything = sorted(item for mine in owned for item in mine.items())
    assert [(found.start, found.size) for found in space] == everything
    assert space.retired().tolist() == []


def test_iterating_while_others_change_things(rng: random.Random) -> None:
    space = potad.Space(2000 * 4096)
    stay = [at * 4096 for at in range(0, 2000, 50)]
    for start in stay:
        space.alloc_at(start, 4096)
    stop = threading.Event()
    seeds = [rng.getrandbits(32) for _ in range(4)]

    def change(number: int) -> None:
        owned: dict[int, int] = {}
        own = random.Random(seeds[number])
        while not stop.is_set():
            work_on(space, own, 50, owned)
            space.free_many(list(owned))
            owned.clear()

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(1000):
            found = [(descriptor.start, descriptor.size) for descriptor in space]
            # Ascending and apart, whatever changed between two steps; what stays is seen each time.
            for (start, size), (following, _) in pairwise(found):
                assert start + size <= following
            assert set(stay) <= {start for start, _ in found}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [descriptor.start for descriptor in space] == stay
    space.check()


def test_iterating_while_the_loop_changes_things() -> None:
    space = potad.Space(64, granule=1)
    space.alloc_many(1, 64)
    seen = []
    for found in space:
        seen.append(found.start)
        space.free(found.start)
        if found.start + 1 in space:
            space.free(found.start + 1)
    assert seen == list(range(0, 64, 2))
    assert len(space) == 0

    walk = iter(space)
    assert list(walk) == []
    space.alloc_at(5, 1)
    # Past the end it stays there.
    assert list(walk) == []

    walk = iter(space)
    assert iter(walk) is walk
    assert next(walk).start == 5
    space.free(5)
    space.alloc_at(4, 3)
    space.alloc_at(9, 1)
    # It goes on where the last one ended; what started before that is over.
    assert [found.start for found in walk] == [9]


def test_many_threads_share_one_iterator() -> None:
    space = potad.Space(5000, granule=1)
    space.alloc_many(1, 5000)
    walk = iter(space)
    seen: list[list[int]] = [[] for _ in range(THREADS)]

    def take(number: int) -> None:
        seen[number] = [found.start for found in walk]

    run_together(THREADS, take)
    assert sorted(start for mine in seen for start in mine) == list(range(5000))


@contextmanager
def only_when_let_go() -> Iterator[None]:
    """Another thread gets its turn only when the one that runs gives the interpreter away."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def big_space() -> potad.Space:
    """A space in which a recount takes some tens of milliseconds."""
    space = potad.Space(1 << 40)
    space.alloc_many(4096, 1 << 23)
    return space


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL to let go"
)
@pytest.mark.parametrize("waits", [False, True], ids=["while it works", "while another waits"])
def test_others_run_meanwhile(waits: bool) -> None:
    """A long call lets other threads run, and so does one that waits for it."""
    space = big_space()
    # On a busy machine this thread may not run during a call though it could.
    assert any(turns_meanwhile(space, waits) > 3 for _ in range(10))


def turns_meanwhile(space: potad.Space, waits: bool) -> int:
    """How often this thread has its turn during a long call of another, for which a third waits."""
    times: list[float] = []
    running = threading.Event()

    def long_call() -> None:
        running.set()
        started = time.perf_counter()
        space.check()
        times.extend((started, time.perf_counter()))

    def waiting_call() -> None:
        running.wait()
        space.free(space.alloc(4096))

    with only_when_let_go():
        threads = [threading.Thread(target=long_call)]
        if waits:
            threads.append(threading.Thread(target=waiting_call))
        for thread in threads:
            thread.start()
        ticks = []
        while any(thread.is_alive() for thread in threads):
            ticks.append(time.perf_counter())
            time.sleep(0)
        for thread in threads:
            thread.join()
    started, ended = times
    return sum(started < tick < ended for tick in ticks)


FORKING = """
import os, signal, sys, threading, warnings
import potad

signal.alarm(100)  # a deadlock ends
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is the point
sys.setswitchinterval(1e-5)

spaces = [potad.Space(1 << 30) for _ in range(3)]
keep = [space.alloc_many(4096, 5000) for space in spaces]
stop = threading.Event()

def bulk(space):
    while not stop.is_set():
        space.free_many(space.alloc_many(8192, 3000))
        space.check()

def brief(space):
    while not stop.is_set():
        for _ in range(50):
            space.free(space.alloc(4096))

def come_and_go():
    while not stop.is_set():
        potad.Space(1 << 20).alloc(1)

threads = [threading.Thread(target=bulk, args=(space,)) for space in spaces]
threads += [threading.Thread(target=brief, args=(space,)) for space in spaces]
threads += [threading.Thread(target=come_and_go), threading.Thread(target=bulk, args=(spaces[0],))]
for thread in threads:
    thread.start()

def child():
    for space, kept in zip(spaces, keep):
        space.check()
        starts, sizes = space.lookup_many(kept)
        assert (starts == kept).all() and (sizes == 4096).all()
        # Whole batches only: no thread was caught in the middle of one.
        assert space.used // 4096 - 5000 in (0, 1, 2, 6000, 6001, 12000, 12001), space.used
        space.free(space.alloc(1 << 20))
        space.free_many(kept)
        space.check()
    more = potad.Space(1 << 20)
    workers = [threading.Thread(target=more.alloc, args=(4096,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(more) == 4
    grandchild = os.fork()
    if grandchild == 0:
        more.check()
        os._exit(0)
    assert os.waitpid(grandchild, 0)[1] == 0

forks = 0
try:
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(60)
                child()
                status = 0
            except BaseException as error:
                print(type(error), error, file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        forks += 1
finally:
    stop.set()
    for thread in threads:
        thread.join()
for space in spaces:
    space.check()
    assert len(space) == 5000
print(forks)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_forking_under_load() -> None:
    """A child finds every lock free and every space whole, whatever its parent's threads did."""
    forks = 60
    result = subprocess.run(
        [sys.executable, "-c", FORKING, str(forks)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, str(forks)), result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_forks_from_several_threads_at_once() -> None:
    script = """
import os, signal, threading, warnings
import potad
signal.alarm(100)
warnings.simplefilter("ignore", DeprecationWarning)
spaces = [potad.Space(1 << 30) for _ in range(20)]
def fork_often():
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            for space in spaces:
                space.alloc(4096)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        for space in spaces:
            space.free(space.alloc(4096))
threads = [threading.Thread(target=fork_often) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert all(len(space) == 0 for space in spaces)
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=False
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
