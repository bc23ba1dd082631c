"""Which requests say something of a candidate beside its baseline, and whether it should be switched off. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from checkweigh.monitors.decaying_mean import DecayingMean
from checkweigh.monitors.failures import FailureMonitor
from checkweigh.monitors.finished_request import FinishedRequest
from checkweigh.monitors.latency import LatencyMonitor

_SETTLED_S = 5.0  # after a failure it is known whether the engine has died of it
_APART_S = 1.0  # failures within are one
_BEYOND = 1.5  # margins, by which a wait for a token that never came is lengthened


@dataclass(frozen=True, slots=True)
class _Failure:
    """A request that an engine failed, until it is known whether the engine died of it."""

    at: float
    arm: str
    session: str
    trips: int


class ArmComparison:
    """Compares a candidate with the baseline that serves beside it, by failed sessions and by waits for the engine.

    1. A request counts when its session's own arm served it and, where copies are compared, it has one.
    2. A failure counts when both arms could have sent the request at once, or when only one of a request and its copy
       failed. It waits for five seconds. An engine that dies takes all with it that is inside, which are no independent
       failures: they do not count when a breaker has opened meanwhile. Of failures within a second one counts,
       whichever arm's.
    3. Waits: to the first token, and for each token after it (``FinishedRequest.waits_s``).

    ``share``: of sessions that are drawn for the candidate; a half where it gets copies. ``alpha``: the chance that an
    equal candidate is found worse, once for its failures and once for its waits. ``least``: requests an arm before
    waits are compared. The monitors state what else is assumed.
    """

    def __init__(self, *, share: float, margin: float, alpha: float, least: int) -> None:
        self._share, self._margin, self._alpha, self._least = share, margin, alpha, least
        # The baseline's usual waits: for a first token of a stream and of a reply in one piece, and for each after it.
        self._usual_first = {stream: DecayingMean() for stream in (True, False)}
        self._usual_pace = DecayingMean()
        self.restart()

    def restart(self) -> None:
        """Forget what was found of the candidate, which was revived; the baseline's usual waits are kept."""
        self._failed: deque[_Failure] = deque()
        self._counted = -math.inf  # when the last failure that counted happened
        self.failures = FailureMonitor(share=self._share, margin=self._margin, alpha=self._alpha)
        self.latency = {
            name: LatencyMonitor(margin=self._margin, alpha=self._alpha / 2, least=self._least)
            for name in ("ttft", "tpot")
        }

    def add(self, request: FinishedRequest, *, trips: int) -> str:
        """Take one request; why the candidate should be switched off, empty when it should not.

        ``trips``: times that any breaker has opened, until now.
        """
        if request.copy_missing or request.assigned != request.outcome.arm:
            return ""
        self._note_outcome(request)
        if self._fails(request.finished, trips):
            return self.failures.fired
        waits, took = self._comparable_waits(request), request.finished - request.arrived
        for (name, monitor), wait in zip(self.latency.items(), waits, strict=True):
            if wait is not None and monitor.add(request.outcome.arm, wait, now=request.finished, took=took):
                return f"{name} {monitor.fired}"
        return ""

    def _note_outcome(self, request: FinishedRequest) -> None:
        """Remember what an engine failed. A request and its copy count once both are over: when one of them failed."""
        if request.copied and request.twin is None:
            return
        outcomes = [outcome for outcome in (request.outcome, request.twin) if outcome is not None]
        if not all((outcome.failed or outcome.answered) and not outcome.degraded for outcome in outcomes):
            return
        failed = [outcome for outcome in outcomes if outcome.failed]
        if len(failed) == 1 and (request.unhurried or request.copied):
            self._failed.append(_Failure(request.finished, failed[0].arm, request.session, failed[0].trips))
        elif not failed:
            self.failures.add(request.outcome.arm, request.session, failed=False)

    def _fails(self, now: float, trips: int) -> bool:
        """Whether what failed some time ago is reason to switch the candidate off."""
        while self._failed and self._failed[0].at + _SETTLED_S <= now:
            failure = self._failed.popleft()
            if failure.trips != trips or failure.at - self._counted < _APART_S:
                continue
            self._counted = failure.at
            if self.failures.add(failure.arm, failure.session, failed=True):
                return True
        return False

    def _comparable_waits(self, request: FinishedRequest) -> tuple[float | None, float | None]:
        """The waits that count, and what the baseline's usual ones are.

        A client that leaves before a token could have come says nothing. One that leaves later waited in vain: this
        counts as more than the margin, or a patience just above what the baseline takes would hide any slowness.
        """
        first, pace = request.waits_s
        usual_first, usual_pace = self._usual_first[request.stream], self._usual_pace
        baseline = request.outcome.arm == "baseline"
        if first is not None and request.first is None:
            beyond = first * math.exp(_BEYOND * self._margin)
            first = beyond if usual_first.less_than(first) else None
        elif first is not None and baseline:
            usual_first.add(first)
        if pace is not None and request.given_up and request.tokens < 2:
            pace = (
                pace if usual_pace.less_than(pace) else None
            )  # nor does one that leaves with the first token
        elif pace is not None and baseline:
            usual_pace.add(pace)
        return first, pace
