"""Speculation on the tiny random model in float32: the same tokens as without, counted forwards, every end kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.conftest import write_model, write_tokenizer
from tests.unit.engines.conftest import make_spec, user

from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import GenerateRequest, GenerateResult, ItemFailure
from checkweigh.errors import BadInput

LOOKUP = {"method": "prompt_lookup", "num_tokens": 4, "max_ngram": 1}
DRAFT = {"method": "draft", "model": {"source": "path:draft"}, "num_tokens": 3}
QUESTIONS = ["red or blue, red or blue, red or", "what is the capital of France", "one two one two one"]


def asks() -> list[GenerateRequest]:
    return [GenerateRequest(id=str(i), messages=user(text)) for i, text in enumerate(QUESTIONS)]


def backend(
    folder: Path, speculative: object = None, draft: Path | None = None, **sections: Any
) -> TransformersBackend:
    engine = {} if speculative is None else {"speculative": speculative}
    spec = make_spec(folder, "transformers", engine=engine, **{"sampling": {"max_tokens": 40}} | sections)
    return TransformersBackend(replace(spec, draft_dir=draft))


def replies(engine: TransformersBackend, requests: Sequence[GenerateRequest]) -> list[GenerateResult]:
    found = engine.generate(requests, sent=time.monotonic())
    assert all(isinstance(result, GenerateResult) for result in found)
    return [result for result in found if isinstance(result, GenerateResult)]


def what(results: Sequence[GenerateResult]) -> list[object]:
    return [(r.prompt_ids, r.token_ids, r.text, r.finish) for r in results]


@pytest.fixture(scope="module")
def plain(tiny_dir: Path) -> TransformersBackend:
    return backend(tiny_dir)


@pytest.fixture(scope="module")
def lookup(tiny_dir: Path) -> TransformersBackend:
    return backend(tiny_dir, LOOKUP)


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same tokens and another size, with random weights of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("draft")
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=write_tokenizer(folder), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_prompt_lookup_gives_the_same_replies_with_fewer_forwards(
    plain: TransformersBackend, lookup: TransformersBackend
) -> None:
    """Replies that repeat themselves are drafted; every end is kept. ``exact`` runs on past the end."""
    for requests in (asks(), [replace(ask, exact_tokens=150) for ask in asks()]):
        wanted, found = replies(plain, requests), replies(lookup, requests)
        assert what(found) == what(wanted)
        for result in found:
            counts = result.speculated
            assert counts is not None
            assert counts.forwards + counts.accepted - len(result.token_ids) in (
                0,
                1,
            )  # 1: the end's own token
            assert len(result.times) == len(result.token_ids)
            assert len(set(result.times)) <= counts.forwards, "tokens of one forward arrive together"
            assert all(a <= b for a, b in pairwise(result.times))
    assert sum(r.speculated.accepted for r in found if r.speculated) > 0
    assert all(r.speculated is None for r in wanted)


def test_a_reply_does_not_depend_on_those_beside_it(lookup: TransformersBackend) -> None:
    together = what(replies(lookup, asks()))
    assert what(replies(lookup, asks()[::-1])) == together[::-1]
    assert what(replies(lookup, asks()[1:2])) == together[1:2]


def test_a_drafting_model_changes_no_token(
    tiny_dir: Path, other_dir: Path, plain: TransformersBackend
) -> None:
    wanted = what(replies(plain, asks()))
    strange = backend(tiny_dir, DRAFT, other_dir)
    for result in replies(strange, [replace(ask, exact_tokens=40) for ask in asks()]):
        counts = result.speculated
        assert counts is not None
        assert counts.drafted >= 3 * (counts.forwards - 3), "as many as pinned, though few are accepted"
    stranger = replies(strange, asks())
    twin = replies(backend(tiny_dir, DRAFT, tiny_dir), asks())
    assert what(stranger) == what(twin) == wanted
    for result in twin:
        counts = result.speculated
        assert counts is not None
        assert counts.drafted > 0
        assert counts.drafted - counts.accepted <= 3, "of its own words only those after the end are refused"
        assert counts.forwards <= len(result.token_ids) // 4 + 2, "three drafts and one of its own a forward"
    assert sum(r.speculated.accepted for r in stranger if r.speculated) < sum(
        r.speculated.accepted for r in twin if r.speculated
    )


def test_stop_strings_end_inside_a_draft(tiny_dir: Path, plain: TransformersBackend) -> None:
    free = replies(plain, asks())[0]
    stop = free.text[len(free.text) // 2 :][:3]
    sampling = {"max_tokens": 40, "stop": ["never", stop]}
    wanted = replies(backend(tiny_dir, sampling=sampling), asks())
    assert wanted[0].finish == "stop"
    assert len(wanted[0].token_ids) < len(free.token_ids)
    for speculative, draft in ((LOOKUP, None), (DRAFT, tiny_dir)):
        found = replies(backend(tiny_dir, speculative, draft, sampling=sampling), asks())
        assert what(found) == what(wanted)


def test_logits_that_are_no_numbers_are_a_failure(tiny_dir: Path) -> None:
    engine = backend(tiny_dir, LOOKUP)
    with torch.no_grad():
        engine.loaded.model.lm_head.weight[0, 0] = float("nan")
    (result,) = engine.generate(asks()[:1], sent=time.monotonic())
    assert isinstance(result, ItemFailure)
    assert result.reason == "non_finite"


def test_a_drafting_model_with_more_tokens_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    write_model(tmp_path, write_tokenizer(tmp_path) + 5)
    with pytest.raises(BadInput, match=r"engine\.speculative\.model: expected at most the model's \d+ ids"):
        backend(tiny_dir, DRAFT, tmp_path)
    with pytest.raises(BadInput, match="the drafting model was not resolved"):
        backend(tiny_dir, DRAFT)


def test_the_drafting_model_is_counted_in_memory(tiny_dir: Path, other_dir: Path) -> None:
    from checkweigh.engines.host_memory import estimate_model, require_room

    manifest = make_spec(tiny_dir, "transformers").manifest
    alone, draft = estimate_model(manifest, tiny_dir), estimate_model(manifest, other_dir)
    both = require_room(manifest, tiny_dir, 1 << 40, other_dir)
    assert both.weights == alone.weights + draft.weights > alone.weights
    assert both.kv_cache == alone.kv_cache + draft.kv_cache
    assert both.total < alone.total + draft.total, "one process has one runtime"
