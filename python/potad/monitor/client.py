"""Asking a process for a snapshot, and not trusting what it answers.

A process of another user is not asked, since it could show anything under the name of one of ours;
root may ask all.

Whatever is at the other end, an answer comes within the time or there is none, has at most so many
bytes, and is a snapshot or refused: garbage is an error with a sentence, never a surprise later.
Texts in it may still be anything, so who shows them takes out what a terminal would obey.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from pathlib import Path

from potad.errors import PotadError
from potad.monitor import place
from potad.monitor.view import Snapshot

ANSWER_BYTES_MAX = 1 << 20

_TIMEOUT_S = 5.0
_RETRY_S = 0.02


class NotServing(PotadError):
    """Nobody answers at this socket: it is not there, or its process has ended."""


class BadAnswer(PotadError):
    """What answers is no potad of this version."""


def snapshot(path: str | os.PathLike[str], timeout_s: float = _TIMEOUT_S) -> Snapshot:
    """What the process that serves at `path` shows now.

    Raises `NotServing` if there is none, `BadAnswer` for garbage, `TimeoutError` if the answer
    is not there in time, `PermissionError` if it is another user's and this one is not root, and
    `OSError` if the socket may not be connected to.
    """
    end = time.monotonic() + timeout_s
    whole = place.checked(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _connect(connection, whole, end)
        _must_be_ours(connection, whole)
        answer = _receive(connection, whole, end)
    if not answer:
        raise NotServing(f"{str(whole)!r}: ended without an answer")
    try:
        return Snapshot.from_dict(json.loads(answer))
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{str(whole)!r}: not an answer of potad: {error}") from error


def running() -> list[Path]:
    """The sockets in the default directory that a running process serves, by name.

    Raises `PermissionError` if the directory is not this user's alone.
    """
    directory = place.default_directory()
    try:
        place.must_be_ours(directory)
        found = [directory / name for name in os.listdir(directory)]
    except FileNotFoundError:
        return []
    found = [path for path in found if place.pid_of(path) is not None]
    return sorted(filter(place.answers, found), key=lambda path: (place.pid_of(path), path.name))


def _connect(connection: socket.socket, path: Path, end: float) -> None:
    while True:
        connection.settimeout(_left(path, end))
        try:
            return connection.connect(os.fsencode(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotServing(f"{str(path)!r}: nobody serves here") from error
        except BlockingIOError:
            # Many others wait already; such a socket does not wait for room.
            time.sleep(_RETRY_S)
        except TimeoutError:
            continue  # which says that there is no time left
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _must_be_ours(connection: socket.socket, path: Path) -> None:
    """Raises `PermissionError` if another user serves."""
    form = struct.Struct("iII")
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    _, served_by, _ = form.unpack(content)
    user = os.geteuid()
    if user not in (0, served_by):
        text = f"is served by user {served_by}, and this is user {user}"
        raise PermissionError(errno.EACCES, text, str(path))


def _receive(connection: socket.socket, path: Path, end: float) -> bytes:
    answer = bytearray()
    while True:
        connection.settimeout(_left(path, end))
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            part = b""
        except TimeoutError:
            continue
        if not part:
            return bytes(answer)
        answer += part
        if len(answer) > ANSWER_BYTES_MAX:
            raise BadAnswer(
                f"{str(path)!r}: not an answer of potad: more than {ANSWER_BYTES_MAX:,} bytes"
            )


def _left(path: Path, end: float) -> float:
    """Seconds until the end, some at least."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"{str(path)!r}: no answer in time")
    return left
