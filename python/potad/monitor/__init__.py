"""A running pool, arena or space shown to other processes of the same user, who can only look.

Terms. A *server* is a thread of the process that is looked at; it has one *target*, the pool,
arena or space that it shows. Its *socket* is a name in the file system. A *snapshot* is what a
target comes to at one moment: figures and texts, no objects. A *client* connects, is sent one
snapshot, and that is all: what a client sends is never read, so nobody can have a process do
anything but count.

| file | what |
|---|---|
| `place.py` | where sockets are, and whose |
| `view.py` | what is sent, and looking at a target |
| `server.py` | `serve`, the thread, and its end |
| `client.py` | asking, and not trusting what is answered |

Who may look. A socket can be connected to by its user alone (mode 0600), and so can the directory
it is in by default (0700). Names of kinds and owners are shown as they are: do not put secrets
there.

Limits. One client at a time is sent to, and never waited for longer than a second; there are at
most so many rows that an answer fits into what the system takes at once, so nobody is waited for
at all. Looking takes at most a tenth of the time of a thread, however many clients ask: see
`server.py`.
"""

from potad.monitor.client import BadAnswer, NotServing, running, snapshot
from potad.monitor.place import default_directory
from potad.monitor.server import Server, serve
from potad.monitor.view import Snapshot, SpaceFigures, SpaceUsage

__all__ = [
    "BadAnswer",
    "NotServing",
    "Server",
    "Snapshot",
    "SpaceFigures",
    "SpaceUsage",
    "default_directory",
    "running",
    "serve",
    "snapshot",
]
