"""The bytes of a trace: from a file, a pipe or standard input, plain or compressed.

A *source* is an open input whose form has been recognised by its first bytes. Its text
comes in pieces, in order. Reading and decompressing run in a thread of their own, a few
pieces *ahead* of whoever parses them: the decompressors and the parser leave the
interpreter lock while they work, so the two overlap on two cores.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from queue import Full, Queue
from types import TracebackType

from potad.printable import printable
from potad.trace import compression
from potad.trace.errors import TraceError

STDIN_NAME = "-"
_STDIN = 0

# One read of the input. Progress moves by as much.
READ_BYTES = 256 << 10

# Pieces the reading thread may be ahead of the parser: it bounds memory and evens out the
# pieces' different cost.
AHEAD_PIECES = 8

# Files met where a trace in text form was meant, and how to get one from them.
_FOREIGN = (
    (b"PERFILE2", "a perf recording: pipe the output of `perf script -i FILE` in instead"),
    (
        b"\x17\x08\x44tracing",
        "a trace-cmd recording: pipe the output of `trace-cmd report -i FILE` in instead",
    ),
    (b"BZh", "bzip2 data: decompress it first"),
    (b"\x04\x22\x4d\x18", "lz4 data: decompress it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
)


def display_name(name: str) -> str:
    """`name` as it can be printed anywhere, on one line.

    A file name may hold any bytes: what is no text, or would move a terminal's cursor, is
    spelled out.
    """
    if name == STDIN_NAME:
        return "standard input"
    return printable(os.fsencode(name).decode("utf-8", "replace"))


class Source:
    """An open trace; a context manager, and `pieces()` once."""

    def __init__(self, name: str) -> None:
        """Opens `name` (`-` is standard input) and looks at its first bytes.

        Raises `TraceError` if it is missing, unreadable, a directory, empty, or of a kind
        known not to be a trace.
        """
        self.name = display_name(name)
        self.bytes_read = 0
        """Bytes taken from the input so far, before decompression."""
        self.text_bytes = 0
        """Bytes of text handed out so far."""
        try:
            # Unbuffered: a buffer's lock, held by a thread blocked on a pipe, would hang
            # the interpreter's exit.
            self._file = io.FileIO(_STDIN, closefd=False) if name == STDIN_NAME else io.FileIO(name)
            status = os.fstat(self._file.fileno())
        except (OSError, ValueError) as error:
            raise TraceError(f"{self.name}: {_reason(error)}") from error
        # Files of /proc and /sys say 0 whatever they hold.
        regular = stat.S_ISREG(status.st_mode)
        self.size_bytes = status.st_size if regular and status.st_size else None
        """Size of the input, or None where it cannot be known."""
        try:
            self._head = self._read_head()
            if not self._head:
                raise TraceError(f"{self.name}: the file is empty")
            for magic, what in _FOREIGN:
                if self._head.startswith(magic):
                    raise TraceError(f"{self.name}: {what}")
            self.form = compression.form_of_data(self._head)
            """How the input is compressed; None for plain text."""
            if self.form is not None:
                try:
                    compression.require(self.form)
                except compression.CompressionError as error:
                    raise TraceError(f"{self.name}: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; standard input stays open."""
        self._file.close()

    def _read(self) -> bytes:
        try:
            data = self._file.read(READ_BYTES)
        except OSError as error:
            raise TraceError(
                f"{self.name}: {_reason(error)} after {self.bytes_read:,} bytes"
            ) from error
        if data is None:
            raise TraceError(f"{self.name}: non-blocking input is not supported")
        self.bytes_read += len(data)
        return data

    def _read_head(self) -> bytes:
        """The first bytes, enough to recognise the form: a pipe may give them singly."""
        wanted = max(compression.MAGIC_BYTES_MAX, *(len(magic) for magic, _ in _FOREIGN))
        head = b""
        while len(head) < wanted:
            data = self._read()
            if not data:
                break
            head += data
        return head

    def _data(self) -> Iterator[bytes]:
        yield self._head
        while data := self._read():
            yield data

    def pieces(self) -> Generator[bytes, None, None]:
        """The text, decompressed, piece by piece; raises `TraceError` where it is damaged."""
        text = self._data()
        if self.form is not None:
            text = compression.decompress(self.form, text)
        try:
            for piece in text:
                self.text_bytes += len(piece)
                yield piece
        except compression.CompressionError as error:
            of_size = "" if self.size_bytes is None else f" of {self.size_bytes:,}"
            raise TraceError(
                f"{self.name}: {error}: {self.bytes_read:,}{of_size} bytes were read,"
                f" {self.text_bytes:,} bytes of text came out of them"
            ) from error


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, IsADirectoryError):
        return "is a directory, not a trace"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower() if error.errno != errno.EIO else "read error"
    return str(error)


def check_readable(name: str) -> None:
    """Raises `TraceError` if `name` is missing, a directory or unreadable, without reading it.

    For all inputs before work starts on the first: a pipe must not be opened twice.
    """
    if name == STDIN_NAME:
        return
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:
        raise TraceError(f"{display_name(name)}: {_reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise TraceError(f"{display_name(name)}: is a directory, not a trace")
    if not os.access(name, os.R_OK):
        raise TraceError(f"{display_name(name)}: permission denied")


def read_ahead(make: Callable[[], Generator[bytes, None, None]]) -> Iterator[bytes]:
    """The pieces of `make()`, produced in a thread up to `AHEAD_PIECES` ahead.

    An exception of the producer is raised here, after the pieces before it. Leaving early
    stops the thread at its next piece; it is a daemon, because a read from a pipe that
    nobody writes to cannot be called off.
    """
    ahead: Queue[bytes | BaseException | None] = Queue(AHEAD_PIECES)
    left = threading.Event()

    def hand_over(item: bytes | BaseException | None) -> bool:
        while not left.is_set():
            try:
                ahead.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            with closing(make()) as pieces:
                for piece in pieces:
                    if not hand_over(piece):
                        return
        except BaseException as error:  # raised again by the consumer
            hand_over(error)
        else:
            hand_over(None)

    thread = threading.Thread(target=produce, name="potad-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = ahead.get()
            if item is None:
                thread.join()
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
