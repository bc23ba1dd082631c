"""Clustered means and ratios, against explicit deletion, scipy and statsmodels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from checkweigh.stats import Evidence, Partition, clustered_mean, ratio_difference

MARGIN = 0.1
UNEQUAL = Partition.from_labels(list("aaaabbbccddddddeeffg"))


def by_deletion(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], partition: Partition) -> tuple[float, ...]:
    """Estimate, CV3 standard error and G_eff the slow way: refit without each cluster."""
    theta = np.sum(x) / np.sum(w)
    groups = range(partition.clusters)
    without = [np.sum(x[partition.codes != g]) / np.sum(w[partition.codes != g]) for g in groups]
    variance = (len(without) - 1) / len(without) * np.sum((np.array(without) - theta) ** 2)
    shares = [np.sum(w[partition.codes == g]) / np.sum(w) for g in groups]
    return float(theta), float(np.sqrt(variance)), 1.0 / float(np.sum(np.square(shares)))


def check_against_t(evidence: Evidence, theta: float, se: float, df: float, alpha: float) -> None:
    t = stats.t(df)
    assert evidence.effect == pytest.approx(theta, rel=1e-12)
    assert evidence.se == pytest.approx(se, rel=1e-12)
    assert evidence.df == pytest.approx(df, rel=1e-12)
    assert evidence.lower == pytest.approx(theta - t.isf(alpha) * se, rel=1e-9)
    assert evidence.upper == pytest.approx(theta + t.isf(alpha) * se, rel=1e-9)
    assert evidence.p_noninferior == pytest.approx(t.sf((theta + MARGIN) / se), rel=1e-9)
    assert evidence.p_worse == pytest.approx(t.cdf(theta / se), rel=1e-9)
    assert evidence.p_superior == pytest.approx(t.sf((theta - MARGIN) / se), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.00554])
def test_without_clusters_it_is_the_paired_t_test(alpha: float) -> None:
    rng = np.random.default_rng(2)
    baseline, candidate = rng.normal(size=(2, 30))
    found = clustered_mean(candidate - baseline, Partition.singletons(30), margin=MARGIN, alpha=alpha)
    worse = stats.ttest_rel(candidate, baseline, alternative="less")
    inside = stats.ttest_rel(candidate + MARGIN, baseline, alternative="greater")
    above = stats.ttest_rel(candidate - MARGIN, baseline, alternative="greater")
    interval = stats.ttest_rel(candidate, baseline).confidence_interval(1 - 2 * alpha)
    assert found.p_worse == pytest.approx(worse.pvalue, rel=1e-9)
    assert found.p_noninferior == pytest.approx(inside.pvalue, rel=1e-9)
    assert found.p_superior == pytest.approx(above.pvalue, rel=1e-9)
    assert (found.lower, found.upper) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.design_effect == pytest.approx(1.0)
    assert (found.n, found.clusters, found.g_eff, found.flips) == (30, 30, 30.0, None)


@pytest.mark.parametrize("alpha", [0.05, 0.00554])
def test_unequal_clusters_by_explicit_deletion(alpha: float) -> None:
    x = np.random.default_rng(3).normal(size=20)
    theta, se, g_eff = by_deletion(x, np.ones(20), UNEQUAL)
    found = clustered_mean(x, UNEQUAL, margin=MARGIN, alpha=alpha)
    check_against_t(found, theta, se, g_eff - 1, alpha)
    assert g_eff == pytest.approx(UNEQUAL.g_eff)
    assert found.design_effect == pytest.approx(se**2 / (np.var(x, ddof=1) / 20))


def test_weights_by_explicit_deletion() -> None:
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=20), rng.uniform(0.5, 3.0, size=20)
    theta, se, g_eff = by_deletion(x * w, w, UNEQUAL)
    found = clustered_mean(x, UNEQUAL, margin=MARGIN, weights=w)
    check_against_t(found, theta, se, g_eff - 1, 0.05)
    assert found.g_eff == pytest.approx(g_eff)


def test_a_ratio_by_explicit_deletion() -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(50, 3000, size=20).astype(float)
    gain = rng.normal(size=20) * tokens
    theta, se, g_eff = by_deletion(gain, tokens, UNEQUAL)
    check_against_t(ratio_difference(gain, tokens, UNEQUAL, margin=MARGIN), theta, se, g_eff - 1, 0.05)


def test_equal_clusters_agree_with_statsmodels_cr1() -> None:
    """For clusters of one size CV3 and CR1 are the same number, so this reference is independent code."""
    import statsmodels.api as sm

    x = np.random.default_rng(6).normal(size=60)
    partition = Partition.from_labels([str(i // 4) for i in range(60)])
    fit = sm.OLS(x, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": partition.codes})
    assert clustered_mean(x, partition, margin=MARGIN).se == pytest.approx(fit.bse[0], rel=1e-9)


def test_the_mean_is_over_items_and_not_over_clusters() -> None:
    partition = Partition.from_labels(list("aaabc"))
    assert clustered_mean([1.0, 1.0, 1.0, 0.0, 0.5], partition, margin=MARGIN).effect == pytest.approx(0.7)


def test_constant_weights_change_nothing_and_scaling_them_neither() -> None:
    x = np.random.default_rng(7).normal(size=20)
    plain = clustered_mean(x, UNEQUAL, margin=MARGIN)
    for scale in (1.0, 250.0):
        weighted = clustered_mean(x, UNEQUAL, margin=MARGIN, weights=np.full(20, scale))
        assert weighted.lower == pytest.approx(float(plain.lower), rel=1e-9)
        assert weighted.design_effect == pytest.approx(float(plain.design_effect), rel=1e-9)


def test_a_long_document_counts_against_the_effective_clusters() -> None:
    tokens = np.ones(50)
    tokens[0] = 200.0
    gain = np.random.default_rng(8).normal(size=50)
    found = ratio_difference(gain, tokens, Partition.singletons(50), margin=1.0)
    assert found.clusters == 50
    assert found.g_eff == pytest.approx(249**2 / (200**2 + 49))


def test_the_simulation_axes_are_the_same_analyses_one_by_one() -> None:
    x = np.random.default_rng(9).normal(size=(2, 3, 20))
    together = clustered_mean(x, UNEQUAL, margin=MARGIN)
    assert together.lower.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = clustered_mean(x[i, j], UNEQUAL, margin=MARGIN)
        assert alone.lower == pytest.approx(float(together.lower[i, j]), rel=1e-12)
        assert alone.p_worse == pytest.approx(float(together.p_worse[i, j]), rel=1e-12)


def test_tails_far_out_do_not_vanish() -> None:
    noise = np.random.default_rng(10).normal(size=2000)
    for shift, sign in ((-0.4, 1.0), (0.4, -1.0)):
        found = clustered_mean(noise + shift, Partition.singletons(2000), margin=0.0)
        p = found.p_worse if sign > 0 else found.p_noninferior
        assert 0.0 < p < 1e-40
        assert p == pytest.approx(stats.t(1999).sf(-sign * found.effect / found.se), rel=1e-9)


NOTHING = {
    "all equal": np.full(20, 0.1),
    "all zero": np.zeros(20),
    "one missing": np.append(np.random.default_rng(11).normal(size=19), np.nan),
    "one infinite": np.append(np.random.default_rng(11).normal(size=19), np.inf),
    "overflow": np.append(np.full(19, 1e308), 0.0),
    "only rounding": 0.1 + 1e-17 * np.arange(20),
    "surer than rounding": 1e-12 * np.random.default_rng(11).normal(size=20),
}


@pytest.mark.parametrize("delta", NOTHING.values(), ids=NOTHING.keys())
def test_what_says_nothing_is_not_estimable(delta: np.ndarray[Any, Any]) -> None:
    for found in (
        clustered_mean(delta, UNEQUAL, margin=MARGIN),
        ratio_difference(delta, np.ones(20), UNEQUAL, margin=MARGIN),
    ):
        assert not found.estimable
        assert np.isnan([found.effect, found.lower, found.upper, found.p_noninferior, found.p_worse]).all()


def test_no_variance_between_clusters_is_not_estimable_either() -> None:
    partition = Partition.from_labels([str(i // 2) for i in range(100)])
    assert not clustered_mean(np.tile([1.0, -1.0], 50), partition, margin=MARGIN).estimable


@pytest.mark.parametrize("labels", [[], ["a"], ["a"] * 50])
def test_fewer_than_two_clusters_are_not_estimable(labels: list[str]) -> None:
    x = np.random.default_rng(12).normal(size=(3, len(labels)))
    found = clustered_mean(x, Partition.from_labels(labels), margin=MARGIN)
    assert found.estimable.tolist() == [False] * 3


def test_one_bad_simulation_leaves_the_others() -> None:
    x = np.random.default_rng(13).normal(size=(3, 20))
    x[1, 4] = np.nan
    assert clustered_mean(x, UNEQUAL, margin=MARGIN).estimable.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "call",
    [
        lambda: clustered_mean(np.ones(19), UNEQUAL, margin=MARGIN),
        lambda: clustered_mean(1.0, UNEQUAL, margin=MARGIN),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=-0.1),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=float("nan")),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=float("inf")),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=MARGIN, alpha=0.5),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=MARGIN, alpha=0.0),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=MARGIN, weights=np.zeros(20)),
        lambda: clustered_mean(np.ones(20), UNEQUAL, margin=MARGIN, weights=np.ones(19)),
        lambda: ratio_difference(np.ones(20), np.full(20, np.nan), UNEQUAL, margin=MARGIN),
    ],
)
def test_impossible_arguments_are_errors(call: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|must"):
        call()


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(3, 1, 80)
    after = before + rng.normal(0.01, 0.2, 80)
    upward = clustered_mean(after - before, Partition.singletons(80), margin=0.05)
    downward = clustered_mean(before - after, Partition.singletons(80), margin=0.05)
    p, *_ = ttost_paired(after, before, -0.05, 0.05)
    assert max(float(upward.p_noninferior), float(downward.p_noninferior)) == pytest.approx(
        float(p), rel=1e-9
    )
