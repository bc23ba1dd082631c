"""Every tensor by name, on tiny folders through the real transformers; an engine's environment runs the same script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkweigh.engines.expected_tensors import check, content

Tensors = dict[str, Any]
Make = Callable[..., Path]
K_PROJ = "model.layers.1.self_attn.k_proj"
NORM = "model.norm.weight"


@pytest.fixture
def make(tiny_dir: Path, tmp_path: Path) -> Make:
    """``make(change, **config)``: the tiny model's folder with other tensors and other keys in its configuration."""

    def build(change: Callable[[Tensors], Tensors] = dict, **config: Any) -> Path:
        folder = tmp_path / "folder"
        shutil.copytree(tiny_dir, folder)
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))
        return folder

    return build


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def names(folder: Path, **options: bool) -> set[str]:
    return {problem["name"] for problem in check(folder, **options)}


def gptq(tensors: Tensors) -> Tensors:
    """As GPTQ stores it: 4 bits, groups of 32."""
    packed: Tensors = {}
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj"):
            packed[name] = value
            continue
        out, into = value.shape
        packed[f"{module}.qweight"] = torch.zeros(into // 8, out, dtype=torch.int32)
        packed[f"{module}.qzeros"] = torch.zeros(into // 32, out // 8, dtype=torch.int32)
        packed[f"{module}.scales"] = torch.ones(into // 32, out, dtype=torch.float16)
        packed[f"{module}.g_idx"] = (torch.arange(into) // 32).int()
    return packed


def fp8(tensors: Tensors) -> Tensors:
    """As compressed-tensors and fp8 store it: a weight in eight bits and its scale."""
    packed: Tensors = {}
    for name, value in tensors.items():
        if "_proj" in name:
            packed[name] = value.to(torch.float8_e4m3fn)
            packed[f"{name}_scale"] = torch.ones(1)
        else:
            packed[name] = value
    return packed


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
CT = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"g": {"weights": {"num_bits": 8}}},
}


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (dict, {}),
        (without("lm_head.weight"), {"tie_word_embeddings": True}),
        (dict, {"tie_word_embeddings": True}),
        (lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, {}),  # of old
        (lambda t: {n.removeprefix("model."): v for n, v in t.items()}, {}),  # saved from the base model
        (gptq, {"quantization_config": GPTQ}),
        (lambda t: without(*[n for n in gptq(t) if n.endswith("g_idx")])(gptq(t)), {"quantization_config": GPTQ}),
        (fp8, {"quantization_config": CT}),
        (fp8, {"quantization_config": {"quant_method": "fp8"}}),
        (lambda t: fp8(t) | {"model.layers.0.self_attn.k_scale": torch.ones(1)}, {"quantization_config": CT}),
    ],
)  # fmt: skip
def test_a_sound_folder_has_no_problem(
    make: Make, change: Callable[[Tensors], Tensors], config: dict[str, Any]
) -> None:
    assert check(make(change, **config)) == []


@pytest.mark.parametrize(
    ("change", "config", "named"),
    [
        (without(f"{K_PROJ}.weight"), {}, {f"{K_PROJ}.weight"}),
        (without("lm_head.weight"), {}, {"lm_head.weight"}),
        (without("model.embed_tokens.weight", "lm_head.weight"), {"tie_word_embeddings": True},
         {"model.embed_tokens.weight", "lm_head.weight"}),
        (lambda t: {n.replace("layers.1", "layers.7") if K_PROJ in n else n: v for n, v in t.items()}, {},
         {f"{K_PROJ}.weight", "model.layers.7.self_attn.k_proj.weight"}),
        (lambda t: t | {f"{K_PROJ}.lora_A.weight": torch.ones(2)}, {}, {f"{K_PROJ}.lora_A.weight"}),
        (lambda t: t | {NORM: torch.ones(63)}, {}, {NORM}),
        (lambda t: t | {NORM: t[NORM].to(torch.float8_e4m3fn)}, {}, {NORM}),
        (gptq, {}, None),
        (fp8, {}, None),
        (dict, {"quantization_config": GPTQ}, {"quantization_config"}),
        (dict, {"quantization_config": {"quant_method": "unheard-of"}}, {"quantization_config.quant_method"}),
        (lambda t: without(f"{K_PROJ}.qzeros")(gptq(t)), {"quantization_config": GPTQ}, {f"{K_PROJ}.qzeros"}),
        (lambda t: without(*[n for n in gptq(t) if n.startswith(K_PROJ)])(gptq(t)), {"quantization_config": GPTQ},
         {f"{K_PROJ}.weight"}),
        (lambda t: gptq(t) | {f"{K_PROJ}.qweight": torch.zeros(4, 32, dtype=torch.int32)},
         {"quantization_config": GPTQ}, {f"{K_PROJ}.weight"}),
        (lambda t: without(f"{K_PROJ}.weight_scale")(fp8(t)), {"quantization_config": CT}, {f"{K_PROJ}.weight_scale"}),
        (lambda t: fp8(t) | {f"{K_PROJ}.weight": t[f"{K_PROJ}.weight"]}, {"quantization_config": CT},
         {f"{K_PROJ}.weight"}),
    ],
)  # fmt: skip
def test_each_tensor_is_named(
    make: Make, change: Callable[[Tensors], Tensors], config: dict[str, Any], named: set[str] | None
) -> None:
    found = names(make(change, **config))
    assert (
        found == named
        if named is not None
        else f"{K_PROJ}.weight_scale" in found or f"{K_PROJ}.weight" in found
    )


def test_a_tensor_in_two_files_and_a_stale_index_are_named(make: Make) -> None:
    folder = make()
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert NORM in names(folder)
    (folder / "consolidated.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    index = dict.fromkeys(tensors, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert check(folder) == []
    del index[NORM]
    index["model.layers.9.a"] = "model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert names(folder) == {NORM, "model.layers.9.a"}
    (folder / "model.safetensors").unlink()
    assert folder.name in names(folder)


def test_experts_that_are_put_together_are_all_needed(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    assert check(tmp_path) == []
    tensors = load_file(tmp_path / "model.safetensors")
    (one, *_) = [name for name in tensors if ".experts.2." in name]
    other = one.replace(".experts.2.", ".experts.9.")
    for changed in (without(one)(tensors), {other if n == one else n: v for n, v in tensors.items()}):
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert one in names(tmp_path)
    assert other in names(tmp_path), "another number in its place"


def test_layers_with_windows_of_another_family(tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    assert check(tmp_path) == []


def test_a_drafting_head_needs_all_parts_of_a_fused_layer(make: Make) -> None:
    assert check(make(lambda t: t | {"fc.weight": torch.ones(2, 2)}), head=True) == []


def test_a_drafting_head_that_lacks_a_part(make: Make) -> None:
    gate = "model.layers.0.mlp.gate_proj.weight"
    assert names(make(without(f"{K_PROJ}.weight", gate)), head=True) == {f"{K_PROJ}.weight", gate}


def test_content_is_what_is_read_and_no_more(make: Make) -> None:
    folder = make()
    first = content(folder)
    (folder / "README.md").write_text("changes nothing")
    assert content(folder) == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert (second := content(folder)) != first
    (folder / "modeling_own.py").write_text("")
    assert content(folder) != second, "its code decides what is expected"
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:100])
    with pytest.raises(ValueError, match="whole safetensors"):
        content(folder)
