"""What an owner is told about one of its allocations, whatever it is told for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from potad import Descriptor, Kind


class Told:
    """An allocation as its owner is told of it; `descriptor` has all that is known about it."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        """The allocation's size in address units."""
        return self.descriptor.size

    @property
    def kind(self) -> Kind | None:
        """The allocation's kind."""
        return self.descriptor.kind

    @property
    def owner(self) -> Any:
        """The allocation's owner."""
        return self.descriptor.owner

    @property
    def record(self) -> npt.NDArray[np.void] | None:
        """The allocation's record, in place: the same wherever it is moved."""
        return self.descriptor.record
