"""Several checks, one error rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats.arrays import Floats


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values over the last axis, (..., K) -> (..., K).

    Rejecting where the adjusted p is at most alpha keeps the chance of any false rejection below alpha, under
    any dependence. Degenerate: a missing p (NaN) is no evidence and counts as 1; K stays what it is, so a
    check cannot drop out and make the others easier. Source: Holm (1979), Scandinavian J. of Statistics 6:65.

    Raises ValueError when a p lies outside 0..1 or there is no axis.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim == 0:
        raise ValueError("expected p-values on the last axis")
    values = np.where(np.isnan(values), 1.0, values)
    if np.any((values < 0.0) | (values > 1.0)):
        raise ValueError("p-values must lie between 0 and 1")
    checks = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    stepped = np.take_along_axis(values, order, axis=-1) * np.arange(checks, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result
