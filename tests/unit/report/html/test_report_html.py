from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.report import sample
from tests.unit.report.sample import HOSTILE, check, estimate, result

from checkweigh.records.decision import Verdict
from checkweigh.report import view
from checkweigh.report.html import plots
from checkweigh.report.html.forest import forest
from checkweigh.report.html.page import page
from checkweigh.report.html.svg import Axis, el, spread

ALLOWED = {
    "html",
    "head",
    "meta",
    "link",
    "title",
    "style",
    "body",
    "header",
    "div",
    "h1",
    "span",
    "p",
    "b",
    "i",
    "ul",
    "li",
    "dl",
    "dt",
    "dd",
    "main",
    "section",
    "h2",
    "h3",
    "h4",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "small",
    "strong",
    "bdi",
    "details",
    "summary",
    "pre",
    "mark",
    "code",
    "abbr",
    "footer",
    "svg",
    "rect",
    "line",
    "text",
    "circle",
    "polyline",
    "polygon",
}
VOID = {"meta", "link"}


class Page(HTMLParser):
    """Checks nesting and keeps tags, attributes and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_page_has_only_our_own_elements(verdict: Verdict, hostile: bool) -> None:
    text = page(sample.decision(verdict, hostile), sample.pairs(hostile))
    found = Page(text)
    assert found.tags <= ALLOWED
    names = {name for _, name, _ in found.attributes}
    assert not {n for n in names if n.startswith("on")} | (names & {"src", "srcset", "style", "action"})
    assert [value for _, name, value in found.attributes if name == "href"] == ["data:,"]
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {v for _, name, v in found.attributes if name == "aria-labelledby"} <= set(ids)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text.replace("&#39;", "'")
    text.encode("utf-8")


def test_first_things_first() -> None:
    text = page(sample.decision(Verdict.BLOCK), sample.pairs())
    marks = [
        "BLOCK",
        "smollm2-135m-nf4",
        "got worse by +0.3347",
        "11× the margin",
        "What changed",
        "Checks",
        "Items that got",
    ]
    places = [text.index(mark, text.index("<body>")) for mark in marks]
    assert places == sorted(places)


def test_hostile_replies_are_shown_as_text() -> None:
    text = page(
        sample.decision(hostile=True), [p for p in sample.pairs(hostile=True) if p.id.startswith("evil")]
    )
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    assert "⟨ESC⟩[2J" in text
    assert "\u202e" not in text
    assert "more characters)" in text


def test_page_without_anything() -> None:
    bare = sample.decision(Verdict.ERROR).model_copy(
        update={"checks": (), "changes": (), "timing": None, "stages": (), "guarantees": (), "evalsets": {}}
    )
    text = page(bare, [])
    assert "No check was reached" in text
    assert "Nothing that is pinned" in text
    assert "This decision states no guarantee" in text


@pytest.mark.parametrize("narrow", [False, True])
def test_plots_are_wellformed_and_inside_their_frame(narrow: bool) -> None:
    decision, items = sample.decision(hostile=True), sample.pairs(hostile=True)
    lengths = plots.lengths_by_set(items)["chat"]
    assert decision.timing is not None
    drawn = [
        forest(view.check_rows(decision), "f", narrow),
        plots.lengths(*lengths, HOSTILE[0], "l", narrow),
        plots.strata(items, "score", "s", narrow),
        plots.timing(decision.timing.blocks, "ttft.p50", "t", narrow),
    ]
    for text in drawn:
        root = ET.fromstring(str(text))
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert title.text
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        for node in root.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert -1 <= float(node.get(key, 0)) <= width
            for key in ("y", "y1", "y2", "cy"):
                assert -1 <= float(node.get(key, 0)) <= height


def test_forest_draws_every_kind_of_check() -> None:
    rows = [
        view.check_row(
            result(check("up", "score", 0.02, kind="superiority"), estimate(0.5, 0.01), "passed", "s")
        ),
        view.check_row(
            result(check("both", "score", 0.02, kind="equivalence"), estimate(0, 0.01), "passed", "s")
        ),
        view.check_row(
            result(check("own", "bad_ending", 0.02, kind="absolute"), estimate(0.01, 0.001), "passed", "s")
        ),
        view.check_row(
            result(check("zero", "score", 0.0, kind="superiority"), estimate(0.1, 0.01), "passed", "s")
        ),
        view.check_row(
            result(check("open", "score", 0.02), estimate(0, 0.01, low=None), "inconclusive", "s")
        ),
    ]
    text = str(forest(rows, "k"))
    assert text.count('class="limit"') == 1 + 1 + 2 + 1 + 1
    assert "+25.0 margins" in text
    assert "nan" not in text
    assert "inf" not in text
    ET.fromstring(text)


def test_empty_plots() -> None:
    assert plots.strata([], "score", "k") == ""
    assert plots.timing([], "ttft.p50", "k") == ""
    assert plots.lengths_by_set([]) == {}
    ET.fromstring(str(plots.lengths([0], [0], "n", "k")))
    assert "2 tokens apart on average, 50.0% at most" in str(plots.lengths([8, 8], [8, 12], "n", "k"))
    ET.fromstring(str(forest([], "k")))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_lie_inside(low: float, span: float, about: int) -> None:
    scale = Axis(*spread([low, low + span]), 0, 100)
    ticks = scale.ticks(about)
    assert len(ticks) <= about * 2.5 + 2
    assert all(scale.d0 - span <= t <= scale.d1 + span for t in ticks)


def test_svg_escapes() -> None:
    assert el("text", '<b>"', x=1.5, class_='"><script>') == (
        '<text x="1.5" class="&#34;&gt;&lt;script&gt;">&lt;b&gt;&#34;</text>'
    )
