"""The page's figures as inline SVG, and its address maps as PNG.

Everything is drawn with matplotlib's objects, never its global pyplot state, and returned as
text. Colours are decided by the page, so that they follow the reader's light or dark setting:
a figure is drawn in *ink names*, colours that stand for a CSS variable and are replaced by it
in the finished SVG. Text stays text, in the page's font. An allocator keeps its colour in
every figure; curves that are the same for all are drawn once, in the colour of text.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
    PercentFormatter,
)

from potad.report import humanise
from potad.trace.result import PAGE_BYTES, Curves, Result, RunsCurves, RunsResult

# Ink names: hardly different blacks, unlikely to be met otherwise, and what they stand for.
_INK = "#010203"
_MUTED = "#010204"
_GRID = "#010205"
_SERIES = ("#010206", "#010207", "#010208", "#010209")
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{ink: f"--series-{number}" for number, ink in enumerate(_SERIES)},
}

# An allocator's place among the series colours; one that is not named gets the next.
_PLACES = {"potad": 0, "linux-buddy": 1, "cma": 1, "first-fit": 2}

# A map is a picture, which cannot follow CSS variables: tones that stand out on both grounds.
_MAP_COLOURS = ((47, 127, 193), (214, 102, 30), (32, 152, 116), (140, 105, 190))

UNMOVABLE_COLOUR = (192, 48, 96)
"""What is not movable in a map, where the allocator tells it apart."""

_WIDTH_INCHES = 9.0
_LINE_POINTS = 1.3

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Without a salt identifiers are random and the same report is never the same file.
    "svg.hashsalt": "potad",
    "font.size": 9.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _GRID,
    "ytick.labelcolor": _MUTED,
    "text.color": _INK,
    "text.parse_math": False,
    "lines.linewidth": _LINE_POINTS,
    "lines.solid_joinstyle": "round",
    "axes.axisbelow": True,
}


def place_of(allocator: str) -> int:
    """Which series colour an allocator has."""
    return _PLACES.get(allocator, len(_SERIES) - 1)


def _colour_of(result: Result) -> str:
    return _SERIES[place_of(result["allocator"])]


def _drawn(draw: Callable[[Figure], None], name: str, title: str, height_inches: float) -> str:
    """What `draw` draws, as an `<svg>` element whose identifiers begin with `name`."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for ink, variable in _VARIABLES.items():
        svg = svg.replace(ink, f"var({variable})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    # The page sizes the figure by its width; its shape is in the view box.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", svg)


def _times(curves: Curves | RunsCurves) -> tuple[list[float], str]:
    """The samples' places on the time axis, and its label.

    Seconds from the first sample; events where the trace has no usable clock.
    """
    seconds = curves["seconds"]
    if seconds and seconds[-1] > seconds[0] and all(a <= b for a, b in pairwise(seconds)):
        return [second - seconds[0] for second in seconds], "seconds"
    return [float(event) for event in curves["event"]], "events"


def _time_axis(axes: Axes, curves: Curves | RunsCurves) -> list[float]:
    """Sets up the time axis and returns the samples' places on it."""
    times, label = _times(curves)
    axes.set_xlim(times[0], times[-1] if times[-1] > times[0] else times[0] + 1)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: humanise.significant(value)))
    return times


def _size_axis(axes: Axes, largest_bytes: float) -> None:
    """Bytes from 0 up, with at most six ticks at round numbers of their unit."""
    step = 1 << max(0, math.ceil(math.log2(max(largest_bytes, 1) / 5)))
    axes.set_ylim(0, largest_bytes * 1.03 or 1)
    axes.yaxis.set_major_locator(MultipleLocator(step))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: humanise.size(value)))


