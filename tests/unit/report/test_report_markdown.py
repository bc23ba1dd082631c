from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.unit.report import sample
from tests.unit.report.sample import HOSTILE

from checkweigh.records.decision import ManifestChange, Verdict
from checkweigh.report.markdown import fenced, marker, plain, summary


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def rendered(text: str) -> str:
    """As GitHub would: HTML allowed, tables on."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(HOSTILE)


@given(ANY_TEXT)
def test_plain_text_is_only_text(text: str) -> None:
    shown = rendered(f"| h |\n|---|\n| {plain(text)} |\n")
    assert set(Tags(shown).tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert shown.count("<td>") == 1
    assert not re.search(r"@\w|#\d|://|www\.", re.sub("<[^>]*>", "", shown).replace("&quot;", ""))


@given(ANY_TEXT)
def test_plain_text_starts_no_block(text: str) -> None:
    assert set(Tags(rendered(f"- {plain(text)}\n")).tags) <= {"ul", "li"}


@given(ANY_TEXT)
def test_fenced_text_stays_in_its_fence(text: str) -> None:
    assert set(Tags(rendered(f"{fenced(text)}\n\nend\n")).tags) == {"pre", "code", "p"}


def test_fence_is_longer_than_any_run_inside() -> None:
    assert fenced("a ```` b").startswith("`````text\n")


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_summary(verdict: Verdict, hostile: bool) -> None:
    text = summary(sample.decision(verdict, hostile), sample.pairs(hostile))
    assert text.startswith("<!-- checkweigh:smollm2-135m-")
    assert verdict.value.upper() in text.splitlines()[1]
    tags = set(Tags(rendered(text)).tags)
    assert not tags & {"script", "img", "a", "iframe", "style"}
    assert rendered(text).count("<details>") == rendered(text).count("</details>") >= 2


def test_marker_cannot_be_closed_by_a_name() -> None:
    decision = sample.decision()
    arm = decision.candidate.model_copy(update={"name": "a--><script>-->"})
    assert marker(decision.model_copy(update={"candidate": arm})) == "<!-- checkweigh:a-script- -->"


def test_a_giant_fits_into_a_comment() -> None:
    decision = sample.decision(hostile=True)
    changes = tuple(
        ManifestChange(path="p" * 500, baseline="|" * 5000, candidate="@" * 5000) for _ in range(500)
    )
    many = tuple(
        r.model_copy(update={"check": r.check.model_copy(update={"id": f"{r.check.id}-{i}"})})
        for i in range(60)
        for r in decision.checks
    )
    huge = decision.model_copy(update={"changes": changes, "checks": many, "reasons": ("@#|" * 5000,) * 300})
    text = summary(huge, sample.pairs(hostile=True))
    assert len(text) < 65_536
    assert "did not fit" in text
