"""The streaming client against a small server that can do everything wrong."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from checkweigh.engines.http.client import (
    VLLM_IDS,
    Client,
    Deadlines,
    Endpoint,
    Streamed,
    StreamRequest,
    _StreamReader,
)
from checkweigh.errors import (
    BadInput,
    CheckweighError,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineTruncated,
)
from checkweigh.records.evalset import Message

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ASK = StreamRequest(id="a", max_tokens=4, messages=(Message(role="user", content="Hello"),))
IDS = StreamRequest(id="b", max_tokens=4, prompt_ids=(1, 2, 3), extra=VLLM_IDS)
QUICK = Deadlines(connect=2.0, idle=0.5, total=5.0)


def piece(text: str = "", ids: list[int] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


USAGE = (
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, '
    b'"prompt_tokens_details": {"cached_tokens": 4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
WHOLE = [
    piece(prompt_token_ids=[7, 8]),
    piece("Hel", [1, 2]),
    piece("lo", [3]),
    piece(finish="stop"),
    USAGE,
    DONE,
]


def streaming(*parts: bytes | float) -> Handler:
    """A handler that writes the parts; a number is a pause in seconds."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            if isinstance(part, float):
                await asyncio.sleep(part)  # the server's pace
            else:
                await response.write(part)
        return response

    return handle


async def served(handler: Handler, use: Callable[[Client], Awaitable[Any]], **deadlines: float) -> Any:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    endpoint = Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", key="secret")
    try:
        async with Client(
            endpoint, Deadlines(**{"connect": 2.0, "idle": 0.5, "total": 5.0} | deadlines)
        ) as client:
            return await use(client)
    finally:
        await runner.cleanup()


def stream(handler: Handler, request: StreamRequest = ASK, **deadlines: float) -> Streamed:
    found = asyncio.run(served(handler, lambda client: client.stream(request), **deadlines))
    assert isinstance(found, Streamed)
    return found


def failing(handler: Handler, error: type[CheckweighError], **deadlines: float) -> CheckweighError:
    with pytest.raises(error) as caught:
        stream(handler, **deadlines)
    assert type(caught.value) is error
    return caught.value


def test_a_reply_is_read_whole_and_timed() -> None:
    before = time.monotonic()
    reply = stream(streaming(WHOLE[0], 0.05, *WHOLE[1:3], 0.05, *WHOLE[3:]))
    assert (reply.text, reply.token_ids, reply.finish, reply.tokens) == ("Hello", (1, 2, 3), "stop", 3)
    assert reply.prompt_ids == (7, 8)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.cached_tokens) == (9, 3, 4)
    times = [reply.sent, *(event.at for event in reply.events), reply.ended]
    assert len(reply.events) == 2  # the role, the finish and the usage bring no tokens
    assert before <= times[0]
    assert times == sorted(times)
    assert times[1] - times[0] >= 0.05
    assert times[-1] - times[2] >= 0.05


def test_events_cut_anywhere_are_put_together() -> None:
    data = b"".join(WHOLE)
    parts: list[bytes | float] = []
    for at in range(0, len(data), 7):
        parts += [data[at : at + 7], 0.0]
    reply = stream(streaming(*parts))
    assert (reply.text, reply.token_ids) == ("Hello", (1, 2, 3))


def test_without_ids_the_servers_count_is_believed() -> None:
    reply = stream(streaming(piece("Hello"), piece(finish="length"), USAGE, DONE))
    assert (reply.token_ids, reply.tokens, reply.finish) == ((), 3, "length")


def test_a_completion_by_token_ids() -> None:
    seen: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.headers["Authorization"], await request.json()))
        first = {
            "choices": [
                {"text": "Hi", "token_ids": [5], "prompt_token_ids": [1, 2, 3], "finish_reason": "stop"}
            ]
        }
        return await streaming(b"data: " + json.dumps(first).encode() + b"\n\n", DONE)(request)

    reply = stream(handle, IDS)
    ((path, key, body),) = seen
    assert (path, key) == ("/v1/completions", "Bearer secret")
    assert (body["prompt"], body["return_token_ids"], body["stream"]) == ([1, 2, 3], True, True)
    assert "messages" not in body
    assert (reply.text, reply.token_ids, reply.prompt_ids) == ("Hi", (5,), (1, 2, 3))


def test_exact_replies_ignore_what_would_end_them() -> None:
    body = StreamRequest(id="c", max_tokens=7, prompt_ids=(1,), stop=("x",), exact=True).body("m")
    assert (body["ignore_eos"], body["min_tokens"], body["max_tokens"]) == (True, 7, 7)
    assert "stop" not in body
    with pytest.raises(ValueError, match="either"):
        StreamRequest(id="d", max_tokens=1)


def test_the_key_is_in_no_repr() -> None:
    assert "secret" not in repr(Endpoint(url="http://h/v1", model="m", key="secret"))
    assert Endpoint(url="http://h:1/v1/", model="m").root == "http://h:1"


