"""The tensors of a checkpoint against those that its architecture expects. An engine's own interpreter runs it.

``expected_tensors.py FOLDER KIND`` reads nothing but config.json, the index and the headers of the safetensors files,
and imports nothing of ours. transformers builds the architecture on the meta device. Its own loading code, with its
renaming of old names and its tied weights, says what is missing, unexpected or of another shape. The tensors of a
quantized module count as its weight where the set of its method is complete. The last line of the output is JSON:
``content`` (digest of what was read), and ``problems``, each with name, expected and found.

KIND is ``model``, or ``head`` for a drafting head, whose architecture transformers does not know: there the parts of a
fused layer must be complete, because the engine's own account sees fused parameters only. ``trusted`` follows where
code of the folder may run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
FLOATS = ("F16", "BF16", "F32", "F64")
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
# Scales of the cache and of outputs: engines know them under several names, and do without.
SCALES = (".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale", ".output_scale")
# Method -> sets of tensors that stand for a weight: these, and those that may be there too.
PACKED = ("qweight", "qzeros", "scales")
STATE4 = ("weight", "weight.absmax", "weight.quant_map")
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
METHODS: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "gptq": ((PACKED, ("g_idx",)),),
    "awq": ((PACKED, ()),),
    "fp8": (
        (("weight", "weight_scale"), ("input_scale",)),
        (("weight", "weight_scale_inv"), ("activation_scale",)),
    ),
    "compressed-tensors": (
        (("weight_packed", "weight_scale", "weight_shape"), ("weight_zero_point", "weight_g_idx")),
        (("weight_packed", "weight_scale", "weight_global_scale"), ("input_global_scale",)),
        (("weight", "weight_scale"), ("weight_zero_point", "input_scale", "input_zero_point")),
    ),
    "bitsandbytes": (
        ((*STATE4, "weight.quant_state.bitsandbytes__nf4"), NESTED),
        ((*STATE4, "weight.quant_state.bitsandbytes__fp4"), NESTED),
        (("weight", "SCB"), ("weight_format",)),
    ),
}
Entry = tuple[str, list[int]]  # dtype as safetensors has it, shape; an unknown shape is [0]


class Report:
    """Problems by name."""

    def __init__(self) -> None:
        self.problems: list[dict[str, str]] = []

    def add(self, name: str, expected: str, found: str) -> None:
        """One tensor, or the folder."""
        self.problems.append({"name": name, "expected": expected, "found": found})


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, sorted."""
    return sorted(folder.glob("*.safetensors"))


