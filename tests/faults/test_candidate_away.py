"""A candidate that fails: the baseline serves its sessions meanwhile, and it is switched off when that does not end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.faults.harness import FakeHost, Reply, Running, body, guarded, open_loop, policy
from tests.faults.test_faults_engine import QUICK
from tests.faults.test_shadow import shadowed

from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.supervision.launch_plan import mock_plan
from checkweigh.monitors import arm_comparison as module

SOUND = MockKnobs()
START_S = 120.0  # machines are shared


def load(run: Running, rate: float, seconds: float) -> list[Reply]:
    """One request a session."""
    return asyncio.run(open_loop(run.url, rate, seconds, lambda i: body(f"box {i}", 2)))


@contextmanager
def split(
    candidate: MockKnobs, limits: GuardPolicy | None = None, *, baseline: MockKnobs = SOUND, **setup: Any
) -> Iterator[tuple[Running, MockApp]]:
    """Half of the sessions each: a guard that is ready, and the candidate's mock."""
    with (
        in_thread(baseline) as (endpoint, _),
        in_thread(candidate) as (other, mock),
        guarded(endpoint, limits, candidate=other, share=0.5, **setup) as run,
    ):
        run.ready()
        yield run, mock


def off(run: Running) -> list[str]:
    return [line for line in run.said if line.startswith("ALARM: candidate switched off")]


def test_a_candidate_that_dies_costs_its_sessions_nothing_more(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("backoff_s: 0.1, backoff_max_s: 0.5", "backoff_s: 2.0, backoff_max_s: 2.0"))
    plan = mock_plan(MockKnobs(), tmp_path / "engine.log")
    with (
        in_thread(MockKnobs()) as (endpoint, mock),
        guarded(endpoint, limits, candidate=plan, share=0.5) as run,
    ):
        run.ready(START_S)
        assert all(r.ok for r in load(run, 20, 1))
        assert 0 < mock.schedule.seen < 20
        arm = run.guard.arms["candidate"]
        assert arm.supervisor is not None
        assert arm.supervisor.process is not None
        os.kill(arm.supervisor.process.pid, signal.SIGKILL)
        run.until(lambda: not arm.ready, 2)
        before = mock.schedule.seen
        assert all(r.ok for r in load(run, 20, 1)), "by the baseline"
        assert mock.schedule.seen == before + 20
        run.ready(START_S)
        before = mock.schedule.seen
        assert all(r.ok for r in load(run, 20, 1))
        assert mock.schedule.seen < before + 20, "the candidate has its sessions again"
        assert not off(run), "one crash is no reason"


def test_a_candidate_that_stays_down_is_switched_off(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("crashes: 20", "crashes: 2"))
    plan = mock_plan(MockKnobs(crash_after=1), tmp_path / "engine.log")
    with in_thread(MockKnobs()) as (endpoint, _), guarded(endpoint, limits, candidate=plan, share=0.5) as run:
        run.until(lambda: run.guard.router.weight == 0, START_S)
        assert off(run) == ["ALARM: candidate switched off: its engine stays down"]
        assert all(r.ok for r in load(run, 20, 1))


