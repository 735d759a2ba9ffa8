"""Moving allocations: the question to their owners, and what is told about moves.

`Space.alloc_run` with `relocate=True` and `Space.compact` come here when an allocation that is in
the way has an owner. The compiled core has chosen what is to be moved where, and keeps the room;
the space is not locked, so owners may do with it what they like, and other threads too. What that
changes shows when a move is made, and then the next best place is looked for.

Moves that were made are kept when another place has to be found: to take them back would move the
same bytes again, and what they brought may be of use. Only when a run cannot be had at all they are
taken back, the last one first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from potad._core import _report_unraisable
from potad.errors import OutOfSpace, PotadError, Reason
from potad.usage import short

if TYPE_CHECKING:
    import numpy.typing as npt

    from potad import Descriptor, Kind
    from potad._core import Relocation

# How often in a row others may come between before a call gives up.
_ROUNDS_MAX = 32

# Kinds and owners that an error's message names; its attribute has all.
_OBSTACLES_SHOWN = 3

_Accept = Callable[["Move"], bool]


class Move:
    """An allocation and where it is to go, as its owner is asked: or where it went.

    `old` and `new` are its first address before and after; `size`, `kind`, `owner` and `record` are
    the allocation's, and `descriptor` has them all.
    """

    def __init__(self, old: int, new: int, descriptor: Descriptor) -> None:
        self.old = old
        self.new = new
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
        """The allocation's record, in place: the same before and after."""
        return self.descriptor.record

    def __repr__(self) -> str:
        return f"<potad.Move of {self.size} from {self.old:#x} to {self.new:#x}>"


@dataclass(frozen=True)
class Obstacle:
    """What is in the way of a run that cannot be had, even by moving: of one kind and one owner.

    `why` is "unmovable" for what has no movable kind, "pinned" for what has one and is pinned, and
    "refused" for allocations whose owners did not agree; `allocations` is how many they are and
    `size` what they come to, in address units.
    """

    kind: Kind | None
    owner: Any
    why: Literal["unmovable", "pinned", "refused"]
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


class _Mover:
    """Makes the moves of one call, and knows what was made and what was refused."""

    def __init__(self) -> None:
        # Each move in the order they were made: old and new address, size, and what asks the owner.
        self.made: list[tuple[int, int, int, _Accept | None]] = []
        # Starts of allocations that are not asked for again in this call.
        self.refused: list[int] = []
        # Rounds since one was refused.
        self.rounds = 0

    def empty(self, relocation: Relocation) -> None:
        """Makes the moves, until one is refused: owners first, then what nobody is asked for."""
        self.rounds += 1
        moves = relocation.moves
        accepts: dict[int, _Accept | None] = {}
        asked = []
        for number, owner in relocation.owners():
            if id(owner) not in accepts:
                accepts[id(owner)] = _accept_of(owner)
            accept = accepts[id(owner)]
            if accept is None:
                continue
            asked.append(number)
            if not self._ask(relocation, number, moves[number], accept):
                self.refused.append(moves[number][0])
                self.rounds = 0
                return
        for number in relocation.make_rest(asked):
            self.made.append((*moves[number], None))

    @property
    def is_disturbed(self) -> bool:
        """Whether others came between again and again."""
        return self.rounds > _ROUNDS_MAX

    def _ask(
        self,
        relocation: Relocation,
        number: int,
        addresses: tuple[int, int, int],
        accept: _Accept,
    ) -> bool:
        """Asks an owner, and makes the move; false if it was refused."""
        old, new, _ = addresses
        descriptor = relocation.descriptor(number)
        if descriptor is None:
            # Freed, pinned or cut since: which of them shows when it is made.
            return relocation.make(number) == "gone"
        if not accept(Move(old, new, descriptor)):
            return False
        made = relocation.make(number)
        if made == "moved":
            self.made.append((*addresses, accept))
        elif made == "stays":
            # Pinned or cut after its owner had agreed, who has to know that it is where it was.
            accept(Move(new, old, descriptor))
        return made != "stays"

    def take_back(self, relocation: Relocation) -> None:
        """Moves everything back, the last first, as far as the owners agree and there is room."""
        for old, new, _, accept in reversed(self.made):
            back = relocation.begin_move(new, old)
            if back is None:
                continue
            descriptor = back.descriptor(0)
            agreed = descriptor is not None and (
                accept is None or accept(Move(new, old, descriptor))
            )
            if agreed and back.make(0) == "stays" and accept is not None and descriptor is not None:
                accept(Move(old, new, descriptor))
            back.give_up()


