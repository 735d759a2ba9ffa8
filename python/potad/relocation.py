"""Moving allocations: what their owners are asked, and what is told about moves.

The compiled core chooses what is to be moved where, asks the owners without the space being locked,
and makes these objects.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from potad.errors import OutOfSpace, PotadError, Reason
from potad.told import Told
from potad.usage import short

if TYPE_CHECKING:
    from potad import Descriptor, Kind

Why = Literal["unmovable", "pinned", "moving", "refused"]

# Kinds and owners that an error's message names; its attribute has all.
_OBSTACLES_SHOWN = 3


class Move(Told):
    """An allocation and where it is to go, as its owner is asked: or where it went.

    `old` and `new` are its first address before and after; `size`, `kind`, `owner` and `record` are
    the allocation's, and `descriptor` has them all.
    """

    def __init__(self, old: int, new: int, descriptor: Descriptor) -> None:
        super().__init__(descriptor)
        self.old = old
        self.new = new

    def __repr__(self) -> str:
        return f"<potad.Move of {self.size} from {self.old:#x} to {self.new:#x}>"


@dataclass(frozen=True)
class Obstacle:
    """What is in the way of a run that cannot be had, even by moving: of one kind and one owner.

    `why` is "unmovable" for what has no movable kind, "pinned" for what has one and is pinned,
    "moving" for what another call moves at the moment or holds for that, and "refused" for
    allocations whose owners did not agree; `allocations` is how many they are and `size` what they
    come to, in address units.
    """

    kind: Kind | None
    owner: Any
    why: Why
    allocations: int
    size: int

    def __str__(self) -> str:
        kind = f" of kind {self.kind.name!r}" if self.kind else ""
        owner = "" if self.owner is None else f" of {short(self.owner)}"
        return f"{self.size} {self.why}{kind}{owner}"


@dataclass(frozen=True)
class Plan:
    """What would be moved, and what for.

    `start` is where the run would be, None for a compaction; `blocks` how many free blocks there
    would be, 1 for a run; `moves` what would be moved.
    """

    start: int | None
    blocks: int
    moves: tuple[Move, ...]

    @property
    def size(self) -> int:
        """Address units that would be moved."""
        return sum(move.size for move in self.moves)


@dataclass(frozen=True)
class Compaction:
    """What a compaction came to.

    `blocks` is how many free blocks of the size there are of those that were asked for; `moves` old
    and new address and size of everything that was moved, in order.
    """

    blocks: int
    moves: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """Address units that were moved."""
        return sum(size for _, _, size in self.moves)


def compaction(blocks: int, moves: Iterable[tuple[int, int, int]]) -> Compaction:
    """What a compaction came to, of what the core tells."""
    return Compaction(blocks, tuple(moves))


def plan(start: int | None, blocks: int, moves: Iterable[tuple[Descriptor, int]]) -> Plan:
    """A plan, of what the core tells."""
    made = (Move(descriptor.start, new, descriptor) for descriptor, new in moves)
    return Plan(start, blocks, tuple(made))


def no_room(
    message: str,
    requested: int,
    available: int,
    largest: int,
    reason: Reason,
    rows: Iterable[tuple[Kind | None, Any, Why, int, int]],
    refused: Iterable[tuple[Kind | None, Any, Why, int, int]],
) -> OutOfSpace:
    """The error for a run that cannot be had even by moving, with what is in the way."""
    sums: dict[tuple[int, int], Obstacle] = {}
    for kind, owner, why, count, size in refused:
        before = sums.get((id(kind), id(owner)), Obstacle(kind, owner, why, 0, 0))
        sums[id(kind), id(owner)] = Obstacle(
            kind, owner, why, before.allocations + count, before.size + size
        )
    in_the_way = [*(Obstacle(*row) for row in rows), *sums.values()]
    in_the_way.sort(key=lambda it: it.size, reverse=True)
    if in_the_way:
        more = len(in_the_way) - _OBSTACLES_SHOWN
        shown = list(map(str, in_the_way[:_OBSTACLES_SHOWN])) + [f"{more} more"] * (more > 0)
        message += "; in the way: " + ", ".join(shown)
    error = OutOfSpace(message, requested, available, largest, reason)
    error.in_the_way = tuple(in_the_way)
    return error


def reported(error: Exception) -> PotadError:
    """What is told of an owner that raised when it was asked, with its frames."""
    try:
        what = "".join(traceback.format_exception_only(error)).strip()
    except Exception:
        # An error can be such that it cannot be shown.
        what = type(error).__name__
    message = f"the owner of an allocation that was to be moved failed: {what}"
    # The default hook does not show causes.
    told = PotadError(message).with_traceback(error.__traceback__)
    told.__cause__ = error
    return told
