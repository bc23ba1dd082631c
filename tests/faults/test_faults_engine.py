"""An engine that fails behind the guard, on the mock: death, hangs, loops, broken streams, stops."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from tests.faults.harness import Reply, Running, body, client, guarded, logged, open_loop, policy, send
from tests.waiting import reached

from checkweigh.engines.http.client import Client
from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.guard.breaker import BreakerState
from checkweigh.guard.supervision.launch_plan import mock_plan
from checkweigh.guard.supervision.supervisor import Phase

QUICK = """
supervision: {backoff_s: 0.1, backoff_max_s: 0.5, heartbeat_s: 1.0, probe_s: 1.5, kill_s: 1.0, long_prompt: 300,
              prefill_grace_s: 20.0, crashes: 20}
saturation: {scrape_s: 0.2, stale_s: 5.0}
warmup: {lengths: [4]}
"""


@contextmanager
def supervised(knobs: MockKnobs, folder: Path, limits: str = QUICK, **setup: Any) -> Iterator[Running]:
    with guarded(mock_plan(knobs, folder / "engine.log"), policy(limits), **setup) as run:
        yield run


def one(run: Running, **fields: Any) -> Reply:
    async def go() -> Reply:
        async with client() as session:
            return await send(session, run.url, body(**fields))

    return asyncio.run(go())


def pid(run: Running) -> int:
    supervisor = run.guard.arms["baseline"].supervisor
    assert supervisor is not None
    assert supervisor.process is not None
    return supervisor.process.pid


def phase(run: Running) -> Phase:
    supervisor = run.guard.arms["baseline"].supervisor
    assert supervisor is not None
    return supervisor.phase


def restarts(run: Running) -> int:
    supervisor = run.guard.arms["baseline"].supervisor
    assert supervisor is not None
    return supervisor.restarts


async def streams(run: Running, count: int, tokens: int = 200) -> tuple[list[asyncio.Task[Reply]], Any]:
    """``count`` streams that have begun, and their session to close."""
    manager = client()
    session = await manager.__aenter__()
    # A reply that a model ends by itself would be no stream any more when the fault strikes.
    asked = [body(f"{i}", tokens, stream=True, ignore_eos=True) for i in range(count)]
    begun: list[int] = []
    tasks = [
        asyncio.ensure_future(send(session, run.url, data, begun=partial(begun.append, i)))
        for i, data in enumerate(asked)
    ]
    await reached(
        lambda: len(begun) == count or any(task.done() for task in tasks), 60, "a stream's beginning"
    )
    assert not any(task.done() for task in tasks), [task.result() for task in tasks if task.done()]
    return tasks, manager


def test_fault_06_a_killed_engine_is_noticed_at_once_and_comes_back(tmp_path: Path) -> None:
    with supervised(MockKnobs(token_ms=50, reply_tokens=200), tmp_path) as run:
        run.ready()

        async def go() -> tuple[float, list[Reply]]:
            tasks, manager = await streams(run, 8)
            killed = time.monotonic()
            os.kill(pid(run), signal.SIGKILL)
            replies = await asyncio.gather(*tasks)
            took = time.monotonic() - killed
            await manager.__aexit__(None, None, None)
            return took, replies

        old = pid(run)
        took, replies = asyncio.run(go())
        assert took < 1, "no client hangs"
        assert all(r.status == 200 and r.events > 0 for r in replies)
        assert all(r.error and r.error["code"] == "upstream_broken" for r in replies)
        run.until(lambda: not run.guard.arms["baseline"].ready, 1)
        refused = one(run)
        assert refused.status in (502, 503)
        run.ready(20)
        assert pid(run) != old
        assert one(run).ok
        assert run.guard.arms["baseline"].admission.inside == 0
        assert any("SIGKILL" in line for line in run.said)


def test_fault_06_an_exit_with_code_0_is_an_exit_nobody_asked_for(tmp_path: Path) -> None:
    with supervised(MockKnobs(crash_after=3, crash_code=0), tmp_path) as run:
        run.ready()
        old = pid(run)
        assert one(run).ok
        assert one(run).status == 502
        run.until(lambda: pid(run) != old, 10)
        run.ready(20)
        assert one(run).ok
        assert any("exited with code 0 although nobody asked it to" in line for line in run.said)


async def die_within(run: Running) -> None:
    """The engine's core dies; its server lives on and says so, as vLLM's does for up to five seconds."""
    endpoint = run.guard.arms["baseline"].endpoint
    assert endpoint is not None
    async with Client(endpoint) as knobs:
        await knobs.post(f"{endpoint.root}/mock/knobs", {"dead": True})


def test_fault_06_a_server_whose_core_died_is_not_ready_although_it_lives(tmp_path: Path) -> None:
    with supervised(MockKnobs(token_ms=20, reply_tokens=400), tmp_path) as run:
        run.ready()
        old = pid(run)

        async def go() -> tuple[float, list[Reply]]:
            tasks, manager = await streams(run, 3)
            died = time.monotonic()
            await die_within(run)
            replies = await asyncio.gather(*tasks)
            await manager.__aexit__(None, None, None)
            return time.monotonic() - died, replies

        took, replies = asyncio.run(go())
        assert took < 1, "no client hangs"
        assert all(r.events > 0 and r.error and r.error["code"] == "upstream_broken" for r in replies)
        run.until(lambda: not run.guard.arms["baseline"].ready, 0.5)
        assert one(run).status == 503
        run.ready(20)
        assert pid(run) != old
        assert one(run).ok
        assert any("reports that it is dead" in line for line in run.said)


def test_fault_06_a_core_that_dies_while_nobody_asks_is_noticed_too(tmp_path: Path) -> None:
    with supervised(MockKnobs(), tmp_path) as run:
        run.ready()
        asyncio.run(die_within(run))
        run.until(lambda: not run.guard.arms["baseline"].ready, 3)
        run.ready(20)
        assert restarts(run) == 1


def test_fault_06_readiness_ends_before_the_keeper_has_buried_the_engine(tmp_path: Path) -> None:
    with supervised(MockKnobs(token_ms=20, reply_tokens=400), tmp_path) as run:
        run.ready()
        supervisor = run.guard.arms["baseline"].supervisor
        assert supervisor is not None
        assert supervisor.process is not None
        keeper = psutil.Process(supervisor.process.pid).parent()
        assert keeper is not None

        async def go() -> None:
            tasks, manager = await streams(run, 2)
            keeper.suspend()
            os.kill(pid(run), signal.SIGKILL)
            await asyncio.gather(*tasks)
            await manager.__aexit__(None, None, None)

        asyncio.run(go())
        try:
            run.until(lambda: not run.guard.arms["baseline"].ready, 0.5)
            assert one(run).status == 503
        finally:
            keeper.resume()
        run.ready(20)
        assert any("SIGKILL" in line for line in run.said), (
            "the exit code is the cause, not what a request met"
        )


def test_fault_07_a_stopped_engine_is_noticed_and_replaced(tmp_path: Path) -> None:
    with supervised(MockKnobs(token_ms=50, reply_tokens=200), tmp_path) as run:
        run.ready()

        async def go() -> tuple[float, list[Reply]]:
            tasks, manager = await streams(run, 4)
            stopped = time.monotonic()
            os.kill(pid(run), signal.SIGSTOP)
            replies = await asyncio.gather(*tasks)
            took = time.monotonic() - stopped
            await manager.__aexit__(None, None, None)
            return took, replies

        took, replies = asyncio.run(go())
        assert took < 1.0 + 1.5 + 4, "heartbeat, probe, and what a busy machine adds"
        assert all(r.error for r in replies)
        run.until(lambda: any("hung" in line for line in run.said), 5)
        run.ready(20)
        assert one(run).ok
        assert restarts(run) == 1


def test_fault_07_an_idle_engine_that_stops_is_noticed_too(tmp_path: Path) -> None:
    limits = QUICK.replace("stale_s: 5.0", "stale_s: 0.5")
    with supervised(MockKnobs(), tmp_path, limits) as run:
        run.ready()
        os.kill(pid(run), signal.SIGSTOP)
        run.until(lambda: restarts(run) == 1, 10)
        run.ready(20)


@pytest.mark.parametrize("seconds", [8.0, pytest.param(300.0, marks=pytest.mark.long)])
def test_fault_07_a_saturated_engine_is_never_restarted(seconds: float, tmp_path: Path) -> None:
    limits = QUICK + "admission: {slots: 4, tiers: {standard: {queue: 8, deadline_s: 2.0}}}"
    with supervised(MockKnobs(slots=4, first_ms=50, token_ms=50, reply_tokens=8), tmp_path, limits) as run:
        run.ready()
        replies = asyncio.run(open_loop(run.url, 20, seconds, lambda i: body(f"box {i}", 8)))
        assert restarts(run) == 0
        assert {r.status for r in replies} <= {200, 429, 503}
        assert sum(r.ok for r in replies) > 5 * seconds, "it was saturated, not idle"


def test_fault_08_a_long_prefill_is_not_a_hang_within_its_grace(tmp_path: Path) -> None:
    long = "word " * 400  # 500 tokens; 10 ms each
    knobs = MockKnobs(slots=1, prefill_ms=10)
    with supervised(knobs, tmp_path) as run:
        run.ready()
        assert one(run, prompt=long).ok, "longer than heartbeat and probe together"
        assert restarts(run) == 0
    shorter = QUICK.replace("prefill_grace_s: 20.0", "prefill_grace_s: 1.0")
    with supervised(knobs, tmp_path, shorter) as run:
        run.ready()
        assert one(run, prompt=long).status == 502
        run.until(lambda: any("hung" in line for line in run.said), 5)  # beyond its grace it is one


def test_fault_09_a_crash_loop_ends_and_says_so(tmp_path: Path) -> None:
    limits = QUICK.replace("crashes: 20", "crashes: 3")
    started = time.monotonic()
    with supervised(MockKnobs(crash_after=1), tmp_path, limits) as run:
        run.until(lambda: phase(run) is Phase.FAILED, 60)
        assert time.monotonic() - started > 0.05 + 0.1, "it waited between"
        assert restarts(run) == 2
        assert "3 times within 300 s of readiness: it stays down" in run.said[-1]
        count = len(run.said)
        time.sleep(1.0)  # twice the longest pause between restarts: that none comes is the claim
        assert phase(run) is Phase.FAILED
        assert len(run.said) == count
        reply = one(run)
        assert reply.status == 503
        assert reply.error is not None
        assert reply.error["type"] == "overloaded_error"

        async def ready() -> tuple[int, dict[str, Any]]:
            async with client() as session, session.get(run.url + "/readyz") as answer:
                return answer.status, await answer.json()

        status, said = asyncio.run(ready())
        assert status == 503
        assert said["arms"]["baseline"] == "the engine is failed, it stays down"


@pytest.mark.parametrize("fault", ["truncate_share", "reset_share"])
def test_fault_10_a_broken_stream_is_an_error_event_and_no_second_try(fault: str) -> None:
    with in_thread(MockKnobs(token_ms=2, **{fault: 1.0})) as (endpoint, mock), guarded(endpoint) as run:
        run.ready()
        streamed = one(run, tokens=12, stream=True)
        assert (streamed.status, streamed.done) == (200, False)
        assert streamed.events > 1
        assert streamed.error is not None
        assert streamed.error["code"] == "upstream_broken"
        assert mock.schedule.seen == 1, "never sent again"
        whole = one(run, tokens=12)
        assert whole.status == 502
        assert mock.schedule.seen == 2
        gate = run.guard.arms["baseline"].admission
        assert (gate.inside, gate.tokens) == (0, 0)


def test_fault_12_a_slow_candidate_is_switched_off() -> None:
    limits = policy("routing: {min_requests: 15}")
    with (
        in_thread(MockKnobs(first_ms=60)) as (slow, mock),
        in_thread(MockKnobs(first_ms=60)) as (endpoint, _),
        guarded(endpoint, limits, candidate=slow, share=0.5) as run,
    ):
        run.ready()
        asyncio.run(open_loop(run.url, 20, 4, lambda i: body(f"box {i}", 2, stream=True)))
        assert run.guard.router.weight == 0.5, "equal arms"
        mock.schedule.turn(MockKnobs(first_ms=560))
        began = time.monotonic()

        async def until_killed() -> None:
            load = asyncio.ensure_future(
                open_loop(run.url, 20, 10, lambda i: body(f"box {i}", 2, stream=True))
            )
            await reached(lambda: run.guard.router.weight == 0 or load.done())
            load.cancel()

        asyncio.run(until_killed())
        assert run.guard.router.weight == 0
        assert time.monotonic() - began < 10
        assert any(line.startswith("ALARM: candidate switched off: ttft") for line in run.said)
        run.until(lambda: run.guard.arms["candidate"].admission.inside == 0)
        seen = mock.schedule.seen
        assert all(r.ok for r in asyncio.run(open_loop(run.url, 20, 1, lambda i: body(f"after {i}", 2))))
        assert mock.schedule.seen == seen


@contextmanager
def opened() -> Iterator[tuple[Running, MockApp]]:
    """A guard whose breaker three failures have opened."""
    limits = policy("breaker: {failures: 3, open_s: 0.3}")
    with in_thread(MockKnobs(error_share=1.0)) as (endpoint, mock), guarded(endpoint, limits) as run:
        run.ready()
        assert [one(run).status for _ in range(3)] == [502] * 3
        yield run, mock


def test_fault_13_a_cancelled_probe_does_not_stick_the_breaker() -> None:
    with opened() as (run, mock):
        breaker = run.guard.arms["baseline"].breaker
        assert breaker.state is BreakerState.OPEN
        seen = mock.schedule.seen
        refused = one(run)
        assert (refused.status, mock.schedule.seen) == (503, seen)
        mock.schedule.turn(MockKnobs(first_ms=3000))
        run.until(lambda: not breaker.shut(time.monotonic()))

        async def give_up() -> None:
            async with client() as session:
                task = asyncio.ensure_future(send(session, run.url, body()))
                await reached(lambda: breaker.state is BreakerState.HALF_OPEN)
                assert (await send(session, run.url, body())).status == 503, "one probe at a time"
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(give_up())
        mock.schedule.turn(MockKnobs())
        run.until(lambda: run.guard.arms["baseline"].admission.inside == 0)
        assert breaker.state is BreakerState.HALF_OPEN, "nothing was learnt"
        assert one(run).ok
        assert breaker.state is BreakerState.CLOSED


def test_fault_13_a_probes_first_token_is_proof_enough() -> None:
    with opened() as (run, mock):
        breaker = run.guard.arms["baseline"].breaker
        mock.schedule.turn(MockKnobs(token_ms=100, reply_tokens=300))
        run.until(lambda: not breaker.shut(time.monotonic()))

        async def go() -> None:
            async with client() as session:
                probe = asyncio.ensure_future(send(session, run.url, body(tokens=200, stream=True)))
                await reached(
                    lambda: breaker.state is BreakerState.CLOSED, 5, "others wait for the whole of its reply"
                )
                assert not probe.done()
                assert (await send(session, run.url, body())).ok
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)

        asyncio.run(go())


def test_fault_18_a_collapse_of_acceptance_is_a_latency_alarm_and_no_quality_alarm() -> None:
    fast = MockKnobs(token_ms=20, acceptance=4.0, drafted=4, reply_tokens=16)
    slow = fast.model_copy(update={"acceptance": 1.0})
    with (
        in_thread(fast) as (endpoint, _),
        in_thread(slow) as (other, _mock),
        guarded(endpoint, policy("routing: {min_requests: 15}"), candidate=other, share=0.5) as run,
    ):
        run.ready()

        async def go() -> list[Reply]:
            return await open_loop(run.url, 15, 12, lambda i: body("the same box", 16, stream=True))

        replies = asyncio.run(go())
        assert run.guard.router.weight == 0
        assert any("ALARM: candidate switched off: tpot" in line for line in run.said)
        assert len({r.text for r in replies if r.ok}) == 1, "what was said is the same"


@pytest.mark.parametrize(
    ("why", "slow", "limits", "deadline_s"),
    [
        # Its clients leave before they have a token.
        ("ttft", MockKnobs(first_ms=900, reply_tokens=4), "", 0.25),
        # Every reply is a degraded one.
        ("tpot", MockKnobs(token_ms=60, reply_tokens=4), "degradation: {max_tokens: 3, enter: 0.001, leave: 0.0}", 9),
        # No token after the first: the guard gives up.
        ("tpot", MockKnobs(token_ms=9000, reply_tokens=4), "timeouts: {idle_s: 0.5}", 9),
    ],
    ids=["impatient", "degraded", "stalled"],
)  # fmt: skip
def test_a_slow_candidate_cannot_hide(why: str, slow: MockKnobs, limits: str, deadline_s: float) -> None:
    own = policy(f"routing: {{min_requests: 15}}\nbreaker: {{failures: 1000}}\n{limits}")
    with (
        in_thread(MockKnobs(first_ms=20, token_ms=20, reply_tokens=4)) as (endpoint, _),
        in_thread(slow) as (other, _mock),
        guarded(endpoint, own, candidate=other, share=0.5) as run,
    ):
        run.ready()

        async def one(session: aiohttp.ClientSession) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await send(session, run.url, body(tokens=4, stream=True))

        async def go() -> None:
            async with client() as session:
                tasks = []
                while not run.guard.router.killed and len(tasks) < 300:
                    tasks.append(asyncio.ensure_future(one(session)))
                    await asyncio.sleep(1 / 15)  # the spacing of the load
                await asyncio.gather(*tasks)

        asyncio.run(go())
        assert any(f"ALARM: candidate switched off: {why}" in line for line in run.said), run.said


def test_tokens_of_a_stream_that_was_left_are_counted_as_those_of_whole_ones(tmp_path: Path) -> None:
    """With speculation an update brings several."""
    log = tmp_path / "traffic.jsonl"
    drafting = MockKnobs(token_ms=40, acceptance=4.0, drafted=4, reply_tokens=400)
    with (
        in_thread(drafting) as (endpoint, _),
        guarded(endpoint, policy(f"traffic: {{path: '{log}'}}")) as run,
    ):
        run.ready()

        async def go() -> None:
            async with client() as session:
                assert (await send(session, run.url, body(tokens=40, stream=True))).ok
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.5):
                        await send(session, run.url, body(tokens=400, stream=True))

        asyncio.run(go())
        whole, left = logged(log, 2)
    assert (whole["outcome"], left["outcome"]) == ("ok", "client_gone")
    assert left["tpot_s"] == pytest.approx(whole["tpot_s"], rel=0.4)


def test_what_is_served_while_the_candidate_is_off_is_no_evidence() -> None:
    with (
        in_thread(MockKnobs()) as (endpoint, _),
        in_thread(MockKnobs()) as (other, _mock),
        guarded(endpoint, candidate=other, share=0.5) as run,
    ):
        run.ready()
        fresh = pickle.dumps(run.guard.comparison.latency)
        run.do(lambda: run.guard.router.kill("an operator"))
        assert all(r.ok for r in asyncio.run(open_loop(run.url, 50, 1, lambda i: body(stream=True))))
        assert pickle.dumps(run.guard.comparison.latency) == fresh
        run.do(run.guard.router.revive)
        asyncio.run(open_loop(run.url, 50, 1, lambda i: body(stream=True)))
        assert pickle.dumps(run.guard.comparison.latency) != fresh


def test_fault_20_a_stop_under_load_finishes_what_has_begun(tmp_path: Path) -> None:
    with supervised(MockKnobs(token_ms=50, reply_tokens=40), tmp_path) as run:
        run.ready()
        engine = pid(run)

        async def go() -> tuple[list[Reply], Reply]:
            tasks, manager = await streams(run, 6, tokens=40)
            run.loop.call_soon_threadsafe(run.guard.drain)
            await reached(run.guard.draining.is_set)
            async with client() as session:
                late = await send(session, run.url, body())
            replies = await asyncio.gather(*tasks)
            await manager.__aexit__(None, None, None)
            return replies, late

        replies, late = asyncio.run(go())
        assert all(r.ok for r in replies), "drained"
        assert late.status == 503
        assert int(late.headers["Retry-After"]) >= 1
        assert run.stopped.wait(10)
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_fault_20_what_does_not_end_in_the_drains_time_gets_an_error_event(tmp_path: Path) -> None:
    limits = QUICK.replace("kill_s: 1.0", "kill_s: 0.5, drain_s: 0.5")
    with supervised(MockKnobs(token_ms=100, reply_tokens=400), tmp_path, limits) as run:
        run.ready()

        async def go() -> list[Reply]:
            tasks, manager = await streams(run, 3, tokens=400)
            run.loop.call_soon_threadsafe(run.guard.drain)
            replies = await asyncio.gather(*tasks)
            await manager.__aexit__(None, None, None)
            return replies

        began = time.monotonic()
        replies = asyncio.run(go())
        assert time.monotonic() - began < 10
        assert not any(r.ok for r in replies)
        assert all(r.events > 0 for r in replies)
