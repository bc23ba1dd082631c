"""Pairing: every way in which two records fail to be about the same items is a reason, and nothing is dropped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.builders import evalset, measured, with_observations

from checkweigh.decision.pairing import PairedSample, pair
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet, Observation, Scored
from checkweigh.records.metrics import METRICS

N = 40
TEXT, CHOICE, REPLY = (evalset(kind, N, name=kind) for kind in ("text", "choice", "generation"))
RNG = np.random.default_rng(3)
VALUES = RNG.random(N)


def paired(
    metric: str,
    source: EvalSet,
    first: MeasurementSet | None = None,
    second: MeasurementSet | None = None,
    **where: str,
) -> PairedSample:
    name = source.card.name
    first = first or measured(source, VALUES)
    second = second or measured(source, VALUES + 0.01, arm="candidate")
    return pair(metric, [source], {name: first}, {name: second}, where=where)


def changed(record: MeasurementSet, index: int, **changes: Any) -> MeasurementSet:
    def change(rows: list[Observation]) -> list[Observation]:
        rows[index] = rows[index].model_copy(update=changes)
        return rows

    return with_observations(record, change)


def test_values_are_paired_by_id_whatever_their_order() -> None:
    backwards = with_observations(measured(CHOICE, VALUES), lambda rows: rows[::-1])
    sample = paired("score", CHOICE, backwards)
    assert sample.problems == ()
    np.testing.assert_array_equal(sample.baseline, VALUES)
    np.testing.assert_array_equal(sample.candidate, VALUES + 0.01)
    assert sample.clusters == tuple(f"choice/c{i}" for i in range(N))
    np.testing.assert_array_equal(sample.size, 1.0)


def test_units_of_the_metrics() -> None:
    text = paired("log_perplexity", TEXT)
    np.testing.assert_allclose(text.baseline, VALUES * 100)
    np.testing.assert_array_equal(text.size, 100)
    bits = paired("bits_per_byte", TEXT)
    np.testing.assert_allclose(bits.baseline, VALUES * 100 / math.log(2))
    np.testing.assert_array_equal(bits.size, 420)
    tokens = np.arange(N)
    length = paired("log_length", REPLY, measured(REPLY, VALUES, tokens=tokens))
    np.testing.assert_allclose(length.baseline, np.log(np.maximum(tokens, 1)))
    right = paired("accuracy", CHOICE)
    np.testing.assert_array_equal(right.baseline, VALUES > 0.5)


@pytest.mark.parametrize("event", ["truncated", "empty", "looping"])
def test_a_bad_ending_is_any_of_three(event: str) -> None:
    values = {"score": 1.0, "truncated": 0.0, "empty": 0.0, "looping": 0.0} | {event: 1.0}
    record = changed(measured(REPLY, VALUES), 5, outcome=Scored(values=values))
    sample = paired(
        "bad_ending", REPLY, second=record.model_copy(update={"key": measured(REPLY, VALUES, arm="c").key})
    )
    assert sample.candidate.sum() == sample.candidate[5] == 1
    assert sample.baseline.sum() == 0
    assert sample.problems == ()


def test_failed_and_missing_items_are_failures_of_their_arm() -> None:
    failed = measured(CHOICE, [math.nan if i == 3 else v for i, v in enumerate(VALUES)])
    short = with_observations(measured(CHOICE, VALUES, arm="candidate"), lambda rows: rows[:-2])
    sample = paired("score", CHOICE, failed, short)
    first, second = sample.failed
    assert list(np.flatnonzero(first)) == [3]
    assert list(np.flatnonzero(second)) == [N - 2, N - 1]
    assert len(sample.clusters) == N
    counted = paired("failed", CHOICE, failed, short)
    assert (counted.baseline.sum(), counted.candidate.sum()) == (1, 2)
    assert not np.isnan(counted.candidate).any()
    assert not sample.identical


def test_identical_means_equal_raw_outputs_of_every_item() -> None:
    first, second = measured(CHOICE, VALUES), measured(CHOICE, VALUES, arm="candidate")
    assert paired("score", CHOICE, first, second).identical
    assert not paired("score", CHOICE, first, changed(second, 7, raw=first.observations[8].raw)).identical
    without = [changed(record, 7, raw=None) for record in (first, second)]
    assert not paired("score", CHOICE, *without).identical, "no raw output is no evidence of equality"
    assert not paired("score", CHOICE, first, with_observations(second, lambda rows: rows[1:])).identical


def test_strata_weigh_the_same_and_can_be_picked() -> None:
    source = evalset("choice", N, name="choice", strata=3)
    sample = paired("score", source)
    for stratum in range(3):
        mask = np.array([item.stratum == f"s{stratum}" for item in source.items])
        assert sample.weights[mask].sum() == pytest.approx(1)
    picked = paired("score", source, stratum="s1")
    assert len(picked.clusters) == sum(item.stratum == "s1" for item in source.items)
    assert picked.problems == ()
    assert paired("score", source, stratum="none").problems == ("no items",)


def test_pooled_sets_keep_their_names_apart() -> None:
    arms = [
        {s.card.name: measured(s, VALUES, arm=arm) for s in (CHOICE, REPLY)}
        for arm in ("baseline", "candidate")
    ]
    sample = pair("score", [CHOICE, REPLY], arms[0], arms[1])
    assert len(set(sample.clusters)) == 2 * N
    assert sample.weights.sum() == pytest.approx(8)
    missing = pair("score", [CHOICE, REPLY], arms[0], {"choice": arms[1]["choice"]})
    assert missing.problems == ("set generation was not measured on the candidate",)
    assert len(missing.clusters) == N
    nothing = pair("score", [CHOICE], {}, {})
    assert nothing.problems == ("set choice was not measured on the baseline and candidate", "no items")


GOOD = measured(CHOICE, VALUES, arm="candidate")
OTHER_SET = GOOD.model_copy(update={"key": GOOD.key.model_copy(update={"evalset": REPLY.card.digest})})
OTHER_SCORER = GOOD.model_copy(
    update={"key": GOOD.key.model_copy(update={"scorer": GOOD.key.scorer.model_copy(update={"version": 2})})}
)
OTHER_PROTOCOL = GOOD.model_copy(update={"key": GOOD.key.model_copy(update={"protocol": 2})})


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (measured(CHOICE, VALUES), "a record would be compared with itself"),
        (OTHER_SET, "the candidate was measured on another version of the set"),
        (OTHER_SCORER, "scored by different scorers or protocols"),
        (OTHER_PROTOCOL, "scored by different scorers or protocols"),
        (
            with_observations(GOOD, lambda rows: [*rows, rows[0]]),
            "the candidate has 1 items twice, such as i0",
        ),
        (changed(GOOD, 2, item="foreign"), "the candidate has 1 unknown items, such as foreign"),
        (
            changed(GOOD, 2, outcome=Scored(values={"scroe": 1.0})),
            "the candidate has no 'score' for some items",
        ),
        (changed(GOOD, 2, outcome=Scored(values={"score": 87.0})), "percent"),
        (changed(GOOD, 2, outcome=Scored(values={"score": -0.1})), "scores outside [0, 1]"),
    ],
)
def test_a_sample_that_must_not_be_used_says_why(record: MeasurementSet, problem: str) -> None:
    sample = paired("score", CHOICE, second=record)
    assert any(problem in text for text in sample.problems), sample.problems


def test_indicators_are_zero_or_one() -> None:
    second = changed(GOOD, 0, outcome=Scored(values={"score": 0.5, "correct": 0.5}))
    assert "values other than 0 and 1" in paired("accuracy", CHOICE, second=second).problems[0]


@pytest.mark.parametrize(
    ("metric", "weights", "problem"),
    [
        ("log_perplexity", {"tokens": 99.0, "bytes": 420.0}, "count tokens differently"),
        ("bits_per_byte", {"tokens": 100.0, "bytes": 419.0}, "scored different texts"),
        ("log_perplexity", {"bytes": 420.0}, "has no 'log_perplexity'"),
        ("log_perplexity", {"tokens": 0.0, "bytes": 420.0}, "documents without tokens"),
    ],
)
def test_documents_must_be_the_same_size_in_both_arms(
    metric: str, weights: dict[str, float], problem: str
) -> None:
    good = measured(TEXT, VALUES, arm="candidate")
    second = changed(good, 4, outcome=Scored(values={"nll": 50.0}, weights=weights))
    assert any(problem in text for text in paired(metric, TEXT, second=second).problems)


@pytest.mark.parametrize("metric", [m for m, s in METRICS.items() if s.kinds and s.estimator != "divergence"])
def test_every_metric_pairs_on_each_kind_it_names(metric: str) -> None:
    for source in (TEXT, CHOICE, REPLY):
        if source.card.kind in METRICS[metric].kinds:
            sample = paired(metric, source)
            assert sample.problems == (), (metric, source.card.kind)
            assert np.isfinite(sample.baseline).all()
