"""Pools, arenas and spaces shown to other processes: what is shown, to whom, and until when.

What has to do with forks, kills and the end of an interpreter is done by processes of its own.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pool_samples import random_stats, stats, usage
from swapping import in_child

import potad
from potad.monitor import BadAnswer, NotServing, Snapshot, place, running, snapshot
from potad.monitor.client import ANSWER_BYTES_MAX
from potad.monitor.view import ROWS_MAX, VERSION, HasStats, Viewer
from potad.pool.stats import PoolStats, PoolUsage

PAGE = potad.Kind("page", movable=True)

# What is served where it does not matter what: a server does not keep its target.
SPACE = potad.Space(1 << 20)


class Pool:
    """As much of a pool as a server sees."""

    def __init__(self, figures: Any = None) -> None:
        self.figures = stats() if figures is None else figures
        self.closed = False

    def stats(self) -> PoolStats:
        if isinstance(self.figures, Exception):
            raise self.figures
        figures: PoolStats = self.figures
        return figures


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The default directory, of this test alone, and with a short name: sockets need that."""
    runtime = tempfile.mkdtemp(prefix="potad-", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    yield Path(runtime, "potad")
    shutil.rmtree(runtime)


def soon(what: Callable[[], Any]) -> None:
    """Waits until it is so."""
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, "not so after 30 seconds"
        time.sleep(0.01)


def threads() -> int:
    return sum(thread.name == "potad-serve" for thread in threading.enumerate())


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@contextmanager
def fake_server(path: Path, *parts: bytes, silent: bool = False) -> Iterator[None]:
    """A socket that answers each client with these parts, or accepts and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as held:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            while True:
                client, _ = listener.accept()
                held.enter_context(client)
                if stop.is_set():
                    return
                if not silent:
                    with suppress(OSError):
                        for part in parts:
                            client.sendall(part)
                    client.close()

        stop = threading.Event()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                thread.join()


def test_a_space_in_figures() -> None:
    space = potad.Space(1 << 30, base=1 << 40)
    owner = ["me"]
    for _ in range(3):
        space.alloc(64 << 10, kind=PAGE, owner=owner)
    space.alloc(4096)
    space.retire((1 << 40) + (1 << 29), 8192)
    before = time.time()
    with potad.serve(space, name="numbers") as server:
        seen = snapshot(server.path)
    assert (seen.kind, seen.name, seen.pid, seen.version) == ("space", "numbers", os.getpid(), 1)
    assert seen.program == sys.argv[0]
    assert before - 1 <= seen.time <= time.time() + 1
    assert seen.error is None
    assert seen.pool is None
    figures = seen.space
    assert figures is not None
    assert (figures.size, figures.granule, figures.base) == (1 << 30, 4096, 1 << 40)
    assert (figures.used, figures.allocations, figures.retired) == (200704, 4, 8192)
    assert figures.available == space.available == figures.size - figures.used - 8192
    assert figures.largest_free == space.largest_free
    assert figures.free_blocks == space.free_blocks()
    assert figures.unusable == {
        size: space.unusable_free_index(size) for size in (1 << 16, 1 << 21, 1 << 25)
    }
    assert [(row.kind, row.owner, row.allocations, row.size) for row in figures.rows] == [
        ("page", "['me']", 3, 196608),
        ("-", "-", 1, 4096),
    ]
    assert seen.rows_left_out == 0


def test_edges_of_spaces() -> None:
    for space in (potad.Space(0), potad.Space(4096), potad.Space((1 << 64) - 1, granule=1)):
        with potad.serve(space) as server:
            seen = snapshot(server.path)
        assert seen.error is None
        assert seen.space is not None
        assert seen.space.size == space.size
        assert all(size <= space.size for size in seen.space.unusable)


def test_an_arena_shows_its_space() -> None:
    arena = potad.Arena(1 << 24)
    with potad.serve(arena) as server, arena.alloc(10_000, owner="me"):
        seen = snapshot(server.path)
    assert seen.kind == "arena"
    assert seen.space is not None
    assert seen.space.base == arena.space.base
    assert [(row.kind, row.owner, row.size) for row in seen.space.rows] == [
        ("buffer", "'me'", 12288)
    ]


def test_a_pool_in_figures(rng: random.Random) -> None:
    pool = Pool()
    with potad.serve(pool, name="pool") as server:
        for _ in range(5):
            pool.figures = random_stats(rng)
            seen = snapshot(server.path)
            assert (seen.kind, seen.pool, seen.space) == ("pool", pool.figures, None)


def test_rows_beyond_some_are_left_out_and_said_to_be() -> None:
    space = potad.Space(1 << 30)
    for number in range(ROWS_MAX + 7):
        space.alloc(4096 << (number % 3), owner=f"{number} " + "x" * 1000)
    long, large = "\U0001f600" * 1000, 1 << 64
    figures = {field.name: large for field in dataclasses.fields(PoolUsage) if field.type == "int"}
    rows = [usage(long, long, **figures) for _ in range(ROWS_MAX + 9)]
    pool = Pool(stats(rows=tuple(rows)))
    with potad.serve(space) as one, potad.serve(pool, name=long) as other:
        seen, of_pool = snapshot(one.path), snapshot(other.path)
    assert seen.space is not None
    assert of_pool.pool is not None
    assert (len(seen.space.rows), seen.rows_left_out) == (ROWS_MAX, 7)
    assert (len(of_pool.pool.rows), of_pool.rows_left_out) == (ROWS_MAX, 9)
    assert all(len(row.owner) == 60 for row in seen.space.rows)
    # So little that nobody has to read for it to be taken.
    for each in (seen, of_pool):
        assert len(json.dumps(each.to_dict(), separators=(",", ":"))) < 180 << 10


def test_whatever_texts_owners_have() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    class Odd:
        def __repr__(self) -> str:
            return "\x1b[31m\udcff\n\0☃"

    space = potad.Space(1 << 20)
    owners = (Bad(), Odd())
    for owner in owners:
        space.alloc(4096, owner=owner)
    with potad.serve(space) as server:
        seen = snapshot(server.path)
    assert seen.space is not None
    texts = {row.owner for row in seen.space.rows}
    assert texts == {"<Bad, whose repr raised RuntimeError>", "\\x1b[31m\\udcff \\x00☃"}


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("broken\npool"), "RuntimeError: broken pool"),
        (potad.Corrupt("x" * 1000), "Corrupt: xxx"),
        ("no stats", "TypeError: stats() must return PoolStats, not 'no stats'"),
    ],
)
def test_a_target_that_cannot_say_is_no_reason_to_end(raised: Any, said: str) -> None:
    pool = Pool(raised)
    with potad.serve(pool) as server:
        seen = snapshot(server.path)
        assert seen.error is not None
        assert seen.error.startswith(said)
        assert (seen.pool, seen.space) == (None, None)
        pool.figures = stats()
        assert snapshot(server.path).error is None


def test_sums_of_a_large_space_are_not_taken_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("potad.monitor.view.time.monotonic", lambda: now[0])

    class Owner:
        def __repr__(self) -> str:
            now[0] += 2  # as long as the sum takes
            return "slow"

    space = potad.Space(1 << 20)
    space.alloc(4096, owner=Owner())
    viewer = Viewer("space", None)
    sizes = []
    for _ in range(4):
        seen = viewer.look(space)
        assert seen.space is not None
        sizes.append((seen.space.used, sum(row.size for row in seen.space.rows), seen.rows_age_s))
        space.alloc(4096)
        now[0] += 40
    assert sizes == [(4096, 4096, 0), (8192, 4096, 40), (12288, 4096, 80), (16384, 16384, 0)]


@pytest.mark.parametrize("target", [None, 5, "pool", potad.Space, Pool, object()])
def test_what_cannot_be_shown(target: Any) -> None:
    with pytest.raises(TypeError, match="target must be a Pool, Arena or Space"):
        potad.serve(target)
    assert threads() == 0


def test_bad_arguments(directory: Path) -> None:
    space = potad.Space(0)
    with pytest.raises(TypeError, match="name must be a text, not 5"):
        potad.serve(space, name=5)  # type: ignore[arg-type]
    for path in (5, b"bytes"):
        with pytest.raises(TypeError):
            potad.serve(space, path)  # type: ignore[arg-type]
    for text in ("", "\0abstract", "a\0b"):
        with pytest.raises(ValueError, match="path must be a name in the file system"):
            potad.serve(space, text)
    with pytest.raises(ValueError, match="bytes, and that of a socket at most 107"):
        potad.serve(space, "/tmp/" + "x" * 103)
    with pytest.raises(FileNotFoundError, match="missing"):
        potad.serve(space, "/tmp/potad-missing/sock")
    assert threads() == 0
    assert not directory.exists()


def test_where_it_is_by_default(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = potad.Space(1 << 20)
    assert running() == []
    with potad.serve(space) as one, potad.serve(space) as two:
        assert one.path.parent == two.path.parent == directory
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert running() == sorted([one.path, two.path])
        assert [place.pid_of(path) for path in running()] == [os.getpid()] * 2
    assert running() == []
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unset)
        assert place.default_directory() == Path(f"/tmp/potad-{os.geteuid()}")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert place.default_directory() == Path(f"/tmp/potad-{os.geteuid()}")


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_nobody_else_may_connect_whatever_the_mask(directory: Path, mask: int) -> None:
    place.made_directory()
    before = os.umask(mask)
    try:
        with potad.serve(SPACE, directory / "x") as server:
            mode = stat.S_IMODE(server.path.stat().st_mode)
    finally:
        os.umask(before)
    assert mode == 0o600 & ~mask


def test_directories_of_others_are_not_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = potad.Space(0)

    def refused(why: str) -> None:
        for call in (lambda: potad.serve(space), running):
            with pytest.raises(PermissionError, match=why) as raised:
                call()
            assert raised.value.filename == str(directory)

    directory.mkdir(mode=0o755)
    refused("open to others")
    directory.rmdir()
    directory.symlink_to("/tmp")
    refused("is a link")
    directory.unlink()
    directory.touch(mode=0o600)
    refused("is no directory")
    directory.unlink()
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    refused("belongs to user")


def test_stale_sockets_are_replaced_and_live_ones_are_not(directory: Path) -> None:
    path = place.made_directory() / "1-0.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert running() == []
    with pytest.raises(NotServing, match="nobody serves here"):
        snapshot(path)
    with potad.serve(SPACE, path) as server:
        assert running() == [path]
        with pytest.raises(FileExistsError, match="served by a running process") as raised:
            potad.serve(SPACE, path)
        assert raised.value.filename == str(path)
        assert snapshot(server.path).kind == "space"
    assert not path.exists()


KINDS = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


def number_of(path: Path) -> int:
    return path.lstat().st_ino


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_of_any_type_is_replaced_only_once_its_process_has_ended(
    directory: Path, kind: socket.SocketKind
) -> None:
    path = place.made_directory() / "x"
    with socket.socket(socket.AF_UNIX, kind) as live:
        live.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            live.listen()
        before = number_of(path)
        with pytest.raises(FileExistsError) as raised:
            potad.serve(SPACE, path)
        assert raised.value.filename == str(path)
        assert number_of(path) == before
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(path))
    with potad.serve(SPACE, path):
        assert snapshot(path).kind == "space"


def test_a_socket_with_as_many_clients_as_may_wait_is_served(directory: Path) -> None:
    path = place.made_directory() / "x"
    with socket.socket(socket.AF_UNIX) as full, ExitStack() as stack:
        full.bind(str(path))
        full.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(str(path))
        with pytest.raises(FileExistsError, match="served by a running process"):
            potad.serve(SPACE, path)
        assert path.exists()


def test_a_socket_that_may_not_be_connected_to_may_be_in_use() -> None:
    def work() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with (
            tempfile.TemporaryDirectory(dir="/tmp") as folder,
            socket.socket(socket.AF_UNIX) as live,
        ):
            path = Path(folder, "x")
            live.bind(str(path))
            live.listen()
            path.chmod(0)
            with pytest.raises(FileExistsError, match=r"may be in use \(Permission denied\)"):
                potad.serve(SPACE, path)
            assert path.exists()

    assert in_child(work) == 0


def test_a_socket_of_another_user_is_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.made_directory() / "x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(FileExistsError, match=f"is a socket of user {user}"):
        potad.serve(SPACE, path)
    assert path.exists()


def test_a_socket_that_has_no_listener_yet_is_taken_for_stale(directory: Path) -> None:
    path = place.made_directory() / "x"
    with socket.socket(socket.AF_UNIX) as early:
        early.bind(str(path))
        with potad.serve(SPACE, path):
            assert snapshot(path).kind == "space"


def test_what_takes_the_place_of_a_stale_socket_meanwhile_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.made_directory() / "x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    os.link(path, directory / "kept")  # so that its number is not used again
    real = place._connecting
    with socket.socket(socket.AF_UNIX) as quicker:

        def connecting(path: Path) -> OSError | None:
            answer = real(path)
            path.unlink()
            quicker.bind(str(path))
            quicker.listen()
            return answer

        monkeypatch.setattr(place, "_connecting", connecting)
        with pytest.raises(OSError, match="Address already in use"):
            potad.serve(SPACE, path)
        assert real(path) is None


def test_of_those_who_find_a_stale_socket_at_once_one_replaces_it(directory: Path) -> None:
    path = place.made_directory() / "x"
    together = threading.Barrier(4)
    found: list[potad.Server | Exception] = []

    def run() -> None:
        together.wait(30)
        try:
            found.append(potad.serve(SPACE, path))
        except FileExistsError as error:
            found.append(error)

    for _ in range(10):
        found.clear()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        racing = [threading.Thread(target=run) for _ in range(4)]
        for thread in racing:
            thread.start()
        for thread in racing:
            thread.join()
        (server,) = [it for it in found if isinstance(it, potad.Server)]
        assert len(found) == 4
        assert snapshot(path).kind == "space"
        server.close()
        assert not path.exists()


def test_a_server_that_cannot_start_removes_no_name_of_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.made_directory() / "x"

    def start(thread: threading.Thread) -> None:
        if is_taken:
            path.unlink()
            path.write_bytes(b"precious")
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for is_taken in (False, True):
        with pytest.raises(RuntimeError, match="new thread"):
            potad.serve(SPACE, path)
        assert path.exists() == is_taken
    assert path.read_bytes() == b"precious"


def test_a_process_of_another_user_is_not_asked(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.made_directory() / "x"
    user = os.geteuid()
    with fake_server(path, answer()):
        assert snapshot(path, 20).name == "x"
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        said = f"is served by user {user}, and this is user 12345"
        with pytest.raises(PermissionError, match=said) as raised:
            snapshot(path, 20)
        assert raised.value.filename == str(path)
        # Root may look at all.
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert snapshot(path, 20).name == "x"


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(directory: Path, what: str) -> None:
    path = place.made_directory() / "x"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(FileExistsError, match="is there and is no socket"):
        potad.serve(SPACE, path)
    assert path.is_symlink() or path.exists()
    assert threads() == 0


def test_closing(directory: Path) -> None:
    space = potad.Space(0)
    server = potad.serve(space, name="x")
    assert repr(server) == f"<potad.Server of a space 'x' at '{server.path}'>"
    server.close()
    server.close()
    assert server.closed
    assert repr(server).endswith(" closed>")
    assert threads() == 0
    assert list(directory.iterdir()) == []
    with pytest.raises(NotServing):
        snapshot(server.path)


def test_a_name_that_is_somebody_elses_by_now_is_kept(directory: Path) -> None:
    server = potad.serve(SPACE, place.made_directory() / "x")
    server.path.unlink()
    server.path.write_text("precious")
    server.close()
    assert server.path.read_text() == "precious"


def test_a_relative_path_outlives_a_change_of_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.made_directory())
    with potad.serve(SPACE, "x") as server:
        monkeypatch.chdir("/")
        assert server.path == directory / "x"
        assert snapshot(server.path).kind == "space"
    assert list(directory.iterdir()) == []


def test_it_ends_when_its_target_is_collected() -> None:
    targets: list[Any] = [potad.Space(1 << 20), potad.Arena(1 << 20), Pool()]
    servers = [potad.serve(target) for target in targets]
    for server in servers:
        snapshot(server.path)
    del targets
    gc.collect()
    for server in servers:
        soon(partial(getattr, server, "closed"))
        assert not server.path.exists()
        server.close()
    soon(lambda: threads() == 0)


def test_it_need_not_be_kept() -> None:
    space = potad.Space(1 << 20)
    path = potad.serve(space).path
    gc.collect()
    assert snapshot(path).kind == "space"
    del space
    soon(lambda: not path.exists())


def test_it_ends_when_its_target_is_closed() -> None:
    arena, pool = potad.Arena(1 << 20), Pool()
    with potad.serve(arena) as of_arena, potad.serve(pool) as of_pool:
        arena.close()
        pool.closed = True
        # Asked at once, or found out within a second.
        with pytest.raises(NotServing):
            snapshot(of_arena.path)
        soon(lambda: of_pool.closed)
        assert not of_pool.path.exists()


def test_it_may_be_closed_by_who_dies_in_its_thread() -> None:
    closed = threading.Event()

    class Owner:
        def __repr__(self) -> str:
            space.free(0)  # the report has the last reference from now on
            return "owner"

        def __del__(self) -> None:
            server.close()
            closed.set()

    space = potad.Space(1 << 20)
    space.alloc_at(0, 4096, owner=Owner())
    server = potad.serve(space)
    assert snapshot(server.path).error is None
    assert closed.wait(30)
    soon(lambda: threads() == 0)


def test_clients_who_do_not_read_are_no_hindrance() -> None:
    space = potad.Space(1 << 30)
    for number in range(ROWS_MAX):
        space.alloc(4096, owner=f"{number:60}")
    with potad.serve(space) as server, ExitStack() as stack:
        for _ in range(30):
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.settimeout(10)
            while True:
                try:
                    slow.connect(str(server.path))
                    break
                except BlockingIOError:
                    time.sleep(0.01)
        assert snapshot(server.path, 20).space is not None


def test_clients_who_send_or_go_are_no_hindrance() -> None:
    with potad.serve(SPACE) as server:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(server.path))
                with suppress(OSError):  # answered and left already
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server.path))
            client.shutdown(socket.SHUT_RDWR)
        assert snapshot(server.path).kind == "space"


def test_a_client_that_the_system_takes_little_for_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("potad.monitor.server._SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Viewer, "look", lambda self, target: BigSnapshot())

    class BigSnapshot:
        def to_dict(self) -> dict[str, Any]:
            return {"x": "x" * (1 << 22)}

    with potad.serve(SPACE) as server:
        with socket.socket(socket.AF_UNIX) as slow:
            slow.connect(str(server.path))
            with pytest.raises(BadAnswer, match="more than 1,048,576 bytes"):
                snapshot(server.path, 20)
        assert not server.closed


def test_many_clients_at_once() -> None:
    space = potad.Space(1 << 20)
    seen: list[Snapshot] = []
    with potad.serve(space) as server:
        asking = [
            threading.Thread(target=lambda: seen.append(snapshot(server.path, 30)))
            for _ in range(40)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert len(seen) == 40


def test_no_more_files_is_no_reason_to_end() -> None:
    with potad.serve(SPACE) as server:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            # The next number is above the limit, for the server's accept.
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            try:
                client.connect(str(server.path))
                time.sleep(0.1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert client.recv(1) == b"{"


def test_a_pool_is_all_that_has_stats() -> None:
    assert isinstance(Pool(), HasStats)
    assert not isinstance(potad.Space(0), HasStats)
    assert not isinstance(potad.Arena(4096), HasStats)


def answer(**changes: Any) -> bytes:
    """What a server might send, with some fields changed."""
    seen = Viewer("space", "x").look(potad.Space(1 << 20))
    return json.dumps({**seen.to_dict(), **changes}).encode()


ROW = {"kind": "-", "owner": "-", "allocations": 1, "size": 1}


def with_space(**changes: Any) -> bytes:
    space = json.loads(answer())["space"]
    return answer(space={**space, **changes})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([b"hello\n"], "not an answer of potad"),
        ([b"\xff\xfe"], "not an answer of potad"),
        ([answer()[:-5]], "not an answer of potad"),
        ([b"[]"], "must be an object"),
        ([b"[" * 100_000], "not an answer of potad"),
        ([b"9" * 10_000], "not an answer of potad"),
        ([b"NaN"], "must be an object, not nan"),
        ([b"{}"], "has no field 'version'"),
        ([answer(version=VERSION + 1)], "a snapshot of version 2, and only 1 is known here"),
        ([answer(version="1")], "Snapshot.version must be a whole number"),
        ([answer(kind="heap")], "Snapshot.kind must be a pool, arena or space"),
        ([answer(kind="pool")], "must have an error or what its kind says"),
        ([answer(space=None)], "must have an error or what its kind says"),
        ([answer(error="x")], "must have an error or what its kind says"),
        ([answer(time=float("nan"))], "Snapshot.time must be a number from 0 to 2\\^64"),
        ([answer(time=float("inf"))], "Snapshot.time must be a number from 0 to 2\\^64"),
        ([answer(time=1e20)], r"Snapshot.time must be a number from 0 to 2\^64"),
        ([answer(name=5)], "Snapshot.name must be a text"),
        ([answer(name="x" * 301)], "a text of 301 characters: a snapshot has at most 300"),
        ([answer(**{f"x{n}": 0 for n in range(101)})], "entries: a snapshot has at most 100"),
        ([with_space(rows=[ROW] * 101)], "101 entries: a snapshot has at most 100"),
        ([with_space(rows=[{**ROW, "owner": "x" * 301}])], "a text of 301 characters"),
        ([with_space(free_blocks=dict.fromkeys(map(str, range(101)), 1))], "101 entries"),
        ([b" " * (1 << 18)] * 5, f"more than {ANSWER_BYTES_MAX:,} bytes"),
    ],
)
def test_garbage_is_refused_with_a_sentence(directory: Path, parts: list[bytes], said: str) -> None:
    path = place.made_directory() / "x"
    with fake_server(path, *parts), pytest.raises(BadAnswer, match=said) as raised:
        snapshot(path, 20)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("key", ["x", "-1", "", "1.0", "٣", "9" * 25])
def test_sizes_of_free_blocks_are_numbers(key: str) -> None:
    data = json.loads(answer())
    data["space"]["free_blocks"] = {key: 1}
    with pytest.raises(ValueError, match="free_blocks has a key that is no number"):
        Snapshot.from_dict(data)


def test_who_says_nothing(directory: Path) -> None:
    path = place.made_directory() / "x"
    with fake_server(path), pytest.raises(NotServing, match="ended without an answer"):
        snapshot(path)
    path.unlink()
    with fake_server(path, silent=True), pytest.raises(TimeoutError, match="no answer in time"):
        snapshot(path, 0.2)
    path.unlink()
    # Where nobody accepts, connecting is soon refused for lack of room.
    with socket.socket(socket.AF_UNIX) as full, ExitStack() as stack:
        full.bind(str(path))
        full.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                break
        assert place.answers(path)
        with pytest.raises(TimeoutError, match="no answer in time"):
            snapshot(path, 0.2)


def test_a_socket_that_is_none(directory: Path) -> None:
    path = place.made_directory() / "x"
    path.write_text("")
    with pytest.raises(NotServing, match="nobody serves here"):
        snapshot(path)
    with pytest.raises(OSError, match="Not a directory") as raised:
        snapshot(path / "y")
    assert raised.value.filename == str(path / "y")


SERVING = """
    import sys, potad
    space = potad.Space(1 << 20)
    server = potad.serve(space, name="other")
    print(server.path, flush=True)
"""


def test_another_process() -> None:
    with python(SERVING + "    sys.stdin.read()") as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        assert running() == [path]
        seen = snapshot(path)
        assert (seen.pid, seen.name, seen.program) == (other.pid, "other", "-c")
        with pytest.raises(FileExistsError, match="served by a running process"):
            potad.serve(SPACE, path)
        other.communicate("")
    assert other.returncode == 0
    assert not path.exists()


def test_the_socket_of_a_killed_process_is_replaced() -> None:
    with python(SERVING + "    sys.stdin.read()") as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert path.exists()
    assert running() == []
    with potad.serve(SPACE, path):
        assert running() == [path]


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "raise SystemExit(3)", "del server; sys.exit(3)",
            "import threading; threading.Timer(0.1, lambda: None).start(); sys.exit(3)"],
)  # fmt: skip
def test_nothing_is_left_at_the_end_of_the_interpreter(directory: Path, end: str) -> None:
    with python(SERVING + "    " + end, stderr=subprocess.PIPE) as other:
        _, said = other.communicate(timeout=60)
    assert (other.returncode, said) == (3, "")
    assert list(directory.iterdir()) == []


def test_the_child_of_a_fork_neither_serves_nor_removes() -> None:
    code = (
        SERVING
        + """
    import os, warnings
    warnings.simplefilter("ignore")
    child = os.fork()
    if child == 0:
        assert server.closed
        server.close()
        with server:
            pass
        del space
        mine = potad.serve(target := potad.Space(0))
        assert str(os.getpid()) in mine.path.name
        print(mine.path.exists(), flush=True)
        sys.exit(0)  # with all that is done at the end of an interpreter
    assert os.waitpid(child, 0)[1] == 0
    print("waited", flush=True)
    sys.stdin.read()
    """
    )
    with python(code) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        assert other.stdout.readline() == "True\n"
        assert other.stdout.readline() == "waited\n"
        assert running() == [path]
        assert snapshot(path).pid == other.pid
        other.communicate("")
    assert other.returncode == 0
    assert not path.exists()


def test_a_child_that_lives_on_does_not_look_like_its_parent() -> None:
    code = (
        SERVING
        + """
    import os, time, warnings
    warnings.simplefilter("ignore")
    if os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("forked", flush=True)
    os.kill(os.getpid(), 9)
    """
    )
    with python(code) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        assert other.stdout.readline() == "forked\n"
        other.wait()
        soon(lambda: not place.answers(path))
        other.communicate("")


def test_a_process_that_dies_of_closed_pipes_does_not_die_of_clients() -> None:
    code = (
        SERVING
        + """
    import signal
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdin.read()
    """
    )
    with python(code) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                if _ % 2:
                    time.sleep(0.001)
        assert snapshot(path).pid == other.pid
        other.communicate("")
    assert other.returncode == 0


def test_servers_come_and_go_in_many_threads() -> None:
    path = place.made_directory() / "x"
    served = []

    def run() -> None:
        for _ in range(20):
            try:
                with potad.serve(SPACE, path):
                    served.append(1)
            except FileExistsError:
                pass

    racing = [threading.Thread(target=run) for _ in range(4)]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    assert served
    assert not path.exists()
    assert threads() == 0
