"""From bytes to a parsed trace: what is counted, and what is said of a file that is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from replay_samples import BUNDLED_TRACE, COMPRESS, event_line, small_trace

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
