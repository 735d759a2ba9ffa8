"""The thread that shows a target, from `serve` to its end.

One thread waits for a client, takes a snapshot, sends it, and closes the connection. It does one
after the other: an answer is small enough that the system takes it whole, so a client that does
not read is no reason to wait, and where the system takes less, one is waited for no longer than a
second.

After a snapshot nobody is answered for nine times as long as it took (at most a second): so those
who ask, however often, take a tenth of one thread's time. Clients who go before they are
answered, as those do who only look whether somebody is there, cost no snapshot.

The end. A server ends when its target is collected or closed, when it is closed itself, and with
the interpreter. The thread holds the target only while it looks at it. A weak reference tells it
that the target is gone, by writing to a pair of sockets that it waits at, which is all that may
be done at any place of any thread. Nobody tells it that a target was closed: it looks each
second.

Only who made a socket removes it: the name must still be that of the same file, and the process
must be the one that bound it. A child of a fork has no such thread, so it closes its copies of the
sockets and does nothing else; a connection that was open at that moment ends for its client all the
same, since it is shut down and not only closed.

No lock is needed. What more than one thread changes is a dictionary of all servers, an entry at a
time; sockets are closed by the thread that waits at them.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import select
import socket
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from potad.monitor import place
from potad.monitor.view import Target, Viewer, can_be_closed, is_closed, kind_of
from potad.usage import short

# A client that does not take its answer is left.
_SEND_TIMEOUT_S = 1.0

# How many times as long as a snapshot took nobody is answered after it, and at most how long.
_REST_SHARE = 9
_REST_MAX_S = 1.0

_LOOK_IF_CLOSED_S = 1.0

# Such as that there are too many open files: not a reason to end, nor to try without pause.
_AFTER_ERROR_S = 0.5

_CLOSE_TIMEOUT_S = 2.0

# A library or program that wants to die of a closed pipe may have said so; this one does not.
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

_numbers = itertools.count()

# All that are open in this process, by identity: who serves need not keep the server.
_open: dict[int, Server] = {}


class Server:
    """What shows a pool, arena or space to other processes; made by `potad.serve`.

    It ends with its target, or when it is closed; as a context manager, with the context.
    """

    def __init__(self, target: Target, path: Path | None, name: str | None) -> None:
        kind = kind_of(target)
        self.name = name
        self._kind = kind
        self._viewer = Viewer(kind, name)
        self._may_be_closed = can_be_closed(target)
        self._pid = os.getpid()
        self._ended = False
        self._waker, self._woken = socket.socketpair()
        waker = self._waker
        waker.setblocking(False)
        try:
            # The reference must not hold on to the server, nor the other way round.
            self._target = weakref.ref(target, lambda _: _wake(waker))
            self._listener, self._path, self._bound = _listen(path)
        except BaseException:
            self._waker.close()
            self._woken.close()
            raise
        try:
            # A daemon: it has no part in whether the process goes on.
            self._thread = threading.Thread(target=self._run, name="potad-serve", daemon=True)
            _open[id(self)] = self
            self._thread.start()
        except BaseException:
            _open.pop(id(self), None)
            self._unlink()
            self._close_sockets()
            raise

    @property
    def path(self) -> Path:
        """The socket's name."""
        return self._path

    @property
    def closed(self) -> bool:
        """Whether it has ended. A server never serves again, nor in the child of a fork."""
        return self._ended or self._pid != os.getpid()

    def close(self) -> None:
        """Ends it: the socket is gone when this returns. To close it again does nothing.

        Waits for a snapshot that is being taken, but for no longer than two seconds.
        """
        if self.closed:
            return
        self._unlink()
        self._ended = True
        _wake(self._waker)
        # The last reference to an owner may go in the server's own thread, and that may end here.
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        closed = " closed" if self.closed else ""
        return f"<potad.Server of a {self._kind}{name} at {str(self._path)!r}{closed}>"

    def _run(self) -> None:
        try:
            while self._wait():
                took_s = self._answer_next()
                if took_s is None:
                    return
                rest_s = min(_REST_SHARE * took_s, _REST_MAX_S)
                if rest_s > 0 and _ready(rest_s, self._woken):
                    return
        finally:
            self._unlink()
            self._ended = True
            _open.pop(id(self), None)
            self._close_sockets()

    def _wait(self) -> bool:
        """Waits for a client; false if this is the end."""
        timeout_s = _LOOK_IF_CLOSED_S if self._may_be_closed else None
        while True:
            ready = _ready(timeout_s, self._listener, self._woken)
            if self._woken in ready or self._target_is_gone():
                return False
            if ready:
                return True

    def _target_is_gone(self) -> bool:
        target = self._target()
        try:
            return target is None or is_closed(target)
        except Exception:
            return False  # the snapshot says what is wrong with it

    def _answer_next(self) -> float | None:
        """Answers the next client; how long that took without sending, or None at the end."""
        start = time.monotonic()
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return time.monotonic() - start  # gone already
        except OSError:
            return _AFTER_ERROR_S / _REST_SHARE
        with client:
            answer = b"" if _hung_up(client) else self._answer()
            took_s = time.monotonic() - start
            if answer is None:
                return None
            try:
                client.settimeout(_SEND_TIMEOUT_S)
                client.sendall(answer, _SEND_FLAGS)
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # gone, or does not read
            return took_s

    def _answer(self) -> bytes | None:
        """A snapshot as it is sent; None if there is no target any more."""
        target = self._target()
        if target is None:
            return None
        shown = self._viewer.look(target)
        # It may be the last reference, and what follows is for clients.
        del target
        return json.dumps(shown.to_dict(), allow_nan=False, separators=(",", ":")).encode()

    def _unlink(self) -> None:
        """Removes the name, if it is still this server's."""
        if self._pid != os.getpid():
            return
        with suppress(OSError):
            place.remove(self._path, self._bound)

    def _close_sockets(self) -> None:
        # Whoever else has a copy, such as a child that was not forked by Python, is no server.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in (self._listener, self._waker, self._woken):
            end.close()

    def _leave_to_parent(self) -> None:
        """In the child of a fork: closes its copies."""
        self._ended = True
        for end in (self._listener, self._waker, self._woken):
            end.close()


