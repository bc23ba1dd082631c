"""Latency blocks: one log ratio for each pair of alternating blocks, Hodges-Lehmann and signed ranks."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import all_finite, checked_alpha, checked_margin, z_isf
from checkweigh.stats.arrays import Floats
from checkweigh.stats.estimators._linear import ROUNDING, student_evidence
from checkweigh.stats.evidence import Evidence, not_estimable
from checkweigh.stats.partition import Partition

MIN_BLOCKS = 6
"""Fewer pairs say nothing: with five, the only p below .05 is that of all five on one side."""
EXACT_BLOCKS = 60
"""Up to here the exact signed-rank distribution; above, t(B - 1) of the mean."""


@cache
def signed_rank_tail(blocks: int) -> Floats:
    """P(W >= w), w = 0..B(B+1)/2, of Wilcoxon's signed-rank sum under symmetry; exact, by convolution.

    Rank r enters with probability 1/2, independently: the distribution gains one rank at a time. Summed from
    the far end, so the smallest tail, 2**-B, is exact.
    """
    density = np.ones(1)
    for rank in range(1, blocks + 1):
        grown = np.zeros(density.size + rank)
        grown[: density.size] += 0.5 * density
        grown[rank:] += 0.5 * density
        density = grown
    tail = np.minimum(np.cumsum(density[::-1])[::-1], 1.0)
    tail.setflags(write=False)
    return tail


def _critical(blocks: int, alpha: float) -> int:
    """The smallest w with P(W >= w) <= alpha, of which there must be one: 2**-blocks <= alpha."""
    return int(np.argmax(signed_rank_tail(blocks) <= alpha))


def block_log_ratio(d: ArrayLike, *, margin: float, alpha: float = 0.05) -> Evidence:
    """Centre of the log ratios of paired blocks, with an exact distribution-free bound.

    Estimand: the pseudo-median of d (..., B), one datum a pair of blocks: the log of the baseline's block
    quantile over the candidate's, so that higher is better (``margin`` = log(1.05) is 5%). Assumptions: pairs
    independent; within a pair the two blocks exchangeable but for a constant factor, which random arm order
    brings about whatever drift they share: d is then symmetric. Requests inside a block may depend at will.
    Up to 60 pairs the estimate is Hodges-Lehmann and tests and bounds come from the signed-rank distribution;
    a Walsh average equal to the null counts against rejection, so ties and zeros only make the test stricter.
    Above 60 pairs: the mean with t(B - 1). ``se`` is for display (Lehmann's: from the 90% interval's length).
    Degenerate: fewer than 6 pairs, too few for any bound at alpha (2**-B > alpha), a non-finite datum, all
    equal (all zero included): not estimable.
    Source: Hodges and Lehmann (1963), Annals of Mathematical Statistics 34:598; Lehmann (1963), 34:1507.
    Coverage: tests/calibration/test_calibrated_blocks.py.

    Raises ValueError when d has no axis, or margin or alpha is out of range.
    """
    margin, alpha = checked_margin(margin), checked_alpha(alpha)
    data = np.asarray(d, dtype=np.float64)
    if data.ndim == 0:
        raise ValueError("expected log ratios on the last axis")
    blocks = data.shape[-1]
    if blocks < MIN_BLOCKS or 0.5**blocks > alpha:
        return not_estimable(data.shape[:-1], Partition.singletons(blocks), "signed rank")
    if blocks > EXACT_BLOCKS:
        return student_evidence(
            data, np.ones(blocks), Partition.singletons(blocks), margin=margin, alpha=alpha, method="block t"
        )
    return _signed_rank_evidence(data, margin=margin, alpha=alpha)


def _bounds(walsh: Floats, critical: int) -> tuple[Floats, Floats]:
    return walsh[..., -critical], walsh[..., critical - 1]


def _signed_rank_evidence(data: Floats, *, margin: float, alpha: float) -> Evidence:
    blocks = data.shape[-1]
    finite = all_finite(data)
    first, second = np.triu_indices(blocks)
    safe = np.where(finite[..., None], data, 0.0)
    walsh = np.sort(0.5 * (safe[..., first] + safe[..., second]), axis=-1)
    tail = signed_rank_tail(blocks)
    # P(theta0 rejected) <= alpha when at least `critical` Walsh averages lie above it: the bound is the
    # critical-th largest, so that lower > -margin exactly when p_noninferior <= alpha.
    lower, upper = _bounds(walsh, _critical(blocks, alpha))
    low90, high90 = _bounds(walsh, _critical(blocks, 0.05))
    return Evidence(
        effect=np.asarray(np.median(walsh, axis=-1)),
        lower=lower,
        upper=upper,
        p_noninferior=tail[np.sum(walsh > -margin, axis=-1)],
        p_worse=tail[np.sum(walsh < 0.0, axis=-1)],
        p_superior=tail[np.sum(walsh > margin, axis=-1)],
        se=(high90 - low90) / (2.0 * z_isf(0.05)),
        df=np.full(finite.shape, np.inf),
        design_effect=np.ones(finite.shape),
        estimable=finite & (upper - lower > ROUNDING * np.max(np.abs(safe), axis=-1)),
        n=blocks,
        clusters=blocks,
        g_eff=float(blocks),
        method="signed rank",
    )
