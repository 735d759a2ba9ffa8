"""Files a command writes: refused before the work, in place only when whole.

An output is written to a temporary file beside its place, opened when the command starts, so
that a place that cannot be written is known before minutes of work; `commit` renames it into
place, over what was there. Leaving without that removes it and leaves the old file as it was.
A device or a pipe has nothing to protect and is written directly.
"""

from __future__ import annotations

import os
import secrets
import stat
from types import TracebackType

import click


class OutputFile:
    """A file to be written; a context manager."""

    def __init__(self, path: str) -> None:
        """Opens the temporary file; raises `click.UsageError` if `path` cannot be written."""
        self.path = path
        # What a symbolic link points to is replaced, not the link.
        self._place = os.path.realpath(path)
        self._temporary: str | None = None
        try:
            self._file = os.fdopen(self._open(), "wb")
        except OSError as error:
            raise click.UsageError(
                f"cannot write {click.format_filename(path)}: {error.strerror}"
            ) from error

    def _open(self) -> int:
        try:
            mode = os.stat(self._place).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and (not stat.S_ISREG(mode) or not os.access(self._place, os.W_OK)):
            # A device, a pipe; or a directory or a file we may not write, which fails here.
            return os.open(self._place, os.O_WRONLY | os.O_CLOEXEC)
        folder, name = os.path.split(self._place)
        temporary = os.path.join(folder, f".{name[:200]}.{secrets.token_hex(4)}.part")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._temporary = temporary
        if mode is not None:
            os.fchmod(file, stat.S_IMODE(mode))
        return file

    def same_file(self, other: str) -> bool:
        """Whether `other` names the file this will become."""
        return os.path.realpath(other) == self._place

    def write(self, data: bytes) -> None:
        """Appends `data`."""
        self._file.write(data)

    def commit(self) -> None:
        """Puts the file, now whole, into its place."""
        self._file.flush()
        if self._temporary is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._place)
            self._temporary = None
        else:
            self._file.close()

    def discard(self) -> None:
        """Forgets what was written; after `commit` there is nothing to forget."""
        try:
            self._file.close()
        finally:
            if self._temporary is not None:
                os.unlink(self._temporary)
                self._temporary = None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()
