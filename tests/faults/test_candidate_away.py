"""A candidate that fails: the baseline serves its sessions meanwhile, and it is switched off when that does not end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.faults.harness import Reply, Running, body, guarded, open_loop, policy
from tests.faults.test_faults_engine import QUICK

from checkweigh.engines.mock.knobs import Knobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.guard.launching import mock_plan

START_S = 120.0  # machines are shared


def load(run: Running, rate: float, seconds: float) -> list[Reply]:
    """One request a session."""
    return asyncio.run(open_loop(run.url, rate, seconds, lambda i: body(f"box {i}", 2)))


def off(run: Running) -> list[str]:
    return [line for line in run.said if line.startswith("ALARM: candidate switched off")]


def test_a_candidate_that_dies_costs_its_sessions_nothing_more(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("backoff_s: 0.1, backoff_max_s: 0.5", "backoff_s: 2.0, backoff_max_s: 2.0"))
    plan = mock_plan(Knobs(), tmp_path / "engine.log")
    with in_thread(Knobs()) as (endpoint, mock), guarded(endpoint, limits, candidate=plan, share=0.5) as run:
        run.ready(START_S)
        assert all(r.ok for r in load(run, 20, 1))
        assert 0 < mock.schedule.seen < 20
        arm = run.guard.arms["candidate"]
        assert arm.supervisor is not None
        assert arm.supervisor.child is not None
        os.kill(arm.supervisor.child.pid, signal.SIGKILL)
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
    plan = mock_plan(Knobs(crash_after=1), tmp_path / "engine.log")
    with in_thread(Knobs()) as (endpoint, _), guarded(endpoint, limits, candidate=plan, share=0.5) as run:
        run.until(lambda: run.guard.router.weight == 0, START_S)
        assert off(run) == ["ALARM: candidate switched off: its engine stays down"]
        assert all(r.ok for r in load(run, 20, 1))


@pytest.mark.parametrize("shadow", [False, True], ids=["split", "shadow"])
def test_a_candidate_that_fails_everything_is_switched_off(shadow: bool) -> None:
    limits = policy("breaker: {failures: 3, open_s: 0.1, open_max_s: 0.4}")
    with (
        in_thread(Knobs()) as (endpoint, _),
        in_thread(Knobs(error_share=1.0)) as (other, mock),
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


def test_a_candidate_that_fails_some_is_switched_off_though_its_breaker_stays_closed() -> None:
    with (
        in_thread(Knobs()) as (endpoint, _),
        in_thread(Knobs(error_share=0.2)) as (other, _mock),
        guarded(endpoint, candidate=other, share=0.5) as run,
    ):
        run.ready()
        load(run, 40, 10)
        assert run.guard.router.weight == 0
        assert run.guard.arms["candidate"].breaker.trips == 0
        assert "sessions that an engine refused or failed were the candidate's" in off(run)[0]


def test_equal_arms_that_fail_some_stay() -> None:
    flawed = Knobs(error_share=0.1)
    with (
        in_thread(flawed) as (endpoint, _),
        in_thread(flawed.model_copy(update={"seed": 1})) as (other, _mock),
        guarded(endpoint, candidate=other, share=0.5) as run,
    ):
        run.ready()
        load(run, 40, 10)
        assert not off(run)
