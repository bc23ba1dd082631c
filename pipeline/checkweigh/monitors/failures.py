"""Whether a candidate's engine fails more sessions than the baseline's. Pure."""

from __future__ import annotations

import math

from checkweigh.stats.anytime import bernoulli_above

_FAILURES, _REQUESTS = 100, 10_000  # sessions that failed, or requests: then a new window
_KNOWN = 10_000  # failed sessions that are remembered


class FailureMonitor:
    """Fires when the candidate fails sessions more often than the baseline, by a factor above exp(``margin``).

    Estimand: the candidate's share of the sessions that an engine failed, each counted at its first failure in a
    window. ``share`` (0 to 1) is the chance that a session is given to the candidate; it is a half where both arms got
    each request and one of them failed it. With equal arms the estimand is that share, whoever asks for what.

    Assumptions: sessions are drawn independently, and only while both arms accept every session; how long a session
    takes to reach a request that fails does not depend on its arm.

    It fires when the always-valid lower bound lies beyond the margin, and stays fired. There are two counts with half
    of ``alpha`` each. One has windows of 100 failed sessions, or 10,000 requests from the first failure, so that a
    good time hides no large difference; its k-th window has 1 / (k (k + 1)) of the level. The other has no end, for
    small differences. Degenerate: with a share of 1 it never fires.
    """

    def __init__(self, *, share: float, margin: float, alpha: float) -> None:
        odds = math.exp(margin) * share
        self._tolerated = odds / (odds + 1 - share)
        self._counts = (
            _SessionCounts(alpha / 2, best_at=10, most=_FAILURES),
            _SessionCounts(alpha / 2, best_at=300, most=math.inf),
        )
        self.fired = ""

    def add(self, arm: str, session: str, *, failed: bool) -> bool:
        """Take one request that an engine answered or failed; True when this one made the monitor fire."""
        if self.fired:
            return False
        key = hash((arm, session))
        for count in self._counts:
            count.add(arm, key, failed=failed)
        if failed and arm == "candidate" and self._tolerated < 1:
            self.fired = next(filter(None, (count.beyond(self._tolerated) for count in self._counts)), "")
        return bool(self.fired)


class _SessionCounts:
    """Failed sessions of both arms, in windows of at most ``most``."""

    def __init__(self, alpha: float, *, best_at: float, most: float) -> None:
        self._alpha, self._best_at, self._most = alpha, best_at, most
        self._window = 0
        self._begin()

    def _begin(self) -> None:
        self._window += 1
        self._failed = {"baseline": 0, "candidate": 0}
        self._known: dict[int, None] = {}
        self._requests = 0

    def add(self, arm: str, session: int, *, failed: bool) -> None:
        self._requests += bool(self._known)
        if len(self._known) >= self._most or (self._requests >= _REQUESTS and math.isfinite(self._most)):
            self._begin()
        if not failed or session in self._known:
            return
        if len(self._known) == _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[session] = None
        self._failed[arm] += 1

    def beyond(self, tolerated: float) -> str:
        """How many were the candidate's, in words, when that is a share above ``tolerated``; else empty."""
        bad, total = self._failed["candidate"], sum(self._failed.values())
        level = self._alpha
        if math.isfinite(self._most):
            level /= self._window * (self._window + 1)
        if not bernoulli_above(bad, total, tolerated, best_at=self._best_at, alpha=level):
            return ""
        return f"{bad} of {total} sessions that an engine refused or failed were the candidate's"
