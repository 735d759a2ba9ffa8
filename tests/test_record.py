"""`potad record` against the real kernel: what it writes, and that it leaves no trace of itself.

Skipped where this process may not use ftrace.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import lzma
import operator
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from potad._core import catch_signals, release_signals
from potad.trace import RecordError, read_trace
from potad.trace import record as recording
from potad.trace.tracefs import _remove_dead, instance, tracefs

POTAD = [sys.executable, "-m", "potad.cli"]

# Touches, and so allocates, 16 MiB whatever the sizes of the machine's pages.
PAGES = 4096
TOUCH = [sys.executable, "-c", f"bytearray({PAGES} * 4096)"]


def state_of_tracing() -> dict[str, str]:
    """Everything of the machine's tracing that recording could disturb."""
    state = {"mounts": Path("/proc/self/mounts").read_text()}
    with tracefs() as directory:
        for name in ("tracing_on", "set_event", "trace_clock", "buffer_size_kb", "current_tracer"):
            with open(os.open(name, os.O_RDONLY, dir_fd=directory)) as file:
                state[name] = file.read()
        folder = os.open("instances", os.O_RDONLY, dir_fd=directory)
        state["instances"] = " ".join(sorted(os.listdir(folder)))
        os.close(folder)
    state["places"] = " ".join(
        sorted(p.name for p in Path(tempfile.gettempdir()).glob("potad-tracefs-*"))
    )
    return state


@pytest.fixture(autouse=True)
def tracing_is_left_as_found() -> Iterator[None]:
    try:
        with tracefs() as directory:
            _remove_dead(directory)  # what was left before is not what the test is about
        before = state_of_tracing()
    except RecordError as error:
        pytest.skip(str(error))
    yield
    assert state_of_tracing() == before


def potad_record(
    output: Path, command: Sequence[str], *options: str, **settings: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*POTAD, "record", "-o", str(output), *options, "--", *command],
        capture_output=True, text=True, timeout=120, check=False, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_a_recording_is_a_trace(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"trace.ftrace{suffix}"
    done = potad_record(file, TOUCH)
    assert done.returncode == 0, done.stderr
    counted = re.search(r"([\d,]+) events in .*, ([\d,]+) lost", done.stderr)
    assert counted, done.stderr
    trace = read_trace(str(file))
    assert trace.format == "ftrace"
    assert trace.malformed == 0
    # A few of the machine's allocations fail and have no page; those are no events here.
    assert trace.events == pytest.approx(int(counted[1].replace(",", "")), rel=0.01)
    assert trace.peak_bytes >= PAGES * 4096 * 0.9
    assert 0 < trace.seconds < 60
    assert {entry.name for entry in tmp_path.iterdir()} == {file.name}


def test_provenance_stands_at_the_top(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    potad_record(file, ["sh", "-c", ": 'two\nlines'"])
    head = file.read_text().split(" mm_page_", 1)[0].splitlines()[:-1]
    assert all(line.startswith("# ") for line in head)
    text = "\n".join(head)
    assert os.uname().release in text
    assert r"command: sh -c ': '\"'\"'two\nlines'\"'\"''" in text.replace('"', r"\"")
    assert re.search(r"date: \d{4}-\d\d-\d\dT", text)
    assert f"cpus: {os.cpu_count()}" in text
    last = file.read_text().splitlines()[-1]
    assert re.fullmatch(r"# events: \d+, lost: 0", last)


def test_events_are_in_the_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    potad_record(file, ["sh", "-c", "for i in 1 2 3 4; do ls / >/dev/null & done; wait"])
    times = [float(match[1]) for match in re.finditer(r" (\d+\.\d+): mm_page_", file.read_text())]
    assert len(times) > 100
    late = sum(a > b for a, b in pairwise(times))
    assert late <= len(times) / 1000


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -2 $$", 130)]
)
def test_exit_status_is_the_commands(tmp_path: Path, script: str, status: int) -> None:
    file = tmp_path / "trace.xz"
    assert potad_record(file, ["sh", "-c", script]).returncode == status
    assert read_trace(str(file)).events > 0


def test_standard_streams_and_options_are_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    done = subprocess.run(
        [*POTAD, "record", "-o", str(file), "sh", "-c", 'cat; echo "$@"', "sh", "-o", "--help"],
        input="in", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "in-o --help\n")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [("/no/such/command", 127, "command not found"), ("/etc/passwd", 126, "Permission denied")],
)
def test_a_command_that_cannot_start(tmp_path: Path, command: str, status: int, said: str) -> None:
    file = tmp_path / "trace.xz"
    file.write_bytes(b"old")
    done = potad_record(file, [command])
    assert done.returncode == status
    assert done.stderr == f"potad: {command}: {said}\n"
    assert file.read_bytes() == b"old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"trace.xz"}


