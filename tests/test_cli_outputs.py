"""Files put in place only when whole."""

from __future__ import annotations

import contextlib
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


def test_what_is_not_whole_is_of_its_user_alone(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    place.write_bytes(b"old")
    place.chmod(0o644)
    before = os.umask(0)
    try:
        for name in ("report.json", "new"):
            with OutputFile(str(tmp_path / name)) as file:
                file.write(b"secret")
                (temporary,) = names(tmp_path) - {"report.json"}
                assert stat.S_IMODE((tmp_path / temporary).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_of_another_users_file_only_a_usual_mode_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for mode, kept in ((0o4777, 0o644), (0o666, 0o644), (0o600, 0o600)):
        place = tmp_path / f"{mode:o}"
        place.write_bytes(b"old")
        place.chmod(mode)
        before = os.umask(0o022)
        try:
            with OutputFile(str(place)) as file:
                file.commit()
        finally:
            os.umask(before)
        assert stat.S_IMODE(place.stat().st_mode) == kept


def test_links_of_others_where_everybody_can_make_them_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, aim = tmp_path / "shared", tmp_path / "aim"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(aim)
    (shared / "folder").symlink_to("..")
    (tmp_path / "to it").symlink_to("shared/link")
    places = [str(shared / "link"), str(tmp_path / "to it"), str(shared / "folder/aim")]
    real, user = os.lstat, os.geteuid()

    def lstat(path: str) -> os.stat_result:
        """As if the link were another user's; to make one takes root."""
        found = real(path)
        if not stat.S_ISLNK(found.st_mode) or not str(path).startswith(str(shared)):
            return found
        return os.stat_result([12345 if at == 4 else it for at, it in enumerate(found[:10])])

    for text in (None, b"precious"):
        if text is not None:
            aim.write_bytes(text)
        for place in places:
            with monkeypatch.context() as patch:
                patch.setattr(os, "lstat", lstat)
                with pytest.raises(click.UsageError, match="symbolic link of user 12345"):
                    OutputFile(place)
        assert (aim.read_bytes() if aim.exists() else None) == text
        assert names(shared) == {"folder", "link"}
    # The user's own, and those of whom the directory is.
    assert user in (shared.stat().st_uid, (shared / "link").lstat().st_uid)
    for place in places:
        with OutputFile(place) as file:
            file.write(b"new")
            file.commit()
        assert aim.read_bytes() == b"new"
        aim.unlink()


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(click.UsageError, match="Too many levels of symbolic links"):
        OutputFile(str(tmp_path / "one"))


@pytest.mark.parametrize("place", ["./here/../here/new", "here//sub/../new", "there/../here/new"])
def test_links_are_followed_before_what_stands_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As the system does: the directory above a linked one is not where the link is."""
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "there").symlink_to("here/sub")
    monkeypatch.chdir(tmp_path)
    aim = Path(os.path.realpath(place))
    aim.parent.mkdir(exist_ok=True)
    with OutputFile(place) as file:
        file.commit()
        assert aim.is_file()


def test_a_pipe_by_the_name_of_its_descriptor() -> None:
    """As `/dev/stdout` is one where a shell has connected it to another command."""
    ends = os.pipe()
    try:
        with OutputFile(f"/proc/self/fd/{ends[1]}") as file:
            file.write(b"written")
            file.commit()
        assert os.read(ends[0], 100) == b"written"
    finally:
        for end in ends:
            os.close(end)


def test_a_pipe_that_becomes_a_link_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, aim = tmp_path / "pipe", tmp_path / "aim"
    os.mkfifo(place)
    aim.write_bytes(b"precious")
    real = os.open

    def late(path: str, *arguments: int) -> int:
        with contextlib.suppress(FileExistsError):
            place.unlink()
            place.symlink_to(aim)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(click.UsageError, match="another file was put there"):
        OutputFile(str(place))
    assert aim.read_bytes() == b"precious"


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
