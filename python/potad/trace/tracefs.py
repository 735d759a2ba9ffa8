"""The kernel's tracing files, and a ring buffer of one's own among them.

*tracefs* is the file system through which ftrace is told what to do. An *instance* is a
directory made under its `instances/`: it has its own ring buffers (one for each CPU), its
own enabled events and its own clock, and disappears with all of them when the directory is
removed. Nothing outside it is touched, so whatever else is being traced goes on as before.

An instance records until it is removed, so none may outlive its recorder. A recorder that is
killed cannot remove its own; a *guard* does, a small process that waits for the recorder's end
(`guard.py`). If that was killed as well, the next recorder removes the instance. A recorder holds
a file of its instance open, and the kernel refuses to remove an instance that has one, so to
try is to tell the dead from the living, also where they are in other containers.

tracefs may not be mounted. Then it is mounted on a private directory, opened, and taken out
of the tree again at once (a lazy unmount): the open directory keeps it usable, nobody else
sees it, and nothing is left to undo even if this process is killed. Paths are therefore
always relative to that open directory. `/sys/kernel/debug/tracing` is not looked at unless
it is mounted already: merely walking into it would make the kernel mount tracefs there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from potad.trace.errors import RecordError

PAGE_EVENTS = ("mm_page_alloc", "mm_page_free")

_GUARD = os.path.join(os.path.dirname(__file__), "guard.py")

_MNT_DETACH = 2  # umount2(2): out of the tree now, gone when the last user is

# What an instance may inherit from the machine's global settings and that would make its
# text something else than one plain line an event.
_OPTIONS = {"raw": 0, "hex": 0, "bin": 0, "annotate": 0, "latency-format": 0, "context-info": 1}

# Clocks in order of preference: both agree between CPUs, so that the merged text is in the
# order things happened; the default, `local`, does not.
_CLOCKS = ("mono", "global")

# Someone listing the instances has ours open for a moment; removing it then fails.
_REMOVE_ATTEMPTS = 20
_REMOVE_PAUSE_SECONDS = 0.1

# Those of this version and of earlier ones.
_NAME = re.compile(r"potad-\d+(-[0-9a-f]{8}|\.\d+)?", re.ASCII)

# Names are random, so that one made again is never another recorder's. A new instance can be taken
# for a dead one only before it is held, and hardly more than once.
_MAKE_ATTEMPTS = 10


def _needs_root(error: OSError, what: str) -> RecordError:
    if error.errno in (errno.EPERM, errno.EACCES):
        who = "this user may not" if os.geteuid() else "root may not, here (a container?)"
        return RecordError(f"recording needs root: {who} {what} ({os.strerror(error.errno)})")
    return RecordError(f"cannot {what}: {os.strerror(error.errno or 0)}")


def _mounted() -> str | None:
    """Where tracefs is mounted, if it is."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, place, kind, *_ = line.split(" ")
                if kind == "tracefs":
                    # Blanks and backslashes in the path are written as octal escapes.
                    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), place)
    except OSError as error:
        raise RecordError(f"cannot read /proc/self/mounts: {error.strerror}") from error
    return None


