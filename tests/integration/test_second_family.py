"""Gemma 3 270M for real. Its terms have to be accepted first: CHECKWEIGH_GEMMA=1 downloads it (240 MB)."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from checkweigh.engines.spec import EngineSpec
from checkweigh.records.evalset import Message, Text
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import Resolved, verify

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    os.environ.get("CHECKWEIGH_GEMMA") != "1",
    reason="CHECKWEIGH_GEMMA=1 accepts the Gemma terms and runs this",
)


@pytest.fixture(scope="module")
def gemma() -> Resolved:
    return verify(ROOT / "manifests" / "gemma3-270m.yaml")


@pytest.fixture(scope="module")
def backend(gemma: Resolved) -> TransformersBackend:
    return TransformersBackend(
        EngineSpec(
            manifest=gemma.manifest, model_dir=gemma.model_dir, tokenizer_dir=gemma.tokenizer_dir,
            chat_template=gemma.chat_template,
        )
    )  # fmt: skip


def test_four_wheels_are_the_file_that_was_published(gemma: Resolved) -> None:
    assert gemma.pins.source == gemma.manifest.model.digest
    assert len(gemma.pins.parts) == 3


def test_its_probes_begin_with_one_beginning_of_text(gemma: Resolved, backend: TransformersBackend) -> None:
    assert all(ids.count(backend.loaded.prefix_id) == 1 for ids in gemma.pins.probes)


def test_prose_is_scored_as_transformers_scores_it(gemma: Resolved, backend: TransformersBackend) -> None:
    prose = [item for item in load_evalset(ROOT / "evalsets" / "prose").items if isinstance(item, Text)][:4]
    results = backend.score(
        [ScoreRequest(id=item.id, messages=None, continuations=(item.text,)) for item in prose]
    )
    model = AutoModelForCausalLM.from_pretrained(gemma.model_dir, dtype=torch.bfloat16).eval()
    nats = size = 0.0
    for item, result in zip(prose, results, strict=True):
        assert isinstance(result, ScoreResult)
        found = -float(result.continuations[0].logprobs.sum())
        ids = torch.tensor([[*result.prompt_ids, *result.continuations[0].token_ids]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
        wanted = -float(logprobs.gather(1, ids[0, 1:, None]).sum())
        assert found == pytest.approx(wanted, rel=0.01)  # bf16, in another batch
        nats, size = nats + found, size + len(item.text.encode())
    assert 0.5 < nats / math.log(2) / size < 1.5, "bits a byte of English prose"


def test_it_knows_a_capital(backend: TransformersBackend) -> None:
    question = Message(role="user", content="What is the capital of France?")
    (reply,) = backend.generate([GenerateRequest(id="x", messages=(question,))], sent=time.monotonic())
    assert isinstance(reply, GenerateResult)
    assert "Paris" in reply.text
