"""Replies with speculation: tokens are drafted, and one forward of the model verifies them all.

transformers' assisted generation does the work, which takes one sequence at a time. A greedy draft is accepted up
to its first token that the model itself would not have chosen, so that the text is the model's own, up to ties:
several positions computed together round differently than one, and in bfloat16 nearly tied tokens may swap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from checkweigh.engines.hf.generate import GrowingReply, append
from checkweigh.engines.hf.load_model import LoadedModel, Tensor
from checkweigh.records.manifest import PromptLookup, Speculative
from checkweigh.records.measurement import Speculated


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculator:
    """How tokens are drafted; ``model`` is None where the text itself drafts.

    ``effective``: the effective configuration of that model, as canonical JSON.
    """

    setting: Speculative
    model: Any = None
    effective: str = ""


class _Watch(BaseStreamer):  # type: ignore[misc]
    """Takes the tokens of one reply as they are accepted, and counts the model's forwards."""

    def __init__(self, loaded: LoadedModel, reply: GrowingReply, stops: Sequence[str], sent: float) -> None:
        self.loaded, self.reply, self.stops, self.sent = loaded, reply, stops, sent
        self.prompt_seen = False
        self.forwards = self.drafted = self.accepted = 0

    def forwarded(self, model: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """A forward hook: what is fed beside the one newest token (at first the prompt) is a draft."""
        known = 1 if self.forwards else len(self.reply.prompt)
        self.forwards += 1
        self.drafted += kwargs["input_ids"].shape[1] - known
        if not bool(out.logits.amax(-1).isfinite().all()):
            self.reply.finish = self.reply.finish or "non_finite"

    def put(self, value: Tensor) -> None:
        """The prompt, then the tokens that each forward gave: what it accepted, and one of its own."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        now = time.monotonic() - self.sent
        tokens = value.flatten().tolist()
        self.accepted += len(tokens) - 1
        for token in tokens:
            if self.reply.finish is None:
                append(self.loaded, self.reply, token, now, self.stops)

    def end(self) -> None:
        """Nothing is left to do."""

    def ended(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """A stopping criterion: (1,) true once the reply has ended, for whatever reason."""
        return torch.tensor([self.reply.finish is not None], device=ids.device)


def generate(
    loaded: LoadedModel,
    speculator: Speculator,
    replies: Sequence[GrowingReply],
    stops: Sequence[str],
    sent: float,
) -> None:
    """Complete the replies one after the other, greedily. Must run in inference mode."""
    for reply in replies:
        _one(loaded, speculator, reply, stops, sent)


def _one(
    loaded: LoadedModel, speculator: Speculator, reply: GrowingReply, stops: Sequence[str], sent: float
) -> None:
    watch = _Watch(loaded, reply, stops, sent)
    ids = torch.tensor([reply.prompt], device=loaded.device)
    ends: list[Callable[..., Tensor]] = [watch.ended]
    hook = loaded.model.register_forward_hook(watch.forwarded, with_kwargs=True)
    try:
        loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_config(loaded, speculator.setting, reply),
            assistant_model=speculator.model,
            stopping_criteria=StoppingCriteriaList(ends),
            streamer=watch,
        )
    finally:
        hook.remove()
    reply.speculated = Speculated(forwards=watch.forwards, drafted=watch.drafted, accepted=watch.accepted)


def _config(loaded: LoadedModel, setting: Speculative, reply: GrowingReply) -> GenerationConfig:
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=reply.room,
        eos_token_id=None if reply.exact else list(loaded.eos) or None,
        pad_token_id=loaded.pad,
        use_cache=True,
    )
    if isinstance(setting, PromptLookup):
        config.prompt_lookup_num_tokens = setting.num_tokens
        config.max_matching_ngram_size = setting.max_ngram
    return config


def drafting_config(setting: Speculative) -> GenerationConfig:
    """Of a drafting model: always as many tokens as are pinned, however well the last draft did."""
    return GenerationConfig(
        num_assistant_tokens=setting.num_tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
