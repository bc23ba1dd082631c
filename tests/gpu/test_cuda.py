"""What only an NVIDIA GPU can show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.conftest import write_model, write_tokenizer

torch = pytest.importorskip("torch")

from tests.unit.engines.conftest import make_spec, user

from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
ASKED = [GenerateRequest(id=str(i), messages=user(f"one two three {i}")) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tiny")
    write_model(found, write_tokenizer(found))
    return found


def backend_of(folder: Path, device: str, continuous: bool) -> TransformersBackend:
    engine = {"device": device, "continuous": continuous, "max_batch": 16}
    return TransformersBackend(make_spec(folder, "transformers", engine=engine, sampling={"max_tokens": 20}))


def texts(backend: TransformersBackend) -> list[str]:
    found = backend.generate(ASKED, sent=time.monotonic())
    assert all(isinstance(one, GenerateResult) for one in found)
    return [one.text for one in found if isinstance(one, GenerateResult)]


def test_pages_on_a_gpu_reply_as_a_static_batch_does(folder: Path) -> None:
    """float32, so that forks are ties: one in forty is allowed."""
    static, paged = (texts(backend_of(folder, "cuda", continuous)) for continuous in (False, True))
    assert sum(one != other for one, other in zip(static, paged, strict=True)) <= 1


def test_scores_on_a_gpu_are_those_of_the_cpu(folder: Path) -> None:
    request = ScoreRequest(id="x", messages=None, continuations=("the quick brown fox",))
    (cpu,), (cuda,) = (backend_of(folder, device, False).score([request]) for device in ("cpu", "cuda"))
    assert isinstance(cpu, ScoreResult)
    assert isinstance(cuda, ScoreResult)
    assert cuda.continuations[0].logprobs == pytest.approx(cpu.continuations[0].logprobs, abs=1e-2)


def test_memory_of_the_device_is_reported(folder: Path) -> None:
    backend = backend_of(folder, "cuda", False)
    assert backend.resources(reset_peak=False).resident > backend.identity.vocabulary_size
    assert backend.identity.device == "cuda"
