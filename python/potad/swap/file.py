"""A file's bytes: reads and writes that are whole, or errors that say what was to be done where.

The system may write less than it is asked to, and read less. A call here goes on until everything
is done, so a caller sees all of it or an error. `System` has every call to the system that a swap
file makes, and so is the one place where tests have one fail.

Other users. A swap file has what was in memory, and its directory may be one that every user can
write to, such as /var/tmp. So a new file has mode 0600 from its first moment, and a file that is
there is used only if it is regular, has one name, belongs to the effective user, and is open to
nobody else; a symbolic link is not followed. This is checked on the open descriptor, so nobody can
put another file there between the check and the use. The directories above are the caller's choice:
links in them are followed, and who may rename files in them may remove a swap file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shlex
import stat
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from potad._core import punch_hole
from potad.printable import printable

# Buffers that one call takes; the least that POSIX systems allow is 16, Linux allows 1,024.
_BUFFERS_MAX = 1024

# What direct I/O is aligned to. The file system may be content with less: a page always will do.
PAGE = 4096

# The copy that direct I/O makes of data that is not aligned is made a piece at a time.
_PIECE = 1 << 20


# A symbolic link is an error. A device or a pipe is opened at once, to be found to be one: it is
# not waited for, and no terminal becomes this process's.
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

# What a file system says that makes no file without a name; the second is of old kernels.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)


class System:
    """The calls of the system that a swap file makes."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    fstat = staticmethod(os.fstat)
    lstat = staticmethod(os.lstat)
    fchmod = staticmethod(os.fchmod)
    unlink = staticmethod(os.unlink)
    pread = staticmethod(os.pread)
    preadv = staticmethod(os.preadv)
    pwritev = staticmethod(os.pwritev)
    fdatasync = staticmethod(os.fdatasync)
    ftruncate = staticmethod(os.ftruncate)
    punch_hole = staticmethod(punch_hole)


