"""A snapshot of a running pool, arena or space as a screen of text.

A dash stands where there is no rate. Texts come from another process, so what a terminal would
obey is spelled out, and they are never markup. Nothing is told by colour alone. Where there
is not the width for two things side by side, one is below the other.

Sizes of pools and arenas are bytes. Those of a space are whatever it is a space of, so they have
the binary prefix without the B.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from potad.monitor import Snapshot, SpaceFigures
from potad.monitor.view import SPACE
from potad.pool.stats import Latency, PoolStats, PoolUsage
from potad.printable import printable
from potad.report import humanise
from potad.report.rates import Rates

_NONE = "-"

# From here on there is room for two things side by side, and from there for more columns.
_BESIDE_MIN = 76
_WIDE = 110

_BAR_WIDTH = 12

_OLD_ROWS_S = 1.0

# What the clocks of processes may say is beyond what can be told as a time of day.
_TIME_MAX_S = 1 << 40

Size = Callable[[float], str]


def render(
    now: Snapshot, before: Snapshot | None = None, *, rows_max: int | None = None, note: str = ""
) -> RenderableType:
    """A snapshot, with rates since the one before.

    `rows_max` is how many rows by kind and owner there is room for, and `note` something that is to
    be said beside it.
    """
    rates = Rates(now, before)
    if now.pool is not None:
        body = _pool(now.pool, rates, _Rest(now, rows_max, len(now.pool.rows)))
    elif now.space is not None:
        body = _space(now.space, rates, _Rest(now, rows_max, len(now.space.rows)))
    else:
        body = [Text(f"It could not say: {printable(now.error or '')}", style="bold")]
    return Group(_header(now, note), Text(), *body)


def render_list(entries: Sequence[tuple[int | None, str, Snapshot | str]]) -> RenderableType:
    """What there is to look at: processes, sockets, and what they show or why they do not."""
    table = _table("pid", "what", "name", "program", "in use", left=5)
    # Whoever wants to look has to have all of it.
    table.add_column("socket", no_wrap=True, overflow="fold")
    for pid, path, shown in entries:
        if isinstance(shown, str):
            cells = [_NONE if pid is None else str(pid), _NONE, _NONE, _NONE, shown]
        else:
            cells = [str(shown.pid), shown.kind, _name(shown), _program(shown), _in_use(shown)]
        table.add_row(*map(_cell, cells), Text(printable(path)))
    return table


@dataclass(frozen=True)
class _Rest:
    """How many rows are shown, and what is to be said of the others."""

    snapshot: Snapshot
    rows_max: int | None
    rows: int

    @property
    def shown(self) -> int:
        return self.rows if self.rows_max is None else max(0, min(self.rows, self.rows_max))

    def remark(self) -> Iterator[RenderableType]:
        left_out = self.rows - self.shown + self.snapshot.rows_left_out
        said = [f"{humanise.count(left_out)} smaller not shown"] * (left_out > 0)
        if self.snapshot.rows_age_s > _OLD_ROWS_S:
            # A large space is not added up each time.
            said.append(f"added up {humanise.duration(round(self.snapshot.rows_age_s, 1))} before")
        if said:
            yield Text(", ".join(said), style="dim")


class _Beside:
    """Two things side by side where there is room, else one below the other."""

    def __init__(self, left: RenderableType, right: RenderableType) -> None:
        self._left, self._right = left, right

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        if options.max_width < _BESIDE_MIN:
            yield self._left
            yield Text()
            yield self._right
            return
        grid = Table.grid(expand=True, padding=(0, 2, 0, 0), pad_edge=False)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(self._left, self._right)
        yield grid


class _ByWidth:
    """What depends on whether there is much room."""

    def __init__(self, narrow: RenderableType, wide: RenderableType) -> None:
        self._narrow, self._wide = narrow, wide

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        yield self._wide if options.max_width >= _WIDE else self._narrow


def _header(now: Snapshot, note: str) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    left = Text(no_wrap=True, overflow="ellipsis")
    left.append(f"{now.kind} ", style="bold")
    if now.name is not None:
        left.append(f"{printable(now.name)} ", style="bold cyan")
    left.append(f"of process {now.pid}, {_program(now)}", style="dim")
    right = Text(f" {printable(note)} ", style="reverse") if note else Text()
    clock = time.strftime("%H:%M:%S", time.localtime(min(now.time, _TIME_MAX_S)))
    right.append(f" {clock}" if note else clock, style="not reverse")
    grid.add_row(left, right)
    return grid


def _pool(pool: PoolStats, rates: Rates, rest: _Rest) -> list[RenderableType]:
    gauges = _gauges()
    for label, part, whole in (
        ("memory", pool.resident_bytes, pool.memory_bytes),
        ("  pinned", pool.pinned_bytes, pool.memory_bytes),
        ("  dirty", pool.dirty_bytes, pool.memory_bytes),
        ("swap", pool.swap_used_bytes, pool.swap_bytes),
    ):
        _gauge(gauges, label, part, whole, humanise.size)
    wide, narrow = (_pool_rows(pool.rows[: rest.shown], rates, wide=wide) for wide in (True, False))
    return [
        gauges,
        Text(),
        _Beside(_counts(pool, rates), Group(_traffic(pool, rates), Text(), _latencies(pool))),
        Text(),
        _ByWidth(narrow, wide),
        *rest.remark(),
    ]


def _counts(pool: PoolStats, rates: Rates) -> Table:
    table = _table("", "a second", "in all", left=1)
    recent = rates.hit_ratio()
    ratio = _NONE if recent is None else humanise.share(recent)
    table.add_row("hit ratio", Text(ratio, style="bold"), humanise.share(pool.hit_ratio))
    for label, name in (
        ("hits", "hits"),
        ("faults", "faults"),
        ("evictions", "evictions"),
        ("… without writing", "evictions_clean"),
        ("written ahead", "written_ahead"),
        ("read ahead", "read_ahead"),
        ("… and pinned", "read_ahead_hits"),
    ):
        table.add_row(label, _rate(rates.pool(name)), humanise.count(getattr(pool, name)))
    table.add_row("objects", "", humanise.count(pool.objects))
    return table


def _traffic(pool: PoolStats, rates: Rates) -> Table:
    table = _table("", "a second", "in all", left=1)
    for label, name in (
        ("read", "bytes_in"),
        ("written", "bytes_out"),
        ("moved in memory", "moved_bytes"),
    ):
        rate = _rate(rates.pool(name), humanise.size)
        table.add_row(label, rate, humanise.size(getattr(pool, name)))
    for label, name in (("objects lost", "lost"), ("I/O errors", "io_errors")):
        number = getattr(pool, name)
        in_all = Text(humanise.count(number), style="bold red" if number else "")
        table.add_row(label, _rate(rates.pool(name)), in_all)
    return table


def _latencies(pool: PoolStats) -> Table:
    table = _table("", "mean", "p50", "p99", "max", left=1)
    for label, of in (
        ("fault", pool.fault_latency),
        ("read", pool.read_latency),
        ("write", pool.write_latency),
    ):
        table.add_row(label, *_times(of))
    return table


def _times(of: Latency) -> Iterator[str]:
    for ns in (of.mean_ns, of.p50_ns, of.p99_ns, of.max_ns):
        yield humanise.duration(ns / 1e9) if of.count else _NONE


def _pool_rows(rows: Sequence[PoolUsage], rates: Rates, *, wide: bool) -> Table:
    more = ("evictions", "read", "written") if wide else ()
    titles = ("kind", "owner", "objects", "size", "resident", "pins", "hit ratio", "faults/s")
    table = _table(*titles, *more, left=2)
    for row in rows:
        asked = row.hits + row.faults
        cells = [
            humanise.count(row.objects),
            humanise.size(row.bytes),
            humanise.size(row.resident_bytes),
            humanise.count(row.pins),
            humanise.share(row.hits / asked) if asked else _NONE,
            _rate(rates.row(row, "faults")),
        ]
        if wide:
            cells.append(humanise.count(row.evictions))
            cells += [humanise.size(row.bytes_in), humanise.size(row.bytes_out)]
        table.add_row(_cell(row.kind), _cell(row.owner), *cells)
    return table


def _space(space: SpaceFigures, rates: Rates, rest: _Rest) -> list[RenderableType]:
    size = _size_of(rest.snapshot.kind)
    gauges = _gauges()
    _gauge(gauges, "used", space.used, space.size, size)
    if space.retired:
        _gauge(gauges, "retired", space.retired, space.size, size)
    _gauge(gauges, "largest free", space.largest_free, space.available, size)
    facts = Table.grid(padding=(0, 2, 0, 0))
    for label, value in (
        ("allocations", humanise.count(space.allocations)),
        ("change of use", _change(rates.used(), size)),
        ("granule", size(space.granule)),
        ("base", f"{space.base:#x}"),
        ("metadata", humanise.size(space.metadata_bytes)),
    ):
        facts.add_row(Text(label, style="dim"), value)
    unusable = Table.grid(padding=(0, 2, 0, 0))
    for asked, index in space.unusable.items():
        text = Text(f"unusable for {size(asked)}", style="dim")
        unusable.add_row(text, _bar(index), humanise.share(index))
    blocks = sorted(space.free_blocks.items())
    free = sum(block * count for block, count in blocks)
    half = -(-len(blocks) // 2)
    whole, lower, upper = (
        _free_blocks(part, free, size) for part in (blocks, blocks[:half], blocks[half:])
    )
    rows = Group(_space_rows(space, rest, size), *rest.remark())
    return [
        gauges,
        Text(),
        _Beside(facts, unusable),
        Text(),
        _ByWidth(Group(_Beside(lower, upper), Text(), rows), _Beside(whole, rows)),
    ]


def _free_blocks(blocks: Sequence[tuple[int, int]], free: int, size: Size) -> Table:
    """Free blocks of each size, with a bar for how much of the free space is in them."""
    table = _plain_table()
    table.add_column("free blocks", justify="right", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("share")
    table.add_column("", justify="right", no_wrap=True)
    for block, count in blocks:
        share = min(block * count / free, 1) if free else 0.0
        table.add_row(size(block), humanise.count(count), _bar(share), humanise.share(share))
    return table


def _space_rows(space: SpaceFigures, rest: _Rest, size: Size) -> Table:
    table = _table("kind", "owner", "allocations", "size", "share", left=2)
    for row in space.rows[: rest.shown]:
        # Figures are of moments that differ a little.
        share = humanise.share(min(row.size / space.used, 1)) if space.used else _NONE
        number = humanise.count(row.allocations)
        table.add_row(_cell(row.kind), _cell(row.owner), number, size(row.size), share)
    return table


def _gauges() -> Table:
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    return grid


def _gauge(grid: Table, label: str, part: int, whole: int, size: Size) -> None:
    share = part / whole if whole else 0.0
    grid.add_row(
        Text(label),
        _bar(share, None),
        f"{size(part)} of {size(whole)}",
        humanise.share(min(share, 1)),
    )


def _bar(share: float, width: int | None = _BAR_WIDTH) -> ProgressBar:
    """A bar; without colours the rest of it is empty."""
    return ProgressBar(1, min(share, 1), width, complete_style="cyan", finished_style="cyan")


def _table(*titles: str, left: int) -> Table:
    """A table whose first `left` columns are texts, cut where there is no room, others numbers."""
    table = _plain_table()
    for at, title in enumerate(titles):
        # To be cut, a column must be one that could be wrapped: its cells are not.
        text = at < left
        table.add_column(title, justify="left" if text else "right", no_wrap=not text)
    return table


def _plain_table() -> Table:
    """A table that takes no line and no column for anything but what is in it."""
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")


def _cell(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def _name(shown: Snapshot) -> str:
    return _NONE if shown.name is None else shown.name


def _program(shown: Snapshot) -> str:
    """How its process was started, without where that is."""
    return printable(os.path.basename(shown.program))


def _in_use(shown: Snapshot) -> str:
    if shown.pool is not None:
        part, whole = shown.pool.resident_bytes, shown.pool.memory_bytes
    elif shown.space is not None:
        part, whole = shown.space.used, shown.space.size
    else:
        return "could not say"
    size = _size_of(shown.kind)
    return f"{size(part)} of {size(whole)}"


def _size_of(kind: str) -> Size:
    """How sizes of it are written."""
    if kind != SPACE:
        return humanise.size
    return lambda size: humanise.size(size).removesuffix("B").removesuffix(" ")


def _rate(value: float | None, size: Size = humanise.significant) -> str:
    return _NONE if value is None else size(value)


def _change(value: float | None, size: Size) -> str:
    return _NONE if value is None else f"{'+' if value > 0 else ''}{size(value)} a second"
