"""Ratios of sums: log-perplexity and bits per byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import checked_alpha, checked_margin
from checkweigh.stats.estimators._linear import checked_weights, student_evidence
from checkweigh.stats.evidence import Evidence
from checkweigh.stats.partition import Partition


def ratio_difference(
    numerator_delta: ArrayLike,
    weights: ArrayLike,
    partition: Partition,
    *,
    margin: float,
    alpha: float = 0.05,
) -> Evidence:
    """Difference of two ratios with a common denominator, linearised over documents, with t(G_eff - 1).

    Estimand: sum(numerator_delta) / sum(weights). For log-perplexity numerator_delta (..., n) is
    -(nll_candidate - nll_baseline) of a document in nats and weights (n,) its tokens, so the result is nats a
    token, higher better; with unequal tokenizers weights are bytes (bits per byte times ln 2).
    Assumptions: a document is an item and a work a cluster (a token never is either); works independent;
    G_eff = W^2 / sum(W_g^2) counts works by their tokens, so one long work cannot pass for many short ones.
    Degenerate: fewer than 2 clusters, a non-finite document, no variance between clusters: not estimable.
    Source: delete-a-group jackknife of a ratio, Wolter (2007), Introduction to Variance Estimation, ch. 4;
    CV3 as in clustered_mean. Coverage: tests/calibration/test_calibrated_ratios.py.

    Raises ValueError on a wrong shape, a weight that is not positive, or margin or alpha out of range.
    """
    return student_evidence(
        np.asarray(numerator_delta, dtype=np.float64),
        checked_weights(np.asarray(weights, dtype=np.float64), partition.n),
        partition,
        margin=checked_margin(margin),
        alpha=checked_alpha(alpha),
        method="ratio, cluster jackknife t",
    )
