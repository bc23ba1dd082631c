"""Tail probabilities and quantiles of z and t that stay exact far out, and checks of arguments.

Always the upper tail directly, never ``1 - cdf``, which is 0 beyond 8 standard errors. ``scipy.special`` and
not ``scipy.stats``: the latter costs a second to import. Infinite degrees of freedom are the normal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from checkweigh.stats.arrays import Bools, Floats


def all_finite(x: Floats) -> Bools:
    """Whether every item on the last axis is finite, (..., n) -> (...)."""
    return np.asarray(np.isfinite(x).all(axis=-1), dtype=np.bool_)


def t_sf(x: ArrayLike, df: float) -> Floats:
    """P(T > x) for Student's t; NaN where df <= 0 or x is NaN."""
    return np.asarray(special.stdtr(df, -np.asarray(x, dtype=np.float64)), dtype=np.float64)


def t_isf(p: float, df: float) -> float:
    """The x with P(T > x) = p for Student's t."""
    return -float(special.stdtrit(df, p))


def z_isf(p: float) -> float:
    """The x with P(Z > x) = p for the standard normal."""
    return -float(special.ndtri(p))


def checked_alpha(alpha: float) -> float:
    """A one-sided level; at .5 and above a "bound" would lie on the wrong side of the estimate."""
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and .5, got {alpha!r}")
    return float(alpha)


def checked_margin(margin: float, *, below: float = math.inf) -> float:
    """A margin is finite and not negative; for proportions it is also below 1."""
    if not 0.0 <= margin < below:
        limit = "" if math.isinf(below) else f" and below {below:g}"
        raise ValueError(f"margin must be finite, not negative{limit}, got {margin!r}")
    return float(margin)
