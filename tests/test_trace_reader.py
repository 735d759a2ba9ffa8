"""From bytes to a parsed trace: what is counted, and what is said of a file that is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest
from replay_samples import (
    BUNDLED_TRACE,
    COMPRESS,
    Raised,
    event_line,
    raising_soon,
    small_trace,
)

from potad._core import TraceParser
from potad.trace import TraceError, read_trace, summarise


def written(folder: Path, text: str | bytes) -> str:
    file = folder / "trace"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def test_counts_of_a_small_trace(tmp_path: Path) -> None:
    trace = summarise("small", read_trace(written(tmp_path, small_trace(2000))))
    assert trace["format"] == "ftrace"
    assert (trace["events"], trace["allocations"], trace["frees"]) == (3002, 2000, 1002)
    assert trace["frees_before_recording"] == 2
    assert trace["peak_bytes"] == 2000 * 4096
    assert trace["live_bytes"] == 1000 * 4096
    # The last event is a free of an older page, one millisecond after the one before it.
    assert trace["seconds"] == pytest.approx(4.001)
    assert (trace["malformed"], trace["malformed_lines"], trace["dropped"]) == (0, [], 0)


def test_malformed_lines_are_numbered_from_one_and_passed_over(tmp_path: Path) -> None:
    good = small_trace(10).splitlines(keepends=True)
    bad = [
        "sh-1 [000] ..... 1.000000: mm_page_alloc: page=0 order=0\n",
        "sh-1 [000] ..... 1.000000: mm_page_free: page=0 pfn=0xzz order=0\n",
        "sh-1 [000] ..... 1.000000: mm_page_alloc: page=0 pfn=0x10 order=77\n",
    ]
    text = [*good[:5], bad[0], *good[5:9], bad[1], *good[9:], bad[2]]
    trace = read_trace(written(tmp_path, "".join(text)))
    assert trace.malformed == 3
    assert [number for number, _ in trace.malformed_lines] == [6, 11, len(text)]
    assert all(reason for _, reason in trace.malformed_lines)
    assert trace.events == read_trace(written(tmp_path, "".join(good))).events


def test_allocations_that_failed_on_an_old_kernel_are_no_pages(tmp_path: Path) -> None:
    failed = event_line(1, "mm_page_alloc", 0, 9).replace("00000000deadbeef", " " * 10 + "(null)")
    assert "page=          (null) pfn=0x0 order=9" in failed
    trace = read_trace(written(tmp_path, small_trace(10) + 3 * failed))
    assert (trace.allocations, trace.failed_allocations, trace.malformed) == (10, 3, 0)
    assert (trace.lost_frees, trace.peak_bytes) == (0, 10 * 4096)


def test_times_as_differences_are_read(tmp_path: Path) -> None:
    lines = small_trace(100).replace(": mm_page", ":  (+12)   mm_page")
    trace = read_trace(written(tmp_path, lines))
    assert (trace.allocations, trace.frees, trace.malformed) == (100, 52, 0)
    lines = small_trace(100).replace(": mm_page", ":  <12>   mm_page")
    with pytest.raises(TraceError, match=r"152 malformed lines.* <12> stands between"):
        read_trace(written(tmp_path, lines))


def test_a_line_of_two_halves_is_malformed(tmp_path: Path) -> None:
    half = event_line(1, "mm_page_alloc", 0x77, 0)[:-40]
    text = small_trace(10) + half + small_trace(10)
    trace = read_trace(written(tmp_path, text.replace("# tracer: nop\n#\n", "")))
    assert (trace.malformed, trace.allocations) == (1, 19)


def test_a_trace_without_frees_says_so(tmp_path: Path) -> None:
    lines = [event_line(n, "mm_page_alloc", n, 0) for n in range(1234)]
    other = [event_line(n, "mm_page_free_somehow", n, 0) for n in range(1234)]
    for text in (lines, lines + other):
        (note,) = summarise("x", read_trace(written(tmp_path, "".join(text))))["notes"]
        assert "1,234 allocations and not one free" in note
    for text in (lines[:9], [*lines, event_line(1, "mm_page_free", 1, 0)]):
        assert summarise("x", read_trace(written(tmp_path, "".join(text))))["notes"] == []


def test_a_signal_is_heard_within_one_piece() -> None:
    text = event_line(1, "mm_page_free", 0, 18).encode()
    parser = TraceParser()
    # Of blocks of 1 GiB nothing is live: each is searched through for what is.
    piece = text * 200_000
    with raising_soon(), pytest.raises(Raised):
        parser.feed(piece)
    # What was read of the piece is not known.
    for call in (parser.finish, lambda: parser.feed(b""), lambda: parser.events):
        with pytest.raises(ValueError, match="make a new one"):
            call()


def test_a_signals_handler_that_calls_what_it_has_interrupted_does_not_wait() -> None:
    parser = TraceParser()
    piece = event_line(1, "mm_page_free", 0, 18).encode() * 100_000
    told: list[str] = []

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            told.append(str(parser.events))
        except RuntimeError as error:
            told.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        while not told:
            parser.feed(piece)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # Told within a call or, as may be, between two; the parser goes on.
    assert told[0].isdigit() or "under way" in told[0]
    assert parser.events % 100_000 == 0


def test_memory_that_runs_out_while_reading_is_an_error() -> None:
    program = (
        "import resource, sys\n"
        "from potad._core import TraceParser\n"
        "parser = TraceParser()\n"
        "line = b'x-1 [0] 1.0: mm_page_alloc: page=1 pfn=%d order=0 migratetype=0\\n'\n"
        "pieces = [b''.join(line % (n * 64) for n in range(at, at + 1000))\n"
        "          for at in range(0, 100_000, 1000)]\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20),) * 2)\n"
        "try:\n"
        "    for piece in pieces: parser.feed(piece)\n"
        "except MemoryError as error:\n"
        "    print('MemoryError', error)\n"
        "try: parser.finish()\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("MemoryError the system refused memory")
    assert "make a new one" in second


def test_last_line_without_an_end(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, event_line(1, "mm_page_alloc", 64, 3).rstrip("\n")))
    assert (trace.events, trace.peak_bytes) == (1, 8 * 4096)


def test_lost_events_are_counted(tmp_path: Path) -> None:
    text = small_trace(4) + "CPU:1 [LOST 12 EVENTS]\n" + event_line(99, "mm_page_free", 1, 0)
    assert read_trace(written(tmp_path, text)).dropped == 12


@pytest.mark.parametrize("form", [None, *sorted(COMPRESS)])
def test_every_form_gives_the_same_trace(tmp_path: Path, form: str | None) -> None:
    text = small_trace().encode()
    plain = summarise("x", read_trace(written(tmp_path, text)))
    packed = text if form is None else COMPRESS[form](text)
    assert summarise("x", read_trace(written(tmp_path, packed))) == plain


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"hello\nworld\n", "no page event"),
        (os.urandom(200) + b"\0", "binary data"),
        (COMPRESS["xz"](b""), "empty once decompressed"),
        (COMPRESS["gzip"](bytes(100)), "binary data"),
        (COMPRESS["gzip"](b"hello\n"), "no page event"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, content: bytes, said: str) -> None:
    name = written(tmp_path, content)
    with pytest.raises(TraceError) as caught:
        read_trace(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert said in str(caught.value)


def test_progress_counts_compressed_bytes(tmp_path: Path) -> None:
    name = written(tmp_path, COMPRESS["xz"](small_trace(30_000).encode()))
    seen: list[tuple[int, int | None]] = []
    read_trace(name, lambda done, total: seen.append((done, total)))
    size = os.path.getsize(name)
    assert {total for _, total in seen} == {size}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == size


def test_standard_input(tmp_path: Path) -> None:
    program = (
        "from potad.trace import read_trace\n"
        "seen = []\n"
        "trace = read_trace('-', lambda done, total: seen.append(total))\n"
        "print(trace.events, set(seen))\n"
    )
    data = COMPRESS["gzip"](small_trace(100).encode())
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, timeout=60, check=True
    )
    assert done.stdout.split() == [b"152", b"{None}"]


def test_bundled_trace() -> None:
    trace = read_trace(str(BUNDLED_TRACE))
    assert trace.events == trace.allocations + trace.frees == 230_812
    assert (trace.malformed, trace.dropped) == (0, 0)
