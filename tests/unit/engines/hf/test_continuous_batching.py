"""Continuous batching with paged attention, on the CPU of this machine: slower here, and the same replies."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.family import write_gemma
from tests.unit.engines.conftest import make_spec, user

from checkweigh.engines.hf import continuous_batching
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import GenerateRequest, GenerateResult, ItemFailure
from checkweigh.errors import EngineError

QUESTIONS = (
    "red",
    "what is the capital of France and who wrote the long letter to the river",
    "one two three",
)
ASKED = [GenerateRequest(id=str(i), messages=user(f"{QUESTIONS[i % 3]} {i}")) for i in range(9)]


@pytest.fixture(scope="module", params=["llama", "gemma"])
def folder(request: pytest.FixtureRequest, tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dir if request.param == "llama" else write_gemma(tmp_path_factory.mktemp("gemma"))


def backend_of(folder: Path, continuous: bool, **sampling: Any) -> TransformersBackend:
    engine = {"continuous": continuous, "max_batch": 4}
    return TransformersBackend(
        make_spec(folder, "transformers", engine=engine, sampling={"max_tokens": 20} | sampling)
    )


def replies(backend: TransformersBackend, asked: list[GenerateRequest]) -> list[GenerateResult]:
    found = backend.generate(asked, sent=time.monotonic())
    assert all(isinstance(one, GenerateResult) for one in found)
    return [one for one in found if isinstance(one, GenerateResult)]


def test_replies_are_those_of_a_static_batch(folder: Path) -> None:
    static = replies(backend_of(folder, False), ASKED)
    paged = replies(backend_of(folder, True), ASKED)
    for one, other in zip(static, paged, strict=True):
        assert (one.id, one.token_ids, one.text, one.finish) == (
            other.id,
            other.token_ids,
            other.text,
            other.finish,
        )
        assert len(other.times) == len(other.token_ids)
        assert all(a <= b for a, b in pairwise(other.times))
        assert not other.times or 0 < other.times[0] < other.times[-1] < 60
    assert {one.finish for one in static} == {"stop", "length"} or folder.name.startswith("gemma")


def test_stop_strings_and_exact_lengths(tiny_dir: Path) -> None:
    (free,) = replies(backend_of(tiny_dir, False), ASKED[:1])
    middle = free.text[len(free.text) // 2 :][:3]
    static, paged = (backend_of(tiny_dir, how, stop=[middle]) for how in (False, True))
    assert (
        replies(static, ASKED)[0].text == replies(paged, ASKED)[0].text == free.text[: free.text.find(middle)]
    )
    exact = [replace(request, exact_tokens=33) for request in ASKED[:3]]
    assert [len(one.token_ids) for one in replies(paged, exact)] == [33, 33, 33]


def test_logits_that_are_no_numbers_are_item_failures(tiny_dir: Path) -> None:
    backend = backend_of(tiny_dir, True)
    with torch.no_grad():
        backend.loaded.model.lm_head.weight.fill_(float("nan"))
    (found,) = backend.generate(ASKED[:1], sent=time.monotonic())
    assert isinstance(found, ItemFailure)
    assert found.reason == "non_finite"


def test_a_request_that_does_not_fit_is_the_engines_failure(tiny_dir: Path) -> None:
    """One page, and a prompt that needs more: nothing may take its place."""
    backend = backend_of(tiny_dir, True)
    reply = backend._new_reply(ASKED[1])
    assert not isinstance(reply, ItemFailure)
    assert len(reply.prompt) > continuous_batching.PAGE
    pages = continuous_batching.pages_for(0, 1, 64)
    with pytest.raises(EngineError), torch.inference_mode():
        continuous_batching.generate(backend.loaded, [reply], (), time.monotonic(), pages)
