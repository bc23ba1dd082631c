"""Whether a candidate has taken nobody for too long, while the baseline does. Pure; times are arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsState:
    """The two arms at one moment."""

    gave_up: bool  # the candidate's engine stays down
    blind: str  # why nothing is known of the candidate's engine any more; empty: something is
    breaker_lasts: bool  # the candidate's breaker has opened again and again
    breaker_reason: str  # why it opened last
    baseline_ready: bool
    baseline_opened: float  # when the baseline's breaker last opened for failures; -inf: never


class AbsenceMonitor:
    """Tells when a candidate should get no session any more because it takes nobody, or nothing is known of it.

    What may befall both arms is no reason: nothing is held against the candidate while the baseline is not ready, or
    its breaker has opened within ``long_s`` seconds.
    """

    def __init__(self, *, long_s: float) -> None:
        self._long_s = long_s
        self.restart()

    def restart(self) -> None:
        """Forget what was seen of the candidate: it was revived."""
        self._blind_since: float | None = None

    def look(self, state: ArmsState, now: float) -> str:
        """Why the candidate should be switched off; empty when it should not."""
        if not state.blind:
            self._blind_since = None
        elif self._blind_since is None:
            self._blind_since = now
        if state.gave_up:
            return "its engine stays down"
        if not state.baseline_ready or now - state.baseline_opened < self._long_s:
            return ""
        if state.breaker_lasts:
            return f"its breaker stays open ({state.breaker_reason})"
        if self._blind_since is not None and now - self._blind_since >= self._long_s:
            return f"its {state.blind}"
        return ""
