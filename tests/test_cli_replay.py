"""`potad replay` from the outside: options, outputs, messages and exit statuses."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from replay_samples import BUNDLED_TRACE, COMPRESS, SHARED_DATA, small_trace

import potad.cli
from potad.cli import app
from potad.trace import PEERS

POTAD = [sys.executable, "-m", "potad.cli"]
ALL = ["potad", *PEERS]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    file = tmp_path / "small.ftrace"
    file.write_text(small_trace())
    return str(file)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app.app, ["replay", *arguments])


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*POTAD, "replay", *arguments], capture_output=True, timeout=120, check=False, **options
    )


def document(*arguments: str) -> list[dict[str, Any]]:
    done = shell(*arguments, "--json", "-")
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout)
    assert isinstance(parsed, list)
    return parsed


def test_table_on_standard_output(trace: str) -> None:
    done = shell(trace, env={**os.environ, "COLUMNS": "120"})
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert trace in text
    assert "3,002 events" in text
    assert "2 frees of pages that were allocated before recording" in text


def test_json_holds_a_list_of_traces(trace: str) -> None:
    first, second = document(trace, trace)
    assert first["trace"]["name"] == second["trace"]["name"] == trace
    assert [result["allocator"] for result in first["allocators"]] == ALL
    # 2000 pages and a sixteenth, up to a MiB.
    assert first["memory_bytes"] == 9 << 20
    for result in first["allocators"]:
        assert result["memory_bytes"] == first["memory_bytes"]
        assert (result["failures"], result["live_bytes"]) == (0, 1000 * 4096)


def test_json_to_standard_output_sends_the_table_to_standard_error(trace: str) -> None:
    done = shell(trace, "--json", "-", "--against", "none")
    json.loads(done.stdout)
    assert b"Largest free block" in done.stderr


@pytest.mark.parametrize(
    ("given", "run"),
    [
        (["none"], []),
        (["all"], list(PEERS)),
        (["first-fit"], ["first-fit"]),
        (["first-fit,linux-buddy"], list(PEERS)),
        (["first-fit", "linux-buddy", "first-fit"], list(PEERS)),
        (["first-fit, all"], list(PEERS)),
    ],
)
def test_against(trace: str, given: list[str], run: list[str]) -> None:
    options = [part for names in given for part in ("--against", names)]
    (report,) = document(trace, "--points", "5", *options)
    assert [result["allocator"] for result in report["allocators"]] == ["potad", *run]


@pytest.mark.parametrize("given", ["slab", "", "all,slab", "none,first-fit"])
def test_against_what_is_not_known(trace: str, given: str) -> None:
    done = invoke(trace, "--against", given)
    assert done.exit_code == 2
    assert "linux-buddy" in done.output or "cannot be combined" in done.output


def test_memory_is_rounded_up_to_pages_and_may_be_too_small(trace: str) -> None:
    (report,) = document(trace, "--memory", "4000.5KiB", "--against", "none")
    assert report["memory_bytes"] == 1001 * 4096
    assert report["allocators"][0]["failures"] == 999


@pytest.mark.parametrize("memory", ["0", "-4K", "lots", "8E"])
def test_bad_memory(trace: str, memory: str) -> None:
    done = invoke(trace, "--memory", memory)
    assert done.exit_code == 2
    assert "--memory" in done.output


def test_memory_beyond_what_can_be_numbered_is_one_line(trace: str) -> None:
    done = shell(trace, "--memory", "7E", "--against", "none")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"memory" in done.stderr


@pytest.mark.parametrize("option", [("--points", "1"), ("--probe-interval", "0")])
def test_counts_below_their_least(trace: str, option: tuple[str, str]) -> None:
    assert invoke(trace, *option).exit_code == 2


def test_probe_interval(trace: str) -> None:
    (report,) = document(trace, "--probe-interval", "100", "--against", "none")
    assert report["allocators"][0]["runs"]["interval_events"] == 100
    assert report["allocators"][0]["runs"]["probes"] == pytest.approx(30, abs=1)


def test_runs(trace: str) -> None:
    (report,) = document(
        trace, "--against", "none", "--runs", "1M@64K", "--runs-every", "500", "--runs-at-once",
        "9", "--pinned", "0.5", "--reserve", "0.25", "--points", "7",
    )  # fmt: skip
    potad, cma = report["relocation"]
    assert (potad["relocator"], cma["relocator"]) == ("potad", "cma")
    for result in (potad, cma):
        assert (result["size_bytes"], result["align_bytes"]) == (1 << 20, 1 << 16)
        assert (result["interval_events"], result["at_once"], result["pinned"]) == (500, 9, 0.5)
        assert result["wanted"] == 9 * (3000 // 500)
        assert len(result["curves"]["granted"]) == 7
    assert potad["reserve"]["bytes"] == 0
    # A quarter of 9 MiB, up to where a block of 4 MiB begins.
    assert cma["reserve"]["bytes"] == 5 << 20


def test_runs_have_defaults_and_are_not_asked_for_by_default(trace: str) -> None:
    (report,) = document(trace, "--against", "none")
    assert report["relocation"] == []
    (report,) = document(trace, "--against", "none", "--runs", "4097")
    (potad, _) = report["relocation"]
    assert (potad["size_bytes"], potad["align_bytes"]) == (8192, 4096)
    assert (potad["interval_events"], potad["at_once"], potad["pinned"]) == (1000, 1, 0.05)
    assert (potad["wanted"], potad["granted"], potad["missed"]) == (3, 3, 0)


def test_runs_in_the_table_and_the_page(trace: str, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    done = shell(trace, "--runs", "1MiB@1MiB", "--html", str(page), "--points", "5")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout.decode(), page.read_text()):
        assert "Runs of 1 MiB at multiples of 1 MiB" in text
        assert "Linux CMA (restated)" in text
    assert page.read_text().count("<svg") == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runs", "lots"], "is not a size"),
        (["--runs", "8M@3M"], "not a power of two"),
        (["--runs", "1M", "--runs-every", "0"], "--runs-every"),
        (["--runs", "1M", "--runs-at-once", "0"], "--runs-at-once"),
        (["--runs", "1M", "--pinned", "1.5"], "--pinned"),
        (["--runs", "1M", "--pinned", "nan"], "pinned: NaN"),
        (["--runs", "1M", "--reserve", "0"], "--reserve"),
        (["--runs", "1M", "--reserve", "0.9"], "must leave some to either side"),
        (["--runs", "7E"], "run: "),
        (["--runs-every", "10"], "--runs-every needs --runs"),
        (["--runs-at-once", "2"], "--runs-at-once needs --runs"),
        (["--pinned", "0.1"], "--pinned needs --runs"),
        (["--reserve", "0.1"], "--reserve needs --runs"),
    ],
)
def test_bad_runs(trace: str, options: list[str], said: str) -> None:
    done = invoke(trace, "--against", "none", *options)
    assert done.exit_code == 2
    assert said in done.output


def test_files_are_written_and_hold_all_traces(trace: str, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "r.json", tmp_path / "r.html"
    done = shell(
        trace, str(BUNDLED_TRACE), "--json", str(json_file), "--html", str(html_file),
        "--points", "50",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"Largest free block") == 2
    reports = json.loads(json_file.read_bytes())
    assert [report["trace"]["events"] for report in reports] == [3002, 230_812]
    page = html_file.read_text()
    HTMLParser().feed(page)
    assert page.count("<svg") == 10
    assert {entry.name for entry in tmp_path.iterdir()} == {"small.ftrace", "r.json", "r.html"}


def test_html_extra_missing_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pipe = tmp_path / "never-read"
    os.mkfifo(pipe)
    done = invoke(str(pipe), "--html", str(tmp_path / "x.html"))
    assert done.exit_code == 2
    assert "pip install 'potad[report]'" in done.output


def test_command_extra_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith("potad.cli."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    assert potad.cli.main() == 1
    assert capsys.readouterr().err == (
        "potad: the command needs the Python package click: pip install 'potad[cli]'\n"
    )


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("place", ["missing/out", "."])
def test_unwritable_output_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = tmp_path / "never-read"
    os.mkfifo(pipe)
    done = invoke(str(pipe), option, place)
    assert done.exit_code == 2
    assert "cannot write" in done.output


def test_outputs_that_collide(trace: str, tmp_path: Path) -> None:
    assert (
        "same file" in invoke(trace, "--json", f"{tmp_path}/x", "--html", f"{tmp_path}/./x").output
    )
    done = invoke(trace, "--json", trace)
    assert done.exit_code == 2
    assert "one of the traces" in done.output
    assert Path(trace).read_text() == small_trace()
    assert {entry.name for entry in tmp_path.iterdir()} == {"small.ftrace"}


@pytest.mark.parametrize("form", [None, *sorted(COMPRESS)])
def test_standard_input(form: str | None) -> None:
    text = small_trace().encode()
    done = shell(
        "-", "--against", "none", "--json", "-",
        input=text if form is None else COMPRESS[form](text),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["trace"]["name"] == "standard input"
    assert report["trace"]["events"] == 3002


def test_standard_input_only_once() -> None:
    assert "only once" in invoke("-", "-").output


def bad_files(folder: Path) -> dict[str, bytes]:
    cut = COMPRESS["xz"](small_trace().encode())[:-20]
    files = {
        "empty": b"",
        "text": b"no trace\n" * 100,
        "binary": bytes(range(256)) * 100,
        "cut.xz": cut,
        "garbage.gz": b"\x1f\x8b\x08\x00garbage garbage garbage",
        "perf.data": b"PERFILE2" + bytes(100),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def test_bad_input_is_one_line_and_status_2(tmp_path: Path) -> None:
    for name in [*bad_files(tmp_path), "missing", "."]:
        place = f"{tmp_path}/{name}" if name != "." else str(tmp_path)
        done = shell(place, "--json", f"{tmp_path}/out.json")
        assert done.returncode == 2, name
        assert done.stdout == b""
        message = done.stderr.decode()
        assert message.startswith(f"potad: {place}: "), message
        assert message.count("\n") == 1, message
        assert not list(tmp_path.glob("*out.json*"))


def test_a_missing_second_trace_is_said_before_the_first_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "never-read"
    os.mkfifo(pipe)
    assert shell(str(pipe), str(tmp_path / "missing")).returncode == 2


def test_malformed_lines_are_named_and_counted(tmp_path: Path) -> None:
    lines = small_trace(100).splitlines(keepends=True)
    places = range(10, 80, 10)
    for place in places:
        lines.insert(place - 1, "sh-1 [000] ..... 1.0: mm_page_alloc: order=0\n")
    file = tmp_path / "bad.ftrace"
    file.write_text("".join(lines))
    done = shell(str(file), "--against", "none")
    assert done.returncode == 0
    said = done.stderr.decode().splitlines()
    numbers = [int(line.removeprefix(f"{file}:").split(":")[0]) for line in said[:-1]]
    assert numbers == list(places)[:5]
    assert said[-1].endswith("7 malformed lines in all")
    assert b"7 malformed lines" in done.stdout


def test_a_trace_without_frees_says_so(tmp_path: Path) -> None:
    file = tmp_path / "allocations.ftrace"
    file.write_text("".join(line for line in small_trace().splitlines(True) if "alloc" in line))
    done = shell(str(file), "--against", "none", "--json", f"{tmp_path}/out.json")
    assert done.returncode == 0, done.stderr
    assert b"2,000 allocations and not one free" in done.stdout
    (report,) = json.loads((tmp_path / "out.json").read_text())
    (note,) = report["trace"]["notes"]
    assert note.startswith("There are 2,000 allocations and not one free.")


def test_interrupted_while_many_runs_are_asked_for() -> None:
    process = subprocess.Popen(
        [
            *POTAD, "replay", "-q", str(BUNDLED_TRACE), "--against", "none", "--points", "2",
            "--runs", "4KiB", "--runs-at-once", "1000000", "--runs-every", "1",
        ],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in said


def test_broken_pipe_is_silent(trace: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*POTAD, "replay", trace, "--json", "-"],
        stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1
    assert b"Broken" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_reading(tmp_path: Path, number: int, status: int) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*POTAD, "replay", str(pipe), "--json", f"{tmp_path}/out.json"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with open(pipe, "wb", buffering=0) as end:
        end.write(small_trace().encode())  # and no end of file
        time.sleep(0.3)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert b"Traceback" not in said
    assert {entry.name for entry in tmp_path.iterdir()} == {"pipe"}


def on_terminal(*arguments: str) -> tuple[int, str]:
    """Runs on a terminal of its own; the exit status and what was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="120")
        os.execv(POTAD[0], [*POTAD, "replay", *arguments])
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:
        pass  # how Linux says that the other end of a terminal is closed
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_progress_only_on_a_terminal_and_unless_quiet() -> None:
    status, shown = on_terminal(str(BUNDLED_TRACE), "--against", "none")
    assert status == 0
    assert f"reading {BUNDLED_TRACE}" in shown
    assert "━" in shown
    status, shown = on_terminal(str(BUNDLED_TRACE), "--against", "none", "--quiet")
    assert status == 0
    assert "reading" not in shown
    assert b"reading" not in shell(str(BUNDLED_TRACE), "--against", "none").stderr


