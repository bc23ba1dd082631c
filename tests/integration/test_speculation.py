"""Speculation on the real small model in float32: the model's own tokens, or a fork where two are tied."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkweigh.engines.hf import generate, speculative
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.hf.generate import GrowingReply
from checkweigh.engines.hf.speculative import Speculator
from checkweigh.engines.spec import EngineSpec
from checkweigh.records.evalset import Generation
from checkweigh.records.manifest import Draft, DraftModel, PromptLookup, Sampling
from checkweigh.sources.evalsets.load_evalset import load_evalset

ROOT = Path(__file__).resolve().parents[2]
TIED = 1e-3  # logits
DRAFT = Draft(method="draft", model=DraftModel(source="path:itself"), num_tokens=5)
LOOKUP = PromptLookup(method="prompt_lookup", num_tokens=10)


@pytest.fixture(scope="module")
def backend(smollm2: EngineSpec) -> TransformersBackend:
    """The baseline in float32, drafted for by itself."""
    manifest = smollm2.manifest
    engine = manifest.engine.model_copy(update={"dtype": "float32", "speculative": DRAFT})
    limits = manifest.limits.model_copy(update={"memory_headroom": 0.0})
    pinned = manifest.model_copy(update={"engine": engine, "limits": limits})
    return TransformersBackend(replace(smollm2, manifest=pinned, draft_dir=smollm2.model_dir))


@pytest.fixture(scope="module")
def prompts(backend: TransformersBackend) -> list[tuple[int, ...]]:
    items = load_evalset(ROOT / "evalsets" / "answers").items
    picked = [item for item in items[:: len(items) // 8] if isinstance(item, Generation)]
    return backend.render([item.messages for item in picked])


def replies(
    prompts: Sequence[tuple[int, ...]], complete: Callable[[list[GrowingReply]], None]
) -> list[GrowingReply]:
    """One by one, up to 32 tokens each."""
    found = [GrowingReply(id=str(i), prompt=p, room=32, exact=False) for i, p in enumerate(prompts)]
    with torch.inference_mode():
        for reply in found:
            complete([reply])
    return found


def plain(backend: TransformersBackend, prompts: Sequence[tuple[int, ...]]) -> list[GrowingReply]:
    sampling = Sampling()
    return replies(prompts, lambda part: generate.generate(backend.loaded, part, sampling, time.monotonic()))


def speculated(
    backend: TransformersBackend, speculator: Speculator, prompts: Sequence[tuple[int, ...]]
) -> list[GrowingReply]:
    return replies(
        prompts,
        lambda part: speculative.generate(backend.loaded, speculator, part, (), time.monotonic()),
    )


def gap_at_fork(backend: TransformersBackend, one: GrowingReply, other: GrowingReply) -> float | None:
    """Logits between the two likeliest tokens where two replies fork; None when they are the same."""
    pairs = zip([*one.tokens, None], [*other.tokens, None], strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        return None
    with torch.inference_mode():
        logits = backend.loaded.model(torch.tensor([[*one.prompt, *one.tokens[:at]]])).logits[0, -1]
    first, second = logits.float().topk(2).values.tolist()
    return float(first - second)


def test_prompt_lookup_forks_only_where_tokens_are_tied(
    backend: TransformersBackend, prompts: list[tuple[int, ...]]
) -> None:
    wanted = plain(backend, prompts)
    found = speculated(backend, Speculator(setting=LOOKUP), prompts)
    gaps = [gap_at_fork(backend, one, other) for one, other in zip(wanted, found, strict=True)]
    assert all(gap is None or gap < TIED for gap in gaps), gaps
    assert gaps.count(None) >= len(gaps) - 1
    assert sum(reply.speculated.accepted for reply in found if reply.speculated) > 0


def test_a_model_that_drafts_for_itself_is_accepted(
    backend: TransformersBackend, prompts: list[tuple[int, ...]]
) -> None:
    assert backend.speculator is not None
    wanted = plain(backend, prompts[:3])
    found = speculated(backend, backend.speculator, prompts[:3])
    assert [(r.tokens, r.finish) for r in found] == [(r.tokens, r.finish) for r in wanted]
    for reply in found:
        counts = reply.speculated
        assert counts is not None
        assert 0 <= counts.drafted - counts.accepted <= DRAFT.num_tokens, "all but what stood after the end"
        assert counts.forwards <= len(reply.tokens) // 6 + 1


def test_a_draft_of_random_weights_changes_no_token(
    backend: TransformersBackend, prompts: list[tuple[int, ...]]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=backend.identity.vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config = speculative.drafting_config(DRAFT)
    found = speculated(backend, Speculator(setting=DRAFT, model=model), prompts[:2])
    wanted = plain(backend, prompts[:2])
    assert [(r.tokens, r.finish) for r in found] == [(r.tokens, r.finish) for r in wanted]
    assert all(r.speculated and r.speculated.drafted > r.speculated.accepted for r in found)
