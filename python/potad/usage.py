"""What a space is used for: by kind and owner, and record by record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from potad.printable import printable

if TYPE_CHECKING:
    import numpy.typing as npt

    from potad import Kind


@dataclass(frozen=True)
class Usage:
    """What the allocations of one kind and one owner come to; `size` is in address units."""

    kind: Kind | None
    owner: Any
    allocations: int
    size: int


class Report:
    """How much of a space is in use, by kind and owner, largest first.

    A sequence of rows, each a `Usage`; as text, a table.
    """

    def __init__(self, rows: Iterable[tuple[Kind | None, Any, int, int]]) -> None:
        self.rows = tuple(Usage(*row) for row in rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Usage]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Usage:
        return self.rows[index]

    @property
    def allocations(self) -> int:
        """All live allocations."""
        return sum(row.allocations for row in self.rows)

    @property
    def size(self) -> int:
        """Address units in all of them."""
        return sum(row.size for row in self.rows)

    def __str__(self) -> str:
        total = self.size
        lines = [("kind", "owner", "allocations", "size", "share")]
        for row in self.rows:
            kind = printable(row.kind.name, OWNER_WIDTH_MAX) if row.kind else "-"
            owner = "-" if row.owner is None else short(row.owner)
            share = f"{row.size / total:.1%}"
            lines.append((kind, owner, f"{row.allocations:,}", f"{row.size:,}", share))
        share = f"{1:.1%}" if total else "-"
        lines.append(("total", "", f"{self.allocations:,}", f"{total:,}", share))
        return aligned(lines, 2)

    def __repr__(self) -> str:
        return f"<potad.Report of {self.allocations} allocations of {self.size}>"


def aligned(lines: Sequence[tuple[str, ...]], left: int) -> str:
    """A table of equally long lines: the first `left` columns to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


OWNER_WIDTH_MAX = 60


def short(owner: Any) -> str:
    """An owner as text that fits in a line, whatever its `__repr__` does."""
    try:
        text = repr(owner)
    except Exception as error:
        text = f"<{type(owner).__name__}, whose repr raised {type(error).__name__}>"
    return printable(" ".join(text.split()), OWNER_WIDTH_MAX)


def records(
    kind: Kind,
    starts: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    pins: npt.NDArray[np.uint32],
    owners: list[Any],
    content: bytes,
) -> npt.NDArray[np.void]:
    """One structured array of what is known about the allocations of a kind."""
    fields: list[tuple[str, Any]] = [
        ("start", np.uint64),
        ("size", np.uint64),
        ("pins", np.uint32),
        ("owner", object),
    ]
    if kind.record is not None:
        fields.append(("record", kind.record))
    array = np.empty(len(starts), dtype=fields)
    array["start"], array["size"], array["pins"] = starts, sizes, pins
    for at, owner in enumerate(owners):
        array["owner"][at] = owner
    if kind.record is not None and kind.record.itemsize:
        array["record"] = np.frombuffer(content, dtype=kind.record)
    return array
