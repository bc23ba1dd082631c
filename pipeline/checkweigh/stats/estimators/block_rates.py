"""Rates of requests that met a promise, or failed, in pairs of blocks that got the same requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from checkweigh.stats.arrays import Floats
from checkweigh.stats.estimators.binary import clustered_tango
from checkweigh.stats.evidence import Evidence
from checkweigh.stats.partition import Partition

RARE = 10
"""Up to so many requests on which the arms differ, deterioration is tested exactly, by counting blocks."""


def block_rates(
    better: ArrayLike, worse: ArrayLike, sizes: ArrayLike, *, margin: float, alpha: float = 0.05
) -> Evidence:
    """Difference of two rates over the same requests in B pairs of blocks, higher is better.

    ``better``, ``worse``: (..., B) requests of a block that only the candidate, or only the baseline, did well;
    ``sizes``: (B,) requests of each. Estimand: (sum better - sum worse) / sum sizes. A block is a cluster, because its
    requests wait in one queue and fail together. The score test is deflated and referred to t(B - 1) as in
    ``clustered_tango``, with its cautious guess of correlation .5 as long as little was seen.
    Where the arms differ on at most ``RARE`` requests, p of deterioration is that of the exact conditional binomial. Of
    the blocks in which one arm did better, each is the candidate's with probability at most 1/2. That holds whatever
    the correlation within a block.
    Degenerate: fewer than 2 blocks, a count that is not finite. No difference at all still has an interval.
    Size: tests/calibration/test_calibrated_rates.py. Raises ValueError for impossible counts.
    """
    up, down = np.asarray(better, np.float64), np.asarray(worse, np.float64)
    n = np.asarray(sizes, dtype=np.int64)
    up, down = np.broadcast_arrays(up, down)
    if n.ndim != 1 or up.ndim == 0 or up.shape[-1] != len(n) or (n < 1).any():
        raise ValueError(f"expected counts for {len(n)} blocks of at least one request, got {up.shape}")
    with np.errstate(invalid="ignore"):
        if (up < 0).any() or (down < 0).any() or (up + down > n).any():
            raise ValueError("more requests that differ than there are")
    place = np.concatenate([np.arange(size) for size in n])
    first = np.where(place < np.repeat(down, n, axis=-1), 1.0, 0.0)
    second = np.where(place >= np.repeat(n - up, n, axis=-1), 1.0, 0.0)
    hole = np.repeat(~np.isfinite(up + down), n, axis=-1)
    evidence = clustered_tango(
        np.where(hole, np.nan, first), np.where(hole, np.nan, second),
        Partition.from_labels([str(b) for b in np.repeat(np.arange(len(n)), n)]), margin=margin, alpha=alpha,
    )  # fmt: skip
    return _exact_when_rare(evidence, up, down)


def _exact_when_rare(evidence: Evidence, up: Floats, down: Floats) -> Evidence:
    """The same evidence with the exact p of deterioration where few requests differ."""
    wins, losses = np.sum(up > down, axis=-1), np.sum(down > up, axis=-1)
    exact = special.bdtrc(losses - 1.0, wins + losses, 0.5)  # P(X >= losses)
    exact = np.where(losses == 0, 1.0, exact)
    rare = np.sum(up + down, axis=-1) <= RARE
    fields = {name: getattr(evidence, name) for name in evidence.__dataclass_fields__}
    return Evidence(
        **fields | {"p_worse": np.where(rare, exact, evidence.p_worse), "method": "score over blocks"}
    )
