"""Tango's score, with and without clusters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from checkweigh.stats import (
    Partition,
    clustered_tango,
    effective_binary_n,
    least_n_without_flips,
)
from checkweigh.stats.estimators.binary import Counts, null_variance, score


def arms(up: int, down: int, n: int, ones: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``up`` pairs 0 -> 1, then ``down`` pairs 1 -> 0, then ``ones`` pairs 1 -> 1, the rest 0 -> 0."""
    baseline, candidate = np.zeros(n), np.zeros(n)
    candidate[:up] = baseline[up : up + down] = 1.0
    baseline[up + down : up + down + ones] = candidate[up + down : up + down + ones] = 1.0
    return baseline, candidate


def tango_interval(up: int, down: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """The two-sided 1 - alpha interval of independent pairs: every pair a cluster of its own."""
    found = clustered_tango(*arms(up, down, n), Partition.singletons(n), margin=0.05, alpha=alpha / 2)
    return float(found.lower), float(found.upper)


def counts(up: float, down: float, n: int) -> Counts:
    return Counts(np.asarray(float(up)), np.asarray(float(down)), n)


@pytest.mark.parametrize(
    ("n12", "n21", "n", "low", "high"),
    [(6, 16, 161, -0.1240, -0.0054), (3, 0, 3, -0.1230, 1.0)],
    ids=["airway hyper-responsiveness", "three of three"],
)
def test_reference_intervals(n12: int, n21: int, n: int, low: float, high: float) -> None:
    """R package contingencytables, tests of chapter 8."""
    assert tango_interval(n12, n21, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


COUNTS = [(6, 16, 161), (0, 3, 40), (5, 0, 60), (0, 0, 50), (10, 10, 25)]


@pytest.mark.parametrize(("up", "down", "n"), COUNTS)
@pytest.mark.parametrize("null", [-0.3, -0.02, 0.01, 0.25])
def test_the_null_variance_is_the_constrained_likelihoods(up: int, down: int, n: int, null: float) -> None:
    """Against a numerical maximum of the trinomial likelihood under p12 - p21 = null."""

    def loss(p21: float) -> float:
        p = (p21 + null, p21, 1.0 - 2.0 * p21 - null)
        return -sum(
            k * math.log(max(q, 1e-300)) for k, q in zip((up, down, n - up - down), p, strict=True) if k
        )

    bounds = (max(0.0, -null), (1.0 - null) / 2.0)
    p21 = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    expected = (2.0 * p21 + null - null**2) / n
    assert null_variance(counts(up, down, n), null) == pytest.approx(expected, rel=1e-5)


def test_the_score_is_mcnemars_at_zero_and_falls_as_the_null_rises() -> None:
    pairs = counts(6, 16, 161)
    assert score(pairs, 0.0) == pytest.approx(-10 / math.sqrt(22))
    values = [float(score(pairs, null)) for null in np.linspace(-1.0, 1.0, 201)]
    assert all(before > after for before, after in itertools.pairwise(values))


def test_without_clusters_it_is_tangos_interval_and_z() -> None:
    baseline, candidate = arms(6, 16, 161, ones=40)
    found = clustered_tango(baseline, candidate, Partition.singletons(161), margin=0.05)
    for bound, z in ((found.lower, 1.6448536), (found.upper, -1.6448536)):
        assert score(counts(6, 16, 161), float(bound)) == pytest.approx(z)
    assert found.p_worse == pytest.approx(stats.norm.cdf(-10 / math.sqrt(22)))
    assert found.p_noninferior == pytest.approx(stats.norm.sf(float(score(counts(6, 16, 161), -0.05))))
    assert found.p_superior == pytest.approx(stats.norm.sf(float(score(counts(6, 16, 161), 0.05))))
    assert (found.effect + 0.05) / found.se == pytest.approx(float(score(counts(6, 16, 161), -0.05)))
    assert found.flips is not None
    assert (int(found.flips), float(found.design_effect), float(found.df)) == (22, 1.0, math.inf)


def test_concordant_pairs_do_not_matter_beyond_their_number() -> None:
    few, many = (
        clustered_tango(*arms(6, 16, 161, ones=ones), Partition.singletons(161), margin=0.05)
        for ones in (0, 100)
    )
    assert few.lower == many.lower


def slow_design_effect(delta: np.ndarray[Any, Any], partition: Partition) -> float:
    """D as ``design_effect`` states it, by explicit deletion."""
    n, groups = partition.n, partition.clusters
    without = np.array([delta[partition.codes != g].mean() for g in range(groups)])
    cv3 = (groups - 1) / groups * np.sum((without - delta.mean()) ** 2)
    iid = np.var(delta, ddof=1) / n
    d = cv3 / iid if iid > 0 else 1.0
    flips, k = np.sum(delta != 0), np.sum(partition.sizes**2) / n
    return float(max(1.0, d, (flips * d + 10 * (1 + (k - 1) * 0.5)) / (flips + 10)))


@pytest.mark.parametrize("seed", range(6))
def test_clusters_divide_z_by_the_root_of_the_design_effect(seed: int) -> None:
    rng = np.random.default_rng(seed)
    partition = Partition.from_labels([str(label) for label in rng.integers(0, 60, size=240)])
    shift = rng.random(60)[partition.codes] < 0.15
    delta = np.where(shift & (rng.random(240) < 0.7), rng.choice([-1.0, 1.0], size=240, p=[0.7, 0.3]), 0.0)
    baseline = np.where(delta == -1, 1.0, np.where(delta == 1, 0.0, rng.integers(0, 2, size=240)))
    found = clustered_tango(baseline, baseline + delta, partition, margin=0.1)
    inflation, df = slow_design_effect(delta, partition), partition.g_eff - 1
    z = float(score(counts(int(np.sum(delta == 1)), int(np.sum(delta == -1)), 240), -0.1))
    assert found.design_effect == pytest.approx(inflation)
    assert found.df == pytest.approx(df)
    assert found.p_noninferior == pytest.approx(stats.t(df).sf(z / math.sqrt(inflation)))
    zero = float(score(counts(int(np.sum(delta == 1)), int(np.sum(delta == -1)), 240), 0.0))
    assert found.p_worse == pytest.approx(stats.t(df).cdf(zero / math.sqrt(inflation)))
    for bound, sign in ((found.lower, 1), (found.upper, -1)):
        at_bound = score(counts(int(np.sum(delta == 1)), int(np.sum(delta == -1)), 240), float(bound))
        assert sign * at_bound / math.sqrt(inflation) == pytest.approx(stats.t(df).isf(0.05), rel=1e-6)


def test_few_flips_in_one_cluster_are_not_talked_down() -> None:
    """One cluster of 5 is lost whole: d = 5 outweighs the guess of 3 at once, not after many flips."""
    partition = Partition.from_labels([str(i // 5) for i in range(400)])
    delta = np.where(partition.codes == 7, -1.0, 0.0)
    found = clustered_tango(np.ones(400), 1.0 + delta, partition, margin=0.05)
    assert found.design_effect == pytest.approx(slow_design_effect(delta, partition))
    assert found.design_effect > 4.9


@pytest.mark.parametrize("alpha", [0.05, 0.00554, 8.86e-5])
def test_the_bound_and_the_p_value_decide_alike(alpha: float) -> None:
    rng = np.random.default_rng(14)
    partition = Partition.from_labels([str(i // 3) for i in range(300)])
    baseline = (rng.random((400, 300)) < 0.6).astype(float)
    candidate = np.where(rng.random((400, 300)) < 0.05, 1 - baseline, baseline)
    for margin in (0.02, 0.05, 0.1):
        found = clustered_tango(baseline, candidate, partition, margin=margin, alpha=alpha)
        np.testing.assert_array_equal(found.lower > -margin, found.p_noninferior < alpha)
        np.testing.assert_array_equal(found.lower > margin, found.p_superior < alpha)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_flips_is_no_evidence_of_harm_and_still_has_a_width(value: float) -> None:
    arm = np.full(133, value)
    found = clustered_tango(arm, arm, Partition.singletons(133), margin=0.02)
    assert (float(found.p_worse), float(found.effect)) == (1.0, 0.0)
    assert -0.02 < found.lower < -0.0199
    assert found.upper == pytest.approx(-found.lower)
    assert found.se > 0.0


@pytest.mark.parametrize(("margin", "least"), [(0.02, 133), (0.01, 268), (0.03, 88)])
def test_the_least_n_without_flips_is_where_the_test_begins_to_pass(margin: float, least: int) -> None:
    assert least_n_without_flips(margin) == least
    for n, passes in ((least - 1, False), (least, True)):
        found = clustered_tango(np.zeros(n), np.zeros(n), Partition.singletons(n), margin=margin)
        assert bool(found.lower > -margin) is passes


def test_the_least_n_follows_alpha() -> None:
    least = least_n_without_flips(0.02, alpha=0.001)
    for n, passes in ((least - 1, False), (least, True)):
        found = clustered_tango(np.zeros(n), np.zeros(n), Partition.singletons(n), margin=0.02, alpha=0.001)
        assert bool(found.p_noninferior < 0.001) is passes


def test_clusters_raise_the_least_n_by_half_of_what_they_hold_in_common() -> None:
    partition = Partition.from_labels([str(i // 5) for i in range(400)])
    assert effective_binary_n(partition) == pytest.approx(400 / 3)
    found = clustered_tango(np.zeros(400), np.zeros(400), partition, margin=0.02)
    assert found.design_effect == pytest.approx(3.0)
    assert found.lower < -0.02
    assert effective_binary_n(Partition.singletons(400)) == 400


def test_everything_lost_reaches_the_end_of_the_scale() -> None:
    found = clustered_tango(np.ones(30), np.zeros(30), Partition.singletons(30), margin=0.05)
    assert (float(found.effect), float(found.lower)) == (-1.0, -1.0)
    assert score(counts(0, 30, 30), float(found.upper)) == pytest.approx(-1.6448536)
    assert -1.0 < found.upper < -0.8
    assert found.p_worse < 1e-6


def test_a_margin_of_zero_asks_for_superiority() -> None:
    baseline, candidate = arms(20, 5, 200)
    found = clustered_tango(baseline, candidate, Partition.singletons(200), margin=0.0)
    assert found.p_noninferior == found.p_superior == pytest.approx(stats.norm.sf(3.0))
    silent = clustered_tango(np.zeros(200), np.zeros(200), Partition.singletons(200), margin=0.0)
    assert silent.p_noninferior == silent.p_superior == silent.p_worse


def test_missing_values_void_their_own_simulation_only() -> None:
    baseline, candidate = np.zeros((3, 50)), np.zeros((3, 50))
    candidate[0, :5] = 1.0
    baseline[1, 7] = np.nan
    candidate[2, 7] = np.inf
    partition = Partition.from_labels([str(i // 2) for i in range(50)])
    found = clustered_tango(baseline, candidate, partition, margin=0.1)
    assert found.estimable.tolist() == [True, False, False]


@pytest.mark.parametrize("labels", [["a"] * 200, []])
def test_one_cluster_or_none_is_not_estimable(labels: list[str]) -> None:
    arm = np.zeros(len(labels))
    assert not clustered_tango(arm, arm, Partition.from_labels(labels), margin=0.02).estimable


def test_booleans_are_outcomes_and_percentages_are_not() -> None:
    yes = np.ones(20, dtype=bool)
    assert clustered_tango(yes, ~yes, Partition.singletons(20), margin=0.1).effect == -1.0
    with pytest.raises(ValueError, match="must be 0 or 1"):
        clustered_tango(yes, 100.0 * yes, Partition.singletons(20), margin=0.1)
    with pytest.raises(ValueError, match="two arms of 20 items"):
        clustered_tango(yes, yes[:19], Partition.singletons(20), margin=0.1)
    with pytest.raises(ValueError, match="margin"):
        clustered_tango(yes, yes, Partition.singletons(20), margin=1.0)


def test_without_a_margin_nothing_passes_without_flips() -> None:
    with pytest.raises(ValueError, match="margin"):
        least_n_without_flips(0.0)