def started(file: Path, script: str, **settings: Any) -> subprocess.Popen[str]:
    """A recorder whose command has said that it runs."""
    process = subprocess.Popen(
        [*POTAD, "record", "-o", str(file), "--", "sh", "-c", f"{script}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


PASSED_ON = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
]  # fmt: skip


@pytest.mark.parametrize("number", PASSED_ON)
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "trace.xz"
    process = started(file, "echo ready; exec sleep 60")
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert read_trace(str(file)).events > 0
    assert {entry.name for entry in tmp_path.iterdir()} == {"trace.xz"}


# Records `sleep 60` and has this signal given to a thread that was there before, once the command
# runs or, with "early", before it is started.
IN_ANOTHER_THREAD = """
import os, signal, sys, threading
from potad.trace import record as recording

number, early = int(sys.argv[1]), sys.argv[2] == "early"
due, sent = threading.Event(), threading.Event()
spawn = recording._spawn

def send():
    due.wait()
    signal.pthread_kill(threading.get_ident(), number)
    sent.set()

def spawn_and_send(command):
    if early:
        due.set()
        sent.wait()
    pid = spawn(command)
    due.set()
    return pid

recording._spawn = spawn_and_send
threading.Thread(target=send).start()
raise SystemExit(recording.record(["sleep", "60"], lambda _: None).exit_code)
"""


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("number", PASSED_ON)
def test_whichever_thread_a_signal_is_given_to(number: signal.Signals, when: str) -> None:
    """The kernel may give it to any that does not block it, such as one of a library."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_THREAD, str(int(number)), when],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (128 + number, "")


COUNTER = """
import signal, sys, time
seen = []
signal.signal(int(sys.argv[1]), lambda *_: seen.append(_))
print("ready", flush=True)
end = time.monotonic() + 1.5
while time.monotonic() < end: time.sleep(0.1)
raise SystemExit(40 + len(seen))
"""


def test_every_signal_is_passed_on(tmp_path: Path) -> None:
    script = f"exec {shlex.join([sys.executable, '-c', COUNTER, str(int(signal.SIGTERM))])}"
    process = started(tmp_path / "trace", script)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.25)
    process.communicate(timeout=30)
    assert process.returncode == 43


def test_a_command_may_outlive_an_interruption(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    process = started(file, "trap 'echo caught' INT; echo ready; sleep 1; sleep 1; exit 5")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (5, "caught\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ignored_signals_stay_ignored(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "trace"
    command = [*POTAD, "record", "-o", str(file), "--", "sh", "-c", "echo ready; sleep 1"]
    process = subprocess.Popen(
        ["sh", "-c", f"trap '' {number.name.removeprefix('SIG')}; exec {shlex.join(command)}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    process.stdout.close()


def typed(pid: int, terminal: int, key: bytes) -> int:
    """Types a key once a process at a terminal is ready; the process's exit code."""
    shown = b""
    while b"ready" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, key)
    try:
        while os.read(terminal, 1000):
            pass
    except OSError:
        pass  # how Linux says that the other end of a terminal is closed
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_a_signal_from_the_terminal_reaches_the_command_once(
    tmp_path: Path, key: bytes, number: signal.Signals
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-c", COUNTER, str(int(number))]
        os.execv(POTAD[0], [*POTAD, "record", "-o", str(tmp_path / "trace"), "--", *command])
    assert typed(pid, terminal, key) == 41


# Records `sleep 60`, which is started once a key of the terminal has been told as a signal.
KEY_BEFORE_THE_COMMAND = """
import select
from potad.trace import record as recording

class Signals(recording._Signals):
    def __enter__(self):
        super().__enter__()
        print("ready", flush=True)
        select.select([self._read_end], [], [])
        return self

recording._Signals = Signals
raise SystemExit(recording.record(["sleep", "60"], lambda _: None).exit_code)
"""


def test_a_signal_from_the_terminal_before_the_command_is_there_reaches_it() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", KEY_BEFORE_THE_COMMAND])
    assert typed(pid, terminal, b"\x03") == 128 + signal.SIGINT


def test_a_full_disk_ends_the_recording_and_not_the_command(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    command = [*TOUCH[:-1], f"{TOUCH[-1]}; import time; time.sleep(1); open({str(witness)!r}, 'w')"]
    done = potad_record(Path("/dev/full"), command)
    assert done.returncode == 1
    assert "the command goes on" in done.stderr
    assert done.stderr.rstrip().endswith("No space left on device")
    assert witness.exists()


def test_lost_events_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that sleeps through a burst larger than the buffer."""
    monkeypatch.setattr(recording, "_IDLE_SECONDS", 1.0)
    pieces: list[bytes] = []
    made = recording.record(TOUCH, pieces.append, buffer_bytes=64 << 10)
    assert made.counts.lost > PAGES / 2
    file = tmp_path / "trace"
    file.write_bytes(b"".join(pieces))
    trace = read_trace(str(file))
    assert 0 < trace.dropped <= made.counts.lost
    assert f"lost: {made.counts.lost}" in file.read_text()


def test_an_error_in_writing_is_raised_and_signals_are_as_before() -> None:
    def write(data: bytes) -> None:
        if not data.startswith(b"#"):
            raise OSError(errno.EIO, "broken")

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    threads = threading.active_count()
    told: list[Exception] = []
    with pytest.raises(OSError, match="broken"):
        recording.record(TOUCH, write, on_error=told.append)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert threading.active_count() == threads
    assert len(told) <= 1


def test_an_error_in_draining_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: what was not read is not in the trace."""
    real = os.read

    def read(file: int, size: int) -> bytes:
        if threading.current_thread().name == "potad-drain":
            raise MemoryError("not even a page")
        return real(file, size)

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(MemoryError, match="not even a page"):
        recording.record(TOUCH, lambda _: None)


def test_signals_do_afterwards_what_they_did_before() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))

    def write(data: bytes) -> None:
        # The header, which is written when signals are caught already.
        if b"command: " in data:
            os.kill(os.getpid(), signal.SIGUSR1)

    try:
        made = recording.record(["sleep", "60"], write)
        assert (made.exit_code, seen) == (128 + signal.SIGUSR1, [])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interruption_from_before_is_raised_and_no_signal_is_caught() -> None:
    ends = os.pipe()
    catch = functools.partial(catch_signals, ends[1], [signal.SIGUSR1])
    try:
        # With no step of Python in between, where its handler would run.
        steps = [functools.partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGINT), catch]
        with pytest.raises(KeyboardInterrupt):
            list(map(operator.call, steps))
        catch()  # which a process may do once at a time
        release_signals()
    finally:
        for end in ends:
            os.close(end)


