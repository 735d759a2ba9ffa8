"""The examples do what they say."""

from __future__ import annotations

import runpy
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

import potad

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 100
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert "total" in capsys.readouterr().out


def test_the_cache_survives_failures() -> None:
    cache = example("buffer_cache.py")["Cache"](1 << 20)
    address = cache.read(7, 65536)
    cache.record(7)["dirty"] = True
    other = cache.read(8, 512)
    assert cache.space.lookup(address).kind.record.itemsize == 360
    assert cache.space.memory_failure(address + 40000) is potad.Outcome.FAILED
    assert cache.space.memory_failure(other) is potad.Outcome.RECOVERED
    assert (cache.lost, cache.buffers) == ([7], {})
    assert cache.read(8, 512) != other
    # Full, it gives up what nobody has pinned.
    pinned = cache.read(1, 65536)
    cache.space.pin(pinned)
    for block in range(100, 140):
        cache.read(block, 65536)
    assert cache.buffers[1] == pinned
    cache.space.check()


def test_the_plan_knows_whose_an_address_is() -> None:
    plan = example("prefix_plan.py")["Plan"]("192.168.0.0/24")
    assert plan.reserve("192.168.0.64/26", "b") == ip_network("192.168.0.64/26")
    assert plan.whose("192.168.0.100") == (ip_network("192.168.0.64/26"), "b")
    assert plan.whose("192.168.0.1") is None
    with pytest.raises(potad.OutOfSpace):
        plan.assign(24, "a")
    assert plan.largest() == 25
    plan.release(ip_network("192.168.0.64/26"))
    assert plan.largest() == 24
