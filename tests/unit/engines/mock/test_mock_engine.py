"""The mock engine speaks OpenAI's and vLLM's words, queues, and fails as told."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.waiting import reached, until

from checkweigh.cli import main
from checkweigh.engines.http.client import (
    VLLM_IDS,
    Client,
    Endpoint,
    StreamRequest,
)
from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_process, in_thread
from checkweigh.errors import EngineDied, EngineError, EngineRefused, EngineTruncated
from checkweigh.records.evalset import Message

T = TypeVar("T")
HELLO = (Message(role="user", content="weigh this box"),)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 20))


def chat(name: str = "r", tokens: int = 8, **fields: Any) -> StreamRequest:
    return StreamRequest(id=name, max_tokens=tokens, messages=HELLO, **fields)


def get(endpoint: Endpoint, path: str) -> bytes:
    request = urllib.request.Request(endpoint.root + path)
    if endpoint.key:
        request.add_header("Authorization", f"Bearer {endpoint.key}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


async def stream_all(endpoint: Endpoint, requests: list[StreamRequest]) -> list[Any]:
    async with Client(endpoint) as client:
        return await asyncio.gather(*(client.stream(r) for r in requests), return_exceptions=True)


def test_a_stock_client_chats_streams_and_completes() -> None:
    import openai

    with in_thread(MockKnobs(reply_tokens=5), key="k") as (endpoint, _):
        client = openai.OpenAI(base_url=endpoint.url, api_key="k", max_retries=0)
        whole = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 5
        chunks = list(
            client.chat.completions.create(
                model="mock", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=3
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert (whole.choices[0].message.content or "").startswith(text)
        done = client.completions.create(model="mock", prompt="hi", max_tokens=2)
        assert done.choices[0].finish_reason == "length"
        assert [m.id for m in client.models.list()] == ["mock"]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=endpoint.url, api_key="other", max_retries=0).models.list()
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="hi")
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.completions.create(model="mock", prompt="hi", max_tokens=5000)
        with pytest.raises(openai.BadRequestError, match="at least 1"):
            client.completions.create(model="mock", prompt="hi", max_tokens=-1)


def test_ids_acceptance_and_times_are_as_told() -> None:
    knobs = MockKnobs(first_ms=60, token_ms=20, acceptance=2.0, drafted=3, reply_tokens=100)
    with in_thread(knobs) as (endpoint, _):
        (found,) = run(stream_all(endpoint, [chat(tokens=8, exact=True, extra=VLLM_IDS)]))
        assert len(found.token_ids) == 8
        assert [len(e.token_ids) for e in found.events] == [2, 2, 2, 2]
        assert found.events[0].at - found.sent >= 0.06
        assert found.events[-1].at - found.events[0].at >= 3 * 0.02 * 0.9
        assert found.usage.completion_tokens == 8
        assert len(found.prompt_ids) == found.usage.prompt_tokens
        metrics = get(endpoint, "/metrics").decode()
    assert 'vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="mock"} 4.0' in metrics
    assert 'vllm:generation_tokens_total{engine="0",model_name="mock"} 8.0' in metrics
    assert 'kv_cache_size_tokens="1000000"' in metrics


def test_beyond_its_slots_and_its_cache_requests_wait() -> None:
    prompt = tuple(range(40))
    work = [StreamRequest(id=str(i), max_tokens=2, prompt_ids=prompt, exact=True) for i in range(6)]
    for limit in ({"slots": 2}, {"kv_tokens": 100}):
        with in_thread(MockKnobs(first_ms=100, **limit)) as (endpoint, _):
            found = run(stream_all(endpoint, work))
            firsts = sorted(f.events[0].at - f.sent for f in found)
            assert firsts[1] < 0.19, "two at once"
            assert firsts[5] >= 0.29, "the last pair waited for two others"


def test_an_answer_without_latency_takes_no_delayed_acknowledgement() -> None:
    async def one_by_one(endpoint: Endpoint) -> list[float]:
        async with Client(endpoint) as client:
            return [(found := await client.stream(chat(tokens=2))).ended - found.sent for _ in range(20)]

    with in_thread() as (endpoint, _):
        assert sorted(run(one_by_one(endpoint)))[10] < 0.03


def test_faults_reach_the_client_as_what_they_are() -> None:
    for knobs, expected in (
        (MockKnobs(error_share=1), EngineRefused),
        (MockKnobs(truncate_share=1), EngineTruncated),
        (MockKnobs(reset_share=1), EngineTruncated),
    ):
        with in_thread(knobs) as (endpoint, _):
            (found,) = run(stream_all(endpoint, [chat()]))
            assert type(found) is expected, (knobs, found)
            assert json.loads(get(endpoint, "/mock/seen"))["inside"] == 0


def test_a_client_that_leaves_frees_its_slot() -> None:
    async def leave(endpoint: Endpoint, app: MockApp) -> None:
        async with Client(endpoint) as client:
            task = asyncio.ensure_future(client.stream(chat(tokens=500, exact=True)))
            await reached(lambda: app.schedule.inside == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with in_thread(MockKnobs(token_ms=20)) as (endpoint, app):
        run(leave(endpoint, app))
        until(lambda: app.schedule.inside == 0, 2)
        assert json.loads(get(endpoint, "/mock/seen")) == {"requests": 1, "aborted": 1, "inside": 0}


def test_a_hang_keeps_health_green_and_ends_when_told() -> None:
    async def hang(endpoint: Endpoint) -> float:
        async with Client(endpoint) as client:
            await client.post(endpoint.root + "/mock/knobs", {"hang": True})
            task = asyncio.ensure_future(client.stream(chat()))
            await asyncio.sleep(0.3)  # in which it would have answered
            assert not task.done()
            assert await client.get_text(endpoint.root + "/health") == ""
            resumed = time.monotonic()
            await client.post(endpoint.root + "/mock/knobs", {"hang": False})
            return (await task).ended - resumed

    with in_thread() as (endpoint, _):
        assert run(hang(endpoint)) < 1


def test_frozen_metrics_repeat_themselves() -> None:
    with in_thread(MockKnobs(frozen_metrics=True)) as (endpoint, app):
        before = get(endpoint, "/metrics")
        run(stream_all(endpoint, [chat()]))
        assert get(endpoint, "/metrics") == before
        app.schedule.turn(MockKnobs(kv_floor=0.95))
        assert b'kv_cache_usage_perc{engine="0",model_name="mock"} 0.95' in get(endpoint, "/metrics")


def test_a_process_of_its_own_crashes_with_the_code_it_was_told() -> None:
    with in_process(MockKnobs(crash_after=2, crash_code=0, token_ms=5), key="k") as mock:
        first, second = (run(stream_all(mock.endpoint, [chat()]))[0] for _ in range(2))
        assert first.tokens == 8
        assert isinstance(second, EngineError | EngineDied)
        assert mock.process.wait(5) == 0
    with in_process(MockKnobs(oom_tokens=60, token_ms=20)) as mock:
        prompt = tuple(range(50))
        work = [StreamRequest(id=str(i), max_tokens=8, prompt_ids=prompt) for i in range(2)]
        run(stream_all(mock.endpoint, work))
        assert mock.process.wait(5) == 137


def test_a_stopped_process_goes_on() -> None:
    with in_process(MockKnobs()) as mock:
        mock.signal(signal.SIGSTOP)
        with pytest.raises((TimeoutError, urllib.error.URLError)):
            urllib.request.urlopen(mock.endpoint.root + "/health", timeout=0.3)
        mock.signal(signal.SIGCONT)
        assert get(mock.endpoint, "/health") == b""


def test_a_wrong_knob_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mock-engine", "--set", "slotz=3", "--set", "first_ms=-1"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'slots'?" in said
    assert "--set:2: first_ms" in said


def test_every_knob_is_documented_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs/serving.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", page, re.M))
    assert {name: rows.get(name) for name in MockKnobs.model_fields} == {
        name: str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        for name, field in MockKnobs.model_fields.items()
    }
