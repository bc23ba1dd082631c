"""The transformers backend on a model of another shape: Gemma 3's sliding windows, one key-value head, wide heads,
scaled embeddings, tied head, capped logits and another tokenizer. Nothing may be SmolLM2-shaped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.family import SENTENCES, write_gemma
from tests.unit.engines.conftest import make_spec, user
from transformers import AutoModelForCausalLM, GenerationConfig

from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult

CLOSE = 1e-4
LONG = " ".join(SENTENCES)  # several windows of 8 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def backend(folder: Path) -> TransformersBackend:
    return TransformersBackend(make_spec(folder, "transformers", sampling={"max_tokens": 20}))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def by_hand(reference: Any, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        logprobs = reference(torch.tensor([[*prompt, *tokens]])).logits[0].double().log_softmax(-1)
    at = len(prompt) - 1
    return np.array([logprobs[at + i, token].item() for i, token in enumerate(tokens)])


def test_its_head_is_capped_and_its_context_is_not_shared(backend: TransformersBackend) -> None:
    assert backend.loaded.softcap == 30.0
    assert not backend.loaded.shares, "a sliding window is not what the shared mask says"


def test_scores_beyond_its_window(backend: TransformersBackend, reference: Any) -> None:
    requests = [ScoreRequest(id=str(i), messages=None, continuations=(LONG[i:],)) for i in (0, 9, 70)]
    requests += [
        ScoreRequest(id=q, messages=user(q), continuations=(" the lazy dog", "blue")) for q in SENTENCES
    ]
    for result in backend.score(requests):
        assert isinstance(result, ScoreResult)
        for one in result.continuations:
            assert one.logprobs == pytest.approx(
                by_hand(reference, result.prompt_ids, one.token_ids), abs=CLOSE
            )


def test_replies_beyond_its_window(backend: TransformersBackend, reference: Any) -> None:
    """Prompts of unlike length, padded on the left of a cache that keeps the last 8 tokens only in most layers."""
    asked = [GenerateRequest(id=str(i), messages=user(q)) for i, q in enumerate(("red", *SENTENCES))]
    config = GenerationConfig(
        do_sample=False, max_new_tokens=20, eos_token_id=[1], pad_token_id=0, use_cache=True
    )
    lengths = set()
    for result in backend.generate(asked, sent=time.monotonic()):
        assert isinstance(result, GenerateResult)
        ids = torch.tensor([result.prompt_ids])
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert list(result.token_ids) == [t for t in out[0, len(result.prompt_ids) :].tolist() if t != 1]
        lengths.add(len(result.prompt_ids))
    assert len(lengths) > 2
    assert max(lengths) > 16
