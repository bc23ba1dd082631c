"""What the guard knows of one request on its way, and what it tells the monitors of it afterwards."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from checkweigh.guard.guard_policy import PriorityTier
from checkweigh.guard.http.request_schema import ValidatedRequest
from checkweigh.guard.routing import Route
from checkweigh.guard.traffic_log import RequestOutcome
from checkweigh.monitors.finished_request import EngineOutcome, FinishedRequest


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """One request on its way through the guard. Times are seconds of the monotonic clock; None: not yet, or never."""

    # What came in.
    id: str  # the client's x-request-id, or one that was drawn
    tier: PriorityTier
    request: ValidatedRequest
    session: str  # key of the sticky hash
    deadline_s: float | None  # the client's, from arrival: to the first byte of a stream, to the whole else
    arrived: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.time)  # Unix time of arrival

    # Where it goes.
    route: Route = field(default_factory=lambda: Route("baseline", "baseline"))
    copy: bool = False  # a shadow: nobody sees its answer
    shadow: asyncio.Task[None] | None = None  # that sends its copy
    twin: RequestContext | None = None  # its copy, or what it is a copy of
    unhurried: bool = False  # both arms would have sent it at once and as it is
    degraded: str = ""  # what was given up, for the header and the log; empty: nothing
    max_tokens: int = 0  # asked of the engine: the client's, or fewer when degraded

    # How it went.
    queue_s: float = 0.0  # waited for a place
    sent: float | None = None  # to the engine
    trips: int = 0  # of all breakers, until it was sent
    first: float | None = None  # byte to the client
    last: float | None = None  # byte to the client, so far
    ended: float | None = None  # when the engine was done with it, or it was given up
    tokens: int = 0  # of the reply, as far as it came
    finish: str | None = None  # the engine's finish_reason
    reply: str | None = None  # its text, where the log keeps texts

    # What became of it.
    over: bool = False
    outcome: RequestOutcome = "refused"
    failed: bool = False  # by the engine, not for load
    status: int = 0  # HTTP
    reason: str = ""  # why it was not answered

    @property
    def left_s(self) -> float | None:
        """Seconds until the client's deadline, at least a millisecond; None without a deadline."""
        if self.deadline_s is None:
            return None
        return max(0.001, self.deadline_s - (time.monotonic() - self.arrived))

    @property
    def given_up(self) -> bool:
        """Whether the client left, or it took too long, whether it was sent or not."""
        return self.outcome == "client_gone" or (self.outcome == "timeout" and self.status == 504)

    def finished(self, now: float) -> FinishedRequest:
        """The record for the monitors, of a request that is over at ``now``."""
        twin = self.twin
        return FinishedRequest(
            outcome=self._engine_outcome(), assigned=self.route.assigned, session=self.session,
            revivals=self.route.revivals, stream=self.request.stream, given_up=self.given_up, tokens=self.tokens,
            arrived=self.arrived, sent=self.sent, first=self.first, last=self.last, engine_done=self.ended,
            finished=now, unhurried=self.unhurried, copy_missing=self.route.shadow and self.shadow is None,
            copied=twin is not None, twin=twin._engine_outcome() if twin is not None and twin.over else None,
        )  # fmt: skip

    def _engine_outcome(self) -> EngineOutcome:
        return EngineOutcome(
            arm=self.route.served, answered=self.outcome == "ok", failed=self.failed, degraded=bool(self.degraded),
            trips=self.trips,
        )  # fmt: skip
