"""Whether the p99 of a latency has moved beyond a frozen threshold. Pure."""

from __future__ import annotations

from checkweigh.monitors.finished_request import FinishedRequest
from checkweigh.stats.anytime import bernoulli_above


class ExceedanceMonitor:
    """Tells when more than 1% of requests take longer than ``threshold_s``: then the p99 lies beyond it.

    Estimand: the probability that a request of the current window exceeds the threshold, which is a ratio times the
    gated baseline's p99. The null is that it is at most 1%. Windows have 2,000 requests, each with an always-valid
    sequence of its own at ``alpha``. Unlike the other monitors it is not latched: a window that shows nothing ends
    the deviation.
    """

    def __init__(self, *, threshold_s: float, alpha: float, window: int = 2000) -> None:
        self.threshold_s = threshold_s
        self._alpha, self._window = alpha, window
        self._n = self._over = 0
        self.deviating = ""

    def add_first_token(self, request: FinishedRequest) -> bool:
        """Take the time from arrival to first token of a baseline's stream; True when it made the state change.

        Ignored are other requests (a reply in one piece has no first token), and what was neither answered nor given
        up. One given up without a token was late when it had waited longer than the threshold; else it says nothing.
        """
        outcome = request.outcome
        if outcome.arm != "baseline" or not request.stream or not (outcome.answered or request.given_up):
            return False
        if request.ttft_s is not None:
            return self.add(request.ttft_s)
        waited = request.finished - request.arrived
        return waited > self.threshold_s and self.add(waited)

    def add(self, seconds: float) -> bool:
        """Take one request; True when it made the state change. A latency that is NaN counts as over."""
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
