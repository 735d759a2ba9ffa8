"""The examples do what they say."""

from __future__ import annotations

import runpy
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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


def test_the_key_value_cache_moves_what_nobody_reads() -> None:
    module = example("kv_cache.py")
    block, tokens, width = module["BLOCK"], module["TOKENS"], module["WIDTH"]
    cache = module["Cache"](32 * block)

    def content(value: int, blocks: int = 1) -> npt.NDArray[np.float16]:
        return np.full((blocks * tokens, width), value, np.float16)

    for value in range(4):
        for sequence in range(8):
            cache.append(sequence, content(10 * sequence + value))
    for sequence in (1, 3, 5, 7):
        cache.evict(sequence)
    before = {it: [buffer.address for buffer in cache.sequences[it]] for it in (0, 2, 4, 6)}
    with cache.reading(2) as blocks:
        cache.prefill(100, content(77, blocks=7))
        assert [buffer.address for buffer in cache.sequences[2]] == before[2]
        assert [block[3, 5] for block in blocks] == [20, 21, 22, 23]
        del blocks
    moved = [it for it in (0, 4, 6) if before[it] != [b.address for b in cache.sequences[it]]]
    assert moved
    for sequence in (0, 2, 4, 6):
        with cache.reading(sequence) as blocks:
            values = [np.unique(block).tolist() for block in blocks]
            assert values == [[10 * sequence + value] for value in range(4)]
            del blocks
    with cache.reading(100) as blocks:
        assert all((block == 77).all() for block in blocks)
        del blocks
    # Full, the sequence that was used longest ago goes.
    for value in range(20):
        cache.append(200, content(value))
    assert cache.evicted[:5] == [1, 3, 5, 7, 0]
    cache.arena.space.check()
