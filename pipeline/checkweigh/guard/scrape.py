"""vLLM's /metrics -> one reading. Pure."""

from __future__ import annotations

import re

from checkweigh.guard.admission.saturation import Scrape

_LINE = re.compile(rb"^vllm:([a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_CAPACITY = re.compile(rb'kv_cache_size_tokens="(\d+)"')
_NEEDED = (b"num_requests_running", b"num_requests_waiting", b"kv_cache_usage_perc")


def read(text: bytes, at: float) -> Scrape:
    """Sums over engines, and the fullest of their caches. ValueError when what must be there is not, or is NaN."""
    sums: dict[bytes, float] = {}
    fullest = 0.0
    capacity: int | None = None
    for name, labels, value in _LINE.findall(text):
        if name == b"cache_config_info" and (found := _CAPACITY.search(labels)):
            capacity = (capacity or 0) + int(found[1])
            continue
        number = float(value)
        sums[name] = sums.get(name, 0.0) + number
        if name == b"kv_cache_usage_perc":
            if not 0 <= number <= 1:
                raise ValueError(f"a KV usage of {number}")
            fullest = max(fullest, number)
    if gone := [name.decode() for name in _NEEDED if name not in sums or sums[name] != sums[name]]:
        raise ValueError(f"no {', '.join(gone)} in the metrics")
    return Scrape(
        at=at,
        kv=fullest,
        running=sums[b"num_requests_running"],
        waiting=sums[b"num_requests_waiting"],
        steps=sums.get(b"iteration_tokens_total_count", 0.0),
        tokens=sums.get(b"generation_tokens_total", 0.0),
        hits=sums.get(b"prefix_cache_hits_total", 0.0),
        queries=sums.get(b"prefix_cache_queries_total", 0.0),
        kv_tokens=capacity,
    )
