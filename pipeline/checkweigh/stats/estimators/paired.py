"""Paired means: delta per item, dependence within clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import checked_alpha, checked_margin
from checkweigh.stats.estimators._linear import checked_weights, student_evidence
from checkweigh.stats.evidence import Evidence
from checkweigh.stats.partition import Partition

MIN_EFFECTIVE_CLUSTERS = 40
"""Below this G_eff a mean or a proportion is inconclusive, whatever its interval says."""


def clustered_mean(
    delta: ArrayLike,
    partition: Partition,
    *,
    margin: float,
    alpha: float = 0.05,
    weights: ArrayLike | None = None,
) -> Evidence:
    """Mean paired difference, its cluster-jackknife standard error and t(G_eff - 1).

    Estimand: sum(w * delta) / sum(w), delta (..., n) = candidate - baseline of an item (replicates averaged
    within the item first), w (n,) the share of an item's stratum, 1 by default; units of the score.
    Assumptions: clusters independent; the mean of a cluster's sums close to normal (judge by
    ``MIN_EFFECTIVE_CLUSTERS``); weights fixed beforehand. G_eff is n^2 / sum(size^2), with weights
    sum(w)^2 / sum(W_g^2). ``margin`` and the result are in delta's units, ``alpha`` is one-sided.
    Degenerate: fewer than 2 clusters, a non-finite delta, or no variance between clusters (rounding, or a
    standard error below 1e-9 of the margin, included): not estimable, never an interval without width.
    Source: CV3, MacKinnon, Nielsen and Webb (2023); clustered evaluation errors, Miller (2024),
    arXiv 2411.00640. Coverage: tests/calibration/test_calibrated_means.py.

    Raises ValueError on a wrong shape, a weight that is not positive, or margin or alpha out of range.
    """
    values = np.asarray(delta, dtype=np.float64)
    given = np.ones(partition.n) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = checked_weights(given, partition.n)
    return student_evidence(
        values if weights is None else values * shares,
        shares,
        partition,
        margin=checked_margin(margin),
        alpha=checked_alpha(alpha),
        method="cluster jackknife t",
    )
