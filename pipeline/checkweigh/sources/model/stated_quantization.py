"""The quantization of a checkpoint: stated in its configuration, visible in its tensors, declared in the manifest.

All three must say the same. transformers fills what a quantized checkpoint lacks with random numbers and a warning when
its configuration is silent; vLLM reads side files that transformers does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkweigh.errors import Problem, SourceError
from checkweigh.records.manifest import Quantization
from checkweigh.sources.model.model_directory import Files, read_json_object, walk
from checkweigh.sources.model.weight_set import Headers

KEYS = ("quantization_config", "compression_config")
# vLLM takes any file that ends so, and hf_quant_config.json is one.
SIDE_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")
# Endings of a tensor's name -> the scheme that packs weights so.
ENDINGS = {
    ".qweight": "packed", ".qzeros": "packed", ".g_idx": "gptq",
    ".weight_packed": "compressed", ".weight_scale": "scaled", ".weight_scale_inv": "scaled",
    ".weight_zero_point": "scaled", "_blocks": "blocks",
    ".absmax": "bitsandbytes", ".quant_map": "bitsandbytes", ".SCB": "bitsandbytes",
}  # fmt: skip
# Method -> schemes of which its tensors show at least one, and those that they may show besides.
SHOWS: dict[str, tuple[set[str], set[str]]] = {
    "gptq": ({"packed"}, {"gptq"}),
    "awq": ({"packed"}, set()),
    "compressed-tensors": ({"compressed", "float8", "integers"}, {"scaled"}),
    "fp8": ({"float8"}, {"scaled"}),
    "bitsandbytes": ({"bitsandbytes"}, {"integers"}),
}
SAME = ("bits", "group_size", "desc_act", "sym")  # settings in which two statements must agree


@dataclass(frozen=True, slots=True)
class Statement:
    """A quantization that a file states: where, by which method, with which settings."""

    file: Path
    path: str
    method: str
    settings: Mapping[str, Any]


def quantization_problems(
    folder: Path, files: Files, declared: Quantization | None, headers: Headers
) -> Iterator[Problem]:
    """Where the manifest, the configuration, its side files and the tensors do not agree.

    ``declared``: None of a drafting model, which is never quantized.
    """
    statements = list(_statements(files))
    schemes = _schemes(headers)
    for statement in statements:
        yield from _undeclared(statement, declared)
        if SHOWS.get(statement.method) is not None and headers:
            yield from _contradicted(statement, schemes)
    for other in statements[1:]:
        yield from _two_statements(statements[0], other)
    if not statements and schemes:
        scheme, tensor = next(iter(schemes.items()))
        found = f"{tensor} ({scheme}), which neither config.json nor a side file states"
        yield _problem(
            folder, "", "tensors as they are without quantization, or a quantization_config", found
        )
    if not statements and declared is not None and declared.method in ("awq", "gptq", "compressed-tensors"):
        expected = f"quantization_config of {declared.method}, as quantization.method of the manifest says"
        yield _problem(folder / "config.json", "quantization_config", expected, "none")


def _statements(files: Files) -> Iterator[Statement]:
    """Files that cannot be read say nothing here: they are refused elsewhere."""
    for name, path in files.items():
        side = "/" not in name and name.endswith(SIDE_FILES)
        if name != "config.json" and not side:
            continue
        try:
            settings = read_json_object(path)
        except SourceError:
            continue
        if side:
            yield Statement(path, "", _side_method(settings), settings)
            continue
        for place, key, value in walk(settings):
            if key in KEYS and value is not None:
                value = value if isinstance(value, dict) else {}
                yield Statement(path, place, _method(value), value)


def _method(settings: Mapping[str, Any]) -> str:
    """The method of a quantization_config, in the manifest's words."""
    method = str(settings.get("quant_method") or settings.get("quant_algo") or "no method").lower()
    if method == "modelopt" and str(settings.get("quant_algo")).upper() == "FP8":
        return "fp8"
    return method.replace("_", "-")


def _side_method(settings: Mapping[str, Any]) -> str:
    """Likewise of a side file. The older ones of GPTQ and AWQ name no method."""
    nested = settings.get("quantization")
    if isinstance(nested, dict):
        return _method(nested)
    if "quant_method" in settings or "quant_algo" in settings:
        return _method(settings)
    if "w_bit" in settings or "q_group_size" in settings:
        return "awq"
    return "gptq" if "bits" in settings else "no method"


