"""The path of one request: route, admit, send, answer, account. Every way out gives back what it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from checkweigh.guard.admission.queueing import QueueEntry
from checkweigh.guard.arm import GuardedArm
from checkweigh.guard.breaker import Permit
from checkweigh.guard.guard_metrics import GuardMetrics
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.http.client_response import ClientResponse, Send, discard
from checkweigh.guard.http.error_responses import ErrorResponse
from checkweigh.guard.http.relay import EventStream, TruncatedAnswer, parse_whole_answer
from checkweigh.guard.http.request_schema import Bounds
from checkweigh.guard.http.upstream import UpstreamAnswer, UpstreamError, WaitDeadline, send_upstream
from checkweigh.guard.request_context import RequestContext
from checkweigh.guard.routing import ArmName, Route, Router
from checkweigh.guard.traffic_log import TrafficLine, TrafficLog, hashed
from checkweigh.monitors.finished_request import FinishedRequest

OnFinished = Callable[[FinishedRequest], None]
_FAILED = ("refused_by_engine", "upstream_error", "upstream_broken")


class RequestHandler:
    """Serves requests on one arm or two. ``on_finished`` is called once for every request and copy that is over."""

    def __init__(
        self, policy: GuardPolicy, arms: Mapping[ArmName, GuardedArm], router: Router, bounds: Bounds,
        metrics: GuardMetrics, log: TrafficLog, on_finished: OnFinished,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.arms = arms
        self.router = router
        self.bounds = bounds
        self.metrics = metrics
        self.log = log
        self._on_finished = on_finished
        self._shadows: set[asyncio.Task[None]] = set()
        self.draining = False

    async def serve(self, context: RequestContext, send: Send) -> None:
        """Answer one request. Raises ErrorResponse for what is refused before an answer has begun."""
        context.route = self.router.route(context.session, away=self._candidate_away())
        context.unhurried = len(self.arms) == 2 and all(
            arm.takes(context.tier, context.request) for arm in self.arms.values()
        )
        arm = self.arms[context.route.served]
        try:
            await self._serve_at(arm, context, ClientResponse(context, send))
        except asyncio.CancelledError:
            context.outcome, context.status, context.reason = "client_gone", 499, "the client left"
            if context.shadow is not None:
                context.shadow.cancel()  # its copy would be compared with what nobody waited for
            raise
        finally:
            self._account(arm, context)

    def trips(self) -> int:
        """Times that any breaker has opened so far."""
        return sum(arm.breaker.trips for arm in self.arms.values())

    async def close(self) -> None:
        """End the shadows, for which nobody waits."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    def _candidate_away(self) -> bool:
        """Whether the candidate can take nobody, or nothing is known of it any more."""
        arm, now = self.arms.get("candidate"), time.monotonic()
        return arm is not None and (arm.breaker.refuses(now) or bool(arm.saturation.blind(now)))

    async def _serve_at(self, arm: GuardedArm, context: RequestContext, client: ClientResponse) -> None:
        try:
            await self._admit_and_answer(arm, context, client)
        except ErrorResponse as error:
            context.status, context.reason = error.status, error.message
            raise

    async def _admit_and_answer(
        self, arm: GuardedArm, context: RequestContext, client: ClientResponse
    ) -> None:
        now = time.monotonic()
        if self.draining or arm.breaker.refuses(now):
            context.outcome = "shed"
            why = "The server is shutting down." if self.draining else "The engine is not available."
            raise ErrorResponse(503, why, code="unavailable", retry_after=arm.breaker.retry_after(now))
        entry = await self._admit(arm, context)
        whole = False
        try:
            permit = arm.permit()
            if permit is None:
                context.outcome = "shed"
                raise ErrorResponse(503, "The engine is not available.", code="unavailable",
                                    retry_after=arm.breaker.retry_after(time.monotonic()))  # fmt: skip
            if context.route.shadow:
                self._send_copy(context)
            try:
                last: bytes | ErrorResponse = await self._ask_engine(arm, context, entry, permit, client)
                whole = True
                arm.breaker.succeeded(permit, time.monotonic())
            except UpstreamError as error:
                if error.fault:
                    arm.failed(permit, error)
                last = _engine_error(context, error)
                if not client.begun:
                    raise last from error
            finally:
                arm.breaker.dropped(permit)
        finally:
            arm.leave(entry, whole=whole)
        await self._send_last(context, client, last)

    async def _admit(self, arm: GuardedArm, context: RequestContext) -> QueueEntry:
        """A place in the engine. Raises ErrorResponse."""
        request, limits = context.request, self.policy
        context.max_tokens = request.max_tokens
        lower = limits.degradation.max_tokens
        if (
            arm.degraded
            and lower is not None
            and lower < request.max_tokens
            and context.tier in limits.degradation.tiers
        ):
            context.max_tokens, context.degraded = lower, f"max_tokens={lower}"
        wait = limits.admission.tiers.of(context.tier).deadline_s
        wait = wait if context.deadline_s is None else min(wait, context.deadline_s)
        expected = arm.admission.outputs.expected(context.max_tokens)
        started = time.monotonic()
        if not context.copy:
            self.metrics.own_s.observe(started - context.arrived)
        entry, shed = await arm.admit(
            lambda settle: QueueEntry(
                tier=context.tier, cost=request.prompt_tokens + expected, scoring=request.scoring, asked=started,
                deadline=context.arrived + wait, settle=settle, expected=expected,
                waits=not context.copy,
            )
        )  # fmt: skip
        context.queue_s = time.monotonic() - started
        if shed is not None:
            context.outcome = "shed"
            raise ErrorResponse(
                shed.status, f"Not now: {shed.reason}.", code="overloaded" if shed.status == 429 else "unavailable",
                retry_after=shed.retry_after,
            )  # fmt: skip
        return entry

    async def _ask_engine(
        self, arm: GuardedArm, context: RequestContext, entry: QueueEntry, permit: Permit, client: ClientResponse
    ) -> bytes:  # fmt: skip
        """Send it and pass a stream on; an answer in one piece is returned. Raises UpstreamError."""
        endpoint, request = arm.endpoint, context.request
        if endpoint is None:
            raise UpstreamError(503, "the engine is not available", code="unavailable", fault=False)
        self.metrics.upstream.labels(arm.name).inc()
        arm.sent(entry, request.prompt_tokens)
        rename = None if endpoint.model == self.bounds.model else (endpoint.model, self.bounds.model)
        events = EventStream(usage=request.usage, rename=rename, keep=self.log.texts)
        body = request.upstream(endpoint.model, context.max_tokens)
        waits = self._wait_deadline(context)
        context.sent, context.trips = time.monotonic(), self.trips()

        async def pass_on(piece: bytes, updates: int) -> None:
            arm.delivered(entry, updates)
            if permit.probe and updates:  # a first token is proof; its reply may take minutes
                arm.breaker.succeeded(permit, time.monotonic())
            await client.send_piece(piece)

        passes = (events, client.start_stream, pass_on)
        try:
            answer = await send_upstream(arm.session, endpoint, request, body, waits, passes)
        except UpstreamError as error:
            if error.code == "upstream_timeout" and context.deadline_s is not None and not waits.begun:
                late = time.monotonic() - context.arrived >= context.deadline_s
                raise UpstreamError(504, "the deadline passed", code="deadline", fault=not late) from error
            raise
        finally:
            context.tokens = _tokens_so_far(arm, events)
            # A client that does not read waits for itself.
            context.ended = context.last if waits.sending else time.monotonic()
        _note_answer(arm, context, entry, answer, events.updates)
        with suppress(TruncatedAnswer):
            if rename is not None and not request.stream:
                return parse_whole_answer(answer.body, rename)[0]
        return answer.body

    async def _send_last(
        self, context: RequestContext, client: ClientResponse, last: bytes | ErrorResponse
    ) -> None:
        """Send the last bytes. The engine is done: a client that does not read holds up itself only."""
        if isinstance(last, ErrorResponse) and last.status == 499:
            return  # it stopped reading long ago; without an end the server closes the connection
        try:
            async with asyncio.timeout(self.policy.timeouts.idle_s):
                if isinstance(last, ErrorResponse):
                    await client.end_with_error(last)
                elif context.request.stream:
                    await client.end_stream()
                else:
                    await client.send_whole(last)
        except TimeoutError:
            context.outcome, context.status, context.reason = "client_gone", 499, "the client stopped reading"
        else:
            if not isinstance(last, ErrorResponse):
                context.outcome, context.status = "ok", 200

    def _wait_deadline(self, context: RequestContext) -> WaitDeadline:
        limits, stream = self.policy.timeouts, context.request.stream
        patience = limits.first_s if stream else limits.total_s
        left = context.left_s
        return WaitDeadline(limits, patience if left is None else min(patience, left), stream=stream)

    def _send_copy(self, context: RequestContext) -> None:
        """Send the same to the candidate, whose answer nobody sees. It never waits, and is the first to be shed."""
        arm = self.arms["candidate"]
        copy = RequestContext(
            id=context.id, tier="bulk", request=context.request, session=context.session,
            deadline_s=context.left_s, copy=True, twin=context,
            route=Route("candidate", "candidate", revivals=context.route.revivals),
        )  # fmt: skip
        if why := self._no_room_for_copies():
            copy.outcome, copy.status, copy.reason = "shed", 503, why
            self._account(arm, copy)
            return

        async def run() -> None:
            try:
                with suppress(ErrorResponse):
                    await self._serve_at(arm, copy, ClientResponse(copy, discard))
            except asyncio.CancelledError:
                if context.outcome == "client_gone":
                    copy.outcome, copy.status, copy.reason = context.outcome, context.status, context.reason
                else:
                    copy.outcome, copy.status, copy.reason = "shed", 503, "the guard is stopping"
                raise
            finally:
                self._account(arm, copy)

        task = asyncio.ensure_future(run())
        context.shadow, context.twin = task, copy
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    def _no_room_for_copies(self) -> str:
        """Why no copy is sent. Both engines run on one host, so that either being full is reason enough."""
        for name, arm in self.arms.items():
            if why := arm.why_not():
                return f"{name}: {why}"
            if arm.admission.paused or arm.degraded or len(arm.admission.queues):
                return f"{name}: it is full"
        return ""

    def _account(self, arm: GuardedArm, context: RequestContext) -> None:
        """Count it, show it to the monitors and write it down; once for every request and copy."""
        context.over = True
        finished = context.finished(time.monotonic())
        self._count(arm, context, finished)
        self._on_finished(finished)
        if context.twin is not None and context.twin.over:
            context.twin.twin, context.twin = None, None  # a ring would keep both until it is looked for
        if self.log.wanted:
            self.log.add(_traffic_line(context, finished, texts=self.log.texts))

    def _count(self, arm: GuardedArm, context: RequestContext, finished: FinishedRequest) -> None:
        metrics = self.metrics
        metrics.requests.labels(arm.name, "shadow" if context.copy else context.tier, context.outcome).inc()
        if not context.copy:
            if context.outcome == "shed":
                metrics.sheds.labels(context.tier, str(context.status)).inc()
            metrics.queue_s.labels(context.tier).observe(context.queue_s)
        if finished.ttft_s is not None:
            metrics.first_s.labels(arm.name).observe(finished.ttft_s)
            metrics.total_s.labels(arm.name).observe(finished.finished - context.arrived)
        if context.degraded and context.first is not None:
            metrics.degraded.labels(arm.name).inc()