def test_one_recording_at_a_time_in_a_process() -> None:
    def again(_: bytes) -> None:
        if not told:
            told.append("")
            with pytest.raises(RuntimeError, match="signals are caught already"):
                recording.record(["true"], again)

    told: list[str] = []
    assert recording.record(["true"], again).exit_code == 0
    assert told


def test_a_process_starts_with_the_signals_it_would_have_had(tmp_path: Path) -> None:
    """Neither what is held back while recording nor what Python ignores is inherited."""
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    plain = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    done = potad_record(tmp_path / "trace", ["sh", "-c", script])

    def masks(text: str) -> list[int]:
        # The C library keeps signals 32 and 33 to itself, and ignores them in what it spawns.
        return [int(line.split()[1], 16) & 0x7FFFFFFF for line in text.splitlines()]

    assert masks(done.stdout) == masks(plain.stdout)
    assert len(masks(plain.stdout)) == 2


def test_two_recordings_at_once(tmp_path: Path) -> None:
    processes = [started(tmp_path / f"{n}", "echo ready; sleep 0.5") for n in range(2)]
    for number, process in enumerate(processes):
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert read_trace(str(tmp_path / f"{number}")).events > 0


def instances() -> set[str]:
    with tracefs() as directory:
        folder = os.open("instances", os.O_RDONLY, dir_fd=directory)
        try:
            return set(os.listdir(folder))
        finally:
            os.close(folder)


