"""Standard scorers: reference numbers of the libraries that define them, and the edges."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkweigh.records.evalset import StandardName
from checkweigh.scoring.replies import CHECKS, score_reply
from checkweigh.scoring.standard import STANDARD, VERSIONS, score_against

SAID = "The cat sat, quietly, on the mat."
WANTED = "a cat was sitting quietly on a mat"
SCHEMA = json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}})
REFERENCE = {"regex": r"\d+", "json_schema": SCHEMA, "numeric": "3 ± 1", "instructions": "words <= 3"}
words = st.lists(st.sampled_from(["ab", "the", "cat", "Sat", "mat.", "it's", "7"]), max_size=9).map(" ".join)


def test_the_card_knows_every_scorer_and_its_version() -> None:
    assert set(get_args(StandardName)) == set(STANDARD) == set(VERSIONS)
    assert set(STANDARD) <= set(CHECKS)


@pytest.mark.parametrize(
    ("name", "reply", "references", "score"),
    [
        ("exact_match", " Paris\n", ["Lyon", "Paris"], 1.0),
        ("exact_match", "paris", ["Paris"], 0.0),
        ("normalised_match", "The Eiffel Tower!", ["eiffel tower"], 1.0),
        ("normalised_match", "Eiffel Tower tower", ["eiffel tower"], 0.0),
        ("normalised_match", "the", ["an"], 0.0),  # no words are no match
        ("f1", "the a an", ["the"], 0.0),
        ("f1", SAID, [WANTED], 2 * 4 / (5 + 6)),
        ("f1", "to be to be", ["to to"], 2 * 2 / (4 + 2)),
        ("f1", "red", ["blue", "red"], 1.0),
        ("rouge_l", "a b c d", ["a c b d"], 0.75),
        ("rouge_l", "Ж б в", ["ж б г"], 2 / 3),
        ("rouge_l", "!!", ["a"], 0.0),
        ("regex", " 42 ", [r"[a-z]+", r"\d+"], 1.0),
        ("regex", "42 or so", [r"\d+"], 0.0),
        ("json_schema", '{"n": 3}', [SCHEMA], 1.0),
        ("json_schema", '```json\n{"n": 3}\n```', [SCHEMA], 1.0),
        ("json_schema", '{"n": "3"}', [SCHEMA], 0.0),
        ("json_schema", '{"n": 3', [SCHEMA], 0.0),
        ("json_schema", "NaN", ['{"type": "number"}'], 0.0),
        ("json_schema", "[" * 100_000, ["{}"], 0.0),
        ("numeric", "It is 1 plus 2, so 3.149", ["3.14 ± 0.01"], 1.0),
        ("numeric", "3.151", ["3.14 ± 0.01"], 0.0),
        ("numeric", "-101", ["-100 +- 1%"], 1.0),
        ("numeric", "1,250", ["1250"], 1.0),
        ("numeric", "-98.9", ["-100 +- 1%"], 0.0),
        ("numeric", "none", ["0 ± 5"], 0.0),
        ("instructions", "- one\n- two\n", ["bullets = 2", "words <= 2", "no commas", "lower case"], 1.0),
        ("instructions", "One, two", ["words >= 3", "no commas", "contains TWO", "ends with two"], 0.5),
        ("instructions", "YES. NO!", ["upper case", "sentences = 2", "starts with yes", "lacks maybe"], 1.0),
        ("instructions", "12", ["lower case", "json", "lines = 1"], 2 / 3),
    ],
)
def test_scores(name: str, reply: str, references: list[str], score: float) -> None:
    assert score_against(name, references, reply) == pytest.approx(score)


@settings(deadline=None)  # the libraries are imported in it
@given(said=words, wanted=words)
def test_rouge_l_is_that_of_rouge_score(said: str, wanted: str) -> None:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    expected = scorer.score(wanted, said)["rougeL"].fmeasure
    assert STANDARD["rouge_l"](said, [wanted]) == pytest.approx(expected)


def test_chrf_and_bleu_are_those_of_sacrebleu() -> None:
    import sacrebleu

    wanted = [WANTED, "the cat sat on the mat."]
    assert score_against("chrf", wanted, SAID) == sacrebleu.sentence_chrf(SAID, wanted).score / 100
    assert score_against("bleu", wanted, SAID) == sacrebleu.sentence_bleu(SAID, wanted).score / 100
    assert score_against("bleu", ["hello"], "hello") == 1.0


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_an_empty_reply_scores_nothing(name: str) -> None:
    for reply in ("", " \n"):
        assert score_against(name, [REFERENCE.get(name, "word")], reply) == 0.0
        if name != "regex":  # the check of that name has a pattern
            assert score_reply(name, [REFERENCE.get(name, "word")], "", reply) == 0.0


@pytest.mark.parametrize("name", sorted(STANDARD))
@settings(deadline=None)
@given(reply=st.text(max_size=30))
def test_any_reply_has_one_score_in_range(name: str, reply: str) -> None:
    found = {score_against(name, [REFERENCE.get(name, "a word")], reply) for _ in range(2)}
    assert len(found) == 1
    assert 0.0 <= found.pop() <= 1.0


@pytest.mark.parametrize(
    ("name", "references", "said"),
    [
        ("f2", ["x"], "unknown scorer 'f2'"),
        ("f1", [], "a reference is needed"),
        ("f1", ["x", " "], "none may be blank"),
        ("numeric", ["about 3"], "no number"),
        ("numeric", ["nan"], "no finite number"),
        ("numeric", ["3 ± -1"], "tolerance of 0 or more"),
        ("json_schema", ['{"type": "intger"}'], "no JSON Schema"),
        ("instructions", ["words < 3"], "unknown instruction 'words < 3'"),
        ("instructions", ["contains  "], "unknown instruction"),
    ],
)
def test_references_that_cannot_score_are_told(name: str, references: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score_against(name, references, "a reply")


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(Exception, match=r"example\.invalid"):
        score_against("json_schema", ['{"$ref": "https://example.invalid/schema"}'], "{}")
