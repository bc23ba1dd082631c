"""The one check of an engine's answers: what fits its request passes unchanged, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.engines.conftest import user

from checkweigh.engines import validation
from checkweigh.engines.protocol import (
    Continuation,
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.errors import EngineError
from checkweigh.records.measurement import Speculated

TEXT = ScoreRequest(id="t", messages=None, continuations=("red blue",))
CHOICES = ScoreRequest(id="c", messages=user("which"), continuations=("red", "blue"), top_k=2)
REPLY = GenerateRequest(id="r", messages=user("hm"), exact_tokens=3)


def scored(*values: float) -> Continuation:
    """A continuation of as many tokens as values."""
    return Continuation(token_ids=tuple(range(len(values))), logprobs=np.array(values, np.float32))


def with_alternatives(continuation: Continuation, top: Any = ((-1.0, -2.0),)) -> Continuation:
    """The same with two alternatives for its one token."""
    ids = np.zeros(np.shape(top), np.int32)
    return replace(continuation, top_ids=ids, top_logprobs=np.array(top, np.float32))


SCORE = ScoreResult(id="t", prompt_ids=(0,), continuations=(scored(-1.0, 0.0005),))
CHOICE = ScoreResult(
    id="c",
    prompt_ids=(1, 2),
    continuations=(with_alternatives(scored(-1.0)), with_alternatives(scored(-2.0))),
)
DIVERGENCE = Divergence(
    id="t", token_ids=(4, 5), kl=np.array([0.0, 0.5], np.float32), agree=np.array([1, 0], np.int32), worst=()
)
STATES = States(id="t", token_ids=(4, 5))
REPLIED = GenerateResult(
    id="r", prompt_ids=(1,), token_ids=(1, 2, 3), text="x", finish="stop", times=(0.1, 0.1, 0.2)
)
FAILURE = ItemFailure(id="t", reason="too_long", detail="for this model")


@pytest.mark.parametrize(
    ("checked", "answer", "batch"),
    [
        (validation.scores, [SCORE], [TEXT]),
        (validation.scores, [CHOICE, FAILURE], [CHOICES, TEXT]),
        (validation.scores, [], []),
        (validation.states, [STATES], [TEXT]),
        (validation.divergences, [DIVERGENCE], [TEXT]),
        (validation.replies, [REPLIED], [REPLY]),
        (validation.replies, [replace(REPLIED, token_ids=(), times=())], [replace(REPLY, exact_tokens=None)]),
    ],
)
def test_what_fits_passes_unchanged(checked: Callable[..., Any], answer: list[Any], batch: list[Any]) -> None:
    results = checked(answer, batch)
    assert len(results) == len(answer)
    assert all(result is given for result, given in zip(results, answer, strict=True))


@pytest.mark.parametrize(
    ("checked", "answer", "batch"),
    [
        (validation.scores, SCORE, TEXT), (validation.states, STATES, TEXT),
        (validation.divergences, DIVERGENCE, TEXT), (validation.replies, REPLIED, REPLY),
    ],
)  # fmt: skip
def test_one_result_for_each_request_in_order(checked: Callable[..., Any], answer: Any, batch: Any) -> None:
    for results, cause in (
        ([], "1 results expected, 0 came"),
        ([answer, answer], "1 results expected, 2 came"),
        ([replace(answer, id="other")], "result 0: for 'other' instead of"),
        ([replace(FAILURE, id="other")], "result 0: for 'other' instead of"),
    ):
        with pytest.raises(EngineError, match=f"does not fit the request .*{cause}"):
            checked(results, [batch])
    other = STATES if answer is not STATES else SCORE
    with pytest.raises(EngineError, match=r"does not fit the request .* expected, .* came"):
        checked([replace(other, id=batch.id)], [batch])
    with pytest.raises(EngineError, match="result 0"):
        checked([answer, replace(answer, id="other")], [replace(batch, id="other"), batch])


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        (replace(SCORE, continuations=()), "1 continuations expected"),
        (replace(SCORE, continuations=(scored(-1.0), scored(-1.0))), "1 continuations expected"),
        (replace(SCORE, continuations=(scored(),)), "no tokens"),
        (replace(SCORE, continuations=(replace(scored(-1.0), token_ids=(1, 2)),)), "2 tokens but 1 log"),
        (replace(SCORE, continuations=(scored(-1.0, 0.002),)), "a probability above 1"),
        (replace(SCORE, continuations=(scored(0.5),)), "a probability above 1"),
    ],
)
def test_scores_that_cannot_be(result: ScoreResult, cause: str) -> None:
    with pytest.raises(EngineError, match=f"does not fit the request .*{cause}"):
        validation.scores([result], [TEXT])


@pytest.mark.parametrize(
    ("continuation", "cause"),
    [
        (scored(-1.0), "2 alternatives expected, none came"),
        (with_alternatives(scored(-1.0), ((-1.0, -2.0, -3.0),)), "2 alternatives a token expected"),
        (with_alternatives(scored(-1.0), ((-1.0, -2.0), (-1.0, -2.0))), "2 alternatives a token expected"),
        (
            replace(with_alternatives(scored(-1.0)), top_ids=np.zeros((1, 1), np.int32)),
            "2 alternatives a token",
        ),
        (with_alternatives(scored(-1.0), ((0.5, -2.0),)), "a probability above 1"),
        (with_alternatives(scored(-1.0), ((np.inf, -2.0),)), "a probability above 1"),
    ],
)
def test_alternatives_that_cannot_be(continuation: Continuation, cause: str) -> None:
    result = replace(CHOICE, continuations=(continuation, CHOICE.continuations[1]))
    with pytest.raises(EngineError, match=f"does not fit the request .*{cause}"):
        validation.scores([result], [CHOICES])


@pytest.mark.parametrize(
    ("continuation", "fails"),
    [
        (with_alternatives(scored(np.nan)), True),
        (with_alternatives(scored(-np.inf)), True),
        (with_alternatives(scored(np.inf)), True),
        (with_alternatives(scored(-1.0), ((-1.0, np.nan),)), True),
        (with_alternatives(scored(-1.0), ((-1.0, -np.inf),)), False),
    ],
)
def test_log_probabilities_that_are_no_numbers_fail_their_item(
    continuation: Continuation, fails: bool
) -> None:
    bad = replace(CHOICE, continuations=(CHOICE.continuations[0], continuation))
    first, second = validation.scores([bad, SCORE], [CHOICES, TEXT])
    assert second is SCORE
    if not fails:
        assert first is bad
        return
    assert isinstance(first, ItemFailure)
    assert (first.id, first.reason) == ("c", "non_finite")
    assert first.detail == "continuation 1: 1 of 1 log-probabilities are not finite"


def test_divergences_that_cannot_be() -> None:
    for changes, cause in (
        ({"kl": np.array([0.5], np.float32)}, "one divergence a token"),
        ({"agree": np.array([1], np.int32)}, "one divergence a token"),
        ({"token_ids": (), "kl": np.zeros(0), "agree": np.zeros(0)}, "one divergence a token"),
        ({"kl": np.array([0.0, -0.1], np.float32)}, "a negative divergence"),
        ({"agree": np.array([1, 2], np.int32)}, "agreement is 0 or 1"),
    ):
        with pytest.raises(EngineError, match=f"does not fit the request .*{cause}"):
            validation.divergences([replace(DIVERGENCE, **changes)], [TEXT])  # type: ignore[arg-type]
    for value in (np.nan, np.inf, -np.inf):
        kl = np.array([0.0, value], np.float32)
        (result,) = validation.divergences([replace(DIVERGENCE, kl=kl)], [TEXT])
        assert isinstance(result, ItemFailure)
        assert (result.reason, result.detail) == ("non_finite", "1 of 2 divergences are not finite")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"times": (0.1, 0.2)}, "3 tokens but 2 times"),
        ({"times": (0.1, 0.2, 0.3, 0.4)}, "3 tokens but 4 times"),
        ({"times": (-0.1, 0.2, 0.3)}, "times in seconds"),
        ({"times": (0.1, np.nan, 0.3)}, "times in seconds"),
        ({"times": (0.1, 0.2, np.inf)}, "times in seconds"),
        ({"times": (0.1, 0.3, 0.2)}, "times run backwards"),
        ({"token_ids": (1, 2), "times": (0.1, 0.2)}, "3 tokens expected, 2 came"),
        ({"token_ids": (1,) * 4, "times": (0.1,) * 4}, "3 tokens expected, 4 came"),
        ({"speculated": Speculated(forwards=1, drafted=4, accepted=1)}, "forwards and accepted drafts"),
        ({"speculated": Speculated(forwards=2, drafted=4, accepted=0)}, "forwards and accepted drafts"),
    ],
)
def test_replies_that_cannot_be(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(EngineError, match=f"does not fit the request .*{cause}"):
        validation.replies([replace(REPLIED, **changes)], [REPLY])


def test_drafts_that_can_be() -> None:
    drafted = replace(REPLIED, speculated=Speculated(forwards=2, drafted=4, accepted=1))
    assert validation.replies([drafted], [REPLY]) == [drafted]


def test_a_prompt_for_each_conversation() -> None:
    assert validation.prompts([(1, 2)], [user("a")]) == [(1, 2)]
    with pytest.raises(EngineError, match="2 rendered conversations expected"):
        validation.prompts([(1, 2)], [user("a"), user("b")])