def go_on_with_run(relocation: Relocation, kind: Kind | None, owner: Any) -> int:
    """Makes the moves for a run, and finds others where some are refused: where the run starts."""
    mover = _Mover()
    try:
        while True:
            mover.empty(relocation)
            start = relocation.finish_run(kind, owner)
            if start is not None:
                return start
            if mover.is_disturbed:
                raise relocation.no_room(mover.refused)
            begun = relocation.run_again(mover.refused, kind, owner)
            if isinstance(begun, int):
                return begun
            relocation = begun
    except BaseException:
        relocation.give_up()
        mover.take_back(relocation)
        raise


def go_on_with_blocks(relocation: Relocation, budget: int) -> Compaction:
    """Makes the moves of a compaction, and finds others where some are refused."""
    mover = _Mover()
    try:
        while True:
            before = len(mover.made)
            mover.empty(relocation)
            wanted, blocks = relocation.blocks, relocation.finish_compaction()
            budget -= sum(size for _, _, size, _ in mover.made[before:])
            if blocks >= wanted or mover.is_disturbed:
                return compaction(blocks, (move[:3] for move in mover.made))
            begun = relocation.blocks_again(budget, mover.refused)
            if isinstance(begun, tuple):
                blocks, moves = begun
                return compaction(blocks, [*(move[:3] for move in mover.made), *moves])
            relocation = begun
    finally:
        relocation.give_up()


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
    rows: Iterable[tuple[Kind | None, Any, bool, int, int]],
    refused: list[int],
) -> OutOfSpace:
    """The error for a run that cannot be had even by moving, with what is in the way."""

    def why(pinned: bool) -> Literal["pinned", "unmovable"]:
        return "pinned" if pinned else "unmovable"

    in_the_way = [
        Obstacle(kind, owner, why(pinned), count, size) for kind, owner, pinned, count, size in rows
    ]
    if refused:
        in_the_way.append(Obstacle(None, None, "refused", len(refused), sum(refused)))
    if in_the_way:
        more = len(in_the_way) - _OBSTACLES_SHOWN
        shown = list(map(str, in_the_way[:_OBSTACLES_SHOWN])) + [f"{more} more"] * (more > 0)
        message += "; in the way: " + ", ".join(shown)
    error = OutOfSpace(message, requested, available, largest, reason)
    error.in_the_way = tuple(in_the_way)
    return error


def _accept_of(owner: Any) -> _Accept | None:
    """What asks an owner; None if it is content with anything."""
    try:
        handler = getattr(owner, "on_relocate", None)
    except Exception as error:
        _report(owner, error)
        return lambda move: False
    if handler is None:
        return None

    def accept(move: Move) -> bool:
        try:
            answer = handler(move)
            if not isinstance(answer, bool | np.bool_):
                raise TypeError(f"on_relocate must return True or False, not {answer!r}")
            return bool(answer)
        except Exception as error:
            _report(owner, error)
            return False

    return accept


def _report(owner: Any, error: Exception) -> None:
    """Passes what an owner raised to `sys.unraisablehook`, as the cause of a `PotadError`."""
    what = "".join(traceback.format_exception_only(error)).strip()
    message = f"the owner of an allocation that was to be moved failed: {what}"
    # With the owner's frames: the default hook does not show causes.
    reported = PotadError(message).with_traceback(error.__traceback__)
    reported.__cause__ = error
    _report_unraisable(reported, owner)
