"""How far two samples lie apart as distributions. For display only: at n = 100,000 any of them flags a 2% shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats.arrays import Floats


@dataclass(frozen=True, slots=True)
class Distances:
    """``wasserstein`` in the data's units, ``kolmogorov`` between 0 and 1, ``energy`` in the root of the units."""

    wasserstein: float
    kolmogorov: float
    energy: float


def distances(baseline: ArrayLike, candidate: ArrayLike) -> Distances:
    """Distances between the empirical distribution functions F and G of two samples (n,) and (m,).

    Wasserstein: the integral of |F - G|; Kolmogorov: its largest value; energy: the root of twice the integral of
    (F - G)^2. Assumptions: none; no test and no interval, and samples of one distribution are never at distance zero.
    Degenerate: an empty sample or a value that is not finite is a ValueError.
    Source: Szekely and Rizzo (2013), J. Statistical Planning and Inference 143:1249.
    """
    first, second = (np.sort(np.asarray(x, dtype=np.float64).ravel()) for x in (baseline, candidate))
    if not (first.size and second.size and np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("expected two samples that are not empty, all finite")
    every: Floats = np.sort(np.concatenate([first, second]))
    gap = np.searchsorted(first, every, side="right") / first.size
    gap = np.abs(gap - np.searchsorted(second, every, side="right") / second.size)
    steps = np.diff(every)
    return Distances(
        wasserstein=float(gap[:-1] @ steps),
        kolmogorov=float(gap.max()),
        energy=float(np.sqrt(2.0 * (gap[:-1] ** 2 @ steps))),
    )
