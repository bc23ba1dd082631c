"""The mock's /metrics, in vLLM's names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    60.0,
)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class MockMetrics:
    """One registry for each mock; every series carries ``model_name`` and ``engine`` as vLLM's do."""

    def __init__(self, model: str, kv_tokens: int) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._labels = {"model_name": model, "engine": "0"}
        self.running = self._gauge("num_requests_running")
        self.waiting = self._gauge("num_requests_waiting")
        self.kv = self._gauge("kv_cache_usage_perc")
        self.preemptions = self._counter("num_preemptions")
        self.cache_queries = self._counter("prefix_cache_queries")
        self.cache_hits = self._counter("prefix_cache_hits")
        self.prompt_tokens = self._counter("prompt_tokens")
        self.generation_tokens = self._counter("generation_tokens")
        self.drafts = self._counter("spec_decode_num_drafts")
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens")
        self.accepted_tokens = self._counter("spec_decode_num_accepted_tokens")
        self.first = self._histogram("time_to_first_token_seconds", _SECONDS)
        self.each = self._histogram("request_time_per_output_token_seconds", _SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", _SECONDS)
        self.queued = self._histogram("request_queue_time_seconds", _SECONDS)
        self.iterations = self._histogram("iteration_tokens_total", _TOKENS)
        self._success = Counter(
            "vllm:request_success",
            "finished requests",
            (*self._labels, "finished_reason"),
            registry=self.registry,
        )
        info = Gauge(
            "vllm:cache_config_info", "cache", (*self._labels, "kv_cache_size_tokens", "block_size"),
            registry=self.registry,
        )  # fmt: skip
        info.labels(**self._labels, kv_cache_size_tokens=str(kv_tokens), block_size="16").set(1)

    def succeeded(self, reason: str) -> None:
        """Count a finished request."""
        self._success.labels(**self._labels, finished_reason=reason).inc()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", name, tuple(self._labels), registry=self.registry)
        return gauge.labels(**self._labels)

    def _counter(self, name: str) -> Counter:
        counter = Counter(f"vllm:{name}", name, tuple(self._labels), registry=self.registry)
        return counter.labels(**self._labels)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", name, tuple(self._labels), registry=self.registry, buckets=buckets
        )
        return histogram.labels(**self._labels)
