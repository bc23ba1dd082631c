"""Group-sequential boundaries: several looks at growing data, one error rate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from checkweigh.stats._tails import checked_alpha, z_isf
from checkweigh.stats.arrays import Floats

GRID = 2001  # points over the continuation region of a look
FAR = 9.0  # standard deviations at which an interval that has no end of its own is cut off


def alpha_spent(fraction: float, alpha: float) -> float:
    """Error that the O'Brien-Fleming type spending function has used up at an information fraction.

    alpha(t) = 2 - 2 Phi(z(alpha / 2) / sqrt(t)), one-sided; alpha(1) = alpha. Lan and DeMets (1983), Biometrika
    70:659. ValueError outside 0 < t <= 1.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"an information fraction lies in (0, 1], got {fraction!r}")
    return float(2.0 * special.ndtr(-z_isf(checked_alpha(alpha) / 2.0) / np.sqrt(fraction)))


def spending_boundary(fractions: Sequence[float], alpha: float) -> Floats:
    """(J,) upper z boundaries at J looks that together reject a true null with probability ``alpha``, one-sided.

    ``fractions``: increasing information fractions, by design and never from an estimated variance; the last look has
    fraction 1 and spends what is left, whatever n it came to. Between looks the score process has independent normal
    increments (Jennison and Turnbull 2000, ch. 19): its density below the boundaries is carried from look to look by
    numerical integration. Five equal looks at .025: 4.8769, 3.3570, 2.6803, 2.2898, 2.0310.

    Raises ValueError for fractions that do not increase or do not end at 1.
    """
    t = np.asarray(fractions, dtype=np.float64)
    if t.ndim != 1 or not len(t) or not t[0] > 0 or not (np.diff(t) > 0).all() or t[-1] != 1.0:
        raise ValueError(f"expected information fractions that increase up to 1, got {list(fractions)}")
    bounds = np.empty(len(t))
    used, before = 0.0, 0.0
    points = density = np.zeros(0)  # of the score S = z sqrt(t), on the part that goes on
    for j, fraction in enumerate(t):
        total = alpha_spent(float(fraction), alpha)
        step = np.sqrt(fraction - before)
        reach = FAR * np.sqrt(fraction)
        bound = _solve(points, density, step, total - used, reach) if j else z_isf(total) * np.sqrt(fraction)
        bounds[j] = bound / np.sqrt(fraction)
        fresh = np.linspace(-reach, bound, GRID)
        if j == 0:
            density_there = np.exp(-(fresh**2) / (2 * fraction)) / np.sqrt(2 * np.pi * fraction)
        else:
            kernel = np.exp(-(((fresh[:, None] - points) / step) ** 2) / 2) / (step * np.sqrt(2 * np.pi))
            density_there = kernel @ (density * _weights(points))
        points, density, used, before = fresh, density_there, total, float(fraction)
    return bounds


def nominal_level(fractions: Sequence[float], alpha: float) -> float:
    """One-sided level of the test at the last of the looks so far, whatever looks are still to come.

    ``fractions``: increasing, up to 1 where the last look is the final one; a single final look has ``alpha``.
    """
    return _nominal(tuple(fractions), checked_alpha(alpha))


@lru_cache(maxsize=64)
def _nominal(looks: tuple[float, ...], alpha: float) -> float:
    if looks == (1.0,):
        return alpha
    whole = looks if looks[-1:] == (1.0,) else (*looks, 1.0)
    return float(special.ndtr(-spending_boundary(whole, alpha)[len(looks) - 1]))


def _solve(points: Floats, density: Floats, step: float, wanted: float, reach: float) -> float:
    """The score above which the next look rejects with probability ``wanted``, by bisection."""
    weights = density * _weights(points)
    low, high = -reach, reach + FAR * step
    for _ in range(80):
        middle = (low + high) / 2
        above = float(weights @ special.ndtr((points - middle) / step))
        low, high = (middle, high) if above > wanted else (low, middle)
    return (low + high) / 2


def _weights(points: Floats) -> Floats:
    """Simpson's weights of an odd number of equally spaced points."""
    weights = np.full(len(points), 2.0)
    weights[1::2] = 4.0
    weights[0] = weights[-1] = 1.0
    return np.asarray(weights * (points[1] - points[0]) / 3.0)
