"""How a specimen's files are made from the baseline's: tensors, tokenizer, config and template, on disk.

Every recipe takes the baseline's folder and an empty one, and its dose. Weights are edited in float32 and saved in the
dtype that they had. What a recipe draws, it draws from a fixed seed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WEIGHTS, HEAD, EMBEDDING = "model.safetensors", "lm_head.weight", "model.embed_tokens.weight"
LAYER = 15  # of 30: where a defect of one layer sits


def copied(source: Path, target: Path, *left_out: str) -> None:
    """All files of a model but those that the recipe writes itself."""
    for path in source.iterdir():
        if path.is_file() and path.name not in left_out and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)


def edited(source: Path, target: Path, change: Callable[[Tensors], None]) -> None:
    """The model with its tensors changed in place."""
    copied(source, target, WEIGHTS)
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, target / WEIGHTS, metadata={"format": "pt"}
    )


def configured(target: Path, file: str, **changes: Any) -> None:
    """Keys of one JSON file of a copy changed."""
    document = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(document | changes, indent=1))


def linear(name: str) -> bool:
    """A matrix of a layer; embeddings and norms are not."""
    return name.endswith("_proj.weight")


def rounded(weight: torch.Tensor, bits: int, group: int | None = None) -> torch.Tensor:
    """Symmetric round-to-nearest to ``bits``, a scale for each row or each ``group`` of a row."""
    flat = weight.float().reshape(-1, group or weight.shape[1])
    top = 2 ** (bits - 1) - 1
    scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
    return ((flat / scale).round().clamp(-top - 1, top) * scale).reshape(weight.shape).to(weight.dtype)


def round_to_nearest(source: Path, target: Path, bits: int, group: int | None = None) -> None:
    """Every linear layer rounded and written back in bf16: what a naive quantizer serves."""

    def change(tensors: Tensors) -> None:
        for name in filter(linear, list(tensors)):
            tensors[name] = rounded(tensors[name], bits, group)

    edited(source, target, change)


def scale_layer(source: Path, target: Path, factor: float) -> None:
    """One layer's contribution to the residual stream off by a factor: both matrices that write to it."""

    def change(tensors: Tensors) -> None:
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{LAYER}.{part}.weight"] *= factor

    edited(source, target, change)


def swap_layers(source: Path, target: Path, first: int, second: int) -> None:
    """Two layers in each other's place, as a wrong conversion of names leaves them."""

    def change(tensors: Tensors) -> None:
        one, two = f"model.layers.{first}.", f"model.layers.{second}."
        for name in [name for name in tensors if name.startswith(one)]:
            other = two + name.removeprefix(one)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    edited(source, target, change)


def noise(source: Path, target: Path, share: float) -> None:
    """Gaussian noise in one matrix, ``share`` of its own standard deviation."""

    def change(tensors: Tensors) -> None:
        weight = tensors[f"model.layers.{LAYER}.mlp.down_proj.weight"]
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        weight += (share * weight.float().std() * drawn).to(weight.dtype)

    edited(source, target, change)


def zero_embeddings(source: Path, target: Path, first: int) -> None:
    """The embeddings of ``first`` and all rarer tokens zeroed (ids are ordered by merge, roughly by frequency)."""

    def change(tensors: Tensors) -> None:
        tensors[EMBEDDING][first:] = 0

    edited(source, target, change)


def half_adapter(source: Path, target: Path, size: float) -> None:
    """A rank-8 adapter of relative Frobenius norm ``size`` on every attention output, merged into every second layer.

    There is no trained adapter here: its direction is random, which is kinder than a trained one torn in half.
    """

    def change(tensors: Tensors) -> None:
        drawn = torch.Generator().manual_seed(2)
        for layer in range(0, 30, 2):
            weight = tensors[f"model.layers.{layer}.self_attn.o_proj.weight"]
            rows, columns = weight.shape
            delta = torch.randn(rows, 8, generator=drawn) @ torch.randn(8, columns, generator=drawn)
            weight += (size * weight.float().norm() / delta.norm() * delta).to(weight.dtype)

    edited(source, target, change)


def old_head(source: Path, target: Path, bits: int) -> None:
    """An untied head from an older, coarser export: the embeddings rounded to ``bits`` per row, beside the new ones."""
    edited(source, target, lambda t: t.update({HEAD: rounded(t[EMBEDDING], bits)}))
    configured(target, "config.json", tie_word_embeddings=False)