@pytest.mark.parametrize("shadow", [False, True], ids=["split", "shadow"])
def test_a_candidate_that_fails_everything_is_switched_off(shadow: bool) -> None:
    limits = policy("breaker: {failures: 3, open_s: 0.1, open_max_s: 0.4}")
    with (
        in_thread(MockKnobs()) as (endpoint, _),
        in_thread(MockKnobs(error_share=1.0)) as (other, mock),
        guarded(endpoint, limits, candidate=other, shadow=shadow, share=0.0 if shadow else 0.5) as run,
    ):
        run.ready()
        replies = load(run, 50, 3)
        assert sum(r.status == 502 for r in replies) == (0 if shadow else mock.schedule.seen)
        assert mock.schedule.seen < 10, "a few, and then a probe at a time"
        assert all(r.ok for r in replies if r.status != 502)
        assert run.guard.router.weight == 0
        (line,) = off(run)
        assert "its breaker stays open (a probe failed: the engine failed)" in line


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures count a tenth of a second apart, after half a second."""
    monkeypatch.setattr(module, "_APART_S", 0.1)
    monkeypatch.setattr(module, "_SETTLED_S", 0.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("code", [500, 429])
def test_a_candidate_that_fails_some_is_switched_off_though_its_breaker_stays_closed(code: int) -> None:
    """But not for 429: that is load."""
    with split(MockKnobs(error_share=0.3, error_code=code)) as (run, _):
        breaker = run.guard.arms["candidate"].breaker
        run.do(lambda: breaker.hold("process", "it was restarted once"))
        run.do(lambda: breaker.reset("process"))
        replies = load(run, 20, 8)
        assert {r.status for r in replies} == {200, 502 if code == 500 else 503}
        assert run.guard.router.weight == (0 if code == 500 else 0.5)
        assert breaker.trips == 1
        assert [
            "sessions that an engine refused or failed were the candidate's" in line for line in off(run)
        ] == [True] * (code == 500)


@pytest.mark.usefixtures("quick")
def test_a_candidate_that_refuses_what_the_baseline_takes_is_switched_off() -> None:
    narrow = MockKnobs(max_len=64)
    with split(narrow) as (run, _):
        asked = lambda i: body("weigh " * (100 if i % 2 else 1), 2)  # noqa: E731
        replies = asyncio.run(open_loop(run.url, 20, 5, asked))
        assert run.guard.router.weight == 0
        assert {r.status for r in replies} == {200, 400}
        assert "were the candidate's" in off(run)[0]
        assert run.guard.arms["candidate"].breaker.trips == 0
        assert all(r.ok for r in asyncio.run(open_loop(run.url, 50, 1, asked)))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("baseline", "killed"), [(4096, True), (64, False)], ids=["alone", "like the baseline"]
)
def test_a_shadow_that_refuses_is_switched_off(baseline: int, killed: bool) -> None:
    with shadowed(MockKnobs(max_len=baseline), MockKnobs(max_len=64)) as (run, _, _copied):
        replies = asyncio.run(open_loop(run.url, 15, 2.5, lambda i: body("weigh " * 100)))
        assert {r.status for r in replies} == {200 if killed else 400}
        run.until(lambda: run.guard.arms["candidate"].admission.inside == 0)
        assert bool(run.guard.router.killed) == killed, run.said


@pytest.mark.usefixtures("quick")
def test_equal_arms_that_fail_some_stay() -> None:
    flawed = MockKnobs(error_share=0.1)
    with split(flawed.model_copy(update={"seed": 1}), policy("routing: {alpha: 0.001}"), baseline=flawed) as (
        run,
        _,
    ):
        load(run, 40, 8)
        assert not off(run)


def test_a_candidate_that_breaks_every_stream_is_switched_off() -> None:
    """Its first tokens close the breaker each time."""
    limits = policy("breaker: {failures: 3, open_s: 0.1, open_max_s: 0.8}")
    with split(MockKnobs(truncate_share=1.0), limits) as (run, _):
        asyncio.run(open_loop(run.url, 30, 8, lambda i: body(f"box {i}", 8, stream=True)))
        assert "its breaker stays open" in off(run)[0]


def test_a_candidate_of_which_nothing_is_known_is_away_and_then_off() -> None:
    limits = policy("saturation: {scrape_s: 0.2, stale_s: 0.6}\nbreaker: {open_s: 1.0, open_max_s: 4.0}")
    with split(MockKnobs(frozen_metrics=True), limits) as (run, mock):
        assert all(r.total_s < 4 for r in load(run, 30, 1.5))
        run.until(lambda: run.guard.arms["candidate"].saturation.blind(time.monotonic()) != "")
        seen = mock.schedule.seen
        assert all(r.ok for r in load(run, 20, 1)), "by the baseline, and nobody waits"
        assert mock.schedule.seen == seen
        run.until(lambda: run.guard.router.weight == 0)
        assert off(run) == [
            "ALARM: candidate switched off: its metrics are frozen: they stand still while tokens come"
        ]


def test_what_was_mended_may_be_revived() -> None:
    limits = policy("breaker: {failures: 3, open_s: 0.1, open_max_s: 0.4}")
    host = FakeHost()
    with split(MockKnobs(error_share=1.0), limits, read_host=host) as (run, mock):
        load(run, 50, 3)
        run.until(lambda: run.guard.router.weight == 0)
        mock.schedule.turn(MockKnobs())
        run.do(run.guard.router.revive)
        host.looked_at(2)  # at each of which it might be switched off
        assert run.guard.router.weight == 0.5
        assert all(r.ok for r in load(run, 20, 1))
        assert run.guard.arms["candidate"].ready
        assert len(off(run)) == 1


@pytest.mark.usefixtures("quick")
def test_a_baseline_that_takes_nobody_is_no_evidence_against_the_candidate() -> None:
    """Memory is critical for a moment, and then the probe is a long reply in one piece: 503 for all others."""
    both = MockKnobs(max_len=64, first_ms=10, token_ms=80, reply_tokens=200)
    with split(both, policy("breaker: {open_s: 0.1}"), baseline=both) as (run, _):
        breaker = run.guard.arms["baseline"].breaker
        run.do(lambda: breaker.hold("memory", "memory is critical"))
        run.do(lambda: breaker.release("memory", time.monotonic()))
        asked = lambda i: body(*(("weigh " * 100, 2) if i % 3 else (f"box {i}", 50)))  # noqa: E731
        statuses = [r.status for r in asyncio.run(open_loop(run.url, 20, 4, asked))]
        assert not off(run)
        assert statuses.count(503) > 15, "of the baseline's"
        assert statuses.count(400) > 15, "of the candidate's"
