from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.report.sample import HOSTILE, pairs

from checkweigh.report.commands.show_diff import sides
from checkweigh.report.safe import clip, one_line, shorten, visible
from checkweigh.report.worst_items import ItemPair, worst_pairs

LEGAL_XML = re.compile("[\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
ANY_TEXT = st.text(st.characters(codec=None), max_size=80)


@given(ANY_TEXT)
def test_visible_text_is_legal_and_obeyed_by_nobody(text: str) -> None:
    shown = visible(text)
    assert LEGAL_XML.fullmatch(shown)
    shown.encode("utf-8")
    assert "\u202e" not in shown
    assert "\n" not in one_line(text)
    assert len(shorten(text, 10)) <= 10


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "⟨ESC⟩[31mred"),
        ("a\x00b\x7f", "a⟨NUL⟩b⟨DEL⟩"),
        ("\x9b31m", "⟨9B⟩31m"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("PASS\rBLOCK", "PASS⟨CR⟩BLOCK"),
        ("\u202eSSAP", "⟨U+202E⟩SSAP"),
        ("\ud800\uffff", "\ufffd\ufffd"),
        ("👩\u200d🚀 ñ 漢", "👩\u200d🚀 ñ 漢"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_clip_says_how_much_is_missing() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("x" * 1005, 5) == "xxxxx… (1,000 more characters)"


@given(ANY_TEXT, ANY_TEXT)
def test_diff_keeps_both_texts(baseline: str, candidate: str) -> None:
    left, right = sides(baseline, candidate)
    assert "".join(p.text for p in left) == baseline
    assert "".join(p.text for p in right) == candidate


def test_diff_marks_what_differs_and_gives_up_on_giants() -> None:
    left, right = sides("the answer is 4.", "the answer is 5.")
    assert [p.text for p in left if p.changed] == ["4"]
    assert [p.text for p in right if p.changed] == ["5"]
    assert not any(p.changed for side in sides(HOSTILE[-1], "x") for p in side)


def _item(id: str, loss: float | None, metric: str = "score", candidate: float | None = 0.0) -> ItemPair:
    return ItemPair(
        set_name="s",
        id=id,
        cluster=id,
        stratum="",
        metric=metric,
        prompt="",
        baseline=1.0,
        candidate=candidate,
        loss=loss,
        baseline_text=None,
        candidate_text=None,
        baseline_tokens=None,
        candidate_tokens=None,
    )


def test_worst_deals_metrics_in_turn_and_leaves_out_what_did_not_get_worse() -> None:
    items = [
        _item("a", 0.1),
        _item("b", 0.9),
        _item("broke", None, candidate=None),
        _item("better", -1.0),
        _item("same", 0.0),
        _item("nan", float("nan")),
        _item("n1", 5.0, "nats/token"),
        _item("n2", 9.0, "nats/token"),
    ]
    assert [p.id for p in worst_pairs(items, 10)] == ["n2", "broke", "n1", "b", "a"]
    assert [p.id for p in worst_pairs(reversed(items), 2)] == ["n2", "broke"]
    assert worst_pairs([], 3) == ()
    assert len(worst_pairs(pairs(), 8)) == 8
