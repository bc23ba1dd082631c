"""Load on the guard, on the mock: priorities, limits, pressure, clients that leave, frozen metrics.

Rates are those of an engine whose time is slept, so that they hold on two busy cores; every time a client sees counts
from the scheduled send.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.faults.harness import (
    FakeHost,
    Reply,
    Running,
    body,
    client,
    goodput,
    guarded,
    logged,
    open_loop,
    policy,
    quantile,
    send,
)
from tests.waiting import reached

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_process, in_thread

# 4 at once, 320 ms each: 12.5 requests a second.
SLOW = MockKnobs(slots=4, first_ms=40, token_ms=40, reply_tokens=8)
CAPACITY = 12.5
SLO_S = 1.5
# One tier is offered, and gets all slots: of what others keep free a short test sees nothing, a minute does.
BOUNDED = (
    "admission: {slots: 4, tiers: {interactive: {reserve: 0.0}, bulk: {reserve: 0.0}, "
    "standard: {queue: 12, deadline_s: 1.0, age_s: 5.0}}}"
)
INTERACTIVE, BULK = {"x-checkweigh-tier": "interactive"}, {"x-checkweigh-tier": "bulk"}


@contextmanager
def watched(run: Running) -> Iterator[list[int]]:
    """The longest queue and the most inside, while the block runs."""
    most, over = [0, 0], threading.Event()
    gate = run.guard.arms["baseline"].admission

    def look() -> None:
        while not over.is_set():
            most[0] = max(most[0], len(gate.queues))
            most[1] = max(most[1], gate.inside)
            time.sleep(0.002)  # between two samples

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def load(run: Running, rate: float, seconds: float, **headers: str) -> list[Reply]:
    return asyncio.run(open_loop(run.url, rate, seconds, lambda i: body(f"box {i}", 8), lambda i: headers))


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_fault_01_overload_keeps_its_goodput_and_its_queue(seconds: float, tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    with (
        in_thread(SLOW) as (endpoint, _),
        guarded(endpoint, policy(f"{BOUNDED}\ntraffic: {{path: '{log}'}}")) as run,
    ):
        run.ready()
        knee = goodput(load(run, CAPACITY * 0.9, seconds), SLO_S) * CAPACITY * 0.9
        assert knee > 0.8 * CAPACITY
        before = psutil.Process().memory_info().rss
        for factor in (2, 5):
            with watched(run) as most:
                replies = load(run, CAPACITY * factor, seconds)
            good = goodput(replies, SLO_S) * CAPACITY * factor
            assert good >= 0.9 * knee, (factor, good, knee)
            assert most[0] <= 12
            assert most[1] <= 4
            shed = [r for r in replies if not r.ok]
            assert {r.status for r in shed} <= {429, 503}
            assert all(int(r.headers["Retry-After"]) >= 1 for r in shed)
        assert psutil.Process().memory_info().rss - before < 64e6
        lines = logged(log, sum(int(CAPACITY * factor * seconds) for factor in (0.9, 2, 5)))
    full = [line["total_s"] for line in lines if line["status"] == 429]
    assert len(full) > CAPACITY * seconds
    assert quantile(full, 0.99) <= 0.02, "a refusal costs nothing"


def test_without_the_guard_the_same_load_ruins_the_goodput() -> None:
    with in_process(SLOW) as mock:
        replies = asyncio.run(open_loop(mock.endpoint.root, CAPACITY * 5, 4, lambda i: body(f"box {i}", 8)))
    assert goodput(replies, SLO_S) * 5 < 0.6, "the mock queues without bound: the fault is real"


def test_fault_02_a_flood_of_bulk_does_not_reach_the_interactive() -> None:
    limits = "admission: {slots: 4, tiers: {interactive: {reserve: 0.5}, bulk: {queue: 8, deadline_s: 2.0}}}"
    with in_process(SLOW) as mock, guarded(mock.endpoint, policy(limits)) as run:
        run.ready()

        async def both() -> tuple[list[Reply], list[Reply]]:
            flood = open_loop(run.url, CAPACITY * 3, 6, lambda i: body(f"bulk {i}", 8), lambda i: BULK)
            few = open_loop(run.url, CAPACITY * 0.3, 6, lambda i: body(f"now {i}", 8), lambda i: INTERACTIVE)
            a, b = await asyncio.gather(flood, few)
            return a, b

        bulk, interactive = asyncio.run(both())
    assert goodput(interactive, SLO_S) >= 0.99
    assert sum(r.ok for r in bulk) > 0
    assert sum(r.status == 429 for r in bulk) > len(bulk) / 2
    assert not any(r.status in (429, 503) for r in interactive), "bulk is shed first"


def test_fault_03_bulk_is_served_within_its_aging_bound_or_told(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    limits = f"""
admission:
  slots: 4
  tiers:
    interactive: {{reserve: 0.3, queue: 40, deadline_s: 5.0, age_s: 4.0}}
    bulk: {{reserve: 0.0, queue: 3, deadline_s: 20.0, age_s: 1.0}}
