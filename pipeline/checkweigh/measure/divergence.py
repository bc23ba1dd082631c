"""KL divergence of one execution from another on raw texts.

1. Either engine writes its hidden states and its head to a folder.
2. One of them compares the two folders, at every position and over the whole vocabulary.

The token ids of both steps must be those the pinned tokenizers give.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checkweigh import canonical
from checkweigh.engines.protocol import Divergence, ItemFailure, ScoreRequest
from checkweigh.measure.batching import Batch
from checkweigh.measure.quality import failed_observation
from checkweigh.measure.served_arm import ServedArm, same_tokens
from checkweigh.records.evalset import Scorer, Text
from checkweigh.records.measurement import Observation, Scored

SCORER = Scorer(name="kl_divergence", version=1)


def write_states(arm: ServedArm, batch: Batch, folder: Path) -> None:
    """The hidden states of one batch, as the arm's engine has them."""
    requests = _requests(batch)
    results = arm.states(requests, folder)
    for request, result in zip(requests, results, strict=True):
        if not isinstance(result, ItemFailure):
            same_tokens(arm, f"item {request.id}", arm.encode(request.continuations[0]), result.token_ids)


def compare_states(
    arm: ServedArm, batch: Batch, their_states: Path, own_states: Path, replicate: int
) -> tuple[list[Observation], int]:
    """Observations of one batch in the batch's order, and the number of tokens compared."""
    requests = _requests(batch)
    results = arm.divergence(requests, their_states, own_states)
    observations, tokens = [], 0
    for item, request, result in zip(batch.items, requests, results, strict=True):
        if isinstance(result, ItemFailure):
            observations.append(failed_observation(item, replicate, batch, result))
            continue
        same_tokens(arm, f"item {item.id}", arm.encode(request.continuations[0]), result.token_ids)
        tokens += len(result.token_ids)
        observations.append(_observation(result, replicate, batch))
    return observations, tokens


def _requests(batch: Batch) -> Sequence[ScoreRequest]:
    return [
        ScoreRequest(id=item.id, messages=None, continuations=(item.text,))
        for item in batch.items
        if isinstance(item, Text)
    ]


def _observation(result: Divergence, replicate: int, batch: Batch) -> Observation:
    kl = np.asarray(result.kl, dtype=np.float64)
    raw = canonical.dumps(list(result.token_ids)).encode() + np.asarray(result.kl, dtype="<f4").tobytes()
    return Observation(
        item=result.id, replicate=replicate, batch=batch.index, raw=canonical.digest_bytes(raw),
        outcome=Scored(
            values={"kl": float(kl.mean()), "agreement": float(np.mean(result.agree))},
            weights={"tokens": float(len(kl))},
        ),
        kl=tuple(float(value) for value in kl), worst=result.worst,
    )  # fmt: skip