class FileEnd(Exception):
    """The file ends before what was to be read does; `size` is how long it is."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class File:
    """A regular file of this user alone, opened for reading and writing.

    One that has a name is locked for as long as it is open.
    """

    def __init__(
        self, path: str, system: System, *, direct: bool = False, named: bool = True
    ) -> None:
        """Opens a file, which is made if there is none; or makes one in the directory of `path`
        that has no name there, so that nothing of it is left once it is closed, or its process
        has ended.

        Raises `OSError`; `BlockingIOError` if it is open and locked somewhere else,
        `FileExistsError` if one without a name is asked for and there is something at `path`.
        """
        self.path = path
        self.system = system
        self._bounces: deque[memoryview] = deque()
        self.direct = False
        while True:
            if named:
                self._open()
            else:
                self._make_unnamed()
            try:
                if self._prepare(direct, named):
                    return
            except BaseException as error:
                # Where another process was quicker to lock a new file, it is that one's.
                if self.is_new and not isinstance(error, BlockingIOError):
                    with contextlib.suppress(OSError):
                        self.remove()
                system.close(self.descriptor)
                raise
            # Whoever had it locked has removed it meanwhile.
            system.close(self.descriptor)

    def _open(self) -> None:
        while True:
            try:
                self.descriptor = self.system.open(self.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
                self.is_new = True
                return
            except FileExistsError:
                self.is_new = False
            # Somebody may remove it in between.
            with contextlib.suppress(FileNotFoundError):
                self.descriptor = self._open_existing()
                return

    def _open_existing(self) -> int:
        try:
            return self.system.open(self.path, _OPEN)
        except OSError as error:
            if error.errno != errno.ELOOP or not os.path.islink(self.path):
                raise
            text = "the file is a symbolic link, which is not followed: give the path it leads to"
            raise OSError(errno.ELOOP, text, self.path) from error

    def _make_unnamed(self) -> None:
        if self._at_path() is not None:
            text = "something is there already: remove it, or take another path, since keep=False"
            raise FileExistsError(errno.EEXIST, f"{text} makes a new file", self.path)
        self.is_new = True
        try:
            # With O_EXCL it can never be given a name.
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE | os.O_EXCL
            self.descriptor = self.system.open(os.path.dirname(self.path), flags, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self.descriptor = self.system.open(self.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)

    def _prepare(self, direct: bool, named: bool) -> bool:
        """Whether the file that was opened is to be used, and not another one at its path."""
        if not named:
            # It has a name only where the file system makes none without.
            self.remove()
        self._must_be_ours()
        doing = "locking"
        try:
            if named:
                # Of the open file, so a second opening in this process is refused as well.
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.is_new:
                # The process's mask for new files may have taken the user's own permissions.
                doing = "setting the mode"
                self.system.fchmod(self.descriptor, 0o600)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, {doing}", self.path) from error
        if direct:
            # Not every file system has it; those that have not say so here.
            with contextlib.suppress(OSError):
                before = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
                fcntl.fcntl(self.descriptor, fcntl.F_SETFL, before | os.O_DIRECT)
                self.direct = True
        return not named or self.is_in_place

    def _must_be_ours(self) -> None:
        """Raises an error unless the open file is a regular one that only this user can reach."""
        found, user = self.system.fstat(self.descriptor), os.geteuid()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"path must be a regular file, which {self.path!r} is not")
        if found.st_uid != user:
            why = f"belongs to user {found.st_uid}, not to {user}: take another path"
        elif found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            path = printable(shlex.quote(self.path), len(self.path) + 2)
            why = f"is open to other users, with mode {mode:o}: chmod 600 {path}"
        elif found.st_nlink > 1:
            why = f"has {found.st_nlink} names: remove all but one, or take another path"
        else:
            return
        raise PermissionError(errno.EACCES, f"the file {why}", self.path)

    def close(self) -> None:
        """Closes the file, and gives up its lock."""
        try:
            # The lock would stay for as long as a forked process has the file open.
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        finally:
            self.leave()

    def leave(self) -> None:
        """Closes the file in a process that was forked, whose parent keeps the lock."""
        self.system.close(self.descriptor)

    @property
    def is_in_place(self) -> bool:
        """Whether it is still this file that is at its path."""
        found = self._at_path()
        return found is not None and os.path.samestat(found, self.system.fstat(self.descriptor))

    def _at_path(self) -> os.stat_result | None:
        try:
            return self.system.lstat(self.path)
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Removes the file from its directory, unless it is there no more."""
        if self.is_in_place:
            self.system.unlink(self.path)

    @property
    def size(self) -> int:
        """Bytes, holes included."""
        return self.system.fstat(self.descriptor).st_size

    @property
    def disk_size(self) -> int:
        """Bytes that the file takes of the file system."""
        return self.system.fstat(self.descriptor).st_blocks * 512

    def next_data(self, start: int) -> int | None:
        """The first offset from `start` on where the file has blocks, if there are any."""
        try:
            return os.lseek(self.descriptor, start, os.SEEK_DATA)
        except OSError as error:
            # There is nothing but a hole behind it; or the file system does not tell holes.
            return None if error.errno == errno.ENXIO else start

    def next_hole(self, start: int) -> int:
        """The first offset from `start` on where it has none: the file's end at the latest."""
        try:
            return os.lseek(self.descriptor, start, os.SEEK_HOLE)
        except OSError:
            return self.size

    def read(self, size: int, offset: int) -> bytes:
        """So many bytes from an offset on, as `read_into` reads them; not for direct I/O."""
        data = b""
        while len(data) < size:
            with self._told("reading", size - len(data), offset):
                part = self.system.pread(self.descriptor, size - len(data), offset)
            if not part:
                raise FileEnd(self.size)
            # Mostly it comes as a whole, and is not copied.
            data = data + part if data else part
            offset += len(part)
        return data

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fills buffers from an offset on; a single one if I/O is direct.

        Raises `FileEnd` where the file is too short, and `OSError`.
        """
        if self.direct:
            (buffer,) = buffers
            self._read_direct(buffer, offset)
            return
        for part, start in _parts(buffers, offset):
            self._read_part(part, start)

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Writes buffers from an offset on; a single one if I/O is direct.

        Raises `OSError`.
        """
        if self.direct:
            (buffer,) = buffers
            self._write_direct(buffer, offset)
            return
        for part, start in _parts(buffers, offset):
            self._write_part(part, start)

    def punch(self, offset: int, size: int) -> None:
        """Gives a range back to the file system; `OSError` if that is not possible."""
        with self._told("giving back", size, offset):
            self.system.punch_hole(self.descriptor, offset, size)

    def truncate(self, size: int) -> None:
        """Sets the size; `OSError` if that is not possible."""
        with self._told("setting the size to", size, 0):
            self.system.ftruncate(self.descriptor, size)

    def sync(self) -> None:
        """Waits until what was written is on the disk; `OSError` if it does not get there."""
        with self._told("syncing", self.size, 0):
            self.system.fdatasync(self.descriptor)

    def sync_directory(self) -> None:
        """Waits until it is on the disk that the file is in its directory; `OSError` likewise."""
        with self._told("syncing the directory of", self.size, 0):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            descriptor = self.system.open(os.path.dirname(self.path), flags)
            try:
                self.system.fdatasync(descriptor)
            finally:
                self.system.close(descriptor)

    @contextlib.contextmanager
    def _told(self, doing: str, size: int, offset: int) -> Iterator[None]:
        """Errors of the system with what was to be done."""
        try:
            yield
        except OSError as error:
            what = f"{os.strerror(error.errno or 0)}, {doing} {size} bytes at {offset:#x}"
            raise OSError(error.errno, what, self.path) from error

    def _read_part(self, buffers: list[memoryview], offset: int) -> None:
        while buffers:
            size = sum(buffer.nbytes for buffer in buffers)
            with self._told("reading", size, offset):
                done = self.system.preadv(self.descriptor, buffers, offset)
            if not done:
                raise FileEnd(self.size)
            offset += done
            buffers = _rest(buffers, done)

    def _write_part(self, buffers: list[memoryview], offset: int) -> None:
        while buffers:
            size = sum(buffer.nbytes for buffer in buffers)
            with self._told("writing", size, offset):
                done = self.system.pwritev(self.descriptor, buffers, offset)
                if not done:
                    # Never seen of a regular file; to go on would be to go on for ever.
                    raise OSError(5, "nothing was written")
            offset += done
            buffers = _rest(buffers, done)

    def _read_direct(self, buffer: memoryview, offset: int) -> None:
        whole = buffer.nbytes // PAGE * PAGE
        if whole and _address(buffer) % PAGE == 0:
            self._read_part([buffer[:whole]], offset)
            buffer, offset = buffer[whole:], offset + whole
        with self._aligned() as bounce:
            for start in range(0, buffer.nbytes, _PIECE):
                piece = buffer[start : start + _PIECE]
                # The last page of a slot is in the file as a whole.
                self._read_part([bounce[: _up(piece.nbytes)]], offset + start)
                piece[:] = bounce[: piece.nbytes]

    def _write_direct(self, buffer: memoryview, offset: int) -> None:
        whole = buffer.nbytes // PAGE * PAGE
        if whole and _address(buffer) % PAGE == 0:
            self._write_part([buffer[:whole]], offset)
            buffer, offset = buffer[whole:], offset + whole
        with self._aligned() as bounce:
            for start in range(0, buffer.nbytes, _PIECE):
                piece = buffer[start : start + _PIECE]
                end = _up(piece.nbytes)
                bounce[: piece.nbytes] = piece
                bounce[piece.nbytes : end] = bytes(end - piece.nbytes)
                self._write_part([bounce[:end]], offset + start)

    @contextlib.contextmanager
    def _aligned(self) -> Iterator[memoryview]:
        """Memory that starts with a page, for a piece; one for each call that is under way."""
        try:
            memory = self._bounces.pop()
        except IndexError:
            memory = memoryview(mmap.mmap(-1, _PIECE))
        yield memory
        self._bounces.append(memory)


def _parts(buffers: Sequence[memoryview], offset: int) -> Iterator[tuple[list[memoryview], int]]:
    """Buffers by as many as one call takes, each with the offset that it starts at."""
    for at in range(0, len(buffers), _BUFFERS_MAX):
        part = [buffer for buffer in buffers[at : at + _BUFFERS_MAX] if buffer.nbytes]
        yield part, offset
        offset += sum(buffer.nbytes for buffer in part)


def _rest(buffers: list[memoryview], done: int) -> list[memoryview]:
    """What is left of buffers after so many bytes."""
    for at, buffer in enumerate(buffers):
        if done < buffer.nbytes:
            return [buffer[done:], *buffers[at + 1 :]]
        done -= buffer.nbytes
    return []


def _up(size: int) -> int:
    """A size rounded up to pages."""
    return -(-size // PAGE) * PAGE


def _address(buffer: memoryview) -> int:
    """Where a buffer is in memory."""
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address
