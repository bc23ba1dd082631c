"""Quality of one arm on one set: batches through an engine, one observation for each item.

Every number is checked where it enters: answers against their requests (``ServedArm``), token ids against the pinned
rendering. What an engine cannot answer becomes a ``Failed`` observation; an engine that answers something else than it
was asked is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from checkweigh import canonical
from checkweigh.engines.protocol import (
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.errors import EngineError
from checkweigh.measure.batching import Batch
from checkweigh.measure.served_arm import ServedArm, same_tokens
from checkweigh.records.evalset import Choice, Generation, Item, Message, Text
from checkweigh.records.manifest import SERVER_KINDS
from checkweigh.records.measurement import Failed, Observation, Scored
from checkweigh.scorers.score_items import ScoreItem, score_by_check
from checkweigh.scoring.choices import choice_scores
from checkweigh.scoring.replies import looping


def run_batch(
    arm: ServedArm, batch: Batch, replicate: int, score: ScoreItem = score_by_check
) -> tuple[list[Observation], int]:
    """Observations of one batch in the batch's order, and the number of tokens computed.

    ``score``: an item and a reply -> [0, 1]; ScorerError where it cannot say.
    """
    if isinstance(batch.items[0], Generation):
        return _generate(arm, batch, replicate, score)
    return _score(arm, batch, replicate)


def _score(arm: ServedArm, batch: Batch, replicate: int) -> tuple[list[Observation], int]:
    requests = [_score_request(arm, item) for item in batch.items]
    results = arm.score(requests)
    observations, tokens = [], 0
    for item, request, result in zip(batch.items, requests, results, strict=True):
        if isinstance(result, ItemFailure):
            observations.append(failed_observation(item, replicate, batch, result))
            continue
        _check_prompt(arm, item, request.messages, result.prompt_ids)
        for text, continuation in zip(request.continuations, result.continuations, strict=True):
            same_tokens(arm, f"continuation of item {item.id}", arm.encode(text), continuation.token_ids)
        tokens += sum(len(c.token_ids) for c in result.continuations)
        observations.append(_scored_observation(item, replicate, batch, result))
    return observations, tokens


def _score_request(arm: ServedArm, item: Item) -> ScoreRequest:
    if isinstance(item, Text):
        return ScoreRequest(id=item.id, messages=None, continuations=(item.text,))
    assert isinstance(item, Choice)
    return ScoreRequest(
        id=item.id, messages=arm.manifest.prompts.compose(item.messages), continuations=item.choices
    )


def _scored_observation(item: Item, replicate: int, batch: Batch, result: ScoreResult) -> Observation:
    logprobs = [np.asarray(c.logprobs, dtype=np.float64) for c in result.continuations]
    raw = b"".join(np.asarray(c.logprobs, dtype="<f4").tobytes() for c in result.continuations)
    ids = canonical.dumps([list(result.prompt_ids), [list(c.token_ids) for c in result.continuations]])
    if isinstance(item, Text):
        outcome = Scored(
            values={"nll": -float(logprobs[0].sum())},
            weights={"tokens": float(len(logprobs[0])), "bytes": float(len(item.text.encode()))},
        )
    else:
        assert isinstance(item, Choice)
        score, correct = choice_scores([float(lp.sum()) for lp in logprobs], item.answer)
        outcome = Scored(values={"score": score, "correct": correct}, weights={"items": 1.0})
    return Observation(
        item=item.id, replicate=replicate, batch=batch.index, outcome=outcome,
        raw=canonical.digest_bytes(ids.encode() + raw),
    )  # fmt: skip


def _generate(
    arm: ServedArm, batch: Batch, replicate: int, score: ScoreItem
) -> tuple[list[Observation], int]:
    items = [item for item in batch.items if isinstance(item, Generation)]
    prompts = arm.manifest.prompts
    requests = [GenerateRequest(id=item.id, messages=prompts.compose(item.messages)) for item in items]
    results = arm.generate(requests)
    observations, tokens = [], 0
    for item, request, result in zip(items, requests, results, strict=True):
        if isinstance(result, ItemFailure):
            observations.append(failed_observation(item, replicate, batch, result))
            continue
        _check_prompt(arm, item, request.messages, result.prompt_ids)
        counted = arm.manifest.engine.kind not in SERVER_KINDS  # a server counts over all its requests
        if counted and (arm.manifest.engine.speculative is None) != (result.speculated is None):
            raise EngineError(f"item {item.id}: the engine speculates otherwise than engine.speculative says")
        tokens += len(result.token_ids)
        observations.append(_reply_observation(item, replicate, batch, result, score))
    return observations, tokens


def _reply_observation(
    item: Generation, replicate: int, batch: Batch, result: GenerateResult, score: ScoreItem
) -> Observation:
    try:
        item_score = score(item, result.text)
    except (ValueError, ArithmeticError, re.error) as error:
        kind = item.check.kind if item.check else ""
        detail = f"the check {kind} cannot be applied: {type(error).__name__}: {error}"
        return failed_observation(
            item, replicate, batch, ItemFailure(id=item.id, reason="scorer", detail=detail)
        )
    values = {
        "score": item_score,
        "truncated": float(result.finish == "length"),
        "empty": float(not result.text.strip()),
        "looping": float(looping(result.token_ids)),
    }
    return Observation(
        item=item.id, replicate=replicate, batch=batch.index, outcome=Scored(values=values, weights={"items": 1.0}),
        raw=canonical.digest([list(result.prompt_ids), list(result.token_ids), result.finish]),
        text=result.text, output_tokens=len(result.token_ids), finish=result.finish,
        speculated=result.speculated,
    )  # fmt: skip


def failed_observation(item: Item, replicate: int, batch: Batch, failure: ItemFailure) -> Observation:
    return Observation(
        item=item.id, replicate=replicate, batch=batch.index,
        outcome=Failed(reason=failure.reason, detail=failure.detail[:500]), raw=None,
    )  # fmt: skip


def _check_prompt(
    arm: ServedArm, item: Item, messages: Sequence[Message] | None, served: tuple[int, ...]
) -> None:
    """The ids the engine served must be those the pinned tokenizer and template give."""
    pinned = (arm.prefix_id,) if messages is None else arm.render(messages)
    same_tokens(arm, f"prompt of item {item.id}", pinned, served)
