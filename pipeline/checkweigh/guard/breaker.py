"""A circuit breaker: closed, open, half-open with one probe. Pure; times are arguments.

Written here rather than taken from ``purgatory`` (3.0.1), which was judged for it: its half-open state lets every
request through, a cancelled call counts as a failure, a success of a request sent before the trip closes it, it
cannot be held open from outside, and its clock is the wall's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from checkweigh.guard.guard_policy import BreakerLimits

_LASTING = 5  # times in a row


class BreakerState(Enum):
    """Closed: requests are sent. Open: none is. Half-open: one probe is."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to send one request; reported once, by ``succeeded``, ``failed`` or ``dropped``."""

    generation: int
    probe: bool
    reported: bool = False


class Breaker:
    """Leaves an arm alone while it fails. Times are seconds of one monotonic clock.

    Each change of state begins a generation; what a permit of an earlier one reports changes nothing.
    """

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._generation = 0
        self._probing: Permit | None = None
        self._calls: deque[tuple[float, bool]] = deque()
        self._reopen = 0.0
        self._wait = limits.open_s
        self._closed = -math.inf  # when a probe last closed it
        self._in_a_row = 0  # failed probes, and trips soon after one that did not fail
        self._holds: dict[str, str] = {}
        self.state = BreakerState.CLOSED
        self.reason = ""
        self.trips = 0
        self.opened = -math.inf  # when it last opened for failures

    def allow(self, now: float) -> Permit | None:
        """A permit to send one request; None: the arm is to be left alone."""
        if self._holds:
            return None
        if self.state is BreakerState.OPEN and now >= self._reopen:
            self._become(BreakerState.HALF_OPEN)
        if self.state is BreakerState.CLOSED:
            return Permit(self._generation, probe=False)
        if self.state is BreakerState.HALF_OPEN and self._probing is None:
            self._probing = Permit(self._generation, probe=True)
            return self._probing
        return None

    def succeeded(self, permit: Permit, now: float) -> None:
        """Report that the engine answered; a probe's success closes the breaker."""
        if not self._current(permit):
            return
        if permit.probe:
            self._closed, self._wait = now, self._limits.open_s
            self._become(BreakerState.CLOSED)
        else:
            self._count(now, failed=False)

    def failed(self, permit: Permit, now: float, why: str) -> None:
        """Report a 5xx, a broken answer or a timeout; a failed probe opens the breaker again, for twice as long."""
        if not self._current(permit):
            return
        if permit.probe:
            self._in_a_row += 1
            self._wait = min(self._limits.open_max_s, 2 * self._wait)
            self._open(now, f"a probe failed: {why}")
            return
        self._count(now, failed=True)
        failures = sum(failed for _, failed in self._calls)
        if failures >= self._limits.failures and failures >= self._limits.share * len(self._calls):
            soon = now - self._closed < 2 * self._limits.window_s  # a probe's first token was no proof
            self._in_a_row = self._in_a_row + 1 if soon else 0
            self._open(now, f"{failures} of {len(self._calls)} requests failed, the last: {why}")

    def dropped(self, permit: Permit) -> None:
        """Report that a request was cancelled before the engine answered: it counts for nothing, another may probe."""
        if self._current(permit) and permit.probe:
            self._probing = None

    def refuses(self, now: float) -> bool:
        """Whether ``allow`` would return None. Changes nothing."""
        return self.shut(now) or self._probing is not None

    def shut(self, now: float) -> bool:
        """Whether it is held, or open and too early for a probe. After that a request is needed, to be the probe."""
        return bool(self._holds) or (self.state is BreakerState.OPEN and now < self._reopen)

    def hold(self, by: str, why: str) -> None:
        """Keep open whatever happens, until ``by`` releases it (memory is critical, the process is down)."""
        if not self._holds:
            self.trips += 1
            self._become(BreakerState.OPEN)
        self._holds[by] = self.reason = why

    def release(self, by: str, now: float) -> None:
        """End one hold; after the last, a probe decides."""
        if self._holds.pop(by, None) is not None and not self._holds:
            self._reopen = now
            self._forgive()

    def reset(self, by: str) -> None:
        """End ``by``'s hold, and close unless others hold it: a new engine was warmed up."""
        self._holds.pop(by, None)
        if not self._holds:
            self._closed = -math.inf
            self._forgive()
            self._become(BreakerState.CLOSED)

    def again(self, now: float) -> None:
        """Allow a probe at once: somebody says that the arm is mended."""
        self._reopen = now
        self._forgive()

    @property
    def lasting(self) -> bool:
        """Whether it is open for failures, and has opened again and again."""
        return self.state is BreakerState.OPEN and not self._holds and self._in_a_row >= _LASTING

    @property
    def held(self) -> bool:
        """Whether it is kept open from outside."""
        return bool(self._holds)

    def retry_after(self, now: float) -> int:
        """Whole seconds, at least 1, until a client may ask again."""
        return max(1, round(self._limits.open_s if self._holds else self._reopen - now))

    def _forgive(self) -> None:
        self._in_a_row, self._wait = 0, self._limits.open_s

    def _current(self, permit: Permit) -> bool:
        fresh = not permit.reported and permit.generation == self._generation
        permit.reported = True
        return fresh

    def _count(self, now: float, *, failed: bool) -> None:
        self._calls.append((now, failed))
        while self._calls[0][0] < now - self._limits.window_s:
            self._calls.popleft()

    def _open(self, now: float, why: str) -> None:
        self.trips += 1
        self.opened, self.reason = now, why
        self._reopen = now + self._wait
        self._become(BreakerState.OPEN)

    def _become(self, state: BreakerState) -> None:
        self.state = state
        self._generation += 1
        self._probing = None
        self._calls.clear()
        if state is BreakerState.CLOSED:
            self.reason = ""
