"""From a manifest to the plans of an engine's process, a new one for every start. One function for each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import command as mock_command
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.vllm.server_launch import (
    LaunchPlan,
    free_port,
    loopback_endpoint,
    new_key,
    plan_server,
    preflight,
)
from checkweigh.engines.worker.process import environment as worker_environment


def mock_plan(knobs: MockKnobs, log: Path) -> Callable[[], LaunchPlan]:
    """Plans of the mock engine, each with a port and a key of its own."""

    def plan() -> LaunchPlan:
        port, key = free_port(), new_key()
        return LaunchPlan(
            argv=tuple(mock_command(knobs, port=port)),
            environment=worker_environment(1) | {"CHECKWEIGH_MOCK_KEY": key},
            endpoint=loopback_endpoint(port, knobs.model, key),
            log=log,
        )

    return plan


def vllm_plan(spec: EngineSpec, log: Path) -> Callable[[], LaunchPlan]:
    """Plans of a vLLM server, started and compared with the manifest as the gate does it.

    Each call raises BadInput where the server cannot run here. The chat template is written beside ``log``.
    """
    template = log.with_suffix(".jinja")
    return lambda: plan_server(spec, preflight(spec), log=log, template=template)
