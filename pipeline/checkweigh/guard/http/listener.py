"""uvicorn, with what it lacks against slow and broken clients: a limit on headers' time, on connections, own errors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from checkweigh.guard.guard_policy import Surface
from checkweigh.guard.http.error_responses import ErrorResponse

_KEEPALIVE_S = 30


class Listener(uvicorn.Server):
    """A server that leaves signals to its caller."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listener(app: Any, limits: Surface) -> Listener:
    """A quiet server for one application."""

    class Protocol(GuardedConnection):
        surface = limits

    config = uvicorn.Config(
        app, http=Protocol, log_config=None, access_log=False, lifespan="off", proxy_headers=False, ws="none",
        server_header=False, date_header=True, timeout_keep_alive=_KEEPALIVE_S, timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=limits.max_header,
    )  # fmt: skip
    return Listener(config)


class CorkedTransport:
    """A transport that sends what is written within one turn of the loop at once: head and body, not one by one."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep it until the loop turns."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is kept, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))


class GuardedConnection(H11Protocol):
    """One connection. Headers must be complete ``header_s`` after it was made, or after their first byte."""

    surface: Surface
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, unless there are too many."""
        super().connection_made(transport)
        self.transport = CorkedTransport(transport, self.loop)  # type: ignore[assignment]
        if len(self.connections) > self.surface.connections:
            transport.close()
            return
        self._clock = self.loop.call_later(self.surface.header_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock too."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the clock once the headers are whole; single bytes of them do not."""
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting:
            self._stop()
        elif self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(self.surface.header_s, self._too_slow)

    def send_400_response(self, msg: str) -> None:
        """Answer in the guard's own shape; 431 where h11 says that the headers are too large."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        large = status == 431
        error_response = ErrorResponse(
            431 if large else 400, "The headers are too large." if large else "This is no HTTP request.",
            code="headers_too_large" if large else "invalid_http",
        )  # fmt: skip
        body = error_response.body()
        headers = [
            *error_response.headers(),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        event = h11.Response(status_code=error_response.status, headers=headers, reason=b"")
        for part in (event, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _too_slow(self) -> None:
        self._clock = None
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if not self.transport.is_closing():
            body = ErrorResponse(408, "The headers came too slowly.", code="headers_too_slow").body()
            head = b"HTTP/1.1 408 \r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
            self.transport.write(head + b"%d\r\n\r\n" % len(body) + body)
            self.transport.close()

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
