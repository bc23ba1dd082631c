"""The real engine on the real small model: one process for all questions of this file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from checkweigh.engines.launch import open_engine
from checkweigh.engines.protocol import (
    Engine,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.spec import EngineSpec
from checkweigh.records.evalset import Message
from checkweigh.sources.model.render import Renderer

PROSE = (
    "The river rose slowly through the night, and by morning the lower fields were under water. Nobody in "
    "the village had seen it so high, and the old people said that it would be a week before the road was "
    "open again."
)


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


@pytest.fixture(scope="module")
def engine(smollm2: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(smollm2, log=tmp_path_factory.mktemp("engine") / "engine.log") as running:
        yield running


def test_it_is_what_the_manifest_says(engine: Engine, smollm2: EngineSpec) -> None:
    manifest, identity = smollm2.manifest, engine.identity
    assert identity.version == manifest.engine.version
    assert identity.dtype == manifest.engine.dtype
    assert identity.threads == manifest.engine.threads
    assert identity.quantization == "none"
    assert identity.vocabulary_size == 49152
    assert 2 in identity.eos


def test_it_renders_the_pinned_prompt(engine: Engine, smollm2: EngineSpec) -> None:
    system = Message(role="system", content="Hm.")
    conversations = [user("What is the capital of France?"), (system, *user("é 東 <b>"))]
    renderer = Renderer(smollm2.tokenizer_dir, smollm2.chat_template)
    assert engine.render(conversations) == [renderer.render(c) for c in conversations]


def test_it_knows_the_capital_of_france(engine: Engine) -> None:
    asked = [
        GenerateRequest(id="france", messages=user("What is the capital of France?")),
        GenerateRequest(id="count", messages=user("Count from one to ten."), exact_tokens=6),
    ]
    france, count = engine.generate(asked)
    assert isinstance(france, GenerateResult)
    assert isinstance(count, GenerateResult)
    assert (france.text, france.finish) == ("The capital of France is Paris.", "stop")
    assert len(count.token_ids) == len(count.times) == 6
    assert 0 < france.times[0] < france.times[-1]
    again = engine.generate(asked)[0]
    assert isinstance(again, GenerateResult)
    assert again.token_ids == france.token_ids


def test_prose_is_likelier_than_the_same_words_backwards(engine: Engine) -> None:
    backwards = " ".join(reversed(PROSE.split()))
    texts = {"prose": PROSE, "backwards": backwards}
    requests = [ScoreRequest(id=k, messages=None, continuations=(t,), top_k=1) for k, t in texts.items()]
    perplexity: dict[str, float] = {}
    for result in engine.score(requests):
        assert isinstance(result, ScoreResult)
        scored = result.continuations[0]
        perplexity[result.id] = float(np.exp(-scored.logprobs.mean()))
        assert scored.top_logprobs is not None
        assert (scored.top_logprobs[:, 0] >= scored.logprobs).all()
    assert 5 < perplexity["prose"] < 100  # a short text after an unusual first token
    assert perplexity["backwards"] > 4 * perplexity["prose"]


def test_choices_prefer_what_is_true(engine: Engine) -> None:
    question = user("What is the capital of France?")
    choices = ("The capital of France is Paris.", "The capital of France is Berlin.", "Seven green potatoes.")
    together, filler = engine.score(
        [
            ScoreRequest(id="france", messages=question, continuations=choices),
            ScoreRequest(id="filler", messages=user("How many legs has a spider?"), continuations=("8",)),
        ]
    )
    assert isinstance(together, ScoreResult)
    assert isinstance(filler, ScoreResult)
    means = [float(c.logprobs.mean()) for c in together.continuations]
    assert means == sorted(means, reverse=True)
    (alone,) = engine.score([ScoreRequest(id="alone", messages=question, continuations=choices[:1])])
    assert isinstance(alone, ScoreResult)
    single = float(alone.continuations[0].logprobs.mean())
    assert means[0] == pytest.approx(single, abs=0.1)  # bfloat16


def test_too_long_is_a_failure_and_memory_is_seen(engine: Engine, smollm2: EngineSpec) -> None:
    long = "river " * (smollm2.manifest.limits.max_sequence + 1)
    (failure,) = engine.score([ScoreRequest(id="long", messages=None, continuations=(long,))])
    assert isinstance(failure, ItemFailure)
    assert failure.reason == "too_long"
    memory = engine.resources(reset_peak=True)
    assert 200 << 20 < memory.resident <= memory.peak < 8 << 30
    assert engine.resources().peak <= memory.peak
