"""A guard in a thread, in front of mocks; and an open-loop client that keeps the time of the schedule."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tests.waiting import until

from checkweigh.engines.mock.serve import listen
from checkweigh.guard.guard import ArmSource, Guard, GuardSetup
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.host_gauges import HostReading
from checkweigh.guard.http.request_schema import Bounds
from checkweigh.records.yaml.document import parse

MODEL = "mock"


def policy(text: str = "{}") -> GuardPolicy:
    """A policy as a user writes it."""
    return parse(GuardPolicy, text.encode(), "guard.yaml")


def estimate(text: str) -> int:
    """As the mock counts: four bytes a token."""
    return -(-len(text.encode()) // 4)


@dataclass
class Running:
    """A guard that serves."""

    url: str
    guard: Guard
    loop: asyncio.AbstractEventLoop
    said: list[str]
    stopped: threading.Event

    def do(self, call: Callable[[], Any]) -> Any:
        """Run ``call`` in the guard's own thread."""
        box: asyncio.Future[Any] = asyncio.run_coroutine_threadsafe(_later(call), self.loop)  # type: ignore[assignment]
        return box.result(10)  # type: ignore[call-arg]

    def until(self, what: Callable[[], bool], seconds: float = 10.0) -> float:
        """Seconds until ``what`` is so; fails when it never is."""
        return until(what, seconds, lambda: f"said: {self.said}")

    def ready(self, seconds: float = 30.0) -> None:
        """Until every arm is."""
        self.until(
            lambda: all(a.ready and a.saturation.last is not None for a in self.guard.arms.values()), seconds
        )


async def _later(call: Callable[[], Any]) -> Any:
    return call()


class FakeHost:
    """A host whose free memory is what the test says, and that counts how often the guard looked."""

    def __init__(self) -> None:
        self.free = 0.5
        self.looks = 0

    def __call__(self) -> HostReading:
        self.looks += 1
        return HostReading(free_share=self.free, gpu_free_share=None, swap_bytes=0.0)

    def looked_at(self, times: int) -> None:
        """Until the guard has looked, and drawn its conclusions, so many times more."""
        wanted = self.looks + times + 1  # the last look's conclusions come before the next look
        until(lambda: self.looks >= wanted, 10, "a look at the host")


def logged(path: Path, count: int) -> list[dict[str, Any]]:
    """The traffic log once all ``count`` lines are there: the guard writes them a moment after the replies."""
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, 10, f"{count} lines in {path}")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == count
    return lines


@contextmanager
def guarded(
    baseline: ArmSource,
    limits: GuardPolicy | None = None,
    *,
    candidate: ArmSource | None = None,
    slots: int = 64,
    max_sequence: int = 4096,
    environment: Mapping[str, str] | None = None,
    **setup: Any,
) -> Iterator[Running]:
    """A guard on a loopback port, in a thread of its own, until the block ends."""
    own = limits or policy()
    said: list[str] = []
    box: list[Guard] = []
    loop = asyncio.new_event_loop()
    bound = listen()
    up, stopped = threading.Event(), threading.Event()
    bounds = Bounds(
        model=MODEL, max_sequence=max_sequence, max_tokens=own.admission.max_tokens,
        default_tokens=own.admission.default_tokens, count=estimate,
    )  # fmt: skip

    async def main() -> None:
        box.append(
            Guard(
                GuardSetup(
                    policy=own, bounds=bounds, slots=slots, baseline=baseline, candidate=candidate,
                    environment=environment or {}, **setup,
                ),
                said.append,
            )
        )  # fmt: skip
        up.set()
        await box[0].run(bound)

    failure: list[BaseException] = []

    def thread() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            failure.append(error)
        finally:
            up.set()
            stopped.set()
            loop.close()

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    try:
        assert up.wait(10)
        assert box, failure
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", box[0], loop, said, stopped)
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(box[0].drain)
        worker.join(30)
        bound.close()
        assert not worker.is_alive(), "the guard did not stop"
    if failure:
        raise failure[0]


@dataclass
class Reply:
    """What a client saw of one request. Times count from the *scheduled* send time."""

    status: int
    first_s: float | None
    total_s: float
    text: str = ""
    error: dict[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    events: int = 0
    done: bool = False

    @property
    def ok(self) -> bool:
        """Whole."""
        return self.status == 200 and self.error is None and self.done


def body(prompt: str = "weigh this box", tokens: int = 4, **fields: Any) -> dict[str, Any]:
    """Of a chat completion."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, **fields}


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections without limit."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=240),  # machines are shared
    ) as session:
        yield session


async def send(
    session: aiohttp.ClientSession, url: str, data: dict[str, Any], *, headers: Mapping[str, str] | None = None,
    due: float | None = None, path: str = "/v1/chat/completions", begun: Callable[[], object] = bool,
) -> Reply:  # fmt: skip
    """One request, read to its end; never raises for what the server does; ``begun`` at a stream's first event."""
    started = time.monotonic() if due is None else due
    first, text, events, done = None, [], 0, False
    error = None
    try:
        async with session.post(url + path, json=data, headers=headers) as answer:
            if not data.get("stream") or answer.status != 200:
                value = await answer.json(content_type=None)
                first = time.monotonic() - started
                error = value.get("error")
                if answer.status == 200:
                    text.append(value["choices"][0].get("message", {}).get("content") or "")
                return Reply(
                    answer.status,
                    first,
                    first,
                    "".join(text),
                    error,
                    dict(answer.headers),
                    done=error is None,
                )
            async for line in answer.content:
                if not line.startswith(b"data:"):
                    continue
                if first is None:
                    first = time.monotonic() - started
                    begun()
                if line.strip() == b"data: [DONE]":
                    done = True
                    continue
                value = json.loads(line[5:])
                error = value.get("error") or error
                events += 1
                for choice in value.get("choices", ()):
                    text.append(choice.get("delta", {}).get("content") or choice.get("text") or "")
            return Reply(
                answer.status, first, time.monotonic() - started, "".join(text), error, dict(answer.headers),
                events, done,
            )  # fmt: skip
    except (aiohttp.ClientError, TimeoutError) as broken:
        return Reply(
            0, first, time.monotonic() - started, "".join(text), {"message": repr(broken)}, {}, events
        )


async def open_loop(
    url: str, rate: float, seconds: float, data: Callable[[int], dict[str, Any]],
    headers: Callable[[int], Mapping[str, str]] = lambda i: {},
) -> list[Reply]:  # fmt: skip
    """``rate`` requests a second whatever becomes of them, evenly spaced; times from the schedule."""
    async with client() as session:
        start = time.monotonic() + 0.05
        tasks = []
        for i in range(int(rate * seconds)):
            due = start + i / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)  # the spacing of the load
            tasks.append(asyncio.ensure_future(send(session, url, data(i), headers=headers(i), due=due)))
        return list(await asyncio.gather(*tasks))


def goodput(replies: list[Reply], slo_s: float) -> float:
    """Share of the *offered* that came whole within the SLO."""
    return sum(r.ok and r.total_s <= slo_s for r in replies) / len(replies)


def quantile(values: list[float], q: float) -> float:
    """The empirical one."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
