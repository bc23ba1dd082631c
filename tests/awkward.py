"""Model folders as people find them on a hub or as a tool left them, each made from a sound one.

``make(name, good, into)`` copies the folder ``good`` (such as ``tiny_model_dir``) to ``into/name`` and spoils it.
What is right for each stands in ``tests/unit/sources/test_awkward_checkpoints.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def make(name: str, good: Path, into: Path) -> Path:
    """The folder of that name, made anew from ``good``."""
    folder = into / name
    shutil.copytree(good, folder)
    AWKWARD[name](folder)
    return folder


def tensors(folder: Path) -> Tensors:
    """The weights of a folder with one file of them."""
    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, values: Mapping[str, torch.Tensor], name: str = "model.safetensors") -> None:
    """Write weights as transformers does. What shares memory is copied."""
    kept = {key: value.clone().contiguous() for key, value in values.items()}
    save_file(kept, folder / name, metadata={"format": "pt"})


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    """Set the keys of a JSON file, which may not be there yet; None removes one."""
    path = folder / name
    value = json.loads(path.read_text()) if path.is_file() else {}
    value = {key: inner for key, inner in (value | changes).items() if inner is not None}
    path.write_text(json.dumps(value))


def _drop(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        write_tensors(folder, {key: value for key, value in tensors(folder).items() if key != name})

    return spoil


def _renamed(folder: Path) -> None:
    old, new = "model.layers.1.self_attn.q_proj", "model.layers.7.self_attn.q_proj"
    write_tensors(folder, {key.replace(old, new): value for key, value in tensors(folder).items()})


def _sharded(folder: Path) -> None:
    """Two shards and an index in the place of the single file."""
    values = tensors(folder)
    names = sorted(values)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for shard, half in zip(SHARDS, halves, strict=True):
        write_tensors(folder, {name: values[name] for name in half}, shard)
    weight_map = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
    edit_json(folder, INDEX, metadata={"total_size": 1}, weight_map=weight_map)
    (folder / "model.safetensors").unlink()


def _single_and_shards(folder: Path) -> None:
    values = tensors(folder)
    _sharded(folder)
    write_tensors(folder, {name: value * 0.5 for name, value in values.items()})


def _stale_map(folder: Path) -> None:
    _sharded(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    weight_map.pop(max(weight_map))
    edit_json(folder, INDEX, weight_map=weight_map | {"model.layers.9.mlp.up_proj.weight": SHARDS[1]})


def _consolidated_beside(folder: Path) -> None:
    values = {name: value * 0.1 for name, value in tensors(folder).items()}
    write_tensors(folder, values, "consolidated.safetensors")


def _jinja_and_inline(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    edit_json(folder, "tokenizer_config.json", chat_template=text.replace("<|im_start|>", "<|im_end|>"))


def _template_list(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        named = [{"name": name, "template": f"{name if name != 'default' else ''}{text}"} for name in names]
        edit_json(folder, "tokenizer_config.json", chat_template=named)

    return spoil


def _hf_quant(folder: Path) -> None:
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    producer = {"name": "modelopt", "version": "0.47"}
    edit_json(folder, "hf_quant_config.json", producer=producer, quantization=quantization)


def _tekken(folder: Path) -> None:
    edit_json(folder, "tekken.json")
    edit_json(folder, "params.json")


def _gptq_config(folder: Path) -> None:
    edit_json(folder, "config.json", quantization_config=GPTQ)


def _gptq_tensors(folder: Path) -> None:
    """Every projection as GPTQ packs it, with random numbers."""
    draw = torch.Generator().manual_seed(0)
    packed: Tensors = {}
    for name, value in tensors(folder).items():
        if not name.endswith("_proj.weight"):
            packed[name] = value
            continue
        base, (rows, columns), group = name.removesuffix(".weight"), value.shape, GPTQ["group_size"]
        groups = max(1, columns // int(str(group)))
        ints = {"dtype": torch.int32, "generator": draw}
        packed[f"{base}.qweight"] = torch.randint(0, 2**31 - 1, (columns // 8, rows), **ints)
        packed[f"{base}.qzeros"] = torch.randint(0, 2**31 - 1, (groups, rows // 8), **ints)
        packed[f"{base}.scales"] = torch.rand((groups, rows), generator=draw).half() * 0.01
        packed[f"{base}.g_idx"] = torch.arange(columns, dtype=torch.int32) // int(str(group))
    write_tensors(folder, packed)


def _gptq_real(folder: Path) -> None:
    _gptq_tensors(folder)
    _gptq_config(folder)


def _gptq_legacy(folder: Path) -> None:
    _gptq_tensors(folder)
    edit_json(folder, "quantize_config.json", **{k: v for k, v in GPTQ.items() if k != "quant_method"})


def _bnb_pre(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


def _fp8_ct(folder: Path) -> None:
    scaled: Tensors = {}
    for name, value in tensors(folder).items():
        scaled[name] = value
        if name.endswith("_proj.weight"):
            scale = value.abs().max().float() / 448
            scaled |= {
                name: (value.float() / scale).to(torch.float8_e4m3fn),
                f"{name}_scale": scale.reshape(1),
            }
    write_tensors(folder, scaled)


def _bom_tokcfg(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _added_tokens(folder: Path) -> None:
    edit_json(folder, "added_tokens.json", **{"<|extra|>": 340})


def _spm_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0b\x0a\x05<unk>")


def _legacy_rope(folder: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    edit_json(
        folder, "config.json", rope_parameters=None, rope_theta=10000.0, rope_scaling=yarn,
        max_position_embeddings=2048,
    )  # fmt: skip


def _gen_list(folder: Path) -> None:
    edit_json(
        folder, "generation_config.json", eos_token_id=[2, 1], do_sample=True, temperature=0.6,
        repetition_penalty=1.3,
    )  # fmt: skip


def _lora_dir(folder: Path) -> None:
    edit_json(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="x")


def _as_it_is(folder: Path) -> None:
    """Nothing to spoil."""


AWKWARD: dict[str, Callable[[Path], None]] = {
    "good": _as_it_is,
    "no_head": _drop("lm_head.weight"),
    "no_norm": _drop("model.layers.1.input_layernorm.weight"),
    "renamed": _renamed,
    "sharded": _sharded,
    "single_and_shards": _single_and_shards,
    "stale_map": _stale_map,
    "consolidated_beside": _consolidated_beside,
    "jinja_and_inline": _jinja_and_inline,
    "template_list": _template_list("tool_use", "default"),
    "template_list_no_default": _template_list("tool_use"),
    "hf_quant": _hf_quant,
    "tekken": _tekken,
    "gptq_config": _gptq_config,
    "gptq_real": _gptq_real,
    "gptq_legacy": _gptq_legacy,
    "bnb_pre": _bnb_pre,
    "fp8_ct": _fp8_ct,
    "bom_tokcfg": _bom_tokcfg,
    "added_tokens": _added_tokens,
    "spm_only": _spm_only,
    "legacy_rope": _legacy_rope,
    "gen_list": _gen_list,
    "lora_dir": _lora_dir,
}