def _mount_detached() -> int:
    """An open directory of a tracefs that is mounted nowhere."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), function)

    place = tempfile.mkdtemp(prefix="potad-tracefs-")
    path = os.fsencode(place)
    try:
        call("mount", b"nodev", path, b"tracefs", ctypes.c_ulong(0), None)
        try:
            return os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            call("umount2", path, ctypes.c_int(_MNT_DETACH))
    finally:
        os.rmdir(place)


@contextmanager
def tracefs() -> Iterator[int]:
    """An open directory of tracefs, mounted or not; closed on leaving.

    Raises `RecordError` saying what is missing: Linux, root, or tracing in the kernel.
    """
    if sys.platform != "linux":
        raise RecordError(f"recording needs Linux and its ftrace; this is {sys.platform}")
    place = _mounted()
    try:
        directory = (
            _mount_detached() if place is None else os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        )
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise RecordError("this kernel has no tracefs: it lacks CONFIG_TRACING") from error
        raise _needs_root(error, "mount tracefs" if place is None else f"open {place}") from error
    try:
        yield directory
    finally:
        os.close(directory)


@dataclass(frozen=True)
class Counts:
    """What a ring buffer says about itself, summed over the CPUs."""

    read: int
    """Events read out."""
    lost: int
    """Events that were overwritten before they were read, or found no room."""


class Instance:
    """A tracing instance that records page events; see the module's description."""

    def __init__(self, directory: int, path: str) -> None:
        """Makes it; raises `FileNotFoundError` if another recorder took it for a dead one."""
        self._tracefs = directory
        self._path = path
        self._pipe: int | None = None
        os.mkdir(path, dir_fd=directory)
        try:
            # While this is open, the kernel lets nobody remove the instance.
            self._hold = os.open(f"{path}/tracing_on", os.O_RDONLY, dir_fd=directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.rmdir(path, dir_fd=directory)
            raise

    def _write(self, name: str, text: str) -> None:
        file = os.open(f"{self._path}/{name}", os.O_WRONLY | os.O_TRUNC, dir_fd=self._tracefs)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def _read(self, name: str) -> str:
        file = os.open(f"{self._path}/{name}", os.O_RDONLY, dir_fd=self._tracefs)
        with open(file, encoding="ascii", errors="replace") as opened:
            return opened.read()

    def _set_up(self, buffer_bytes: int) -> None:
        for option, value in _OPTIONS.items():
            try:
                self._write(f"options/{option}", str(value))
            except FileNotFoundError:
                continue  # not in this kernel, so not on either
        for clock in _CLOCKS:
            try:
                self._write("trace_clock", clock)
                break
            except OSError:
                continue
        kib = -(-buffer_bytes // 1024)
        try:
            self._write("buffer_size_kb", str(kib))
        except OSError as error:
            raise RecordError(
                f"the kernel refuses a buffer of {kib:,} KiB for each CPU:"
                f" {os.strerror(error.errno or 0)}"
            ) from error
        for event in PAGE_EVENTS:
            try:
                os.stat(f"{self._path}/events/kmem/{event}/enable", dir_fd=self._tracefs)
            except FileNotFoundError as error:
                raise RecordError(f"this kernel has no tracepoint kmem:{event}") from error

    @property
    def clock(self) -> str:
        """The clock of the timestamps: the one in brackets is in use."""
        chosen = re.search(r"\[(\S+)\]", self._read("trace_clock"))
        return chosen[1] if chosen else "unknown"

    def set_recording(self, on: bool) -> None:
        """Lets page events into the buffer, or no longer."""
        for event in PAGE_EVENTS:
            self._write(f"events/kmem/{event}/enable", "1" if on else "0")

    def open_pipe(self) -> int:
        """A descriptor from which events are read as text, oldest first, without waiting.

        What was read is gone from the buffer. Closed by `remove`.
        """
        self._pipe = os.open(
            f"{self._path}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK, dir_fd=self._tracefs
        )
        return self._pipe

    def counts(self) -> Counts:
        """Events read and lost so far."""
        cpus = os.open(f"{self._path}/per_cpu", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._tracefs)
        try:
            names = os.listdir(cpus)
        finally:
            os.close(cpus)
        read = lost = 0
        for cpu in names:
            for line in self._read(f"per_cpu/{cpu}/stats").splitlines():
                name, _, value = line.partition(":")
                if name == "read events":
                    read += int(value)
                elif name in ("overrun", "commit overrun", "dropped events"):
                    lost += int(value)
        return Counts(read, lost)

    def remove(self) -> None:
        """Removes the instance with all that is in it; its events end with it.

        Raises `RecordError` if another process holds it in use.
        """
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        os.close(self._hold)
        for attempt in range(_REMOVE_ATTEMPTS):
            try:
                os.rmdir(self._path, dir_fd=self._tracefs)
                return
            except FileNotFoundError:
                return  # by another recorder: since it is held no longer, it counts as dead
            except OSError as error:
                if error.errno != errno.EBUSY or attempt == _REMOVE_ATTEMPTS - 1:
                    raise RecordError(
                        f"cannot remove the tracing instance {self._path} of tracefs:"
                        f" {os.strerror(error.errno or 0)}; remove it with rmdir"
                    ) from error
            time.sleep(_REMOVE_PAUSE_SECONDS)


def _remove_dead(directory: int) -> None:
    """Removes the instances of recorders that were killed, and their guards with them."""
    folder = os.open("instances", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        for name in os.listdir(folder):
            if _NAME.fullmatch(name):
                # Busy if its recorder lives, and not there if that is done with it.
                with suppress(OSError):
                    os.rmdir(name, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def _guarded(directory: int, path: str) -> Iterator[None]:
    """Has a process of its own remove the instance at `path` if this one ends before leaving.

    It has a session of its own, so that what ends all others of this one spares it.
    """
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", _GUARD, str(directory), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=(directory,),
            start_new_session=True,
        )
    except OSError as error:
        raise RecordError(
            f"cannot run {sys.executable!r}, which is to remove the tracing instance if potad is"
            f" killed: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        # To close the pipe would not do: a process that was forked meanwhile may have it open.
        guard.communicate(b"\n")


@contextmanager
def instance(directory: int, buffer_bytes: int) -> Iterator[Instance]:
    """A new instance in the tracefs open as `directory`, removed on leaving.

    `buffer_bytes` is the ring buffer's size for each CPU. Instances that killed recorders left are
    removed as well.
    """
    with suppress(OSError):  # what forbids it is said when ours is made
        _remove_dead(directory)
    path = f"instances/potad-{os.getpid()}-{secrets.token_hex(4)}"
    with _guarded(directory, path):
        made = _made(directory, path)
        try:
            made._set_up(buffer_bytes)
            yield made
        finally:
            made.remove()


def _made(directory: int, path: str) -> Instance:
    for _ in range(_MAKE_ATTEMPTS):
        try:
            return Instance(directory, path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _needs_root(error, "make a tracing instance") from error
    raise RecordError(f"another process removes the tracing instance {path} again and again")
