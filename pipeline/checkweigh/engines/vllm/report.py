"""What a vLLM server reports of itself, and where it differs from its manifest. Pure.

The server reports its version and longest sequence over HTTP, and its cache in a metric. Its settings are in one line
of its log, written by the engine's own process: "Initializing a V1 LLM engine (v0.32.0) with config: ...". What it
loaded is in its workers' accounts (``account``), in the log too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkweigh.engines.vllm.account import eos_of, goes_on, loaded, read_accounts
from checkweigh.engines.vllm.server_metrics import read_cache_settings
from checkweigh.errors import EngineError, Problem
from checkweigh.records.manifest import Draft, Eagle3, Manifest, VllmArgs

CONFIG = re.compile(r"Initializing a V1 LLM engine \(v([^)]*)\) with config: (.*)")
CORES = re.compile(r"local_rank=\d+, core ids=\[([\d, ]*)\]")
CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")  # all that versions before the metric say of it
OVERRIDDEN = re.compile(r"[Dd]efault (?:vLLM )?sampling parameters have been overridden.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """What a server reports of itself. ``cores`` is empty where it binds to none."""

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
    eos: tuple[int, ...]
    effective: dict[str, str]
    goes_on: tuple[str, ...]  # what it warned of and went on


def read_report(
    version: Mapping[str, Any], models: Mapping[str, Any], metrics: str, log: str, key: str
) -> ServerReport:
    """A server's report, from its answers to /version, /v1/models and /metrics and from its log; ``key`` is its own.

    Raises EngineError where the server does not report what it must, Unaccounted where it does not say what it loaded.
    """
    line = CONFIG.search(log)
    if line is None:
        raise EngineError("the server does not report its configuration", cause="no such line in its log")
    config = line.group(2)
    try:
        (model,) = models["data"]
        longest, name, number = int(model["max_model_len"]), str(model["id"]), str(version["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError("the server does not report its version and model", cause=repr(error)) from error
    cache = read_cache_settings(metrics)
    settings = {
        "enforce_eager": _field(config, "enforce_eager"),
        "kv_cache_dtype": _field(config, "kv_cache_dtype"),
        "prefix_caching": _field(config, "enable_prefix_caching"),
        "chunked_prefill": _field(config, "enable_chunked_prefill"),
        "tensor_parallel": _field(config, "tensor_parallel_size"),
        "pipeline_parallel": _field(config, "pipeline_parallel_size"),
        "speculative": _speculative(config),
        "block_size": cache.get("block_size", "unknown"),
        "quantization": _field(config, "quantization"),
    }
    logged = CACHE.search(log)
    tokens = cache.get("kv_cache_size_tokens", logged.group(1).replace(",", "") if logged else "")
    bound = CORES.search(log)
    overridden = OVERRIDDEN.search(log)
    accounts = read_accounts(log, key)
    return ServerReport(
        version=number.partition("+")[0], model=name, max_sequence=longest,
        dtype=_field(config, "dtype").removeprefix("torch."), device=_field(config, "device_config"),
        quantization=_method(settings["quantization"]), settings=settings,
        kv_tokens=int(tokens) if tokens.isdigit() else None,
        cores=tuple(int(core) for core in bound.group(1).split(",") if core.strip()) if bound else (),
        defaults=overridden.group(0) if overridden else "",
        eos=eos_of(accounts), effective=loaded(accounts), goes_on=goes_on(log),
    )  # fmt: skip


def mismatches(manifest: Manifest, report: ServerReport) -> list[Problem]:
    """Every difference between the manifest and the report; what the manifest leaves to the engine is not compared."""
    engine, args = manifest.engine, manifest.engine.args or VllmArgs()
    compared: dict[str, tuple[object, object]] = {
        "name": (manifest.name, report.model),
        "engine.args.enforce_eager": (str(args.enforce_eager), report.settings["enforce_eager"]),
        "quantization.kv_dtype": (manifest.quantization.kv_dtype, report.settings["kv_cache_dtype"]),
        "engine.args.tensor_parallel": (str(args.tensor_parallel), report.settings["tensor_parallel"]),
        "engine.args.pipeline_parallel": (str(args.pipeline_parallel), report.settings["pipeline_parallel"]),
        "engine.speculative": (_declared_speculative(manifest), report.settings["speculative"]),
    }
    if (manifest.draft is not None) != ("draft" in report.effective):
        compared["engine.speculative.model"] = (
            "none" if manifest.draft is None else "a drafting model",
            report.effective.get("draft", "none was loaded"),
        )
    if not _computes(manifest.quantization.method, json.loads(report.effective["modules"])):
        compared["quantization.method"] = (
            manifest.quantization.method,
            f"modules {report.effective['modules']}",
        )
    for name in ("prefix_caching", "chunked_prefill", "block_size"):
        value = getattr(args, name)
        if value is not None:
            compared[f"engine.args.{name}"] = (str(value), report.settings[name])
    if engine.device == "cpu" and report.cores:
        compared["engine.threads"] = (engine.threads, len(report.cores))
    problems = [
        Problem(
            file=manifest.name,
            line=None,
            path=path,
            expected=str(declared),
            found=f"{reported} (the server says)",
        )
        for path, (declared, reported) in compared.items()
        if declared != reported
    ]
    if report.defaults:
        expected = "no sampling default but the manifest's"
        problems.append(
            Problem(
                file=manifest.name, line=None, path="sampling", expected=expected, found=report.defaults[:300]
            )
        )
    problems += [
        Problem(
            file=manifest.name, line=None, path="model", expected="all of the checkpoint, and nothing else",
            found=f"{line} (the server warns)",
        )
        for line in report.goes_on
    ]  # fmt: skip
    if report.kv_tokens is not None and report.kv_tokens < manifest.limits.max_sequence:
        expected = (
            f"a cache of at least one sequence of limits.max_sequence = {manifest.limits.max_sequence} tokens"
        )
        found = f"{report.kv_tokens} (the server says)"
        problems.append(Problem(file=manifest.name, line=None, path="engine", expected=expected, found=found))
    return problems


def _method(quantization: str) -> str:
    """The method of a quantization. vLLM adds to its name the kernels that it chose, which stay in the settings."""
    return "none" if quantization == "None" else quantization.removeprefix("auto_").removesuffix("_marlin")


def _computes(method: str, modules: Mapping[str, int]) -> bool:
    """Whether modules compute as a manifest's method says, by the names of vLLM's classes."""
    found = [kind.lower() for kind in modules if kind != "none"]
    return not found if method == "none" else any(method.replace("-", "") in kind for kind in found)


def _field(config: str, name: str) -> str:
    """A field of the logged configuration. EngineError: it is missing."""
    match = re.search(rf"(?:^|, ){name}=([^,)]*)", config)
    if match is None:
        raise EngineError("the server does not report its configuration", cause=f"{name} is missing")
    return match.group(1).strip("'\" ")


def _speculative(config: str) -> str:
    """Method and number of tokens of the logged speculation, or "none". EngineError: it is missing."""
    match = re.search(r"(?:^|, )speculative_config=(None|SpeculativeConfig\(([^)]*)\))", config)
    if match is None:
        raise EngineError(
            "the server does not report its configuration", cause="speculative_config is missing"
        )
    if match.group(1) == "None":
        return "none"
    method = re.search(r"method='?(\w+)", match.group(2))
    tokens = re.search(r"num_spec(?:ulative)?_tokens=(\d+)", match.group(2))
    return f"{method.group(1) if method else '?'} {tokens.group(1) if tokens else '?'}"


def _declared_speculative(manifest: Manifest) -> str:
    """The manifest's speculation in the words of ``_speculative``."""
    setting = manifest.engine.speculative
    if setting is None:
        return "none"
    name = (
        "draft_model" if isinstance(setting, Draft) else "eagle3" if isinstance(setting, Eagle3) else "ngram"
    )
    return f"{name} {setting.num_tokens}"
