"""One arm's proportion against a fixed limit: Wilson's score, deflated for clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import all_finite, checked_alpha, t_isf, t_sf
from checkweigh.stats.arrays import Floats
from checkweigh.stats.estimators.binary import design_effect
from checkweigh.stats.evidence import Evidence, not_estimable
from checkweigh.stats.partition import Partition


def clustered_proportion(
    values: ArrayLike, partition: Partition, *, limit: float, sign: float, alpha: float = 0.05
) -> Evidence:
    """How far a proportion lies on the good side of ``limit``: effect = sign * (mean - limit).

    Estimand: the mean of ``values`` (..., n), each 0 or 1; ``sign`` is +1 where higher is better, else -1.
    ``p_noninferior`` is p of H0 "on the limit or on its bad side", ``p_worse`` of H0 "on the limit or on its
    good side". Assumptions: clusters independent. The effective number of items is n / D, with D shrunk as for
    paired proportions (the rarer outcome counts as the flips); t(G_eff - 1), the normal for singletons.
    Degenerate: fewer than 2 clusters or a value that is not finite: not estimable. All zeros or all ones still
    have an interval. ValueError for a limit outside (0, 1), or finite values other than 0 and 1.
    Source: Wilson (1927); Korn and Graubard (1998) for the effective number of items.
    """
    alpha = checked_alpha(alpha)
    data = np.asarray(values, dtype=np.float64)
    if not 0.0 < limit < 1.0:
        raise ValueError(f"a limit on a proportion lies between 0 and 1, got {limit!r}")
    if data.ndim == 0 or data.shape[-1] != partition.n:
        raise ValueError(f"expected {partition.n} items, got {data.shape}")
    if np.any(np.isfinite(data) & (data != 0.0) & (data != 1.0)):
        raise ValueError("binary outcomes must be 0 or 1")
    method = "Wilson score" if partition.clusters == partition.n else "clustered Wilson score"
    if partition.clusters < 2:
        return not_estimable(data.shape[:-1], partition, method)
    finite = all_finite(data)
    share = np.where(finite, data.mean(axis=-1), 0.5)
    rarer = partition.n * np.minimum(share, 1.0 - share)
    inflation = design_effect(np.where(finite[..., None], data, 0.0), rarer, partition)
    df = np.inf if partition.clusters == partition.n else partition.g_eff - 1.0
    spread = np.sqrt(limit * (1.0 - limit) * inflation / partition.n)
    z = sign * (share - limit) / spread
    low, high = _wilson(share, partition.n / inflation, t_isf(alpha, df))
    ends = (low - limit, high - limit) if sign > 0 else (limit - high, limit - low)
    return Evidence(
        effect=sign * (share - limit), lower=ends[0], upper=ends[1],
        p_noninferior=t_sf(z, df), p_worse=t_sf(-z, df), p_superior=t_sf(z, df),
        se=spread, df=np.full(share.shape, df), design_effect=inflation, estimable=finite,
        n=partition.n, clusters=partition.clusters, g_eff=partition.g_eff, method=method,
    )  # fmt: skip


def _wilson(share: Floats, n: Floats, reach: float) -> tuple[Floats, Floats]:
    """Both ends at ``reach`` standard errors, n effective items."""
    middle = (share + reach**2 / (2 * n)) / (1 + reach**2 / n)
    half = reach * np.sqrt(share * (1 - share) / n + reach**2 / (4 * n**2)) / (1 + reach**2 / n)
    return middle - half, middle + half
