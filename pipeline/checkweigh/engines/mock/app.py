"""The mock as a raw ASGI application.

``POST /mock/knobs`` changes knobs while it runs (a JSON object of some of them) and ``GET /mock/seen`` counts what
came in; ``POST /mock/crash`` ends the process. All of them, and /v1, take the key where there is one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing, suppress
from typing import Any

from pydantic import ValidationError

from checkweigh.engines.mock import requests
from checkweigh.engines.mock.answers import MockAnswer
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.requests import MockRequest, RefusedRequest
from checkweigh.engines.mock.schedule import Fate, Schedule, Sequence

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
VERSION = "0.0.0+mock"
_JSON = (b"content-type", b"application/json")
_PLAIN = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_DEAD = (
    b'data: {"error": {"message": "the engine failed", "type": "InternalServerError"}}\n\ndata: [DONE]\n\n'
)
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class MockApp:
    """One mock engine. ``die`` ends its process with a code; in a test's own process it ends the server."""

    def __init__(self, knobs: MockKnobs, *, key: str | None, die: Callable[[int], None]) -> None:
        self.schedule = Schedule(knobs, die)
        self._key = None if key is None else f"Bearer {key}".encode()
        self._die = die
        self._ready_at = time.monotonic() + knobs.start_ms / 1e3
        self._paths: dict[tuple[str, str], Callable[[bytes, Send], Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("GET", "/mock/seen"): self._seen,
            ("POST", "/mock/knobs"): self._turn,
            ("POST", "/mock/crash"): self._crash,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._complete,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            work = self._admitted(scope)(await _body(receive), send)
            if scope["path"].endswith("completions"):
                await _until_gone(asyncio.ensure_future(work), receive)
            else:
                await work
        except RefusedRequest as error:
            await _answer(send, json.dumps(error.body).encode(), status=error.status)

    def _admitted(self, scope: Scope) -> Callable[[bytes, Send], Awaitable[None]]:
        """The handler of a request that may be answered. Raises Refused."""
        path = scope["path"]
        given = dict(scope["headers"]).get(b"authorization", b"")
        guarded = self._key is not None and path.startswith(("/v1/", "/mock/"))
        if guarded and not hmac.compare_digest(given, self._key or b""):
            raise RefusedRequest(401, "Unauthorized", "AuthenticationError")
        if time.monotonic() < self._ready_at and not path.startswith("/mock/"):
            raise RefusedRequest(503, "loading", "ServiceUnavailableError")
        handler = self._paths.get((scope["method"], path))
        if handler is None:
            raise RefusedRequest(404, "Not Found", "NotFoundError")
        return handler

    async def _health(self, body: bytes, send: Send) -> None:
        while self.schedule.knobs.deaf:
            await asyncio.sleep(0.05)
        await _answer(send, b"", status=503 if self.schedule.knobs.dead else 200)

    async def _version(self, body: bytes, send: Send) -> None:
        await _answer(send, json.dumps({"version": VERSION}).encode())

    async def _metrics(self, body: bytes, send: Send) -> None:
        await _answer(send, self.schedule.text(), kind=_PLAIN)

    async def _models(self, body: bytes, send: Send) -> None:
        knobs = self.schedule.knobs
        card = {
            "id": knobs.model, "object": "model", "created": 0, "owned_by": "checkweigh", "root": knobs.model,
            "max_model_len": knobs.max_len,
        }  # fmt: skip
        await _answer(send, json.dumps({"object": "list", "data": [card]}).encode())

    async def _tokenize(self, body: bytes, send: Send) -> None:
        ids = requests.prompt_ids(requests.decode(body))
        value = {"count": len(ids), "max_model_len": self.schedule.knobs.max_len, "tokens": list(ids)}
        await _answer(send, json.dumps(value).encode())

    async def _seen(self, body: bytes, send: Send) -> None:
        schedule = self.schedule
        value = {"requests": schedule.seen, "aborted": schedule.aborted, "inside": schedule.inside}
        await _answer(send, json.dumps(value).encode())

    async def _turn(self, body: bytes, send: Send) -> None:
        changed = requests.decode(body)
        try:
            knobs = MockKnobs.model_validate(self.schedule.knobs.model_dump() | changed)
        except ValidationError as error:
            raise RefusedRequest(400, str(error)) from error
        self.schedule.turn(knobs)
        await _answer(send, knobs.model_dump_json().encode())

    async def _crash(self, body: bytes, send: Send) -> None:
        self._die(int(requests.decode(body or b"{}").get("code", self.schedule.knobs.crash_code)))

    async def _chat(self, body: bytes, send: Send) -> None:
        await self._reply(
            requests.read_request(requests.decode(body), chat=True, knobs=self.schedule.knobs), send
        )

    async def _complete(self, body: bytes, send: Send) -> None:
        await self._reply(
            requests.read_request(requests.decode(body), chat=False, knobs=self.schedule.knobs), send
        )

    async def _reply(self, ask: MockRequest, send: Send) -> None:
        fate = self.schedule.fate()
        if fate is Fate.ERROR:
            raise RefusedRequest(self.schedule.knobs.error_code, "the engine failed", "InternalServerError")
        sequence, answer = Sequence(len(ask.prompt), ask.wanted), MockAnswer(ask)
        sent = False
        async with aclosing(self.schedule.run(sequence)) as updates:
            async for step in updates:
                if self.schedule.knobs.dead:
                    fate = Fate.ERROR
                    break
                if ask.stream:
                    if not sent:
                        await _start(send, 200, _EVENTS)
                        opening = answer.opening() if ask.chat else b""
                    await _more(send, (b"" if sent else opening) + answer.update(step, first=not sent))
                    sent = True
                if fate is not Fate.WHOLE and sequence.made * 2 >= ask.wanted:
                    await self._break(fate, ask, send)
                    return
        if fate is Fate.ERROR:
            if not sent:
                raise RefusedRequest(500, "the engine failed", "InternalServerError")
            await send({"type": "http.response.body", "body": _DEAD, "more_body": False})
            return
        self.schedule.metrics.succeeded(ask.finish)
        if ask.stream:
            await send({"type": "http.response.body", "body": answer.closing(), "more_body": False})
        else:
            await _answer(send, answer.whole())

    async def _break(self, fate: Fate, ask: MockRequest, send: Send) -> None:
        if fate is Fate.TRUNCATED and ask.stream:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        _reset(send)


def _reset(send: Send) -> None:
    """Drop the connection so that the other side sees a reset, not an end."""
    transport = send.__self__.transport  # type: ignore[attr-defined]  # uvicorn's cycle
    with suppress(OSError):
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    transport.abort()


async def _until_gone(work: asyncio.Future[None], receive: Receive) -> None:
    """Run ``work``; a client that goes away cancels it, as vLLM aborts its requests."""
    if work.done():
        return work.result()
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    return None if work.cancelled() else work.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedRequest(400, "the client left")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _start(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _more(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _answer(send: Send, data: bytes, *, status: int = 200, kind: tuple[bytes, bytes] = _JSON) -> None:
    await _start(send, status, kind, (b"content-length", b"%d" % len(data)))
    await send({"type": "http.response.body", "body": data, "more_body": False})
