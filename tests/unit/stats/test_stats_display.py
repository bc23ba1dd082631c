"""What is shown beside the verdict: error bars, distances between distributions, the bootstrap; and TOST."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from checkweigh.stats import Partition, clustered_mean
from checkweigh.stats.bootstrap import cluster_bootstrap
from checkweigh.stats.distances import distances
from checkweigh.stats.errorbars import clustered_error, questions_needed

FOUR = Partition(np.arange(20) % 4, np.full(4, 5))


def test_clustered_errors_are_inspects() -> None:
    """inspect_ai, tests/scorer/test_metric.py: 0..19 in four clusters, and 0..9 in none."""
    assert float(clustered_error(np.arange(20), FOUR)) == pytest.approx(0.645, abs=5e-4)
    assert float(clustered_error(np.arange(10), Partition.singletons(10))) == pytest.approx(0.957, abs=5e-4)


def test_one_cluster_has_no_error_bar_rather_than_none_at_all() -> None:
    one = Partition(np.zeros(3, dtype=np.int64), np.array([3]))
    assert np.isnan(clustered_error([1.0, 0.0, 1.0], one))
    assert np.isnan(clustered_error([1.0, np.nan, 1.0], Partition.singletons(3)))
    with pytest.raises(ValueError, match="values on the last axis"):
        clustered_error([1.0], FOUR)


def test_millers_sample_size() -> None:
    """Miller (2024), sec. 5: omega^2 = 1/9, no variance within questions, three points at 80%: 969 questions."""
    assert questions_needed(0.03, between=1 / 9) == 969
    assert questions_needed(0.03, between=1 / 9, within=(1 / 6, 1 / 6), replicates=(10, 10)) > 969
    for wrong in (
        {"effect": 0.0, "between": 0.1},
        {"effect": 0.1, "between": 0.0},
        {"effect": 0.1, "between": -1},
    ):
        with pytest.raises(ValueError, match="expected"):
            questions_needed(**wrong)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 30, 70).astype(float), rng.integers(2, 40, 55).astype(float)
    found = distances(first, second)
    assert found.wasserstein == pytest.approx(stats.wasserstein_distance(first, second))
    assert found.kolmogorov == pytest.approx(stats.ks_2samp(first, second).statistic)
    assert found.energy == pytest.approx(stats.energy_distance(first, second))


@pytest.mark.parametrize("samples", [([], [1.0]), ([1.0], [np.nan]), ([np.inf], [1.0])])
def test_distances_of_nothing_are_errors(samples: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        distances(*samples)


def test_the_bootstrap_agrees_with_the_jackknife_and_shares_its_draws() -> None:
    rng = np.random.default_rng(1)
    partition = Partition(np.arange(1000) // 5, np.full(200, 5))
    shared = rng.normal(size=(1, 200))[:, partition.codes] + rng.normal(size=(3, 1000))
    shared[2] = -shared[1]
    found = cluster_bootstrap(shared, np.ones(1000), partition, resamples=4000, rng=rng)
    se = clustered_mean(shared, partition, margin=1.0).se
    assert found.std(axis=0) == pytest.approx(se, rel=0.05)
    assert np.corrcoef(found[:, 1], found[:, 2])[0, 1] == pytest.approx(-1), (
        "one set of weights for all metrics"
    )


def test_forty_metrics_in_well_under_a_second() -> None:
    rng = np.random.default_rng(2)
    partition = Partition(np.arange(5000) // 5, np.full(1000, 5))
    data = rng.normal(size=(40, 5000))
    started = time.process_time()
    found = cluster_bootstrap(data, np.ones(5000), partition, resamples=10_000, rng=rng)
    assert time.process_time() - started < 3.0, "0.2 s on an idle core; others may share this one"
    assert found.shape == (10_000, 40)


def test_what_the_bootstrap_cannot_say_stays_unsaid() -> None:
    rng = np.random.default_rng(4)
    data = np.ones((2, 20))
    data[1, 3] = np.nan
    found = cluster_bootstrap(data, np.ones(20), FOUR, resamples=50, rng=rng)
    assert np.isnan(found[:, 1]).all()
    assert (found[:, 0] == 1).all()
    one = Partition(np.zeros(20, dtype=np.int64), np.array([20]))
    assert np.isnan(cluster_bootstrap(data, np.ones(20), one, resamples=5, rng=rng)).all()
    with pytest.raises(ValueError, match="numerators"):
        cluster_bootstrap(data, np.ones(20), FOUR, resamples=0, rng=rng)
