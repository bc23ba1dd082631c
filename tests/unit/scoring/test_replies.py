"""Checks on replies, and the loop rule."""

from __future__ import annotations

import pytest

from checkweigh.scoring.replies import CHECKS, looping, normalise, score_reply


@pytest.mark.parametrize(
    ("kind", "values", "pattern", "reply", "score"),
    [
        ("phrase", ["Paris"], "", "The capital of France is Paris.", 1.0),
        ("phrase", ["Paris"], "", "the parisian way", 0.0),
        ("phrase", ["New York", "NYC"], "", "It is in new  york!", 1.0),
        ("phrase", ["Paris"], r"\bRome\b", "Paris or Rome", 0.0),
        ("phrase", ["Paris"], r"\bROME\b", "paris, not rome", 0.0),
        ("phrase", ["C"], "", "Vitamin C", 1.0),
        ("phrase", ["don't"], "", "I don\u2019t know", 1.0),
        ("phrase", [""], "", "anything", 0.0),
        ("exact", ["Blue"], "", " blue. ", 1.0),
        ("exact", ["Blue"], "", "It is blue", 0.0),
        ("verbatim", ["TABLE"], "", "TABLE", 1.0),
        ("verbatim", ["TABLE"], "", '"TABLE."', 1.0),
        ("verbatim", ["TABLE"], "", '"TABLE".', 1.0),
        ("verbatim", ["TABLE"], "", "Table", 0.0),
        ("verbatim", ["TABLE"], "", '"', 0.0),
        ("verbatim", ["I like tea."], "", "I like tea.", 1.0),
        ("number", ["12"], "", "7 + 5 = 12", 1.0),
        ("number", ["12"], "", "12 is 7 + 5", 0.0),
        ("number", ["3"], "", "8-5=3", 1.0),
        ("number", ["-3"], "", "The answer is -3.", 1.0),
        ("number", ["-3"], "", "The answer is \u22123", 1.0),
        ("number", ["1250"], "", "It costs 1,250 dollars", 1.0),
        ("number", ["2.5"], "", "2.50", 1.0),
        ("number", ["5"], "", "five", 0.0),
        ("number", ["3"], "", "the 3rd", 0.0),
        ("first_number", ["7"], "", "7 + 5 = 12", 1.0),
        ("first_number", ["12"], "", "7 + 5 = 12", 0.0),
        ("regex", ["ab"], "a[a-z]", " ab\n", 1.0),
        ("regex", ["ab"], "a[a-z]", "abc", 0.0),
        ("regex", ["ab"], "", "ab", 0.0),
        ("items", ["red", "blue", "green"], "2", "Red, blue", 1.0),
        ("items", ["red", "blue", "green"], "2", "red and blue.", 1.0),
        ("items", ["red", "blue", "green"], "3", "red, green, and blue", 1.0),
        ("items", ["red", "blue", "green"], "2", "red, red", 0.5),
        ("items", ["red", "blue", "green"], "2", "red, pancake", 0.5),
        ("items", ["red", "blue", "green"], "2", "red, blue, green", 0.0),
        ("items", ["sand"], "1", "sand", 1.0),
        ("keywords", ["Anna", "Rome"], "", "Anna lives in Rome.", 1.0),
        ("keywords", ["Anna", "Rome"], "", "Anna lives in Paris.", 0.5),
        ("keywords", [], "", "Anna", 0.0),
    ],
)
def test_scores(kind: str, values: list[str], pattern: str, reply: str, score: float) -> None:
    assert score_reply(kind, values, pattern, reply) == score


@pytest.mark.parametrize("kind", sorted(CHECKS))
@pytest.mark.parametrize("reply", ["", "  \n", "..."])
def test_empty_replies_score_nothing(kind: str, reply: str) -> None:
    pattern = {"items": "1", "regex": r"\w*"}.get(kind, "")
    value = {"instructions": "words >= 1", "json_schema": "{}"}.get(kind, "1")
    assert score_reply(kind, [value], pattern, reply) == 0.0


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown kind of check 'prhase'"):
        score_reply("prhase", ["a"], "", "a")


def test_normalise() -> None:
    assert normalise("  It's  a Caf\u00e9\u2014OK? ") == "its a caf\u00e9 ok"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], False),
        ([1] * 23, False),
        ([1] * 24, True),
        ([9, 8, 7] + [1] * 24, True),
        ([1] * 24 + [2], False),
        ([1, 2] * 12, True),
        ([5] + [1, 2] * 11 + [1], False),
        ([0] + [1, 2] * 11 + [1, 2], True),
        (list(range(16)) * 4, True),
        (list(range(16)) * 3 + list(range(15)), False),
        (list(range(17)) * 6, False),
        (list(range(7)) * 4, True),
        (list(range(7)) * 3 + [0, 1, 2, 3, 4], False),
        (list(range(100)), False),
    ],
)
def test_looping(tokens: list[int], expected: bool) -> None:
    assert looping(tokens) is expected
