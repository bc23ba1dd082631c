"""The guard's own Prometheus metrics."""

from __future__ import annotations

from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SMALL = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)


class GuardMetrics:
    """All metrics, in a registry of their own. Gauges are set when they are read."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "checkweigh_requests", "requests by what became of them", ("arm", "tier", "outcome"), registry=own
        )
        self.sheds = Counter("checkweigh_sheds", "refusals for load", ("tier", "status"), registry=own)
        self.upstream = Counter(
            "checkweigh_upstream_attempts", "requests sent to the engine", ("arm",), registry=own
        )
        self.degraded = Counter(
            "checkweigh_degraded", "answers that were cut shorter", ("arm",), registry=own
        )
        self.lost_lines = Gauge(
            "checkweigh_traffic_lines_lost", "log lines that could not be written, ever", registry=own
        )
        self.queue_s = Histogram(
            "checkweigh_queue_seconds", "wait before the engine", ("tier",), buckets=_SECONDS, registry=own
        )
        self.first_s = Histogram(
            "checkweigh_first_byte_seconds", "arrival to first byte", ("arm",), buckets=_SECONDS, registry=own
        )
        self.total_s = Histogram(
            "checkweigh_total_seconds", "arrival to last byte", ("arm",), buckets=_SECONDS, registry=own
        )
        self.own_s = Histogram(
            "checkweigh_own_seconds", "spent in the guard before the engine was asked, without the queue",
            buckets=_SMALL, registry=own,
        )  # fmt: skip
        self.inside = Gauge("checkweigh_inside_requests", "requests in the engine", ("arm",), registry=own)
        self.tokens = Gauge("checkweigh_inside_tokens", "KV tokens charged to them", ("arm",), registry=own)
        self.budget = Gauge(
            "checkweigh_budget_tokens", "KV tokens that may be charged", ("arm",), registry=own
        )
        self.waiting = Gauge("checkweigh_waiting_requests", "in the queue", ("arm", "tier"), registry=own)
        self.oldest_s = Gauge(
            "checkweigh_queue_age_seconds", "the longest wait in the queue", ("arm",), registry=own
        )
        self.ready = Gauge("checkweigh_ready", "1: takes requests", ("arm",), registry=own)
        self.saturated = Gauge("checkweigh_saturated", "1: the engine counts as full", ("arm",), registry=own)
        self.breaker = Gauge("checkweigh_breaker", "0 closed, 1 half-open, 2 open", ("arm",), registry=own)
        self.trips = Gauge("checkweigh_breaker_trips", "times the breaker opened", ("arm",), registry=own)
        self.restarts = Gauge("checkweigh_restarts", "of the engine's process", ("arm",), registry=own)
        self.kv = Gauge("checkweigh_engine_kv_usage", "as the engine says", ("arm",), registry=own)
        self.resident = Gauge("checkweigh_engine_resident_bytes", "of its processes", ("arm",), registry=own)
        self.swap_rate = Gauge("checkweigh_host_swap_bytes_per_second", "in and out", registry=own)
        self.free = Gauge(
            "checkweigh_memory_free_share", "the host's, or its limit's in a container", registry=own
        )
        self.gpu_free = Gauge(
            "checkweigh_gpu_memory_free_share", "of the fullest GPU; NaN without one", registry=own
        )
        for share in (self.free, self.gpu_free):
            share.set(nan)  # until it is read
        self.weight = Gauge(
            "checkweigh_candidate_weight", "share of sessions the candidate gets", registry=own
        )
        self.alarm = Gauge("checkweigh_candidate_alarm", "1: the candidate was switched off", registry=own)
        self.deviation = Gauge(
            "checkweigh_p99_deviation", "1: p99 is beyond the gated baseline's", registry=own
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
