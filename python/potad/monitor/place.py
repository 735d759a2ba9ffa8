"""Where sockets are, and whose.

By default a socket is `$XDG_RUNTIME_DIR/potad/PID-N.sock`, or `/tmp/potad-UID/PID-N.sock` where
there is no such variable. Anybody can make a directory in `/tmp`, so one that is there is used
only if it is a directory and not a link to one, is this user's, and is open to nobody else.

A socket outlives a process that was killed. It is *stale* if it is this user's and the system
refuses a connection to it (ECONNREFUSED), and is then replaced. Any other answer, such as that it
is a socket of another type or may not be connected to, says that it may be in use. To look, to
remove, to bind and to listen is one step for all servers in the same directory: they lock the
directory. What is there and is no socket is never touched.

Limit. A socket that another program has bound, and does not listen at yet, refuses connections as
well. It is taken for stale, like one whose process was killed in that moment.
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
    return _connecting(path) is None


def _connecting(path: Path) -> OSError | None:
    """What the system says to a connection to this socket, if it does not make one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(os.fsencode(path))
        except BlockingIOError:
            return None  # so many clients wait that there is no room for one more
        except OSError as error:
            return error
        return None


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


def listen(path: Path) -> tuple[socket.socket, os.stat_result]:
    """A socket of this user alone at `path`, which accepts connections and does not block; and
    what is at `path` since, to tell later whether it still is.

    Raises `FileExistsError` if anything is there but a stale socket.
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
            bound = os.lstat(path)
            listener.listen(_WAITING_MAX)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, error.strerror, str(path)) from error
        except BaseException:
            listener.close()
            raise
    return listener, bound


def _remove_stale(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        why = "is there and is no socket"
    elif found.st_uid != os.geteuid():
        why = f"is a socket of user {found.st_uid}"
    else:
        match _connecting(path):
            case ConnectionRefusedError() | FileNotFoundError():
                remove(path, found)
                return
            case None:
                why = "is served by a running process"
            case error:
                why = f"is a socket that may be in use ({error.strerror}): remove it if it is not"
    raise FileExistsError(errno.EEXIST, why, str(path))


def remove(path: Path, found: os.stat_result) -> None:
    """Removes a socket unless something else is at its place by now."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), found):
            os.unlink(path)


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
