"""From a manifest to the start of a vLLM server, the same for the gate and for the guard.

1. ``preflight``: is the environment there, can it do what is set, and has the model the tensors of its architecture?
2. ``plan_server``: a free port, a random key, the command and its environment, in a container where the manifest
   names an image.
3. The caller starts the plan behind the keeper: the gate in ``server_process``, the guard in its ``engine_process``.
4. Once the server is healthy, ``server_identity.identify`` compares what it reports with the manifest.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from checkweigh.engines.http.client import Client, Endpoint
from checkweigh.engines.processes import container
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.tensor_check import require_tensors
from checkweigh.engines.vllm.command import command, unable, variables
from checkweigh.engines.vllm.server_identity import identify
from checkweigh.engines.worker.process import PASSED
from checkweigh.envs.capabilities import probe_capabilities
from checkweigh.envs.locations import installed_interpreter
from checkweigh.errors import BadDocument
from checkweigh.sources.engine_lock import read_engine_lock


async def unchecked(endpoint: Endpoint, log: str) -> None:
    """Nothing is asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """How one run of an engine's process is started, and where it then answers.

    ``environment`` is all that the process sees of the environment. ``cleanup`` is a command that runs after its end,
    because a container outlives its client; ``container`` is then its name and ``argv`` the client's command. ``check``
    is awaited once the endpoint is healthy, with all that was logged. It raises PinMismatch for what is not as pinned.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    endpoint: Endpoint
    log: Path
    check: Callable[[Endpoint, str], Awaitable[None]] = unchecked
    cleanup: tuple[str, ...] = ()
    container: str | None = None


def preflight(spec: EngineSpec) -> Path:
    """The interpreter that will serve.

    BadInput, before anything starts: there is none, it cannot do a setting, or a tensor is missing or unexpected.
    """
    manifest = spec.manifest
    if spec.image is not None:
        container.require_image(spec.image)
        require_tensors(spec, Path("python3"))
        return Path("python3")
    if spec.python is not None:
        python = spec.python
        special = manifest.quantization.method != "none" or manifest.engine.speculative is not None
        abilities = probe_capabilities(python, str(python)) if special else None
    else:
        assert spec.lock is not None
        python, abilities = installed_interpreter(read_engine_lock(spec.lock), spec.lock)
    if abilities is not None and (problems := unable(manifest, abilities)):
        raise BadDocument(problems)
    require_tensors(spec, python)
    return python


def plan_server(spec: EngineSpec, python: Path, *, log: Path, template: Path) -> LaunchPlan:
    """The plan of one start, with a port and a key of its own. ``python``: from ``preflight``.

    Writes the pinned chat template to ``template``; the server reads it there, so it must outlive the start.
    """
    template.parent.mkdir(parents=True, exist_ok=True)
    template.write_text(spec.chat_template, encoding="utf-8")
    port, key = free_port(), new_key()
    argv, passed = command(spec, python, port, template), variables(spec.manifest, key)
    name: str | None = None
    cleanup: list[str] = []
    if spec.image is not None:
        name = f"checkweigh-{secrets.token_hex(8)}"
        argv, cleanup = container.around(spec, argv, passed, name, template), container.ending(name)

    async def check(endpoint: Endpoint, text: str) -> None:
        async with Client(endpoint) as client:
            await identify(client, spec, text)

    return LaunchPlan(
        argv=tuple(argv), environment=environment(passed), cleanup=tuple(cleanup), container=name, log=log,
        endpoint=loopback_endpoint(port, spec.manifest.name, key), check=check,
    )  # fmt: skip


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_key() -> str:
    """A random API key, for one start of one server."""
    return secrets.token_urlsafe(32)


def loopback_endpoint(port: int, model: str, key: str) -> Endpoint:
    """Where a server of this host that listens on ``port`` serves ``model``."""
    return Endpoint(url=f"http://127.0.0.1:{port}/v1", model=model, key=key)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What the server sees: an allow-list of ours, and ``extra``. No token or key of the parent reaches it."""
    return {name: os.environ[name] for name in PASSED if name in os.environ} | dict(extra)
