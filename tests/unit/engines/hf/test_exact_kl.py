"""Divergence through hidden states, against whole tables of logits of two tiny models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.unit.engines.conftest import make_spec
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import Divergence, ItemFailure, ScoreRequest, States
from checkweigh.errors import BadInput

TEXTS = ["the quick brown fox", "a letter to the river and then something much longer than that " * 3, "x"]
BATCH = [ScoreRequest(id=f"t{i}", messages=None, continuations=(t,)) for i, t in enumerate(TEXTS)]


def disturbed(source: Path, target: Path, size: float, seed: int = 1) -> Path:
    """A copy of a model whose weights, the head's included, are a little off."""
    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    model.save_pretrained(target)
    return target


def backend(folder: Path, **engine: Any) -> TransformersBackend:
    return TransformersBackend(make_spec(folder, "transformers", engine=engine))


def diverge(
    first: TransformersBackend, second: TransformersBackend, folder: Path, batches: Any = ((BATCH), (BATCH))
) -> list[Any]:
    """The states of either may have been computed in other batches."""
    folders = folder / "first", folder / "second"
    for engine, target, batch in zip((first, second), folders, batches, strict=True):
        target.mkdir()
        for part in [batch] if isinstance(batch[0], ScoreRequest) else batch:
            assert all(isinstance(w, States) for w in engine.states(part, target))
    assert not list(folder.rglob("*.part"))
    found = second.divergence(BATCH, *folders)
    assert [f.id for f in found] == [r.id for r in BATCH]
    return found


def check_exact(first: Path, second: Path, found: list[Any], prefix: int) -> None:
    models = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (first, second)]
    for result in found:
        assert isinstance(result, Divergence)
        ids = torch.tensor([[prefix, *result.token_ids]])
        with torch.inference_mode():
            p, q = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in models)
        exact = (p.exp() * (p - q)).sum(-1).numpy()
        assert result.kl == pytest.approx(exact, abs=2e-5, rel=2e-3)
        agree = (p.argmax(-1) == q.argmax(-1)).numpy()
        assert np.mean(result.agree == agree) > 0.99
        worst = result.worst[0]
        assert worst.position == int(np.argmax(result.kl))
        assert worst.kl == pytest.approx(float(exact.max()), rel=2e-3)
        assert worst.baseline_p == pytest.approx(float(p[worst.position].max().exp()), abs=1e-4)
        assert worst.candidate_p == pytest.approx(float(q[worst.position].max().exp()), abs=1e-4)


@pytest.mark.parametrize("max_tokens", [16, 4096])
def test_it_is_the_divergence_of_the_whole_tables(tiny_dir: Path, tmp_path: Path, max_tokens: int) -> None:
    other = disturbed(tiny_dir, tmp_path / "other", 0.2)
    first, second = backend(tiny_dir), backend(other, max_batch_tokens=max_tokens)
    found = diverge(first, second, tmp_path, (BATCH, [BATCH[2:], BATCH[:2]]))
    assert min(float(f.kl.mean()) for f in found) > 1e-3, "the models differ, so that something is tested"
    check_exact(tiny_dir, other, found, first.loaded.prefix_id)


def test_each_model_has_its_own_head_with_its_softcap(tiny_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    shutil.copytree(tiny_dir, folder)
    vocabulary = AutoModelForCausalLM.from_pretrained(tiny_dir).config.vocab_size
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, final_logit_softcapping=3.0, sliding_window=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    other = disturbed(folder, tmp_path / "other", 0.3)
    first, second = backend(folder), backend(other)
    assert first.loaded.softcap == 3.0
    found = diverge(first, second, tmp_path)
    check_exact(folder, other, found, first.loaded.prefix_id)


def test_a_model_does_not_diverge_from_itself(tiny_dir: Path, tmp_path: Path) -> None:
    same = backend(tiny_dir)
    for result in diverge(same, same, tmp_path):
        assert not result.kl.any()
        assert result.agree.all()
        assert result.worst == ()


def test_ruined_weights_are_no_divergence_of_zero(tiny_dir: Path, tmp_path: Path) -> None:
    first, second = backend(tiny_dir), backend(tiny_dir)
    with torch.no_grad():
        second.loaded.model.get_output_embeddings().weight[5] = float("nan")
    for result in diverge(first, second, tmp_path):
        assert isinstance(result, Divergence)
        assert not np.isfinite(result.kl).any()


def test_a_text_only_one_arm_can_take_has_no_divergence(tiny_dir: Path, tmp_path: Path) -> None:
    long = ScoreRequest(id="long", messages=None, continuations=(TEXTS[1] * 2,))
    short = TransformersBackend(make_spec(tiny_dir, "transformers", limits={"max_sequence": 64}))
    texts, theirs, mine = [*BATCH[:1], long], tmp_path / "theirs", tmp_path / "mine"
    theirs.mkdir()
    mine.mkdir()
    assert isinstance(short.states(texts, theirs)[1], ItemFailure)
    engine = backend(tiny_dir)
    assert all(isinstance(w, States) for w in engine.states(texts, mine))
    found = engine.divergence(texts, theirs, mine)
    assert isinstance(found[0], Divergence)
    assert isinstance(found[1], ItemFailure)
    assert "no hidden states" in found[1].detail


def test_a_head_of_an_unknown_kind_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    engine = backend(tiny_dir)

    class Strange(torch.nn.Linear):
        pass

    head = engine.loaded.model.get_output_embeddings()
    engine.loaded.model.set_output_embeddings(Strange(head.in_features, head.out_features))
    with pytest.raises(BadInput, match="plain linear head, and this is Strange"):
        engine.states(BATCH, tmp_path)
