"""Replies by transformers' continuous batching: rows join and leave a running batch, keys and values lie in pages.

For a GPU; on a CPU it runs, and is slower than the static batch of ``hf_generate``. Greedy only. Ends and stop strings
are found in what comes back, as in the static batch, so that both end a reply at the same token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from checkweigh.engines.hf.generate import GrowingReply, append
from checkweigh.engines.hf.load_model import LoadedModel
from checkweigh.errors import EngineError

PAGE = 32  # tokens a page


def generate(
    loaded: LoadedModel,
    replies: Sequence[GrowingReply],
    stops: Sequence[str],
    sent: float,
    pages: ContinuousBatchingConfig,
) -> None:
    """Complete the replies. EngineError: the batching failed on one, or gave none. Must run in inference mode."""
    for exact, room in sorted({(reply.exact, reply.room) for reply in replies}):
        alike = [reply for reply in replies if (reply.exact, reply.room) == (exact, room)]
        for reply, found in zip(alike, _run(loaded, alike, exact, room, pages), strict=True):
            _take(loaded, reply, found, stops, sent)


def pages_for(budget: int, max_batch: int, max_batch_tokens: int) -> ContinuousBatchingConfig:
    """A cache of at most ``budget`` tokens and a page begun for each row; nothing is inferred from the machine."""
    return ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=math.ceil(budget / PAGE) + max_batch, max_batch_tokens=max_batch_tokens,
        max_requests_per_batch=max_batch, auto_switch_to_flash=False, return_logprobs=True, seed=0,
    )  # fmt: skip


def _run(
    loaded: LoadedModel,
    replies: Sequence[GrowingReply],
    exact: bool,
    room: int,
    pages: ContinuousBatchingConfig,
) -> list[Any]:
    """One finished output for each reply, in their order."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=room, pad_token_id=loaded.pad,
        eos_token_id=[-1] if exact or not loaded.eos else list(loaded.eos),
    )  # fmt: skip
    completed = loaded.model.generate_batch(
        [list(reply.prompt) for reply in replies], generation_config=config, continuous_batching_config=pages,
        record_timestamps=True, warmup=False,
    )  # fmt: skip
    outputs = list(completed.values())
    if len(outputs) != len(replies):
        raise EngineError(f"continuous batching gave {len(outputs)} replies of {len(replies)}")
    for reply, output in zip(replies, outputs, strict=True):
        if output.error is not None or not output.is_finished():
            raise EngineError("continuous batching failed", cause=str(output.error or output.status))
        if tuple(output.prompt_ids) != reply.prompt:
            raise EngineError("continuous batching answered another prompt than it was asked")
    return outputs


def _take(loaded: LoadedModel, reply: GrowingReply, output: Any, stops: Sequence[str], sent: float) -> None:
    """The reply's tokens up to where it ends."""
    offset = time.monotonic() - time.perf_counter() - sent
    tokens, times = output.generated_tokens, output.timestamps or []
    if not len(tokens) == len(times) == len(output.logprobs):
        raise EngineError(
            "continuous batching gave another number of times or log-probabilities than of tokens"
        )
    for token, at, logprob in zip(tokens, times, output.logprobs, strict=True):
        if not math.isfinite(logprob):
            reply.finish = "non_finite"
        if reply.finish is not None:
            return
        append(loaded, reply, int(token), at + offset, stops)
    if reply.finish is None:
        raise EngineError("continuous batching ended a reply before its end")
