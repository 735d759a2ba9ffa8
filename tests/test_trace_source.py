"""Opening, recognising and decompressing a trace's bytes."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_samples import COMPRESS, small_trace

from potad.trace import compression
from potad.trace.errors import TraceError
from potad.trace.source import AHEAD_PIECES, Source, check_readable, read_ahead

TEXT = small_trace().encode()
FORMS = sorted(COMPRESS)


def text_of(path: Path) -> bytes:
    with Source(str(path)) as source:
        return b"".join(source.pieces())


def error_of(path: Path | str) -> str:
    with pytest.raises(TraceError) as caught, Source(str(path)) as source:
        b"".join(source.pieces())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_form_is_recognised_whatever_the_name(tmp_path: Path, form: str) -> None:
    file = tmp_path / "trace.txt"
    file.write_bytes(COMPRESS[form](TEXT))
    with Source(str(file)) as source:
        assert source.form is not None
        assert source.form.name == form
        assert b"".join(source.pieces()) == TEXT
        assert source.bytes_read == source.size_bytes == file.stat().st_size


def test_plain_text_under_a_compressed_name(tmp_path: Path) -> None:
    file = tmp_path / "trace.ftrace.xz"
    file.write_bytes(TEXT)
    assert text_of(file) == TEXT


@pytest.mark.parametrize("form", FORMS)
def test_concatenated_streams_are_joined(tmp_path: Path, form: str) -> None:
    file = tmp_path / "trace"
    parts = [TEXT[:1000], b"", TEXT[1000:1001], TEXT[1001:]]
    file.write_bytes(b"".join(COMPRESS[form](part) for part in parts))
    assert text_of(file) == TEXT


@pytest.mark.parametrize("form", FORMS)
def test_zero_padding_between_and_after_streams(tmp_path: Path, form: str) -> None:
    file = tmp_path / "trace"
    file.write_bytes(
        COMPRESS[form](TEXT[:99]) + bytes(8) + COMPRESS[form](TEXT[99:]) + bytes(1 << 20)
    )
    assert text_of(file) == TEXT


@pytest.mark.parametrize("form", FORMS)
def test_garbage_after_the_last_stream_is_damage(tmp_path: Path, form: str) -> None:
    file = tmp_path / "trace"
    file.write_bytes(COMPRESS[form](TEXT) + b"this is no stream")
    message = error_of(file)
    assert message.startswith(f"{file}: damaged {form} data")
    assert f"{len(TEXT):,} bytes of text" in message


@pytest.mark.parametrize("form", FORMS)
def test_truncated_at_any_place(tmp_path: Path, form: str) -> None:
    file = tmp_path / "trace"
    whole = COMPRESS[form](TEXT)
    for length in {8, 100, len(whole) // 2, len(whole) - 5, len(whole) - 1}:
        file.write_bytes(whole[:length])
        message = error_of(file)
        assert f"the {form} data is cut off" in message
        assert f"{length:,} of {length:,} bytes were read" in message


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_never_pass_unnoticed(tmp_path: Path, form: str) -> None:
    file = tmp_path / "trace"
    # zstd has no checksum unless asked for; the others always have one.
    if form == "zstd":
        parameter = compression._zstd().CompressionParameter
        whole = bytearray(compression._zstd().compress(TEXT, options={parameter.checksum_flag: 1}))
    else:
        whole = bytearray(COMPRESS[form](TEXT))
    seed = 20_240_611
    print("seed", seed)
    source = random.Random(seed)
    for _ in range(40):
        # Flags and times in the first bytes may change without changing the text.
        place = source.randrange(20, len(whole) - 16)
        changed = whole.copy()
        changed[place] ^= 1 << source.randrange(8)
        file.write_bytes(changed)
        assert f"{form} data" in error_of(file)


@pytest.mark.parametrize("form", FORMS)
def test_pieces_stay_small_whatever_the_ratio(tmp_path: Path, form: str) -> None:
    file = tmp_path / "zeros"
    file.write_bytes(COMPRESS[form](bytes(20 << 20)))
    assert file.stat().st_size < 1 << 20
    with Source(str(file)) as source:
        sizes = [len(piece) for piece in source.pieces()]
    assert sum(sizes) == 20 << 20
    assert max(sizes) <= compression.PIECE_BYTES


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path}: is a directory, not a trace"
    assert error_of(tmp_path / "no").endswith("no: there is no such file")
    assert "null" in error_of("a\0b")
    empty = tmp_path / "empty"
    empty.touch()
    assert error_of(empty) == f"{empty}: the file is empty"


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PERFILE2" + bytes(100), "perf script"),
        (b"\x17\x08\x44tracing6" + bytes(100), "trace-cmd report"),
        (b"BZh91AY", "bzip2"),
        (b"PK\x03\x04", "zip archive"),
    ],
)
def test_recordings_in_other_formats_are_named(tmp_path: Path, start: bytes, said: str) -> None:
    file = tmp_path / "trace.dat"
    file.write_bytes(start)
    assert said in error_of(file)


def test_names_with_any_bytes_can_be_shown(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe\n\x1b[2Jna\xc3\xafve")
    message = error_of(name)
    assert message.isprintable()
    assert message.startswith(f"{tmp_path}/\ufffd\ufffd\\n\\x1b[2Jnaïve: ")


def test_check_readable_does_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_readable(str(pipe))  # would block if it opened it
    check_readable("-")
    with pytest.raises(TraceError, match="is a directory"):
        check_readable(str(tmp_path))
    with pytest.raises(TraceError, match="no such file"):
        check_readable(str(tmp_path / "no"))


@pytest.mark.parametrize("form", [None, *FORMS])
def test_a_pipe_that_drips(tmp_path: Path, form: str | None) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = TEXT if form is None else COMPRESS[form](TEXT)

    def drip() -> None:
        with open(pipe, "wb", buffering=0) as end:
            for byte in range(12):  # the magic bytes come one at a time
                end.write(data[byte : byte + 1])
                time.sleep(0.001)
            end.write(data[12:])

    writer = threading.Thread(target=drip)
    writer.start()
    with Source(str(pipe)) as source:
        assert source.size_bytes is None
        assert b"".join(read_ahead(source.pieces)) == TEXT
    writer.join()


def test_files_of_proc_have_no_size_but_contents() -> None:
    with Source("/proc/self/mounts") as source:
        assert source.size_bytes is None
        assert b"".join(source.pieces())


def test_missing_package_for_zstd_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'backports'", name="backports")

    file = tmp_path / "trace"
    file.write_bytes(COMPRESS["zstd"](TEXT))
    monkeypatch.setattr(compression, "_zstd", absent)
    assert error_of(file) == (
        f"{file}: zstd needs the Python package backports: pip install 'potad[cli]'"
    )


def test_read_ahead_raises_after_the_pieces_before() -> None:
    def make() -> Generator[bytes, None, None]:
        yield b"one"
        yield b"two"
        raise TraceError("broken")

    pieces = read_ahead(make)
    assert next(pieces) == b"one"
    assert next(pieces) == b"two"
    with pytest.raises(TraceError, match="broken"):
        next(pieces)


def test_read_ahead_is_bounded_and_stops_when_left() -> None:
    made = 0
    closed = threading.Event()

    def make() -> Generator[bytes, None, None]:
        nonlocal made
        try:
            while True:
                made += 1
                yield b"x"
        finally:
            closed.set()

    pieces = read_ahead(make)
    assert next(pieces) == b"x"
    time.sleep(0.2)
    assert made <= AHEAD_PIECES + 3
    pieces.close()  # type: ignore[attr-defined]
    assert closed.wait(5)


@given(
    st.binary(max_size=3000),
    st.lists(st.integers(0, 3000), max_size=3),
    st.integers(1, 700),
    st.sampled_from(compression.FORMS),
)
def test_any_bytes_in_any_cuts(
    data: bytes, cuts: list[int], step: int, form: compression.Form
) -> None:
    """Streams cut anywhere, fed in steps of any length, give back what went in."""
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    file = io.BytesIO()
    for start, end in pairwise(bounds):
        writer = compression.Writer(form, file.write)
        writer.write(data[start:end])
        writer.finish()
    packed = file.getvalue()
    steps = [packed[n : n + step] for n in range(0, len(packed), step)]
    assert b"".join(compression.decompress(form, steps)) == data
    with pytest.raises(compression.CompressionError):
        list(compression.decompress(form, [packed[:-1]]))
