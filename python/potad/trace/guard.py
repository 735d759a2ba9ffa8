"""The guard of a tracing instance: a process that removes it if its recorder is killed.

Run as a script, without potad, so that it is small and there at once:
`guard.py TRACEFS PATH`, with TRACEFS the number of an open directory, PATH the instance below it,
and a pipe from the recorder as standard input. The recorder writes to it when there is nothing
more to guard; however else it ends, the kernel closes the pipe then.
"""

from __future__ import annotations

import errno
import os
import sys
import time

# The kernel closes the files of a process that ends one after the other, and others may look at
# the instance for a moment; it is busy until then.
_ATTEMPTS = 100
_PAUSE_SECONDS = 0.1


def main(directory: int, path: str) -> None:
    """Waits for the recorder's end, and removes what it left."""
    os.read(0, 1)
    for _ in range(_ATTEMPTS):
        try:
            os.rmdir(path, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.EBUSY:
                time.sleep(_PAUSE_SECONDS)
                continue
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
