"""How many items a policy needs, before measuring and after an inconclusive answer."""

from __future__ import annotations

import math

from scipy import special

from checkweigh.stats._tails import checked_alpha, checked_margin, z_isf
from checkweigh.stats.estimators.binary import least_n_without_flips

MOST_TIMES = 100
"""More than this many times the items at hand is no plan: the effect cannot be told from -margin."""


def standard_errors_needed(checks: int, joint_pass: float = 0.8, alpha: float = 0.05) -> float:
    """k = z(1 - alpha) + z(q**(1/K)): the margin in standard errors at which equal arms pass all K checks.

    With probability q = ``joint_pass``, were the checks independent (cautious when they are positively
    correlated). K = 1, q = .8: 2.49; K = 30: 4.08.
    """
    return z_isf(checked_alpha(alpha)) + _z_each(checks, joint_pass)


def _z_each(checks: int, joint_pass: float) -> float:
    if checks < 1 or not 0.0 < joint_pass < 1.0:
        raise ValueError(f"expected checks >= 1 and 0 < joint_pass < 1, got {checks} and {joint_pass!r}")
    return float(special.ndtri(joint_pass ** (1.0 / checks)))


def required_n(
    sd: float,
    margin: float,
    *,
    checks: int,
    joint_pass: float = 0.8,
    design_effect: float = 1.0,
    alpha: float = 0.05,
) -> int:
    """Items at which an equal candidate passes all K checks with probability ``joint_pass``.

    n = design_effect * (sd * k / margin)^2; sd of the paired difference and margin in the same units.
    Assumptions: normal approximation, known sd, true difference zero. Degenerate: an sd of zero is missing
    knowledge and not a free pass: ValueError, as for a margin that is not positive.
    Source: Julious (2004), Statistics in Medicine 23:1921, sec. 5; k for a joint pass is ours.
    """
    spread, m = _positive("sd", sd), _positive("margin", margin)
    k = standard_errors_needed(checks, joint_pass, alpha)
    return math.ceil(_positive("design_effect", design_effect) * (spread * k / m) ** 2)


def required_n_binary(
    flip_share: float,
    margin: float,
    *,
    checks: int,
    joint_pass: float = 0.8,
    design_effect: float = 1.0,
    alpha: float = 0.05,
) -> int:
    """Items for a paired proportion when a share f of the pairs flips, equally often each way.

    n = design_effect * [(z(1 - alpha) sqrt(V0) + z(q^(1/K)) sqrt(f)) / m]^2, where
    V0 = (f + sqrt(f^2 + 4 m^2)) / 2, the variance under delta = -m, stays positive when f does not; and never
    below design_effect * least_n_without_flips. Assumptions as for required_n; raises ValueError likewise,
    and for f outside 0..1. Source: after Nam (1997), Biometrics 53:1422, with Tango's null variance.
    """
    if not 0.0 <= flip_share <= 1.0:
        raise ValueError(f"flip_share must lie between 0 and 1, got {flip_share!r}")
    m, deff = _positive("margin", margin), _positive("design_effect", design_effect)
    null = (flip_share + math.hypot(flip_share, 2.0 * m)) / 2.0
    z_each = _z_each(checks, joint_pass)
    reach = z_isf(checked_alpha(alpha)) * math.sqrt(null) + z_each * math.sqrt(flip_share)
    return math.ceil(deff * max((reach / m) ** 2, float(least_n_without_flips(m, alpha))))


def pass_probability(
    sd: float, margin: float, n: int, *, checks: int = 1, design_effect: float = 1.0, alpha: float = 0.05
) -> float:
    """Chance that an equal candidate passes all K checks with n items, were they independent.

    Phi(margin / se - z(1 - alpha))^K, se = sd * sqrt(design_effect / n). The inverse of required_n.
    """
    if n < 1 or checks < 1:
        raise ValueError(f"expected n >= 1 and checks >= 1, got {n} and {checks}")
    se = _positive("sd", sd) * math.sqrt(_positive("design_effect", design_effect) / n)
    return float(special.ndtr(_positive("margin", margin) / se - z_isf(checked_alpha(alpha)))) ** checks


