"""Texts longer than the context, against a computation that knows no windows but one token's context at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.family import write_gemma
from tests.unit.engines.conftest import make_spec, user
from transformers import AutoModelForCausalLM

from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.hf.score import ScoreTask
from checkweigh.engines.hf.windows import cut_windows
from checkweigh.engines.protocol import Divergence, ItemFailure, ScoreRequest, ScoreResult

CLOSE = 1e-4
LIMIT = 64
TEXT = (
    "the quick brown fox jumps over the lazy dog and runs into the quiet wood, one two three four five. " * 4
)
PREFIX = {"llama": 1, "gemma": 2}


@pytest.fixture(scope="module", params=list(PREFIX))
def family(
    request: pytest.FixtureRequest, tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    folder = tiny_dir if request.param == "llama" else write_gemma(tmp_path_factory.mktemp("gemma"))
    return folder, PREFIX[request.param]


def backend_of(folder: Path, stride: int | None) -> TransformersBackend:
    return TransformersBackend(
        make_spec(
            folder,
            "transformers",
            engine={"stride": stride},
            limits={"max_sequence": LIMIT},
            sampling={"max_tokens": 20},
        )
    )


def one_by_one(reference: Any, prefix: int, ids: Sequence[int], stride: int) -> np.ndarray:
    """(T,) log-probabilities, each token's context looked up by the rule, in a forward of its own."""
    found = []
    with torch.inference_mode():
        for t in range(len(ids)):
            start = 0
            while t >= start + LIMIT - 1:  # the first window that holds it
                start += stride
            logits = reference(torch.tensor([[prefix, *ids[start:t]]])).logits[0, -1]
            found.append(logits.double().log_softmax(-1)[ids[t]].item())
    return np.array(found)


def request(text: str, name: str = "long") -> ScoreRequest:
    return ScoreRequest(id=name, messages=None, continuations=(text,))


@pytest.mark.parametrize("stride", [1, 20, LIMIT - 1])
def test_every_token_is_scored_once_in_its_own_context(family: tuple[Path, int], stride: int) -> None:
    folder, prefix = family
    backend = backend_of(folder, stride)
    (result, short) = backend.score([request(TEXT), request("red blue", "short")])
    assert isinstance(result, ScoreResult)
    (whole,) = result.continuations
    assert whole.token_ids == backend._encode(TEXT)
    assert len(whole.token_ids) > 2 * LIMIT
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = one_by_one(reference, prefix, whole.token_ids, stride)
    assert whole.logprobs == pytest.approx(wanted, abs=CLOSE)
    assert isinstance(short, ScoreResult)
    assert short.continuations[0].logprobs == pytest.approx(
        one_by_one(reference, prefix, short.continuations[0].token_ids, stride), abs=CLOSE
    )


def test_top_k_is_joined_as_well(tiny_dir: Path) -> None:
    backend = backend_of(tiny_dir, 20)
    (found,) = backend.score([ScoreRequest(id="x", messages=None, continuations=(TEXT,), top_k=3)])
    assert isinstance(found, ScoreResult)
    (whole,) = found.continuations
    assert whole.top_ids is not None
    assert whole.top_logprobs is not None
    assert whole.top_ids.shape == whole.top_logprobs.shape == (len(whole.token_ids), 3)
    likeliest = whole.top_ids[:, 0] == np.array(whole.token_ids)
    assert whole.logprobs[likeliest] == pytest.approx(whole.top_logprobs[likeliest, 0])


def test_without_a_stride_it_fails_and_is_never_cut(tiny_dir: Path) -> None:
    (found,) = backend_of(tiny_dir, None).score([request(TEXT)])
    assert isinstance(found, ItemFailure)
    assert found.reason == "too_long"


def test_a_conversation_is_never_cut(tiny_dir: Path) -> None:
    asked = ScoreRequest(id="x", messages=user("one"), continuations=("fox", TEXT))
    (found,) = backend_of(tiny_dir, 20).score([asked])
    assert isinstance(found, ItemFailure)
    assert found.reason == "too_long"


def test_divergence_of_a_long_text_is_that_of_its_windows(tiny_dir: Path, tmp_path: Path) -> None:
    backend = backend_of(tiny_dir, 20)
    folders = [tmp_path / name for name in ("theirs", "mine")]
    for folder in folders:
        folder.mkdir()
        backend.states([request(TEXT)], folder)
    (found,) = backend.divergence([request(TEXT)], *folders)
    assert isinstance(found, Divergence)
    assert len(found.kl) == len(backend._encode(TEXT))
    assert found.kl.max() == 0
    from safetensors.torch import load_file

    (file,) = [path for path in folders[0].iterdir() if "head" not in path.name]
    hidden = load_file(file)["hidden"]
    (scored,) = backend.score([request(TEXT)])
    assert isinstance(scored, ScoreResult)
    with torch.inference_mode():
        table = backend.loaded.head(hidden).log_softmax(-1)
    ids = torch.tensor(found.token_ids)
    assert table.gather(1, ids[:, None])[:, 0].numpy() == pytest.approx(
        scored.continuations[0].logprobs, abs=CLOSE
    )


def test_windows_cover_every_token_exactly_once() -> None:
    for size in (15, 16, 17, 40, 41):
        for stride in (1, 7, 15):
            cut = cut_windows(ScoreTask((0,), (tuple(range(size)),)), 16, stride)
            kept = [token for window in cut for token in window.task.continuations[0][window.seen :]]
            assert kept == list(range(size))
            assert all(len(window.task.continuations[0]) <= 15 for window in cut)
            assert all(window.seen == 15 - stride or size < 31 for window in cut[1:])
            assert len(cut) == 1 or size > 15