def comes_true(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def end_of(process: subprocess.Popen[str]) -> None:
    """Kills the recorder's command as well, whose process group it is."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


def guard_of(recorder: int) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == recorder and any(word.endswith(b"guard.py") for word in words):
                return int(entry.name)
    raise AssertionError("there is no guard")


@pytest.mark.parametrize("whole_group", [False, True])
def test_the_instance_of_a_killed_recorder_is_removed(tmp_path: Path, whole_group: bool) -> None:
    before = instances()
    process = started(tmp_path / "trace", "echo ready; exec sleep 60", start_new_session=True)
    try:
        (made,) = instances() - before
        assert made.startswith(f"potad-{process.pid}-")
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        assert comes_true(lambda: made not in instances())
    finally:
        end_of(process)


def test_what_nobody_was_left_to_remove_is_removed_by_the_next(tmp_path: Path) -> None:
    before = instances()
    process = started(tmp_path / "trace", "echo ready; exec sleep 60", start_new_session=True)
    try:
        (made,) = instances() - before
        os.kill(guard_of(process.pid), signal.SIGKILL)
        end_of(process)
        assert made in instances()
        assert potad_record(tmp_path / "trace", ["true"]).returncode == 0
        assert made not in instances()
        assert {entry.name for entry in tmp_path.iterdir()} == {"trace"}
    finally:
        end_of(process)


# Forks a process that has all its files open for some seconds more.
FORKING = """
import os, time
from potad.trace.record import RecordError, record

def write(data):
    if b"command: " in data and not os.fork():
        time.sleep(5)
        os._exit(0)

try:
    record(["true"], write)
except RecordError as error:
    print(error)
"""


def test_a_process_forked_meanwhile_has_the_guard_remove_the_instance() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=50, check=True
    )
    assert "cannot remove the tracing instance" in done.stdout


def test_only_instances_of_dead_recorders_are_removed(tmp_path: Path) -> None:
    """Where process numbers say nothing: the others are in a namespace of their own."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot make a namespace")
    dead = ["potad-1", "potad-1.7", "potad-99-0123abcd"]
    names = [*dead, "potad-not", "potad-1-mine", "potadx-1", "other-potad-1"]
    with tracefs() as directory:
        for name in names:
            os.mkdir(f"instances/{name}", dir_fd=directory)
        try:
            process = started(tmp_path / "1", "echo ready; read _", stdin=subprocess.PIPE)
            live = instances() - set(names)
            other = [*apart, *POTAD, "record", "-o", str(tmp_path / "2"), "--", "true"]
            assert subprocess.run(other, check=False).returncode == 0
            assert instances() == live | (set(names) - set(dead))
            _, said = process.communicate("\n", timeout=30)
            assert process.returncode == 0, said
        finally:
            for name in names:
                with suppress(FileNotFoundError):
                    os.rmdir(f"instances/{name}", dir_fd=directory)


def test_an_instance_taken_for_a_dead_one_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another recorder does that looks after it was made and before it is held."""
    made: list[str] = []
    mkdir = os.mkdir

    def mkdir_and_lose(path: str, *, dir_fd: int) -> None:
        mkdir(path, dir_fd=dir_fd)
        made.append(path)
        if len(made) < 3:
            os.rmdir(path, dir_fd=dir_fd)

    with tracefs() as directory:
        monkeypatch.setattr(os, "mkdir", mkdir_and_lose)
        with instance(directory, 1 << 20) as ours:
            assert len(made) == 3
            assert ours.counts().lost == 0


def test_an_instance_in_use_for_a_moment_is_removed_all_the_same() -> None:
    before = instances()
    with tracefs() as directory, instance(directory, 1 << 20):
        (name,) = instances() - before
        file = os.open(f"instances/{name}/trace_pipe", os.O_RDONLY, dir_fd=directory)
        closer = threading.Timer(0.4, os.close, [file])
        closer.start()
    closer.join()


def test_a_mounted_tracefs_is_used_and_stays(tmp_path: Path) -> None:
    place = tmp_path / "tracing here"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tracefs", "nodev", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount tracefs: {mounted.stderr.decode()}")
    try:
        mounts = Path("/proc/self/mounts").read_text()
        instances = os.listdir(place / "instances")
        assert potad_record(tmp_path / "trace", ["true"]).returncode == 0
        assert Path("/proc/self/mounts").read_text() == mounts
        assert os.listdir(place / "instances") == instances
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_without_root_it_says_so(tmp_path: Path) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(RecordError, match="recording needs root: this user may not"), tracefs():
            pass
    finally:
        os.seteuid(0)


def test_a_buffer_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    done = potad_record(tmp_path / "trace", ["true"], "--buffer-size", "4E")
    assert done.returncode == 1
    assert "refuses a buffer" in done.stderr
    assert not (tmp_path / "trace").exists()


def test_usage(tmp_path: Path) -> None:
    assert potad_record(Path("-"), ["true"]).returncode == 2
    assert potad_record(tmp_path / "no" / "trace", ["true"]).returncode == 2
    done = subprocess.run(
        [*POTAD, "record"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_keeps_up_with_a_storm(tmp_path: Path) -> None:
    """Half a million events in a second or two, with nothing lost."""
    file = tmp_path / "trace.xz"
    storm = [sys.executable, "-c", "for _ in range(8): bytearray(32768 * 4096)"]
    started_at = time.monotonic()
    done = potad_record(file, storm)
    print(f"{time.monotonic() - started_at:.1f} s: {done.stderr}")
    assert done.returncode == 0
    assert ", 0 lost" in done.stderr
    assert lzma.decompress(file.read_bytes()).endswith(b"lost: 0\n")
