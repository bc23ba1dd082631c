"""What a vLLM server says of itself, and where that is not what the manifest says. Pure.

It says its version and longest sequence over HTTP, its cache in a metric, and everything else in one line of its
log, written by the engine's own process: "Initializing a V1 LLM engine (v0.32.0) with config: ...".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkweigh.engines.vllm.server_metrics import read_cache_settings
from checkweigh.errors import EngineError, Problem
from checkweigh.records.manifest import Draft, Eagle3, Manifest, VllmArgs

CONFIG = re.compile(r"Initializing a V1 LLM engine \(v([^)]*)\) with config: (.*)")
CORES = re.compile(r"local_rank=\d+, core ids=\[([\d, ]*)\]")
CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")  # all that versions before the metric say of it
OVERRIDDEN = re.compile(r"[Dd]efault (?:vLLM )?sampling parameters have been overridden.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A server's own words. ``cores`` is empty where it binds to none."""

    version: str
    model: str
    max_sequence: int
    dtype: str
    device: str
    quantization: str
    settings: dict[str, str]
    kv_tokens: int | None
    cores: tuple[int, ...]
    defaults: str  # sampling defaults that it took from the model, in words; empty when none


def read_report(version: Mapping[str, Any], models: Mapping[str, Any], metrics: str, log: str) -> Report:
    """Raises EngineError where the server does not say what it must."""
    line = CONFIG.search(log)
    if line is None:
        raise EngineError("the server does not report its configuration", cause="no such line in its log")
    said = line.group(2)
    try:
        (model,) = models["data"]
        longest, name, number = int(model["max_model_len"]), str(model["id"]), str(version["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError("the server does not report its version and model", cause=repr(error)) from error
    cache = read_cache_settings(metrics)
    settings = {
        "enforce_eager": _field(said, "enforce_eager"),
        "kv_cache_dtype": _field(said, "kv_cache_dtype"),
        "prefix_caching": _field(said, "enable_prefix_caching"),
        "chunked_prefill": _field(said, "enable_chunked_prefill"),
        "tensor_parallel": _field(said, "tensor_parallel_size"),
        "pipeline_parallel": _field(said, "pipeline_parallel_size"),
        "speculative": _speculative(said),
        "block_size": cache.get("block_size", "unknown"),
        "quantization": _field(said, "quantization"),
    }
    logged = CACHE.search(log)
    tokens = cache.get("kv_cache_size_tokens", logged.group(1).replace(",", "") if logged else "")
    bound = CORES.search(log)
    overridden = OVERRIDDEN.search(log)
    return Report(
        version=number.partition("+")[0], model=name, max_sequence=longest,
        dtype=_field(said, "dtype").removeprefix("torch."), device=_field(said, "device_config"),
        quantization=_method(settings["quantization"]), settings=settings,
        kv_tokens=int(tokens) if tokens.isdigit() else None,
        cores=tuple(int(core) for core in bound.group(1).split(",") if core.strip()) if bound else (),
        defaults=overridden.group(0) if overridden else "",
    )  # fmt: skip


def mismatches(manifest: Manifest, report: Report) -> list[Problem]:
    """Everything that the server says otherwise than the manifest; what that leaves to the engine is not asked."""
    engine, args = manifest.engine, manifest.engine.args or VllmArgs()
    wanted: dict[str, tuple[object, object]] = {
        "name": (manifest.name, report.model),
        "engine.args.enforce_eager": (str(args.enforce_eager), report.settings["enforce_eager"]),
        "quantization.kv_dtype": (manifest.quantization.kv_dtype, report.settings["kv_cache_dtype"]),
        "engine.args.tensor_parallel": (str(args.tensor_parallel), report.settings["tensor_parallel"]),
        "engine.args.pipeline_parallel": (str(args.pipeline_parallel), report.settings["pipeline_parallel"]),
        "engine.speculative": (_wanted_speculative(manifest), report.settings["speculative"]),
    }
    for name in ("prefix_caching", "chunked_prefill", "block_size"):
        value = getattr(args, name)
        if value is not None:
            wanted[f"engine.args.{name}"] = (str(value), report.settings[name])
    if engine.device == "cpu" and report.cores:
        wanted["engine.threads"] = (engine.threads, len(report.cores))
    problems = [
        Problem(
            file=manifest.name, line=None, path=path, expected=str(want), found=f"{have} (the server says)"
        )
        for path, (want, have) in wanted.items()
        if want != have
    ]
    if report.defaults:
        expected = "no sampling default but the manifest's"
        problems.append(
            Problem(
                file=manifest.name, line=None, path="sampling", expected=expected, found=report.defaults[:300]
            )
        )
    if report.kv_tokens is not None and report.kv_tokens < manifest.limits.max_sequence:
        expected = (
            f"a cache of at least one sequence of limits.max_sequence = {manifest.limits.max_sequence} tokens"
        )
        found = f"{report.kv_tokens} (the server says)"
        problems.append(Problem(file=manifest.name, line=None, path="engine", expected=expected, found=found))
    return problems


def _method(said: str) -> str:
    """The method of a quantization; vLLM adds to its name the kernels that it chose, which stay in the settings."""
    return "none" if said == "None" else said.removeprefix("auto_").removesuffix("_marlin")


def _field(said: str, name: str) -> str:
    found = re.search(rf"(?:^|, ){name}=([^,)]*)", said)
    if found is None:
        raise EngineError("the server does not report its configuration", cause=f"{name} is missing")
    return found.group(1).strip("'\" ")


def _speculative(said: str) -> str:
    found = re.search(r"(?:^|, )speculative_config=(None|SpeculativeConfig\(([^)]*)\))", said)
    if found is None:
        raise EngineError(
            "the server does not report its configuration", cause="speculative_config is missing"
        )
    if found.group(1) == "None":
        return "none"
    method = re.search(r"method='?(\w+)", found.group(2))
    tokens = re.search(r"num_spec(?:ulative)?_tokens=(\d+)", found.group(2))
    return f"{method.group(1) if method else '?'} {tokens.group(1) if tokens else '?'}"


def _wanted_speculative(manifest: Manifest) -> str:
    setting = manifest.engine.speculative
    if setting is None:
        return "none"
    name = (
        "draft_model" if isinstance(setting, Draft) else "eagle3" if isinstance(setting, Eagle3) else "ngram"
    )
    return f"{name} {setting.num_tokens}"
