"""A space with a file behind it: what leaves memory goes there, and comes back from there.

| file | what |
|---|---|
| `swapfile.py` | `SwapFile`: what a user sees of it |
| `store.py` | what is where, and in which order things become good |
| `table.py` | which slots there are, on disk, so that they outlive the process |
| `holes.py` | what is free given back to the file system, in batches |
| `shrinking.py` | slots moved out of the file's tail |
| `gate.py` | many calls at once, or one alone |
| `file.py` | whole reads and writes, and every call to the system |
"""

from potad.swap.swapfile import SwapFile

__all__ = ["SwapFile"]
