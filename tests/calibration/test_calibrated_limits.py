"""One arm against a limit, and two arms against each other from both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from checkweigh.stats import Partition, clustered_mean, clustered_proportion

Claim = Callable[..., float]


@pytest.mark.parametrize(
    ("n", "each", "rho", "limit"), [(300, 1, 0.0, 0.1), (1000, 1, 0.0, 0.02), (600, 3, 0.3, 0.1)]
)
def test_a_proportion_on_its_limit(
    n: int, each: int, rho: float, limit: float, runs: int, at_most: Claim
) -> None:
    rng = np.random.default_rng([801, n, each])
    partition = Partition(np.arange(n) // each, np.full(n // each, each))
    copied = rng.random((runs, n)) < np.sqrt(rho)
    shared = rng.random((runs, partition.clusters))[:, partition.codes]
    values = (np.where(copied, shared, rng.random((runs, n))) < limit).astype(float)
    found = clustered_proportion(values, partition, limit=limit, sign=-1.0)
    at_most(found.p_noninferior < 0.05, 0.06)
    at_most(found.p_worse < 0.05, 0.06)
    assert np.mean(found.lower > 0) == pytest.approx(np.mean(found.p_noninferior < 0.05), abs=0.01)


def test_equivalence_at_either_margin(runs: int, at_most: Claim) -> None:
    """Two one-sided tests: at either margin the candidate passes both with at most 5%."""
    rng = np.random.default_rng(802)
    partition = Partition(np.arange(400) // 4, np.full(100, 4))
    noise = 0.1 * (rng.normal(size=(runs, 100))[:, partition.codes] + rng.normal(size=(runs, 400)))
    for truth in (-0.05, 0.05):
        up = clustered_mean(noise + truth, partition, margin=0.05)
        down = clustered_mean(-noise - truth, partition, margin=0.05)
        both = np.maximum(up.p_noninferior, down.p_noninferior) < 0.05
        at_most(both, 0.05)
