"""Always-valid bounds: a stream of data may be looked at after every item, and stopped at any time.

For live traffic; a gate looks at declared shares instead (``sequential``). All bounds hold at every time at once.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from checkweigh.stats._tails import checked_alpha
from checkweigh.stats.arrays import Floats

Sides = Literal[1, 2]
_HALVINGS = 60


def mixture_rho(best_at: float, alpha: float, sides: Sides) -> float:
    """rho of the normal mixture whose boundary is tightest, nearly, at intrinsic time ``best_at``.

    v / (2 log(1/a) + log(1 + 2 log(1/a))), a = alpha for two sides and 2 alpha for one.
    Source: Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, sec. 3.5.
    ValueError for a time that is not positive.
    """
    if not 0.0 < best_at < math.inf:
        raise ValueError(f"a time must be finite and positive, got {best_at!r}")
    level = 2.0 * math.log(1.0 / (checked_alpha(alpha) * (3 - sides)))
    return best_at / (level + math.log1p(level))


def normal_mixture_boundary(v: ArrayLike, *, rho: float, alpha: float, sides: Sides) -> Floats:
    """What a sum of mean zero crosses with probability at most ``alpha``, at any of its times; v (...) -> (...).

    Estimand: none; the boundary of S_t in intrinsic time v (its variance so far), for sub-Gaussian increments.
    Two sides: sqrt((v + rho) (log(1 + v/rho) + 2 log(1/alpha))); one side: where the half-normal mixture
    sqrt(4 rho / (v + rho)) exp(s^2 / 2(v + rho)) Phi(s / sqrt(v + rho)) reaches 1 / alpha, by bisection.
    Degenerate: v of zero gives a finite boundary, NaN gives NaN. Source: Howard et al. (2021), sec. 3.5;
    Robbins (1970), Annals of Mathematical Statistics 41:1397. ValueError for a negative v or rho not positive.
    """
    times = np.asarray(v, dtype=np.float64)
    if not 0.0 < rho < math.inf or bool(np.any(times < 0.0)):
        raise ValueError("expected times that are not negative, and a positive rho")
    threshold = -math.log(checked_alpha(alpha))
    width = times + rho
    high = np.sqrt(width * (np.log1p(times / rho) + 2.0 * threshold))
    if sides == 2:
        return np.asarray(high)
    low, high = (
        np.zeros_like(width),
        np.sqrt(width * (np.abs(np.log(width / (4.0 * rho))) + 2.0 * threshold + 2.0)),
    )
    for _ in range(_HALVINGS):
        s = 0.5 * (low + high)
        grown = 0.5 * np.log(4.0 * rho / width) + s**2 / (2.0 * width) + special.log_ndtr(s / np.sqrt(width))
        low, high = np.where(grown < threshold, s, low), np.where(grown < threshold, high, s)
    return np.where(np.isnan(times), np.nan, high)


def asymptotic_sequence(
    effect: ArrayLike, se: ArrayLike, n: ArrayLike, *, best_at: float, alpha: float
) -> tuple[Floats, Floats]:
    """One-sided lower and upper bounds, each valid at all times at once in the limit; (...) each.

    Estimand: the quantity ``effect`` estimates, with standard error ``se`` after n observations (both arms' where
    the arms are independent). Half-width sqrt(n) se sqrt(2 (n r^2 + 1) / (n r)^2 log(1 + sqrt(n r^2 + 1) / (2 alpha))),
    r^2 chosen to be tight at n = ``best_at``. Assumptions: an estimator that is a mean in the limit, a consistent
    se; the guarantee is asymptotic: start no earlier than some hundreds of observations.
    Degenerate: an se that is zero or not finite, or n < 1, gives infinite bounds, never an interval without width.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Annals of Statistics 52:2613, with the one-sided
    form and r of GrowthBook's gbstats. ValueError for best_at or alpha out of range.
    """
    if not 0.0 < best_at < math.inf:
        raise ValueError(f"a number of observations must be finite and positive, got {best_at!r}")
    level = -2.0 * math.log(2.0 * checked_alpha(alpha))
    rho2 = (level + math.log1p(level)) / best_at
    middle, spread, count = (np.asarray(x, dtype=np.float64) for x in (effect, se, n))
    usable = np.isfinite(middle) & np.isfinite(spread) & (spread > 0.0) & (count >= 1.0)
    safe = np.where(usable, count, 1.0)
    grown = safe * rho2 + 1.0
    half = np.sqrt(2.0 * grown / (safe * rho2) * np.log1p(np.sqrt(grown) / (2.0 * alpha))) * spread
    half = np.where(usable, half, np.inf)
    middle = np.where(np.isfinite(middle), middle, 0.0)
    return middle - half, middle + half


def bernoulli_sequence(
    successes: ArrayLike, trials: ArrayLike, *, best_at: float, alpha: float
) -> tuple[Floats, Floats]:
    """Two-sided bounds on a probability, valid after every trial; (...) each.

    Estimand: the success probability p of independent trials. The bounds are the p at which a beta-binomial mixture,
    tuned to n = ``best_at``, reaches 1 / alpha; exact, for any n. Assumptions: trials independent and alike.
    Degenerate: no trials give (0, 1). Source: Howard et al. (2021), proposition 7; Robbins (1970).
    ValueError for impossible counts.
    """
    good, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    if not bool(np.all((good >= 0.0) & (good <= n) & np.isfinite(n))):
        raise ValueError("expected 0 <= successes <= trials")
    threshold = -math.log(checked_alpha(alpha))
    share = good / np.maximum(n, 1.0)

    def search(outside: Floats, inside: Floats) -> Floats:
        for _ in range(_HALVINGS):
            p = 0.5 * (outside + inside)
            out = _log_mixture(good, n, p, best_at, alpha) >= threshold
            outside, inside = np.where(out, p, outside), np.where(out, inside, p)
        return outside

    lower, upper = search(np.zeros_like(share), share), search(np.ones_like(share), share)
    return np.where(good == 0.0, 0.0, lower), np.where(good == n, 1.0, upper)


def bernoulli_above(successes: int, trials: int, p: float, *, best_at: float, alpha: float) -> bool:
    """Whether the lower bound of ``bernoulli_sequence`` lies above p (0 to 1), which one step of its search tells.

    Degenerate: no trials, or a share that is not above p: no.
    """
    if not 0.0 <= p < 1.0 or not 0 <= successes <= trials:
        raise ValueError("expected 0 <= p < 1 and 0 <= successes <= trials")
    if not successes > p * trials:
        return False
    good, n, null = (np.asarray(x, np.float64) for x in (successes, trials, p))
    return bool(_log_mixture(good, n, null, best_at, alpha) >= -math.log(checked_alpha(alpha)))


def _log_mixture(good: Floats, n: Floats, p: Floats, best_at: float, alpha: float) -> Floats:
    """log of the beta-binomial mixture at the null p: the beta's mean is p, its size from the tuning."""
    p = np.clip(p, 1e-300, 1.0 - 1e-16)
    v = p * (1.0 - p)
    level = 2.0 * math.log(1.0 / alpha)
    rho = np.maximum(best_at * v / (level + math.log1p(level)) - v, 1e-3 * v)
    a, b = rho / (1.0 - p), rho / p
    return np.asarray(
        special.betaln(a + good, b + n - good)
        - special.betaln(a, b)
        - good * np.log(p)
        - (n - good) * np.log1p(-p)
    )
