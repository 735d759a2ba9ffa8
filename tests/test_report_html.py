"""The page: whole, safe and self-contained, whatever the report's names and numbers."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from replay_samples import sample_relocation, sample_report, sample_result

from potad.report import charts, html
from potad.report.table import runs_section, sections

HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;$\\frac{1}{0}$"

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that elements are nested and closed, and collects what there is."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset"):
                self.links.append(value or "")
            assert not name.startswith("on"), f"{tag} {name}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def text() -> str:
    return html.render([sample_report("first.ftrace"), sample_report(HOSTILE)])


def test_the_page_is_well_formed_and_says_everything(text: str) -> None:
    page = Page(text)
    assert page.tags.count("svg") == 2 * 5
    assert page.tags.count("img") == 2 * 3 * 2
    words = " ".join(page.text.split())
    for section in sections(sample_report()):
        for row in section.rows:
            assert row.label in words
            assert row.meaning in words
            for cell in row.cells:
                assert cell.value in words


def test_runs_are_in_a_table_and_a_figure() -> None:
    report = sample_report(relocation=sample_relocation())
    page = Page(html.render([report, report]))
    assert page.tags.count("svg") == 2 * 6
    assert page.tags.count("table") == 2 * 2
    assert len(page.ids) == len(set(page.ids))
    words = " ".join(page.text.split())
    section = runs_section(report)
    assert section is not None
    for row in section.rows:
        assert row.label in words
        assert row.meaning in words
        for cell in row.cells:
            assert cell.value in words
    assert "runs granted" in words
    assert "moved for them" in words


def test_curves_of_runs_have_the_colours_of_the_legend() -> None:
    relocation = sample_relocation()
    svg = charts.relocation(relocation, "r")
    ElementTree.fromstring(svg)
    assert svg.count("stroke: var(--series-0)") == svg.count("stroke: var(--series-1)") == 2
    # Nothing granted and nothing moved has a scale all the same.
    for result in relocation:
        result["curves"]["granted"] = result["curves"]["bytes_moved"] = [0] * 40
    ElementTree.fromstring(charts.relocation(relocation, "r"))


def test_nothing_is_fetched_and_nothing_runs(text: str) -> None:
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    for link in page.links:
        assert link.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text
    # Names of XML namespaces are no addresses.
    without = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?:", without)
    for address in re.findall(r"url\(([^)]*)", without):
        assert address.startswith("#")


def test_identifiers_are_unique_and_references_resolve(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    used = {link[1:] for link in page.links if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert used
    assert used <= set(page.ids)


def test_names_are_shown_literally(text: str) -> None:
    page = Page(text)
    assert page.text.count(HOSTILE) >= 2  # title, contents or heading
    title = Page(html.render([sample_report(allocators=[sample_result("x", HOSTILE)])]))
    assert HOSTILE in title.text
    assert "script" not in title.tags


def test_ratios_are_explained_where_there_are_any(text: str) -> None:
    assert "ratio to the Linux buddy" in text
    alone = sample_report(allocators=[sample_result("potad", "potad")])
    assert "ratio to the Linux buddy" not in html.render([alone])


def test_figures_are_valid_svg_with_text_and_page_colours() -> None:
    results = sample_report()["allocators"]
    for number, draw in enumerate(
        (charts.memory, charts.largest_free, charts.unusable, charts.runs, charts.free_blocks)
    ):
        svg = draw(results, f"f{number}")
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib
        texts = [node for node in root.iter() if node.tag.endswith("}text")]
        assert texts
        assert "var(--muted)" in svg
        # Every colour is the page's.
        assert not re.findall(r"#0102\w\w", svg)
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) <= {"#000000"}
    assert all(f"var(--series-{n})" in charts.runs(results, "x") for n in range(3))


def test_equal_curves_are_drawn_once_in_ink() -> None:
    results = sample_report()["allocators"]
    svg = charts.memory(results, "m")
    assert "var(--ink)" in svg
    assert "var(--series-" not in svg
    results[1]["curves"]["live_bytes"] = [0, *results[1]["curves"]["live_bytes"][1:-1], 5]
    assert "var(--series-1)" in charts.memory(results, "m")


@pytest.mark.parametrize(
    "changes",
    [
        {"free_blocks": {}, "largest_free_bytes": 0},
        {"free_blocks": {str(1 << order): 1 for order in range(12, 50)}},
        {"memory_bytes": 1 << 50},
        {"memory_bytes": 4096},
    ],
)
def test_extreme_figures_are_drawn(changes: dict[str, object]) -> None:
    Page(html.render([sample_report(allocators=[sample_result("potad", "p", **changes)])]))


def test_two_samples_at_the_same_time_are_drawn() -> None:
    result = sample_result("potad", "potad")
    for curve in result["curves"].values():
        del curve[2:]  # type: ignore[attr-defined]
    result["curves"]["seconds"] = [5.0, 5.0]
    result["curves"]["largest_free_bytes"] = [0, 0]
    page = Page(html.render([sample_report(allocators=[result])]))
    assert "events" in page.text  # the axis, as the clock is of no use


def test_address_map_is_a_pixel_a_cell() -> None:
    result = sample_result("potad", "potad")
    url = charts.address_map(result, result["map"]["at_peak"])
    file = io.BytesIO(base64.b64decode(url.partition(",")[2]))
    picture = matplotlib.image.imread(file, format="png")
    assert picture.shape == (2, 256, 4)
    alpha = picture[:, :, 3].ravel()
    assert np.allclose(alpha[:300] * 255, result["map"]["at_peak"], atol=0.01)
    assert not alpha[300:].any()


def test_what_is_not_movable_has_a_colour_of_its_own() -> None:
    result = sample_result("potad", "potad")
    used = result["map"]["at_peak"]
    cells = result["map"]
    cells["unmovable_at_peak"] = cells["unmovable_at_end"] = [value // 2 for value in used]
    cells["unmovable_at_peak"][299] = used[299]
    url = charts.address_map(result, used, cells["unmovable_at_peak"])
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    last = picture.reshape(-1, 4)[299]
    assert np.allclose(last[:3] * 255, charts.UNMOVABLE_COLOUR, atol=1)
    page = html.render([sample_report(allocators=[result])])
    assert "cannot be moved" in page
    assert "cannot be moved" not in html.render([sample_report()])


def test_drawing_leaves_global_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    charts.memory(sample_report()["allocators"], "m")
    assert dict(matplotlib.rcParams) == before


def test_the_same_report_is_the_same_page(text: str) -> None:
    assert html.render([sample_report("first.ftrace"), sample_report(HOSTILE)]) == text
