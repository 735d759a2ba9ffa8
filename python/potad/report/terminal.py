"""The report as a table for a terminal, the allocators side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.align import Align
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from potad.printable import printable
from potad.report.table import Cell, Section, headline, remarks, runs_section, sections
from potad.trace.result import Report

_RATIO_WIDTH = len("0.0013×")


def render(report: Report) -> RenderableType:
    """One trace's table, with what it is above and what to know about it below.

    Names and messages come from files and are shown as plain text, never as markup.
    """
    groups = sections(report)
    table = _table(groups, [result["title"] for result in report["allocators"]])
    tables = [Padding(table, (1, 0, 1, 0))]
    runs = runs_section(report)
    if runs is not None:
        table = _table([runs], [result["title"] for result in report["relocation"]])
        tables.append(Padding(table, (0, 0, 1, 0)))
    below = [Text(f"  {remark}", style="dim") for remark in remarks(report)]
    if any(cell.ratio for group in groups for row in group.rows for cell in row.cells):
        below.append(Text("  × is the ratio to the Linux buddy.", style="dim"))
    return Group(
        Text(printable(report["trace"]["name"]), style="bold"),
        Text(headline(report), style="dim"),
        *tables,
        *below,
    )


def _table(groups: Sequence[Section], titles: Sequence[str]) -> Table:
    """Rows under their headings, a column for each title."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    compared = [
        any(row.cells[column].ratio for group in groups for row in group.rows)
        for column in range(len(titles))
    ]
    for title in titles:
        table.add_column(Text(title, style="bold"), justify="right")
    for group in groups:
        table.add_row(Text(group.heading, style="bold cyan"))
        for row in group.rows:
            cells = (_cell(cell, ratio) for cell, ratio in zip(row.cells, compared, strict=True))
            table.add_row(Text(f"  {row.label}"), *cells)
        table.add_section()
    return table


def _cell(cell: Cell, compared: bool) -> RenderableType:
    """The figure; in a column with ratios, room for one, so that the figures line up."""
    text = Text(cell.value)
    if compared:
        text.append(f" {cell.ratio:>{_RATIO_WIDTH}}", style="dim")
    # A column justified to the right would drop the room on the right of a cell.
    text.justify = "left"
    return Align.right(text)
