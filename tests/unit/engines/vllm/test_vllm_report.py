"""What vLLM 0.32.0 really says of itself (recorded, shortened), and settings that become its command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.vllm.fake_vllm import ACCOUNT, KIND
from tests.unit.engines.vllm.test_server_metrics import METRICS
from tests.unit.engines.vllm.test_vllm import make

from checkweigh.engines.vllm.command import command, unable, variables
from checkweigh.engines.vllm.in_server.checkweigh_account import sealed
from checkweigh.engines.vllm.memory import cache_bytes
from checkweigh.engines.vllm.report import mismatches, read_report
from checkweigh.envs.capabilities import Capabilities
from checkweigh.errors import EngineError

KEY = "the server's own key"
SETTINGS = (
    "(EngineCore pid=16034) INFO 11-25 07:32:18 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='/m', speculative_config=SpeculativeConfig(method='ngram', model=None, num_spec_tokens=4), tokenizer='/m', "
    "trust_remote_code=False, dtype=torch.bfloat16, max_seq_len=2048, load_format=auto, tensor_parallel_size=1, "
    "pipeline_parallel_size=1, data_parallel_size=1, quantization=None, quantization_config=None, enforce_eager=True, "
    "kv_cache_dtype=auto, device_config=cpu, structured_outputs_config=StructuredOutputsConfig(backend='auto'), "
    "seed=0, enable_prefix_caching=True, enable_chunked_prefill=True, pooler_config=None\n"
    "(EngineCore pid=16034) INFO 11-25 07:32:18 [ompmultiprocessing.py:185] \tlocal_rank=0, core ids=[0, 1]\n"
)
LOG = SETTINGS + sealed(ACCOUNT, KEY).decode()
VERSION, MODELS = {"version": "0.32.0+cpu"}, {"data": [{"id": "tiny", "max_model_len": 2048}]}
ABILITIES = Capabilities(
    version="9.9.0", quantizations=("awq", "fp8"), options=("watermark",), speculative=("ngram", "eagle3")
)


def test_the_cache_of_a_version_without_the_metric_is_read_from_its_log() -> None:
    metrics = METRICS.replace('kv_cache_size_tokens="46592",', "")
    assert read_report(VERSION, MODELS, metrics, LOG, KEY).kv_tokens is None
    log = (
        LOG
        + "\n(EngineCore pid=1) INFO 11-27 17:48:13 [kv_cache_utils.py:1733] GPU KV cache size: 1,070,576 tokens"
    )
    assert read_report(VERSION, MODELS, metrics, log, KEY).kv_tokens == 1070576


def test_a_report_is_read() -> None:
    report = read_report(VERSION, MODELS, METRICS, LOG, KEY)
    assert (report.version, report.model, report.max_sequence) == ("0.32.0", "tiny", 2048)
    assert (report.dtype, report.device, report.quantization) == ("bfloat16", "cpu", "none")
    assert (report.kv_tokens, report.cores, report.defaults) == (46592, (0, 1), "")
    assert report.settings == {
        "enforce_eager": "True", "kv_cache_dtype": "auto", "prefix_caching": "True", "chunked_prefill": "True",
        "tensor_parallel": "1", "pipeline_parallel": "1", "speculative": "ngram 4", "block_size": "128",
        "quantization": "None",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "method"), [("None", "none"), ("fp8", "fp8"), ("awq_marlin", "awq"), ("auto_gptq", "gptq")]
)
def test_a_method_is_known_under_its_kernels_names(said: str, method: str) -> None:
    report = read_report(
        VERSION, MODELS, METRICS, LOG.replace("quantization=None", f"quantization={said}"), KEY
    )
    assert (report.quantization, report.settings["quantization"]) == (method, said)


@pytest.mark.parametrize(
    ("version", "models", "log", "what"),
    [
        (VERSION, MODELS, "", "no such line"), ({}, MODELS, LOG, "version and model"),
        (VERSION, {"data": []}, LOG, "version and model"), (VERSION, {"data": [{"id": "a"}]}, LOG, "version and model"),
        (VERSION, MODELS, LOG.replace("enforce_eager=True, ", ""), "enforce_eager is missing"),
        (VERSION, MODELS, LOG.replace("speculative_config=", "other="), "speculative_config is missing"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_say_what_it_is(version: Any, models: Any, log: str, what: str) -> None:
    with pytest.raises(EngineError, match=what):
        read_report(version, models, METRICS, log, KEY)


def test_all_differences_at_once(tmp_path: Path) -> None:
    manifest = make(tmp_path, tmp_path, engine={"threads": 3, "args": {"block_size": 16}}).manifest
    paths = {
        problem.path for problem in mismatches(manifest, read_report(VERSION, MODELS, METRICS, LOG, KEY))
    }
    assert paths == {
        "engine.args.enforce_eager",
        "engine.args.block_size",
        "engine.speculative",
        "engine.threads",
    }


@pytest.mark.parametrize(
    ("method", "modules", "agrees"),
    [
        ("none", {"none": 12}, True), ("none", {"none": 2, "AutoGPTQLinearMethod": 10}, False),
        ("gptq", {"none": 2, "AutoGPTQLinearMethod": 10}, True), ("gptq", {"none": 12}, False),
        ("awq", {"AutoGPTQLinearMethod": 12}, False), ("compressed-tensors", {"CompressedTensorsW8A8Int8": 4}, True),
        ("fp8", {"Fp8OnlineLinearMethod": 12}, True),
    ],
)  # fmt: skip
def test_modules_compute_as_the_manifest_says(
    tmp_path: Path, method: str, modules: dict[str, int], agrees: bool
) -> None:
    manifest = make(tmp_path, tmp_path, quantization={"method": method}).manifest
    account = ACCOUNT | {"model": KIND | {"modules": modules}}
    report = read_report(VERSION, MODELS, METRICS, SETTINGS + sealed(account, KEY).decode(), KEY)
    paths = {problem.path for problem in mismatches(manifest, report)}
    assert ("quantization.method" not in paths) == agrees


def test_a_warning_that_it_goes_on_with_something_else_is_a_difference(tmp_path: Path) -> None:
    warning = (
        "the checkpoint contains a different lm_head.weight, which has been used instead of tying. Set ..."
    )
    report = read_report(
        VERSION, MODELS, METRICS, f"{LOG}WARNING 11-30 [weight_tying.py:89] {warning}\n", KEY
    )
    found = [p.found for p in mismatches(make(tmp_path, tmp_path).manifest, report) if p.path == "model"]
    assert len(found) == 1
    assert "instead of tying" in found[0]
    assert read_report(VERSION, MODELS, METRICS, LOG, KEY).goes_on == ()


def test_a_drafting_model_must_be_accounted_for(tmp_path: Path) -> None:
    setting = {"method": "draft", "num_tokens": 4, "model": {"source": "path:d"}}
    manifest = make(tmp_path, tmp_path, engine={"speculative": setting}).manifest
    without = read_report(VERSION, MODELS, METRICS, LOG, KEY)
    assert "engine.speculative.model" in {p.path for p in mismatches(manifest, without)}
    log = SETTINGS + sealed(ACCOUNT | {"draft": KIND}, KEY).decode()
    paths = {p.path for p in mismatches(manifest, read_report(VERSION, MODELS, METRICS, log, KEY))}
    assert "engine.speculative.model" not in paths


def test_every_setting_reaches_the_command_line(tmp_path: Path) -> None:
    args = {
        "enforce_eager": True, "max_num_seqs": 3, "max_num_batched_tokens": 64, "prefix_caching": False,
        "chunked_prefill": True, "block_size": 16, "gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 1 << 30,
        "tensor_parallel": 2, "pipeline_parallel": 3, "scheduling": "priority",
        "extra": {"--watermark": 0.1, "--async-scheduling": True, "--disable-cascade-attn": False},
    }  # fmt: skip
    spec = make(tmp_path, tmp_path, engine={"args": args, "speculative": {"method": "ngram", "num_tokens": 4}},
                quantization={"method": "fp8", "kv_dtype": "fp8"})  # fmt: skip
    words = command(spec, Path("python"), 7, Path("t.jinja"))
    line = " ".join(words)
    for part in (
        "-m vllm.entrypoints.openai.api_server", "--quantization fp8", "--kv-cache-dtype fp8", "--enforce-eager",
        "--no-enable-prefix-caching", "--enable-chunked-prefill", "--max-num-seqs 3", "--max-num-batched-tokens 64",
        "--block-size 16", "--gpu-memory-utilization 0.5", "--kv-cache-memory-bytes 1073741824",
        "--tensor-parallel-size 2", "--pipeline-parallel-size 3", "--scheduling-policy priority", "--watermark 0.1",
        "--worker-extension-cls checkweigh_account.Account",
        '--model-loader-extra-config {"enable_weights_track": true}',
        "--async-scheduling", "--generation-config vllm", "--host 127.0.0.1", "--port 7",
    ):  # fmt: skip
        assert part in line
    assert "--disable-cascade-attn" not in line
    assert "--trust-remote-code" not in line
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config == {
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2,
    }  # fmt: skip
    assert cache_bytes(spec) == 1 << 30
    assert "key" not in line
    passed = variables(spec.manifest, "the key")
    assert passed["VLLM_API_KEY"] == "the key"
    assert passed["PYTHONSAFEPATH"] == passed["PYTHONNOUSERSITE"] == "1"
    assert {path.name for path in Path(passed["PYTHONPATH"]).glob("*.py")} == {
        "__init__.py",
        "checkweigh_account.py",
    }


@pytest.mark.parametrize(("method", "theirs"), [("draft", "draft_model"), ("eagle3", "eagle3")])
def test_drafting_models_reach_the_command_line(tmp_path: Path, method: str, theirs: str) -> None:
    setting = {"method": method, "num_tokens": 5, "model": {"source": "path:draft"}}
    spec = replace(make(tmp_path, tmp_path, engine={"speculative": setting}), draft_dir=tmp_path / "draft")
    words = command(spec, Path("python"), 7, Path("t.jinja"))
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config == {"method": theirs, "num_speculative_tokens": 5, "model": str(tmp_path / "draft")}


def test_on_a_gpu_the_headroom_is_its_memory_too(tmp_path: Path) -> None:
    spec = make(tmp_path, tmp_path, engine={"device": "cuda", "env": {}},
                limits={"max_sequence": 512, "memory_headroom": 0.25})  # fmt: skip
    words = command(spec, Path("python"), 7, Path("t.jinja"))
    assert words[words.index("--gpu-memory-utilization") + 1] == "0.75"


def test_what_an_engine_cannot_do_is_listed(tmp_path: Path) -> None:
    able = {"args": {"extra": {"--watermark": 0.1}}, "speculative": {"method": "ngram", "num_tokens": 1}}
    assert (
        unable(make(tmp_path, tmp_path, engine=able, quantization={"method": "fp8"}).manifest, ABILITIES)
        == []
    )
    draft = {"method": "draft", "num_tokens": 1, "model": {"source": "path:d"}}
    engine = {"args": {"extra": {"--no-async-scheduling": True}}, "speculative": draft}
    manifest = make(tmp_path, tmp_path, engine=engine, quantization={"method": "gptq"}).manifest
    assert [problem.path for problem in unable(manifest, ABILITIES)] == [
        "quantization.method", "engine.speculative.method", "engine.args.extra.--no-async-scheduling",
    ]  # fmt: skip
    assert unable(manifest, Capabilities(version="9.9.0")) == []  # it did not say; the server itself refuses