@pytest.mark.parametrize("parts", [[WHOLE[1]], [WHOLE[1], DONE], [WHOLE[1], piece(finish="abort"), DONE], []])
def test_a_stream_without_an_end_is_named(parts: list[bytes]) -> None:
    error = failing(streaming(*parts), EngineTruncated)
    assert f"after {2 if parts else 0} tokens" in str(error)


def test_a_connection_cut_in_the_middle_is_named() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(WHOLE[1])
        await asyncio.sleep(0.05)  # for the client to read it: what is aborted takes along what was not read
        assert request.transport is not None
        request.transport.abort()
        return response

    assert "broke off after 2 tokens" in str(failing(handle, EngineTruncated))


def test_an_answer_that_stops_coming_is_a_timeout() -> None:
    assert "after 2 tokens" in str(failing(streaming(WHOLE[1], 2.0), EngineTimeout))
    failing(streaming(*[part for _ in range(20) for part in (WHOLE[1], 0.1)]), EngineTimeout, total=0.4)


@pytest.mark.parametrize(
    "garbage",
    [b"data: {not json\n\n", b"data: []\n\n", b'data: {"choices": 3}\n\n', b'data: {"other": 1}\n\n',
     b'data: {"choices": [{"delta": {"content": "a"}, "token_ids": [-1]}]}\n\n',
     b'data: {"choices": [{"delta": {"content": "a"}, "token_ids": ["x"]}]}\n\n',
     b'data: {"choices": [], "usage": {"prompt_tokens": "many"}}\n\n'],
)  # fmt: skip
def test_garbage_is_an_engine_error(garbage: bytes) -> None:
    failing(streaming(WHOLE[1], garbage, DONE), EngineError)


def test_an_error_inside_the_stream_is_named() -> None:
    error = failing(
        streaming(WHOLE[1], b'data: {"error": {"message": "EngineCore died"}}\n\n', DONE), EngineError
    )
    assert "EngineCore died" in str(error)


def test_a_refusal_has_its_status_and_the_servers_words() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "too many"}}, status=429, headers={"Retry-After": "3"})

    error = failing(handle, EngineRefused)
    assert isinstance(error, EngineRefused)
    assert (error.status, error.retry_after, error.cause) == (429, 3.0, "too many")


def test_a_redirect_does_not_take_the_key_along() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/v1"})

    error = failing(handle, EngineRefused)
    assert isinstance(error, EngineRefused)
    assert error.status == 307


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def ask(url: str) -> None:
        async with Client(Endpoint(url=url, model="m"), QUICK) as client:
            await client.stream(ASK)

    with pytest.raises(EngineDied, match="no connection"):
        asyncio.run(ask(f"http://127.0.0.1:{port}/v1"))
    for url in ("nonsense", "ftp://127.0.0.1/v1"):
        with pytest.raises(BadInput, match="expected an address"):
            asyncio.run(ask(url))


def test_no_http_is_an_engine_error() -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"\x00\x01 what?\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with Client(Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m"), QUICK) as client:
                await client.stream(ASK)
        finally:
            server.close()
            await server.wait_closed()

    with pytest.raises(EngineError, match="no HTTP"):
        asyncio.run(main())


def test_a_cancelled_stream_closes_its_connection() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(WHOLE[1])
                begun.set()
                await asyncio.sleep(0.02)  # the server's pace
        except (ConnectionError, asyncio.CancelledError):
            gone.set()
            raise

    async def use(client: Client) -> bool:
        task = asyncio.create_task(client.stream(ASK))
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 2)
        return True

    assert asyncio.run(served(handle, use))


def test_every_error_of_aiohttp_becomes_one_of_ours() -> None:
    def below(cls: type[Exception]) -> list[type[Exception]]:
        return [cls, *(s for c in cls.__subclasses__() for s in below(c))]

    client = Client(Endpoint(url="http://h/v1", model="m"))
    for kind in below(aiohttp.ClientError):
        # Their constructors, and what they say, want connections that were never made.
        named = type(
            kind.__name__, (kind,), {"__init__": lambda self: None, "__str__": lambda self: "so it is"}
        )
        error = named()
        with pytest.raises(CheckweighError), client._translated_errors(_StreamReader("x")):
            raise error
    assert inspect.iscoroutinefunction(client.stream)


def test_plain_requests() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text="a 1\n")
        return web.json_response({"method": request.method, "path": request.path})

    async def use(client: Client) -> tuple[Any, ...]:
        root = client.endpoint.root
        return (
            await client.get(root + "/x"),
            await client.post(root + "/y", {}),
            await client.get_text(root + "/metrics"),
        )

    assert asyncio.run(served(handle, use)) == (
        {"method": "GET", "path": "/x"}, {"method": "POST", "path": "/y"}, "a 1\n",
    )  # fmt: skip
