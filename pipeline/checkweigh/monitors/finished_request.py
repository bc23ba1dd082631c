"""What the monitors know of a request that is over. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutcome:
    """What an arm did with one request."""

    arm: str  # baseline or candidate
    answered: bool  # whole
    failed: bool  # by the engine, not for load
    degraded: bool  # its reply was to be shorter than asked for
    trips: int  # of all breakers, until it was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """One request that is over. Times are seconds of one monotonic clock; None where it never came to that."""

    outcome: EngineOutcome
    assigned: str  # the arm its session was drawn for; another than served it while that was away
    session: str
    revivals: int  # times the candidate had been revived when the request was routed
    stream: bool
    given_up: bool  # by the client, or for the time it took
    tokens: int  # of the reply, as far as it came
    arrived: float
    sent: float | None  # to the engine
    first: float | None  # token, or a reply in one piece
    last: float | None
    engine_done: float | None  # when the engine was done with it, or it was given up
    finished: float  # when nothing more comes of it: a monitor's "now"
    unhurried: bool  # both arms would have sent it at once and as it is
    copy_missing: bool  # copies are compared, and it has none
    copied: bool  # it has a copy, or is one
    twin: EngineOutcome | None = None  # of its copy, or of what it is a copy of, once that is over too

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first is None else self.first - self.arrived

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, of a stream with at least two."""
        if self.first is None or self.last is None or self.tokens < 2 or not self.stream:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    @property
    def waits_s(self) -> tuple[float | None, float | None]:
        """Seconds this request waited for the engine: (to the first token, for each token after it).

        None for a wait that says nothing. What counts are requests that were answered or given up. A token that never
        came took longer than the time it was waited for, which is returned as a lower bound. A reply in one piece is
        its own first token; one that was shortened says nothing.
        """
        if self.sent is None or self.engine_done is None or not (self.given_up or self.outcome.answered):
            return None, None
        if self.first is None:
            return self.engine_done - self.sent, None
        first = self.first - self.sent
        if not self.stream:
            return None if self.outcome.degraded else first, None
        if self.given_up:
            return first, (self.engine_done - self.first) / max(1, self.tokens - 1)
        return first, self.tpot_s
