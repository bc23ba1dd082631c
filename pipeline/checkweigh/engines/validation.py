"""Checks of an engine's answers, the same for every engine. Pure.

1. An answer that does not fit its request is an ``EngineError``: results for another request or in another number,
   another number of tokens than of values, a probability above 1, times that run backwards. An engine that answers
   so cannot be trusted at all.
2. Numbers that are not finite fail their item only: an ``ItemFailure`` of kind ``non_finite``.

``measure.served_arm.ServedArm`` checks every answer before anything is computed from it. Whoever receives an answer
(the worker's pipe, the HTTP client) only gives it the types of ``protocol``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from checkweigh.engines.protocol import (
    Continuation,
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.errors import EngineError

DOES_NOT_FIT = "the engine's answer does not fit the request"
MOST_LOGPROB = 1e-3  # rounding in bfloat16 heads stays far below it

_Request = TypeVar("_Request", ScoreRequest, GenerateRequest)
_Result = TypeVar("_Result", ScoreResult, GenerateResult, States, Divergence)


def check(condition: bool, what: str) -> None:
    """EngineError unless ``condition``."""
    if not condition:
        raise EngineError(DOES_NOT_FIT, cause=what)


def prompts(answer: Sequence[tuple[int, ...]], conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
    """Prompt token ids, one tuple for each conversation."""
    check(len(answer) == len(conversations), f"{len(conversations)} rendered conversations expected")
    return list(answer)


def scores(
    answer: Sequence[ScoreResult | ItemFailure], batch: Sequence[ScoreRequest]
) -> list[ScoreResult | ItemFailure]:
    """Scores of each request: T > 0 finite log-probabilities for the T tokens of each continuation, none above 0."""
    return _check_each(answer, batch, ScoreResult, _check_score)


def states(
    answer: Sequence[States | ItemFailure], batch: Sequence[ScoreRequest]
) -> list[States | ItemFailure]:
    """The texts whose hidden states were written."""
    return _check_each(answer, batch, States, lambda result, request: result)


def divergences(
    answer: Sequence[Divergence | ItemFailure], batch: Sequence[ScoreRequest]
) -> list[Divergence | ItemFailure]:
    """Divergences of each text: one for every token, finite and not negative."""
    return _check_each(answer, batch, Divergence, _check_divergence)


def replies(
    answer: Sequence[GenerateResult | ItemFailure], batch: Sequence[GenerateRequest]
) -> list[GenerateResult | ItemFailure]:
    """Replies: one time for each token, none before the one before it, and as many tokens as were asked for."""
    return _check_each(answer, batch, GenerateResult, _check_reply)


def _check_each(
    answer: Sequence[_Result | ItemFailure],
    batch: Sequence[_Request],
    kind: type[_Result],
    checked: Callable[[_Result, _Request], _Result | ItemFailure],
) -> list[_Result | ItemFailure]:
    """One result of the kind for each request, in order; ``checked`` looks at the values of each."""
    check(len(answer) == len(batch), f"{len(batch)} results expected, {len(answer)} came")
    results: list[_Result | ItemFailure] = []
    for position, (result, request) in enumerate(zip(answer, batch, strict=True)):
        check(result.id == request.id, f"result {position}: for {result.id!r} instead of {request.id!r}")
        if isinstance(result, ItemFailure):
            results.append(result)
            continue
        check(
            isinstance(result, kind), f"{request.id}: {kind.__name__} expected, {type(result).__name__} came"
        )
        results.append(checked(result, request))
    return results


def _check_score(result: ScoreResult, request: ScoreRequest) -> ScoreResult | ItemFailure:
    wanted = len(request.continuations)
    check(len(result.continuations) == wanted, f"{request.id}: {wanted} continuations expected")
    for index, continuation in enumerate(result.continuations):
        _check_shapes(continuation, f"{request.id}[{index}]", request.top_k)
    for index, continuation in enumerate(result.continuations):
        if bad := _not_finite(continuation):
            count = len(continuation.logprobs)
            detail = f"continuation {index}: {bad} of {count} log-probabilities are not finite"
            return ItemFailure(id=request.id, reason="non_finite", detail=detail)
        check(_possible(continuation), f"{request.id}[{index}]: a probability above 1")
    return result


def _check_shapes(continuation: Continuation, name: str, top_k: int) -> None:
    tokens, logprobs = len(continuation.token_ids), np.asarray(continuation.logprobs)
    check(tokens > 0, f"{name}: no tokens")
    check(logprobs.shape == (tokens,), f"{name}: {tokens} tokens but {logprobs.size} log-probabilities")
    if top_k == 0:
        return
    for table in (continuation.top_ids, continuation.top_logprobs):
        check(table is not None, f"{name}: {top_k} alternatives expected, none came")
        shape = np.asarray(table).shape
        check(
            shape == (tokens, top_k),
            f"{name}: {top_k} alternatives a token expected, a table of {shape} came",
        )


def _not_finite(continuation: Continuation) -> int:
    """Log-probabilities that are NaN or infinite; an alternative may be impossible, a token that stands there not."""
    count = int((~np.isfinite(continuation.logprobs)).sum())
    if continuation.top_logprobs is not None:
        count += int(np.isnan(continuation.top_logprobs).sum())
    return count


def _possible(continuation: Continuation) -> bool:
    top = continuation.top_logprobs
    tables = [continuation.logprobs] if top is None else [continuation.logprobs, top]
    return all(bool((np.asarray(table) <= MOST_LOGPROB).all()) for table in tables)


def _check_divergence(result: Divergence, request: ScoreRequest) -> Divergence | ItemFailure:
    name, tokens = request.id, len(result.token_ids)
    kl, agree = np.asarray(result.kl), np.asarray(result.agree)
    check(tokens > 0 and kl.shape == agree.shape == (tokens,), f"{name}: one divergence a token expected")
    if bad := int((~np.isfinite(kl)).sum()):
        return ItemFailure(
            id=name, reason="non_finite", detail=f"{bad} of {tokens} divergences are not finite"
        )
    check(bool((kl >= 0).all()), f"{name}: a negative divergence")
    check(bool(np.isin(agree, (0, 1)).all()), f"{name}: agreement is 0 or 1")
    return result


def _check_reply(result: GenerateResult, request: GenerateRequest) -> GenerateResult | ItemFailure:
    name, tokens, times = request.id, len(result.token_ids), result.times
    check(len(times) == tokens, f"{name}: {tokens} tokens but {len(times)} times")
    check(all(np.isfinite(t) and t >= 0 for t in times), f"{name}: times in seconds expected")
    check(all(a <= b for a, b in pairwise(times)), f"{name}: times run backwards")
    if request.exact_tokens is not None:
        check(
            tokens == request.exact_tokens, f"{name}: {request.exact_tokens} tokens expected, {tokens} came"
        )
    counts = result.speculated
    if counts is not None:
        check(
            counts.forwards + counts.accepted >= tokens,
            f"{name}: more tokens than its forwards and accepted drafts can have given",
        )
    return result
