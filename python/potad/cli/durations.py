"""Durations on the command line: `1s`, `500ms`, `2.5`, `1 min`; a bare number is seconds."""

from __future__ import annotations

import re

import click

SECONDS_MIN = 0.1
SECONDS_MAX = 3600.0

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|min)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "min": 60.0}


def parse_duration(text: str) -> float:
    """Seconds in `text`.

    Raises `ValueError` for what is no duration, and for less than 100 ms and more than an hour.

    >>> parse_duration("1s"), parse_duration("500 ms"), parse_duration("2.5")
    (1.0, 0.5, 2.5)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 1s, 500ms or 2")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise ValueError(f"{text!r} is not between 100ms and an hour")
    return seconds


def duration_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> float | None:
    """The callback of an option that takes a duration: seconds, or None where it is not given."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
