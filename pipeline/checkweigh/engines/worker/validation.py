"""What a worker answers, checked before anything believes it.

An answer that does not fit its request is an ``EngineError``.

Numbers that are no numbers are an item's failure; a result for another request, or of another length, means
that the engine cannot be trusted at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from checkweigh.engines.protocol import (
    Continuation,
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.engines.worker import wire
from checkweigh.errors import EngineError
from checkweigh.records.measurement import FailureKind, Speculated, WorstToken

REASONS = frozenset(get_args(FailureKind))
LIES = "the engine's answer does not fit the request"
POSITIVE = 1e-3  # rounding in bfloat16 heads stays far below it

Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Result = TypeVar("Result")


def check(condition: bool, what: str) -> None:
    """EngineError unless ``condition``."""
    if not condition:
        raise EngineError(LIES, cause=what)


def _ids(value: Any, what: str) -> tuple[int, ...]:
    check(
        isinstance(value, list) and all(type(i) is int and i >= 0 for i in value),
        f"{what}: token ids expected",
    )
    return tuple(value)


def rendered(answer: Any, count: int) -> list[tuple[int, ...]]:
    """Prompt ids of ``count`` conversations."""
    check(isinstance(answer, list) and len(answer) == count, f"{count} rendered conversations expected")
    return [_ids(row, f"conversation {i}") for i, row in enumerate(answer)]


def resources(answer: Any) -> Resources:
    """Memory in bytes."""
    check(isinstance(answer, list) and len(answer) == 3, "three sizes expected")
    check(all(type(v) is int and v >= 0 for v in answer), "sizes in bytes expected")
    return Resources(resident=answer[0], peak=answer[1], swapped=answer[2])


def results(
    answer: Any, batch: Sequence[Request], one: Callable[[dict[str, Any], Request], Result | ItemFailure]
) -> list[Result | ItemFailure]:
    """One result for each request, in order, each checked by ``one``."""
    check(isinstance(answer, list), "a list of results expected")
    check(len(answer) == len(batch), f"{len(batch)} results expected, {len(answer)} came")
    read: list[Result | ItemFailure] = []
    for position, (value, request) in enumerate(zip(answer, batch, strict=True)):
        check(isinstance(value, dict), f"result {position}: an object expected")
        check(
            value.get("id") == request.id,
            f"result {position}: for {value.get('id')!r} instead of {request.id!r}",
        )
        try:
            read.append(_failure(value) if value.get("kind") == "failure" else one(value, request))
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(LIES, cause=f"result {position}: {type(error).__name__}: {error}") from error
    return read


def _failure(value: dict[str, Any]) -> ItemFailure:
    check(value["reason"] in REASONS and isinstance(value["detail"], str), "an unknown kind of failure")
    return ItemFailure(id=value["id"], reason=value["reason"], detail=value["detail"])


def score(value: dict[str, Any], request: ScoreRequest) -> ScoreResult | ItemFailure:
    """A score whose lengths fit; ``ItemFailure`` (non_finite) when a log-probability is NaN or infinite."""
    check(value["kind"] == "score", f"{request.id}: a score expected, {value['kind']!r} came")
    scored = value["continuations"]
    wanted = len(request.continuations)
    check(
        isinstance(scored, list) and len(scored) == wanted, f"{request.id}: {wanted} continuations expected"
    )
    read = tuple(_continuation(c, f"{request.id}[{i}]", request.top_k) for i, c in enumerate(scored))
    for index, continuation in enumerate(read):
        bad = _not_finite(continuation)
        if bad:
            count = len(continuation.logprobs)
            detail = f"continuation {index}: {bad} of {count} log-probabilities are not finite"
            return ItemFailure(id=request.id, reason="non_finite", detail=detail)
        check(
            bool((continuation.logprobs <= POSITIVE).all()), f"{request.id}[{index}]: a probability above 1"
        )
    return ScoreResult(
        id=request.id, prompt_ids=_ids(value["prompt"], f"{request.id}: prompt"), continuations=read
    )


def _not_finite(continuation: Continuation) -> int:
    count = int((~np.isfinite(continuation.logprobs)).sum())
    if continuation.top_logprobs is not None:
        count += int(np.isnan(continuation.top_logprobs).sum())
    return count


def _continuation(value: dict[str, Any], name: str, top_k: int) -> Continuation:
    ids = _ids(value["ids"], name)
    logprobs = wire.unpack_floats(value["logprobs"])
    check(len(ids) > 0, f"{name}: no tokens")
    check(len(logprobs) == len(ids), f"{name}: {len(ids)} tokens but {len(logprobs)} log-probabilities")
    if top_k == 0:
        return Continuation(token_ids=ids, logprobs=logprobs)
    top_ids = _table(wire.unpack_ints(value["top_ids"]), len(ids), name)
    top_logprobs = _table(wire.unpack_floats(value["top_logprobs"]), len(ids), name)
    check(top_ids.shape == top_logprobs.shape, f"{name}: top_k tables of two shapes")
    check(top_ids.shape[1] == top_k, f"{name}: {top_k} alternatives expected, {top_ids.shape[1]} came")
    return Continuation(token_ids=ids, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs)


Number = TypeVar("Number", np.float32, np.int32)


def _table(flat: NDArray[Number], rows: int, name: str) -> NDArray[Number]:
    check(flat.size > 0 and flat.size % rows == 0, f"{name}: a ragged top_k table")
    return flat.reshape(rows, -1)


def states(value: dict[str, Any], request: ScoreRequest) -> States | ItemFailure:
    """The ids whose hidden states were written."""
    check(value["kind"] == "states", f"{request.id}: states expected, {value['kind']!r} came")
    return States(id=request.id, token_ids=_ids(value["ids"], request.id))


def divergence(value: dict[str, Any], request: ScoreRequest) -> Divergence | ItemFailure:
    """A divergence for every token; ``ItemFailure`` (non_finite) where one is NaN or infinite."""
    name = request.id
    check(value["kind"] == "divergence", f"{name}: a divergence expected, {value['kind']!r} came")
    ids = _ids(value["ids"], name)
    kl, agree = wire.unpack_floats(value["kl"]), wire.unpack_ints(value["agree"])
    check(0 < len(ids) == len(kl) == len(agree), f"{name}: one divergence a token expected")
    if bad := int((~np.isfinite(kl)).sum()):
        detail = f"{bad} of {len(kl)} divergences are not finite"
        return ItemFailure(id=name, reason="non_finite", detail=detail)
    check(bool((kl >= 0).all()), f"{name}: a negative divergence")
    check(bool(np.isin(agree, (0, 1)).all()), f"{name}: agreement is 0 or 1")
    worst = tuple(WorstToken.model_validate_json(json.dumps(token)) for token in value["worst"])
    return Divergence(id=name, token_ids=ids, kl=kl, agree=agree, worst=worst)


def reply(value: dict[str, Any], request: GenerateRequest) -> GenerateResult | ItemFailure:
    """A reply with one time for each token, none before the one before it."""
    name = request.id
    check(value["kind"] == "generate", f"{name}: a reply expected, {value['kind']!r} came")
    ids = _ids(value["ids"], name)
    times = value["times"]
    check(
        isinstance(times, list) and len(times) == len(ids),
        f"{name}: {len(ids)} tokens but {len(times)} times",
    )
    check(
        all(isinstance(t, float) and np.isfinite(t) and t >= 0 for t in times),
        f"{name}: times in seconds expected",
    )
    check(all(a <= b for a, b in pairwise(times)), f"{name}: times run backwards")
    check(
        value["finish"] in ("stop", "length") and isinstance(value["text"], str),
        f"{name}: text and finish expected",
    )
    if request.exact_tokens is not None:
        check(
            len(ids) == request.exact_tokens,
            f"{name}: {request.exact_tokens} tokens expected, {len(ids)} came",
        )
    counts = value.get("speculated")
    speculated = None if counts is None else Speculated.model_validate(counts)
    if speculated is not None:
        check(
            speculated.forwards + speculated.accepted >= len(ids),
            f"{name}: more tokens than its forwards and accepted drafts can have given",
        )
    return GenerateResult(
        id=name,
        speculated=speculated,
        prompt_ids=_ids(value["prompt"], f"{name}: prompt"),
        token_ids=ids,
        text=value["text"],
        finish=value["finish"],
        times=tuple(times),
    )
