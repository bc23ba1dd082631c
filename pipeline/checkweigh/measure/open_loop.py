"""One block under load: requests are sent when they are due, whatever has become of the earlier ones.

1. Every time runs from the moment a request was *due*: one that waits because the server, or this sender, lags is
   slow, and no slow answer keeps a later request from being sent (no coordinated omission).
2. How late the sender itself was is kept beside it. Where it was late too often the block is no measurement.
3. A request ends whole, or as a failure with a name: no connection, refused, broken off, too late, another length.
4. A backlog that grows without bound stops the block: nothing more is sent and what is under way is given up. A block
   of which too much timed out was over-saturated as well, by then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from checkweigh.engines.http.client import Streamed
from checkweigh.errors import EngineDied, EngineError, EngineRefused, EngineTimeout, EngineTruncated
from checkweigh.measure.arrivals import BlockPlan, PlannedRequest
from checkweigh.records.load_spec import Load

LEAD_S = 0.05  # between the plan's start and now, so that the first request is no later than the others
LATE_SHARE = 0.01  # or one request, which no quantile of a smaller block rests on
MOST_OUTSTANDING = 512  # open connections; more than this is a backlog whatever its trend
FILLED = 10  # answers before the backlog is watched: until replies end as they begin it can only grow
LEAST_ARRIVALS = 30  # after that, before a trend is looked at
MOST_TIMEOUTS = 0.1  # share of requests; a server that answers fewer in time cannot carry the load, or hangs
GROWTH = 3.0  # standard deviations of a backlog that neither grows nor shrinks
Stream = Callable[[PlannedRequest], Awaitable[Streamed]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedOutcome:
    """What became of one request. Seconds from the moment it was due; None where there was no such moment.

    ``failure`` is empty for a whole answer. ``ended``: last token, failure, or giving up; None if it was never sent.
    """

    id: str
    late: float | None = None
    first: float | None = None
    ended: float | None = None
    tokens: int = 0
    cached: int = 0
    failure: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first, over the whole reply."""
        if self.failure or self.first is None or self.ended is None or self.tokens < 2:
            return None
        return (self.ended - self.first) / (self.tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedBlock:
    """A block's outcomes, one for each planned request and in its order; ``saturated`` says why it was stopped."""

    outcomes: tuple[OfferedOutcome, ...]
    saturated: str = ""

    @property
    def lateness(self) -> tuple[float, ...]:
        """Seconds after their time at which requests were sent, ascending."""
        return tuple(sorted(o.late for o in self.outcomes if o.late is not None))

    def too_late(self, load: Load) -> str:
        """Why the sender was too slow for this block to be a measurement; empty when it was not."""
        slow = sum(late > load.max_late for late in self.lateness)
        if slow <= max(1, LATE_SHARE * len(self.lateness)):
            return ""
        return (
            f"the sender was late: {slow} of {len(self.lateness)} requests went out more than "
            f"{load.max_late * 1000:g} ms after their time, up to {self.lateness[-1] * 1000:.0f} ms"
        )


def backlog_grows(outstanding: Sequence[int]) -> bool:
    """Whether a backlog, seen by each arrival since the server was filled, grows without bound.

    Over the later half of n arrivals a queue that keeps up grows by less than a walk of as many steps up as down
    would, of standard deviation sqrt(2 n / 2); three of those, and half as much again as it was, is no chance.
    """
    count = len(outstanding)
    if not count:
        return False
    if outstanding[-1] >= MOST_OUTSTANDING:
        return True
    if count < LEAST_ARRIVALS:
        return False
    before, now = outstanding[count // 2], outstanding[-1]
    return now - before > GROWTH * math.sqrt(2 * (count - count // 2)) and now >= 1.5 * before


async def offer(stream: Stream, plan: BlockPlan, load: Load, *, exact: bool) -> OfferedBlock:
    """Send the plan and wait for every answer, each at most ``load.timeout`` seconds from when it was due.

    ``stream`` asks for one reply and raises an EngineError when there is none. With ``exact`` a reply of another length
    than planned is a failure. Failures are outcomes: nothing is raised for them.
    """
    loop = asyncio.get_running_loop()
    start = loop.time() + LEAD_S
    tasks: list[asyncio.Task[OfferedOutcome]] = []
    outstanding: list[int] = []
    ended = 0
    saturated = ""

    def _closed(_: asyncio.Task[OfferedOutcome]) -> None:
        nonlocal ended
        ended += 1

    try:
        for planned in plan.requests:
            await asyncio.sleep(max(0.0, start + planned.at - loop.time()))
            task = asyncio.create_task(_send(stream, planned, start + planned.at, load, exact))
            task.add_done_callback(_closed)
            tasks.append(task)
            waiting = len(tasks) - ended
            if ended >= FILLED or waiting >= MOST_OUTSTANDING:
                outstanding.append(waiting)
            if backlog_grows(outstanding):
                await asyncio.sleep(0)  # a task that never ran cannot say what became of it
                saturated = (
                    f"over-saturated: after {len(tasks)} of {len(plan.requests)} requests {waiting} were waiting, "
                    f"{outstanding[len(outstanding) // 2]} at half of them"
                )
                break
        if not saturated and tasks:
            await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    outcomes = tuple(task.result() for task in tasks)
    slow = sum(o.failure == "timeout" for o in outcomes)
    if not saturated and slow > MOST_TIMEOUTS * len(outcomes):
        saturated = (
            f"over-saturated: {slow} of {len(outcomes)} requests had no answer within {load.timeout:g} s"
        )
    unsent = tuple(OfferedOutcome(id=p.id, failure="not sent") for p in plan.requests[len(tasks) :])
    return OfferedBlock(outcomes=(*outcomes, *unsent), saturated=saturated)


async def _send(
    stream: Stream, planned: PlannedRequest, due: float, load: Load, exact: bool
) -> OfferedOutcome:
    """One request; a cancelled one is given up, with the time it had taken so far."""
    late = max(0.0, time.monotonic() - due)
    try:
        async with asyncio.timeout_at(due + load.timeout):
            reply = await stream(planned)
    except (EngineError, TimeoutError, asyncio.CancelledError) as error:
        return OfferedOutcome(
            id=planned.id, late=late, ended=time.monotonic() - due, failure=_failure_name(error)
        )
    if not reply.events or (exact and reply.tokens != planned.output_tokens):
        wanted = f"{planned.output_tokens} tokens" if exact else "some tokens"
        failure = f"wrong length: {reply.tokens} tokens, {wanted} expected"
        return OfferedOutcome(id=planned.id, late=late, ended=reply.ended - due, failure=failure)
    cached = 0 if reply.usage is None else reply.usage.cached_tokens or 0
    return OfferedOutcome(
        id=planned.id, late=late, first=reply.events[0].at - due, ended=reply.events[-1].at - due,
        tokens=reply.tokens, cached=cached,
    )  # fmt: skip


def _failure_name(error: BaseException) -> str:
    """The failure's name, so that equal ones can be counted."""
    match error:
        case asyncio.CancelledError():
            return "given up"
        case EngineTimeout() | TimeoutError():
            return "timeout"
        case EngineRefused():
            return f"refused with {error.status}"
        case EngineTruncated():
            return "broken off"
        case EngineDied():
            return "no connection"
    return "no answer that can be read"
