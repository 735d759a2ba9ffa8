"""Where sockets are, and whose.

By default a socket is `$XDG_RUNTIME_DIR/potad/PID-N.sock`, or `/tmp/potad-UID/PID-N.sock` where
there is no such variable. Anybody can make a directory in `/tmp`, so one that is there is used
only if it is a directory and not a link to one, is this user's, and is open to nobody else.

A socket outlives a process that was killed. It is *stale* if nobody accepts connections at it,
and is then replaced. To look, to remove and to bind is one step for all who do it in the same
directory: they lock the directory. What is there and is no socket is never touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Bytes of a name that a Unix socket can have; one more is for the end.
PATH_BYTES_MAX = 107

# Clients that wait while another one is answered; later ones try again.
_WAITING_MAX = 16

_LOCK_TIMEOUT_S = 5.0

_NAME = re.compile(r"(\d+)-\d+\.sock", re.ASCII)


def default_directory() -> Path:
    """The directory that sockets without a path are in; it need not be there."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # What is not absolute is to be ignored, says the specification of the variable.
    if os.path.isabs(runtime):
        return Path(runtime, "potad")
    return Path(f"/tmp/potad-{os.geteuid()}")


def made_directory() -> Path:
    """The default directory, made if it is not there.

    Raises `OSError` if it cannot be, or is not this user's alone.
    """
    directory = default_directory()
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    must_be_ours(directory)
    return directory


def must_be_ours(directory: Path) -> None:
    """Raises `PermissionError` unless this is a directory that nobody else can use or change."""
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode):
        why = "is a link"
    elif not stat.S_ISDIR(found.st_mode):
        why = "is no directory"
    elif found.st_uid != os.geteuid():
        why = f"belongs to user {found.st_uid}"
    elif found.st_mode & 0o077:
        why = f"is open to others (mode {stat.S_IMODE(found.st_mode):o}, not 700)"
    else:
        return
    raise PermissionError(errno.EACCES, f"not used for sockets, since it {why}", str(directory))


def pid_of(path: Path) -> int | None:
    """The process that a socket with a default name is of."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def answers(path: Path) -> bool:
    """Whether somebody accepts connections at this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(os.fsencode(path))
        except BlockingIOError:
            return True  # so many that there is no room for one more
        except OSError:
            return False
        return True


def checked(path: str | os.PathLike[str]) -> Path:
    """A path for a socket, absolute: a process may change its directory later.

    Raises `TypeError` for what is no path, `ValueError` for one that no socket can have.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a text, not {text!r}")
    if not text or "\0" in text:
        raise ValueError(f"path must be a name in the file system, not {text!r}")
    whole = os.path.abspath(text)
    length = len(os.fsencode(whole))
    if length > PATH_BYTES_MAX:
        raise ValueError(
            f"path {whole!r} has {length} bytes, and that of a socket at most {PATH_BYTES_MAX}"
        )
    return Path(whole)


def listen(path: Path) -> socket.socket:
    """A socket of this user alone at `path`, which accepts connections; it does not block.

    Raises `FileExistsError` if one that is answered is there already, or anything else.
    """
    with _locked(path.parent):
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The name takes the mode of the socket. To change it afterwards would be too late, and
            # the mask for new files is the whole process's.
            os.fchmod(listener.fileno(), 0o600)
            listener.setblocking(False)
            listener.bind(os.fsencode(path))
            listener.listen(_WAITING_MAX)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, error.strerror, str(path)) from error
        except BaseException:
            listener.close()
            raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "is there and is no socket", str(path))
    if answers(path):
        raise FileExistsError(errno.EEXIST, "is served by a running process", str(path))
    # Its process may have ended in order just now.
    path.unlink(missing_ok=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else listens anew in this directory meanwhile; the lock ends with its process."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(
                        errno.ETIMEDOUT, "is locked by another process", str(directory)
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(folder)
