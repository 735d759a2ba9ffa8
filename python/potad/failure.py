"""What becomes of an allocation whose memory fails: the question to its owner, and the answer.

`Space.memory_failure` retires the granule and then comes here, without the space being locked.
"""

from __future__ import annotations

import enum
import traceback
from typing import TYPE_CHECKING

from potad.errors import PotadError
from potad.told import Told

if TYPE_CHECKING:
    from potad import Descriptor


class Outcome(enum.IntEnum):
    """What became of memory that failed. The names and numbers are those of the Linux kernel."""

    IGNORED = 0
    """Nothing was done about it."""
    FAILED = 1
    """What it held is lost."""
    DELAYED = 2
    """It will be dealt with later."""
    RECOVERED = 3
    """Nothing is lost."""


class Failure(Told):
    """What an owner is told when memory of its allocation has failed.

    `address` is the address that failed; `start`, `size`, `kind` and `record` are those of the
    allocation that it lies in, `owner` is who is told, and `descriptor` has them all.
    """

    def __init__(self, address: int, descriptor: Descriptor) -> None:
        super().__init__(descriptor)
        self.address = address

    @property
    def start(self) -> int:
        """The allocation's first address."""
        return self.descriptor.start

    def __repr__(self) -> str:
        return f"<potad.Failure at {self.address:#x} in {self.descriptor!r}>"


def tell_owner(address: int, descriptor: Descriptor | None) -> Outcome:
    """Tells the owner of an allocation that memory in it has failed; what it answers.

    Raises `PotadError` where the owner does, which `Space.memory_failure` reports to
    `sys.unraisablehook` and takes for FAILED.
    """
    if descriptor is None:
        return Outcome.RECOVERED
    try:
        handler = getattr(descriptor.owner, "on_memory_failure", None)
        if handler is None:
            return Outcome.FAILED
        answer = handler(Failure(address, descriptor))
        if answer is None:
            return Outcome.FAILED
        if isinstance(answer, Outcome):
            return answer
        raise TypeError(f"on_memory_failure must return an Outcome or None, not {answer!r}")
    except Exception as error:
        where = f"{descriptor.size} at {descriptor.start:#x}"
        what = "".join(traceback.format_exception_only(error)).strip()
        message = f"the owner of the allocation of {where} failed on a memory failure: {what}"
        # With the owner's frames: the default hook does not show causes.
        raise PotadError(message).with_traceback(error.__traceback__) from error
