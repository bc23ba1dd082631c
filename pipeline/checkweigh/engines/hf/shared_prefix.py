"""The part all prompts of a call begin with, computed once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from checkweigh.engines.hf.load_model import LoadedModel

SHORTEST = 8  # tokens; below it, sharing costs more than it saves


def shared_length(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens every prompt begins with, fewer than the shortest prompt has; 0 when sharing does not pay."""
    if not loaded.shares or len(prompts) < 2:
        return 0
    ends = min(prompts), max(prompts)  # in lexical order everything between them begins as both begin
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))
    common = min(same, min(map(len, prompts)) - 1)
    return common if common >= SHORTEST else 0


def run_prefix(loaded: LoadedModel, ids: tuple[int, ...]) -> Any:
    """The cache of one row after ``ids``."""
    cache = DynamicCache(config=loaded.model.config)
    loaded.base(
        input_ids=torch.tensor([ids], device=loaded.device),
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def expand_cache(cache: Any, rows: int) -> Any:
    """A copy of a one-row cache for ``rows`` rows; the original stays as it is."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in copied.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return copied
