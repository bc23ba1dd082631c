"""Measurements without a score: the reports show what there is, and say what they leave out."""

from __future__ import annotations

import pytest
from tests.builders import evalset, measured
from tests.unit.report import sample

from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet, Scored
from checkweigh.report.html.page import page
from checkweigh.report.junit import junit
from checkweigh.report.markdown import summary
from checkweigh.report.worst_items import ItemPair, left_out, worst_pairs
from checkweigh.sinks.items_table import items_table
from checkweigh.usecases.gate.arms.item_pairs import item_pairs

LEFT_OUT = "2 items were measured without a score and are not ranked."


def without_score(record: MeasurementSet, *items: str) -> MeasurementSet:
    """The record as a scorer that gives other values would have left it: on ``items`` it gave no score."""
    bare = Scored(values={"citations": 2.0}, weights={"items": 1.0})
    observations = (
        o.model_copy(update={"outcome": bare}) if o.item in items else o for o in record.observations
    )
    return record.model_copy(update={"observations": tuple(observations)})


@pytest.fixture(params=["text", "choice", "generation"])
def source(request: pytest.FixtureRequest) -> EvalSet:
    return evalset(request.param, 4)


def paired(source: EvalSet) -> list[ItemPair]:
    """i0 has a score in the baseline alone, i1 in the candidate alone, i2 in neither, i3 in both."""
    name = source.card.name
    baseline = without_score(measured(source, [1.0] * 4), "i1", "i2")
    candidate = without_score(measured(source, [0.5] * 4, arm="candidate"), "i0", "i2")
    return item_pairs([source], {name: baseline}, {name: candidate})


def test_items_without_a_score_are_paired_and_say_what_they_lack(source: EvalSet) -> None:
    pairs = paired(source)
    assert [(p.baseline is None, p.candidate is None) for p in pairs] == [
        (False, True), (True, False), (True, True), (False, False),
    ]  # fmt: skip
    assert [p.note for p in pairs] == [
        "candidate: measured without a score",
        "baseline: measured without a score",
        "baseline: measured without a score; candidate: measured without a score",
        "",
    ]


def test_items_without_a_score_are_left_out_of_the_worst_items_with_a_word(source: EvalSet) -> None:
    pairs = paired(source)
    assert worst_pairs(pairs, 4)[0].id == "i0"
    assert {pair.id for pair in worst_pairs(pairs, 4)} <= {"i0", "i3"}
    assert left_out(pairs) == LEFT_OUT
    decision = sample.decision()
    for text in (page(decision, pairs), summary(decision, pairs)):
        assert LEFT_OUT in text
        assert "measured without a score" in text.replace(LEFT_OUT, "")
    assert LEFT_OUT in page(decision, pairs[1:3]), "where nothing else is shown too"
    assert "not ranked" not in page(decision, sample.pairs()) + summary(decision, sample.pairs())
    assert items_table(pairs)
    assert junit(decision)
