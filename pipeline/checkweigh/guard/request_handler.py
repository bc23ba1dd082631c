"""The path of one request: route, admit, ask, answer, account. Every way out gives back what it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from checkweigh.guard.admission.queueing import Entry
from checkweigh.guard.arm import Arm
from checkweigh.guard.breaker import Permit
from checkweigh.guard.guard_metrics import Metrics
from checkweigh.guard.guard_policy import GuardPolicy, Tier
from checkweigh.guard.http.error_responses import Refusal
from checkweigh.guard.http.relay import Events, Truncated, whole
from checkweigh.guard.http.request_schema import Asked, Bounds
from checkweigh.guard.http.upstream import UpstreamError, Waits, ask
from checkweigh.guard.routing import Arm as ArmName
from checkweigh.guard.routing import Route, Router
from checkweigh.guard.traffic_log import Log, Outcome, Request, hashed
from checkweigh.monitors.finished_request import EngineOutcome, FinishedRequest

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Heard = Callable[[FinishedRequest], None]
_FAILED = ("refused_by_engine", "upstream_error", "upstream_broken")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


@dataclass(slots=True, kw_only=True)
class Visit:
    """One request on its way, and what became of it."""

    id: str
    tier: Tier
    asked: Asked
    session: str
    deadline_s: float | None  # the client's, from arrival: to the first byte of a stream, to the whole else
    arrived: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.time)
    route: Route = field(default_factory=lambda: Route("baseline", "baseline"))
    copy: bool = False  # a shadow: nobody sees its answer
    degraded: str = ""
    max_tokens: int = 0
    queue_s: float = 0.0
    sent: float | None = None  # to the engine
    trips: int = 0  # of the breakers, then
    first: float | None = None
    last: float | None = None
    ended: float | None = None  # when the engine was done with it, or it was given up
    quiet: bool = False  # both arms would have sent it at once
    shadow: asyncio.Task[None] | None = None  # that sends its copy
    twin: Visit | None = None  # its copy, or what it is a copy of
    over: bool = False
    outcome: Outcome = "refused"
    failed: bool = False  # by the engine, not for load
    status: int = 0
    reason: str = ""
    finish: str | None = None
    tokens: int = 0
    reply: str | None = None

    @property
    def left_s(self) -> float | None:
        """Of the client's deadline."""
        if self.deadline_s is None:
            return None
        return max(0.001, self.deadline_s - (time.monotonic() - self.arrived))

    def _engine_outcome(self) -> EngineOutcome:
        return EngineOutcome(
            arm=self.route.served, answered=self.outcome == "ok", failed=self.failed, degraded=bool(self.degraded),
            trips=self.trips,
        )  # fmt: skip

    def finished(self, now: float) -> FinishedRequest:
        """What the monitors see of it."""
        twin = self.twin
        return FinishedRequest(
            outcome=self._engine_outcome(), assigned=self.route.assigned, session=self.session,
            revivals=self.route.revivals, stream=self.asked.stream,
            given_up=self.outcome == "client_gone" or (self.outcome == "timeout" and self.status == 504),
            tokens=self.tokens, arrived=self.arrived, sent=self.sent, first=self.first, last=self.last,
            engine_done=self.ended, finished=now, unhurried=self.quiet,
            copy_missing=self.route.shadow and self.shadow is None, copied=twin is not None,
            twin=twin._engine_outcome() if twin is not None and twin.over else None,
        )  # fmt: skip