def _undeclared(statement: Statement, declared: Quantization | None) -> Iterator[Problem]:
    """The manifest must state what the file states, in full."""
    if declared is None:
        expected = "none: a drafting model is never quantized"
        yield _problem(statement.file, statement.path, expected, statement.method)
        return
    wanted = _as_declared(statement)
    if wanted is None:
        known = "none, bitsandbytes, awq, gptq, compressed-tensors or fp8, which a manifest can state"
        yield _problem(statement.file, statement.path, known, statement.method)
        return
    same = (wanted.method, wanted.bits, wanted.type, wanted.double)
    if same != (declared.method, declared.bits, declared.type, declared.double):
        expected = f"{_lines(declared)}, as the manifest says"
        yield _problem(
            statement.file, statement.path, expected, f"{wanted.method}; for it write {_lines(wanted)}"
        )


def _as_declared(statement: Statement) -> Quantization | None:
    """The manifest's section for a statement; None where there is none."""
    settings = statement.settings
    if statement.method not in SHOWS:
        return None
    if statement.method != "bitsandbytes":
        return Quantization(method=statement.method)  # type: ignore[arg-type]
    if settings.get("load_in_8bit"):
        return Quantization(method="bitsandbytes", bits=8, type="int8")
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    double = bool(settings.get("bnb_4bit_use_double_quant"))
    known = settings.get("load_in_4bit") and kind in ("nf4", "fp4")
    return Quantization(method="bitsandbytes", bits=4, type=kind, double=double) if known else None


def _lines(quantization: Quantization) -> str:
    """The section as it stands in a manifest."""
    values = quantization.model_dump(mode="json", exclude_defaults=True)
    shown = ", ".join(f"{key}: {str(value).lower()}" for key, value in values.items())
    return f"quantization: {{{shown or 'method: none'}}}"


def _contradicted(statement: Statement, schemes: Mapping[str, str]) -> Iterator[Problem]:
    """The tensors must be packed as the file says."""
    needed, besides = SHOWS[statement.method]
    if not needed & schemes.keys():
        found = "tensors without quantization" if not schemes else f"{', '.join(schemes.values())}"
        yield _problem(statement.file, statement.path, f"tensors of {statement.method}, as it states", found)
    elif other := schemes.keys() - needed - besides:
        found = ", ".join(f"{schemes[scheme]} ({scheme})" for scheme in sorted(other))
        yield _problem(
            statement.file, statement.path, f"tensors of {statement.method} only, as it states", found
        )


def _two_statements(first: Statement, other: Statement) -> Iterator[Problem]:
    """Two files that state a quantization must state the same one."""
    ours, theirs = first.settings, other.settings
    differ = [key for key in SAME if key in ours and key in theirs and ours[key] != theirs[key]]
    if first.method != other.method or differ:
        what = "method" if first.method != other.method else " and ".join(differ)
        expected = f"the {what} that {first.file.name} states"
        yield _problem(other.file, other.path, expected, "another")


def _schemes(headers: Headers) -> dict[str, str]:
    """Scheme -> the first tensor that shows it, by name or by dtype."""
    schemes: dict[str, str] = {}
    for tensors in headers.values():
        for tensor in tensors:
            ending = next((scheme for end, scheme in ENDINGS.items() if tensor.name.endswith(end)), None)
            if ".quant_state.bitsandbytes" in tensor.name:
                ending = "bitsandbytes"
            if ending is not None:
                schemes.setdefault(ending, tensor.name)
            elif tensor.dtype.startswith(("F8_", "F4", "F6_")):
                schemes.setdefault("float8" if tensor.dtype.startswith("F8_") else "float4", tensor.name)
            elif tensor.name.endswith(".weight") and not tensor.dtype.startswith(("F", "BF", "C")):
                schemes.setdefault("integers", tensor.name)
    return schemes


def _problem(file: Path, path: str, expected: str, found: str) -> Problem:
    return Problem(file=str(file), line=None, path=path, expected=expected, found=found)