def _curves(
    results: Sequence[Result], curve: Callable[[Curves], Sequence[float]]
) -> list[tuple[str, float, Sequence[float]]]:
    """Colours, line widths and curves, the first allocator's last so that it lies on top.

    What lies below is broader, so that curves that coincide for a while are all seen. One
    curve in the colour of text if it is the same for all of several.
    """
    curves = [curve(result["curves"]) for result in results]
    if len(curves) > 1 and all(other == curves[0] for other in curves):
        return [(_INK, _LINE_POINTS, curves[0])]
    return [
        (_colour_of(result), _LINE_POINTS + 0.9 * place, values)
        for place, (result, values) in enumerate(zip(results, curves, strict=True))
    ][::-1]


def memory(results: Sequence[Result], name: str) -> str:
    """Live bytes, filled, and free bytes, dashed, over time."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        times = _time_axis(axes, results[0]["curves"])
        for colour, width, live in _curves(results, lambda curves: curves["live_bytes"]):
            axes.fill_between(times, live, step="post", color=colour, alpha=0.12, linewidth=0)
            axes.step(times, live, where="post", color=colour, linewidth=width)
        for colour, _, free in _curves(results, lambda curves: curves["free_bytes"]):
            axes.step(times, free, where="post", color=colour, linestyle=(0, (3, 2)))
        _size_axis(axes, results[0]["memory_bytes"])

    return _drawn(draw, name, "Live and free bytes over time", 2.7)


def largest_free(results: Sequence[Result], name: str) -> str:
    """Size of the largest free block over time, on a scale of orders."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        times = _time_axis(axes, results[0]["curves"])
        # A step below one page stands for none at all.
        none = PAGE_BYTES // 2
        sizes = [none]
        for colour, width, largest in _curves(results, lambda curves: curves["largest_free_bytes"]):
            shown = [max(int(size), none) for size in largest]
            axes.step(times, shown, where="post", color=colour, linewidth=width)
            sizes += shown
        axes.set_yscale("log", base=2)
        low, high = min(sizes[1:], default=none), max(sizes)
        axes.set_ylim(low / 1.5, high * 1.5)
        orders = range(low.bit_length() - 1, high.bit_length())
        axes.set_yticks([1 << order for order in orders[:: 1 + len(orders) // 8]])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: "none" if value <= none else humanise.size(value))
        )

    return _drawn(draw, name, "Largest free block over time", 2.7)


def unusable(results: Sequence[Result], name: str) -> str:
    """Unusable free index over time, one panel for each size of request."""
    panels: tuple[tuple[str, Callable[[Curves], Sequence[float]]], ...] = (
        ("64 KiB", lambda curves: curves["unusable_64kib"]),
        ("2 MiB", lambda curves: curves["unusable_2mib"]),
        ("32 MiB", lambda curves: curves["unusable_32mib"]),
    )

    def draw(figure: Figure) -> None:
        for axes, (size, curve) in zip(
            figure.subplots(len(panels), sharex=True), panels, strict=True
        ):
            times = _time_axis(axes, results[0]["curves"])
            if size != panels[-1][0]:
                axes.set_xlabel("")
            for colour, width, index in _curves(results, curve):
                axes.step(times, index, where="post", color=colour, linewidth=width)
            axes.set_title(f"for requests of {size}")
            axes.set_ylim(-0.03, 1.03)
            axes.set_yticks([0, 0.5, 1])
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))

    return _drawn(draw, name, "Unusable free index over time", 4.8)


