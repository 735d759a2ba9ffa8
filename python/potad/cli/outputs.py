"""Files a command writes: refused before the work, in place only when whole.

An output is written to a temporary file beside its place, opened when the command starts, so
that a place that cannot be written is known before minutes of work; `commit` renames it into
place, over what was there. Leaving without that removes it and leaves the old file as it was.
One that a killed run left is removed by the next that writes the same file: a temporary file is
locked while its run lives.
A device or a pipe has nothing to protect and is written directly.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from types import TracebackType

import click

_SUFFIX = ".part"

# A name is random, so that it is taken for a killed run's hardly more than once.
_ATTEMPTS = 10


class OutputFile:
    """A file to be written; a context manager."""

    def __init__(self, path: str) -> None:
        """Opens the temporary file; raises `click.UsageError` if `path` cannot be written."""
        self.path = path
        # What a symbolic link points to is replaced, not the link.
        self._place = os.path.realpath(path)
        self._temporary: str | None = None
        try:
            self._file = os.fdopen(self._open(), "wb")
        except OSError as error:
            raise click.UsageError(
                f"cannot write {click.format_filename(path)}: {error.strerror}"
            ) from error

    def _open(self) -> int:
        try:
            mode = os.stat(self._place).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and (not stat.S_ISREG(mode) or not os.access(self._place, os.W_OK)):
            # A device, a pipe; or a directory or a file we may not write, which fails here.
            return os.open(self._place, os.O_WRONLY | os.O_CLOEXEC)
        folder, name = os.path.split(self._place)
        prefix = f".{name[:200]}."
        _remove_dead(folder, prefix)
        for _ in range(_ATTEMPTS):
            temporary = os.path.join(folder, f"{prefix}{secrets.token_hex(4)}{_SUFFIX}")
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            # Before it is locked, another run can take it for one that a killed run left.
            if _lock(file) and os.fstat(file).st_nlink:
                break
            os.close(file)
        else:
            raise OSError(errno.EBUSY, "another process removes the temporary file again and again")
        self._temporary = temporary
        if mode is not None:
            os.fchmod(file, stat.S_IMODE(mode))
        return file

    def same_file(self, other: str) -> bool:
        """Whether `other` names the file this will become."""
        return os.path.realpath(other) == self._place

    def write(self, data: bytes) -> None:
        """Appends `data`."""
        self._file.write(data)

    def commit(self) -> None:
        """Puts the file, now whole, into its place."""
        self._file.flush()
        if self._temporary is not None:
            os.fsync(self._file.fileno())
            # Before it is closed, and so while it is locked.
            os.replace(self._temporary, self._place)
            self._temporary = None
        self._file.close()

    def discard(self) -> None:
        """Forgets what was written; after `commit` there is nothing to forget."""
        try:
            if self._temporary is not None:
                os.unlink(self._temporary)
                self._temporary = None
        finally:
            self._file.close()

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


def _lock(file: int) -> bool:
    """Whether the lock of an open file could be had; it ends with the file or the process.

    Where the file system has no locks it can: no other run can have it there.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove_dead(folder: str, prefix: str) -> None:
    """Removes this user's temporary files with such names whose runs were killed."""
    name = re.compile(f"{re.escape(prefix)}[0-9a-f]{{8}}{re.escape(_SUFFIX)}")
    with suppress(OSError):  # what forbids it is said when ours is made
        for path in (entry.path for entry in os.scandir(folder) if name.fullmatch(entry.name)):
            with suppress(OSError):
                _remove_if_dead(path)


def _remove_if_dead(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if its run lives
            os.unlink(path)
    finally:
        os.close(file)
