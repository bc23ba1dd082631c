"""Our scorers as modules of ``evaluate``."""

from __future__ import annotations

import pytest

from checkweigh.errors import BadInput
from checkweigh.scorers.evaluate_metrics import metric
from checkweigh.scoring.standard import STANDARD

evaluate = pytest.importorskip("evaluate")


@pytest.mark.parametrize("references", [["red car", "sky"], [["red car", "car"], ["sky"]]])
def test_a_metric_is_one_of_evaluates(references: list[object]) -> None:
    f1 = metric("f1")
    assert isinstance(f1, evaluate.Metric)
    found = f1.compute(predictions=["the red bus", "blue sky"], references=references)
    assert found["scores"] == pytest.approx([0.5, 2 / 3])
    assert found["f1"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_metrics_are_fed_in_batches_and_combined_as_evaluates_own() -> None:
    both = evaluate.combine([metric("exact_match"), metric("rouge_l")])
    assert both.compute(predictions=["a b"], references=["a c"])["rouge_l"] == pytest.approx(0.5)
    one = metric("exact_match")
    one.add_batch(predictions=["x"], references=[["x"]])
    one.add(prediction="y", references=["x"])
    assert one.compute()["exact_match"] == 0.5


def test_every_scorer_is_a_metric() -> None:
    for name in STANDARD:
        assert metric(name).compute(predictions=[""], references=[["3"]])[name] == 0.0


def test_an_unknown_metric() -> None:
    with pytest.raises(BadInput, match=r"found 'rouge-l' \(did you mean 'rouge_l'\?\)"):
        metric("rouge-l")


def test_references_that_cannot_score_are_no_score() -> None:
    with pytest.raises(ValueError, match="is no number"):
        metric("numeric").compute(predictions=["3"], references=[["about"]])
