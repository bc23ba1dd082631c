"""Cluster bootstrap of many ratios of sums at once: one set of resampling weights serves every metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import Floats
from checkweigh.stats.partition import Partition

_CELLS = 2_000_000  # weights drawn at a time: 16 MB


def cluster_bootstrap(
    numerators: ArrayLike,
    weights: ArrayLike,
    partition: Partition,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Floats:
    """(resamples, K) resampled values of sum(numerator) / sum(weights), whole clusters drawn with replacement.

    numerators (K, n), weights (n,) or (K, n), positive. Every metric sees the same drawn clusters, so that the
    resampled values keep the metrics' correlation. Estimand and assumptions as for ``clustered_mean`` and
    ``ratio_difference``: it is for display and for checking those two, on which the verdict rests.
    Degenerate: fewer than 2 clusters, or a metric with a value that is not finite: NaN in its column.
    Source: Davison and Hinkley (1997), Bootstrap Methods and their Application, sec. 3.8; Efron's multinomial weights.
    """
    top = np.atleast_2d(np.asarray(numerators, dtype=np.float64))
    bottom = np.broadcast_to(np.asarray(weights, dtype=np.float64), top.shape)
    if top.ndim != 2 or top.shape[-1] != partition.n or resamples < 1:
        raise ValueError(
            f"expected (K, {partition.n}) numerators and resamples >= 1, got {top.shape}, {resamples}"
        )
    groups = partition.clusters
    if groups < 2:
        return np.full((resamples, len(top)), np.nan)
    sums = partition.sums(np.concatenate([top, bottom])).T  # (G, 2K)
    finite = np.isfinite(sums).all(axis=0)
    sums = np.where(finite, sums, np.nan)
    found = np.empty((resamples, sums.shape[1]))
    step = max(1, _CELLS // groups)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        cells = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * groups).reshape(rows, groups)
        found[start : start + rows] = counts.astype(np.float64) @ sums
    return np.asarray(found[:, : len(top)] / found[:, len(top) :])
