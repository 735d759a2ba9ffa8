"""The screen of a running pool, arena or space: rates, widths, texts, and figures of any size."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re
from typing import Any

import pytest
from pool_samples import random_stats, stats, usage
from rich.console import Console

import potad
from potad.monitor import Snapshot, SpaceFigures, SpaceUsage
from potad.monitor.view import Viewer
from potad.pool.stats import PoolStats
from potad.report import top
from potad.report.rates import Rates

SPACE = potad.Space(1 << 30)
for order in range(3):
    SPACE.alloc(4096 << order, owner=f"owner {order}")


class Pool:
    def __init__(self, figures: PoolStats) -> None:
        self.figures = figures

    def stats(self) -> PoolStats:
        return self.figures


def of_pool(figures: PoolStats | None = None, **changes: Any) -> Snapshot:
    seen = Viewer("pool", "kv cache").look(Pool(figures or stats()))
    return dataclasses.replace(seen, **{"clock_s": 100.0, "program": "serve.py", **changes})


def of_space(**changes: Any) -> Snapshot:
    seen = Viewer("space", None).look(SPACE)
    return dataclasses.replace(seen, **{"clock_s": 100.0, "program": "/usr/bin/run.py", **changes})


def shown(what: Any, width: int = 80, **options: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=width, **options).print(what)
    return file.getvalue()


def cells(text: str, label: str) -> list[str]:
    """The columns of the first line that has this label, from there on."""
    line = next(line for line in text.splitlines() if label in line)
    return re.split(r"  +", line[line.index(label) :].strip())


def test_a_pool_without_anything_before() -> None:
    text = shown(top.render(of_pool()))
    assert re.match(r"pool kv cache of process \d+, serve.py  +\d\d:\d\d:\d\d\n", text)
    assert cells(text, "memory")[-2:] == ["62 MiB of 64 MiB", "96.9 %"]
    assert cells(text, "swap")[-2:] == ["96 MiB of 256 MiB", "37.5 %"]
    assert cells(text, "hit ratio")[:3] == ["hit ratio", "-", "80.0 %"]
    assert cells(text, "faults")[:3] == ["faults", "-", "250"]
    assert cells(text, "tensor") == ["tensor", "'cache'", "40", "80 MiB", "50 MiB", "2",
                                     "90.0 %", "-"]  # fmt: skip


def test_rates_of_a_pool() -> None:
    after = stats(
        hits=1900,
        faults=350,
        bytes_in=270 << 20,
        rows=(usage(faults=107), usage("same"), usage("same"), usage("new")),
    )
    before = of_pool(stats(rows=(usage(), usage("same"), usage("same"))))
    text = shown(top.render(of_pool(after, time=0.0), dataclasses.replace(before, clock_s=98.0)))
    assert cells(text, "hit ratio")[:3] == ["hit ratio", "90.0 %", "84.4 %"]
    assert cells(text, "hits")[:3] == ["hits", "450", "1,900"]
    assert cells(text, "faults")[:3] == ["faults", "50", "350"]
    assert cells(text, "read ")[:3] == ["read", "10 MiB", "270 MiB"]
    assert cells(text, "tensor")[-1] == "3.5"
    # One is as good as the other, and of a new one nothing is known.
    assert cells(text, "same")[-1] == "-"
    assert cells(text, "new")[-1] == "-"


@pytest.mark.parametrize(
    "before",
    [
        None,
        of_pool(pid=1),
        of_space(),
        of_pool(),
        dataclasses.replace(of_pool(), clock_s=200.0),
        dataclasses.replace(of_pool(), clock_s=99.9999),
    ],
)
def test_what_cannot_be_compared_has_no_rate(before: Snapshot | None) -> None:
    rates = Rates(of_pool(), before)
    assert (rates.pool("hits"), rates.hit_ratio(), rates.used()) == (None, None, None)


def test_a_counter_that_fell_has_no_rate() -> None:
    before = dataclasses.replace(of_pool(stats(hits=5000)), clock_s=99.0)
    rates = Rates(of_pool(), before)
    assert rates.pool("hits") is None
    assert rates.pool("faults") == 0
    assert rates.hit_ratio() is None


def test_no_pins_have_no_ratio() -> None:
    assert Rates(of_pool(), dataclasses.replace(of_pool(), clock_s=99.0)).hit_ratio() is None
    assert cells(shown(top.render(of_pool(stats(hits=0, faults=0)))), "hit ratio")[2] == "0 %"


def test_a_space() -> None:
    before = of_space()
    assert before.space is not None
    space = dataclasses.replace(before.space, used=before.space.used - 1024)
    before = dataclasses.replace(before, space=space, clock_s=98.0)
    text = shown(top.render(of_space(), before))
    assert text.startswith("space of process ")
    assert "run.py" in text
    assert "/usr/bin" not in text
    assert cells(text, "used")[-2:] == ["28 Ki of 1 Gi", "<0.1 %"]
    assert cells(text, "largest free")[-2:] == ["512 Mi of 1,024 Mi", "50.0 %"]
    assert cells(text, "change of use")[1] == "+512 a second"
    assert cells(text, "unusable for 64 Ki")[-1] == "<0.1 %"
    assert cells(text, "256 Mi ")[:2] == ["256 Mi", "1"]
    assert cells(text, "'owner 2'") == ["'owner 2'", "1", "16 Ki", "57.1 %"]
    assert "retired" not in text


def test_an_arena_is_in_bytes() -> None:
    arena = potad.Arena(1 << 30)
    text = shown(top.render(Viewer("arena", None).look(arena)))
    assert cells(text, "used")[-2:] == ["0 B of 1 GiB", "0 %"]


def test_an_empty_space() -> None:
    text = shown(top.render(Viewer("space", None).look(potad.Space(0))))
    assert cells(text, "used")[-2:] == ["0 of 0", "0 %"]


def test_an_error() -> None:
    text = shown(top.render(of_pool(pool=None, error="Corrupt: \x1b[2J")))
    assert "It could not say: Corrupt: \\x1b[2J" in text


def test_rows_that_are_not_shown_are_counted() -> None:
    text = shown(top.render(of_space(rows_left_out=1000, rows_age_s=12.34), rows_max=1))
    assert "1,002 smaller not shown, added up 12.3 s before" in text
    assert "owner 2" in text
    assert "owner 1" not in text
    assert "not shown" not in shown(top.render(of_space()))


def test_a_note_is_beside_the_time() -> None:
    assert re.search(
        r" no answer for 5 s +\d\d:", shown(top.render(of_pool(), note="no answer for 5 s"))
    )


@pytest.mark.parametrize("width", [20, 40, 79, 80, 109, 110, 200])
@pytest.mark.parametrize("colours", [None, "truecolor"])
def test_any_width(width: int, colours: Any) -> None:
    long = stats(rows=(usage("k" * 60, "☃" * 60), usage("[red]", "[/]")))
    for what in (
        top.render(of_pool(long), of_pool()),
        top.render(of_space()),
        top.render_list([(1, "/" + "x" * 90, of_pool()), (None, "/y", "no answer")]),
    ):
        text = shown(what, width, color_system=colours, force_terminal=colours is not None)
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert all(len(line) <= width for line in plain.splitlines())
    assert "[red]" in shown(top.render(of_pool(long)), 200)


def test_a_poor_character_set() -> None:
    for what in (top.render(of_pool(), of_pool()), top.render(of_space())):
        file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
        Console(file=file, width=80).print(what)
        file.seek(0)
        # The bars are of other characters then; ellipses and micros have none.
        text = file.read()
        assert "----" in text
        assert not re.search(r"\?(?! without| and|s)", text)


def test_the_list() -> None:
    text = shown(top.render_list([
        (11, "/run/11-0.sock", of_pool(pid=11)),
        (12, "/run/12-0.sock", of_space(pid=12, space=None, error="x")),
        (13, "/run/13-0.sock", "no answer in time"),
        (None, "/any", "not an answer"),
    ]), 120)  # fmt: skip
    assert cells(text, "11 ") == ["11", "pool", "kv cache", "serve.py", "62 MiB of 64 MiB",
                                  "/run/11-0.sock"]  # fmt: skip
    assert cells(text, "12 ")[1:5] == ["space", "-", "run.py", "could not say"]
    assert cells(text, "13 ")[4:] == ["no answer in time", "/run/13-0.sock"]
    assert cells(text, "not an")[0] == "not an answer"


def any_space(rng: random.Random) -> SpaceFigures:
    def whole() -> int:
        return rng.randrange((1 << rng.randrange(1, 65)) + 1)

    names = [field.name for field in dataclasses.fields(SpaceFigures) if field.type == "int"]
    values: dict[str, Any] = {name: whole() for name in names}
    return SpaceFigures(
        **values,
        free_blocks={whole(): whole() for _ in range(rng.randrange(70))},
        unusable={whole(): rng.choice([0.0, 0.5, 1.0, 2.0**64]) for _ in range(3)},
        rows=tuple(SpaceUsage("\x1b", "\ud800", whole(), whole()) for _ in range(3)),
    )


def test_whatever_is_answered_can_be_shown(rng: random.Random) -> None:
    times = [0.0, 1e-300, 1.0, 1e10, 2.0**64]
    for _ in range(60):
        two = []
        for _ in range(2):
            pool = rng.random() < 0.5
            changes: dict[str, Any] = {
                "time": rng.choice(times),
                "rows_age_s": rng.choice(times),
                "rows_left_out": rng.randrange(1 << 64),
                "name": rng.choice([None, "", "\x1b]0;x\x07", "\x9b2J\u202e\u2028", "\ud800"]),
                "program": rng.choice(["", "/", "a/b", "\udcff"]),
            }
            seen = (
                of_pool(random_stats(rng), **changes)
                if pool
                else of_space(**changes, space=any_space(rng))
            )
            two.append(dataclasses.replace(seen, clock_s=rng.choice(times)))
        assert Snapshot.from_dict(json.loads(json.dumps(two[0].to_dict()))) == two[0]
        text = shown(top.render(*two), 80) + shown(top.render_list([(1, "/x", two[0])]), 80)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]", text)
