"""The warm-up of a vLLM server before it measures: the first request of a kind compiles kernels for seconds.

The guard's warm-up (``guard.supervision.warmup``) is another one: it sends texts of the lengths that its policy names,
to any engine. This one sends token ids and asks for log-probabilities, because a measurement does.
"""

from __future__ import annotations

import secrets

import numpy as np

from checkweigh.engines.http.batches import BatchClient, gather_all
from checkweigh.engines.http.client import VLLM_IDS, StreamRequest
from checkweigh.engines.protocol import ScoreRequest

LENGTHS = (6, 48, 160, 400)  # of prompts, in tokens
TOGETHER = 4  # prompts of each length


async def warm_up(batches: BatchClient, vocabulary_size: int) -> None:
    """Send distinct prompts of several lengths, alone and together, and one that is scored."""
    rng = np.random.default_rng(0)
    longest = batches.manifest.limits.max_sequence - 16
    for length in sorted({min(length, longest) for length in LENGTHS}):
        prompts = rng.integers(0, vocabulary_size, (TOGETHER, length)).tolist()
        requests = [
            StreamRequest(
                id=f"warm-up {length}-{i}", max_tokens=4, prompt_ids=tuple(ids), exact=True,
                extra={**VLLM_IDS, "cache_salt": secrets.token_hex(16)},
            )
            for i, ids in enumerate(prompts)
        ]  # fmt: skip
        await batches.client.stream(requests[0])
        await gather_all([batches.client.stream(request) for request in requests[1:]])
    text = "The box is weighed against a standard. " * 4
    await batches.score(
        [ScoreRequest(id="warm-up", messages=None, continuations=(text,), top_k=k) for k in (0, 1)]
    )
