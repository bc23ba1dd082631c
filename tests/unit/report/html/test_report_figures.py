"""The plots as files: each a whole document that a browser shows by itself."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tests.unit.report import sample

from checkweigh.records.decision import Verdict
from checkweigh.report.html.figures import figures

SVG = "{http://www.w3.org/2000/svg}"


def test_every_figure_is_a_whole_document_with_its_style() -> None:
    found = figures(sample.decision(Verdict.BLOCK, hostile=True), sample.pairs(hostile=True))
    assert {"forest", "timing"} <= {name.partition("-")[0] for name in found}
    for name, text in found.items():
        root = ET.fromstring(text)
        assert root.tag == f"{SVG}svg", name
        style = root[0]
        assert style.tag == f"{SVG}style"
        assert ".pair > div" in (style.text or "")
        assert root.find(f".//{SVG}script") is None


def test_what_has_no_data_has_no_figure() -> None:
    assert "timing" not in figures(sample.decision(Verdict.ERROR), [])
