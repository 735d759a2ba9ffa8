"""Sizes on the command line: `512MiB`, `2G`, `1.5 GiB`, `4096`.

As in most tools, K, M, G and so on are powers of 1024, with `i` and `B` or without; `KB`,
`MB`, `GB` are powers of 1000; a bare number is bytes.
"""

from __future__ import annotations

import re
from fractions import Fraction

import click

from potad.trace.result import PAGE_BYTES

SIZE_MAX_BYTES = (1 << 63) - 1

_SIZE = re.compile(
    r"(\d{1,30}(?:\.\d{1,30})?)\s*(?:([kmgtpe])(ib?|b)?|b)?", re.ASCII | re.IGNORECASE
)


def parse_size(text: str) -> int:
    """Bytes in `text`, a fraction of a byte rounded up.

    Raises `ValueError` for anything that is no size, for none at all, and for 2^63 and more.

    >>> parse_size("512MiB"), parse_size("2G"), parse_size("2GB"), parse_size("4096")
    (536870912, 2147483648, 2000000000, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512MiB, 2G or 4096")
    number, prefix, ending = match.groups()
    size = Fraction(number)
    if prefix:
        base = 1000 if ending and ending.lower() == "b" else 1024
        size *= base ** ("kmgtpe".index(prefix.lower()) + 1)
    size_bytes = -(-size.numerator // size.denominator)
    if not 0 < size_bytes <= SIZE_MAX_BYTES:
        raise ValueError(f"{text!r} is {size_bytes:,} bytes, not between 1 and 2^63 - 1")
    return size_bytes


def parse_run(text: str) -> tuple[int, int]:
    """Size and alignment in bytes of a run such as `8MiB@1MiB`; without one, that of a page.

    Raises `ValueError` for what is no size, and for an alignment that is no power of two of at
    least a page.

    >>> parse_run("8MiB@1MiB"), parse_run("12K")
    ((8388608, 1048576), (12288, 4096))
    """
    size, at, align = text.partition("@")
    size_bytes = parse_size(size)
    align_bytes = parse_size(align) if at else PAGE_BYTES
    if align_bytes < PAGE_BYTES or align_bytes & (align_bytes - 1):
        raise ValueError(f"the alignment {align!r} is not a power of two of at least {PAGE_BYTES}")
    return size_bytes, align_bytes


def run_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """The callback of an option that takes a run: its size and alignment, or None."""
    if value is None:
        return None
    try:
        return parse_run(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def size_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | None:
    """The callback of an option that takes a size: bytes, or None where it is not given."""
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
