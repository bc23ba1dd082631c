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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.faults.harness import Running, client, guarded, policy
from tests.faults.test_faults_engine import QUICK, one, phase, pid, restarts
from tests.unit.engines.vllm.fake_vllm import write_environment, write_script
from tests.unit.engines.vllm.test_vllm import make

from checkweigh.engines.http.client import Client, Endpoint
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.engines.vllm.server_launch import LaunchPlan
from checkweigh.errors import EngineError, PinMismatch, Problem, SourceError
from checkweigh.guard.arm import GuardedArm
from checkweigh.guard.host_gauges import HostReading
from checkweigh.guard.supervision import supervisor
from checkweigh.guard.supervision.launch_plan import mock_plan, vllm_plan
from checkweigh.guard.supervision.supervisor import Phase

START_S = 120.0  # machines are shared


def lives(folder: Path, names: Sequence[str]) -> Callable[[], LaunchPlan]:
    """Mocks of these names in turn; ``mock`` is pinned, "" does not say what it is, "..." never answers."""
    plans = iter([mock_plan(MockKnobs(model=name or "mock"), folder / "engine.log") for name in names])

    async def check(endpoint: Endpoint, said: str) -> None:
        async with Client(endpoint) as asked:
            (model,) = (await asked.get(f"{endpoint.url}/models"))["data"]
        if model["id"] != "mock":
            raise PinMismatch(
                [Problem(file="m.yaml", line=None, path="name", expected="mock", found=model["id"])]
            )

    async def silent(endpoint: Endpoint, said: str) -> None:
        raise EngineError("the server does not report its configuration")

    async def hung(endpoint: Endpoint, said: str) -> None:
        await asyncio.Event().wait()

    checks = iter([{"": silent, "...": hung}.get(name, check) for name in names])
    return lambda: replace(next(plans)(), check=next(checks))


@pytest.mark.parametrize(
    ("script", "difference"),
    [
        ({"cache": False}, r"engine.args.prefix_caching: expected True, found False \(the server says\)"),
        ({"version": "9.8.0"}, r"engine.version: expected 9.9.0, found 9.8.0 \(the engine says\)"),
        ({"dtype": "bfloat16"}, r"engine.dtype: expected float32, found bfloat16"),
        ({"longest": 1024}, r"limits.max_sequence: expected 512, found 1024"),
    ],
)
def test_a_vllm_that_is_not_as_pinned_ends_serving_with_the_error(
    tiny_model_dir: Path, tmp_path: Path, script: dict[str, Any], difference: str
) -> None:
    write_environment(tmp_path / "env")
    write_script(tmp_path / "env", **script)
    spec = make(tmp_path / "env", tiny_model_dir, engine={"args": {"prefix_caching": True}})
    plan = vllm_plan(spec, tmp_path / "engine.log")
    with pytest.raises(PinMismatch, match=difference), guarded(plan, policy(QUICK)) as run:
        assert run.stopped.wait(START_S), run.said
    assert "the engine is ready" not in run.said


def test_one_that_comes_back_different_stays_down(tmp_path: Path) -> None:
    with guarded(lives(tmp_path, ["mock", "another"]), policy(QUICK)) as run:
        run.ready(START_S)
        os.kill(pid(run), signal.SIGKILL)
        run.until(lambda: phase(run) is Phase.FAILED, START_S)
        assert run.said.count("the engine is ready") == 1
        assert "is not what is pinned: m.yaml: name: expected mock, found another" in run.said[-1]
        assert one(run).status == 503


def test_one_that_does_not_say_what_it_is_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_CHECK_S", 3.0)
    with guarded(lives(tmp_path, ["", "...", "mock"]), policy(QUICK)) as run:
        run.ready(START_S)
        assert restarts(run) == 2
        assert any("does not say what it is: the server does not report" in line for line in run.said)
        assert any("took more than 3 s to say what it is" in line for line in run.said)
        assert one(run).ok


def test_starting_takes_no_time_of_the_crash_window(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("crashes: 20", "crashes: 3, crash_window_s: 0.2"))
    with guarded(mock_plan(MockKnobs(crash_after=1), tmp_path / "engine.log"), limits) as run:
        run.until(lambda: phase(run) is Phase.FAILED, START_S)
        assert restarts(run) == 2


def test_readiness_makes_crashes_forgotten(tmp_path: Path) -> None:
    limits = policy(QUICK.replace("crashes: 20", "crashes: 2, crash_window_s: 0.2"))
    with guarded(mock_plan(MockKnobs(), tmp_path / "engine.log"), limits) as run:
        for _ in range(3):
            run.ready(START_S)
            time.sleep(0.5)  # of readiness, longer than the window
            old = pid(run)
            os.kill(old, signal.SIGKILL)
            run.until(lambda old=old: pid(run) != old, START_S)  # type: ignore[misc]
        run.ready(START_S)
        assert restarts(run) == 3


def test_a_plan_that_fails_at_a_restart_is_tried_again_and_leaves_the_other_arm_alone(tmp_path: Path) -> None:
    made, entered, release, waited = 0, threading.Event(), threading.Event(), []
    good = mock_plan(MockKnobs(), tmp_path / "engine.log")

    def plan() -> LaunchPlan:
        nonlocal made
        made += 1
        if made == 2:
            entered.set()
            waited.append(release.wait(60))
            raise SourceError("expected the image on this host, found none")
        return good()

    with in_thread(MockKnobs()) as (endpoint, _), guarded(endpoint, policy(QUICK), candidate=plan) as run:
        run.ready(START_S)
        candidate = run.guard.arms["candidate"].supervisor
        assert candidate is not None
        assert candidate.process is not None
        os.kill(candidate.process.pid, signal.SIGKILL)
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

    def plan() -> LaunchPlan:
        entered.set()
        release.wait(60)
        return mock_plan(MockKnobs(), log)()

    async def stop_early() -> None:
        arm = GuardedArm("baseline", policy(QUICK), plan, print, slots=1)
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
            good = mock_plan(MockKnobs(), tmp_path / "engine.log")  # stands for the client
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
        in_thread(MockKnobs()) as (endpoint, _),
        guarded(
            endpoint,
            read_host=lambda: HostReading(free_share=0.5, gpu_free_share=gpu[0], swap_bytes=0.0),
        ) as run,
    ):
        run.until(lambda: gauges(run)["checkweigh_memory_free_share"] == 0.5, 10)
        assert math.isnan(gauges(run)["checkweigh_gpu_memory_free_share"])
        del gpu[0]
        run.until(lambda: gauges(run)["checkweigh_gpu_memory_free_share"] == 0.125, 10)
