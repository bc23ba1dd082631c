"""The client's side of one request: a stream that begins, goes on and ends, or an answer in one piece."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from checkweigh.guard.http.error_responses import ErrorResponse
from checkweigh.guard.request_context import RequestContext

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


class ClientResponse:
    """Sends an answer by ASGI's ``send``, and notes in the context when its first and last byte went out."""

    def __init__(self, context: RequestContext, send: Send) -> None:
        self._context = context
        self._send = send
        self.begun = False  # a stream's headers were sent

    async def start_stream(self) -> None:
        """Send status and headers of a stream."""
        self.begun = True
        headers = [_EVENT_STREAM, (b"cache-control", b"no-cache"), *self._own_headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_piece(self, data: bytes) -> None:
        """Send a piece of a stream."""
        self._context.last = time.monotonic()
        if self._context.first is None:
            self._context.first = self._context.last
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """End a stream that is whole."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def end_with_error(self, error: ErrorResponse) -> None:
        """Send an error event, then the end. There is no second try: its tokens would not follow the first's."""
        await self._send({"type": "http.response.body", "body": error.event(), "more_body": False})

    async def send_whole(self, body: bytes) -> None:
        """Send an answer in one piece."""
        self._context.first = self._context.last = time.monotonic()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self._own_headers(),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", self._context.id.encode())]
        if self._context.degraded:
            headers.append((b"x-checkweigh-degraded", self._context.degraded.encode()))
        return headers


async def discard(message: MutableMapping[str, Any]) -> None:
    """Send to nobody: where a copy's answer goes."""
