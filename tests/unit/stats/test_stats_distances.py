"""Distances between two distributions, as the plots of reply lengths show them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from checkweigh.stats.distances import distances


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