def header(path: Path) -> bytes:
    """The JSON header of a safetensors file. ValueError: it has none."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER + 1
        data = file.read(length) if length <= MAX_HEADER else b""
    if len(data) != length:
        raise ValueError(f"{path.name}: expected a whole safetensors file")
    return data


def content(folder: Path) -> str:
    """Digest of all that is read here: configuration, index, headers and code. OSError; ValueError for a cut file."""
    total = hashlib.sha256()
    read = {path.name: header(path) for path in weight_files(folder)}
    code = sorted(path.name for path in folder.glob("*.py"))
    for name in ("config.json", INDEX, *code):
        if (folder / name).is_file():
            read[name] = (folder / name).read_bytes()
    for name, data in sorted(read.items()):
        total.update(json.dumps([name, len(data)]).encode() + data)
    return total.hexdigest()


def check(folder: Path, *, head: bool = False, trusted: bool = False) -> list[dict[str, str]]:
    """Every tensor that is missing, unexpected, there twice, of another shape or dtype, or of an incomplete set."""
    report = Report()
    tensors = _tensors(folder, report)
    if not tensors:
        report.add(folder.name, "safetensors files", "none")
    elif head:
        _complete_parts(tensors, report)
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config")
        quantization = config.get("quantization_config") or (text or {}).get("quantization_config")
        plain = tensors if quantization is None else _collapsed(tensors, quantization, report)
        _compare(folder, plain, report, trusted)
    return report.problems


def _tensors(folder: Path, report: Report) -> dict[str, Entry]:
    """Name -> entry over all files; a name in two files, and an index that is stale either way, is a problem."""
    where: dict[str, str] = {}
    found: dict[str, Entry] = {}
    for path in weight_files(folder):
        for name, entry in json.loads(header(path)).items():
            if name == "__metadata__":
                continue
            if name in where:
                report.add(name, "one file that has it", f"{where[name]} and {path.name}")
            where[name], found[name] = path.name, (entry["dtype"], list(entry["shape"]))
    if (folder / INDEX).is_file():
        indexed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        for name in sorted(indexed.keys() | where.keys()):
            if indexed.get(name) != where.get(name):
                report.add(
                    name, f"{INDEX}: {indexed.get(name, 'nothing')}", where.get(name, "no file that has it")
                )
    return found  # fmt: skip


def _complete_parts(tensors: Mapping[str, Entry], report: Report) -> None:
    """Where one part of a fused layer is there, all must be."""
    for name in sorted(tensors):
        for parts in FUSED:
            part = next((part for part in parts if f".{part}." in name), None)
            for other in parts if part is not None else ():
                if (wanted := name.replace(f".{part}.", f".{other}.")) not in tensors:
                    report.add(wanted, f"a tensor beside {name}", "none")


def _collapsed(
    tensors: Mapping[str, Entry], quantization: Mapping[str, Any], report: Report
) -> dict[str, Entry]:
    """``tensors`` with one weight for each complete set of a quantized module."""
    method = str(quantization.get("quant_method"))
    sets = METHODS.get(method)
    if sets is None:
        report.add("quantization_config.quant_method", " or ".join(METHODS), method)
        return dict(tensors)
    if "mxfp4" in json.dumps(quantization):
        sets = (*sets, (("weight_packed", "weight_scale"), ()))
    suffixes = sorted({name for pair in sets for names in pair for name in names}, key=len, reverse=True)
    plain: dict[str, Entry] = {}
    modules: dict[str, dict[str, Entry]] = defaultdict(dict)
    for name, entry in tensors.items():
        suffix = next((suffix for suffix in suffixes if name.endswith(f".{suffix}")), None)
        if suffix is not None:
            modules[name.removesuffix(f".{suffix}")][suffix] = entry
        elif not name.endswith(SCALES):
            plain[name] = entry
    quantized = 0
    for module, parts in modules.items():
        if parts.keys() == {"weight"} and parts["weight"][0] in FLOATS:  # left as it was
            plain[f"{module}.weight"] = parts["weight"]
            continue
        quantized += 1
        required, optional = max(sets, key=lambda pair: _fit(parts.keys(), *pair))
        for suffix in required:
            if suffix not in parts:
                report.add(f"{module}.{suffix}", f"a tensor, as {method} has it", "none")
        for suffix in parts.keys() - {*required, *optional}:
            report.add(f"{module}.{suffix}", f"no such tensor beside those of {method}", "it is there")
        if "weight" in parts and parts["weight"][0] in FLOATS:
            report.add(f"{module}.weight", f"a quantized weight, as {method} has it", parts["weight"][0])
        plain[f"{module}.weight"] = ("BF16", _shape(parts, method, quantization))
    if not quantized:
        report.add("quantization_config", f"tensors as {method} has them", "none that is quantized")
    return plain


def _fit(parts: Any, required: tuple[str, ...], optional: tuple[str, ...]) -> int:
    """How well a set describes a module's tensors."""
    return 2 * len(parts & {*required}) + len(parts & {*optional}) - len({*required} - parts)


