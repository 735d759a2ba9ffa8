"""What can go wrong, and the numbers a person needs to see why.

Bad arguments are the built-in `ValueError`, `TypeError` and `OverflowError`, which name the
argument and its value. Everything else that a space refuses is one of these. Sizes and addresses
are in address units.

The compiled core raises them, so a changed signature has to change there as well. They can be
pickled, and so cross a process pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from potad.relocation import Obstacle

Reason = Literal["exhausted", "fragmented", "occupied"]
"""Why there was no room: less is available than was asked for; enough is, but not in one piece
that would do; or the range that was named is not free, or not in the space."""


class PotadError(Exception):
    """The base of all errors that are potad's own."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The message is all that `Exception` would hand to the constructor again.
        figures = {name: getattr(self, name) for name in self._figures}
        return type(self), (*self.args, *figures.values()), self.__dict__

    _figures: tuple[str, ...] = ()
    """Attributes that the constructor takes after the message, in its order."""


class OutOfSpace(PotadError, MemoryError):
    """No free block or run would do.

    `requested` is the size that was asked for, rounded up to granules; `available` what is free
    altogether; `largest` the largest free block; `reason` one of `"exhausted"` (less is available
    than was asked for), `"fragmented"` (enough is, but not in one piece that would do) and
    `"occupied"` (the range that was named is not free, or not in the space). `in_the_way` is empty,
    but for a run that was to be had by moving: then it says what cannot be moved, an `Obstacle` for
    each kind and owner, largest first. It is not pickled with the rest.

    >>> import potad
    >>> space = potad.Space(1 << 20)
    >>> try:
    ...     space.alloc(3 << 20)
    ... except potad.OutOfSpace as error:
    ...     print(error.requested, error.available, error.largest, error.reason)
    3145728 1048576 1048576 exhausted
    """

    _figures = ("requested", "available", "largest", "reason")

    def __init__(
        self, message: str, requested: int, available: int, largest: int, reason: Reason
    ) -> None:
        super().__init__(message)
        self.requested = requested
        self.available = available
        self.largest = largest
        self.reason: Reason = reason
        self.in_the_way: tuple[Obstacle, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # Owners can be anything, also what cannot be pickled.
        make, arguments, state = super().__reduce__()
        return make, arguments, {**state, "in_the_way": ()}


class NotAllocated(PotadError, LookupError):
    """The address is not the start of an allocation, or not in one.

    `address` is the address; where it lies inside an allocation, the message says in which.

    >>> import potad
    >>> space = potad.Space(1 << 20)
    >>> space.alloc_at(0, 16384)
    0
    >>> space.free(4096)
    Traceback (most recent call last):
        ...
    potad.errors.NotAllocated: address 0x1000 is not the start of an allocation, \
but inside the one of 16384 at 0x0
    """

    _figures = ("address",)

    def __init__(self, message: str, address: int) -> None:
        super().__init__(message)
        self.address = address


class Busy(PotadError):
    """The allocation is pinned, so it cannot be freed, moved or swapped out.

    `address` is its start, `pins` how many pins it has.
    """

    _figures = ("address", "pins")

    def __init__(self, message: str, address: int, pins: int) -> None:
        super().__init__(message)
        self.address = address
        self.pins = pins


class Poisoned(PotadError):
    """The memory behind the object failed and there was no good copy of it."""


class Corrupt(PotadError):
    """A recount disagrees with what the space keeps, or a call failed half-way through.

    Never the caller's doing. The message says what disagrees; the space is of no further use.
    """
