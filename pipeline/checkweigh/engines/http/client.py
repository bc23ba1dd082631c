"""An OpenAI-compatible endpoint, and a streaming client that says what it saw and when.

Times are those of ``time.monotonic``. Everything that can go wrong is one of our own errors:

====================================  ==================================================================
no connection                         EngineDied
no answer, or no next event, in time  EngineTimeout
HTTP status of 300 and above          EngineRefused, with the status, Retry-After and the server's words;
                                      a redirect is not followed, because it would take the key elsewhere
connection lost, no finish reason,    EngineTruncated, with the number of tokens that had come
or the server's own abort
an answer that is no answer           EngineError
an address that is none               BadInput
====================================  ==================================================================
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from checkweigh.engines.protocol import Messages
from checkweigh.errors import (
    BadInput,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineTruncated,
)

MAX_LINE = 64 << 20  # bytes of one event; prompt log-probabilities of a long prompt take a few
KEPT_S = (
    2.0  # an idle connection; uvicorn closes after 5, and a request on one that is being closed would be lost
)
VLLM_IDS: Mapping[str, Any] = {"return_token_ids": True}  # body field of vLLM; others may refuse it


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is served. ``url`` ends where ``/chat/completions`` would follow; the key is in no repr."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)

    @property
    def root(self) -> str:
        """The address above ``/v1``, where vLLM has /health, /metrics, /version and /tokenize."""
        return self.url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Longest waits, in seconds; the error names the one that ran out."""

    connect: float = 10.0
    idle: float = 120.0  # between two pieces of one answer, the wait for the first included
    total: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """One reply that is to be streamed: to ``messages``, or to ``prompt_ids`` (exactly one of them).

    ``exact`` ignores what would end the reply before ``max_tokens`` (vLLM). ``extra`` is put into the body as it
    is: ``cache_salt``, ``priority``, VLLM_IDS.
    """

    id: str
    max_tokens: int
    messages: Messages | None = None
    prompt_ids: tuple[int, ...] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    exact: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt_ids is None):
            raise ValueError("either messages or prompt_ids")

    @property
    def path(self) -> str:
        """Below the endpoint's address."""
        return "/completions" if self.messages is None else "/chat/completions"

    def body(self, model: str) -> dict[str, Any]:
        """The JSON that asks for it."""
        body: dict[str, Any] = {
            "model": model, "max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self.messages is None:
            body["prompt"] = list(self.prompt_ids or ())
        else:
            body["messages"] = [{"role": m.role, "content": m.content} for m in self.messages]
        if self.seed is not None:
            body["seed"] = self.seed
        if self.stop and not self.exact:
            body["stop"] = list(self.stop)
        if self.exact:
            body |= {"ignore_eos": True, "min_tokens": self.max_tokens}
        return body | dict(self.extra)


@dataclass(frozen=True, slots=True)
class Event:
    """One update of a stream that brought tokens. ``token_ids`` is empty where the server does not say them."""

    at: float
    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the server counted."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None  # of the prompt, found in the server's prefix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """A whole reply. ``sent`` is the moment before the request was written, ``ended`` that of the last byte."""

    id: str
    sent: float
    ended: float
    events: tuple[Event, ...]
    finish: str  # stop, length, or a word of the server's own
    usage: Usage | None
    prompt_ids: tuple[int, ...] | None

    @property
    def text(self) -> str:
        """The reply."""
        return "".join(event.text for event in self.events)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Its ids, as far as the server said them."""
        return tuple(token for event in self.events for token in event.token_ids)

    @property
    def tokens(self) -> int:
        """Tokens of the reply: those whose ids came, else what the server counted, else one an event."""
        if ids := len(self.token_ids):
            return ids
        return len(self.events) if self.usage is None else self.usage.completion_tokens


_DEADLINES = Deadlines()


class Client:
    """Requests to one endpoint over kept connections. Use it as an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint, deadlines: Deadlines = _DEADLINES) -> None:
        self.endpoint = endpoint
        self.deadlines = deadlines
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        key = self.endpoint.key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(
                total=self.deadlines.total,
                sock_connect=self.deadlines.connect,
                sock_read=self.deadlines.idle,
            ),
            trust_env=False,
            read_bufsize=1 << 18,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def stream(self, request: StreamRequest) -> Streamed:
        """The reply, read to its end. A cancelled call closes its connection, which tells the server to stop."""
        reading = _StreamReader(request.id)
        with self._translated_errors(reading):
            url = self.endpoint.url.rstrip("/") + request.path
            async with self._open.post(
                url, json=request.body(self.endpoint.model), allow_redirects=False
            ) as response:
                await self._accept(response, request.id)
                async for line in _lines(response):
                    if reading.take(line):
                        break
        return reading.whole()

    async def post(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that a POST answers with."""
        with self._translated_errors(_StreamReader(url)):
            async with self._open.post(url, json=body, allow_redirects=False) as response:
                await self._accept(response, url)
                return _object(await response.read(), url)

    async def get(self, url: str) -> dict[str, Any]:
        """The JSON object that a GET answers with."""
        return _object((await self.get_text(url)).encode(), url)

    async def get_text(self, url: str) -> str:
        """The text that a GET answers with."""
        with self._translated_errors(_StreamReader(url)):
            async with self._open.get(url, allow_redirects=False) as response:
                await self._accept(response, url)
                return (await response.read()).decode("utf-8", "replace")

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineError("the client is closed")
        return self._session

    async def _accept(self, response: aiohttp.ClientResponse, what: str) -> None:
        """EngineRefused unless the answer is a good one."""
        if response.status < 300:
            return
        raw = (await response.content.read(4096)).decode("utf-8", "replace")
        raise EngineRefused(
            f"{what}: the server answered {response.status} {response.reason or ''}".rstrip(),
            status=response.status, cause=_error_message(raw),
            retry_after=_retry_after(response.headers.get("Retry-After")),
        )  # fmt: skip

    @contextmanager
    def _translated_errors(self, reading: _StreamReader) -> Iterator[None]:
        """Every error of aiohttp as one of ours; the more exact kinds first."""
        what, seen = reading.id, reading.seen
        try:
            yield
        except (aiohttp.ConnectionTimeoutError, aiohttp.ServerTimeoutError, TimeoutError) as error:
            limits = self.deadlines
            waits = f"connect {limits.connect:g}, idle {limits.idle:g}, total {limits.total:g} s"
            cause = str(error) or f"allowed: {waits}"
            raise EngineTimeout(f"{what}: no answer in time after {seen()}", cause=cause) from error
        except aiohttp.ClientConnectorError as error:
            raise EngineDied(
                f"{what}: no connection to {self.endpoint.root}", cause=_reason(error)
            ) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise BadInput(f"{self.endpoint.url}: expected an address such as http://HOST:PORT/v1") from error
        except (aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError) as error:
            raise EngineError(
                f"{what}: an answer that is no HTTP after {seen()}", cause=_reason(error)
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineTruncated(f"{what}: broke off after {seen()}", cause=_reason(error)) from error


class _StreamReader:
    """One stream while it is read."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.sent = time.monotonic()
        self.events: list[Event] = []
        self.finish: str | None = None
        self.usage: Usage | None = None
        self.prompt_ids: tuple[int, ...] | None = None

    def seen(self) -> str:
        """How far it came, in words."""
        return f"{sum(len(e.token_ids) or 1 for e in self.events)} tokens"

    def take(self, line: bytes) -> bool:
        """Read one line of the stream; True when it was the last."""
        at = time.monotonic()
        if not line.startswith(b"data:"):
            return False  # an empty line, a comment, another field
        data = line[5:].strip()
        if data == b"[DONE]":
            return True
        value = _object(data, f"{self.id}: an event after {self.seen()}")
        if value.get("error"):
            cause = _error_message(json.dumps(value))
            raise EngineError(f"{self.id}: the server reports an error after {self.seen()}", cause=cause)
        try:
            self._event(value, at)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            shown = data[:200].decode("utf-8", "replace")
            raise EngineError(f"{self.id}: an event that cannot be read: {shown}") from error
        return False

    def _event(self, value: dict[str, Any], at: float) -> None:
        if usage := value.get("usage"):
            self.usage = _usage(usage)
        if (ids := value.get("prompt_token_ids")) is not None:
            self.prompt_ids = _ids(ids)
        for choice in value["choices"]:
            delta = choice.get("delta", choice)  # a completion has its text in the choice itself
            text = choice.get("text") if delta is choice else delta.get("content")
            if (ids := choice.get("prompt_token_ids")) is not None:
                self.prompt_ids = _ids(ids)
            tokens = _ids(choice.get("token_ids") or ())
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            if text or tokens or thought:
                self.events.append(Event(at, str(text or ""), tokens))
            if choice.get("finish_reason"):
                self.finish = str(choice["finish_reason"])

    def whole(self) -> Streamed:
        """The reply; EngineTruncated when it never said why it ended."""
        if self.finish is None or self.finish in ("abort", "error"):
            why = "without a finish reason" if self.finish is None else f"with finish reason {self.finish}"
            raise EngineTruncated(f"{self.id}: the stream ended {why} after {self.seen()}")
        return Streamed(
            id=self.id, sent=self.sent, ended=time.monotonic(), events=tuple(self.events), finish=self.finish,
            usage=self.usage, prompt_ids=self.prompt_ids,
        )  # fmt: skip


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of a body as they come, without the limit that aiohttp's own reader has."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(rest) > MAX_LINE:
            raise EngineError(f"an event of more than {MAX_LINE} bytes")
    if rest:
        yield rest


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        shown = data[:200].decode("utf-8", "replace")
        raise EngineError(f"{what}: expected JSON, found {shown!r}") from error
    if not isinstance(value, dict):
        raise EngineError(f"{what}: expected a JSON object, found {str(value)[:200]!r}")
    return value


def _ids(value: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(i) is int and i >= 0 for i in value):
        raise ValueError("token ids expected")
    return tuple(value)


def _usage(value: Mapping[str, Any]) -> Usage:
    details = value.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return Usage(
        prompt_tokens=int(value["prompt_tokens"]), completion_tokens=int(value.get("completion_tokens") or 0),
        cached_tokens=None if cached is None else int(cached),
    )  # fmt: skip


def _error_message(raw: str) -> str:
    """The message inside an error answer, or its beginning."""
    try:
        value = json.loads(raw)
        error = value.get("error", value)
        message = error.get("message", raw) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        message = raw
    return " ".join(str(message).split())[:500]


def _retry_after(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None  # a date: nobody here waits that long


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
