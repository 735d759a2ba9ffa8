"""Sizes on the command line."""

from __future__ import annotations

import doctest
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potad.cli import sizes
from potad.cli.sizes import SIZE_MAX_BYTES, parse_run, parse_size

PREFIXES = "KMGTPE"


def test_examples() -> None:
    failed, tried = doctest.testmod(sizes)
    assert tried > 0
    assert not failed


@given(
    st.integers(1, 10**6),
    st.integers(0, 999),
    st.sampled_from(["", *PREFIXES]),
    st.sampled_from(["", "B", "iB"]),
    st.sampled_from(["", " ", "  "]),
    st.booleans(),
)
def test_what_is_written_is_what_is_read(
    whole: int, thousandths: int, prefix: str, ending: str, gap: str, lower: bool
) -> None:
    if not prefix and ending == "iB":
        ending = "B"
    base = 1000 if prefix and ending == "B" else 1024
    expected = (Fraction(whole * 1000 + thousandths, 1000)) * base ** (
        PREFIXES.index(prefix) + 1 if prefix else 0
    )
    text = f"{whole}.{thousandths:03}{gap}{prefix}{ending}"
    text = text.lower() if lower else text
    if expected > SIZE_MAX_BYTES:
        with pytest.raises(ValueError, match="not between"):
            parse_size(text)
    else:
        assert 0 <= parse_size(text) - expected < 1


@given(st.integers(1, SIZE_MAX_BYTES))
def test_bare_numbers_are_bytes(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "-1", "+1", "1X", "1 M B", "1e9", "0x10", "1,000", "nan", "inf", "1.", ".5",
     "١", "1iB", "1_000", "5MiBs"],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0G", "0.0K", "8E", "9223372036854775808", "9" * 30])
def test_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match="not between"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_error(text: str) -> None:
    try:
        size_bytes = parse_size(text)
    except ValueError:
        return
    assert 0 < size_bytes <= SIZE_MAX_BYTES


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8MiB@1MiB", (8 << 20, 1 << 20)), (" 8M @ 64k ", (8 << 20, 1 << 16)), ("5", (5, 4096))],
)
def test_runs(text: str, expected: tuple[int, int]) -> None:
    assert parse_run(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@1M", "not a size"),
        ("8M@", "not a size"),
        ("8M@1M@1M", "not a size"),
        ("8M@0", "not between"),
        ("8M@3M", "not a power of two"),
        ("8M@2K", "not a power of two of at least 4096"),
    ],
)
def test_what_is_no_run(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_run(text)
