"""A file whose space is a `Space`: what is written to it lies in slots, which are its allocations.

Concept. A slot's number is its address in the space, and that is its offset in the file. What is
known about it beside where it is and whose, the length of its data and their checksum, is the
record of its descriptor. A slot takes as many granules as its data, as a block if they are a power
of two and there is one, otherwise as a run.

Threads. The space is safe to use from many threads, and reads and writes of different slots go on
at once. A slot is pinned while it is read or written, so nobody frees it meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, SupportsIndex

from potad._core import Space
from potad.arguments import flag, readable, whole, writable
from potad.swap.file import PAGE, System
from potad.swap.gate import Gate
from potad.swap.shrinking import shrink
from potad.swap.store import Slot, Store

# All that are open, so that a child process can give up its part in them.
_OPEN: weakref.WeakSet[SwapFile] = weakref.WeakSet()


class SwapFile:
    """A file that data is written to and read from, in slots of a space.

    The file is made, or reopened if a `SwapFile` made it: then all slots are there whose writing
    had returned, however the process ended. It is locked while it is open. Beside it lies a second
    file, its table of slots, named as it is and `.slots`.

    Both are this user's alone: new ones have mode 0600 whatever the umask, and one that is there is
    used only if it is a regular file, no symbolic link, of one name, that belongs to the effective
    user and has no permissions for others. Links in the directories above are followed: choose a
    directory in which no other user may rename or remove files, or one with the sticky bit such as
    /var/tmp.

    Arguments:
        path: a regular file, or where one is to be made.
        size: bytes, a multiple of `granule`; None for the size that the file has. It takes no
            blocks until it is written to. A file that is smaller is grown.
        granule: the smallest amount handed out, in bytes; a power of two, 512 or more.
        checksums: keeps a checksum of each slot that is written, and looks at it when the slot is
            read.
        direct: goes past the system's cache where the file system offers that (`direct` says
            whether it does), for granules of 4,096 bytes and up.
        keep: whether slots are to outlive the process. Without, there is no table, and the file is
            a new one that takes room in the directory of `path` but has no name there: its contents
            are gone, and its room is free, when it is closed or the process ends, however it ends.
            Each opening has a file of its own. Nothing may be at `path`, so that no file that was
            kept is emptied or overlooked.

    Raises:
        BlockingIOError: the file is open already, in this process or another one.
        FileExistsError: there is something at `path`, and `keep` is False.
        PermissionError: a file that is there is not this user's alone, as above; the message says
            what to do, such as `chmod 600 PATH`.
        OSError: the system refuses: a directory, a symbolic link, no permission, no such directory.
        ValueError, TypeError, OverflowError: an argument is not as above, or not as the file is; or
            there is a file that no `SwapFile` has made, which is left alone.
        Corrupt: the table contradicts itself. Remove the file and its table to begin anew.

    Takes a few system calls for a new file, and reads the table of one that is there.

    >>> import pathlib, tempfile, potad
    >>> directory = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(directory.name, "swap")
    >>> with potad.SwapFile(path, 1 << 30) as swap:
    ...     slot = swap.write(b"out of memory")
    ...     swap.space.lookup(slot).size
    4096
    >>> with potad.SwapFile(path) as swap:
    ...     swap.read(slot)
    b'out of memory'
    >>> directory.cleanup()

    Linux's swap files have a header and slots of a page; that slots may be blocks of any size is
    Matthew Wilcox's idea, of 2021.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: SupportsIndex | None = None,
        *,
        granule: SupportsIndex = 4096,
        checksums: bool = True,
        direct: bool = False,
        keep: bool = True,
        _system: System | None = None,
    ) -> None:
        system = System() if _system is None else _system
        name = _path(path)
        unit = whole("granule", granule)
        if unit < 512 or unit & (unit - 1):
            raise ValueError(f"granule must be a power of two from 512 on, not {unit}")
        wanted = None if size is None else whole("size", size)
        if wanted is not None and (wanted == 0 or wanted % unit):
            raise ValueError(f"size must be a multiple of {unit} above 0, not {wanted}")
        direct, keep = flag("direct", direct), flag("keep", keep)
        self._store = Store(
            name,
            wanted,
            unit,
            checksums=flag("checksums", checksums),
            # A page is read and written as a whole, so it may not have two slots.
            direct=direct and unit >= PAGE,
            keep=keep,
            system=system,
        )
        # Last: whoever has one has an open file.
        self._gate = Gate(f"the swap file {name!r}")
        _OPEN.add(self)

    @property
    def path(self) -> str:
        """Where the file is, as an absolute path; without `keep`, where it would be."""
        return self._store.path

    @property
    def space(self) -> Space:
        """The file's space: what slots there are, and what is free. Free slots through the file."""
        return self._store.space

    @property
    def size(self) -> int:
        """Bytes that slots may take altogether."""
        return self._store.space.size

    @property
    def granule(self) -> int:
        """The smallest amount handed out, in bytes."""
        return self._store.granule

    @property
    def direct(self) -> bool:
        """Whether reads and writes go past the system's cache."""
        return self._store.file.direct

    @property
    def checksums(self) -> bool:
        """Whether slots are written with checksums."""
        return self._store.checksums

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._gate.closed

    @property
    def disk_size(self) -> int:
        """Bytes that the file and its table, if it has one, take of the file system now."""
        with self._gate:
            return self._store.disk_size()

    def __len__(self) -> int:
        """How many slots there are."""
        return sum(1 for _ in self._store.slots())

    def __bool__(self) -> bool:
        """True, also without slots."""
        return True

    def __iter__(self) -> Iterator[int]:
        """The slots, in order."""
        return self._store.slots()

    def __repr__(self) -> str:
        unnamed = " keep=False" if self._store.table is None else ""
        closed = " closed" if self.closed else ""
        used = self._store.space.used
        return f"<potad.SwapFile {self.path!r} size={self.size} used={used}{unnamed}{closed}>"

    # Writing and reading.

    def write(self, data: Any, *, owner: Any = None) -> int:
        """Writes data to a new slot.

        Arguments:
            data: anything with the buffer protocol, contiguous; also nothing at all.
            owner: any object, as for `Space.alloc`; with `on_relocate` it is asked by `shrink`.

        Returns: the slot.

        Raises:
            OutOfSpace: the file has no room for it.
            OSError: the system refuses, such as ENOSPC where the disk is full, or EIO. There is no
                slot then.
            ValueError, TypeError: an argument is not as above, or the file is closed.
            MemoryError: there is no memory for metadata.

        Takes two system calls (one without `keep`), and a checksum.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         slot = swap.write(b"data", owner="me")
        ...         swap.read(slot), swap.space.lookup(slot).owner
        (b'data', 'me')
        """
        return self.write_many([data], owners=[owner])[0]

    def write_many(self, data: Iterable[Any], *, owners: Iterable[Any] | None = None) -> list[int]:
        """Writes data to new slots: all, or none.

        They lie one behind the other if there is room, and are written with as few calls as may be.

        Arguments:
            data: what is to be written to each slot, as for `write`.
            owners: as many, as for `write`; by default none.

        Returns: the slots, in order.

        Raises: what `write` does.

        Takes a system call for 1,024 slots that lie together, and as many for the table; without
        `keep` none for that.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.read_many(swap.write_many([b"one", b"two"]))
        [b'one', b'two']
        """
        views = [readable("data", it) for it in data]
        named = [None] * len(views) if owners is None else list(owners)
        if len(named) != len(views):
            raise ValueError(f"owners must be {len(views)}, as many as data, not {len(named)}")
        if not views:
            return []
        return self._write_views(views, [self._store.checksum(view) for view in views], named)

    def _write_views(
        self, views: list[memoryview], checksums: list[int | None], owners: list[Any]
    ) -> list[int]:
        """`write_many` for somebody who has the checksums already."""
        with self._gate:
            return self._store.write(views, checksums, owners)

    def _rewrite_views(
        self, slots: list[int], views: list[memoryview], checksums: list[int | None]
    ) -> None:
        """Writes over slots, of data of the same lengths; if that fails, they can only be freed."""
        with self._gate:
            self._store.rewrite(slots, views, checksums)

    def read(self, slot: SupportsIndex) -> bytes:
        """What was written to a slot.

        Arguments:
            slot: one that was written and not freed.

        Returns: the bytes.

        Raises:
            NotAllocated: there is no such slot.
            Poisoned: the bytes are not those that were written, or the file ends before they do.
            OSError: the system cannot read them.
            ValueError, TypeError, OverflowError: `slot` is no number, or the file is closed.

        Takes a system call, a checksum and a copy.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.read(swap.write(b"data"))
        b'data'
        """
        start = _slot(slot)
        with self._gate:
            found = self._store.pinned([start])
            try:
                return self._store.read_one(found[0])
            finally:
                self._store.unpin(found)

    def read_many(self, slots: Iterable[SupportsIndex]) -> list[bytes]:
        """What was written to slots, which are read with as few calls as may be.

        Arguments:
            slots: each as for `read`.

        Returns: the bytes of each, in order.

        Raises: what `read` does, for the first that it holds for.

        Takes a system call for 1,024 slots that lie together, and for each a checksum and a copy.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         slots = swap.write_many([b"one", b"two"])
        ...         swap.read_many(reversed(slots))
        [b'two', b'one']
        """
        wanted = list(map(_slot, slots))
        with self._gate:
            found = self._store.pinned(wanted)
            try:
                buffers = [bytearray(it.length) for it in found]
                self._store.read(found, [memoryview(buffer) for buffer in buffers])
            finally:
                self._store.unpin(found)
        return [bytes(buffer) for buffer in buffers]

    def read_into(self, slot: SupportsIndex, buffer: Any) -> int:
        """Reads what was written to a slot into memory of the caller's.

        Arguments:
            slot: as for `read`.
            buffer: anything writable with the buffer protocol, contiguous, and long enough. What is
                behind the data stays as it was.

        Returns: how many bytes it was.

        Raises:
            ValueError, TypeError: also if `buffer` is not as above.
            NotAllocated: as for `read`; the buffer stays as it was.
            Poisoned, OSError: as for `read`; the buffer has zeros then where data would be.

        Takes a system call and a checksum.

        >>> import tempfile, potad
        >>> buffer = bytearray(4)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.read_into(swap.write(b"data"), buffer)
        4
        >>> buffer
        bytearray(b'data')
        """
        return self.read_many_into([slot], [buffer])[0]

    def read_many_into(self, slots: Iterable[SupportsIndex], buffers: Iterable[Any]) -> list[int]:
        """Reads what was written to slots into memory of the caller's.

        Arguments:
            slots: each as for `read`.
            buffers: as many, each as for `read_into`; they may not overlap.

        Returns: how many bytes it was of each.

        Raises: what `read_into` does, for the first slot that it holds for; where that leaves zeros
            all buffers have them.

        Takes as long as `read_many`, without the copies.

        >>> import tempfile, potad
        >>> buffers = bytearray(3), bytearray(3)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.read_many_into(swap.write_many([b"one", b"two"]), buffers)
        [3, 3]
        """
        wanted, views = list(map(_slot, slots)), [writable("buffer", it) for it in buffers]
        if len(wanted) != len(views):
            raise ValueError(f"buffers must be {len(wanted)}, one a slot, not {len(views)}")
        with self._gate:
            found = self._store.pinned(wanted)
            try:
                for it, view in zip(found, views, strict=True):
                    if view.nbytes < it.length:
                        raise ValueError(
                            f"buffer must have room for {it.length} bytes, not {view.nbytes}"
                        )
                self._store.read(
                    found, [view[: it.length] for it, view in zip(found, views, strict=True)]
                )
            finally:
                self._store.unpin(found)
        return [it.length for it in found]

    def length(self, slot: SupportsIndex) -> int:
        """How many bytes were written to a slot.

        Arguments:
            slot: as for `read`.

        Returns: bytes.

        Raises: NotAllocated, ValueError, TypeError, OverflowError, as `read` does.

        Takes as long as a look-up.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.length(swap.write(b"data"))
        4
        """
        start = _slot(slot)
        with self._gate:
            return Slot(self._store.slot(start)).length

    # Freeing.

    def free(self, slot: SupportsIndex) -> None:
        """Frees a slot. What it took of the disk goes back some time later, with that of others:
        what interrupts that leaves it freed.

        Arguments:
            slot: as for `read`.

        Raises:
            NotAllocated: there is no such slot.
            Busy: it is being read, or pinned otherwise.
            OSError: the table cannot be written; the slot is still there.
            ValueError, TypeError, OverflowError: `slot` is no number, or the file is closed.

        Takes a system call (none without `keep`), and one more now and then.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         slot = swap.write(b"data")
        ...         swap.free(slot)
        ...         swap.space.used
        0
        """
        self.free_many([slot])

    def free_many(self, slots: Iterable[SupportsIndex]) -> None:
        """Frees slots: all, or none.

        Arguments:
            slots: each as for `free`, and none twice.

        Raises: what `free` does.

        Takes a system call for those that lie together, and one now and then.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.free_many(swap.write_many([b"one", b"two"]))
        ...         len(swap)
        0
        """
        wanted = list(map(_slot, slots))
        with self._gate:
            self._store.free(wanted)

    def clear(self) -> None:
        """Frees all slots, such as those that a process left which is no more.

        Raises:
            Busy, OSError: as for `free`; no slot is freed then.
            ValueError: the file is closed.

        Takes as long as `free_many` of all of them.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         slot = swap.write(b"data")
        ...         swap.clear()
        ...         len(swap)
        0
        """
        with self._gate.alone:
            self._store.free(list(self))

    def trim(self) -> None:
        """Gives back to the file system now what was freed; that happens by itself as well.

        Raises:
            OSError: the system refuses; it will be tried again.
            ValueError: the file is closed.

        Takes a system call for each free range that was in use.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.free(swap.write(bytes(100_000)))
        ...         swap.trim()
        """
        with self._gate:
            self._store.give_back()

    # The file as a whole.

    def grow(self, size: SupportsIndex) -> None:
        """Makes the file larger.

        Arguments:
            size: bytes that it is to have, a multiple of the granule, no less than it has.

        Raises:
            OSError: the system refuses, such as EFBIG; nothing is changed.
            ValueError, TypeError, OverflowError: `size` is not as above, or the file is closed.
            MemoryError: there is no memory for metadata.

        Takes a few system calls.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         swap.grow(1 << 30)
        ...         swap.space.largest_free
        1073741824
        """
        wanted = whole("size", size)
        with self._gate.alone:
            before = self.size
            if wanted < before or wanted % self._store.granule:
                raise ValueError(
                    f"size must be a multiple of {self.granule} from {before} on, not {wanted}"
                )
            if wanted > before:
                self._store.space.add(before, wanted - before)
                try:
                    self._store.resize(before, wanted)
                except BaseException:
                    self._store.space.remove(before, wanted - before)
                    raise

    def shrink(self, size: SupportsIndex) -> dict[int, int]:
        """Makes the file smaller, moving slots out of its tail: all of them, or none.

        Owners of slots that define `on_relocate` are asked once the bytes are copied, with a
        `Move`; what they agree to is done. If one refuses, or fails, those asked before are asked
        to move back. They may use `space` meanwhile, but not the file.

        Arguments:
            size: bytes that it is to have, a multiple of the granule, above 0, no more than it has.

        Returns: the new number of each slot that was moved.

        Raises:
            OutOfSpace: there is no room for the slots of the tail, or one of them cannot be moved;
                `in_the_way` says which.
            Poisoned, OSError: a slot that was to be moved cannot be read, or not be written;
                nothing is changed.
            PotadError: an owner that is asked uses the file itself.
            ValueError, TypeError, OverflowError: `size` is not as above, or the file is closed.

        Takes as long as to read and write what is moved, while nothing else reads or writes. What
        interrupts it at the very end, where the file itself is cut, leaves it done.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         first, second = swap.write_many([bytes(4096), b"data"])
        ...         swap.free(first)
        ...         moved = swap.shrink(4096)
        ...         moved, swap.read(moved[second])
        ({4096: 0}, b'data')
        """
        wanted = whole("size", size)
        with self._gate.alone:
            if not 0 < wanted <= self.size or wanted % self._store.granule:
                raise ValueError(
                    f"size must be a multiple of {self.granule} above 0 and up to {self.size},"
                    f" not {wanted}"
                )
            return shrink(self._store, wanted)

    def sync(self) -> None:
        """Waits until all that was written is on the disk, so that it outlives the machine's end as
        well.

        Raises:
            OSError: it does not get there. What was written before is not to be relied on then,
                once the machine has ended; it is read as before until then.
            ValueError: the file is closed.

        Takes as long as the disk.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with potad.SwapFile(directory + "/swap", 1 << 20) as swap:
        ...         slot = swap.write(b"data")
        ...         swap.sync()
        """
        with self._gate:
            self._store.sync()

    def close(self) -> None:
        """Closes the file, once calls that are under way have returned. To close it again does
        nothing. Without `keep` its contents are gone then.

        In a process that was forked it does nothing: the parent has the file.

        Raises: PotadError, if an owner that `shrink` asks does it, or a finaliser within a call.

        Takes a few system calls.

        >>> import tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     swap = potad.SwapFile(directory + "/swap", 1 << 20)
        ...     swap.close()
        ...     swap.closed
        True
        """
        if self.closed or not self._gate.is_ours:
            return
        try:
            self._gate.enter_alone()
        except ValueError:
            return  # somebody else has closed it
        try:
            self._gate.closed = True
            _OPEN.discard(self)
            self._store.close()
        finally:
            self._gate.leave_alone()

    def unlink(self) -> None:
        """Closes the file and removes it, with its table. Without `keep` it has no name to remove.

        Raises:
            OSError: the system refuses; the file is still open then.
            ValueError: the file is closed, so that somebody else may have it now.

        Takes a few system calls.

        >>> import pathlib, tempfile, potad
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     potad.SwapFile(directory + "/swap", 1 << 20).unlink()
        ...     list(pathlib.Path(directory).iterdir())
        []
        """
        with self._gate.alone:
            # While it is locked, so that nobody has opened what is removed.
            self._store.remove()
            self._gate.closed = True
            _OPEN.discard(self)
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # As files do that nobody closed.
        if hasattr(self, "_gate") and not self._gate.closed and self._gate.is_ours:
            self._gate.closed = True
            _OPEN.discard(self)
            self._store.close()


def _path(value: Any) -> str:
    try:
        name = os.fsdecode(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"path must be a path, not {value!r} of type {kind}") from None
    if not name or "\0" in name:
        raise ValueError(f"path must be that of a file, not {name!r}")
    return os.path.abspath(name)


def _slot(value: Any) -> int:
    return whole("slot", value)


def _leave_to_parent() -> None:
    """In a process that was just forked: files stay open, and locked, for the parent only."""
    for swap in list(_OPEN):
        swap._gate.leave_to_parent()
        with contextlib.suppress(OSError):
            swap._store.leave()


os.register_at_fork(after_in_child=_leave_to_parent)
