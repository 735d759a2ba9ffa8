"""`potad top` from the outside: which process, what is printed, and how it ends."""

from __future__ import annotations

import doctest
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import potad
from potad.cli import durations
from potad.cli.durations import parse_duration
from potad.monitor import Snapshot, place

POTAD = [sys.executable, "-m", "potad.cli", "top"]

SPACE = potad.Space(1 << 30)
SPACE.alloc(1 << 20, owner="me")

# A process that shows so many spaces, says where, and ends when it is told to.
SERVING = """
import sys, potad
spaces = [potad.Space(1 << 30) for _ in range(int(sys.argv[1]))]
servers = [potad.serve(space, name=f"space {n}") for n, space in enumerate(spaces)]
print(*(server.path for server in servers), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The default directory, of this test alone, and with a short name: sockets need that."""
    runtime = tempfile.mkdtemp(prefix="potad-", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    yield Path(runtime, "potad")
    shutil.rmtree(runtime)


@contextmanager
def serving(spaces: int = 1) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVING, str(spaces)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield process, process.stdout.readline().split()
        process.kill()


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*POTAD, *arguments],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def printed(*arguments: str) -> str:
    done = shell(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str, status: int = 1) -> str:
    """The one line that is said."""
    done = shell(*arguments)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("potad: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_durations() -> None:
    failed, tried = doctest.testmod(durations)
    assert tried > 0
    assert not failed
    assert parse_duration(" 0.25 min ") == 15
    for text in ("", "s", "-1s", "1h", "1e1", "nan", "1.s", "١", "1 s s", "1,5"):
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration(text)
    for text in ("0", "99ms", "3601s", "61min"):
        with pytest.raises(ValueError, match="is not between"):
            parse_duration(text)


def test_the_only_one_there_is() -> None:
    with serving() as (process, (path,)):
        # Not a terminal, so once.
        for arguments in ((), ("--once",), (path,), (str(process.pid),)):
            text = printed(*arguments)
            assert text.startswith(f"space space 0 of process {process.pid}, -c")
            assert "0 of 1 Gi" in text
            assert "\x1b" not in text


def test_relative_paths_and_names_that_are_numbers(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, potad.serve(SPACE, f"{folder}/123"):
        done = shell("./123", cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert "shows nothing" in refused("123")


def test_json() -> None:
    with potad.serve(SPACE, name="x") as server:
        for arguments in (("--json",), ("--json", "--once", str(server.path))):
            (line,) = printed(*arguments).splitlines()
            seen = Snapshot.from_dict(json.loads(line))
            assert (seen.pid, seen.name, seen.kind) == (os.getpid(), "x", "space")
            assert seen.space is not None
            assert seen.space.rows[0].owner == "'me'"


def test_several_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with serving(2) as (process, paths), potad.serve(SPACE, name="mine") as server:
        text = printed()
        for path in (*paths, server.path):
            assert str(path) in text.replace("\n", "")
        assert re.search(rf"{process.pid} +space +space 1 +-c +0 of 1 Gi", text)
        assert "mine" in text
        of_one = printed(str(process.pid))
        assert "space 1" in of_one
        assert "mine" not in of_one
        entries = json.loads(printed("--json"))
        assert {entry["path"] for entry in entries} == {*paths, str(server.path)}
        assert all(Snapshot.from_dict(entry["snapshot"]) for entry in entries)
        # One of them can be named.
        assert "space 1" in printed(paths[1])


def test_a_list_has_what_does_not_answer(directory: Path) -> None:
    with potad.serve(SPACE), socket.socket(socket.AF_UNIX) as other:
        path = directory / f"{os.getpid()}-9999.sock"
        other.bind(str(path))
        other.listen(9)

        def answer() -> None:
            for _ in range(2):  # who looks whether somebody is there, and who asks
                with other.accept()[0] as client, suppress(OSError):
                    client.sendall(b"garbage")

        thread = threading.Thread(target=answer)
        thread.start()
        entries = json.loads(printed("--json"))
        thread.join()
    (bad,) = (entry for entry in entries if entry["snapshot"] is None)
    assert bad["path"] == str(path)
    assert "not an answer of potad" in bad["error"]
    assert len(entries) == 2


def test_nothing_to_look_at(directory: Path) -> None:
    for _ in range(2):
        assert "there is nothing to look at: a process calls potad.serve" in refused()
        assert "process 1 shows nothing" in refused("1")
        assert "nobody serves here" in refused("/tmp/potad-missing")
        # The second time with the socket of a process that was killed.
        with socket.socket(socket.AF_UNIX) as dead:
            path = place.made_directory() / "1-0.sock"
            path.unlink(missing_ok=True)
            dead.bind(str(path))
    assert "nobody serves here" in refused(str(path))


def test_whose_directory_it_is_matters(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    said = refused()
    assert str(directory) in said
    assert "open to others" in said


def test_garbage_is_one_line(directory: Path) -> None:
    path = place.made_directory() / "x"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(9)
        for garbage in (b"\x1b[2J", b"{}", b" " * (2 << 20)):

            def answer(garbage: bytes = garbage) -> None:
                with other.accept()[0] as client, suppress(OSError):
                    client.sendall(garbage)

            thread = threading.Thread(target=answer)
            thread.start()
            assert "not an answer of potad" in refused(str(path))
            thread.join()


def test_nothing_that_is_answered_is_obeyed() -> None:
    obeyed = ("\x1b]0;owned", "\x07", "\x1b[2J", "\x9b31m", "\u202e", "\u2028", "\x7f")
    text = "".join(obeyed) + "[red]X"
    space = potad.Space(1 << 20)
    space.alloc(4096, kind=potad.Kind(text), owner="me")
    wide = {**os.environ, "COLUMNS": "200"}
    with potad.serve(space, name=text), potad.serve(SPACE):
        for arguments in ((), ("--json",)):
            shown = shell(*arguments, env=wide).stdout
            assert "[red]X" in shown
            assert not any(sequence in shown for sequence in obeyed)
    with potad.serve(space, name=text) as server:
        for arguments in ((), ("--json",)):
            shown = shell(*arguments, str(server.path), env=wide).stdout
            assert shown.count("[red]X") == 2
            assert not any(sequence in shown for sequence in obeyed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--interval", "soon"), "'soon' is not a duration"),
        (("--interval", "1ms"), "is not between 100ms and an hour"),
        (("--every", "1"), "No such option"),
        (("1", "2"), "unexpected extra argument"),
        (("/tmp/" + "x" * 200,), "that of a socket at most 107"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], said: str) -> None:
    done = shell(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str, rows: int = 40, columns: int = 100, **names: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*POTAD, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**kept, "TERM": "xterm-256color", **names}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._terminal = ours
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._terminal, 65536):
                self.shown += part.decode(errors="replace")
        except OSError:
            pass  # how Linux says that the other end of a terminal is closed

    def wait_for(self, pattern: str, times: int = 1) -> None:
        end = time.monotonic() + 30
        while len(re.findall(pattern, self.shown)) < times:
            assert time.monotonic() < end, self.shown
            assert self.process.poll() is None, self.shown
            time.sleep(0.02)

    def end(self) -> int:
        status = self.process.wait(30)
        self._reader.join(30)
        os.close(self._terminal)
        assert "Traceback" not in self.shown
        return status


ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def test_it_is_shown_until_interrupted() -> None:
    with potad.serve(SPACE, name="watched") as server:
        top = Terminal("--interval", "100ms")
        top.wait_for("watched", 2)
        block = SPACE.alloc(64 << 20)
        top.wait_for("65 Mi of 1 Gi")
        top.wait_for(r"\+[\d,.]+ Mi a second")
        SPACE.free(block)
        top.process.send_signal(signal.SIGINT)
        assert top.end() == 0
        assert top.shown.index(ENTER) < top.shown.index(LEAVE)
        assert not server.closed


def test_terminated_it_leaves_the_terminal_as_it_was() -> None:
    with potad.serve(SPACE, name="watched"):
        top = Terminal()
        top.wait_for("watched")
        top.process.send_signal(signal.SIGTERM)
        assert top.end() == 143
        assert LEAVE in top.shown


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_it_ends_with_the_process(how: str) -> None:
    with serving() as (process, _):
        top = Terminal("--interval", "100ms", str(process.pid))
        top.wait_for("space 0", 2)
        if how == "killed":
            process.kill()
        else:
            process.communicate("\n")
        assert top.end() == 0
        left = top.shown[top.shown.index(LEAVE) :]
        assert f"potad: the space of process {process.pid} has ended" in left
        assert "0 of 1 Gi" in left


def test_a_process_that_stands_still_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys, potad.cli, potad.cli.top
potad.cli.top._TIMEOUT_S = 0.3
sys.argv[1:1] = ["top"]
sys.exit(potad.cli.main())
"""
    monkeypatch.setattr(sys.modules[__name__], "POTAD", [sys.executable, "-c", code])
    with serving() as (process, _):
        top = Terminal("--interval", "100ms")
        top.wait_for("space 0")
        process.send_signal(signal.SIGSTOP)
        top.wait_for("no answer for")
        process.send_signal(signal.SIGCONT)
        seen = len(top.shown)
        end = time.monotonic() + 30
        while not re.search(r"space 0(?!.*no answer)", top.shown[seen:].rsplit("\x1b[H")[-1]):
            assert time.monotonic() < end
            time.sleep(0.05)
        top.process.send_signal(signal.SIGINT)
        assert top.end() == 0


def test_once_and_lists_take_no_screen() -> None:
    with serving() as (process, _):
        for top in (Terminal("--once"), Terminal(TERM="dumb")):
            assert top.end() == 0
            assert "space 0" in top.shown
            assert ENTER not in top.shown
        with potad.serve(SPACE):
            top = Terminal()
            assert top.end() == 0
            assert str(process.pid) in top.shown
            assert ENTER not in top.shown


def test_a_small_terminal_has_fewer_rows() -> None:
    space = potad.Space(1 << 30)
    for number in range(60):
        space.alloc(4096 * (number + 1), owner=f"owner {number}")
    with potad.serve(space):
        for rows, columns in ((30, 80), (24, 200), (10, 20)):
            top = Terminal("--interval", "100ms", rows=rows, columns=columns)
            top.wait_for("process" if columns > 20 else "space", 2)
            top.process.send_signal(signal.SIGINT)
            assert top.end() == 0
            if columns > 20:
                assert "owner 32" in top.shown
                assert "smaller not shown" in top.shown


def test_a_reader_that_goes_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with potad.serve(SPACE):
        done = subprocess.run(POTAD, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