def _engine_error(context: RequestContext, error: UpstreamError) -> ErrorResponse:
    """Note what the engine did, or did not do in time; the error for the client."""
    context.outcome = "timeout" if error.status in (499, 504) else "upstream_error"
    context.status, context.reason, context.failed = error.status, error.code, error.code in _FAILED
    retry = 1 if error.status in (502, 503) else None
    return ErrorResponse(error.status, f"{error}.".capitalize(), code=error.code, retry_after=retry)


def _tokens_so_far(arm: GuardedArm, events: EventStream) -> int:
    """Tokens of a reply: what the engine counted, else what its updates usually hold."""
    if events.counted is not None:
        return events.counted
    typical = arm.per_update.mean
    return round(events.updates * (1 if typical is None else typical))


def _note_answer(
    arm: GuardedArm, context: RequestContext, entry: QueueEntry, answer: UpstreamAnswer, updates: int
) -> None:
    """Note a whole answer; tokens that no update brought are charged now."""
    context.tokens, context.finish, context.reply = answer.tokens, answer.finish, answer.text
    if updates:
        arm.per_update.add(answer.tokens / updates)
    arm.delivered(entry, max(0, answer.tokens - entry.produced))


def _traffic_line(context: RequestContext, finished: FinishedRequest, *, texts: bool) -> TrafficLine:
    request = context.request
    prompt = request.prompt()
    return TrafficLine(
        at=context.at, id=context.id, session=hashed(context.session), tier=context.tier,
        assigned=context.route.assigned, served=context.route.served, shadow=context.copy, stream=request.stream,
        outcome=context.outcome, status=context.status, reason=context.reason, degraded=context.degraded,
        queue_s=context.queue_s, ttft_s=finished.ttft_s, tpot_s=finished.tpot_s,
        total_s=finished.finished - context.arrived, prompt_tokens=request.prompt_tokens,
        output_tokens=context.tokens, max_tokens=context.max_tokens, finish=context.finish,
        prompt=prompt if texts else hashed(prompt), reply=context.reply if texts else None,
    )  # fmt: skip
