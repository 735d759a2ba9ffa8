"""Files a command writes: refused before the work, in place only when whole.

An output is written to a temporary file beside its place, opened when the command starts, so
that a place that cannot be written is known before minutes of work; `commit` renames it into
place, over what was there. Leaving without that removes it and leaves the old file as it was.
One that a killed run left is removed by the next that writes the same file: a temporary file is
locked while its run lives.
A device or a pipe has nothing to protect and is written directly.

Other users. The temporary file is made by this process, under a name that nobody can guess, and
readable by its user alone until it is whole; then it gets the mode of a new file, or that of the
user's own file that it replaces. Symbolic links in the path that the user named are followed. In a
directory that everybody can write to, such as /tmp, one of another user is not: the rule of Linux's
protected_symlinks, which would not see what is resolved here.
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

# As many as the system follows.
_LINKS_MAX = 40

_SUFFIX = ".part"

# A name is random, so that it is taken for a killed run's hardly more than once.
_ATTEMPTS = 10


class OutputFile:
    """A file to be written; a context manager."""

    def __init__(self, path: str) -> None:
        """Opens the temporary file; raises `click.UsageError` if `path` cannot be written."""
        self.path = path
        self._temporary: str | None = None
        try:
            # What a symbolic link points to is replaced, not the link.
            self._place = _followed(path)
            self._file = os.fdopen(self._open(), "wb")
        except OSError as error:
            raise click.UsageError(
                f"cannot write {click.format_filename(path)}: {error.strerror}"
            ) from error

    def _open(self) -> int:
        try:
            found = os.stat(self._place)
        except FileNotFoundError:
            found = None
        if found is not None and (
            not stat.S_ISREG(found.st_mode) or not os.access(self._place, os.W_OK)
        ):
            # A device, a pipe; or a directory or a file we may not write, which fails here.
            file = os.open(self._place, os.O_WRONLY | os.O_CLOEXEC)
            if not os.path.samestat(os.fstat(file), found):
                os.close(file)
                raise OSError(errno.ESTALE, "another file was put there meanwhile")
            return file
        self._mode = 0o666 & ~_mask()
        if found is not None:
            # Never setuid and its like, nor what another user's file allows beyond a new one.
            own = found.st_uid == os.geteuid()
            self._mode = found.st_mode & (0o777 if own else self._mode)
        folder, name = os.path.split(self._place)
        prefix = f".{name[:200]}."
        _remove_dead(folder, prefix)
        for _ in range(_ATTEMPTS):
            temporary = os.path.join(folder, f"{prefix}{secrets.token_hex(4)}{_SUFFIX}")
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # Before it is locked, another run can take it for one that a killed run left.
            if _lock(file) and os.fstat(file).st_nlink:
                break
            os.close(file)
        else:
            raise OSError(errno.EBUSY, "another process removes the temporary file again and again")
        self._temporary = temporary
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
            os.fchmod(self._file.fileno(), self._mode)
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


def _followed(path: str) -> str:
    """Where a path leads once its links are followed, those of its directories too.

    Raises `OSError` for a link of another user in a directory that everybody can write to.
    """
    if not os.path.isabs(path):
        path = os.path.join(os.getcwd(), path)
    at, links, rest = "/", 0, path.split("/")[::-1]
    while rest:
        name = rest.pop()
        if name in ("", ".") and rest:
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        folder, at = at, os.path.join(at, name)
        try:
            link, target = os.lstat(at), os.readlink(at)
        except OSError:
            continue  # no link, or nothing
        around = os.stat(folder)
        shared = around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH
        if shared and link.st_uid not in (os.geteuid(), around.st_uid):
            text = (
                f"{at} is a symbolic link of user {link.st_uid}, and everybody can make one there"
            )
            raise PermissionError(errno.EACCES, text)
        if os.path.exists(at) and not os.path.lexists(os.path.join(folder, target)):
            continue  # such as /proc/self/fd/1, whose target is no path
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        at = "/" if os.path.isabs(target) else folder
        rest += target.split("/")[::-1]
    return at


def _mask() -> int:
    """The process's mask for new files, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


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
