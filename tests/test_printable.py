"""Foreign text: nothing in it is obeyed, wherever it is shown."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest

import potad
from potad.monitor import NotServing, snapshot
from potad.printable import LENGTH_MAX, printable
from potad.usage import OWNER_WIDTH_MAX, short

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\r\n\u2028\u202e\u2066\u200b\udcff[red]"


def test_what_is_obeyed_is_spelled_out() -> None:
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        text = printable(character)
        assert text.isprintable()
        category = unicodedata.category(character)
        if category[0] in "LNPSM" or character == " ":
            assert text == character
        else:
            assert text.isascii(), category
            assert text.encode().decode("unicode_escape") == character


def test_texts_are_cut() -> None:
    assert printable("x" * LENGTH_MAX) == "x" * LENGTH_MAX
    for character in ("x", "\x1b", "\U0010ffff", "☃"):
        for length_max in (1, 2, 10, LENGTH_MAX):
            text = printable(character * (length_max + 1), length_max)
            assert len(text) == length_max
            assert text[-1] == "…"
    assert printable("") == ""


def test_texts_of_a_space_are_printable() -> None:
    class Owner:
        def __repr__(self) -> str:
            return HOSTILE * 100

    space = potad.Space(1 << 20)
    space.alloc(4096, kind=potad.Kind(HOSTILE.replace("\udcff", "")), owner=Owner())
    report = str(space.report())
    assert all(line.isprintable() for line in report.split("\n"))
    assert short(Owner()).isprintable()
    assert len(short(Owner())) == OWNER_WIDTH_MAX


def test_names_of_files_in_errors_are_printable(tmp_path: Path) -> None:
    place = os.path.join(tmp_path, HOSTILE.replace("\udcff", ""))
    with potad.SwapFile(place, 1 << 20) as swap:
        slot = swap.write(b"x")
        with pytest.raises(potad.NotAllocated) as error:
            swap.read(slot + 512)
        assert str(error.value).isprintable()
        os.truncate(place, 0)
        with pytest.raises(potad.Poisoned) as cut:
            swap.read(slot)
        assert str(cut.value).isprintable()
    os.chmod(place, 0o644)
    with pytest.raises(PermissionError, match="chmod 600") as refused:
        potad.SwapFile(place)
    assert str(refused.value).isprintable()
    with pytest.raises(NotServing, match="nobody serves") as missing:
        snapshot(place)
    assert str(missing.value).isprintable()