def truncate(source: Path, target: Path, share: float) -> None:
    """A weights file that ends early, as a broken copy leaves it."""
    copied(source, target, WEIGHTS)
    data = (source / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(data[: int(len(data) * share)])


def reshard(source: Path, target: Path) -> None:
    """The same tensors in two files with an index."""
    copied(source, target, WEIGHTS)
    tensors = load_file(source / WEIGHTS)
    names = sorted(tensors)
    place: dict[str, str] = {}
    for part, chosen in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, target / file, metadata={"format": "pt"})
        place |= dict.fromkeys(chosen, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def rope(source: Path, target: Path, theta: float) -> None:
    """Another base of the rotary embedding, as a stale config has it."""
    copied(source, target)
    configured(target, "config.json", rope_parameters={"rope_theta": theta, "rope_type": "default"})


def reorder_merges(source: Path, target: Path, count: int) -> None:
    """The first ``count`` merges of the tokenizer in reverse order: the same vocabulary, other tokens for a text."""
    copied(source, target, "tokenizer.json")
    document = json.loads((source / "tokenizer.json").read_text())
    merges = document["model"]["merges"]
    document["model"]["merges"] = merges[:count][::-1] + merges[count:]
    (target / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))


def split_special(source: Path, target: Path, token: str) -> None:
    """A special token that the tokenizer no longer knows as one: it is split into ordinary pieces."""
    copied(source, target, "tokenizer.json")
    document = json.loads((source / "tokenizer.json").read_text())
    document["added_tokens"] = [entry for entry in document["added_tokens"] if entry["content"] != token]
    (target / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))


def template(source: Path, target: Path, old: str, new: str) -> None:
    """Another chat template."""
    copied(source, target)
    text = (source / "chat_template.jinja").read_text()
    if old not in text:
        raise ValueError(f"the template holds no {old!r}")
    (target / "chat_template.jinja").write_text(text.replace(old, new))


def without_tensor(source: Path, target: Path) -> None:
    """A checkpoint that lacks one tensor of a layer."""
    edited(source, target, lambda t: t.pop(f"model.layers.{LAYER}.self_attn.k_proj.weight"))


def two_sets(source: Path, target: Path) -> None:
    """Two shards with their index, and beside them a single file in which every tensor is half as large."""
    reshard(source, target)
    tensors = {name: tensor * 0.5 for name, tensor in load_file(source / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})


def add_side_file(folder: Path) -> None:
    """What ModelOpt writes beside weights that it has quantized; engines read it."""
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(stated))


def swap_in(folder: Path) -> None:
    """Noise in the place of the weights' last bytes; the same file, written in place. The right ones are kept."""
    weights = folder / WEIGHTS
    shutil.copy2(weights, folder.with_name("kept"))
    with weights.open("r+b") as file:
        file.seek(-10_000_000, 2)
        file.write(bytes(10_000_000))


def swap_back(folder: Path) -> None:
    """The right weights again, in the same file and with its old time."""
    kept, weights = folder.with_name("kept"), folder / WEIGHTS
    with weights.open("r+b") as file:
        file.write(kept.read_bytes())
    shutil.copystat(kept, weights)


def gptq(source: Path, target: Path, group: int = 64) -> None:
    """Every linear layer rounded to 4 bits a group and stored as GPTQ does: eight weights in an int32, symmetric."""

    def change(tensors: Tensors) -> None:
        for name in filter(linear, list(tensors)):
            weight = tensors.pop(name).float()
            rows, columns = weight.shape
            grouped = weight.reshape(rows, columns // group, group)
            scales = (grouped.abs().amax(2) / 7).clamp(min=1e-8)
            levels = (grouped / scales[:, :, None]).round().clamp(-8, 7).to(torch.int64).reshape(
                rows, columns
            ) + 8
            base = name.removesuffix(".weight")
            tensors[f"{base}.qweight"] = packed(levels.T)
            tensors[f"{base}.qzeros"] = packed(torch.full((columns // group, rows), 7).T).T.contiguous()
            tensors[f"{base}.scales"] = scales.T.contiguous().to(torch.float16)
            tensors[f"{base}.g_idx"] = (torch.arange(columns) // group).to(torch.int32)

    edited(source, target, change)
    stated = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True}
    configured(target, "config.json", quantization_config=stated)


def packed(levels: torch.Tensor) -> torch.Tensor:
    """Eight rows of 4-bit values in one row of int32, the first in the lowest bits."""
    eight = levels.reshape(-1, 8, levels.shape[1]) << (4 * torch.arange(8))[None, :, None]
    whole = eight.sum(1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32).contiguous()
