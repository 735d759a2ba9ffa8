"""The table's text: units, ratios, and the same rows in the terminal."""

from __future__ import annotations

import doctest
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_samples import sample_relocation, sample_report, sample_result
from rich.console import Console

from potad.report import document, humanise, terminal
from potad.report.table import headline, remarks, runs_section, sections
from potad.trace.result import Report


def test_humanise_examples() -> None:
    failed, tried = doctest.testmod(humanise)
    assert tried > 0
    assert not failed


@given(st.integers(1, (1 << 64) - 1))
def test_size_keeps_its_magnitude(size_bytes: int) -> None:
    number, unit = humanise.size(size_bytes).split(" ")
    scale = 1024 ** (["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit))
    assert float(number.replace(",", "")) * scale == pytest.approx(size_bytes, rel=0.006)


@given(st.floats(0, 1))
def test_share_is_all_or_nothing_only_when_it_is(share: float) -> None:
    text = humanise.share(share)
    assert (text == "0 %") == (share == 0)
    assert (text == "100 %") == (share == 1)


def rows_of(report: Report) -> dict[str, list[str]]:
    return {
        row.label: [f"{cell.value} {cell.ratio}".strip() for cell in row.cells]
        for section in sections(report)
        for row in section.rows
    }


def test_rows() -> None:
    rows = rows_of(sample_report())
    assert rows["Events"] == ["1,200"] * 3
    assert rows["Failures"] == ["0", "3 (0.4 %)", "3 (0.4 %)"]
    assert rows["Live at the peak"] == ["60 MiB"] * 3
    assert rows["Time an operation"] == ["41.5 ns 1.00×", "41.5 ns", "41.5 ns 1.00×"]
    assert rows["Metadata"] == ["12.1 KiB 0.012×", "1 MiB", "2 MiB 2.00×"]
    assert rows["Cache lines, mean"][1] == "2.50"
    assert rows["Unusable for 64 KiB"][0] == "1.5 %"
    assert rows["Unusable for 32 MiB"][0] == "100 %"
    assert rows["8 MiB run possible"][0] == "75.0 %"
    assert "0.4 %" not in headline(sample_report())


def test_rows_of_runs() -> None:
    section = runs_section(sample_report(relocation=sample_relocation()))
    assert section is not None
    assert section.heading == "Runs of 8 MiB at multiples of 1 MiB"
    rows = {row.label: [cell.value for cell in row.cells] for row in section.rows}
    assert rows == {
        "Granted": ["76 (95.0 %)", "39 (48.8 %)"],
        "Missed": ["0", "2"],
        "Moved": ["78 MiB"] * 2,
        "… pages": ["19,968"] * 2,
        "… a run granted": ["1.03 MiB", "2 MiB"],
        "… in vain": ["5 MiB"] * 2,
        "Time a request": ["41.5 µs"] * 2,
        "… slowest": ["1.25 ms"] * 2,
        "Allocations refused": ["6 (0.8 %)"] * 2,
        "Reserve": ["none", "7 MiB"],
        "… free in it": ["0 B", "3.5 MiB"],
        "… refused beside it": ["0", "4"],
    }
    meaning = section.rows[0].meaning
    assert "80 wanted, 20 every 300 steps" in meaning
    assert "5.0 % of movable allocations pinned" in meaning


def test_runs_that_were_not_asked_for_or_not_granted() -> None:
    assert runs_section(sample_report()) is None
    relocation = sample_relocation()
    relocation[0]["wanted"] = relocation[0]["granted"] = relocation[1]["granted"] = 0
    section = runs_section(sample_report(relocation=relocation))
    assert section is not None
    rows = {row.label: [cell.value for cell in row.cells] for row in section.rows}
    assert rows["Granted"] == ["not asked", "0 (0 %)"]
    assert rows["… a run granted"] == ["–", "–"]


def test_terminal_shows_runs_in_80_columns() -> None:
    report = sample_report(relocation=sample_relocation())
    text = printed(report, 80)
    assert max(map(len, text.splitlines())) <= 80
    section = runs_section(report)
    assert section is not None
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for row in section.rows:
        assert " ".join([row.label, *(cell.value for cell in row.cells)]) in lines
    assert section.heading not in printed(sample_report(), 80)


def test_without_the_baseline_there_are_no_ratios() -> None:
    report = sample_report(allocators=[sample_result("potad", "potad")])
    assert not any("×" in cell for cells in rows_of(report).values() for cell in cells)


def test_a_trace_too_short_to_be_probed() -> None:
    report = sample_report()
    for result in report["allocators"]:
        result["runs"] = {**result["runs"], "probes": 0, "possible": 0}
        result["allocations"] = result["failures"] = 0
    assert rows_of(report)["8 MiB run possible"] == ["not probed"] * 3


def test_remarks_say_what_the_trace_lacks() -> None:
    said = " ".join(remarks(sample_report()))
    for number in (
        "17 frees",
        "6 allocations",
        "5 frees",
        "1 pages",
        "lost 4 events",
        "2 malformed",
    ):
        assert number in said
    report = sample_report()
    for figure in (
        "failed_allocations",
        "frees_before_recording",
        "partial_frees",
        "lost_frees",
        "dropped",
        "malformed",
    ):
        report["trace"][figure] = 0
    assert remarks(report) == []


def printed(report: Report, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(terminal.render(report))
    return file.getvalue()


def test_terminal_shows_every_figure_in_80_columns() -> None:
    text = printed(sample_report(), 80)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    for label, cells in rows_of(sample_report()).items():
        assert any(
            line.strip().startswith(label) and all(cell in line for cell in cells)
            for line in (" ".join(line.split()) for line in lines)
        ), label


def test_terminal_figures_line_up() -> None:
    lines = printed(sample_report(), 100).splitlines()
    ends = {
        line.rindex(figure) + len(figure)
        for label, figure in (("Events", "1,200"), ("Metadata", "2 MiB"))
        for line in lines
        if line.strip().startswith(label)
    }
    assert len(ends) == 1


def test_names_are_never_markup() -> None:
    name = "[red]x[/red] [/] [link=http://a]"
    report = sample_report(name)
    report["allocators"][0]["title"] = "[bold]"
    text = printed(report, 120)
    assert name in text
    assert "[bold]" in text


def test_document_is_strict_json() -> None:
    report = sample_report("naïve \u2028.ftrace")
    text = document.render([report, report])
    assert text.endswith("]\n")
    report["allocators"][0]["runs"]["possible"] = float("nan")  # type: ignore[typeddict-item]
    with pytest.raises(ValueError, match="not JSON compliant"):
        document.render([report])