def _shape(parts: Mapping[str, Entry], method: str, quantization: Mapping[str, Any]) -> list[int]:
    """Shape of the weight that a module's tensors hold, (out, in); [0] where they do not say."""
    if "qweight" in parts and len(parts["qweight"][1]) == 2:
        rows, columns = parts["qweight"][1]
        a_word = 32 // int(quantization.get("bits") or quantization.get("w_bit") or 4)
        return [columns, rows * a_word] if method == "gptq" else [columns * a_word, rows]
    if "weight_packed" in parts:
        groups = (quantization.get("config_groups") or {}).values()
        bits = {(group.get("weights") or {}).get("num_bits") for group in groups}
        dtype, shape = parts["weight_packed"]
        (number,) = bits if len(bits) == 1 else (None,)
        return [shape[0], shape[1] * (32 if dtype == "I32" else 8) // int(number)] if number else [0]
    if "weight" in parts and not any(suffix.startswith("weight.") for suffix in parts):
        return parts["weight"][1]
    return [0]


def _compare(folder: Path, tensors: Mapping[str, Entry], report: Report, trusted: bool) -> None:
    """What transformers' own loading code finds missing, unexpected or of another shape, and gaps among experts."""
    _name_gaps(
        tensors, report
    )  # transformers puts experts together as they are sorted, whatever their numbers
    torch, transformers = _libraries()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    for part in parts:
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config  # its sets of tensors are one weight each here
    with torch.device("meta"):
        auto = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    wanted = next(iter(getattr(config, "architectures", None) or ()), "")
    named: Any = getattr(transformers, wanted, None)
    model_class: Any = named if getattr(named, "config_class", None) is type(config) else type(auto)
    state = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, (_, shape) in tensors.items()
    }
    try:
        model, found = model_class.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, device_map={"": "meta"},
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except RuntimeError as error:  # such as experts that cannot be put together, because one is missing
        report.add(folder.name, f"tensors that {model_class.__name__} can take", str(error)[:300])
        return
    for name in sorted(found["missing_keys"]):
        report.add(name, "a tensor", "none")
    for name in sorted(found["unexpected_keys"]):
        report.add(name, f"no such tensor in {model_class.__name__}", "it is there")
    for name, shape, expected in sorted(found["mismatched_keys"], key=lambda row: str(row[0])):
        if math.prod(shape):
            report.add(name, f"shape {list(expected)}", str(list(shape)))
    for name in found.get("error_msgs") or ():
        report.add(folder.name, "tensors that can be loaded", str(name)[:300])
    floating = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    for name, (dtype, _) in sorted(tensors.items()):
        if name in floating and dtype not in FLOATS:
            report.add(name, f"a floating-point tensor ({', '.join(FLOATS)})", dtype)


def _name_gaps(tensors: Mapping[str, Entry], report: Report) -> None:
    """Experts are numbered from 0 without a gap, each with the same parts: name what one has and another lacks."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in tensors:
        if match := EXPERT.fullmatch(name):
            found[match[1], match[3]].add(int(match[2]))
            if match[2] != str(int(match[2])):
                report.add(name, f"expert {int(match[2])} written without zeros before it", match[2])
    counts: dict[str, int] = defaultdict(int)
    for (module, _), numbers in found.items():
        counts[module] = max(counts[module], len(numbers))
    for (module, rest), numbers in sorted(found.items()):
        # As many as there are: a number beyond them is one that stands in another's place.
        count = counts[module]
        for number in sorted(set(range(count)) - numbers):
            report.add(f"{module}.{number}.{rest}", "a tensor, as other experts have it", "none")
        for number in sorted(number for number in numbers if number >= count):
            report.add(
                f"{module}.{number}.{rest}", f"no expert beyond the {count} that there are", "it is there"
            )


def _libraries() -> tuple[Any, Any]:
    """torch and transformers. On the meta device nothing is dispatched, so that accelerate is not needed."""
    import torch
    import transformers
    import transformers.integrations.accelerate as accelerate

    if not accelerate.is_accelerate_available():
        accelerate.is_accelerate_available = lambda *_: True
    transformers.logging.set_verbosity_error()  # what it would warn of is read from its report
    transformers.logging.disable_progress_bar()
    return torch, transformers


def main(arguments: list[str]) -> None:
    """Print the answer as the last line; the module says how it is called."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # before transformers is imported
    folder, kind = Path(arguments[0]), arguments[1]
    read = content(folder)
    problems = check(folder, head=kind == "head", trusted="trusted" in arguments[2:])
    if content(folder) != read:
        raise ValueError("the folder was changed while it was read")
    print("\n" + json.dumps({"content": read, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1:])
