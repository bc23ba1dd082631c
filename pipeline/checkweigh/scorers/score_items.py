"""The scorer that a card names, as a function of an item and a reply."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from checkweigh.errors import BadInput, ScorerError
from checkweigh.records.evalset import EvalSet, EvaluateScorer, Generation, Scorer
from checkweigh.scorers.code import CodeExecution
from checkweigh.scorers.embedding import EmbeddingSimilarity
from checkweigh.scorers.evaluate_bridge import EvaluateModule
from checkweigh.scoring.replies import score_reply
from checkweigh.scoring.standard import STANDARD, VERSIONS, score_against

ScoreItem = Callable[[Generation, str], float]
KNOWN_VERSIONS = {**VERSIONS, "reply_check": 1, "code_execution": 1, "embedding_similarity": 1, "evaluate": 1}


def score_by_check(item: Generation, reply: str) -> float:
    """By the item's own check; ValueError or ArithmeticError where it cannot be applied."""
    if item.check is None:
        raise ScorerError(f"item {item.id}: no check to score it by")
    return score_reply(item.check.kind, item.check.values, item.check.pattern, reply)


def item_scorer(evalset: EvalSet) -> ScoreItem:
    """How a set's replies are scored, ready to use: BadInput for a scorer that is not what its card says, ScorerError
    for one that this host cannot have. The result raises ScorerError, which names the item."""
    card = evalset.card
    wanted = card.scorer
    if card.kind != "generation":
        return score_by_check  # of no use: other kinds are scored by their likelihood
    known = KNOWN_VERSIONS[wanted.name]
    if wanted.version != known:
        message = (
            f"evalset {card.name}: scorer.version: expected {known} for {wanted.name}, found {wanted.version}"
        )
        raise BadInput(message)
    if wanted.name == "reply_check":
        return score_by_check
    return _guarded(card.name, wanted.name, _scorer(wanted, evalset.folder))


@cache
def _scorer(wanted: Scorer | EvaluateScorer, folder: str | None) -> ScoreItem:
    if isinstance(wanted, EvaluateScorer):
        module = EvaluateModule(wanted, None if folder is None else Path(folder))
        return lambda item, reply: module.score(reply, item.references)
    if wanted.name == "code_execution":
        return CodeExecution()
    if wanted.name == "embedding_similarity":
        return EmbeddingSimilarity()
    name = wanted.name
    assert name in STANDARD
    return lambda item, reply: score_against(name, item.references, reply)


def _guarded(set_name: str, name: str, score: ScoreItem) -> ScoreItem:
    """Whatever a scorer raises is the measurement's fault, and no reply is blamed for it."""

    def guarded(item: Generation, reply: str) -> float:
        try:
            value = score(item, reply)
        except ScorerError as error:
            raise ScorerError(f"set {set_name}, item {item.id}: {error}") from error
        except (Exception, SystemExit) as error:  # a metric that calls exit(0) must not end in a pass
            why = f"{type(error).__name__}: {error}"
            raise ScorerError(
                f"set {set_name}, item {item.id}: the scorer {name} failed: {why[:500]}"
            ) from error
        if not 0.0 <= value <= 1.0:  # NaN is in no range
            raise ScorerError(
                f"set {set_name}, item {item.id}: the scorer {name} gave {value}, not in [0, 1]"
            )
        return value

    return guarded
