"""A soak at twice the capacity: every request answered or refused, memory flat, no restart nobody needed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from tests.faults.harness import Reply, body, guarded, open_loop, policy
from tests.faults.test_faults_engine import QUICK, restarts

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.guard.supervision.launch_plan import mock_plan

LIMITS = QUICK + "admission: {slots: 4, tiers: {standard: {queue: 12, deadline_s: 1.0}}}"
RATE = 25.0  # twice what four slots of 320 ms give


@pytest.mark.timeout(4200)
@pytest.mark.parametrize("seconds", [8, pytest.param(3600, marks=pytest.mark.long)])
def test_soak_loses_nothing_at_twice_the_load(seconds: int, tmp_path: Path) -> None:
    plan = mock_plan(MockKnobs(slots=4, first_ms=40, token_ms=40, reply_tokens=8), tmp_path / "engine.log")
    log = tmp_path / "traffic.jsonl"
    with guarded(plan, policy(f"{LIMITS}\ntraffic: {{path: '{log}', max_bytes: 1000000, keep: 2}}")) as run:
        run.ready()
        own, sizes = psutil.Process(), []
        for _ in range(max(2, seconds // 30)):
            replies: list[Reply] = asyncio.run(
                open_loop(run.url, RATE, min(30.0, seconds / 2), lambda i: body(f"box {i}", 8))
            )
            assert {r.status for r in replies} <= {200, 429, 503}, "answered or refused, never lost"
            assert sum(r.ok for r in replies) >= 0.3 * len(replies)
            sizes.append(own.memory_info().rss)
        assert restarts(run) == 0
        assert sizes[-1] - sizes[len(sizes) // 4] < 32e6, sizes
        assert sum(path.stat().st_size for path in tmp_path.glob("traffic.jsonl*")) < 4_000_000