def test_output_in_a_poor_character_set(trace: str) -> None:
    done = shell(trace, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"Largest free block" in done.stdout


@pytest.mark.parametrize(("closed", "status"), [("0<&-", 2), ("1>&-", 0), ("2>&-", 0)])
def test_closed_standard_streams(trace: str, closed: str, status: int) -> None:
    name = "-" if closed.startswith("0") else trace
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *POTAD, "replay", name, "--against", "none"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert b"Traceback" not in done.stderr


def test_name_of_any_bytes(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/[red]\xff\n<b>.ftrace"
    with open(file, "wb") as opened:
        opened.write(small_trace().encode())
    done = shell(os.fsdecode(file), "--json", "-", "--html", str(tmp_path / "x.html"))
    assert done.returncode == 0, done.stderr
    assert "[red]" in json.loads(done.stdout)[0]["trace"]["name"]


LINE = (
    "task-1 [000] ..... 1.000001: mm_page_alloc:"
    " page=0000000000000001 pfn=0x1c order=0 migratetype=0 gfp_flags=GFP_KERNEL\n"
)

# Titles and screens of terminals, one character that begins a sequence, and text turned round.
OBEYED = ("\x1b]0;owned", "\x07", "\x1b[2J", "\x9b31m", "\u202e", "\u2028", "\x7f")


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """A trace whose every field is hostile in one line, in a file with such a name."""
    text = "".join(OBEYED) + "[red]X"
    fields = ("task", "1.000001", "0000000000000001", "0x1c", "=0 m", "migratetype", "GFP_KERNEL")
    file = tmp_path / f"{text}.ftrace"
    file.write_text(LINE + "".join(LINE.replace(field, f"={text} m" if field == "=0 m" else text)
                                   for field in fields))  # fmt: skip
    return str(file)


def test_nothing_in_a_trace_is_obeyed(hostile: str, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    done = shell(hostile, "--against", "none", "--json", "-", "--html", str(page))
    assert done.returncode == 0
    assert b"line passed over" in done.stderr
    for text in (done.stdout, done.stderr, page.read_bytes()):
        for sequence in OBEYED:
            assert sequence.encode() not in text
    assert all(line.isprintable() for line in done.stderr.decode().split("\n"))
    report = json.loads(done.stdout)[0]["trace"]
    assert "[red]X" in report["name"]
    assert any("[red]X" in reason for _, reason in report["malformed_lines"])
    for arguments in ((hostile + "?",), (hostile, "--json", hostile), (hostile, f"--{OBEYED[0]}")):
        done = shell(*arguments)
        assert done.returncode == 2
        assert all(line.isprintable() for line in done.stderr.decode().split("\n"))


def test_nothing_in_a_trace_is_obeyed_by_a_terminal(hostile: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(POTAD[0], [*POTAD, "replay", hostile, "--against", "none"])
    shown = b""
    try:
        while data := os.read(terminal, 1 << 16):
            shown += data
    except OSError:
        pass  # how Linux says that the other end of a terminal is closed
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"[red]X" in shown
    for sequence in OBEYED:
        assert sequence.encode() not in shown


def test_version_and_help() -> None:
    for arguments, said in ((["--version"], "potad"), (["--help"], "record"), ([], "replay")):
        done = subprocess.run(
            [*POTAD, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert said in done.stdout + done.stderr
    assert shell().returncode == 2


@pytest.mark.parametrize("name", ["linux-compile", "linux-files", "linux-numpy-thp"])
def test_recorded_traces(name: str) -> None:
    file = SHARED_DATA / f"{name}.ftrace.xz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    (report,) = document(str(file), "--against", "none", "--probe-interval", "20000")
    (result,) = report["allocators"]
    assert result["events"] == report["trace"]["events"] > 200_000
    assert report["trace"]["malformed"] == 0
