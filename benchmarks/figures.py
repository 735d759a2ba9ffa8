"""Lines of figures, as all benchmarks here print them: medians, ranges, whether bars are met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def verdict(value: float, bar: float | None, at_most: bool = True) -> str:
    """Whether a figure meets its bar."""
    if bar is None:
        return ""
    met = value <= bar if at_most else value >= bar
    return f"bar {'<=' if at_most else '>='} {bar:,.4g}: {'PASS' if met else 'MISS'}"


def show(name: str, values: Sequence[float], unit: str, ending: str = "") -> None:
    """Prints the median of some values, and their range."""
    median = statistics.median(values)
    spread = f"({min(values):,.1f} to {max(values):,.1f})"
    print(f"  {name:<34} {median:>12,.1f} {spread:<24} {unit:<12} {ending}".rstrip())


def show_ratio(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    bar: float | None,
    at_most: bool = True,
) -> None:
    """Prints the ratio of two medians, and its range over rounds."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
    spread = f"({min(rounds):.3f} to {max(rounds):.3f})"
    ending = verdict(ratio, bar, at_most)
    print(f"  {name:<34} {ratio:>12.3f} {spread:<24} {'x':<12} {ending}".rstrip())
