"""The guard's faults in front of a real vLLM server: one guard for all of them, in this order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.faults.harness import Reply, Running, body, client, guarded, open_loop, policy, send
from tests.faults.test_faults_engine import one, pid, restarts, streams
from tests.integration.test_vllm_engine import installed
from tests.waiting import reached

from checkweigh.engines.http.client import Client
from checkweigh.engines.vllm.server_metrics import read_telemetry, require_cold
from checkweigh.errors import BadInput
from checkweigh.guard.supervision.launch_plan import vllm_plan

LIMITS = """
admission: {scoring: 2, tiers: {standard: {queue: 64, deadline_s: 120.0, age_s: 100.0}}}
supervision: {heartbeat_s: 8.0, probe_s: 8.0, backoff_s: 0.2, drain_s: 60.0}
timeouts: {first_s: 120.0, idle_s: 60.0}
warmup: {lengths: [8, 64]}
"""
START_S = 240.0


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A guard before the shipped manifest's server; the public name is not the server's."""
    spec = installed("smollm2-135m-vllm")
    plan = vllm_plan(spec, tmp_path_factory.mktemp("vllm") / "engine.log")
    with guarded(plan, policy(LIMITS), slots=16, max_sequence=2048) as run:
        run.ready(START_S)
        yield run


def test_a_stock_client_streams_and_sees_only_the_served_name(vllm: Running) -> None:
    stock = openai.OpenAI(base_url=vllm.url + "/v1", api_key="unused", max_retries=0)
    chunks = list(
        stock.chat.completions.create(
            model="mock", messages=[{"role": "user", "content": "What is the capital of France?"}], stream=True,
            max_tokens=16, temperature=0,
        )
    )  # fmt: skip
    assert "Paris" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert {c.model for c in chunks} == {"mock"}
    whole = stock.completions.create(model="mock", prompt="Bread is made of", max_tokens=4)
    assert (whole.model, whole.usage.completion_tokens if whole.usage else 0) == ("mock", 4)


def test_fault_16_a_warm_cache_is_found_out(vllm: Running) -> None:
    endpoint = vllm.guard.arms["baseline"].endpoint
    assert endpoint is not None

    async def counters() -> str:
        async with Client(endpoint) as metrics:
            return await metrics.get_text(f"{endpoint.root}/metrics")

    for expected_warm in (False, True):
        before = read_telemetry(asyncio.run(counters()))
        replies = asyncio.run(open_loop(vllm.url, 4, 1, lambda i: body(f"{i} " + "the same seed " * 60, 2)))
        assert all(r.ok for r in replies)
        after = read_telemetry(asyncio.run(counters()))
        assert after.cache_queries > before.cache_queries
        if expected_warm:
            with pytest.raises(BadInput, match="prefix cache knew"):
                require_cold(before, after)


def test_fault_19_scoring_at_full_length_is_capped_and_kills_nothing(vllm: Running) -> None:
    gate = vllm.guard.arms["baseline"].admission
    most = 0

    async def all_() -> list[Reply]:
        nonlocal most
        async with client() as session:
            asked = [
                {"model": "mock", "prompt": [(7 * i + j) % 900 + 50 for j in range(2000)], "max_tokens": 1,
                 "prompt_logprobs": 1}
                for i in range(8)
            ]  # fmt: skip
            tasks = [asyncio.ensure_future(send(session, vllm.url, a, path="/v1/completions")) for a in asked]
            while not all(task.done() for task in tasks):
                most = max(most, gate.inside)
                await asyncio.sleep(0.02)  # between two samples
            return [task.result() for task in tasks]

    replies = asyncio.run(all_())
    assert [r.status for r in replies] == [200] * 8, [r.error for r in replies]
    assert most == 2
    assert restarts(vllm) == 0
    assert one(vllm).ok


def test_fault_06_kill_9(vllm: Running) -> None:
    old = pid(vllm)

    async def go() -> tuple[float, list[Reply]]:
        tasks, manager = await streams(vllm, 4, tokens=400)
        killed = time.monotonic()
        os.kill(old, signal.SIGKILL)
        replies = await asyncio.gather(*tasks)
        await manager.__aexit__(None, None, None)
        return time.monotonic() - killed, replies

    took, replies = asyncio.run(go())
    assert took < 2, "no client hangs"
    assert all(r.error for r in replies)
    vllm.until(lambda: not vllm.guard.arms["baseline"].ready, 1)
    assert one(vllm).status in (502, 503)
    vllm.ready(START_S)
    assert pid(vllm) != old
    assert one(vllm).ok


def test_fault_07_a_busy_server_is_left_alone_and_a_stopped_one_is_noticed(vllm: Running) -> None:
    vllm.ready(START_S)
    before = restarts(vllm)
    replies = asyncio.run(open_loop(vllm.url, 12, 15, lambda i: body(f"box {i}: tell me all about it", 24)))
    assert restarts(vllm) == before
    assert sum(r.ok for r in replies) > 20

    async def go() -> tuple[float, list[Reply]]:
        tasks, manager = await streams(vllm, 2, tokens=400)
        stopped = time.monotonic()
        os.killpg(pid(vllm), signal.SIGSTOP)
        replies = await asyncio.gather(*tasks)
        await manager.__aexit__(None, None, None)
        return time.monotonic() - stopped, replies

    took, replies = asyncio.run(go())
    assert took <= 30
    assert all(r.error for r in replies)
    vllm.ready(START_S)
    assert restarts(vllm) == before + 1


def test_fault_20_sigterm_under_load_drains(vllm: Running) -> None:
    vllm.ready(START_S)
    engine = pid(vllm)

    async def go() -> tuple[list[Reply], Reply]:
        tasks, manager = await streams(vllm, 4, tokens=60)
        vllm.loop.call_soon_threadsafe(vllm.guard.drain)
        await reached(vllm.guard.draining.is_set)
        async with client() as session:
            late = await send(session, vllm.url, body())
        replies = await asyncio.gather(*tasks)
        await manager.__aexit__(None, None, None)
        return replies, late

    replies, late = asyncio.run(go())
    assert all(r.ok for r in replies), [r.error for r in replies]
    assert late.status == 503
    assert vllm.stopped.wait(40)
    assert not Path(f"/proc/{engine}").exists()
