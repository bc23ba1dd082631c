"""vLLM's /metrics: recorded ones, the mock's, and texts that must not be believed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from checkweigh.engines.mock.mock_metrics import MockMetrics
from checkweigh.engines.vllm.server_metrics import (
    parse_metrics,
    read_cache_settings,
    read_scrape,
    read_telemetry,
    require_cold,
)
from checkweigh.errors import BadInput, EngineError

METRICS = """# HELP vllm:num_preemptions_total Cumulative number of preemptions from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.795591953103923e+09
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 2104.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 2104.0
vllm:generation_tokens_total{engine="0",model_name="m"} 16.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 2089.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 128.0
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 40.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 1.2e+01
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 8.0
vllm:cache_config_info{block_size="128",cache_dtype="auto",kv_cache_memory_bytes="1073741824",kv_cache_size_tokens="46592",swap="a\\"b"} 1.0
"""  # noqa: E501
CACHE = 'vllm:cache_config_info{engine="1",kv_cache_size_tokens="1000"} 1.0\n'


def second_engine(text: str) -> str:
    """The same samples again, of an engine 1."""
    return text.replace('engine="0"', 'engine="1"')


def test_counters_are_read() -> None:
    telemetry = read_telemetry(METRICS)
    assert (telemetry.prompt_tokens, telemetry.generated_tokens, telemetry.preemptions) == (2104, 16, 3)
    assert (telemetry.cache_queries, telemetry.cache_hits, telemetry.kv_use) == (2089, 128, 0.25)
    assert (telemetry.drafts, telemetry.drafted, telemetry.accepted) == (10, 40, 12)


def test_a_server_without_counters_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match=r"no metrics of its own \(vllm:prompt_tokens_total is missing\)"):
        read_telemetry("up 1\n")


def test_the_load_of_the_mock_is_read_and_a_missing_metric_is_an_error() -> None:
    metrics = MockMetrics("m", 5000)
    metrics.kv.set(0.25)
    metrics.waiting.set(3)
    metrics.iterations.observe(4)
    metrics.generation_tokens.inc(4)
    scrape = read_scrape(metrics.text(), 7.0)
    assert (scrape.at, scrape.kv, scrape.waiting, scrape.steps) == (7.0, 0.25, 3, 1)
    assert (scrape.tokens, scrape.kv_tokens) == (4, 5000)
    with pytest.raises(
        ValueError, match="no num_requests_running, num_requests_waiting, kv_cache_usage_perc"
    ):
        read_scrape(b"", 0.0)
    metrics.kv.set(math.nan)
    with pytest.raises(ValueError, match="KV usage"):
        read_scrape(metrics.text(), 0.0)


def test_engines_of_one_server_are_summed_and_the_fullest_cache_counts() -> None:
    both = METRICS + second_engine(METRICS).replace("perc{engine=\"1\",model_name=\"m\"} 0.25",
                                                    "perc{engine=\"1\",model_name=\"m\"} 0.9")  # fmt: skip
    both = (
        both.replace("vllm:cache_config_info{block_size", 'vllm:cache_config_info{e="0",block_size', 1)
        + CACHE
    )
    scrape = read_scrape(both.encode(), 0.0)
    assert (scrape.running, scrape.tokens, scrape.kv, scrape.kv_tokens) == (4, 32, 0.9, 2 * 46592 + 1000)
    telemetry = read_telemetry(both)
    assert (telemetry.prompt_tokens, telemetry.kv_use) == (4208, 0.9), "a share is not a sum"


def test_settings_of_the_cache_are_read_as_they_are_escaped() -> None:
    settings = read_cache_settings(METRICS)
    assert (settings["block_size"], settings["kv_cache_size_tokens"], settings["swap"]) == (
        "128", "46592", 'a\\"b',
    )  # fmt: skip
    assert read_cache_settings("up 1\n") == {}
    assert (
        read_scrape(METRICS.replace('size_tokens="46592"', 'size_tokens="unknown"').encode(), 0).kv_tokens
        is None
    )
    other = METRICS.replace("kv_cache_size_tokens", "no_kv_cache_size_tokens")
    assert read_scrape(other.encode(), 0).kv_tokens is None, "another label that ends the same"


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        ("vllm:num_requests_swapped 1_000", "a value with an underscore"),
        ("vllm:num_requests_swapped many", "could not convert"),
        ("vllm:num_requests_swapped -", "could not convert"),
        ('vllm:kv_cache_usage_perc{engine="1"} NaN', "a KV usage of nan"),
        ('vllm:kv_cache_usage_perc{engine="1"} 1.5', "a KV usage of 1.5"),
        ('vllm:kv_cache_usage_perc{engine="1"} -0.1', "a KV usage of -0.1"),
        ('vllm:prefix_cache_hits_total{engine="1"} NaN', "vllm:prefix_cache_hits_total is nan"),
        ('vllm:generation_tokens_total{engine="1"} +Inf', "vllm:generation_tokens_total is inf"),
        ('vllm:prompt_tokens_total{engine="0",model_name="m"} 2104.0', "occurs twice with the same labels"),
        ('vllm:prompt_tokens_total{model_name="m",engine="0"} 2104.0', "occurs twice with the same labels"),
        ('vllm:generation_tokens_total{engine="1"} -9', "vllm:generation_tokens_total is nan"),
        ('vllm:cache_config_info{block_size="1",block_size="2"} 1.0', "a label occurs twice"),
    ],
)
def test_what_cannot_be_believed_is_refused_by_gate_and_guard(sample: str, cause: str) -> None:
    text = f"{METRICS}{sample}\n"
    with pytest.raises(EngineError, match="metrics of the server cannot be read") as refused:
        read_telemetry(text)
    assert cause in str(refused.value)
    with pytest.raises(ValueError, match=cause):
        read_scrape(text.encode(), 0.0)


@pytest.mark.parametrize("name", ["num_requests_running", "num_requests_waiting"])
def test_a_queue_that_is_nan_is_missing_and_one_without_end_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no {name} in the metrics"):
        read_scrape(f'{METRICS}vllm:{name}{{engine="1"}} NaN\n'.encode(), 0.0)
    with pytest.raises(ValueError, match=f"vllm:{name} is inf"):
        read_scrape(f'{METRICS}vllm:{name}{{engine="1"}} +Inf\n'.encode(), 0.0)


def test_steps_that_are_nan_are_no_heartbeat() -> None:
    with pytest.raises(ValueError, match="iteration_tokens_total_count is nan"):
        read_scrape(f"{METRICS}vllm:iteration_tokens_total_count NaN\n".encode(), 0.0)


def test_samples_of_others_are_left_alone() -> None:
    metrics = parse_metrics(b"python_info NaN\nother:thing many\n# vllm:x 1\n")
    assert (metrics.totals, metrics.fullest, metrics.caches) == ({}, 0.0, ())


def test_a_warm_cache_while_timing_is_refused() -> None:
    cold = read_telemetry(METRICS)
    require_cold(cold, cold)
    asked = replace(cold, cache_queries=cold.cache_queries + 1000)
    require_cold(cold, replace(asked, cache_hits=cold.cache_hits + 10))
    with pytest.raises(BadInput, match=r"2% of the timed prompts \(20 of 1000"):
        require_cold(cold, replace(asked, cache_hits=cold.cache_hits + 20))