def pass_probability_binary(
    flip_share: float, margin: float, n: int, *, design_effect: float = 1.0, alpha: float = 0.05
) -> float:
    """Chance that an equal candidate passes one paired 0/1 check with n items, a share f of them flipping.

    Phi([m sqrt(n / D) - z(1 - alpha) sqrt(V0)] / sqrt(f)), V0 as in ``required_n_binary``, of which it is the inverse;
    without flips 1 from D * ``least_n_without_flips`` on, else 0. Errors as there.
    """
    if not 0.0 <= flip_share <= 1.0 or n < 1:
        raise ValueError(f"expected 0 <= flip_share <= 1 and n >= 1, got {flip_share!r} and {n}")
    m, effective = _positive("margin", margin), n / _positive("design_effect", design_effect)
    if effective < least_n_without_flips(m, alpha):
        return 0.0
    if flip_share == 0.0:
        return 1.0
    null = (flip_share + math.hypot(flip_share, 2.0 * m)) / 2.0
    excess = m * math.sqrt(effective) - z_isf(checked_alpha(alpha)) * math.sqrt(null)
    return float(special.ndtr(excess / math.sqrt(flip_share)))


def detectable_binary(
    flip_share: float,
    n: int,
    *,
    checks: int,
    joint_pass: float = 0.8,
    design_effect: float = 1.0,
    alpha: float = 0.05,
) -> float | None:
    """The smallest margin at which ``required_n_binary`` asks for no more than n items; None when none below 1 does."""
    low, high = 0.0, 0.999

    def enough(margin: float) -> bool:
        return n >= required_n_binary(
            flip_share, margin, checks=checks, joint_pass=joint_pass, design_effect=design_effect, alpha=alpha
        )

    if not enough(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def minimum_detectable(
    sd: float,
    n: int,
    *,
    checks: int,
    joint_pass: float = 0.8,
    design_effect: float = 1.0,
    alpha: float = 0.05,
) -> float:
    """The smallest margin that n items can hold: equal arms pass all K checks with ``joint_pass``.

    Equally the smallest loss that one check would detect at that power. In sd's units,
    sd * k * sqrt(design_effect / n); assumptions and errors as for required_n.
    """
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    k = standard_errors_needed(checks, joint_pass, alpha)
    return _positive("sd", sd) * k * math.sqrt(_positive("design_effect", design_effect) / n)


def items_to_settle(
    effect: float,
    se: float,
    n: int,
    margin: float,
    alpha: float = 0.05,
    power: float = 0.8,
    *,
    checks: int = 1,
    block_alpha: float = 0.01,
) -> int | None:
    """Items in all at which a candidate whose true effect is this estimate would be settled, at ``power``.

    Above -margin: passes, lower bound above -margin. Below: blocks, both significantly worse at
    ``block_alpha / checks`` (Holm's first step) and estimated beyond the margin. se falls as 1/sqrt(n).
    Never below n, what was measured already. None when more than 100 n would be needed, at -margin itself,
    and when effect or se is missing or zero: no number of items then settles it.
    The estimate is uncertain, so the answer is an order of magnitude, and a rerun with it a declared look.
    """
    m, z_power = checked_margin(margin), z_isf(1.0 - power)
    if n < 1 or not 0.0 < power < 1.0:
        raise ValueError(f"expected n >= 1 and 0 < power < 1, got {n} and {power!r}")
    if not (math.isfinite(effect) and math.isfinite(se) and se > 0.0) or effect == -m:
        return None
    if effect > -m:
        ratio = (z_isf(checked_alpha(alpha)) + z_power) * se / (effect + m)
    else:
        worse = (z_isf(checked_alpha(block_alpha) / checks) + z_power) * se / -effect
        ratio = max(worse, z_power * se / (-m - effect))
    return max(n, math.ceil(n * ratio**2)) if ratio**2 <= MOST_TIMES else None


def _positive(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be finite and positive, got {value!r}")
    return float(value)