traffic: {{path: '{log}'}}
"""
    with in_process(SLOW) as mock, guarded(mock.endpoint, policy(limits)) as run:
        run.ready()

        async def both() -> int:
            now, bulk = await asyncio.gather(
                open_loop(run.url, CAPACITY * 1.3, 6, lambda i: body(f"now {i}", 8), lambda i: INTERACTIVE),
                open_loop(run.url, 2, 6, lambda i: body(f"bulk {i}", 8), lambda i: BULK),
            )
            return len(now) + len(bulk)

        lines = logged(log, asyncio.run(both()))
    bulk = [line for line in lines if line["tier"] == "bulk"]
    served = [line for line in bulk if line["outcome"] == "ok"]
    assert served
    assert all(line["status"] in (200, 429) for line in bulk)
    assert max(line["queue_s"] for line in served) <= 1.0 + 0.32 + 0.5, "its bound and what was running"


def test_fault_04_what_is_too_large_never_reaches_the_engine() -> None:
    with in_thread(MockKnobs()) as (endpoint, mock), guarded(endpoint, max_sequence=512) as run:
        run.ready()

        async def all_() -> list[Reply]:
            async with client() as session:
                asked = [
                    body("word " * 600), body(tokens=1025), body(tokens=10**18), body(tokens=500, prompt="x" * 200),
                    body("x" * 900_000),
                ]  # fmt: skip
                return [await send(session, run.url, data) for data in asked]

        replies = asyncio.run(all_())
        assert [r.status for r in replies] == [400] * 5
        assert all(r.error and r.error["type"] == "invalid_request_error" for r in replies)
        assert mock.schedule.seen == 0


def test_fault_05_a_full_cache_stops_admission_within_a_scrape_and_without_flapping() -> None:
    limits = """
