"""Choose and make the engine of a spec: a vLLM server, an attached endpoint, or a worker process."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from checkweigh.engines.protocol import Engine
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.engines.tensor_check import require_tensors
from checkweigh.engines.worker.engine import WorkerEngine
from checkweigh.errors import BadInput
from checkweigh.records.manifest import SERVER_KINDS

VLLM_START_S = 1200.0  # a large model loads and compiles for minutes


def check_engine(spec: EngineSpec) -> None:
    """BadInput where it is known before anything starts that the engine of ``spec`` cannot.

    Of a model that this host or an image of its own serves, every tensor is looked for by name.
    """
    if spec.manifest.engine.kind in SERVER_KINDS and importlib.util.find_spec("aiohttp") is None:
        raise BadInput(
            f"engine {spec.manifest.engine.kind}: aiohttp is missing: pip install 'checkweigh[serving]'"
        )
    if spec.manifest.engine.kind == "vllm":
        from checkweigh.engines.vllm.server_launch import preflight

        preflight(spec)
    if spec.manifest.engine.kind == "transformers":
        require_tensors(spec, Path(sys.executable))
    endpoint = spec.manifest.engine.endpoint
    if endpoint is not None and endpoint.key_env is not None and not os.environ.get(endpoint.key_env):
        raise BadInput(f"{spec.manifest.name}: expected a key in the environment variable {endpoint.key_env}")


def open_engine(spec: EngineSpec, *, log: Path, timeouts: Timeouts | None = None) -> Engine:
    """The engine of ``spec``, not yet started: its own process, or an endpoint of another. ``log``: its stderr."""
    if spec.manifest.engine.kind == "vllm":
        from checkweigh.engines.vllm.engine import VllmEngine

        return VllmEngine(spec, log=log, timeouts=timeouts or Timeouts(start=VLLM_START_S))
    if spec.manifest.engine.kind == "openai":
        from checkweigh.engines.attached import AttachedEngine

        return AttachedEngine(spec, timeouts=timeouts or Timeouts())
    return WorkerEngine(spec, log=log, timeouts=timeouts or Timeouts())
