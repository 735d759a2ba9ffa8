"""The report as JSON: a list with one object for each trace, keys as in `potad.trace.result`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from potad.trace.result import Report


def render(reports: Sequence[Report]) -> str:
    """All traces' reports as one JSON text ending in a line end."""
    return json.dumps(reports, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