admission: {tiers: {standard: {deadline_s: 0.3}}}
saturation: {scrape_s: 0.1, stale_s: 1.0, hold_s: 0.3}
"""
    with (
        in_thread(MockKnobs(kv_tokens=100_000)) as (endpoint, mock),
        guarded(endpoint, policy(limits)) as run,
    ):
        run.ready()
        arm = run.guard.arms["baseline"]
        said = len(run.said)

        def read(floor: float) -> bool:
            return arm.saturation.last is not None and abs(arm.saturation.last.kv - floor) < 0.005

        mock.schedule.turn(MockKnobs(kv_tokens=100_000, kv_floor=0.95))
        assert (
            run.until(lambda: arm.admission.paused and "KV cache" in arm.saturation.why(time.monotonic()), 3)
            < 1
        )
        seen = mock.schedule.seen
        assert {r.status for r in load(run, 20, 0.5)} == {503}
        assert mock.schedule.seen == seen, "nothing new goes in"
        for floor in (0.88, 0.93, 0.85, 0.94, 0.88):
            mock.schedule.turn(MockKnobs(kv_tokens=100_000, kv_floor=floor))
            run.until(partial(read, floor))
        mock.schedule.turn(MockKnobs(kv_tokens=100_000, kv_floor=0.3))
        run.until(lambda: not arm.admission.paused, 3)
        words = [line.split(":")[0] for line in run.said[said:]]
        if words[0] == "no longer saturated":  # of its start, when nothing had been scraped yet
            del words[0]
        assert words == ["saturated", "no longer saturated"]
        assert all(r.ok for r in load(run, 20, 0.5))


def test_fault_05_critical_memory_stops_admission_until_there_is_room() -> None:
    host = FakeHost()
    with in_thread(MockKnobs()) as (endpoint, mock), guarded(endpoint, read_host=host) as run:
        run.ready()
        arm = run.guard.arms["baseline"]
        host.free = 0.02
        assert run.until(lambda: arm.breaker.held, 3) < 2
        seen = mock.schedule.seen
        host.free = 0.07
        host.looked_at(1)
        replies = load(run, 20, 0.3)
        assert {r.status for r in replies} == {503}
        assert all(int(r.headers["Retry-After"]) >= 1 for r in replies)
        assert mock.schedule.seen == seen
        assert not arm.ready
        host.free = 0.2
        run.until(lambda: not arm.breaker.held, 3)
        run.until(lambda: load(run, 20, 0.2)[-1].ok, 3)
        assert arm.breaker.trips == 1


@pytest.mark.parametrize("clients", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_fault_11_clients_that_leave_give_everything_back(clients: int) -> None:
    limits = policy("admission: {queue: 2000, tiers: {standard: {queue: 2000, deadline_s: 60.0}}}")
    knobs = MockKnobs(first_ms=50, token_ms=100, slots=100, reply_tokens=500)
    with in_thread(knobs) as (endpoint, mock), guarded(endpoint, limits, slots=100) as run:
        run.ready()
        gate = run.guard.arms["baseline"].admission

        async def leave() -> None:
            async with client() as session:
                tasks = [
                    asyncio.ensure_future(send(session, run.url, body(f"box {i}", 400, stream=True)))
                    for i in range(clients)
                ]
                await reached(lambda: gate.inside == 100 and len(gate.queues) == clients - 100, 120)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(leave())
        run.until(lambda: gate.inside == 0 and len(gate.queues) == 0, 20)
        assert gate.tokens == 0
        run.until(lambda: mock.schedule.inside == 0, 20)
        (reply,) = load(run, 10, 0.1)
        assert reply.ok


def test_fault_11_a_client_that_does_not_read_holds_nothing() -> None:
    limits = policy("""
    admission: {max_tokens: 200000, default_tokens: 100000}
    timeouts: {idle_s: 1.0}
    """)
    knobs = MockKnobs(reply_tokens=100_000, max_len=200_000)
    with in_thread(knobs) as (endpoint, _), guarded(endpoint, limits, max_sequence=200_000) as run:
        run.ready()
        gate = run.guard.arms["baseline"].admission
        data = json.dumps(body("box", 100_000, stream=True)).encode()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", int(run.url.rsplit(":", 1)[1])))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
            deaf.sendall(head.encode() + data)
            run.until(lambda: gate.inside == 1)
            run.until(lambda: gate.inside == 0, 60)
            assert gate.tokens == 0, "while its connection is open"
            deaf.settimeout(10)
            assert deaf.recv(1), "it was being answered"


def test_fault_14_retrying_clients_do_not_multiply_what_the_engine_gets() -> None:
    with in_thread(SLOW) as (endpoint, mock), guarded(endpoint, policy(BOUNDED)) as run:
        run.ready()

        async def stubborn(session: Any, i: int) -> int:
            for attempt in range(4):
                reply = await send(session, run.url, body(f"box {i}", 8))
                if reply.ok:
                    return attempt
                await asyncio.sleep(0.05)  # the pause of a client that does not give up
            return 4

        async def all_() -> list[int]:
            async with client() as session:
                tasks = []
                for i in range(200):
                    tasks.append(asyncio.ensure_future(stubborn(session, i)))
                    await asyncio.sleep(1 / (4 * CAPACITY))  # the spacing of the load
                return list(await asyncio.gather(*tasks))

        attempts = asyncio.run(all_())
        assert sum(attempts) > 100, "they did retry"
        answered = sum(a < 4 for a in attempts)
        assert answered <= mock.schedule.seen <= 1.1 * answered


def test_fault_15_frozen_metrics_count_as_saturated() -> None:
    limits = """
admission: {tiers: {standard: {deadline_s: 0.3}}}
saturation: {scrape_s: 0.1, stale_s: 0.6, hold_s: 0.1}
"""
    with in_thread(MockKnobs(token_ms=5)) as (endpoint, mock), guarded(endpoint, policy(limits)) as run:
        run.ready()
        arm = run.guard.arms["baseline"]
        assert all(r.ok for r in load(run, 20, 1.5))
        assert not arm.admission.paused
        mock.schedule.turn(MockKnobs(token_ms=5, frozen_metrics=True))
        replies = load(run, 20, 2.5)
        assert arm.admission.paused
        assert "frozen" in arm.saturation.why(time.monotonic())
        assert replies[-1].status == 503
        seen = mock.schedule.seen
        assert {r.status for r in load(run, 20, 0.5)} == {503}
        assert mock.schedule.seen == seen
