"""The compressed forms a trace may come in, and what reads and writes each.

A *form* is known by its magic bytes when read, because a pipe has no name, and by its
file suffix when written. A compressed file is one or more *streams* (gzip says members,
zstd frames) one after the other, possibly with zero padding between them; what they hold
is joined. Anything else after a stream is damage: passing over it, as several readers do,
would turn half a recording into a whole one without a word.

Decompressors here share the interface of `lzma.LZMADecompressor`: `decompress` returns at
most so many bytes and keeps the input it did not reach, so that memory stays bounded
whatever the ratio.
"""

from __future__ import annotations

import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

# Piece of decompressed text handed on at once: large enough that handing it over costs
# nothing beside parsing it, small enough that a few in flight are nothing to hold.
PIECE_BYTES = 1 << 20

# A stream can name a dictionary of 4 GiB to be allocated before the first byte comes out.
# xz -9 uses 64 MiB.
XZ_MEMORY_MAX_BYTES = 512 << 20


class CompressionError(Exception):
    """Damaged data, or a form this Python has no package for; who knows the file adds its name."""


class Decompressor(Protocol):
    """Turns one stream back into what was compressed."""

    @property
    def eof(self) -> bool:
        """Whether the stream's end has been reached."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before more goes in."""

    @property
    def unused_data(self) -> bytes:
        """What was fed beyond the stream's end."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Takes more input and returns at most `max_length` bytes of output."""


class Compressor(Protocol):
    """Turns bytes into one stream."""

    def compress(self, data: bytes, /) -> bytes:
        """Takes more input and returns what is ready."""

    def flush(self) -> bytes:
        """Ends the stream and returns the rest of it."""


class _GzipDecompressor:
    """`zlib.decompressobj` under the interface of its two siblings."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def needs_input(self) -> bool:
        return not self._member.unconsumed_tail and not self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._member.decompress(self._member.unconsumed_tail + data, max_length)


def _zstd() -> Any:
    """The module for zstd, which is part of Python from 3.14 on."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


@dataclass(frozen=True)
class Form:
    """One way of compressing a file."""

    name: str
    magic: bytes
    suffix: str
    decompressor: Callable[[], Decompressor]
    compressor: Callable[[], Compressor]


# Levels are chosen for recording: on trace text xz at 1 takes in 370,000 events a second on
# one core where 6 takes in 40,000, for a file an eighth larger.
FORMS = (
    Form(
        "gzip",
        b"\x1f\x8b",
        ".gz",
        _GzipDecompressor,
        lambda: zlib.compressobj(level=4, wbits=31),
    ),
    Form(
        "xz",
        b"\xfd7zXZ\x00",
        ".xz",
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX_BYTES),
        lambda: lzma.LZMACompressor(lzma.FORMAT_XZ, preset=1),
    ),
    Form(
        "zstd",
        b"\x28\xb5\x2f\xfd",
        ".zst",
        lambda: _zstd().ZstdDecompressor(),
        lambda: _zstd().ZstdCompressor(level=3),
    ),
)

MAGIC_BYTES_MAX = max(len(form.magic) for form in FORMS)


def form_of_data(head: bytes) -> Form | None:
    """The form whose magic bytes `head` starts with; None for anything else."""
    return next((form for form in FORMS if head.startswith(form.magic)), None)


def form_of_name(name: str) -> Form | None:
    """The form whose suffix `name` ends in; None for a plain file."""
    return next((form for form in FORMS if name.endswith(form.suffix)), None)


def require(form: Form) -> None:
    """Raises `CompressionError` naming what to install if this Python cannot handle `form`."""
    try:
        form.compressor()
    except ModuleNotFoundError as error:
        raise CompressionError(
            f"{form.name} needs the Python package {error.name}: pip install 'potad[cli]'"
        ) from None


def decompress(form: Form, data: Iterable[bytes]) -> Iterator[bytes]:
    """What the concatenated streams in `data` hold, in pieces of at most `PIECE_BYTES`.

    Raises `CompressionError` if the data is damaged or ends inside a stream.
    """
    stream: Decompressor | None = form.decompressor()  # None: between two streams
    for piece in data:
        rest = piece
        while True:
            if stream is None:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                stream = form.decompressor()
            try:
                text = stream.decompress(rest, PIECE_BYTES)
            except Exception as error:
                # zlib.error, lzma.LZMAError and ZstdError have no common base of their own.
                raise CompressionError(f"damaged {form.name} data ({error})") from error
            if text:
                yield text
            rest = b""
            if stream.eof:
                rest, stream = stream.unused_data, None
            elif stream.needs_input:
                break
    if stream is not None:
        raise CompressionError(f"the {form.name} data is cut off before its end")


class Writer:
    """Writes one stream, or plain text where `form` is None, through `write`."""

    def __init__(self, form: Form | None, write: Callable[[bytes], object]) -> None:
        self._compressor = None if form is None else form.compressor()
        self._write = write

    def write(self, data: bytes) -> None:
        """Appends `data`."""
        self._write(data if self._compressor is None else self._compressor.compress(data))

    def finish(self) -> None:
        """Ends the stream; nothing may follow."""
        if self._compressor is not None:
            self._write(self._compressor.flush())
