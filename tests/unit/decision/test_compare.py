"""Comparison: which estimator a metric gets, which side failures fall on, and what cannot be estimated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.builders import check, evalset, policy

from checkweigh.decision.compare import compare, margin_of
from checkweigh.decision.pairing import PairedSample
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.policy import Check

N = 400
RNG = np.random.default_rng(5)
BASE = np.clip(RNG.normal(0.5, 0.15, N), 0.01, 0.99)
NOISE = RNG.normal(0, 0.03, N)
NOISE -= NOISE.mean()


def rule(**changes: Any) -> Check:
    fields = {"min_items": 50, "min_clusters": 40} | changes
    critical = check(id="other") if fields.get("tier") == "advisory" else None
    return policy(*([critical] if critical else []), check(**fields)).checks[-1]


def sample(
    baseline: Any, candidate: Any, metric: str = "score", per_cluster: int = 1, **changes: Any
) -> PairedSample:
    n = len(baseline)
    return replace(
        PairedSample(
            metric=metric, baseline=np.asarray(baseline, float), candidate=np.asarray(candidate, float),
            size=np.ones(n), weights=np.ones(n), clusters=tuple(f"c{i // per_cluster}" for i in range(n)),
            identical=False,
        ),
        **changes,
    )  # fmt: skip


def estimated(found: Comparison) -> Estimate:
    assert isinstance(found, Estimate), found
    return found


def reason(found: Comparison) -> str:
    assert isinstance(found, Inestimable), found
    return found.reason


def test_effects_are_oriented_so_that_higher_is_better() -> None:
    worse = estimated(compare(rule(), sample(BASE, BASE - 0.02 + NOISE), alpha=0.05))
    assert worse.effect == pytest.approx(-0.02)
    assert worse.low is not None
    assert worse.low < worse.effect < worse.high
    assert (worse.baseline, worse.candidate) == (
        pytest.approx(BASE.mean()),
        pytest.approx(BASE.mean() - 0.02),
    )
    ppl = rule(metric="log_perplexity", direction="lower", scale="log", margin=0.03)
    more = estimated(compare(ppl, sample(BASE, BASE + 0.02 + NOISE, "log_perplexity"), alpha=0.05))
    assert more.effect == pytest.approx(-0.02)
    assert more.p_worse < 0.01


def test_methods_follow_the_metric() -> None:
    flips = (RNG.random(N) < 0.5).astype(float)
    other = np.where(RNG.random(N) < 0.1, 1 - flips, flips)
    binary = estimated(compare(rule(), sample(flips, other), alpha=0.05))
    assert "Tango" in binary.method
    assert binary.flips == int((flips != other).sum())
    graded = estimated(compare(rule(), sample(BASE, BASE + NOISE), alpha=0.05))
    assert "jackknife" in graded.method
    assert graded.flips is None
    ppl = rule(metric="log_perplexity", direction="lower", scale="log", margin=0.03)
    assert "ratio" in estimated(compare(ppl, sample(BASE, BASE + NOISE, "log_perplexity"), alpha=0.05)).method


def test_a_relative_margin_is_a_log_ratio() -> None:
    assert margin_of(
        rule(metric="log_length", direction="lower", scale="relative", margin=0.1)
    ) == pytest.approx(math.log(1.1))
    assert margin_of(rule()) == 0.05


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_failures_fall_on_the_worst_side_for_a_pass_and_out_for_a_block(direction: str) -> None:
    if direction == "higher":
        checked, first, second, metric = rule(), BASE, BASE + NOISE, "score"
    else:
        checked = rule(metric="bad_ending", direction="lower")
        first = (RNG.random(N) < 0.2).astype(float)
        second, metric = np.where(RNG.random(N) < 0.05, 1 - first, first), "bad_ending"
    whole = estimated(compare(checked, sample(first, second, metric), alpha=0.05))
    holes = np.where(np.arange(N) % 20 == 0, np.nan, second)
    found = estimated(compare(checked, sample(first, holes, metric), alpha=0.05))
    assert found.failed_candidate == N // 20
    assert found.low is not None
    assert whole.low is not None
    assert found.low < whole.low - 0.01
    assert found.pairs == N - N // 20
    assert found.exclusions == ("0 items failed in the baseline, 20 in the candidate",)
    mirrored = estimated(
        compare(checked, sample(np.where(np.isnan(holes), np.nan, first), second, metric), alpha=0.05)
    )
    assert mirrored.low is not None
    assert mirrored.low < whole.low, "a baseline's failure counts as the best value"


def test_an_unbounded_metric_with_failures_cannot_pass() -> None:
    ppl = rule(metric="log_perplexity", direction="lower", scale="log", margin=0.03)
    noise = NOISE / 10
    for failures, passes in ((1, True), (3, False)):
        second = BASE + noise
        second[:failures] = np.nan
        found = estimated(compare(ppl, sample(BASE, second, "log_perplexity"), alpha=0.05))
        assert (found.low is not None, found.p_pass < 0.05) == (passes, passes)


@pytest.mark.parametrize(
    ("changes", "checked", "why"),
    [
        ({"problems": ("set x: broken", "and more")}, {}, "set x: broken; and more"),
        ({}, {"min_items": 401}, "400 items, 401 needed"),
        ({}, {"min_clusters": 401}, "400 clusters, 401 needed"),
        ({"candidate": np.full(N, np.nan)}, {}, "every item failed"),
        ({"candidate": np.full(N, 0.25)}, {}, "the candidate's scores are all 0.25"),
        ({"baseline": np.full(N, 0.25)}, {}, "the baseline's scores are all 0.25"),
        ({"candidate": BASE + 0.01}, {}, "do not vary"),
        ({"clusters": tuple(f"c{i // 12}" for i in range(N))}, {"min_clusters": 2}, "clusters"),
    ],
)
def test_what_cannot_be_estimated_says_why(
    changes: dict[str, Any], checked: dict[str, Any], why: str
) -> None:
    assert why in reason(compare(rule(**checked), replace(sample(BASE, BASE + NOISE), **changes), alpha=0.05))


def test_too_few_items_for_any_pass_are_named() -> None:
    flips = (RNG.random(90) < 0.5).astype(float)
    found = compare(rule(margin=0.01), sample(flips, flips), alpha=0.05)
    assert "needed before any data could pass at this margin" in reason(found)


def test_identical_arms() -> None:
    found = compare(rule(), sample(BASE, BASE, identical=True), alpha=0.05)
    assert isinstance(found, Identical)
    assert found.differing_share_upper == pytest.approx(1 - 0.05 ** (1 / N))
    ends = rule(metric="bad_ending", direction="lower")
    zero = np.zeros(N)
    assert estimated(compare(ends, sample(zero, zero, "bad_ending", identical=True), alpha=0.05)).effect == 0
    limit = rule(kind="absolute", margin=0.3)
    assert estimated(compare(limit, sample(BASE, BASE, identical=True), alpha=0.05)).effect > 0.1
    assert "constant" in reason(compare(rule(), sample(zero, zero, identical=True), alpha=0.05))


def test_absolute_checks_look_at_the_candidate_alone() -> None:
    limit = rule(kind="absolute", margin=0.45)
    found = estimated(compare(limit, sample(BASE, BASE + NOISE), alpha=0.05))
    other = estimated(compare(limit, sample(BASE[::-1] / 2, BASE + NOISE), alpha=0.05))
    assert found.effect == other.effect == pytest.approx((BASE + NOISE).mean() - 0.45)
    assert found.p_pass < 0.05
    assert (
        estimated(compare(rule(kind="absolute", margin=0.55), sample(BASE, BASE + NOISE), alpha=0.05)).p_worse
        < 0.01
    )


def test_equivalence_needs_both_sides() -> None:
    same = rule(kind="equivalence")
    low = estimated(compare(same, sample(BASE, BASE + NOISE), alpha=0.05))
    assert low.p_pass < 0.05
    high = estimated(compare(same, sample(BASE, BASE + 0.08 + NOISE), alpha=0.05))
    assert high.p_pass > 0.5
    assert high.p_better is not None
    assert high.p_better < 0.01
    assert high.p_worse > 0.99


def test_clusters_widen_the_interval() -> None:
    shared = np.repeat(RNG.normal(0, 0.05, N // 5), 5)
    shared -= shared.mean()
    alone = estimated(compare(rule(), sample(BASE, BASE + shared), alpha=0.05))
    together = estimated(compare(rule(), sample(BASE, BASE + shared, per_cluster=5), alpha=0.05))
    assert together.se > 1.8 * alone.se
    assert together.design_effect > 3
    assert evalset("choice", 10, cluster_size=5).card.clusters == 2
