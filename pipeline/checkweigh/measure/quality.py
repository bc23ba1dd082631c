"""Quality of one arm on one set: batches through an engine, one observation for each item.

Every number is checked where it enters: answers against their requests (``Arm``), token ids against the pinned
rendering. What an engine cannot answer becomes a ``Failed`` observation; an engine that answers something else than it
was asked is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkweigh import canonical
from checkweigh.engines import validation
from checkweigh.engines.identity import identity_problems
from checkweigh.engines.protocol import (
    Divergence,
    Engine,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.errors import EngineError, PinMismatch, Problem
from checkweigh.measure.batching import Batch
from checkweigh.records.evalset import Choice, Generation, Item, Message, Text
from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import Failed, Observation, Scored
from checkweigh.scorers.score_items import ScoreItem, by_check
from checkweigh.scoring.choices import choice_scores
from checkweigh.scoring.replies import looping

Render = Callable[[Sequence[Message]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Arm:
    """One running engine with what its manifest pins. ``prefix_id`` starts raw text, ``encode`` gives its ids.

    Whoever measures asks the engine through these methods and not by itself: they check every answer against its
    request, whatever the kind of engine. Beside the engine's own errors they raise EngineError for an answer that does
    not fit; numbers that are not finite come back as an ``ItemFailure``.
    """

    manifest: Manifest
    engine: Engine
    render: Render
    encode: Callable[[str], tuple[int, ...]]
    prefix_id: int

    def engine_prompts(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt ids as the engine itself renders them; ``render`` gives the pinned ones."""
        return validation.prompts(self.engine.render(conversations), conversations)

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Scores of one batch, in its order."""
        return validation.scores(self.engine.score(batch), batch)

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """Replies to one batch, in its order."""
        return validation.replies(self.engine.generate(batch), batch)

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Write the hidden states of one batch of raw texts to ``folder``."""
        return validation.states(self.engine.states(batch, folder), batch)

    def divergence(
        self, batch: Sequence[ScoreRequest], theirs: Path, mine: Path
    ) -> list[Divergence | ItemFailure]:
        """Divergences of one batch of raw texts, from the states that both engines wrote."""
        return validation.divergences(self.engine.divergence(batch, theirs, mine), batch)


def run_batch(
    arm: Arm, batch: Batch, replicate: int, score: ScoreItem = by_check
) -> tuple[list[Observation], int]:
    """Observations of one batch in the batch's order, and the number of tokens computed.

    ``score``: an item and a reply -> [0, 1]; ScorerError where it cannot say.
    """
    if isinstance(batch.items[0], Generation):
        return _generate(arm, batch, replicate, score)
    return _score(arm, batch, replicate)


def _score(arm: Arm, batch: Batch, replicate: int) -> tuple[list[Observation], int]:
    requests = [_score_request(arm, item) for item in batch.items]
    results = arm.score(requests)
    observations, tokens = [], 0
    for item, request, result in zip(batch.items, requests, results, strict=True):
        if isinstance(result, ItemFailure):
            observations.append(failed(item, replicate, batch, result))
            continue
        _check_prompt(arm, item, request.messages, result.prompt_ids)
        for text, continuation in zip(request.continuations, result.continuations, strict=True):
            same_tokens(arm, f"continuation of item {item.id}", arm.encode(text), continuation.token_ids)
        tokens += sum(len(c.token_ids) for c in result.continuations)
        observations.append(_scored(item, replicate, batch, result))
    return observations, tokens


def _score_request(arm: Arm, item: Item) -> ScoreRequest:
    if isinstance(item, Text):
        return ScoreRequest(id=item.id, messages=None, continuations=(item.text,))
    assert isinstance(item, Choice)
    return ScoreRequest(
        id=item.id, messages=arm.manifest.prompts.compose(item.messages), continuations=item.choices
    )


def _scored(item: Item, replicate: int, batch: Batch, result: ScoreResult) -> Observation:
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


def _generate(arm: Arm, batch: Batch, replicate: int, score: ScoreItem) -> tuple[list[Observation], int]:
    items = [item for item in batch.items if isinstance(item, Generation)]
    prompts = arm.manifest.prompts
    requests = [GenerateRequest(id=item.id, messages=prompts.compose(item.messages)) for item in items]
    results = arm.generate(requests)
    observations, tokens = [], 0
    for item, request, result in zip(items, requests, results, strict=True):
        if isinstance(result, ItemFailure):
            observations.append(failed(item, replicate, batch, result))
            continue
        _check_prompt(arm, item, request.messages, result.prompt_ids)
        counted = arm.manifest.engine.kind not in ("vllm", "openai")  # a server counts over all its requests
        if counted and (arm.manifest.engine.speculative is None) != (result.speculated is None):
            raise EngineError(f"item {item.id}: the engine speculates otherwise than engine.speculative says")
        tokens += len(result.token_ids)
        observations.append(_replied(item, replicate, batch, result, score))
    return observations, tokens


def _replied(
    item: Generation, replicate: int, batch: Batch, result: GenerateResult, score: ScoreItem
) -> Observation:
    try:
        found = score(item, result.text)
    except (ValueError, ArithmeticError, re.error) as error:
        kind = item.check.kind if item.check else ""
        detail = f"the check {kind} cannot be applied: {type(error).__name__}: {error}"
        return failed(item, replicate, batch, ItemFailure(id=item.id, reason="scorer", detail=detail))
    values = {
        "score": found,
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


def failed(item: Item, replicate: int, batch: Batch, failure: ItemFailure) -> Observation:
    return Observation(
        item=item.id, replicate=replicate, batch=batch.index,
        outcome=Failed(reason=failure.reason, detail=failure.detail[:500]), raw=None,
    )  # fmt: skip


def _check_prompt(arm: Arm, item: Item, messages: Sequence[Message] | None, found: tuple[int, ...]) -> None:
    """The ids the engine served must be those the pinned tokenizer and template give."""
    pinned = (arm.prefix_id,) if messages is None else arm.render(messages)
    same_tokens(arm, f"prompt of item {item.id}", pinned, found)


def same_tokens(arm: Arm, what: str, pinned: tuple[int, ...], found: tuple[int, ...]) -> None:
    if found == pinned:
        return
    shorter = min(len(pinned), len(found))
    at = next((i for i, (a, b) in enumerate(zip(pinned, found, strict=False)) if a != b), shorter)
    raise PinMismatch(
        [
            Problem(
                file=arm.manifest.name, line=None, path=f"{what}, token {at}",
                expected=f"{len(pinned)} pinned ids, here {pinned[at : at + 5]}",
                found=f"{len(found)} ids, here {found[at : at + 5]}: the engine has other tokens",
            )
        ]
    )  # fmt: skip


def check_identity(arm: Arm) -> None:
    """Compare what the engine reports with what its manifest declares; raises PinMismatch with all differences."""
    if problems := identity_problems(arm.manifest, arm.engine.identity):
        raise PinMismatch(problems)
