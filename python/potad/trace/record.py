"""Making a trace: the machine's page events while a command runs.

The events are those of the whole machine, not of the command alone: page reclaim, other
processes and the recorder itself draw on the same pages, and a replay needs them all to
stay true. They are recorded from just before the command starts until it has ended.

Three threads share the work, so that reading keeps up: the *drain* empties the kernel's
buffer as text, the *writer* hands it on to be compressed and written, and the main thread
waits for the command and for signals. The recorder's own page traffic, mostly the page
cache of what it writes, is recorded with the rest; a page of text holds some thirty events
and costs one, so this dies out rather than feeding itself.

Signals that would end this process are messages in a pipe while recording, whichever thread
the kernel gives them to. Nothing is therefore ever interrupted half-way, and the way out is always
the same: stop the events, drain, remove the instance. A signal is passed on to the command, whose
end ends the recording. If the recorder itself is killed, a guard removes the instance (see
`tracefs.py`).
"""

from __future__ import annotations

import os
import platform
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Queue

from potad._core import catch_signals, release_signals
from potad.trace.errors import RecordError
from potad.trace.tracefs import Counts, instance, tracefs

DEFAULT_BUFFER_BYTES = 16 << 20
"""For each CPU: some 400,000 events."""

# How long the drain sleeps when the buffer is empty: at ten million events a second and CPU
# the default buffer fills in twice this.
_IDLE_SECONDS = 0.02

# Text handed to the writer at once, and how much of it may wait there while the writer is
# behind. Beyond that the kernel's buffer fills, and then events are lost and counted.
_PIECE_BYTES = 256 << 10
_WAITING_PIECES = 1024

# How often the main thread looks whether the writer has failed.
_WATCH_SECONDS = 0.2

_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


@dataclass(frozen=True)
class Recording:
    """How a recording went."""

    exit_code: int
    """The command's, as a shell has it: 128 and the signal's number if one ended it."""
    counts: Counts
    text_bytes: int
    seconds: float


class CommandError(RecordError):
    """The command could not be started; `exit_code` is what a shell would return."""

    def __init__(self, command: str, error: OSError) -> None:
        missing = isinstance(error, FileNotFoundError)
        super().__init__(f"{command}: {'command not found' if missing else error.strerror}")
        self.exit_code = 127 if missing else 126


class _Pipeline:
    """The drain and the writer, from the kernel's buffer to `write`."""

    def __init__(self, pipe: int, write: Callable[[bytes], object]) -> None:
        self._pipe = pipe
        self._write = write
        self._pieces: Queue[bytes | None] = Queue(_WAITING_PIECES)
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._drain, name="potad-drain"),
            threading.Thread(target=self._write_all, name="potad-writer"),
        ]
        self.text_bytes = 0
        self.error: Exception | None = None
        """Why text could not be taken on; what came after it is lost."""

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Drains what is left and waits until it is written."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _drain(self) -> None:
        try:
            while True:
                # Before the read: what was in the buffer when the end was called is read.
                ending = self._ending.is_set()
                piece = bytearray()
                while len(piece) < _PIECE_BYTES:
                    try:
                        text = os.read(self._pipe, _PIECE_BYTES)
                    except BlockingIOError:
                        break
                    if not text:
                        break
                    piece += text
                if piece:
                    self._pieces.put(bytes(piece))
                elif ending:
                    return
                else:
                    self._ending.wait(_IDLE_SECONDS)
        except Exception as error:  # raised again by the main thread
            self.error = error
        finally:
            self._pieces.put(None)

    def _write_all(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self.error is not None:
                continue  # the drain must not wait for a writer that is no more
            try:
                self._write(piece)
            except Exception as error:  # raised again by the main thread
                self.error = error
            self.text_bytes += len(piece)


class _Signals:
    """The signals of this process as messages in a pipe; a context manager, one at a time.

    One that was ignored when we were started (as `nohup` does) stays ignored.
    """

    def __enter__(self) -> _Signals:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._read_end, select.POLLIN)
        caught = [n for n in _PASSED_ON if signal.getsignal(n) is not signal.SIG_IGN]
        try:
            # With SIGCHLD the command's end ends a wait. An ignored one, besides, would make the
            # kernel throw the command's status away.
            catch_signals(self._write_end, [*caught, signal.SIGCHLD])
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_raised: object) -> None:
        release_signals()
        self._close()

    def _close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self, timeout_seconds: float) -> Iterator[tuple[int, bool]]:
        """Waits for signals; their numbers, and whether the kernel sent them, not a process."""
        if self._poll.poll(timeout_seconds * 1000):
            messages = iter(os.read(self._read_end, 1 << 12))
            for number, of_kernel in zip(messages, messages, strict=True):
                yield number, bool(of_kernel)


