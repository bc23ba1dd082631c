"""Rates of two independent groups (errors, sheds): a score interval, and the exact conditional test when rare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from checkweigh.stats._tails import checked_alpha, z_isf
from checkweigh.stats.arrays import Floats

RARE = 10
"""Events in both groups together below which the normal score is not to be trusted."""
_HALVINGS = 60


@dataclass(frozen=True, slots=True, eq=False)
class RateRatio:
    """Exact comparison of two rare rates; arrays (...). ``ratio`` = candidate's rate over the baseline's.

    ``lower``, ``upper``: one-sided bounds; ``p_worse``: p of H0 "the candidate's rate is not higher". Without any
    event ``ratio`` is NaN, the bounds are 0 and infinity and p is 1: nothing was seen, nothing is known.
    """

    ratio: Floats
    lower: Floats
    upper: Floats
    p_worse: Floats


def rare_rate_ratio(
    baseline: ArrayLike, baseline_n: ArrayLike, candidate: ArrayLike, candidate_n: ArrayLike, *, alpha: float
) -> RateRatio:
    """Ratio of two rare rates, given how many events there were in all.

    Estimand: the ratio of the rates of two independent Poisson streams with exposures ``*_n`` (requests). Given the
    total, the candidate's events are binomial with share q = r n_c / (n_b + r n_c), r the ratio; bounds are
    Clopper-Pearson's for q, turned into r. Assumptions: events independent (count sessions, not retries).
    Degenerate: see ``RateRatio``; ValueError for counts that are negative or exposures that are not positive.
    Source: Przyborowski and Wilenski (1940), Biometrika 31:313.
    """
    alpha = checked_alpha(alpha)
    b, n_b, c, n_c = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (baseline, baseline_n, candidate, candidate_n))
    )
    sound = (b >= 0) & (c >= 0) & (n_b > 0) & (n_c > 0) & np.isfinite(b + c + n_b + n_c)
    if not bool(np.all(sound)):
        raise ValueError("expected counts that are not negative and exposures above zero")
    low = np.where(c > 0, special.betaincinv(np.maximum(c, 1e-300), b + 1.0, alpha), 0.0)
    high = np.where(b > 0, special.betaincinv(c + 1.0, np.maximum(b, 1e-300), 1.0 - alpha), 1.0)
    equal = n_c / (n_b + n_c)
    with np.errstate(divide="ignore", invalid="ignore"):
        return RateRatio(
            ratio=(c / n_c) / (b / n_b),
            lower=low / (1.0 - low) * n_b / n_c,
            upper=np.where(high < 1.0, high / (1.0 - high) * n_b / n_c, np.inf),
            p_worse=np.where(c > 0, special.betainc(np.maximum(c, 1e-300), b + 1.0, equal), 1.0),
        )


def rate_difference(
    baseline: ArrayLike, baseline_n: ArrayLike, candidate: ArrayLike, candidate_n: ArrayLike, *, alpha: float
) -> tuple[Floats, Floats]:
    """One-sided score bounds of candidate's minus baseline's proportion, each at 1 - alpha; (...) each.

    Estimand: the difference of two independent proportions. Assumptions: trials independent and alike within a group;
    below ``RARE`` events use ``rare_rate_ratio``. The variance under each null is that of the restricted maximum
    likelihood. Degenerate: no events at all still have a width; no trials are a ValueError, as are impossible counts.
    Source: Farrington and Manning (1990), Statistics in Medicine 9:1447; Miettinen and Nurminen (1985), 4:213, without
    their factor N / (N - 1).
    """
    b, n_b, c, n_c = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (baseline, baseline_n, candidate, candidate_n))
    )
    if not bool(np.all((n_b > 0) & (n_c > 0) & (b >= 0) & (c >= 0) & (b <= n_b) & (c <= n_c))):
        raise ValueError("expected 0 <= events <= trials and trials above zero")
    reach = z_isf(checked_alpha(alpha))
    effect = c / n_c - b / n_b

    def search(outside: Floats, sign: float) -> Floats:
        inside = np.array(effect)
        for _ in range(_HALVINGS):
            null = 0.5 * (outside + inside)
            spread = np.sqrt(_restricted_variance(b, n_b, c, n_c, null))
            out = sign * (effect - null) > reach * spread
            outside, inside = np.where(out, null, outside), np.where(out, inside, null)
        return outside

    return search(np.full_like(effect, -1.0), 1.0), search(np.full_like(effect, 1.0), -1.0)


def _restricted_variance(b: Floats, n_b: Floats, c: Floats, n_c: Floats, null: Floats) -> Floats:
    """Variance of the difference when it is ``null``: the cubic of the restricted likelihood, in closed form."""
    theta = n_b / n_c
    first, second = c / n_c, b / n_b
    k3 = 1.0 + theta
    k2 = -(1.0 + theta + first + theta * second + null * (theta + 2.0))
    k1 = null**2 + null * (2.0 * first + theta + 1.0) + first + theta * second
    k0 = -first * null * (1.0 + null)
    shift = k2 / (3.0 * k3)
    v = shift**3 - k1 * k2 / (6.0 * k3**2) + k0 / (2.0 * k3)
    u = np.copysign(np.sqrt(np.maximum(shift**2 - k1 / (3.0 * k3), 0.0)), v)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(u == 0.0, 0.0, v / u**3)
    angle = (np.pi + np.arccos(np.clip(ratio, -1.0, 1.0))) / 3.0
    p_c = np.clip(2.0 * u * np.cos(angle) - shift, np.maximum(null, 0.0), np.minimum(1.0 + null, 1.0))
    p_b = np.clip(p_c - null, 0.0, 1.0)
    return np.asarray(p_c * (1.0 - p_c) / n_c + p_b * (1.0 - p_b) / n_b)
