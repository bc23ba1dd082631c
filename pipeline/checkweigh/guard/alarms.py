"""Two alarms on live latency: candidate against control, and the served p99 against the gated baseline. Pure.

Both are always-valid (STATISTICS.md, Canary): they may be looked at after every request. They treat requests as
independent, which a cluster of one session's requests is not; the log that ``canary`` reads has the sessions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from checkweigh.stats.anytime import asymptotic_sequence, bernoulli_sequence

_BEST_AT = 400  # requests of both arms at which the bounds are tightest
_WINDOW = 400  # requests an arm


@dataclass(slots=True)
class Moments:
    """Running mean and variance (Welford)."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.m2 += step * (value - self.mean)

    @property
    def variance_of_mean(self) -> float:
        """NaN below two values."""
        return math.nan if self.n < 2 else self.m2 / (self.n - 1) / self.n


class Slower:
    """Whether the candidate is slower than the control by more than ``margin``, in log seconds.

    Estimand: the difference of mean log latencies, concurrent control. Fires when the one-sided confidence sequence
    excludes "not slower" *and* the estimate lies beyond the margin; latched. Degenerate: fewer than ``least`` requests
    an arm, or no variance: never.

    What was good for long must not cover what is bad now, so that it begins anew once both arms have 400
    requests; the k-th window has the level alpha / (k (k + 1)), which is ``alpha`` over all of them.
    """

    def __init__(self, *, margin: float, alpha: float, least: int) -> None:
        self._margin, self._alpha, self._least = margin, alpha, least
        self._number = 0
        self.fired = ""
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._arms = {"baseline": Moments(), "candidate": Moments()}

    def add(self, arm: str, seconds: float) -> bool:
        """One request's latency; True when this one made it fire. What is not positive and finite is ignored."""
        if not 0 < seconds < math.inf:
            return False
        self._arms[arm].add(math.log(seconds))
        base, cand = self._arms["baseline"], self._arms["candidate"]
        if self.fired or min(base.n, cand.n) < self._least:
            return False
        self.fired = self._slower(base, cand)
        if min(base.n, cand.n) >= max(_WINDOW, self._least) and not self.fired:
            self._begin()
        return bool(self.fired)

    def _slower(self, base: Moments, cand: Moments) -> str:
        """By how much, in words; empty when it is not shown."""
        effect = cand.mean - base.mean
        if effect < self._margin:
            return ""
        se = math.sqrt(base.variance_of_mean + cand.variance_of_mean)
        level = self._alpha / (self._number * (self._number + 1))
        lower, _ = asymptotic_sequence(effect, se, base.n + cand.n, best_at=_BEST_AT, alpha=level)
        if not float(lower) > 0:
            return ""
        return (
            f"{math.expm1(effect):+.0%} against the baseline over {cand.n} and {base.n} requests "
            f"(at least {math.expm1(float(lower)):+.0%})"
        )


class Beyond:
    """Whether more than 1% of requests exceed a frozen threshold: the p99 has moved beyond it.

    Estimand: the exceedance probability of threshold = ratio x the gated baseline's p99, in the current window of
    requests; the null is that it is at most 1%. Windows of 2,000, each with its own always-valid sequence.
    """

    def __init__(self, *, threshold_s: float, alpha: float, window: int = 2000) -> None:
        self.threshold_s = threshold_s
        self._alpha, self._window = alpha, window
        self._n = self._over = 0
        self.deviating = ""

    def add(self, seconds: float) -> bool:
        """One request; True when it made the state change. A latency that is NaN counts as over."""
        before = bool(self.deviating)
        self._n += 1
        over = not seconds <= self.threshold_s
        self._over += over
        if over and not before and self._over > 0.01 * self._n:
            lower, _ = bernoulli_sequence(self._over, self._n, best_at=300, alpha=self._alpha)
            if float(lower) > 0.01:
                self.deviating = f"{self._over} of {self._n} requests took more than {self.threshold_s:.3g} s"
        if self._n >= self._window:
            lower, _ = bernoulli_sequence(self._over, self._n, best_at=300, alpha=self._alpha)
            if not float(lower) > 0.01:
                self.deviating = ""
            self._n = self._over = 0
        return bool(self.deviating) != before
