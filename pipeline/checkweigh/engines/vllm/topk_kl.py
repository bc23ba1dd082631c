"""Divergence of two servers that report only their likeliest tokens: a lower bound (``truncated_divergence``).

``states`` of such a server are the ``TOP_K`` likeliest tokens at each position of a text, with log-probabilities.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from checkweigh.engines import validation
from checkweigh.engines.backend import states_file
from checkweigh.engines.protocol import Divergence, ItemFailure, ScoreRequest, ScoreResult, States
from checkweigh.errors import BadInput, EngineError
from checkweigh.files import write_atomic
from checkweigh.records.measurement import WorstToken
from checkweigh.stats.estimators.mean_kl import truncated_divergence

Score = Callable[[Sequence[ScoreRequest]], list[ScoreResult | ItemFailure]]
TOP_K = 20  # vLLM's own limit unless it is raised
WORST = 3  # tokens shown of a text
CONTEXT = 12  # tokens before them


def states(score: Score, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
    """``Engine.states`` of a server that scores: its likeliest tokens at each position of each text."""
    asked = [replace(request, top_k=TOP_K) for request in batch]
    return [write(result, folder) for result in validation.scores(score(asked), asked)]


def write(result: ScoreResult | ItemFailure, folder: Path) -> States | ItemFailure:
    """A text's likeliest tokens, on disk, whole or not at all."""
    if isinstance(result, ItemFailure):
        return result
    (text,) = result.continuations
    if text.top_ids is None or text.top_logprobs is None:
        raise EngineError(f"{result.id}: no alternatives came")
    data = io.BytesIO()
    np.savez(data, ids=np.array(text.token_ids, np.int64), top_ids=text.top_ids, top=text.top_logprobs)
    write_atomic(states_file(folder, result.id), data.getvalue())
    return States(id=result.id, token_ids=text.token_ids)


def compare(
    name: str, baseline: Path, candidate: Path, decode: Callable[[Sequence[int]], str]
) -> Divergence | ItemFailure:
    """The bound at each position of one text, from the folders that ``states`` of both arms wrote to.

    Raises BadInput where the arms have different tokens.
    """
    files = [states_file(folder, name) for folder in (baseline, candidate)]
    if not all(file.is_file() for file in files):
        return ItemFailure(id=name, reason="engine", detail="an arm has no distributions of this text")
    with np.load(files[0]) as first, np.load(files[1]) as second:
        ids = tuple(int(token) for token in second["ids"])
        if tuple(int(token) for token in first["ids"]) != ids:
            raise BadInput(f"{name}: the arms have different tokens")
        tables = (first["top_ids"], first["top"], second["top_ids"], second["top"])
    kl = truncated_divergence(*tables)
    if bad := int((~np.isfinite(kl)).sum()):
        return ItemFailure(
            id=name, reason="non_finite", detail=f"{bad} of {len(kl)} divergences are not finite"
        )
    agree = (tables[0][:, 0] == tables[2][:, 0]).astype(np.int32)
    worst = tuple(_worst(int(i), ids, kl, tables, decode) for i in np.argsort(-kl)[:WORST] if kl[i] > 0)
    return Divergence(id=name, token_ids=ids, kl=kl.astype(np.float32), agree=agree, worst=worst)


def _worst(
    at: int, ids: Sequence[int], kl: np.ndarray, tables: Sequence[np.ndarray], decode: Callable[[Sequence[int]], str]
) -> WorstToken:  # fmt: skip
    return WorstToken(
        position=at, kl=float(kl[at]), before=decode(ids[max(0, at - CONTEXT) : at]), token=decode([ids[at]]),
        baseline=decode([int(tables[0][at, 0])]), baseline_p=float(np.exp(tables[1][at, 0])),
        candidate=decode([int(tables[2][at, 0])]), candidate_p=float(np.exp(tables[3][at, 0])),
    )  # fmt: skip