def _spawn(command: Sequence[str]) -> int:
    """Starts `command` with the signals as we found them; its process number."""
    try:
        return os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            # Python ignores these two for itself, and what is ignored is inherited. What is caught
            # is not.
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    except OSError as error:
        raise CommandError(command[0], error) from error


def _wait(pid: int, signals: _Signals, pipeline: _Pipeline, on_error: Callable[[], None]) -> int:
    """Waits for the command, passing signals on to it; its exit code.

    `on_error` is called once if the pipeline fails meanwhile.
    """
    # What came before the command was there has not reached it, wherever it came from.
    for number, _ in signals.wait(0):
        if number in _PASSED_ON:
            os.kill(pid, number)
    watching = True
    while True:
        for number, of_kernel in signals.wait(_WATCH_SECONDS):
            # One from the terminal is the kernel's, and has reached the command already, which is
            # in the same process group.
            if number in _PASSED_ON and not of_kernel:
                os.kill(pid, number)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if watching and pipeline.error is not None:
            watching = False
            on_error()


def _header(command: Sequence[str], clock: str) -> bytes:
    """Where the trace comes from, as comment lines."""
    system = platform.uname()
    return _comments(
        "page events of the whole machine, recorded by potad",
        f"date: {datetime.now(UTC).isoformat(timespec='seconds')}",
        f"kernel: {system.system} {system.release} {system.machine}",
        f"cpus: {os.cpu_count()}, page: {os.sysconf('SC_PAGE_SIZE')} bytes, clock: {clock}",
        f"command: {shlex.join(command)}",
    )


def _comments(*lines: str) -> bytes:
    """Comment lines, which readers of traces pass over; a line end in one is spelled out."""
    spelled = (line.replace("\r", "\\r").replace("\n", "\\n") for line in lines)
    return "".join(f"# {line}\n" for line in spelled).encode("utf-8", "surrogateescape")


def record(
    command: Sequence[str],
    write: Callable[[bytes], object],
    *,
    buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    on_error: Callable[[Exception], None] = lambda _: None,
) -> Recording:
    """Runs `command` and records the machine's page events until it ends.

    Arguments: `command`, a program and its arguments, found as a shell finds it; `write`,
    takes the trace's text piece by piece, in another thread; `buffer_bytes`, the kernel's
    buffer for each CPU; `on_error`, told at once if `write` failed: recording stops then,
    the command is left to end by itself, and the error is raised after it.

    SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 to this process go to the command
    meanwhile, so a process makes one recording at a time. Raises `RecordError` for what is missing
    to record and `CommandError` if the command cannot be started; the machine's tracing is as
    before in every case.
    """
    with (
        _Signals() as signals,
        tracefs() as directory,
        instance(directory, buffer_bytes) as events,
    ):
        write(_header(command, events.clock))
        pipeline = _Pipeline(events.open_pipe(), write)

        def stop_early() -> None:
            events.set_recording(False)
            if pipeline.error is not None:
                on_error(pipeline.error)

        pipeline.start()
        started = time.monotonic()
        try:
            events.set_recording(True)
            exit_code = _wait(_spawn(command), signals, pipeline, stop_early)
        finally:
            seconds = time.monotonic() - started
            events.set_recording(False)
            pipeline.finish()
        counts = events.counts()
    if pipeline.error is not None:
        raise pipeline.error
    write(_comments(f"events: {counts.read}, lost: {counts.lost}"))
    return Recording(exit_code, counts, pipeline.text_bytes, seconds)