class Desk:
    """Serves visits on one arm or two."""

    def __init__(
        self, policy: GuardPolicy, arms: Mapping[ArmName, Arm], router: Router, bounds: Bounds, metrics: Metrics,
        log: Log, heard: Heard,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.arms = arms
        self.router = router
        self.bounds = bounds
        self.metrics = metrics
        self.log = log
        self._heard = heard
        self._shadows: set[asyncio.Task[None]] = set()
        self.draining = False

    async def serve(self, visit: Visit, send: Send) -> None:
        """Answer; raises Refusal for what is refused before an answer has begun."""
        visit.route = self.router.route(visit.session, away=self._away())
        visit.quiet = len(self.arms) == 2 and all(
            arm.takes(visit.tier, visit.asked) for arm in self.arms.values()
        )
        arm = self.arms[visit.route.served]
        try:
            await self._at(arm, visit, _Client(visit, send))
        except asyncio.CancelledError:
            visit.outcome, visit.status, visit.reason = "client_gone", 499, "the client left"
            if visit.shadow is not None:
                visit.shadow.cancel()  # its copy would be compared with what nobody waited for
            raise
        finally:
            self._account(arm, visit)

    def trips(self) -> int:
        """Of all breakers, so far."""
        return sum(arm.breaker.trips for arm in self.arms.values())

    def _away(self) -> bool:
        """Whether the candidate can take nobody, or nothing is known of it any more."""
        arm, now = self.arms.get("candidate"), time.monotonic()
        return arm is not None and (arm.breaker.refuses(now) or bool(arm.saturation.blind(now)))

    async def close(self) -> None:
        """End what nobody waits for: the shadows."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    async def _at(self, arm: Arm, visit: Visit, client: _Client) -> None:
        try:
            await self._guarded(arm, visit, client)
        except Refusal as refusal:
            visit.status, visit.reason = refusal.status, refusal.message
            raise

    async def _guarded(self, arm: Arm, visit: Visit, client: _Client) -> None:
        now = time.monotonic()
        if self.draining or arm.breaker.refuses(now):
            visit.outcome = "shed"
            why = "The server is shutting down." if self.draining else "The engine is not available."
            raise Refusal(503, why, code="unavailable", retry_after=arm.breaker.retry_after(now))
        entry = await self._admitted(arm, visit)
        ended = False
        try:
            permit = arm.permit()
            if permit is None:
                visit.outcome = "shed"
                raise Refusal(503, "The engine is not available.", code="unavailable",
                              retry_after=arm.breaker.retry_after(time.monotonic()))  # fmt: skip
            if visit.route.shadow:
                self._copy(visit)
            try:
                last: bytes | Refusal = await self._ask(arm, visit, entry, permit, client)
                ended = True
                arm.breaker.succeeded(permit, time.monotonic())
            except UpstreamError as error:
                if error.fault:
                    arm.failed(permit, error)
                last = self._broken(visit, error)
                if not client.begun:
                    raise last from error
            finally:
                arm.breaker.dropped(permit)
        finally:
            arm.leave(entry, whole=ended)
        await self._last(visit, client, last)

    async def _admitted(self, arm: Arm, visit: Visit) -> Entry:
        """A place in the engine. Raises Refusal."""
        asked, limits = visit.asked, self.policy
        visit.max_tokens = asked.max_tokens
        lower = limits.degradation.max_tokens
        if (
            arm.degraded
            and lower is not None
            and lower < asked.max_tokens
            and visit.tier in limits.degradation.tiers
        ):
            visit.max_tokens, visit.degraded = lower, f"max_tokens={lower}"
        wait = limits.admission.tiers.of(visit.tier).deadline_s
        wait = wait if visit.deadline_s is None else min(wait, visit.deadline_s)
        expected = arm.gate.outputs.expected(visit.max_tokens)
        started = time.monotonic()
        if not visit.copy:
            self.metrics.own_s.observe(started - visit.arrived)
        entry, shed = await arm.admit(
            lambda settle: Entry(
                tier=visit.tier, cost=asked.prompt_tokens + expected, scoring=asked.scoring, asked=started,
                deadline=visit.arrived + wait, settle=settle, expected=expected,
                waits=not visit.copy,
            )
        )  # fmt: skip
        visit.queue_s = time.monotonic() - started
        if shed is not None:
            visit.outcome = "shed"
            raise Refusal(
                shed.status, f"Not now: {shed.reason}.", code="overloaded" if shed.status == 429 else "unavailable",
                retry_after=shed.retry_after,
            )  # fmt: skip
        return entry

    async def _ask(self, arm: Arm, visit: Visit, entry: Entry, permit: Permit, client: _Client) -> bytes:
        """Send it and pass a stream on; an answer in one piece is returned. Raises UpstreamError."""
        endpoint = arm.endpoint
        if endpoint is None:
            raise UpstreamError(503, "the engine is not available", code="unavailable", fault=False)
        self.metrics.upstream.labels(arm.name).inc()
        arm.sent(entry, visit.asked.prompt_tokens)
        rename = None if endpoint.model == self.bounds.model else (endpoint.model, self.bounds.model)
        events = Events(usage=visit.asked.usage, rename=rename, keep=self.log.texts)
        body = visit.asked.upstream(endpoint.model, visit.max_tokens)
        waits = self._waits(visit)
        visit.sent, visit.trips = time.monotonic(), self.trips()

        async def data(piece: bytes, updates: int) -> None:
            arm.delivered(entry, updates)
            if permit.probe and updates:  # a first token is proof; its reply may take minutes
                arm.breaker.succeeded(permit, time.monotonic())
            await client.more(piece)

        try:
            answer = await ask(arm.session, endpoint, visit.asked, body, waits, (events, client.start, data))
        except UpstreamError as error:
            if error.code == "upstream_timeout" and visit.deadline_s is not None and not waits.begun:
                late = time.monotonic() - visit.arrived >= visit.deadline_s
                raise UpstreamError(504, "the deadline passed", code="deadline", fault=not late) from error
            raise
        finally:
            told, typical = events.counted, arm.per_update.mean
            visit.tokens = (
                round(events.updates * (1 if typical is None else typical)) if told is None else told
            )
            # A client that does not read waits for itself.
            visit.ended = visit.last if waits.sending else time.monotonic()
        visit.tokens, visit.finish, visit.reply = answer.tokens, answer.finish, answer.text
        if events.updates:
            arm.per_update.add(answer.tokens / events.updates)
        arm.delivered(entry, max(0, answer.tokens - entry.produced))
        with suppress(Truncated):
            return answer.body if rename is None or visit.asked.stream else whole(answer.body, rename)[0]
        return answer.body

    async def _last(self, visit: Visit, client: _Client, last: bytes | Refusal) -> None:
        """The last bytes: the engine is done with the request, and a client that does not read holds up itself only."""
        if isinstance(last, Refusal) and last.status == 499:
            return  # it stopped reading long ago; without an end the server closes the connection
        try:
            async with asyncio.timeout(self.policy.timeouts.idle_s):
                if isinstance(last, Refusal):
                    await client.broke(last)
                elif visit.asked.stream:
                    await client.end()
                else:
                    await client.answer(last)
        except TimeoutError:
            visit.outcome, visit.status, visit.reason = "client_gone", 499, "the client stopped reading"
        else:
            if not isinstance(last, Refusal):
                visit.outcome, visit.status = "ok", 200

    def _waits(self, visit: Visit) -> Waits:
        limits = self.policy.timeouts
        patience = limits.first_s if visit.asked.stream else limits.total_s
        left = visit.left_s
        return Waits(limits, patience if left is None else min(patience, left), stream=visit.asked.stream)

    def _broken(self, visit: Visit, error: UpstreamError) -> Refusal:
        visit.outcome = "timeout" if error.status in (499, 504) else "upstream_error"
        visit.status, visit.reason, visit.failed = error.status, error.code, error.code in _FAILED
        retry = 1 if error.status in (502, 503) else None
        return Refusal(error.status, f"{error}.".capitalize(), code=error.code, retry_after=retry)

    def _copy(self, visit: Visit) -> None:
        """Send the same to the candidate, whose answer nobody sees. It never waits, and is the first to be shed."""
        arm = self.arms["candidate"]
        copy = Visit(
            id=visit.id, tier="bulk", asked=visit.asked, session=visit.session, deadline_s=visit.left_s,
            route=Route("candidate", "candidate", revivals=visit.route.revivals), copy=True, twin=visit,
        )  # fmt: skip
        if why := self._short():
            copy.outcome, copy.status, copy.reason = "shed", 503, why
            self._account(arm, copy)
            return

        async def run() -> None:
            try:
                with suppress(Refusal):
                    await self._at(arm, copy, _Client(copy, _nobody))
            except asyncio.CancelledError:
                if visit.outcome == "client_gone":
                    copy.outcome, copy.status, copy.reason = visit.outcome, visit.status, visit.reason
                else:
                    copy.outcome, copy.status, copy.reason = "shed", 503, "the guard is stopping"
                raise
            finally:
                self._account(arm, copy)

        task = asyncio.ensure_future(run())
        visit.shadow, visit.twin = task, copy
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    def _short(self) -> str:
        """Why no copy is sent: both engines stand on one host, so that either being short is reason enough."""
        for name, arm in self.arms.items():
            if why := arm.why_not():
                return f"{name}: {why}"
            if arm.gate.paused or arm.degraded or len(arm.gate.queues):
                return f"{name}: it is full"
        return ""

    def _account(self, arm: Arm, visit: Visit) -> None:
        visit.over = True
        finished = visit.finished(time.monotonic())
        metrics, total = self.metrics, finished.finished - visit.arrived
        metrics.requests.labels(arm.name, "shadow" if visit.copy else visit.tier, visit.outcome).inc()
        if not visit.copy:
            if visit.outcome == "shed":
                metrics.sheds.labels(visit.tier, str(visit.status)).inc()
            metrics.queue_s.labels(visit.tier).observe(visit.queue_s)
        if finished.ttft_s is not None:
            metrics.first_s.labels(arm.name).observe(finished.ttft_s)
            metrics.total_s.labels(arm.name).observe(total)
        if visit.degraded and visit.first is not None:
            metrics.degraded.labels(arm.name).inc()
        self._heard(finished)
        if visit.twin is not None and visit.twin.over:
            visit.twin.twin, visit.twin = None, None  # a ring would keep both until it is looked for
        if not self.log.wanted:
            return
        prompt = visit.asked.prompt()
        self.log.add(
            Request(
                at=visit.at, id=visit.id, session=hashed(visit.session), tier=visit.tier,
                assigned=visit.route.assigned, served=visit.route.served, shadow=visit.copy,
                stream=visit.asked.stream, outcome=visit.outcome, status=visit.status, reason=visit.reason,
                degraded=visit.degraded, queue_s=visit.queue_s, ttft_s=finished.ttft_s, tpot_s=finished.tpot_s,
                total_s=total, prompt_tokens=visit.asked.prompt_tokens, output_tokens=visit.tokens,
                max_tokens=visit.max_tokens, finish=visit.finish,
                prompt=prompt if self.log.texts else hashed(prompt),
                reply=visit.reply if self.log.texts else None,
            )
        )  # fmt: skip


class _Client:
    """The client's side of one visit."""

    def __init__(self, visit: Visit, send: Send) -> None:
        self._visit = visit
        self._send = send
        self.begun = False

    async def start(self) -> None:
        """Status and headers of a stream."""
        self.begun = True
        headers = [_EVENTS, (b"cache-control", b"no-cache"), *self._own()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def more(self, data: bytes) -> None:
        """A piece of a stream."""
        self._visit.last = time.monotonic()
        if self._visit.first is None:
            self._visit.first = self._visit.last
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Of a stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def broke(self, refusal: Refusal) -> None:
        """An error event, then the end: never a second try, whose tokens would not follow the first's."""
        await self._send({"type": "http.response.body", "body": refusal.event(), "more_body": False})

    async def answer(self, body: bytes) -> None:
        """A whole answer."""
        self._visit.first = self._visit.last = time.monotonic()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self._own(),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _own(self) -> list[tuple[bytes, bytes]]:
        found = [(b"x-request-id", self._visit.id.encode())]
        if self._visit.degraded:
            found.append((b"x-checkweigh-degraded", self._visit.degraded.encode()))
        return found


async def _nobody(message: MutableMapping[str, Any]) -> None:
    """Where a shadow's answer goes."""
