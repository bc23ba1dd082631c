"""The guard's warm-up: distinct requests of several lengths, so that the first client meets compiled kernels.

It works with any engine and sends texts of the lengths that the guard's policy names. The gate's warm-up of a vLLM
server (``engines.vllm.measurement_warmup``) is another one: it sends what a measurement sends.
"""

from __future__ import annotations

import random

import aiohttp

from checkweigh.engines.http.client import Endpoint
from checkweigh.guard.guard_policy import Warmup

_WORDS = (
    "gram", "belt", "seal", "order", "crate", "label", "line", "shift", "scale", "box", "pallet", "weight",
)  # fmt: skip


class WarmupFailed(Exception):
    """A request did not come back whole."""


async def warm_up(endpoint: Endpoint, limits: Warmup) -> None:
    """One request of each length, one after the other. Raises WarmupFailed."""
    for length in limits.lengths:
        await complete(endpoint, length, limits.tokens, limits.timeout_s)


async def complete(endpoint: Endpoint, length: int, tokens: int, seconds: float) -> None:
    """One completion of about ``length`` prompt tokens, never the same twice. Raises WarmupFailed."""
    rng = random.Random()
    prompt = " ".join(rng.choice(_WORDS) for _ in range(length))
    body = {"model": endpoint.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    headers = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds), headers=headers) as session,
            session.post(endpoint.url.rstrip("/") + "/completions", json=body) as answer,
        ):
            value = await answer.json()
            if answer.status != 200 or not value["choices"]:
                raise WarmupFailed(f"status {answer.status} for {length} words: {str(value)[:200]}")
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise WarmupFailed(f"{type(error).__name__} for {length} words") from error
