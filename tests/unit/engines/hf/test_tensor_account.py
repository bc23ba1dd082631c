"""What is loaded is what the files hold: every tensor, by name, of the model and of the one that drafts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import awkward
from tests.family import write_gemma
from tests.unit.engines.conftest import make_spec
from transformers import AutoModelForCausalLM

from checkweigh.engines.hf import load_model, tensor_account
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import ScoreRequest, ScoreResult
from checkweigh.errors import BadInput
from checkweigh.sources.model.loading_info import listed, loading_problems

DRAFT = {"method": "draft", "model": {"source": "path:draft"}, "num_tokens": 3}
NF4 = {"method": "bitsandbytes", "bits": 4, "type": "nf4"}
QUANTIZED = {"engine": {"dtype": "bfloat16"}, "quantization": NF4}
NORM, UP = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"
REFUSED = {
    "no_head": r"otherwise 1: lm_head\.weight \(expected a tensor, found none\)",
    "no_norm": r"otherwise 1: model\.layers\.1\.input_layernorm\.weight \(expected a tensor",
    "renamed": r"otherwise 2: model\.layers\.1\.self_attn\.q_proj\.weight .*model\.layers\.7\.self_attn",
    "stale_map": r"model\.layers\.9\.mlp\.up_proj\.weight .*found no file that has it",
    "single_and_shards": r"lm_head\.weight .*expected one file that has it",
    "consolidated_beside": r"consolidated\.safetensors and model\.safetensors.*, and \d+ more",
    "gptq_legacy": r"otherwise 105: model\.layers\.0\.mlp\.down_proj\.g_idx .*, and 95 more",
    "fp8_ct": r"down_proj\.weight \(expected a floating-point tensor .*found F8_E4M3\)",
    "lora_dir": r"expected no weights beside model\.safetensors and its shards, found adapter_config\.json",
    "gptq_config": r"expected quantization none, as the manifest says, found gptq in its configuration",
    "gptq_real": r"expected quantization none, as the manifest says, found gptq",
    "bnb_pre": r"expected quantization none, as the manifest says, found bitsandbytes nf4",
}


def scores(folder: Path, **sections: Any) -> np.ndarray:
    backend = TransformersBackend(make_spec(folder, "transformers", **sections))
    request = ScoreRequest(id="a", messages=None, continuations=("the quick brown fox jumps",))
    (result,) = backend.score([request])
    assert isinstance(result, ScoreResult)
    return result.continuations[0].logprobs


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_is_not_its_architectures_is_refused_by_name(
    name: str, tiny_dir: Path, tmp_path: Path
) -> None:
    folder = awkward.make(name, tiny_dir, tmp_path)
    with pytest.raises(BadInput, match=f"^tiny: model: .*{REFUSED[name]}"):
        load_model.load(make_spec(folder, "transformers"))


@pytest.mark.parametrize("name", ["no_norm", "renamed", "gptq_real"])
def test_a_drafting_model_is_held_to_the_same(name: str, tiny_dir: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_dir, "transformers", engine={"speculative": DRAFT})
    with pytest.raises(BadInput, match=f"^tiny: engine.speculative.model: .*{REFUSED[name]}"):
        TransformersBackend(replace(spec, draft_dir=awkward.make(name, tiny_dir, tmp_path)))


def test_tensors_that_no_layer_takes_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    """An adapter inside the checkpoint, and a layer more than the configuration has."""
    folder = awkward.make("good", tiny_dir, tmp_path)
    values = awkward.tensors(folder)
    extra = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}
    extra |= {k.replace("layers.2", "layers.3"): v for k, v in values.items() if "layers.2" in k}
    awkward.write_tensors(folder, values | extra)
    with pytest.raises(BadInput, match=r"otherwise 10: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight"):
        load_model.load(make_spec(folder, "transformers"))


@pytest.mark.parametrize("sections", [{}, QUANTIZED], ids=["plain", "nf4"])
def test_a_tensor_of_another_shape_is_refused(
    sections: dict[str, Any], tiny_dir: Path, tmp_path: Path
) -> None:
    """Quantizing while loading as well: transformers compares no shape then."""
    folder = awkward.make("good", tiny_dir, tmp_path)
    values = awkward.tensors(folder)
    awkward.write_tensors(folder, values | {UP: values[UP].T.contiguous()})
    with pytest.raises(BadInput, match=r"up_proj\.weight \(expected shape \[128, 64\], found \[64, 128\]\)"):
        load_model.load(make_spec(folder, "transformers", **sections))


def test_two_tensors_that_become_the_same_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    """transformers takes either name, and one of the two if both are there."""
    folder = awkward.make("good", tiny_dir, tmp_path)
    values = awkward.tensors(folder)
    awkward.write_tensors(folder, values | {NORM.removeprefix("model."): values[NORM] * 2})
    with pytest.raises(BadInput, match=rf"layers\.1\.input_layernorm\.weight and {NORM} \(all are {NORM}\)"):
        load_model.load(make_spec(folder, "transformers"))


def test_a_parameter_that_transformers_forgives_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    folder = awkward.make("no_norm", tiny_dir, tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert loading_problems(info) == [f"{NORM} (missing from the checkpoint)"]
    model._keys_to_ignore_on_load_missing = {"input_layernorm"}
    with pytest.raises(BadInput, match=rf"otherwise 1: {NORM} \(missing from the checkpoint\)"):
        tensor_account.require_whole("tiny", folder, model, info | {"missing_keys": set()})


def test_weights_named_by_the_configuration_or_written_by_ranks_are_refused(
    tiny_dir: Path, tmp_path: Path
) -> None:
    folder = awkward.make("good", tiny_dir, tmp_path)
    (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    awkward.edit_json(folder, "config.json", transformers_weights="hidden/w.safetensors")
    with pytest.raises(BadInput, match=r"found shard-0.*, transformers_weights: hidden/w\.safetensors"):
        load_model.load(make_spec(folder, "transformers"))


def test_sound_checkpoints_are_served_alike(tiny_dir: Path, tmp_path: Path) -> None:
    """Shards, links, other names of the same tensors, and buffers that models compute by now."""
    wanted = scores(tiny_dir)
    old = awkward.make("good", tiny_dir, tmp_path)
    values = {name.removeprefix("model."): value for name, value in awkward.tensors(old).items()}
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    awkward.write_tensors(old, values)
    links = tmp_path / "links"
    links.mkdir()
    for file in tiny_dir.iterdir():
        (links / file.name).symlink_to(file)
    for folder in (old, links, awkward.make("sharded", tiny_dir, tmp_path)):
        assert scores(folder).tobytes() == wanted.tobytes(), folder


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path)
    assert "lm_head.weight" not in awkward.tensors(folder)
    assert math.isfinite(scores(folder).sum())


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_a_checkpoint_saved_in_nf4_is_its_source_quantized_while_loading(
    compute: str, tiny_dir: Path, tmp_path: Path
) -> None:
    """Whatever dtype it was to be computed in when it was saved: the manifest says which."""
    pytest.importorskip("bitsandbytes")
    saved = awkward.make("bnb_pre", tiny_dir, tmp_path)
    stated = load_model.AutoConfig.from_pretrained(saved).quantization_config
    awkward.edit_json(saved, "config.json", quantization_config=stated | {"bnb_4bit_compute_dtype": compute})
    assert scores(saved, **QUANTIZED).tobytes() == scores(tiny_dir, **QUANTIZED).tobytes()
    found = load_model.load(make_spec(saved, "transformers", **QUANTIZED)).identity.effective
    assert found["quantized_layers"] == '["nf4, blocks of 64, computes in bfloat16"]'
    for wanted in ({"type": "fp4"}, {"double": True}):
        with pytest.raises(BadInput, match=r"found bitsandbytes nf4 in its configuration"):
            load_model.load(make_spec(saved, "transformers", **QUANTIZED | {"quantization": NF4 | wanted}))


def test_a_saved_quantization_without_a_constant_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    saved = awkward.make("bnb_pre", tiny_dir, tmp_path)
    lost = f"{UP}.absmax"
    awkward.write_tensors(saved, {k: v for k, v in awkward.tensors(saved).items() if k != lost})
    with pytest.raises(BadInput, match=lost):
        load_model.load(make_spec(saved, "transformers", **QUANTIZED))


def test_a_list_of_problems_says_how_many_there_are() -> None:
    info = {
        "missing_keys": {"b", "a"},
        "unexpected_keys": {"c"},
        "mismatched_keys": {("d", torch.Size([2]), torch.Size([3]))},
        "error_msgs": ["e broke"],
    }
    assert loading_problems(info) == [
        "a (missing from the checkpoint)", "b (missing from the checkpoint)", "c (unexpected in the checkpoint)",
        "d ((2,) in the checkpoint, (3,) in the model)", "e broke",
    ]  # fmt: skip
    assert listed(map(str, range(12))) == "12: 0, 1, 10, 11, 2, 3, 4, 5, 6, 7, and 2 more"
