"""From a manifest to the plan of an engine's process. The seam to the engines: one function for each kind."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkweigh.engines.http.client import Client, Endpoint
from checkweigh.engines.mock.mock_knobs import Knobs
from checkweigh.engines.mock.serve import command as mock_command
from checkweigh.engines.processes import container
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.vllm.command import command, variables
from checkweigh.engines.vllm.engine import preflight
from checkweigh.engines.vllm.report import mismatches, read_report
from checkweigh.engines.vllm.server_process import environment, free_port
from checkweigh.engines.worker.process import environment as own_environment
from checkweigh.errors import PinMismatch
from checkweigh.guard.supervision.engine_process import Plan


def mock_plan(knobs: Knobs, log: Path) -> Callable[[], Plan]:
    """Plans of the mock engine, each with a port and a key of its own."""

    def plan() -> Plan:
        port, key = free_port(), secrets.token_urlsafe(32)
        return Plan(
            argv=tuple(mock_command(knobs, port=port)),
            env=own_environment(1) | {"CHECKWEIGH_MOCK_KEY": key},
            endpoint=_endpoint(port, knobs.model, key),
            log=log,
        )

    return plan


def vllm_plan(spec: EngineSpec, log: Path) -> Callable[[], Plan]:
    """Plans of a vLLM server; what it then reports of itself is held against the manifest.

    The first plan made raises BadInput or EngineOutOfMemory where it cannot run here.
    """
    template = log.with_suffix(".jinja")

    def plan() -> Plan:
        python = preflight(spec)
        template.parent.mkdir(parents=True, exist_ok=True)
        template.write_text(spec.chat_template, encoding="utf-8")
        port, key = free_port(), secrets.token_urlsafe(32)
        argv, passed = command(spec, python, port, template), variables(spec.manifest, key)
        name: str | None = None
        last: list[str] = []
        if spec.image is not None:
            name = f"checkweigh-{secrets.token_hex(8)}"
            argv, last = container.around(spec, argv, passed, name, template), container.ending(name)
        return Plan(
            argv=tuple(argv),
            last=tuple(last),
            container=name,
            env=environment(passed),
            endpoint=_endpoint(port, spec.manifest.name, key),
            log=log,
            check=check,
        )

    async def check(endpoint: Endpoint, said: str) -> None:
        async with Client(endpoint) as client:
            version: dict[str, Any] = await client.get(f"{endpoint.root}/version")
            models = await client.get(f"{endpoint.url}/models")
            metrics = await client.get_text(f"{endpoint.root}/metrics")
        if problems := mismatches(spec.manifest, read_report(version, models, metrics, said)):
            raise PinMismatch(problems)

    return plan


def _endpoint(port: int, model: str, key: str) -> Endpoint:
    return Endpoint(url=f"http://127.0.0.1:{port}/v1", model=model, key=key)
