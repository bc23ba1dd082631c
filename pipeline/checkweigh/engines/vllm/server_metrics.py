"""vLLM's /metrics text -> numbers. Pure.

The gate reads counters from it before and after a measurement (``read_telemetry``). The guard reads the server's load
from it every half second (``read_scrape``). Both use one parser.

The parser is written by hand. ``prometheus_client.parser`` takes 26 ms for the 670 lines of a real server, this one
0.3 ms, and the guard parses in the event loop that serves its clients.

Every sample whose name begins with ``vllm:`` must be a number, and no series may occur twice. A number that is used
must be finite and not negative. The guard needs the gauges of its load; a counter that is absent is 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from checkweigh.engines.protocol import Telemetry
from checkweigh.errors import BadInput, EngineError

_SAMPLE = re.compile(rb"^vllm:([a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_NEEDED = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
_WARMEST = 0.01  # share of looked-up tokens found in the prefix cache; above it, timed requests were not cold


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One reading of the engine's /metrics. ``steps`` and ``tokens`` only grow while the process lives."""

    at: float
    kv: float  # share of the cache in use
    running: float
    waiting: float
    steps: float  # engine iterations: the heartbeat
    tokens: float  # generated
    hits: float = 0.0  # of the prefix cache, in tokens
    queries: float = 0.0
    kv_tokens: int | None = None  # what the cache holds, where the engine says


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetrics:
    """The samples of one /metrics text.

    ``totals`` maps a name without ``vllm:`` to the sum over the server's engines. ``fullest`` is the largest share of a
    cache in use, 0 where no engine reports one. ``caches`` has the labels of ``cache_config_info``, one set an engine.
    """

    totals: Mapping[str, float]
    fullest: float
    caches: tuple[Mapping[str, str], ...]

    def total(self, name: str) -> float:
        """The sum of a metric, 0 where the server has none. ValueError: not finite, or a part is negative."""
        value = self.totals.get(name, 0.0)
        if not math.isfinite(value):
            raise ValueError(f"vllm:{name} is {value}")
        return value


def parse_metrics(text: bytes) -> ServerMetrics:
    """Read every vLLM sample of a /metrics text.

    Raises ValueError for a value that is no number, a series or a label that occurs twice, and a share of the cache
    that is not between 0 and 1.
    """
    samples = _SAMPLE.findall(text)
    series = {(name, tuple(sorted(labels.split(b",")))) for name, labels, _ in samples}  # in whatever order
    if len(series) != len(samples):
        raise ValueError("a series of vLLM occurs twice with the same labels")
    sums: dict[bytes, float] = {}
    fullest = 0.0
    caches: list[Mapping[str, str]] = []
    for name, labels, value in samples:
        number = float(value)
        # A negative one makes no number of the sum, whatever the other engines have.
        sums[name] = sums.get(name, 0.0) + (math.nan if number < 0 else number)
        if name == b"kv_cache_usage_perc":
            if not 0 <= number <= 1:
                raise ValueError(f"a KV usage of {number}")
            fullest = max(fullest, number)
        elif name == b"cache_config_info":
            caches.append(_labels(labels.decode("utf-8", "replace")))
    if b"_" in b"".join(value for _, _, value in samples):  # float() takes 1_000 for a number
        raise ValueError("a value with an underscore")
    totals = {name.decode(): number for name, number in sums.items()}
    return ServerMetrics(totals=totals, fullest=fullest, caches=tuple(caches))


def read_scrape(text: bytes, at: float) -> Scrape:
    """The server's load at the time ``at``, in seconds of any clock.

    Raises ValueError where the metrics cannot be read or lack one that is needed.
    """
    metrics = parse_metrics(text)
    if missing := [name for name in _NEEDED if math.isnan(metrics.totals.get(name, math.nan))]:
        raise ValueError(f"no {', '.join(missing)} in the metrics")
    sizes = [labels.get("kv_cache_size_tokens", "") for labels in metrics.caches]
    known = [int(size) for size in sizes if size.isascii() and size.isdigit()]
    return Scrape(
        at=at,
        kv=metrics.fullest,
        running=metrics.total("num_requests_running"),
        waiting=metrics.total("num_requests_waiting"),
        steps=metrics.total("iteration_tokens_total_count"),
        tokens=metrics.total("generation_tokens_total"),
        hits=metrics.total("prefix_cache_hits_total"),
        queries=metrics.total("prefix_cache_queries_total"),
        kv_tokens=sum(known) if known else None,
    )


def read_telemetry(text: str) -> Telemetry:
    """Counters since the server started. Raises EngineError where they are missing or cannot be read."""
    try:
        metrics = parse_metrics(text.encode())
        if "prompt_tokens_total" not in metrics.totals:
            raise EngineError(
                "the server has no metrics of its own", cause="vllm:prompt_tokens_total is missing"
            )

        def total(name: str) -> int:
            return int(metrics.total(f"{name}_total"))

        return Telemetry(
            prompt_tokens=total("prompt_tokens"), generated_tokens=total("generation_tokens"),
            preemptions=total("num_preemptions"), cache_queries=total("prefix_cache_queries"),
            cache_hits=total("prefix_cache_hits"), drafts=total("spec_decode_num_drafts"),
            drafted=total("spec_decode_num_draft_tokens"), accepted=total("spec_decode_num_accepted_tokens"),
            kv_use=metrics.fullest,
        )  # fmt: skip
    except ValueError as error:
        raise EngineError("the metrics of the server cannot be read", cause=str(error)) from error


def read_cache_settings(text: str) -> Mapping[str, str]:
    """What the server reports of its (first) cache, by name; empty where it reports nothing. EngineError: as above."""
    try:
        caches = parse_metrics(text.encode()).caches
    except ValueError as error:
        raise EngineError("the metrics of the server cannot be read", cause=str(error)) from error
    return caches[0] if caches else {}


def require_cold(before: Telemetry, after: Telemetry) -> None:
    """BadInput when timed requests found their prompts in the prefix cache, although each had a salt of its own."""
    queries, hits = after.cache_queries - before.cache_queries, after.cache_hits - before.cache_hits
    if queries > 0 and hits > _WARMEST * queries:
        raise BadInput(
            f"the prefix cache knew {hits / queries:.0%} of the timed prompts ({hits} of {queries} tokens) although "
            "each has a salt of its own: its times would say nothing; set engine.args.prefix_caching: false"
        )


def _labels(text: str) -> dict[str, str]:
    """Labels by name, as they are escaped. ValueError: a name occurs twice."""
    pairs = _LABEL.findall(text)
    labels = dict(pairs)
    if len(labels) != len(pairs):
        raise ValueError(f"a label occurs twice: {text[:200]}")
    return labels
