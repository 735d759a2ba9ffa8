"""What a pickled buffer is read back as."""

from __future__ import annotations

from typing import Any


def _read(content: Any) -> Any:
    """A buffer's bytes as they come out of a pickle: a `bytearray`, or what was given for them."""
    return content
