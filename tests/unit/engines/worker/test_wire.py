"""What a worker's answer is read as: the same objects bit for bit, or a ValueError that says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.unit.engines.test_validation import DIVERGENCE, FAILURE, STATES, scored, with_alternatives

from checkweigh.engines.protocol import Divergence, GenerateResult, ItemFailure, Resources, ScoreResult
from checkweigh.engines.worker import wire
from checkweigh.records.measurement import Speculated, WorstToken

WORST = WorstToken(
    position=1,
    kl=0.5,
    before="red",
    token=" blue",
    baseline="a",
    baseline_p=0.5,
    candidate="b",
    candidate_p=0.1,
)
SCORE = ScoreResult(
    id="s", prompt_ids=(1, 2), continuations=(scored(-1.0, np.nan), with_alternatives(scored(-np.inf)))
)
DIVERGED = Divergence(
    id="d", token_ids=(4, 5), kl=np.array([0.0, np.inf], np.float32), agree=DIVERGENCE.agree, worst=(WORST,)
)
REPLY = GenerateResult(
    id="g", prompt_ids=(1,), token_ids=(1, 2), text="\ud800", finish="length", times=(0.1, 0.2),
    speculated=Speculated(forwards=2, drafted=3, accepted=1),
)  # fmt: skip
KINDS: list[tuple[Any, Callable[[dict[str, Any]], Any]]] = [
    (SCORE, wire.unpack_score),
    (STATES, wire.unpack_states),
    (DIVERGED, wire.unpack_divergence),
    (REPLY, wire.unpack_reply),
]


def sent(results: list[Any]) -> Any:
    """The results, packed and put through a frame."""
    frame = wire.frame({"result": wire.pack_results(results)})
    return wire.parse(frame[wire.HEADER.size :])["result"]


def plain(result: Any) -> Any:
    """An object whose arrays are their bytes, so that NaN equals itself."""
    if isinstance(result, ScoreResult):
        rows: list[list[NDArray[Any] | None]] = [
            [c.logprobs, c.top_ids, c.top_logprobs] for c in result.continuations
        ]
        arrays = [[None if a is None else (a.shape, a.dtype, a.tobytes()) for a in row] for row in rows]
        return result.id, result.prompt_ids, [c.token_ids for c in result.continuations], arrays
    if isinstance(result, Divergence):
        return result.id, result.token_ids, result.kl.tobytes(), result.agree.tobytes(), result.worst
    return result


@pytest.mark.parametrize(("result", "unpack"), KINDS)
def test_results_arrive_as_they_were_sent(result: Any, unpack: Callable[[dict[str, Any]], Any]) -> None:
    first, second = wire.unpack_results(sent([result, FAILURE]), unpack)
    assert plain(first) == plain(result)
    assert second == FAILURE


@pytest.mark.parametrize(("result", "unpack"), KINDS)
def test_another_kind_or_shape_is_refused_with_its_position(
    result: Any, unpack: Callable[[dict[str, Any]], Any]
) -> None:
    (packed,) = sent([result])
    (other,) = sent([STATES if result is not STATES else SCORE])
    missing = {key: value for key, value in packed.items() if key != "id"}
    strange = [other, missing, 7, None, [], packed | {"id": 7}, packed | {"kind": "nothing"}]
    for value in strange:
        with pytest.raises(ValueError, match=r"^result 1: "):
            wire.unpack_results([packed, value], unpack)
    for value in (None, 7, {"kind": "failure"}, "text"):
        with pytest.raises(ValueError, match="a list of results expected"):
            wire.unpack_results(value, unpack)


@pytest.mark.parametrize(
    ("result", "unpack", "changes"),
    [
        (SCORE, wire.unpack_score, {"prompt": [1, -1]}),
        (SCORE, wire.unpack_score, {"prompt": [1, True]}),
        (SCORE, wire.unpack_score, {"continuations": {}}),
        (SCORE, wire.unpack_score, {"continuations": [{"ids": [1], "logprobs": "not base64"}]}),
        (SCORE, wire.unpack_score, {"continuations": [{"ids": [1], "logprobs": "AAA="}]}),
        (STATES, wire.unpack_states, {"ids": "12"}),
        (DIVERGED, wire.unpack_divergence, {"kl": None}),
        (DIVERGED, wire.unpack_divergence, {"worst": [{"position": 1}]}),
        (REPLY, wire.unpack_reply, {"times": [1, 2]}),
        (REPLY, wire.unpack_reply, {"times": None}),
        (REPLY, wire.unpack_reply, {"finish": "abort"}),
        (REPLY, wire.unpack_reply, {"text": None}),
        (REPLY, wire.unpack_reply, {"ids": [1.0, 2.0]}),
        (REPLY, wire.unpack_reply, {"speculated": {"forwards": 1, "drafted": 1, "accepted": 2}}),
        (REPLY, wire.unpack_reply, {"speculated": {"forwards": 1, "drafted": -1, "accepted": 0}}),
    ],
)
def test_values_of_another_type_are_refused(
    result: Any, unpack: Callable[[dict[str, Any]], Any], changes: dict[str, Any]
) -> None:
    (packed,) = sent([result])
    with pytest.raises(ValueError, match="result 0: "):
        wire.unpack_results([packed | changes], unpack)


def test_a_ragged_table_is_refused() -> None:
    (packed,) = sent([SCORE])
    table = packed["continuations"][1]
    for name in ("top_ids", "top_logprobs"):
        ragged = json.loads(json.dumps(packed))
        ragged["continuations"][1] = table | {"ids": [0, 1], name: table[name][:-4] and "AAAAAAAAAAAAAAAA"}
        with pytest.raises(ValueError, match="ragged table"):
            wire.unpack_results([ragged], wire.unpack_score)


def test_an_unknown_failure_is_refused() -> None:
    (packed,) = sent([FAILURE])
    for changes in ({"reason": "tired"}, {"detail": None}, {"reason": None}):
        with pytest.raises(ValueError, match="result 0: "):
            wire.unpack_results([packed | changes], wire.unpack_score)
    (result,) = wire.unpack_results([packed], wire.unpack_score)
    assert isinstance(result, ItemFailure)


def test_prompts_and_sizes() -> None:
    assert wire.unpack_prompts([[1, 2], []]) == [(1, 2), ()]
    for value in (None, [1], [[1, "2"]], [[-1]]):
        with pytest.raises(ValueError, match="expected"):
            wire.unpack_prompts(value)
    assert wire.unpack_resources([1, 2, 3]) == Resources(resident=1, peak=2, swapped=3)
    for value in (None, [1, 2], [1, 2, -3], [1, 2, 3.0], [1, 2, True]):
        with pytest.raises(ValueError, match="expected"):
            wire.unpack_resources(value)
