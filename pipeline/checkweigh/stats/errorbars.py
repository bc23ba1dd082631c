"""Error bars of one arm's mean, and what a comparison can see: for display, and for reading others' numbers.

The verdict rests on ``paired`` (CV3 and t), which is never tighter.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import Floats, checked_alpha, z_isf
from checkweigh.stats.partition import Partition


def clustered_error(values: ArrayLike, partition: Partition) -> Floats:
    """Standard error of the mean with clusters, (..., n) -> (...), in the values' units: CR1.

    Estimand: the sampling error of mean(values). sqrt(G / (G - 1) * sum over clusters of (sum of residuals)^2) / n.
    Assumptions: clusters independent, many of them (a third of the error is missing at ten). Degenerate: fewer than two
    clusters, or a value that is not finite: NaN, where others print 0.
    Source: Liang and Zeger (1986); Miller (2024), "Adding Error Bars to Evals", arXiv 2411.00640, sec. 2.2.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim == 0 or data.shape[-1] != partition.n:
        raise ValueError(f"expected {partition.n} values on the last axis, got shape {data.shape}")
    if partition.clusters < 2:
        return np.full(data.shape[:-1], np.nan)
    groups = partition.clusters
    with np.errstate(invalid="ignore"):
        moved = partition.sums(data - data.mean(axis=-1, keepdims=True))
        return np.asarray(np.sqrt(groups / (groups - 1) * np.sum(moved**2, axis=-1)) / partition.n)


def questions_needed(
    effect: float,
    *,
    between: float,
    within: tuple[float, float] = (0.0, 0.0),
    replicates: tuple[int, int] = (1, 1),
    alpha: float = 0.05,
    power: float = 0.8,
) -> int:
    """Questions at which a paired comparison of two models sees a true difference ``effect``, two-sided.

    n = (z(alpha / 2) + z(power))^2 (between + within_a / K_a + within_b / K_b) / effect^2. ``between``: variance over
    questions of the difference of the models' conditional means; ``within``: each model's mean variance on one
    question; ``replicates``: answers averaged a question. This asks for superiority; a gate asks ``required_n``.
    Degenerate: a variance of zero in all is missing knowledge: ValueError, as for an effect of zero.
    Source: Miller (2024), sec. 5, equation 9.
    """
    noise = between + within[0] / replicates[0] + within[1] / replicates[1]
    if min(between, *within) < 0.0 or not 0.0 < noise < math.inf or not 0.0 < abs(effect) < math.inf:
        raise ValueError("expected an effect that is not zero and variances that are not all zero")
    if not 0.0 < power < 1.0 or min(replicates) < 1:
        raise ValueError(f"expected 0 < power < 1 and at least one replicate, got {power!r} and {replicates}")
    return math.ceil((z_isf(checked_alpha(alpha) / 2.0) + z_isf(1.0 - power)) ** 2 * noise / effect**2)
