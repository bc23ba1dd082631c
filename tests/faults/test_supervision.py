"""Which engine is served, and when one stays down: pins, crash loops of slow starters, plans that fail, containers."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.faults.harness import Running, client, guarded, policy
from tests.faults.test_faults_engine import QUICK, phase, pid, restarts

from checkweigh.engines.mock.knobs import Knobs
from checkweigh.engines.mock.serve import in_thread
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
