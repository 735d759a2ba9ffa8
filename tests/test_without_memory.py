"""Where memory runs out, a call raises MemoryError and has changed nothing: `without_memory.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(which: str, **environment: str) -> None:
    command = [sys.executable, str(HERE / "without_memory.py"), which]
    done = subprocess.run(
        command,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "RUST_BACKTRACE": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="takes the place of glibc's malloc")
def test_every_request_of_the_compiled_module(tmp_path: Path) -> None:
    library = tmp_path / "failing_malloc.so"
    source = HERE / "failing_malloc.c"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True
    )
    run("rust", LD_PRELOAD=str(library))


def test_every_request_of_the_interpreter() -> None:
    pytest.importorskip("_testcapi")
    run("python")
