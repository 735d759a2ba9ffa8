"""Recorded page traffic: making it, reading it, and running it through allocators.

`read_trace` gives a `Trace`; `replay` runs it through one allocator and gives a `Result`.
`replay_runs` asks for runs of contiguous memory on the way and gives a `RunsResult`.
`record` makes such traces. Nothing here prints or knows about a terminal.
"""

from potad.trace.errors import RecordError, TraceError
from potad.trace.reader import read_trace
from potad.trace.replay import PEERS, POTAD, default_memory_bytes, replay, summarise
from potad.trace.result import Report, Result, RunsResult
from potad.trace.runs import CMA, RunRequests, replay_runs

__all__ = [
    "CMA",
    "PEERS",
    "POTAD",
    "RecordError",
    "Report",
    "Result",
    "RunRequests",
    "RunsResult",
    "TraceError",
    "default_memory_bytes",
    "read_trace",
    "replay",
    "replay_runs",
    "summarise",
]
