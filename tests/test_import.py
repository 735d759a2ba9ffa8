"""What `import potad` brings, and what comes when it is first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import potad

LATE = ["potad.monitor", "potad.pool", "potad.swap", "potad.trace", "potad.report", "potad.cli"]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_program_that_only_allocates_imports_nothing_else() -> None:
    loaded = run(
        "import sys, potad; potad.Space(1 << 20).alloc(1); potad.Arena(1 << 20).alloc(1);"
        "print(*[name for name in sys.modules if name.startswith('potad.')])"
    )
    assert not set(LATE) & set(loaded.split()), loaded


@pytest.mark.parametrize("name", potad.__all__)
def test_every_name_is_there(name: str) -> None:
    assert name in dir(potad)
    assert getattr(potad, name) is not None
    # Also first of all, in a star import and in `from potad import`.
    if name in ("SwapFile", "Pool", "serve"):
        run(f"from potad import {name}; import potad; assert potad.{name} is {name}")


@pytest.mark.parametrize("module", ["monitor", "pool", "swap", "trace"])
def test_modules_are_attributes_of_the_package(module: str) -> None:
    run(f"import potad; assert potad.{module}.__name__ == 'potad.{module}'")


def test_all_names_at_once() -> None:
    run("from potad import *; Pool, SwapFile, serve, Space")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'potad' has no attribute 'Spaze'"):
        potad.Spaze  # noqa: B018
