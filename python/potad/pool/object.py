"""An object of a pool: where its bytes are, and who uses them.

An object is *resident* if it has a buffer in the arena. It has a *copy* if its bytes, or earlier
ones, are in the swap file; it is *clean* if the copy is as good as the buffer, which lets the
buffer go without a write. Of an object that is not resident the copy is all there is. One that is
*lost* has neither.

Everything here is guarded by the pool's lock.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from potad._core import Buffer, Kind
from potad.errors import NotAllocated
from potad.failure import Failure, Outcome
from potad.relocation import Move

if TYPE_CHECKING:
    from potad.pool.accounts import Group
    from potad.pool.core import Core
    from potad.pool.handle import Handle


class Copy:
    """An object's bytes in the swap file: in one slot, or in several where none is large enough."""

    __slots__ = ("checksum", "slots")

    def __init__(self) -> None:
        # Read and changed inside the swap file's gate only.
        self.slots: tuple[int, ...] = ()
        # Of all bytes; None where that is not known.
        self.checksum: int | None = None

    def on_relocate(self, move: Move) -> bool:
        """The swap file is cut: a slot has another number from now on."""
        self.slots = tuple(move.new if slot == move.old else slot for slot in self.slots)
        return True

    def __repr__(self) -> str:
        return f"<copy of a pool's object in {len(self.slots)} slots>"


class Object:
    """What a pool knows about an object; the owner of its buffer, and so told of failures."""

    __slots__ = (
        "__weakref__",
        "align",
        "arriving",
        "buffer",
        "clean",
        "copy",
        "core",
        "group",
        "handle",
        "is_ahead",
        "is_dead",
        "is_fresh",
        "is_moving",
        "is_spoiled",
        "kind",
        "lost",
        "nbytes",
        "pins",
        "record",
        "size",
        "uses",
        "version",
        "writers",
    )

    def __init__(
        self, core: Core, nbytes: int, size: int, align: int | None, kind: Kind, group: Group
    ) -> None:
        self.core = weakref.ref(core)
        self.nbytes = nbytes
        # What it takes of the arena: bytes rounded up to granules.
        self.size = size
        self.align = align
        self.kind = kind
        self.group = group
        self.handle: weakref.ref[Handle] | None = None

        self.buffer: Buffer | None = None
        self.copy: Copy | None = None
        # Then there is a copy, and nobody may be writing to the buffer: neither through a pin, nor
        # through what outlived one. An object that is being written is not clean, and whoever
        # writes it has the copy.
        self.clean = False
        # What the descriptor's record was, while there is no descriptor.
        self.record: bytes | None = None
        # Why there is nothing any more.
        self.lost: str | None = None
        # It was freed; whoever is moving it takes it away.
        self.is_dead = False

        # Of its buffer: pins, and those of them that may write.
        self.pins = 0
        self.writers = 0
        # Changes whenever somebody may have begun to write.
        self.version = 0

        # Uses that the policy counts.
        self.uses = 0
        # It was made and not pinned yet, so its first pin is part of making it.
        self.is_fresh = True
        # It was read because of a hint, and not pinned since.
        self.is_ahead = False
        # It is being written to the swap file, so it is no victim.
        self.is_moving = False
        # It is being read from the swap file; set once that has ended, however it did.
        self.arriving: threading.Event | None = None
        # The memory that it is being read into has failed.
        self.is_spoiled = False

    def owned(self) -> Handle | None:
        """Its handle, if anybody has it."""
        return None if self.handle is None else self.handle()

    @property
    def owner(self) -> Any:
        """Whose it is, as long as there is a handle."""
        handle = self.owned()
        return None if handle is None else handle.owner

    def lingers(self) -> int:
        """How many views there are whose pins are over, and pins of the buffer's address.

        The buffer counts all of them, and the view of each pin, unless its user has released it,
        and the one through which the object is written.
        """
        if self.buffer is None:
            return 0
        try:
            return max(self.buffer.pins - self.pins - self.is_moving, 0)
        except NotAllocated:
            return 0

    def on_memory_failure(self, failure: Failure) -> Outcome | None:
        """Memory of the buffer has failed."""
        core = self.core()
        return None if core is None else core.on_failure(self, failure)

    def __repr__(self) -> str:
        return f"<object of {self.nbytes} bytes of {self.owner!r}>"


class Held:
    """A pin: what was pinned, where it was then, and the view that was given."""

    __slots__ = ("buffer", "it", "view", "write")

    def __init__(self, it: Object, buffer: Buffer, view: memoryview, write: bool) -> None:
        self.it = it
        self.buffer = buffer
        self.view = view
        self.write = write
