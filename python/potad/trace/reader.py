"""From a file to a parsed trace.

A *trace* is the kernel's own record of page traffic in text: one line for each
`mm_page_alloc` and `mm_page_free`. The three spellings understood (ftrace, `perf script`,
`trace-cmd report`) and the lines passed over are the parser's affair, which is Rust; here
pieces of text are fetched ahead of it and its findings get the file's name.
"""

from __future__ import annotations

from collections.abc import Callable

from potad._core import Trace, TraceParser
from potad.trace.errors import TraceError
from potad.trace.source import Source, read_ahead

Progress = Callable[[int, int | None], None]
"""Called with the input's bytes read so far, and of how many, None where unknown."""


def read_trace(name: str, progress: Progress | None = None) -> Trace:
    """Reads and parses a trace.

    Arguments: `name`, a path or `-` for standard input; `progress`, called after each piece.

    Raises `TraceError` naming the file if it cannot be read to its end or is no trace, and
    `MemoryError` where memory runs out. A line that is a page event but malformed is counted in
    the result and passed over.

    >>> read_trace("missing.ftrace")
    Traceback (most recent call last):
        ...
    potad.trace.errors.TraceError: missing.ftrace: there is no such file
    """
    with Source(name) as source:
        parser = TraceParser()
        first = True
        for piece in read_ahead(source.pieces):
            if first and b"\0" in piece:
                raise TraceError(f"{source.name}: binary data, not a trace in text form")
            first = False
            try:
                parser.feed(piece)
            except ValueError as error:
                raise TraceError(f"{source.name}: {error}") from error
            if progress is not None:
                progress(source.bytes_read, source.size_bytes)
        if first:
            raise TraceError(f"{source.name}: the file is empty once decompressed")
        try:
            return parser.finish()
        except ValueError as error:
            raise TraceError(f"{source.name}: {error}") from error
