"""When to restart an engine, and when to suspect that it hangs. Pure; times are arguments."""

from __future__ import annotations

import random
from collections import deque

from checkweigh.guard.guard_policy import Supervision


class RestartBackoff:
    """Decides how long to wait before the next start, and when to give up."""

    def __init__(self, limits: Supervision, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._crashes: deque[float] = deque()
        self.restarts = 0

    def crashed(self, ready_s: float) -> float | None:
        """Seconds to wait before the next start; None after too many crashes, when the engine stays down.

        The wait doubles with each crash in the window; a random half to all of it is taken. ``ready_s``: seconds in
        which the engine was ready so far, over all its processes. Starts do not count: an engine that loads for minutes
        and crashes soon after is in a crash loop too.
        """
        self._crashes.append(ready_s)
        while self._crashes[0] < ready_s - self._limits.crash_window_s:
            self._crashes.popleft()
        if len(self._crashes) >= self._limits.crashes:
            return None
        self.restarts += 1
        full = min(self._limits.backoff_max_s, self._limits.backoff_s * 2.0 ** (len(self._crashes) - 1))
        return full * self._rng.uniform(0.5, 1.0)


class HeartbeatWatch:
    """Suspects a hang: work inside, or no word from the engine, and no step for too long.

    A saturated engine steps, so it is never suspected; one that swallows a long prompt may be silent for longer.
    """

    def __init__(self, limits: Supervision) -> None:
        self._limits = limits
        self._moved = 0.0
        self._steps: float | None = None

    def started(self, now: float) -> None:
        """A new process is ready at ``now``, in seconds of the clock of all times here."""
        self._moved, self._steps = now, None

    def scraped(self, now: float, steps: float, *, inside: int) -> None:
        """The engine answered a scrape. Without work inside that is a sign of life; with it only a step is."""
        if inside == 0 or steps != self._steps:
            self._moved = now
        self._steps = steps

    def delivered(self, now: float) -> None:
        """A token came."""
        self._moved = now

    def suspect(self, now: float, *, longest_prompt: int) -> bool:
        """Whether it is time for a probe. ``longest_prompt``: tokens of the longest prompt without a token yet."""
        prefill = longest_prompt >= self._limits.long_prompt
        limit = self._limits.prefill_grace_s if prefill else self._limits.heartbeat_s
        return now - self._moved > limit
