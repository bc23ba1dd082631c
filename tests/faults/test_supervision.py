"""Which engine is served, and when one stays down: pins, crash loops of slow starters, plans that fail, containers."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.faults.harness import Running, client, guarded, policy
from tests.faults.test_faults_engine import QUICK, one, phase, pid, restarts

from checkweigh.engines.mock.knobs import Knobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.errors import SourceError
from checkweigh.guard.arm import Arm
from checkweigh.guard.child import Plan
from checkweigh.guard.host import Reading
from checkweigh.guard.launching import mock_plan
from checkweigh.guard.supervisor import Phase

START_S = 120.0  # machines are shared


def test_starting_takes_no_time_of_the_crash_window(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("crashes: 20", "crashes: 3, crash_window_s: 0.2"))
    with guarded(mock_plan(Knobs(crash_after=1), tmp_path / "engine.log"), limits) as run:
        run.until(lambda: phase(run) is Phase.FAILED, START_S)
        assert restarts(run) == 2


def test_readiness_makes_crashes_forgotten(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("crashes: 20", "crashes: 2, crash_window_s: 0.2"))
    with guarded(mock_plan(Knobs(), tmp_path / "engine.log"), limits) as run:
        for _ in range(3):
            run.ready(START_S)
            time.sleep(0.5)
            old = pid(run)
            os.kill(old, signal.SIGKILL)
            run.until(lambda old=old: pid(run) != old, START_S)  # type: ignore[misc]
        run.ready(START_S)
        assert restarts(run) == 3


def test_a_plan_that_fails_at_a_restart_is_tried_again_and_leaves_the_other_arm_alone(tmp_path: Path) -> None:
    made, entered, release, waited = 0, threading.Event(), threading.Event(), []
    good = mock_plan(Knobs(), tmp_path / "engine.log")

    def plan() -> Plan:
        nonlocal made
        made += 1
        if made == 2:
            entered.set()
            waited.append(release.wait(60))
            raise SourceError("expected the image on this host, found none")
        return good()

    with in_thread(Knobs()) as (endpoint, _), guarded(endpoint, policy(QUICK), candidate=plan) as run:
        run.ready(START_S)
        candidate = run.guard.arms["candidate"].supervisor
        assert candidate is not None
        assert candidate.child is not None
        os.kill(candidate.child.pid, signal.SIGKILL)
        assert entered.wait(START_S)
        assert one(run).ok, "while the plan is made"
        release.set()
        run.until(lambda: made == 3, START_S)
        run.ready(START_S)
        assert one(run).ok
        assert any("cannot be started (expected the image" in line for line in run.said)
    assert waited == [True], "serving went on meanwhile"


def test_a_stop_while_the_plan_is_made_starts_nothing(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()
    log = tmp_path / "engine.log"

    def plan() -> Plan:
        entered.set()
        release.wait(60)
        return mock_plan(Knobs(), log)()

    async def stop_early() -> None:
        arm = Arm("baseline", policy(QUICK), plan, print, slots=1)
        assert arm.supervisor is not None
        running = asyncio.ensure_future(arm.supervisor.run())
        await asyncio.to_thread(entered.wait)
        await arm.close()
        release.set()
        await asyncio.wait_for(running, 20)

    asyncio.run(stop_early())
    assert not log.exists()


def test_a_containers_memory_is_held_against_the_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = "import time; held = bytearray(b'x') * (400 << 20); print('held', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as inside:
        try:
            assert inside.stdout is not None
            inside.stdout.readline()
            docker = tmp_path / "docker"
            docker.write_text(f"#!/bin/sh\necho {inside.pid}\n")
            docker.chmod(0o755)
            monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
            good = mock_plan(Knobs(), tmp_path / "engine.log")  # stands for the client
            limits = policy(QUICK + "memory: {ceiling_gib: 0.35}")
            with guarded(lambda: replace(good(), container="box"), limits) as run:
                run.until(lambda: any("above its ceiling of 0.35" in line for line in run.said), START_S)
        finally:
            inside.kill()


def gauges(run: Running) -> dict[str, float]:
    """What the guard exports without labels."""

    async def read() -> str:
        async with client() as session, session.get(run.url + "/metrics") as answer:
            return await answer.text()

    families = text_string_to_metric_families(asyncio.run(read()))
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


def test_free_memory_is_exported_and_nan_where_nobody_knows() -> None:
    gpu = [None, 0.125]
    with (
        in_thread(Knobs()) as (endpoint, _),
        guarded(
            endpoint,
            read_host=lambda: Reading(free_share=0.5, gpu_free_share=gpu[0], swap_bytes=0.0),
        ) as run,
    ):
        run.until(lambda: gauges(run)["checkweigh_memory_free_share"] == 0.5, 10)
        assert math.isnan(gauges(run)["checkweigh_gpu_memory_free_share"])
        del gpu[0]
        run.until(lambda: gauges(run)["checkweigh_gpu_memory_free_share"] == 0.125, 10)
