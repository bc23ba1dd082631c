"""One request to the engine: sent once, never again, with a deadline on every wait.

Whatever goes wrong is an ``UpstreamError`` with the status a client gets, and whether it is the engine's fault.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from checkweigh.engines.http.client import Endpoint
from checkweigh.guard.guard_policy import UpstreamTimeouts
from checkweigh.guard.http.relay import EventStream, TruncatedAnswer, parse_whole_answer
from checkweigh.guard.http.request_schema import ValidatedRequest

OnStart = Callable[[], Awaitable[None]]
OnData = Callable[[bytes, int], Awaitable[None]]
_MAX_ANSWER = 256 << 20


class UpstreamError(Exception):
    """There is no whole answer. ``status`` is the client's; ``fault``: the breaker counts it against the engine."""

    def __init__(self, status: int, message: str, *, code: str, fault: bool) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.fault = fault


@dataclass(slots=True)
class UpstreamAnswer:
    """A whole answer of the engine."""

    body: bytes  # empty for a stream, which was passed on
    tokens: int
    finish: str | None
    text: str


class WaitDeadline:
    """Until when the next piece is waited for; moves on with every piece."""

    def __init__(self, limits: UpstreamTimeouts, first_s: float, *, stream: bool) -> None:
        """``first_s``: seconds to the first byte of a stream, or to the whole of another answer."""
        self._limits = limits
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        started = self._loop.time()
        self.first = started + first_s
        self._end = started + limits.total_s if stream else self.first
        self.sending = False  # to the client: a wait that is not the engine's fault
        self.begun = False  # the client has bytes

    def next(self) -> float:
        """The loop's time until which the next piece may take."""
        return min(self._end, self._loop.time() + self._limits.idle_s)


async def send_upstream(
    session: aiohttp.ClientSession, endpoint: Endpoint, request: ValidatedRequest, body: bytes, waits: WaitDeadline,
    passes: tuple[EventStream, OnStart, OnData],
) -> UpstreamAnswer:  # fmt: skip
    """Send the request and pass a stream on as it comes. Raises UpstreamError."""
    headers = {"Content-Type": "application/json"}
    if endpoint.key is not None:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    url = endpoint.url.rstrip("/") + request.path
    try:
        async with asyncio.timeout_at(waits.first) as limit:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                await _accept(answer, endpoint)
                if request.stream:
                    return await _stream(answer, limit, waits, passes)
                limit.reschedule(waits.next())
                raw = await _read(answer, limit, waits)
                return UpstreamAnswer(*parse_whole_answer(raw, None))
    except TimeoutError as error:
        if waits.sending:
            raise UpstreamError(499, "the client stopped reading", code="client_slow", fault=False) from error
        raise UpstreamError(
            504, "the engine did not answer in time", code="upstream_timeout", fault=True
        ) from error
    except (aiohttp.ClientError, ConnectionError, TruncatedAnswer) as error:
        # The error's own text is kept back: it holds the engine's address.
        message = "the engine broke off" if waits.begun else "the engine cannot be reached"
        raise UpstreamError(502, message, code="upstream_broken", fault=True) from error


async def _accept(answer: aiohttp.ClientResponse, endpoint: Endpoint) -> None:
    if answer.status == 200:
        return
    raw = await answer.content.read(4096)
    if answer.status in (400, 422):
        raise UpstreamError(400, _refusal_text(raw, endpoint), code="refused_by_engine", fault=False)
    if answer.status in (413, 429, 503):
        raise UpstreamError(
            503, "the engine is overloaded", code="upstream_overloaded", fault=answer.status == 503
        )
    raise UpstreamError(502, "the engine failed", code="upstream_error", fault=True)


async def _stream(
    answer: aiohttp.ClientResponse,
    limit: asyncio.Timeout,
    waits: WaitDeadline,
    passes: tuple[EventStream, OnStart, OnData],
) -> UpstreamAnswer:
    events, start, pass_on = passes
    async for chunk in answer.content.iter_any():
        limit.reschedule(waits.next())
        data, updates = events.take(chunk)
        if not data:
            continue
        waits.sending = True
        if not waits.begun:
            waits.begun = True
            await start()
        await pass_on(data, updates)
        waits.sending = False
        limit.reschedule(waits.next())
    if not events.done or events.finish is None or events.finish in ("abort", "error"):
        raise TruncatedAnswer("a stream without an end")
    return UpstreamAnswer(b"", events.tokens, events.finish, events.text)


async def _read(answer: aiohttp.ClientResponse, limit: asyncio.Timeout, waits: WaitDeadline) -> bytes:
    parts, size = [], 0
    async for chunk in answer.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > _MAX_ANSWER:
            raise TruncatedAnswer("an answer without end")
        limit.reschedule(waits.next())
    return b"".join(parts)


def _refusal_text(raw: bytes, endpoint: Endpoint) -> str:
    """The engine's reason for a 400, without where or what the engine is."""
    try:
        error = json.loads(raw)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return "the engine refused the request"
    host = endpoint.root.split("://")[-1]
    for secret in (endpoint.url, endpoint.root, host, endpoint.key):
        if secret:
            text = text.replace(secret, "...")
    return " ".join(text.split())[:500]
