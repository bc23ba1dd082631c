"""``serve --shadow``: copies change nothing of what a client gets, are shed first, and are told apart everywhere."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.faults.harness import Reply, Running, body, client, guarded, logged, open_loop, policy, send

from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread

Got = tuple[int, dict[str, str], bytes]
REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", body("one", 8)),
    ("/v1/chat/completions", body("two", 8, stream=True)),
    ("/v1/chat/completions", body("three", 8, stream=True, stream_options={"include_usage": True})),
    ("/v1/completions", {"model": "mock", "prompt": "four", "max_tokens": 6}),
    ("/v1/chat/completions", body("five", 0)),
    ("/v1/chat/completions", body("six", 4, temprature=1)),
)


@contextmanager
def shadowed(
    knobs: MockKnobs, shadow: MockKnobs, limits: str = "{}", **setup: Any
) -> Iterator[tuple[Running, MockApp, MockApp]]:
    """A guard with a shadow: it, the baseline's mock and the shadow's."""
    with (
        in_thread(knobs) as (endpoint, mock),
        in_thread(shadow) as (other, copied),
        guarded(endpoint, policy(limits), candidate=other, shadow=True, **setup) as run,
    ):
        run.ready()
        run.until(lambda: not any(arm.admission.paused for arm in run.guard.arms.values()))
        yield run, mock, copied


def asked(url: str) -> list[Got]:
    """Status, headers and bytes of every request; what differs from one answer to the next is blanked."""

    async def go() -> list[Got]:
        found = []
        async with aiohttp.ClientSession() as session:
            for path, data in REQUESTS:
                async with session.post(url + path, json=data, headers={"x-request-id": "r"}) as answer:
                    raw = re.sub(rb"-mock\d+", b"", await answer.read())
                    kept = {k: v for k, v in answer.headers.items() if k not in ("Content-Length", "Date")}
                    found.append((answer.status, kept, raw))
        return found

    return asyncio.run(go())


def load(run: Running, rate: float, seconds: float, tokens: int = 8) -> list[Reply]:
    return asyncio.run(open_loop(run.url, rate, seconds, lambda i: body(f"box {i}", tokens)))


def metric(run: Running, pattern: str) -> float:
    """The sum of the samples that match."""
    text = urllib.request.urlopen(run.url + "/metrics", timeout=5).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(pattern, line))


@pytest.fixture(scope="module")
def alone() -> list[Got]:
    """What clients get without any shadow."""
    with in_thread(MockKnobs(token_ms=1)) as (endpoint, _), guarded(endpoint) as run:
        run.ready()
        return asked(run.url)


SHADOWS = {
    "sound": {}, "other words": {"seed": 7, "reply_tokens": 3}, "errors": {"error_share": 1.0},
    "truncated": {"truncate_share": 1.0}, "reset": {"reset_share": 1.0}, "hung": {"hang": True},
    "slow": {"first_ms": 3000},
}  # fmt: skip


@pytest.mark.parametrize("name", SHADOWS)
def test_clients_get_the_same_bytes_whatever_the_shadow_does(name: str, alone: list[Got]) -> None:
    assert [status for status, _, _ in alone] == [200, 200, 200, 200, 400, 400]
    with shadowed(MockKnobs(token_ms=1), MockKnobs(token_ms=1, **SHADOWS[name])) as (run, mock, copied):
        assert asked(run.url) == alone
        run.until(lambda: copied.schedule.seen == mock.schedule.seen == 4)


def test_a_hung_shadow_holds_nobody_back_and_takes_no_room() -> None:
    limits = "admission: {slots: 4, tiers: {standard: {queue: 4, deadline_s: 1.0}}}"
    steady = MockKnobs(slots=4, first_ms=20, token_ms=5, reply_tokens=8)
    with shadowed(steady, MockKnobs(slots=4, hang=True), limits) as (run, _, copied):
        replies = load(run, 20, 2)
        assert all(r.ok for r in replies)
        assert sorted(r.total_s for r in replies)[-1] < 1
        base, cand = run.guard.arms["baseline"].admission, run.guard.arms["candidate"].admission
        assert (base.inside, base.tokens) == (0, 0)
        assert 0 < cand.inside <= 4
        assert len(cand.queues) == 0, "a copy never waits"
        assert copied.schedule.seen == cand.inside
        assert metric(run, r"checkweigh_sheds_total") == 0, "what is shed of copies is no client's refusal"
        assert metric(run, r'checkweigh_requests_total\{.*tier="bulk"') == 0
        assert metric(run, r'checkweigh_requests_total\{.*outcome="ok".*tier="standard"') == len(replies)
        assert metric(run, r'checkweigh_requests_total\{.*outcome="shed".*tier="shadow"') == 40 - cand.inside
        assert metric(run, r"checkweigh_own_seconds_count") == len(replies)


def test_shadows_are_the_first_to_be_shed(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    limits = f"admission: {{slots: 2}}\ntraffic: {{path: '{log}'}}"
    slow = MockKnobs(slots=2, first_ms=50, token_ms=30, reply_tokens=8)
    with shadowed(slow, MockKnobs(), limits, slots=2) as (run, mock, copied):
        gate = run.guard.arms["baseline"].admission
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(load, run, 30, 1)
            run.until(lambda: len(gate.queues) > 4)
            run.until(lambda: run.guard.arms["candidate"].admission.inside == 0)  # no copy is on its way
            seen = copied.schedule.seen
            run.until(lambda: len(gate.queues) <= 2 or copied.schedule.seen != seen)
            assert copied.schedule.seen == seen, "no copy while a client waits"
            assert all(r.ok for r in job.result())
        assert mock.schedule.seen == 30
        lines = logged(log, 60)
    copies = [line for line in lines if line["shadow"]]
    assert len(copies) == 30
    shed = [line for line in copies if line["outcome"] == "shed"]
    assert len(shed) == 30 - copied.schedule.seen
    assert sum((line["status"], line["reason"]) == (503, "baseline: it is full") for line in shed) > 15


def test_the_log_tells_copies_from_clients(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    limits = f"traffic: {{path: '{log}'}}\nadmission: {{kv_tokens: 400}}"
    with shadowed(MockKnobs(), MockKnobs(error_share=1.0), limits) as (run, mock, _):
        assert all(r.ok for r in load(run, 10, 0.3))
        run.until(lambda: run.guard.arms["candidate"].admission.inside == 0)
        lines = logged(log, 6)
        own = [line for line in lines if not line["shadow"]]
        copies = {line["id"]: line for line in lines if line["shadow"]}
        assert {(line["served"], line["outcome"], line["tier"]) for line in own} == {
            ("baseline", "ok", "standard")
        }
        assert {line["id"] for line in own} == set(copies)
        assert {(c["served"], c["outcome"], c["status"]) for c in copies.values()} == {
            ("candidate", "upstream_error", 502)
        }
        assert [r.status for r in load(run, 10, 0.1, tokens=400)] == [429]
        assert [line["shadow"] for line in logged(log, 7)[6:]] == [False], (
            "what a client is refused is not copied"
        )
        assert mock.schedule.seen == 3


def test_a_shadow_that_failed_gets_copies_again_and_the_baseline_is_ready_all_along() -> None:
    limits = "breaker: {failures: 3, open_s: 0.3}"
    with shadowed(MockKnobs(), MockKnobs(error_share=1.0), limits) as (run, _, copied):
        breaker = run.guard.arms["candidate"].breaker
        load(run, 20, 0.4)
        run.until(lambda: breaker.trips == 1)
        seen = copied.schedule.seen
        assert urllib.request.urlopen(run.url + "/readyz", timeout=5).status == 200
        copied.schedule.turn(MockKnobs())
        run.until(lambda: not breaker.shut(time.monotonic()))
        assert all(r.ok for r in load(run, 20, 0.4))
        run.until(lambda: copied.schedule.seen >= seen + 4)
        assert run.guard.arms["candidate"].ready


def test_an_opened_breaker_does_not_keep_a_server_unready_for_want_of_requests() -> None:
    limits = policy("breaker: {failures: 3, open_s: 1.0}")
    with in_thread(MockKnobs(error_share=1.0)) as (endpoint, mock), guarded(endpoint, limits) as run:
        run.ready()
        assert {r.status for r in load(run, 20, 0.2)} == {502, 503}
        arm = run.guard.arms["baseline"]
        assert not arm.ready
        mock.schedule.turn(MockKnobs())
        assert run.until(lambda: arm.ready, 3) < 1, (
            "whoever asks /readyz first sends nothing until it says yes"
        )
        assert [r.ok for r in load(run, 20, 0.1)] == [True, True]


@pytest.mark.parametrize(
    ("headers", "outcome", "status"),
    [({}, "client_gone", 499), ({"x-checkweigh-deadline-ms": "300"}, "timeout", 504)],
    ids=["left", "deadline"],
)
def test_a_copy_is_given_up_with_its_client(
    tmp_path: Path, headers: dict[str, str], outcome: str, status: int
) -> None:
    log = tmp_path / "traffic.jsonl"
    late = MockKnobs(first_ms=3000)
    with shadowed(late, late, f"traffic: {{path: '{log}'}}") as (run, _, copied):

        async def go() -> None:
            async with client() as session:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.3 if status == 499 else 9):
                        await send(session, run.url, body(stream=True), headers=headers)

        asyncio.run(go())
        run.until(lambda: copied.schedule.seen == 1 and run.guard.arms["candidate"].admission.inside == 0)
        lines = logged(log, 2)
    assert {line["shadow"] for line in lines} == {True, False}
    assert {(line["outcome"], line["status"]) for line in lines} == {(outcome, status)}
    assert all(0.2 < line["total_s"] < 1.5 for line in lines), "as long as the client waited"


def test_a_stop_does_not_wait_for_shadows(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    with shadowed(MockKnobs(), MockKnobs(hang=True), f"traffic: {{path: '{log}'}}") as (run, _, copied):
        assert all(r.ok for r in load(run, 20, 0.2))
        run.until(lambda: copied.schedule.seen == 4)
        began = time.monotonic()
        run.do(run.guard.drain)
        assert run.stopped.wait(10)
        assert time.monotonic() - began < 3
    copies = [line for line in logged(log, 8) if line["shadow"]]
    assert [(c["outcome"], c["reason"]) for c in copies] == [("shed", "the guard is stopping")] * 4
