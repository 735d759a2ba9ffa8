"""Objects that are in memory while pinned or recently used, and in a swap file otherwise.

| file | what |
|---|---|
| `pool.py` | `Pool`: what a user sees of it |
| `handle.py` | `Handle` and `Pin`: an object, and its bytes for a while |
| `mapping.py` | `PoolDict`: texts to bytes |
| `core.py` | the state and its lock: objects come, are pinned, leave and fail |
| `object.py` | what is known about one object |
| `policy.py` | which object goes next |
| `room.py` | victims and runs: memory for an object |
| `transfer.py` | objects' bytes to the swap file and back |
| `worker.py` | both ahead of need |
| `accounts.py`, `counters.py`, `stats.py` | what is counted |
"""

from potad.pool.handle import Handle, Pin
from potad.pool.mapping import PoolDict
from potad.pool.pool import Pool
from potad.pool.stats import PoolStats

__all__ = ["Handle", "Pin", "Pool", "PoolDict", "PoolStats"]
