"""Quantiles of a block of requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from checkweigh.stats._tails import Floats, all_finite


def harrell_davis(x: ArrayLike, q: float) -> Floats:
    """Harrell-Davis estimate of the q-quantile over the last axis, (..., n) -> (...), in x's units.

    Estimand: the q-quantile. A weighted mean of all order statistics with Beta((n+1)q, (n+1)(1-q)) weights:
    steadier than one or two order statistics. Assumptions: none on the shape. Degenerate: no items, or a
    non-finite one, gives NaN. Source: Harrell and Davis (1982), Biometrika 69:635.

    Raises ValueError when q is not inside (0, 1) or x has no axis.
    """
    values = np.asarray(x, dtype=np.float64)
    if not 0.0 < q < 1.0 or values.ndim == 0:
        raise ValueError(f"expected data with an axis and 0 < q < 1, got shape {values.shape} and q={q!r}")
    n = values.shape[-1]
    if n == 0:
        return np.full(values.shape[:-1], np.nan)
    weights = np.diff(special.betainc((n + 1) * q, (n + 1) * (1.0 - q), np.arange(n + 1) / n))
    finite = all_finite(values)
    return np.where(finite, np.sort(np.where(finite[..., None], values, 0.0), axis=-1) @ weights, np.nan)
