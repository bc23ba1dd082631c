"""Replies: one static batch with a key-value cache, advanced token by token.

Prompts are padded on the left. Rows that have ended are dropped from the batch and its cache once half of it
has ended. Of the model's own generation config nothing but the ids that end a reply is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from checkweigh.engines.hf.load_model import LoadedModel, Tensor
from checkweigh.engines.hf.shared_prefix import expand_cache, run_prefix, shared_length
from checkweigh.records.manifest import Sampling
from checkweigh.records.measurement import Speculated

STOP_WINDOW = 16  # tokens more than a stop string has characters: enough to see it whole


@dataclass(slots=True, kw_only=True)
class GrowingReply:
    """One row of a batch and its reply so far."""

    id: str
    prompt: tuple[int, ...]
    room: int  # most new tokens
    exact: bool  # EOS and stop strings do not end it
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # seconds since ``sent``
    text: str = ""
    finish: Literal["stop", "length", "non_finite"] | None = None
    draws: Any = None  # numpy Generator of this reply's own
    speculated: Speculated | None = None


def split_replies(replies: Sequence[GrowingReply], max_batch: int, budget: int) -> list[list[GrowingReply]]:
    """Batches of at most ``max_batch`` rows whose caches hold at most ``budget`` tokens, or of one row."""
    parts: list[list[GrowingReply]] = []
    prompt = room = 0
    for reply in replies:
        longer, more = max(prompt, len(reply.prompt)), max(room, reply.room)
        if parts and len(parts[-1]) < max_batch and (len(parts[-1]) + 1) * (longer + more) <= budget:
            parts[-1].append(reply)
            prompt, room = longer, more
        else:
            parts.append([reply])
            prompt, room = len(reply.prompt), reply.room
    return parts


def generate(loaded: LoadedModel, replies: Sequence[GrowingReply], sampling: Sampling, sent: float) -> None:
    """Complete the replies, which form one batch. Must run in inference mode."""
    for reply in replies:
        reply.draws = _draws(sampling.seed, reply)
    live = list(replies)
    hidden, cache, mask = _prefill(loaded, live)
    while True:
        logits = loaded.head(hidden)
        finite = logits.amax(-1).isfinite().tolist()  # NaN and infinity both reach the maximum
        chosen = choose(logits, sampling, live)
        now = time.monotonic() - sent
        for reply, token, sound in zip(live, chosen, finite, strict=True):
            if not sound:
                reply.finish = reply.finish or "non_finite"
            if reply.finish is None:
                append(loaded, reply, token, now, sampling.stop)
        running = [i for i, reply in enumerate(live) if reply.finish is None]
        if not running:
            return
        if 2 * len(running) <= len(live):
            live, chosen, mask = [live[i] for i in running], [chosen[i] for i in running], mask[running]
            _keep(cache, torch.tensor(running, device=loaded.device))
        hidden, mask = _step(loaded, chosen, cache, mask)


def _draws(seed: int, reply: GrowingReply) -> np.random.Generator:
    """Numbers that depend on the pinned seed, the item and its prompt, not on the batch around it."""
    text = repr((seed, reply.id, reply.prompt)).encode("utf-8", "surrogatepass")
    return np.random.Generator(
        np.random.Philox(int.from_bytes(blake2b(text, digest_size=16).digest(), "big"))
    )


def _prefill(loaded: LoadedModel, live: Sequence[GrowingReply]) -> tuple[Tensor, Any, Tensor]:
    """Hidden states of the prompts' last tokens (B, hidden), the cache, its mask (B, K): 1 for tokens."""
    shared = shared_length(loaded, [reply.prompt for reply in live])
    width = max(len(reply.prompt) for reply in live) - shared
    ids = np.full((len(live), width), loaded.pad, np.int64)
    mask = np.ones((len(live), shared + width), np.int64)
    for b, reply in enumerate(live):
        own = reply.prompt[shared:]
        ids[b, width - len(own) :] = own
        mask[b, shared : shared + width - len(own)] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, shared:]
    cache = DynamicCache(config=loaded.model.config)
    if shared:
        cache = expand_cache(run_prefix(loaded, live[0].prompt[:shared]), len(live))
    place = loaded.device
    known = torch.from_numpy(mask).to(place)
    out = loaded.base(
        input_ids=torch.from_numpy(ids).to(place),
        attention_mask=known,
        position_ids=torch.from_numpy(positions).to(place),
        past_key_values=cache,
        use_cache=True,
    )
    return out.last_hidden_state[:, -1], cache, known


def _step(loaded: LoadedModel, chosen: Sequence[int], cache: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Feed one token a row; hidden states (B, hidden) and the mask with one column more."""
    positions = mask.sum(1, keepdim=True)
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    out = loaded.base(
        input_ids=torch.tensor(chosen, device=loaded.device).unsqueeze(1),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return out.last_hidden_state[:, -1], mask


def _keep(cache: Any, rows: Tensor) -> None:
    for layer in cache.layers:
        layer.reorder_cache(rows)


def choose(logits: Tensor, sampling: Sampling, live: Sequence[GrowingReply]) -> list[int]:
    """One token id a row from (B, vocabulary) float32 logits: the best, or drawn from the nucleus."""
    best = logits.argmax(-1)
    if sampling.temperature == 0:
        return [int(token) for token in best.tolist()]
    probabilities, order = (
        (logits / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    )
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= sampling.top_p, 0.0).double().cumsum(-1)
    draws = torch.tensor([[r.draws.random()] for r in live], dtype=torch.float64, device=logits.device)
    place = torch.searchsorted(kept, draws * kept[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return [int(token) for token in order.gather(1, place).squeeze(1).tolist()]


def append(loaded: LoadedModel, reply: GrowingReply, token: int, now: float, stops: Sequence[str]) -> None:
    """Take one token into a reply and see whether that ends it."""
    if token in loaded.eos and not reply.exact:
        reply.finish = "stop"
        return
    reply.tokens.append(token)
    reply.times.append(now)
    if stops and not reply.exact and _stopped(loaded, reply, stops):
        reply.finish = "stop"
    elif len(reply.tokens) >= reply.room:
        reply.finish = "length"


def _stopped(loaded: LoadedModel, reply: GrowingReply, stops: Sequence[str]) -> bool:
    window = max(map(len, stops)) + STOP_WINDOW
    tail = decode(loaded, reply.tokens[-window:])
    return any(stop in tail for stop in stops)


def decode(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """Text of the tokens, special ones left out."""
    return str(
        loaded.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def text_of(loaded: LoadedModel, reply: GrowingReply, stops: Sequence[str]) -> str:
    """The reply's text, ended before its first stop string. Its token ids keep the stop's own tokens."""
    text = decode(loaded, reply.tokens)
    positions = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(positions)] if positions and not reply.exact else text
