"""A power-of-two allocator with descriptors, for any range of integers.

A `Space` hands out blocks (powers of two, aligned to their size) and runs (any contiguous
range) of a range of addresses: bytes of memory or of a file, slots, network prefixes. It never
touches what the addresses stand for.

Terms. Sizes, addresses and alignments are in *address units*. The *granule* is the smallest
amount handed out, a power of two. A *block* is a power of two of granules, aligned to its own
size; a *run* is any contiguous sequence of granules handed out as one. An *allocation* is a
block or a run, and its *descriptor* what is known about it: its *kind*, which may have a *record*
of any size, its *owner*, and how often it is *pinned*. A *span* is a range of addresses that
belongs to a space.

>>> import potad
>>> space = potad.Space(1 << 30)
>>> block = space.alloc(64 << 10)
>>> run = space.alloc_run(200 << 10, align=16 << 10)
>>> space.lookup(run + 5000).size
204800
>>> space.free(block)
>>> len(space)
1

The command `potad` replays recorded page traffic of Linux through a space and its peers; what is
behind it is `potad.trace` and `potad.report`. `potad top` looks at a running process that called
`potad.serve`, which is in `potad.monitor`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from potad._core import Arena, Buffer, BufferPin, Descriptor, Kind, Space, __version__
from potad.errors import Busy, Corrupt, NotAllocated, OutOfSpace, Poisoned, PotadError
from potad.failure import Failure, Outcome
from potad.relocation import Compaction, Move, Obstacle, Plan
from potad.usage import Report, Usage

if TYPE_CHECKING:
    from potad.monitor import Server, serve
    from potad.pool import Handle, Pin, Pool, PoolDict, PoolStats
    from potad.swap import SwapFile

__all__ = [
    "Arena",
    "Buffer",
    "BufferPin",
    "Busy",
    "Compaction",
    "Corrupt",
    "Descriptor",
    "Failure",
    "Handle",
    "Kind",
    "Move",
    "NotAllocated",
    "Obstacle",
    "OutOfSpace",
    "Outcome",
    "Pin",
    "Plan",
    "Poisoned",
    "Pool",
    "PoolDict",
    "PoolStats",
    "PotadError",
    "Report",
    "Server",
    "Space",
    "SwapFile",
    "Usage",
    "__version__",
    "serve",
]

# Names, and modules, that are imported when they are first used: a program that only allocates does
# not wait for them.
_LATE = {
    **dict.fromkeys(("Server", "serve"), "potad.monitor"),
    **dict.fromkeys(("Handle", "Pin", "Pool", "PoolDict", "PoolStats"), "potad.pool"),
    "SwapFile": "potad.swap",
}
_LATE_MODULES = frozenset({"monitor", "pool", "swap", "trace"})


def __getattr__(name: str) -> Any:
    if name in _LATE_MODULES:
        # The import sets the attribute.
        return import_module(f"potad.{name}")
    if name not in _LATE:
        raise AttributeError(f"module 'potad' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE, *_LATE_MODULES})
