"""Alarms on what is served: a candidate's latency and failures against the control's, a p99 against the gate's. Pure.

All are always-valid (STATISTICS.md, Canary): they may be looked at after every request. Of latency a session's requests
count as independent, which they are not; the log that ``canary`` reads has the sessions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import special

from checkweigh.stats.anytime import asymptotic_sequence, bernoulli_above

_BLOCK = 5  # requests an arm, at least
_WINDOW = 80  # blocks
_PAST = 640  # blocks: with fewer the tails of t would silence it after some hours
_BEST_AT = 20  # blocks at which the bounds are tightest
_BATCHES = (1, 2, 4, 8)  # blocks
_LEAST = 8  # batches
_FAILURES, _REQUESTS = 100, 10_000  # sessions that failed, or requests: then a new window
_KNOWN = 10_000  # failed sessions that are known again


def _spreads(blocks: list[float], sizes: tuple[int, ...]) -> Iterator[tuple[float, float]]:
    """(long-run variance of one block, its degrees of freedom), by batches of each size of which there are enough.

    From successive differences of the batches' means (von Neumann, 1941), which one jump hardly widens.
    """
    for size in sizes:
        count = len(blocks) // size
        if count >= _LEAST:
            means = np.mean(np.reshape(blocks[-count * size :], (count, size)), axis=1)
            yield size * float(np.mean(np.square(np.diff(means)))) / 2, 2 * (count - 1) / 3


class Recent:
    """A geometric mean that forgets: each new value, above 0, has a weight of one in sixteen. None before the first."""

    def __init__(self) -> None:
        self._log: float | None = None

    def add(self, value: float) -> None:
        """One more."""
        if 0 < value < math.inf:
            new = math.log(value)
            self._log = new if self._log is None else self._log + (new - self._log) / 16

    @property
    def mean(self) -> float | None:
        """Of about the last sixteen."""
        return None if self._log is None else math.exp(self._log)

    def less_than(self, value: float) -> bool:
        """Whether there is a mean, and it is."""
        return self.mean is not None and self.mean < value


class Slower:
    """Whether the candidate is slower than the control by more than ``margin``, in log seconds.

    Estimand: the difference of mean log latencies, concurrent control. Requests in an engine at the same time share
    what slows them, so that what is counted are blocks of both arms: one ends when each arm has five requests in it and
    it has lasted twice as long as those of the faster arm took. Queues remember for longer: the variance is the largest
    that batches of blocks show, in the past and now, with the tails of t. Fires when the one-sided confidence sequence
    excludes "not slower" *and* the estimate lies beyond the margin; latched. Degenerate: fewer than ``least`` requests
    an arm, fewer than eight blocks or no variance: never.

    What was good for long must not cover what is bad now, so that it begins anew after 80 blocks; the k-th window has
    the level alpha / (k (k + 1)), which is ``alpha`` over all of them.
    """

    def __init__(self, *, margin: float, alpha: float, least: int) -> None:
        self._margin, self._alpha, self._least = margin, alpha, least
        self._number = 1
        self._seen = {"baseline": 0, "candidate": 0}
        self._blocks: list[float] = []
        self._past: list[float] = []
        self.fired = ""
        self._begin()

    def _begin(self) -> None:
        self._sums = {
            arm: [0.0, 0.0, 0.0] for arm in self._seen
        }  # requests, their log seconds, how long they took
        self._since = math.inf

    def add(self, arm: str, seconds: float, *, now: float, took: float) -> bool:
        """One request's latency, ended at ``now`` after ``took`` in all (s); True when this one made it fire.

        What is not positive and finite is ignored.
        """
        if not 0 < seconds < math.inf or self.fired:
            return False
        self._seen[arm] += 1
        for i, value in enumerate((1.0, math.log(seconds), took)):
            self._sums[arm][i] += value
        self._since = min(self._since, now)
        if min(count for count, _, _ in self._sums.values()) < _BLOCK:
            return False
        if now - self._since < 2 * min(times / count for count, _, times in self._sums.values()):
            return False
        if len(self._blocks) == _WINDOW:
            self._past = (self._past + self._blocks)[-_PAST:]
            self._blocks, self._number = [], self._number + 1
        means = {name: logs / count for name, (count, logs, _) in self._sums.items()}
        self._blocks.append(means["candidate"] - means["baseline"])
        self._begin()
        if min(self._seen.values()) >= self._least:
            self.fired = self._slower()
        return bool(self.fired)

    def _slower(self) -> str:
        """By how much, in words; empty when it is not shown."""
        n, effect = len(self._blocks), float(np.mean(self._blocks))
        if effect < self._margin:
            return ""
        level = self._alpha / (self._number * (self._number + 1))
        spreads = [*_spreads(self._past, _BATCHES), *_spreads(self._blocks, (1,) if self._past else _BATCHES)]
        bounds = (_lower(effect, math.sqrt(variance / n), n, freedom, level) for variance, freedom in spreads)
        lower = min(bounds, default=-math.inf)
        if not lower > 0:
            return ""
        base, cand = self._seen["baseline"], self._seen["candidate"]
        return (
            f"{math.expm1(effect):+.0%} against the baseline over {n} blocks, after {cand} and {base} requests "
            f"(at least {math.expm1(lower):+.0%})"
        )


def _lower(effect: float, se: float, n: int, freedom: float, alpha: float) -> float:
    """The lower bound of the sequence of normal means, with the tails of t; without one, -inf."""
    normal = float(asymptotic_sequence(effect, se, n, best_at=_BEST_AT, alpha=alpha)[0])
    if not math.isfinite(normal):
        return -math.inf
    tail = float(special.stdtrit(freedom, float(special.ndtr((normal - effect) / se))))
    return effect + se * tail if math.isfinite(tail) else -math.inf  # of a tail too thin it says +inf


class Fails:
    """Whether the candidate fails sessions more often than the control, by a factor above exp(``margin``).

    Estimand: of the sessions that an engine failed, each at its first failure in a window, the share that were the
    candidate's. ``share`` (0 to 1) is the chance with which a session is given to the candidate, or a half where both
    arms got each request and one failed it; with equal arms that is the share, whoever asks for what. Assumptions:
    sessions are drawn independently, what is counted was drawn while both arms took all, and when a session comes to
    what fails does not depend on its arm. Fires when the always-valid lower bound lies beyond; latched. Two counts
    with half of ``alpha`` each: windows of 100 failed sessions, or 10,000 requests from the first, so that a good time
    hides no large difference (the k-th has the level 1 / (k (k + 1)) of it); and one without end, for small ones.
    """

    def __init__(self, *, share: float, margin: float, alpha: float) -> None:
        odds = math.exp(margin) * share
        self._equal = odds / (odds + 1 - share)
        self._counts = (
            _Failed(alpha / 2, best_at=10, most=_FAILURES),
            _Failed(alpha / 2, best_at=300, most=math.inf),
        )
        self.fired = ""

    def add(self, arm: str, session: str, *, failed: bool) -> bool:
        """One request that an engine answered, or failed; True when this one made it fire."""
        if self.fired:
            return False
        key = hash((arm, session))
        for count in self._counts:
            count.add(arm, key, failed)
        if failed and arm == "candidate" and self._equal < 1:
            self.fired = next(filter(None, (count.beyond(self._equal) for count in self._counts)), "")
        return bool(self.fired)


class _Failed:
    """Failed sessions of both arms, in windows of at most ``most``."""

    def __init__(self, alpha: float, *, best_at: float, most: float) -> None:
        self._alpha, self._best_at, self._most = alpha, best_at, most
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._failed = {"baseline": 0, "candidate": 0}
        self._known: dict[int, None] = {}
        self._requests = 0

    def add(self, arm: str, session: int, failed: bool) -> None:
        self._requests += bool(self._known)
        if len(self._known) >= self._most or (self._requests >= _REQUESTS and math.isfinite(self._most)):
            self._begin()
        if not failed or session in self._known:
            return
        if len(self._known) == _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[session] = None
        self._failed[arm] += 1

    def beyond(self, equal: float) -> str:
        """How many were the candidate's, in words, when that is a share above ``equal``; else empty."""
        bad, every = self._failed["candidate"], sum(self._failed.values())
        level = (
            self._alpha / (self._number * (self._number + 1)) if math.isfinite(self._most) else self._alpha
        )
        if not bernoulli_above(bad, every, equal, best_at=self._best_at, alpha=level):
            return ""
        return f"{bad} of {every} sessions that an engine refused or failed were the candidate's"


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
        ends = self._n >= self._window
        if (over and not before) or ends:
            shown = bernoulli_above(self._over, self._n, 0.01, best_at=300, alpha=self._alpha)
            if shown and not before:
                self.deviating = f"{self._over} of {self._n} requests took more than {self.threshold_s:.3g} s"
            if ends and not shown:
                self.deviating = ""
        if ends:
            self._n = self._over = 0
        return bool(self.deviating) != before
