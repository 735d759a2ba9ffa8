"""The report as one self-contained HTML page.

It needs no network and no JavaScript, and says so in its content security policy, which
would stop either. Figures are inline SVG, address maps `data:` images, the style sheet is
`page.css` beside this file. Whatever comes from a file or its name is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from potad.printable import printable
from potad.report import charts, humanise
from potad.report.table import (
    Row,
    Section,
    headline,
    remarks,
    runs_heading,
    runs_section,
    sections,
)
from potad.trace.result import Report, Result

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(reports: Sequence[Report]) -> str:
    """All traces' reports as one page."""
    style = resources.files("potad.report").joinpath("page.css").read_text(encoding="utf-8")
    names = [_text(report["trace"]["name"]) for report in reports]
    contents = ""
    if len(reports) > 1:
        links = "".join(
            f'<li><a href="#trace-{number}">{name}</a></li>' for number, name in enumerate(names)
        )
        contents = f"<nav><ul>{links}</ul></nav>"
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>potad replay: {', '.join(names)}</title>"
        f"<style>\n{style}</style></head>\n<body><main>\n"
        "<h1>Page traffic replayed</h1>"
        f"{contents}\n{''.join(_trace(number, r) for number, r in enumerate(reports))}"
        "</main></body></html>\n"
    )


def _text(text: str) -> str:
    """A text as it stands in the page."""
    return escape(printable(text))


def _trace(number: int, report: Report) -> str:
    results = report["allocators"]
    prefix = f"t{number}"
    entries = [(result["allocator"], result["title"]) for result in results]
    legend = _legend(entries)
    figures = [
        _figure(
            "Live and free memory",
            "Filled, what the trace holds at each moment; dashed, the rest of the space."
            " Drawn once, in the colour of text, if it is the same for all; failures part them.",
            charts.memory(results, f"{prefix}-memory"),
            legend,
        ),
        _figure(
            "Largest free block",
            "The largest naturally aligned power of two that could have been handed out;"
            " the higher, the better. The scale is logarithmic.",
            charts.largest_free(results, f"{prefix}-largest"),
            legend,
        ),
        _figure(
            "Unusable free index",
            "The share of the free memory that lies in blocks too small for a request of this"
            " size; the lower, the better.",
            charts.unusable(results, f"{prefix}-unusable"),
            legend,
        ),
        _figure(
            runs_heading(results[0]["runs"]),
            "Coloured while such a run was to be found, block or not; grey while none was."
            f" {_runs_shares(results)}",
            charts.runs(results, f"{prefix}-runs"),
        ),
        _figure(
            "Free blocks by size",
            "After the last event, all free memory as the largest naturally aligned blocks it"
            " makes, counted alike for all: memory in the blocks to the right is of more use.",
            charts.free_blocks(results, f"{prefix}-blocks"),
            legend,
        ),
        _figure("Address map", _map_meaning(results[0]), _maps(results)),
    ]
    tables = _table(sections(report), entries)
    runs = runs_section(report)
    if runs is not None:
        asked = [(result["relocator"], result["title"]) for result in report["relocation"]]
        tables += _table([runs], asked)
        relocation = _figure(
            f"{runs.heading}, by moving",
            "Added up over time: the runs granted, the more the better, and what was moved for"
            " them, the less the better.",
            charts.relocation(report["relocation"], f"{prefix}-relocation"),
            _legend(asked),
        )
        figures.append(relocation)
    notes = "".join(f"<li>{_text(remark)}</li>" for remark in remarks(report))
    return (
        f'<section id="trace-{number}"><h2>{_text(report["trace"]["name"])}</h2>'
        f'<p class="headline">{_text(headline(report))}</p>'
        f"{tables}"
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}"
        f"{''.join(figures)}</section>\n"
    )


def _table(groups: Sequence[Section], entries: Sequence[tuple[str, str]]) -> str:
    """Rows under their headings, a column for each allocator's name and title."""
    heads = "".join(
        f'<th scope="col">{_swatch(name)}{_text(title)}</th>' for name, title in entries
    )
    bodies = []
    for group in groups:
        rows = "".join(_row(row) for row in group.rows)
        bodies.append(
            f'<tbody><tr><th class="group" colspan="{len(entries) + 1}" scope="rowgroup">'
            f"{_text(group.heading)}</th></tr>{rows}</tbody>"
        )
    compared = any(cell.ratio for group in groups for row in group.rows for cell in row.cells)
    return (
        f'<div class="table"><table><thead><tr><td></td>{heads}</tr></thead>'
        f"{''.join(bodies)}</table></div>"
        + ('<p class="footnote">× is the ratio to the Linux buddy.</p>' if compared else "")
    )


def _row(row: Row) -> str:
    cells = "".join(
        f'<td>{_text(cell.value)}<span class="ratio">{_text(cell.ratio)}</span></td>'
        for cell in row.cells
    )
    return (
        f'<tr><th scope="row">{_text(row.label)}'
        f'<span class="meaning">{_text(row.meaning)}</span></th>{cells}</tr>'
    )


def _swatch(allocator: str) -> str:
    return f'<span class="swatch series-{charts.place_of(allocator)}"></span>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li>{_swatch(name)}{_text(title)}</li>" for name, title in entries)
    return f'<ul class="legend">{items}</ul>'


def _figure(heading: str, meaning: str, body: str, legend: str = "") -> str:
    return (
        f"<figure><h3>{_text(heading)}</h3>"
        f"<figcaption>{_text(meaning)}</figcaption>{legend}{body}</figure>\n"
    )


def _runs_shares(results: Sequence[Result]) -> str:
    shares = (
        f"{r['title']} {humanise.share(r['runs']['possible'] / r['runs']['probes'])}"
        for r in results
        if r["runs"]["probes"]
    )
    text = ", ".join(shares)
    return f"Of all looks: {text}." if text else "The trace is too short for a look."


def _map_meaning(result: Result) -> str:
    cells = result["map"]
    width = humanise.size(cells["cell_bytes"] * cells["columns"])
    return (
        f"The whole space in address order, {width} a row, {humanise.size(cells['cell_bytes'])}"
        " a pixel; the stronger the colour, the more of it is in use."
    )


def _unmovable_key(results: Sequence[Result]) -> str:
    if not any(result["map"]["unmovable_at_end"] for result in results):
        return ""
    red, green, blue = charts.UNMOVABLE_COLOUR
    swatch = f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'
    return f"<p>{swatch}Pages that cannot be moved, where the allocator tells them apart.</p>"


def _maps(results: Sequence[Result]) -> str:
    cells = []
    for result in results:
        title = _text(result["title"])
        event = humanise.count(result["map"]["peak_event"])
        cells_of = result["map"]
        for when, values, unmovable in (
            (f"at the peak (event {event})", cells_of["at_peak"], cells_of["unmovable_at_peak"]),
            ("at the end", cells_of["at_end"], cells_of["unmovable_at_end"]),
        ):
            cells.append(
                f'<div class="map"><p>{_swatch(result["allocator"])}{title}, {when}</p>'
                f'<img alt="Address map of {title} {when}"'
                f' src="{charts.address_map(result, values, unmovable)}"></div>'
            )
    return f'{_unmovable_key(results)}<div class="maps">{"".join(cells)}</div>'
