"""The guard's HTTP surface, a raw ASGI application: an allow-list of paths, nothing of the engine's beyond them."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from checkweigh.guard.http.client_keys import ClientKeys
from checkweigh.guard.http.client_response import Send
from checkweigh.guard.http.error_responses import ErrorResponse
from checkweigh.guard.http.request_schema import parse_request
from checkweigh.guard.request_context import RequestContext
from checkweigh.guard.request_handler import RequestHandler
from checkweigh.progress import Say

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[bytes, bytes]
_ID = re.compile(rb"^[A-Za-z0-9_.-]{1,64}$")
_SERVED = {"/v1/chat/completions": True, "/v1/completions": False}
_GETS = ("/healthz", "/readyz", "/metrics", "/v1/models")
_ADMIN = ("/admin/kill", "/admin/revive")


class GuardApp:
    """The application that uvicorn runs. ``gauges`` sets the metrics that are read rather than counted."""

    def __init__(
        self, handler: RequestHandler, keys: ClientKeys, gauges: Callable[[], None], say: Say
    ) -> None:
        self._handler = handler
        self._keys = keys
        self._gauges = gauges
        self._say = say
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started: list[bool] = []

        async def noting(message: MutableMapping[str, Any]) -> None:
            started.append(True)
            await send(message)

        try:
            await self._dispatch(scope, receive, noting)
        except ErrorResponse as error:
            await _answer(send, error.status, error.body(), error.headers())
        except Exception as error:
            self._say(f"a fault of the guard: {type(error).__name__}: {error}")
            if started:
                raise
            fault = ErrorResponse(500, "The guard failed.", code="guard_failed")
            await _answer(send, 500, fault.body(), fault.headers())

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if (
            sum(len(name) + len(value) for name, value in scope["headers"])
            > self._handler.policy.surface.max_header
        ):
            # h11 bounds headers that are still coming; a whole block in one packet gets here
            raise ErrorResponse(431, "The headers are too large.", code="headers_too_large")
        headers: Headers = dict(scope["headers"])
        chat = _SERVED.get(path)
        if scope.get("query_string") and (chat is not None or path in _ADMIN):
            raise ErrorResponse(400, "No query string is expected here.", code="unexpected_query")
        wanted = "POST" if chat is not None or path in _ADMIN else "GET" if path in _GETS else None
        if wanted is None or (path in _ADMIN and not self._keys.admin(headers.get(b"authorization", b""))):
            raise ErrorResponse(404, "There is nothing at this path.", code="not_found")
        if method != wanted:
            raise ErrorResponse(405, f"Expected {wanted}.", code="method_not_allowed")
        if chat is not None:
            await self._complete(chat, headers, receive, send)
        elif path in _ADMIN:
            self._switch(path)
            await _json(send, 200, {"candidate_weight": self._handler.router.weight})
        else:
            await self._get(path, headers, send)

    async def _get(self, path: str, headers: Headers, send: Send) -> None:
        if path == "/healthz":
            await _json(send, 200, {"status": "alive"})
        elif path == "/readyz":
            await self._readyz(send)
        elif path == "/metrics":
            self._gauges()
            kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
            await _answer(send, 200, self._handler.metrics.text(), [kind])
        else:
            self._keys.tier(headers.get(b"authorization", b""), None)
            bounds = self._handler.bounds
            card = {
                "id": bounds.model, "object": "model", "created": self._created, "owned_by": "checkweigh",
                "max_model_len": bounds.max_sequence,
            }  # fmt: skip
            await _json(send, 200, {"object": "list", "data": [card]})

    async def _readyz(self, send: Send) -> None:
        """Ready while the baseline is. A candidate that is not gets no requests; the answer says why."""
        arms = {name: arm.why_not() for name, arm in self._handler.arms.items()}
        ready = not arms["baseline"] and not self._handler.draining
        states = {name: why or "ready" for name, why in arms.items()}
        await _json(send, 200 if ready else 503, {"ready": ready, "arms": states})

    def _switch(self, path: str) -> None:
        router = self._handler.router
        if path == "/admin/kill":
            router.kill("switched off by the operator")
        else:
            router.revive()
        self._say(f"candidate weight is {router.weight:g}, by the operator")

    async def _complete(self, chat: bool, headers: Headers, receive: Receive, send: Send) -> None:
        arrived, at = time.monotonic(), time.time()
        tier = self._keys.tier(headers.get(b"authorization", b""), headers.get(b"x-checkweigh-tier"))
        deadline = _deadline(headers.get(b"x-checkweigh-deadline-ms"))
        raw = await self._body(headers, receive)
        request = parse_request(raw, chat=chat, bounds=self._handler.bounds)
        given_id = headers.get(b"x-request-id", b"")
        name = given_id.decode() if _ID.match(given_id) else uuid.uuid4().hex
        session = headers.get(self._handler.policy.routing.session_header.encode(), b"").decode("latin-1")
        context = RequestContext(
            id=name, tier=tier, request=request, session=session or request.user or name, deadline_s=deadline,
            arrived=arrived, at=at,
        )  # fmt: skip
        await _while_there(self._handler.serve(context, send), receive)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The body, within its size and time. Raises ErrorResponse."""
        limits = self._handler.policy.surface
        kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ErrorResponse(415, "Expected content-type application/json.", code="unsupported_media_type")
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ErrorResponse(415, "Expected no content-encoding.", code="unsupported_media_type")
        large = ErrorResponse(413, f"At most {limits.max_body} bytes.", code="body_too_large")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > limits.max_body:
            raise large
        parts, size = [], 0
        try:
            async with asyncio.timeout(limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ErrorResponse(499, "The client left.", code="client_closed")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limits.max_body:
                        raise large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ErrorResponse(408, "The body came too slowly.", code="body_too_slow") from None


async def _while_there(work: Any, receive: Receive) -> None:
    """Do ``work``, until the client leaves: that cancels it."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


def _deadline(header: bytes | None) -> float | None:
    """The client's deadline in seconds, from a header in milliseconds. Raises ErrorResponse."""
    if header is None:
        return None
    if not header.isdigit() or len(header) > 9 or int(header) == 0:
        raise ErrorResponse(
            400, "x-checkweigh-deadline-ms: expected milliseconds above 0", code="invalid_deadline"
        )
    return int(header) / 1e3


async def _json(send: Send, status: int, value: object) -> None:
    await _answer(send, status, json.dumps(value).encode(), [(b"content-type", b"application/json")])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    full = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": full})
    await send({"type": "http.response.body", "body": body, "more_body": False})
