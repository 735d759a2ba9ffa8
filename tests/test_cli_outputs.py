"""Files put in place only when whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click
import pytest

from potad.cli.outputs import OutputFile


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_nothing_is_there_before_the_commit(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    with OutputFile(str(place)) as file:
        file.write(b"one ")
        file.write(b"two")
        assert not place.exists()
        file.commit()
        assert place.read_bytes() == b"one two"
    assert names(tmp_path) == {"report.json"}


def test_leaving_without_commit_keeps_the_old_file(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    place.write_bytes(b"old")
    with OutputFile(str(place)) as file:
        file.write(b"new")
    assert place.read_bytes() == b"old"
    assert names(tmp_path) == {"report.json"}


def test_replacing_keeps_the_mode_and_follows_links(tmp_path: Path) -> None:
    place = tmp_path / "real"
    place.write_bytes(b"old")
    place.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(place)
    with OutputFile(str(link)) as file:
        file.write(b"new")
        file.commit()
    assert link.is_symlink()
    assert place.read_bytes() == b"new"
    assert stat.S_IMODE(place.stat().st_mode) == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with OutputFile(str(tmp_path / "new")) as file:
            file.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_devices_are_written_directly() -> None:
    with OutputFile(os.devnull) as file:
        file.write(b"x")
        file.commit()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("place", [".", "missing/report.json", "x" * 300])
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.UsageError, match="cannot write"):
        OutputFile(place)
    assert names(tmp_path) == set()


def test_long_names_have_room_for_the_temporary_one(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 255)
    with OutputFile(str(place)) as file:
        file.commit()
    assert place.exists()


def test_same_file(tmp_path: Path) -> None:
    with OutputFile(str(tmp_path / "a")) as file:
        assert file.same_file(f"{tmp_path}/./a")
        assert not file.same_file(str(tmp_path / "b"))