def runs(results: Sequence[Result], name: str) -> str:
    """When a run could have been had: a lane for each allocator, filled while it could."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        times = _time_axis(axes, results[0]["curves"])
        for lane, result in enumerate(results):
            possible = result["curves"]["run_possible"]
            axes.broken_barh([(times[0], times[-1] - times[0])], (lane - 0.3, 0.6), color=_GRID)
            axes.broken_barh(_spans(times, possible), (lane - 0.3, 0.6), color=_colour_of(result))
        axes.set_yticks(range(len(results)), [result["title"] for result in results])
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)

    return _drawn(draw, name, "When an 8 MiB run could be had", 0.6 + 0.35 * len(results))


def relocation(results: Sequence[RunsResult], name: str) -> str:
    """Runs granted and bytes moved for them, added up over time."""

    def draw(figure: Figure) -> None:
        granted, moved = figure.subplots(2, sharex=True)
        for axes in (granted, moved):
            times = _time_axis(axes, results[0]["curves"])
        granted.set_xlabel("")
        # The first lies on top, and what lies below is broader, as in all figures.
        for place, result in reversed(list(enumerate(results))):
            curves, colour = result["curves"], _SERIES[place_of(result["relocator"])]
            width = _LINE_POINTS + 0.9 * place
            granted.step(times, curves["granted"], where="post", color=colour, linewidth=width)
            moved.step(times, curves["bytes_moved"], where="post", color=colour, linewidth=width)
        granted.set_title("runs granted")
        granted.set_ylim(0, max(*(r["curves"]["granted"][-1] for r in results), 1) * 1.05)
        granted.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        granted.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        moved.set_title("moved for them")
        _size_axis(moved, max(r["curves"]["bytes_moved"][-1] for r in results))

    return _drawn(draw, name, "Runs granted and bytes moved over time", 3.9)


def _spans(times: Sequence[float], flags: Sequence[int]) -> list[tuple[float, float]]:
    """Start and width of each stretch of samples whose flag is set, up to the next sample."""
    spans = []
    start: float | None = None
    for time, flag in zip(times, flags, strict=True):
        if flag and start is None:
            start = time
        elif not flag and start is not None:
            spans.append((start, time - start))
            start = None
    if start is not None:
        spans.append((start, times[-1] - start))
    return spans


def free_blocks(results: Sequence[Result], name: str) -> str:
    """Free blocks of each size at the end: how many, and how much memory they hold."""
    sizes = sorted({int(size) for result in results for size in result["free_blocks"]})
    orders = range(sizes[0].bit_length() - 1, sizes[-1].bit_length()) if sizes else range(12, 13)

    def draw(figure: Figure) -> None:
        numbers, shares = figure.subplots(2, sharex=True)
        width = 0.8 / len(results)
        for index, result in enumerate(results):
            blocks = [result["free_blocks"].get(str(1 << order), 0) for order in orders]
            held = [count << order for count, order in zip(blocks, orders, strict=True)]
            places = [order + (index - (len(results) - 1) / 2) * width for order in orders]
            numbers.bar(places, blocks, width * 0.9, color=_colour_of(result))
            shares.bar(places, held, width * 0.9, color=_colour_of(result))
        numbers.set_title("blocks")
        numbers.set_yscale("symlog", linthresh=1)
        numbers.set_ylim(bottom=0)
        numbers.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        shares.set_title("memory in them")
        _size_axis(shares, shares.get_ylim()[1])
        # The unit below its number: side by side they would run into each other.
        labels = [humanise.size(1 << order).replace(" ", "\n") for order in orders]
        shares.set_xticks(list(orders), labels)
        for axes in (numbers, shares):
            axes.grid(visible=False, axis="x")
            axes.tick_params(axis="x", length=0)

    return _drawn(draw, name, "Free blocks by size at the end", 3.9)


def address_map(result: Result, cells: Sequence[int], unmovable: Sequence[int] = ()) -> str:
    """A picture of the space as a `data:` URL: a pixel a cell, the fuller the stronger.

    What is not movable, of a cell that is in use, turns its colour into another one.
    """
    columns = result["map"]["columns"]
    rows = max(1, -(-len(cells) // columns))
    picture = np.zeros((rows * columns, 4), dtype=np.uint8)
    picture[:, :3] = _MAP_COLOURS[place_of(result["allocator"])]
    picture[: len(cells), 3] = cells
    if unmovable:
        used = np.maximum(np.asarray(cells, dtype=float), 1)
        share = np.minimum(np.asarray(unmovable, dtype=float) / used, 1)[:, None]
        movable = picture[: len(cells), :3] * (1 - share)
        picture[: len(cells), :3] = movable + np.asarray(UNMOVABLE_COLOUR) * share
    file = io.BytesIO()
    imsave(file, picture.reshape(rows, columns, 4), format="png", metadata={"Software": "potad"})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
