"""Moving the slots of a file's tail, so that the file can be cut.

New places are allocated for all of them first, largest first, their bytes are copied, and their
records are put into the table. Then owners are asked, old records are cleared, and the file is cut.
The old bytes are there until then, so all of it can be undone up to the cut. A process that ends in
between leaves copies more, but no slot less.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from potad._core import Descriptor
from potad.errors import OutOfSpace
from potad.relocation import Move, Why, no_room
from potad.swap.store import SLOT, Slot, Store


def shrink(store: Store, size: int) -> dict[int, int]:
    """Cuts a file, which nobody else uses meanwhile; the new place of each slot that was moved."""
    before = store.space.size
    if size == before:
        return {}
    tail = [it for it in store.space if it.start + it.size > size]
    for it in tail:
        if it.kind is not SLOT:
            raise _in_the_way(store, it, "unmovable")
        if it.pins:
            raise _in_the_way(store, it, "pinned")
    tail.sort(key=lambda it: it.size, reverse=True)
    slots = [Slot(it) for it in tail]
    store.settle()
    homes = _homes(store, tail, size)
    asked: list[Move] = []
    try:
        for it, new in zip(tail, homes, strict=True):
            store.copy(it.start, new)
        for it, new in zip(tail, homes, strict=True):
            move = Move(it.start, new, it)
            try:
                agrees = _agrees(move)
            except Exception as error:
                raise _in_the_way(store, it, "refused") from error
            if not agrees:
                raise _in_the_way(store, it, "refused")
            asked.append(move)
        store.release(tail)
        store.cut(before, size)
    except BaseException as error:
        # All of it, the last first, also where somebody interrupts one.
        with contextlib.ExitStack() as undo:
            for move in asked:
                undo.callback(_ask_back, move, error)
            undo.callback(store.drop, homes)
            undo.callback(store.reinstate, slots, [it.owner for it in tail])
        raise
    store.make_good(homes)
    store.cut_file(size)
    return {it.start: new for it, new in zip(tail, homes, strict=True)}


def _homes(store: Store, tail: Sequence[Descriptor], size: int) -> list[int]:
    """A place below `size` for each slot, or none for any."""
    homes: list[int] = []
    try:
        homes.extend(
            store.space.alloc_run(it.size, within=(0, size), kind=SLOT, owner=it.owner)
            for it in tail
        )
    except BaseException:
        store.space.free_many(homes)
        raise
    return homes


def _agrees(move: Move) -> bool:
    """Whether the owner of a slot agrees to a move; one that is never asked does."""
    ask = getattr(move.owner, "on_relocate", None)
    if ask is None:
        return True
    answer = ask(move)
    if not isinstance(answer, (bool, np.bool_)):
        raise TypeError(f"on_relocate must return True or False, not {answer!r}")
    return bool(answer)


def _ask_back(move: Move, error: BaseException) -> None:
    """Asks an owner to move back; its slot is where it was, whatever the answer."""
    try:
        _agrees(Move(move.new, move.old, move.descriptor))
    except Exception as failure:
        error.add_note(f"An owner that was to move back to {move.old:#x}: {failure!r}")


def _in_the_way(store: Store, it: Descriptor, why: Why) -> OutOfSpace:
    return no_room(
        f"the slot of {it.size} at {it.start:#x} of {store.path} cannot be moved",
        it.size,
        store.space.available,
        store.space.largest_free,
        "occupied",
        [(it.kind, it.owner, why, 1, it.size)],
        [],
    )
