"""Clustered means: how often the lower bound holds, and how often a candidate at -margin ships.

The pass test is `lower > -margin`, so at delta = -margin false ship is the lower bound's error: one number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from checkweigh.stats import MIN_EFFECTIVE_CLUSTERS, Partition, clustered_mean

Array = np.ndarray[Any, Any]
Claim = Callable[..., float]
MARGIN = 0.02


def fives(n: int) -> Partition:
    return Partition(np.arange(n) // 5, np.full(n // 5, 5))


def uneven(n: int) -> Partition:
    """Clusters of 1 to 9 items."""
    sizes = np.random.default_rng(5).integers(1, 10, size=n)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    sizes[-1] -= sizes.sum() - n
    return Partition(np.repeat(np.arange(sizes.size), sizes), sizes)


def pairs(rng: np.random.Generator, runs: int, partition: Partition, rho: float, tails: str) -> Array:
    """Differences with correlation rho inside a cluster and standard deviation 1, mean 0."""

    def draw(size: int) -> Array:
        if tails == "normal":
            return rng.normal(size=(runs, size))
        return rng.standard_t(3, size=(runs, size)) / np.sqrt(3.0)

    shared = draw(partition.clusters)[:, partition.codes]
    return np.sqrt(rho) * shared + np.sqrt(1.0 - rho) * draw(partition.n)


CELLS = [
    (Partition.singletons(60), 0.0, "normal"),
    (Partition.singletons(300), 0.0, "heavy"),
    (fives(200), 0.3, "normal"),
    (fives(300), 0.5, "heavy"),
    (fives(1000), 0.5, "normal"),
    (uneven(300), 0.3, "heavy"),
    (uneven(300), 0.5, "normal"),
    (uneven(1000), 0.3, "normal"),
]
NAMES = [f"{c[0].n} items, {c[0].clusters} clusters, rho {c[1]}, {c[2]}" for c in CELLS]


@pytest.mark.parametrize(("partition", "rho", "tails"), CELLS, ids=NAMES)
def test_each_cell_ships_five_percent_at_the_margin(
    partition: Partition, rho: float, tails: str, runs: int, close_to: Claim
) -> None:
    assert partition.g_eff >= MIN_EFFECTIVE_CLUSTERS
    rng = np.random.default_rng([101, partition.n, partition.clusters, int(10 * rho)])
    delta = -MARGIN + 0.3 * pairs(rng, runs, partition, rho, tails)
    found = clustered_mean(delta, partition, margin=MARGIN)
    assert found.estimable.all()
    close_to(found.lower > -MARGIN, 0.05)
    close_to(found.upper < -MARGIN, 0.05)
    # p_noninferior is uniform at the margin: also at the level of an interim look and in the middle.
    close_to(found.p_noninferior < 0.01, 0.01)
    close_to(found.p_noninferior < 0.5, 0.5)


def test_all_cells_together_leave_a_narrower_band(runs: int, close_to: Claim) -> None:
    hits = []
    for seed, (partition, rho, tails) in enumerate(CELLS):
        rng = np.random.default_rng([102, seed])
        delta = -MARGIN + 0.3 * pairs(rng, runs, partition, rho, tails)
        hits.append(clustered_mean(delta, partition, margin=MARGIN).lower > -MARGIN)
    close_to(np.concatenate(hits), 0.05)


def test_weighted_strata(runs: int, close_to: Claim) -> None:
    """Three strata of different weight and spread, clusters of 5."""
    partition = fives(600)
    stratum = np.arange(600) // 200
    weights, spread, shift = np.array([3.0, 1.0, 0.5]), np.array([0.2, 0.4, 0.1]), np.array([0.05, -0.1, 0.0])
    rng = np.random.default_rng(103)
    delta = shift[stratum] + spread[stratum] * pairs(rng, runs, partition, 0.3, "normal")
    truth = float(np.average(shift[stratum], weights=weights[stratum]))
    found = clustered_mean(delta, partition, margin=MARGIN, weights=weights[stratum])
    close_to(found.lower > truth, 0.05)
    close_to(found.upper < truth, 0.05)


def test_equal_arms_pass_at_the_planned_size(runs: int, at_least: Claim) -> None:
    """m / se = 4 and 4.5: Phi(4 - 1.645) = 99.1% of equal candidates pass one check."""
    partition = fives(500)
    for ratio, claim in ((4.0, 0.987), (4.5, 0.996)):
        rng = np.random.default_rng([104, int(10 * ratio)])
        delta = pairs(rng, runs, partition, 0.3, "normal")
        margin = ratio * float(np.sqrt((1 + 4 * 0.3) / 500))
        at_least(clustered_mean(delta, partition, margin=margin).lower > -margin, claim)


def test_without_clusters_the_same_data_ship_far_too_often(runs: int) -> None:
    """The simulation can fail: items taken as independent double and triple the error."""
    rng = np.random.default_rng(105)
    delta = -MARGIN + 0.3 * pairs(rng, runs, fives(1000), 0.5, "normal")
    naive = clustered_mean(delta, Partition.singletons(1000), margin=MARGIN)
    assert np.mean(naive.lower > -MARGIN) > 0.12


@pytest.mark.parametrize(
    ("partition", "low", "high"),
    [(fives(200), 0.13, 0.26), (Partition.singletons(200), 0.05, 0.13), (fives(1000), 0.05, 0.13)],
    ids=["40 clusters of 5", "200 singletons", "200 clusters of 5"],
)
def test_known_failure_rare_large_losses_ship_too_often(
    partition: Partition, low: float, high: float, runs: int, fails: Claim
) -> None:
    """4% of the clusters lose half of the scale, the rest nothing: t believes a spread it has hardly seen.

    Measured with 4,000 runs: 20% at 40 clusters of 5, 8% at 200 singletons, 9% at 200 clusters of 5, 6% at
    1,000 singletons. Recorded so that a change of it, for better or worse, is noticed.
    """
    rng = np.random.default_rng([106, partition.clusters])
    lost = rng.random((runs, partition.clusters)) < 0.04
    delta = np.where(lost, -0.5, 0.0)[:, partition.codes] + 0.05 * rng.normal(size=(runs, partition.n))
    found = clustered_mean(delta, partition, margin=MARGIN)
    fails(found.lower > -MARGIN, low, high, 0.05)