def serve(
    target: Target, path: str | os.PathLike[str] | None = None, *, name: str | None = None
) -> Server:
    """Shows a pool, an arena or a space of this process to `potad top`.

    Other processes of the same user can look at it, and nothing else: a thread of this process
    sends one snapshot to each who connects to a local socket. It holds on to neither the target
    nor its owners, and ends when the target is collected or (within a second) closed, when the
    server is closed, or with the interpreter. The server need not be kept. The child of a fork is
    not shown.

    Arguments:
        target: a `Pool`, `Arena` or `Space`.
        path: where the socket is to be. By default `PID-N.sock` in `$XDG_RUNTIME_DIR/potad`, or in
            `/tmp/potad-UID` where the variable is not set. A socket of this user that refuses
            connections is replaced: its process was killed, or has not begun to listen at it.
        name: a text for those who look, to tell one from the other.

    Returns: a `Server`, with `path` and `close()`, which is a context manager.

    Raises:
        FileExistsError: a running process serves at this path, or something else is there, such as
            a file, a socket of another type, or one of another user.
        PermissionError: the default directory is not this user's alone.
        OSError: there can be no socket at the path.
        ValueError, TypeError: an argument is not as above.

    Takes a system call or ten. A snapshot costs some microseconds, and of a space 0.2
    microseconds for each of its allocations and 2.5 for each of its owners, during which the
    space is locked and, as for any call of Python, the GIL held: that part is renewed when it
    comes to a fiftieth of the time. Texts of owners are made in the server's thread.

    >>> import potad
    >>> space = potad.Space(1 << 30)
    >>> with potad.serve(space, name="an example") as server:
    ...     server.path.exists()
    True
    >>> server.path.exists()
    False
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a text, not {short(name)}")
    return Server(target, None if path is None else place.checked(path), name)


def _listen(path: Path | None) -> tuple[socket.socket, Path, os.stat_result]:
    """A listening socket, its name, and what is there."""
    if path is not None:
        listener, bound = place.listen(path)
        return listener, path, bound
    directory = place.made_directory()
    while True:
        path = place.checked(directory / f"{os.getpid()}-{next(_numbers)}.sock")
        try:
            listener, bound = place.listen(path)
            return listener, path, bound
        except FileExistsError:
            # A process of the same number, of another container for instance.
            continue


def _wake(waker: socket.socket) -> None:
    """Has the thread look up; from anywhere, also while objects are collected."""
    # An error is that it has ended, or was woken so often that it will look up anyway.
    with suppress(OSError):
        waker.send(b"x", _SEND_FLAGS)


def _ready(timeout_s: float | None, *ends: socket.socket) -> list[socket.socket]:
    """Those that can be read from, once there are any, or the time is over."""
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    found = {number for number, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
    return [end for end in ends if end.fileno() in found]


def _hung_up(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _close_all() -> None:
    for server in list(_open.values()):
        server.close()


def _after_fork_in_child() -> None:
    for server in list(_open.values()):
        server._leave_to_parent()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
