"""Numbers as people read them. Pure; every report renders through here, so that all of them agree.

Records orient effects so that higher is better. People know their metrics by their own sign ("perplexity went up"). So
effects are shown as candidate minus baseline in the metric's own direction. The limit carries a comparison sign that
says which side is allowed: ``+0.3350`` against ``≤ +0.0300``.

Rounding never makes a bound touch a limit that it does not touch: digits are added until they differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from checkweigh.records.comparison import Estimate
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check

_MOST_DIGITS = 15
_EXTRA_AGAINST_ZERO = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """How one check's numbers are shown: ``convert`` then fixed ``digits`` and ``suffix``."""

    convert: Callable[[float], float]
    digits: int
    suffix: str
    signed: bool = True

    def text(self, value: float, digits: int | None = None) -> str:
        """A natural value (not yet converted) with its suffix."""
        return (
            fixed(self.convert(value), self.digits if digits is None else digits, self.signed) + self.suffix
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FormattedEstimate:
    """One estimate in its natural unit: the effect and the limit with it, the bounds (low <= high) without.

    ``title`` is the same effect on the other scale, or empty.
    """

    effect: str
    bounds: str
    limit: str
    title: str


def fixed(value: float, digits: int, signed: bool = True) -> str:
    """Fixed-point text, thousands separated, without a negative zero; scientific from a million up."""
    if abs(value) >= 1e6:
        return f"{value:+.3e}" if signed else f"{value:.3e}"
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text.lstrip("+-")
    return text


def percent_of_log(value: float) -> float:
    """A log ratio as percent of change; saturates instead of overflowing."""
    return math.expm1(min(value, 650.0)) * 100


def digits_apart(
    values: Iterable[float], marks: Iterable[float], least: int, most: int = _MOST_DIGITS
) -> int:
    """Fewest digits, at least ``least``, at which no value reads like a mark that it is not equal to."""
    pairs = [(v, m) for v in values for m in marks if v != m]
    digits = least
    while digits < most and any(fixed(v, digits) == fixed(m, digits) for v, m in pairs):
        digits += 1
    return digits


def unit_of(check: Check) -> Unit:
    """The natural unit of a check's differences; of its level for an absolute check."""
    unit = METRICS[check.metric].unit
    signed = check.kind != "absolute"
    if check.metric == "log_perplexity" and check.scale != "relative":
        return Unit(convert=float, digits=4, suffix=" nats/token", signed=signed)
    if check.scale in ("log", "relative"):
        return Unit(convert=percent_of_log, digits=1, suffix="%", signed=signed)
    if unit in ("share", "points"):
        return Unit(convert=lambda v: v * 100, digits=2, suffix=" pp" if signed else "%", signed=signed)
    return Unit(convert=float, digits=4, suffix=f" {unit}", signed=signed)


def natural(check: Check, value: float) -> float:
    """An oriented effect in the metric's own direction; for an absolute check the candidate's own value.

    The effect of an absolute check is how far it lies on the good side of the limit ``check.margin``.
    """
    in_direction = value if check.direction == "higher" else -value
    return in_direction + check.margin if check.kind == "absolute" else in_direction


def _marks(check: Check, margin: float) -> tuple[float, ...]:
    """Limits in the metric's own direction, on the comparison's scale."""
    if check.kind == "equivalence":
        return (-margin, margin)
    if check.kind == "absolute":
        return (check.margin,)
    return (natural(check, margin if check.kind == "superiority" else -margin),)


def limit(check: Check, margin: float, digits: int | None = None) -> str:
    """What the check demands: ``≤ +0.0300 nats/token``, ``≥ -2.0 pp``, ``-9.5% to +10.5%``."""
    unit = unit_of(check)
    marks = _marks(check, margin)
    if digits is None:
        digits = digits_apart([unit.convert(m) for m in marks], [0.0], unit.digits)
    texts = [unit.text(m, digits) for m in marks]
    if check.kind == "equivalence":
        return f"{texts[0]} to {texts[1]}"
    return f"{'≥' if check.direction == 'higher' else '≤'} {texts[0]}"


def format_estimate(check: Check, estimate: Estimate, margin: float) -> FormattedEstimate:
    """One estimate, its bounds and its limit with the digits that tell them apart.

    Failures may forbid a bound on the worse side; it then reads ``unbounded``.
    """
    unit = unit_of(check)
    effect = natural(check, estimate.effect)
    ends = [None if v is None else natural(check, v) for v in (estimate.low, estimate.high)]
    if check.direction == "lower":
        ends.reverse()
    values = [unit.convert(v) for v in (effect, *ends) if v is not None]
    marks = [unit.convert(m) for m in _marks(check, margin)]
    zero = digits_apart([*values, *marks], [0.0], unit.digits, unit.digits + _EXTRA_AGAINST_ZERO)
    digits = digits_apart(values, marks, zero)
    return FormattedEstimate(
        effect=unit.text(effect, digits),
        bounds=" to ".join(_end(unit, end, digits) for end in ends),
        limit=limit(check, margin, digits),
        title=_other_scale(check, effect),
    )


def without_unit(text: str) -> str:
    """A number without its unit, for a column that stands beside one with it; percent signs stay."""
    return re.sub(r" (pp|[a-z]+/[a-z]+)(?=$| to )", "", text)


def _end(unit: Unit, value: float | None, digits: int) -> str:
    return "unbounded" if value is None else without_unit(unit.text(value, digits))


def _other_scale(check: Check, effect: float) -> str:
    if check.kind == "absolute" or check.scale == "absolute":
        return ""
    if check.metric == "log_perplexity" and check.scale == "log":
        return f"perplexity {fixed(percent_of_log(effect), 1)}%"
    return f"log ratio {fixed(effect, 4)}"


def level(metric: str, value: float | None) -> str:
    """One arm's own value in the metric's unit (a name that is no metric is the unit); a dash for none."""
    if value is None:
        return "-"
    unit = METRICS[metric].unit if metric in METRICS else metric
    if metric == "log_length":
        value = math.exp(min(value, 650.0))  # recorded as a mean of logarithms: the geometric mean
    if unit in ("share", "points"):
        return f"{fixed(value * 100, 1, False)}%"
    if unit == "s":
        return duration(value)
    if unit == "bytes":
        return size(value)
    if unit == "tokens":
        return f"{fixed(value, 1, False)} tokens"
    return f"{fixed(value, 4, False)} {unit}".rstrip()


def loss(metric: str, value: float) -> str:
    """A difference between two levels of one item: points for shares and scores."""
    unit = METRICS[metric].unit if metric in METRICS else metric
    return f"{fixed(value * 100, 1, False)} pp" if unit in ("share", "points") else level(metric, value)


def levels(metric: str, baseline: float | None, candidate: float | None) -> str:
    """Both arms' own values; a unit that they share is said once."""
    first, second = level(metric, baseline), level(metric, candidate)
    unit = second.partition(" ")[2]
    return f"{first.removesuffix(' ' + unit) if unit else first} → {second}"


def probability(value: float, against: float | None = None) -> str:
    """``p = 0.0312``, ``p < 0.0001``; never rounded onto the threshold ``against``."""
    if value < 1e-4 and (against is None or against >= 1e-4):
        return "p < 0.0001"
    digits = digits_apart([value], [] if against is None else [against], 4 if value < 0.01 else 3)
    text = fixed(value, digits, False)
    return "p > 0.999" if value > 0.999 else f"p = {text}"


def boundary(level: float) -> str:
    """A level that p must stay below: ``p < 0.00554``."""
    return f"p < {level:.3g}"


def confidence(value: float) -> str:
    """``95%``, ``99.45%``, ``99.991%``: as many digits as keep it below 100%."""
    digits = 4
    while digits < _MOST_DIGITS and float(f"{value * 100:.{digits}g}") >= 100 > value * 100:
        digits += 1
    return f"{value * 100:.{digits}g}%"


def times(ratio: float) -> str:
    """A multiple: ``11×``, ``1.4×``, ``0.97×``; never rounded onto 1."""
    digits = digits_apart([ratio], [1.0], 0 if ratio >= 10 else 1)
    return f"{fixed(ratio, digits, False)}×"


def duration(seconds: float) -> str:
    """``12.3 ms``, ``4.56 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """Bytes with a binary prefix: ``812 MiB``."""
    for prefix in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.3g} {prefix}" if abs(value) < 999.5 else f"{value:.0f} {prefix}"
        value /= 1024
    return f"{value:.3g} TiB"


def count(value: int) -> str:
    """A whole number with thousands separated."""
    return f"{value:,}"
