"""The transformers backend on a tiny random model in float32, against transformers' own computation."""

from __future__ import annotations

import json
import math
import mmap
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.unit.engines.conftest import TEMPLATE, make_spec, user
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from checkweigh.engines.hf import (
    generate,
    load_model,
    shared_prefix,
)
from checkweigh.engines.hf import (
    score as hf_score,
)
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import (
    Continuation,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.errors import BadInput, EngineError
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Sampling
from checkweigh.sources.model.render import Renderer

CLOSE = 1e-4
TEXTS = ["the quick brown fox", "a letter to the river and then something much longer than that", "x"]
QUESTIONS = ["what is the capital of France", "red or blue, and why", "one"]
CHOICES = (" the lazy dog", "blue", " one two three four five six", "x")


@pytest.fixture(scope="module")
def backend(tiny_dir: Path) -> TransformersBackend:
    return TransformersBackend(make_spec(tiny_dir, "transformers", sampling={"max_tokens": 20}))


@pytest.fixture(scope="module")
def reference(tiny_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()


def by_hand(reference: Any, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """(T,) log-probabilities: one row, no cache, no padding, no sharing."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        logprobs = reference(ids).logits[0].double().log_softmax(-1)
    at = len(prompt) - 1
    return np.array([logprobs[at + i, token].item() for i, token in enumerate(tokens)])


def scored(results: Sequence[ScoreResult | ItemFailure]) -> list[ScoreResult]:
    assert all(isinstance(r, ScoreResult) for r in results)
    return [r for r in results if isinstance(r, ScoreResult)]


SYSTEM = Message(role="system", content="the quick river runs")


def choices() -> list[ScoreRequest]:
    return [ScoreRequest(id=q, messages=(SYSTEM, *user(q)), continuations=CHOICES) for q in QUESTIONS]


def check(results: Sequence[ScoreResult], reference: Any) -> None:
    for result in results:
        for one in result.continuations:
            assert one.logprobs.dtype == np.float32
            assert one.logprobs == pytest.approx(
                by_hand(reference, result.prompt_ids, one.token_ids), abs=CLOSE
            )


def test_raw_text_starts_after_the_prefix_token(backend: TransformersBackend, reference: Any) -> None:
    results = scored(backend.score([ScoreRequest(id=t, messages=None, continuations=(t,)) for t in TEXTS]))
    assert [r.prompt_ids for r in results] == [(1,)] * 3
    assert [backend.loaded.tokenizer.decode(r.continuations[0].token_ids) for r in results] == TEXTS
    check(results, reference)


def test_shared_context_equals_the_unshared_computation(backend: TransformersBackend, reference: Any) -> None:
    assert backend.loaded.shares
    results = scored(backend.score(choices()))
    check(results, reference)
    assert [len(r.continuations) for r in results] == [4, 4, 4]
    assert (
        shared_prefix.shared_length(backend.loaded, [r.prompt_ids for r in results]) >= shared_prefix.SHORTEST
    )


@pytest.mark.parametrize("max_tokens", [16, 40, 100_000])
@pytest.mark.parametrize("shares", [True, False])
def test_every_split_and_every_way_gives_the_same(
    backend: TransformersBackend, reference: Any, max_tokens: int, shares: bool
) -> None:
    loaded = replace(backend.loaded, shares=shares)
    tasks = []
    for request in [*choices(), ScoreRequest(id="raw", messages=None, continuations=tuple(TEXTS))]:
        task = backend._task(request)
        assert isinstance(task, hf_score.ScoreTask)
        tasks.append(task)
    with torch.inference_mode():
        found = hf_score.score(loaded, tasks, max_tokens)
    for task, continuations in zip(tasks, found, strict=True):
        assert tuple(c.token_ids for c in continuations) == task.continuations
        check([ScoreResult(id="", prompt_ids=task.prompt, continuations=tuple(continuations))], reference)


def test_batch_equals_single(backend: TransformersBackend) -> None:
    together = scored(backend.score(choices()))
    alone = [scored(backend.score([request]))[0] for request in choices()]
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.continuations, other.continuations, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)


def test_top_k(backend: TransformersBackend, reference: Any) -> None:
    plain = ScoreRequest(id="plain", messages=user("x"), continuations=("blue",))
    request = replace(choices()[0], top_k=5)
    one, none = scored(backend.score([request, plain]))
    assert none.continuations[0].top_ids is None
    continuation: Continuation = one.continuations[2]
    assert continuation.top_ids is not None
    assert continuation.top_logprobs is not None
    ids = torch.tensor([[*one.prompt_ids, *continuation.token_ids]])
    with torch.inference_mode():
        best = reference(ids).logits[0, len(one.prompt_ids) - 1 : -1].log_softmax(-1).topk(5)
    assert (continuation.top_ids == best.indices.numpy()).all()
    assert continuation.top_logprobs == pytest.approx(best.values.numpy(), abs=CLOSE)


def test_chunks_of_the_head_meet(backend: TransformersBackend, reference: Any) -> None:
    """More predicted positions than one chunk of the head holds."""
    text = "the quick brown fox jumps over the lazy dog " * 6
    requests = [ScoreRequest(id=str(i), messages=None, continuations=(text[i:],)) for i in range(3)]
    check(scored(backend.score(requests)), reference)


def test_too_long_fails_alone_and_is_not_truncated(backend: TransformersBackend) -> None:
    fits = ScoreRequest(id="fits", messages=None, continuations=("fox",))
    long = ScoreRequest(id="long", messages=user("x"), continuations=("fox", "fox " * 300))
    empty = ScoreRequest(id="empty", messages=user("x"), continuations=("fox", ""))
    results = backend.score([long, fits, empty])
    assert [getattr(r, "reason", None) for r in results] == ["too_long", None, "engine"]
    exact = GenerateRequest(id="exact", messages=user("x"), exact_tokens=250)
    (failure,) = backend.generate([exact], sent=time.monotonic())
    assert isinstance(failure, ItemFailure)
    assert failure.reason == "too_long"


def test_a_sequence_of_exactly_the_limit_is_scored(backend: TransformersBackend) -> None:
    ids = backend._encode("x" * 255)
    assert len(ids) == 255
    assert scored(backend.score([ScoreRequest(id="x", messages=None, continuations=("x" * 255,))]))
    assert isinstance(
        backend.score([ScoreRequest(id="x", messages=None, continuations=("x" * 256,))])[0], ItemFailure
    )


# generation


def greedy(reference: Any, prompt: Sequence[int], room: int, eos: Sequence[int]) -> list[int]:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=room, eos_token_id=list(eos) or None, pad_token_id=2, use_cache=True
    )
    ids = torch.tensor([prompt])
    out = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [t for t in out[0, len(prompt) :].tolist() if t not in eos]


def generated(backend: TransformersBackend, requests: Sequence[GenerateRequest]) -> list[GenerateResult]:
    results = backend.generate(requests, sent=time.monotonic())
    assert all(isinstance(r, GenerateResult) for r in results)
    return [r for r in results if isinstance(r, GenerateResult)]


def asks(count: int) -> list[GenerateRequest]:
    return [
        GenerateRequest(id=str(i), messages=(SYSTEM, *user(f"{QUESTIONS[i % 3]} {i}"))) for i in range(count)
    ]


def test_generation_equals_transformers_own(backend: TransformersBackend, reference: Any) -> None:
    results = generated(backend, asks(7))
    for result in results:
        wanted = greedy(reference, result.prompt_ids, 20, (2, 5))
        assert list(result.token_ids) == wanted
        assert result.text == backend.loaded.tokenizer.decode(wanted, skip_special_tokens=True)
        assert result.finish == ("length" if len(wanted) == 20 else "stop")
        assert len(result.times) == len(wanted)
        assert all(a < b for a, b in pairwise(result.times))


def test_rows_that_end_are_dropped_without_changing_the_others(
    backend: TransformersBackend, reference: Any
) -> None:
    """Every token some row produces soon counts as an end, so rows leave at different steps."""
    prompts = [r.prompt_ids for r in generated(backend, asks(8))]
    eos = {greedy(reference, p, 20, ())[i + 1] for i, p in enumerate(prompts)}
    loaded = replace(backend.loaded, eos=tuple(sorted(eos)))
    replies = [
        generate.GrowingReply(id=str(i), prompt=p, room=20, exact=False) for i, p in enumerate(prompts)
    ]
    with torch.inference_mode():
        generate.generate(loaded, replies, Sampling(max_tokens=20), time.monotonic())
    lengths = {len(reply.tokens) for reply in replies}
    assert len(lengths) > 2
    for reply in replies:
        assert reply.tokens == greedy(reference, reply.prompt, 20, sorted(eos))
        assert reply.finish == ("length" if len(reply.tokens) == 20 else "stop")


def test_exact_tokens_ignore_every_end(backend: TransformersBackend) -> None:
    requests = [replace(request, exact_tokens=33) for request in asks(5)]
    for result in generated(backend, requests):
        assert len(result.token_ids) == len(result.times) == 33
        assert result.finish == "length"


def test_stop_strings_end_the_text(tiny_dir: Path, backend: TransformersBackend) -> None:
    (free,) = generated(backend, asks(1))
    middle = free.text[len(free.text) // 2 :][:3]
    sampling = {"max_tokens": 20, "stop": ["never", middle]}
    stopping = TransformersBackend(make_spec(tiny_dir, "transformers", sampling=sampling))
    (stopped,) = generated(stopping, asks(1))
    assert stopped.finish == "stop"
    assert stopped.text == free.text[: free.text.find(middle)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < len(free.token_ids)
    (exact,) = generated(stopping, [replace(asks(1)[0], exact_tokens=20)])
    assert len(exact.token_ids) == 20


def test_sampling_is_decided_by_the_seed_and_the_item_alone(tiny_dir: Path) -> None:
    def texts(requests: list[GenerateRequest], **sampling: Any) -> list[str]:
        merged = {"max_tokens": 20, "temperature": 1.0, **sampling}
        backend = TransformersBackend(make_spec(tiny_dir, "transformers", sampling=merged))
        return [r.text for r in generated(backend, requests)]

    first = texts(asks(6), seed=1)
    assert first == texts(asks(6), seed=1)
    assert first[::-1] == texts(asks(6)[::-1], seed=1)
    assert first[2:4] == texts(asks(6)[2:4], seed=1)
    assert first != texts(asks(6), seed=2)
    assert texts(asks(6), top_p=1e-6) == texts(asks(6), temperature=0.0)


def test_sampling_follows_the_distribution() -> None:
    """Draws of one token: frequencies within 4 standard errors; outside the nucleus nothing is drawn."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    live = [generate.GrowingReply(id=str(i), prompt=(1,), room=1, exact=True) for i in range(4000)]

    def shares(**sampling: float) -> np.ndarray:
        for reply in live:
            reply.draws = generate._draws(0, reply)
        chosen = generate.choose(logits, Sampling(**sampling), live)
        return np.bincount(chosen, minlength=4) / len(live)

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=4 * math.sqrt(0.25 / 4000))
    assert shares(temperature=1.0, top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    hot = np.sqrt([0.5, 0.3, 0.15, 0.05])
    assert shares(temperature=2.0) == pytest.approx(hot / hot.sum(), abs=0.03)


def test_splitting_a_batch() -> None:
    replies = [generate.GrowingReply(id=str(i), prompt=(1,) * 10, room=10, exact=True) for i in range(10)]
    assert [len(p) for p in generate.split_replies(replies, 4, 10_000)] == [4, 4, 2]
    assert [len(p) for p in generate.split_replies(replies, 16, 60)] == [3, 3, 3, 1]
    assert [len(p) for p in generate.split_replies(replies[:2], 16, 5)] == [1, 1]
    assert generate.split_replies([], 16, 5) == []


def test_logits_that_are_no_numbers_are_item_failures(backend: TransformersBackend) -> None:
    whole = backend.loaded
    backend.loaded = replace(whole, head=lambda hidden: whole.head(hidden) * float("nan"))
    try:
        (reply,) = backend.generate(asks(1), sent=time.monotonic())
        (score,) = scored(backend.score(choices()[:1]))
    finally:
        backend.loaded = whole
    assert isinstance(reply, ItemFailure)
    assert reply.reason == "non_finite"
    assert np.isnan(score.continuations[0].logprobs).all()  # the parent turns it into a failure


# what was loaded


def test_identity_and_rendering(backend: TransformersBackend, tiny_dir: Path) -> None:
    identity = backend.identity
    assert identity.version == transformers.__version__
    assert (identity.kind, identity.dtype, identity.device, identity.quantization) == (
        "transformers", "float32", "cpu", "none",
    )  # fmt: skip
    assert identity.threads == torch.get_num_threads() == 1
    assert identity.eos == (2, 5)
    assert set(identity.packages) == {"torch", "transformers", "tokenizers", "safetensors"}
    renderer = Renderer(tiny_dir, TEMPLATE)
    conversations = [user(q) for q in QUESTIONS]
    assert backend.render(conversations) == [renderer.render(c) for c in conversations]
    with pytest.raises(BadInput, match="the user speaks first"):
        backend.render([(conversations[0][0].model_copy(update={"role": "assistant"}),)])


def test_memory_is_reported(backend: TransformersBackend) -> None:
    found = backend.resources(reset_peak=True)
    assert found.peak >= found.resident > 50 << 20
    with mmap.mmap(-1, 100 << 20) as block:  # new memory: an array might get what this process holds already
        block.write(bytes(100 << 20))
        assert backend.resources(reset_peak=False).peak > found.resident + (50 << 20)


def test_dtype_that_is_not_what_was_asked_for_is_refused(
    backend: TransformersBackend, tiny_dir: Path
) -> None:
    def require(**sections: Any) -> None:
        manifest = make_spec(tiny_dir, "transformers", **sections).manifest
        load_model._require_wanted("tiny", manifest, backend.loaded.model, manifest.quantization)

    require()
    with pytest.raises(BadInput, match="tiny: dtype bfloat16 was asked for, but loaded is: float32"):
        require(engine={"dtype": "bfloat16"})
    with pytest.raises(BadInput, match="quantization bitsandbytes int8 was asked for, but loaded is: none"):
        require(quantization={"method": "bitsandbytes", "bits": 8, "type": "int8"})


@pytest.mark.parametrize(
    ("bits", "kind", "double"), [(8, "int8", False), (4, "nf4", False), (4, "nf4", True), (4, "fp4", False)]
)
def test_quantization_is_counted_in_the_modules(tiny_dir: Path, bits: int, kind: str, double: bool) -> None:
    pytest.importorskip("bitsandbytes")
    spec = make_spec(
        tiny_dir,
        "transformers",
        engine={"dtype": "bfloat16"},
        quantization={"method": "bitsandbytes", "bits": bits, "type": kind, "double": double},
    )
    backend = TransformersBackend(spec)
    assert (
        backend.identity.quantization
        == f"bitsandbytes {kind}: 21/22 linear layers" + double * ", constants too"
    )
    assert "bitsandbytes" in backend.identity.packages
    assert generated(backend, asks(2))
    assert all(
        np.isfinite(c.logprobs).all() for r in scored(backend.score(choices())) for c in r.continuations
    )


def test_refusals(tiny_dir: Path, tmp_path: Path) -> None:
    model = {"source": "path:tiny", "adapters": [{"source": "path:lora"}]}
    with pytest.raises(BadInput, match="LoRA adapters are not built yet"):
        load_model.load(make_spec(tiny_dir, "transformers", model=model))
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="torch finds no CUDA device"):
            load_model.load(make_spec(tiny_dir, "transformers", engine={"device": "cuda"}))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in tiny_dir.iterdir():
        if file.suffix == ".json":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(BadInput, match="expected safetensors files, found none"):
        load_model.load(make_spec(pickled, "transformers"))


def test_a_head_with_its_own_softcap_and_scale_is_found(tiny_dir: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.5,
    }  # fmt: skip
    gemma = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=3.0)).eval()
    granite = GraniteForCausalLM(
        GraniteConfig(**{k: v for k, v in sizes.items() if k != "head_dim"}, logits_scaling=7.0)
    ).eval()
    ids = torch.tensor([[4, 5, 6]])
    for model in (gemma, granite):
        head, _, _ = load_model._head(model, model.base_model, ids.device)
        with torch.inference_mode():
            hidden = model.base_model(ids).last_hidden_state[0]
            assert torch.allclose(head(hidden), model(ids).logits[0], atol=1e-5)
    assert not load_model.shares_context(gemma.config)  # its layers slide
    assert load_model.shares_context(granite.config)


def test_a_head_nobody_knows_is_refused() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 3 + 1
            return out

    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    model = Odd(config).eval()
    with pytest.raises(EngineError, match="in a way this engine does not know"):
        load_model._head(model, model.base_model, torch.device("cpu"))


def test_the_models_own_sampling_is_ignored(tiny_dir: Path) -> None:
    own = json.loads((tiny_dir / "generation_config.json").read_text())
    assert own["do_sample"] is True  # and the greedy tests above pass all the same
