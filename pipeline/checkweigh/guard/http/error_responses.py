"""What the guard answers when it does not pass an answer on: in OpenAI's shape, without a word of the engine's."""

from __future__ import annotations

import json

_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_error",
    431: "invalid_request_error", 499: "client_closed", 500: "server_error", 502: "upstream_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class ErrorResponse(Exception):
    """Raised to answer 4xx or 5xx. ``param`` names the field at fault; ``retry_after`` is in whole seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> bytes:
        """The answer's JSON."""
        error = {
            "message": self.message, "type": _KINDS.get(self.status, "server_error"), "param": self.param,
            "code": self.code,
        }  # fmt: skip
        return json.dumps({"error": error}).encode()

    def event(self) -> bytes:
        """The same, as an event of a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's headers, without its length."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def bad_field(param: str, message: str) -> ErrorResponse:
    """400 for one field of the body."""
    return ErrorResponse(400, message, code="invalid_value", param=param)
