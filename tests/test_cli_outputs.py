"""Files put in place only when whole."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
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


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from potad.cli.outputs import OutputFile\n"
        "OutputFile('report').write(b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    (left,) = names(tmp_path)
    assert left.startswith(".report.")
    with OutputFile(str(tmp_path / "report")) as file:
        assert left not in names(tmp_path)
        file.commit()
    assert names(tmp_path) == {"report"}


def test_what_a_run_left_is_told_from_everything_else(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    kept = {".r.x.0123abcd.part", ".r.0123abc.part", ".r.0123abcd.part2", "r.0123abcd.part"}
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".r.aaaaaaaa.part").symlink_to(target)
    (tmp_path / ".r.bbbbbbbb.part").mkdir()
    os.mkfifo(tmp_path / ".r.cccccccc.part")
    with OutputFile(str(tmp_path / "r")) as one, OutputFile(str(tmp_path / "r")) as two:
        one.write(b"1")
        two.write(b"2")
        two.commit()
        with OutputFile(str(tmp_path / "r")):
            pass
        one.commit()
    assert (tmp_path / "r").read_bytes() == b"1"
    odd = {".r.aaaaaaaa.part", ".r.bbbbbbbb.part", ".r.cccccccc.part"}
    assert names(tmp_path) == {"r", "target", *kept, *odd}


def test_a_temporary_file_taken_for_a_dead_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another run does that looks after it was made and before it is locked."""
    lock = fcntl.flock
    lost: list[str] = []

    def lose_and_lock(file: int, how: int) -> None:
        if len(lost) < 2:
            lost.extend(name for name in names(tmp_path))
            os.unlink(tmp_path / lost[-1])
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", lose_and_lock)
    with OutputFile(str(tmp_path / "r")) as file:
        file.write(b"x")
        file.commit()
    assert len(lost) == 2
    assert (tmp_path / "r").read_bytes() == b"x"
