"""The `potad` command.

`main` is the entry point and the only thing here: the command line's libraries are an extra,
so nothing that needs them may be imported before it is known that they are there.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of this process; its exit status."""
    try:
        from potad.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        print(
            f"potad: the command needs the Python package {error.name}: pip install 'potad[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:])
