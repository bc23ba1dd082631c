"""vLLM on an NVIDIA GPU. benchmarks/gpu/run.sh makes its environment.

``CHECKWEIGH_GPU_LOCK`` names the lock of an installed vllm, or ``CHECKWEIGH_GPU_PYTHON`` an interpreter that has one;
without either the tests are skipped, visibly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from checkweigh.engines.protocol import GenerateRequest, GenerateResult
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.measure.served_arm import ServedArm, check_identity
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest
from checkweigh.sources.engine_environment import packages_of
from checkweigh.sources.pin import verify
from checkweigh.usecases.gate.arms.open_engine import engine_spec

LOCK = os.environ.get("CHECKWEIGH_GPU_LOCK")
PYTHON = os.environ.get("CHECKWEIGH_GPU_PYTHON")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
    pytest.mark.skipif(
        not (LOCK or PYTHON), reason="neither CHECKWEIGH_GPU_LOCK nor CHECKWEIGH_GPU_PYTHON is set"
    ),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    where = (
        {"interpreter": str(Path(PYTHON).absolute())} if PYTHON else {"lock": str(Path(LOCK or "").resolve())}
    )
    spec: EngineSpec = engine_spec(verify(ROOT / "manifests" / "smollm2-135m.yaml"))
    document = spec.manifest.model_dump(mode="json")
    document["engine"] |= {
        "kind": "vllm", "device": "cuda", "environment": where, "args": {"enforce_eager": True},
        "env": {"VLLM_USE_FLASHINFER_SAMPLER": "0"},
    }  # fmt: skip
    manifest = Manifest.model_validate_json(json.dumps(document))
    found = packages_of(ROOT / "manifest.yaml", manifest.engine)
    assert found is not None
    manifest = manifest.model_copy(
        update={"engine": manifest.engine.model_copy(update={"version": found.version})}
    )
    log = tmp_path_factory.mktemp("vllm") / "log"
    arm = replace(spec, manifest=manifest, lock=found.lock, python=found.python)
    with VllmEngine(arm, log=log) as running:
        yield running


def test_it_serves_what_is_pinned_on_the_device(engine: VllmEngine) -> None:
    renderer = engine._batches.renderer
    check_identity(
        ServedArm(engine.spec.manifest, engine, renderer.render, renderer.encode, renderer.prefix_id)
    )
    assert engine.identity.device == "cuda"
    question = (Message(role="user", content="What is the capital of France?"),)
    (reply,) = engine.generate([GenerateRequest(id="x", messages=question)])
    assert isinstance(reply, GenerateResult)
    assert reply.text == "The capital of France is Paris."


def test_memory_and_use_of_the_device_are_reported(engine: VllmEngine) -> None:
    found = engine.resources()
    assert found.gpu is not None
    assert found.gpu > 1 << 30
    assert found.utilization is not None
    assert 0 <= found.utilization <= 1
