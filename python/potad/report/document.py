"""The report as JSON: a list with one object for each trace, keys as in `potad.trace.result`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from potad.trace.result import Report


def render(reports: Sequence[Report]) -> str:
    """All traces' reports as one JSON text ending in a line end."""
    return dumps(reports)


def dumps(data: Any) -> str:
    """JSON in one line, ending in a line end, of printable ASCII: it may go to a terminal."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")) + "\n"
