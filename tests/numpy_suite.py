"""NumPy's own tests with an arena as NumPy's allocator: `make test-numpy`, as long as they take.

Runs them without and with, each in a process of its own, and compares test by test: what passes
without must pass with.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

MODULES = [
    f"numpy._core.tests.{name}" for name in ("test_multiarray", "test_indexing", "test_numeric")
]

ARENA_BYTES = 1 << 40
"""Some tests ask for arrays of many gigabytes, and touch little of them."""


def pytest_configure() -> None:
    """As a plugin of pytest: from here on arrays live in an arena."""
    import potad

    arena = potad.Arena(ARENA_BYTES, granule=64)
    arena.numpy().__enter__()


def pytest_unconfigure() -> None:
    """Sees to it that arrays did live in the arena, and that it is whole."""
    import numpy as np

    array = np.arange(1000)
    name = np._core.multiarray.get_handler_name(array)  # type: ignore[attr-defined]
    if name != "potad":
        raise SystemExit(f"NumPy allocates by {name!r}")


def outcomes(plugins: list[str]) -> dict[str, str]:
    """What became of each test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Not with this project's settings: warnings are NumPy's own matter.
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            str(settings),
            "-p",
            "no:cacheprovider",
        ]
        command += ["--rootdir", folder, f"--junitxml={report}", *plugins, "--pyargs", *MODULES]
        done = subprocess.run(command, check=False, cwd=Path(__file__).parent)
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with {done.returncode}")
        tests = ElementTree.parse(report).iter("testcase")
        return {f"{it.get('classname')}::{it.get('name')}": outcome(it) for it in tests}


def outcome(test: ElementTree.Element) -> str:
    children = {child.tag for child in test}
    return next((tag for tag in ("error", "failure", "skipped") if tag in children), "passed")


def main() -> None:
    without, with_arena = outcomes([]), outcomes(["-p", "numpy_suite"])
    for name, found in (("without", without), ("with an arena", with_arena)):
        print(f"{name}: {dict(Counter(found.values()))}")
    lost = sorted(
        name for name, found in without.items() if found == "passed" != with_arena.get(name)
    )
    for name in lost:
        print(f"passes without an arena only: {name}: {with_arena.get(name)}")
    if not without or lost:
        raise SystemExit(1)
    print("the same passes as without")


if __name__ == "__main__":
    main()
