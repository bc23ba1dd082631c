"""From an engine's answers to observations: every number is checked where it enters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.builders import evalset
from tests.unit.measure.conftest import InProcess, make_arm

from checkweigh.engines.protocol import Continuation, ItemFailure
from checkweigh.errors import EngineError, PinMismatch
from checkweigh.measure.batching import Batch
from checkweigh.measure.quality import run_batch
from checkweigh.measure.served_arm import check_identity
from checkweigh.records.evalset import EvalSet, Generation
from checkweigh.records.manifest import PromptLookup
from checkweigh.records.measurement import Failed, Observation, Scored, Speculated


def observed(source: EvalSet, engine: InProcess | None = None) -> list[Observation]:
    observations, _ = run_batch(make_arm(engine or InProcess()), Batch(3, source.items), replicate=2)
    return observations


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", {"nll"}),
        ("choice", {"score", "correct"}),
        ("generation", {"score", "truncated", "empty", "looping"}),
    ],
)
def test_one_observation_an_item_in_order(kind: str, values: set[str]) -> None:
    source = evalset(kind, 5)
    found = observed(source)
    assert [o.item for o in found] == [item.id for item in source.items]
    for o in found:
        assert (o.replicate, o.batch) == (2, 3)
        assert isinstance(o.outcome, Scored)
        assert set(o.outcome.values) == values
        assert o.raw is not None


def test_a_text_is_nats_over_tokens_and_bytes() -> None:
    source = evalset("text", 1)
    (found,) = observed(source)
    assert isinstance(found.outcome, Scored)
    length = len(source.items[0].text)  # type: ignore[union-attr]
    assert found.outcome.values["nll"] == pytest.approx(0.5 * length)
    assert found.outcome.weights == {"tokens": length, "bytes": length}


def test_the_raw_digest_sees_every_bit() -> None:
    def nudge(result: Any) -> Any:
        logprobs = result.continuations[0].logprobs.copy()
        logprobs[0] = np.nextafter(logprobs[0], np.float32(-1))
        return replace(result, continuations=(replace(result.continuations[0], logprobs=logprobs),))

    source = evalset("text", 3)
    plain, same, other = observed(source), observed(source), observed(source, InProcess(change=nudge))
    assert [o.raw for o in plain] == [o.raw for o in same]
    assert not {o.raw for o in plain} & {o.raw for o in other}


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_log_probabilities_that_are_none_fail_their_item(value: float) -> None:
    def spoil(result: Any) -> Any:
        if result.id != "i1":
            return result
        logprobs = result.continuations[0].logprobs.copy()
        logprobs[-1] = value
        return replace(result, continuations=(replace(result.continuations[0], logprobs=logprobs),))

    found = observed(evalset("text", 3), InProcess(change=spoil))
    assert [o.outcome.kind for o in found] == ["scored", "failed", "scored"]
    assert isinstance(found[1].outcome, Failed)
    assert found[1].outcome.reason == "non_finite"
    assert found[1].raw is None


@pytest.mark.parametrize("kind", ["text", "choice", "generation"])
def test_a_failure_stays_a_failure(kind: str) -> None:
    def fail(result: Any) -> Any:
        return ItemFailure(id=result.id, reason="too_long", detail="x" * 2000)

    for o in observed(evalset(kind, 3), InProcess(change=fail)):
        assert isinstance(o.outcome, Failed)
        assert o.outcome.reason == "too_long"
        assert len(o.outcome.detail) == 500


def test_a_check_that_cannot_be_applied_fails_its_item() -> None:
    source = evalset("generation", 3)
    checks = [
        {"kind": "regex", "values": (), "pattern": "("},
        {"kind": "number", "values": ("many",), "pattern": ""},
        {"kind": "items", "values": (), "pattern": "three"},
    ]
    items = tuple(
        item.model_copy(update={"check": item.check.model_copy(update=check)})
        for item, check in zip(source.items, checks, strict=True)
        if isinstance(item, Generation)
    )
    replies = InProcess(change=lambda result: replace(result, text="1 of (many)"))
    for o in observed(source.model_copy(update={"items": items}), replies):
        assert isinstance(o.outcome, Failed), o
        assert o.outcome.reason == "scorer"


def drop_token(result: Any) -> Any:
    """The engine cut the text off: fewer nats, the same bytes, a better bits a byte."""
    first = result.continuations[0]
    short = Continuation(token_ids=first.token_ids[:-1], logprobs=first.logprobs[:-1])
    return replace(result, continuations=(short, *result.continuations[1:]))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("choice", lambda r: replace(r, prompt_ids=r.prompt_ids[1:]), "prompt of item i0, token 0"),
        ("generation", lambda r: replace(r, prompt_ids=(*r.prompt_ids, 7)), "prompt of item i0, token"),
        ("text", lambda r: replace(r, prompt_ids=(5,)), "prompt of item i0, token 0"),
        ("text", lambda r: replace(r, prompt_ids=()), "prompt of item i0, token 0"),
        ("text", drop_token, "continuation of item i0, token"),
        ("choice", drop_token, "continuation of item i0, token"),
    ],
)
def test_other_tokens_than_the_pinned_ones_are_bad_input(kind: str, change: Any, message: str) -> None:
    with pytest.raises(PinMismatch, match=message):
        observed(evalset(kind, 2), InProcess(change=change))


def scored_above_zero(result: Any) -> Continuation:
    """The first continuation, more than certain of its tokens."""
    first: Continuation = result.continuations[0]
    return replace(first, logprobs=np.full(len(first.token_ids), 0.5, np.float32))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("text", lambda r: replace(r, id="other")),
        ("generation", lambda r: replace(r, id="other")),
        ("choice", lambda r: replace(r, continuations=r.continuations[:1])),
        ("text", lambda r: replace(r, continuations=(replace(r.continuations[0], logprobs=np.zeros(1)),))),
        ("choice", lambda r: replace(r, continuations=(scored_above_zero(r), *r.continuations[1:]))),
    ],
)
def test_answers_to_something_else_are_the_engines_fault(kind: str, change: Any) -> None:
    with pytest.raises(EngineError, match="does not fit the request"):
        observed(evalset(kind, 2), InProcess(change=change))


def test_an_engine_speculates_exactly_when_its_manifest_says_so() -> None:
    source, counts = evalset("generation", 2), Speculated(forwards=2, drafted=3, accepted=1)
    drafting = InProcess(change=lambda result: replace(result, speculated=counts))
    arms = {name: make_arm(engine) for name, engine in (("drafting", drafting), ("plain", InProcess()))}
    setting = PromptLookup(method="prompt_lookup", num_tokens=4)
    for name, arm in arms.items():
        engine = arm.manifest.engine.model_copy(update={"speculative": setting})
        pinned = replace(arm, manifest=arm.manifest.model_copy(update={"engine": engine}))
        right, wrong = (pinned, arm) if name == "drafting" else (arm, pinned)
        observations, _ = run_batch(right, Batch(0, source.items), replicate=0)
        assert {o.speculated for o in observations} == {counts if name == "drafting" else None}
        with pytest.raises(EngineError, match=r"speculates otherwise than engine\.speculative says"):
            run_batch(wrong, Batch(0, source.items), replicate=0)


def test_endings() -> None:
    def reply(**changes: Any) -> dict[str, float]:
        engine = InProcess(change=lambda result: replace(result, **changes))
        (found,) = observed(evalset("generation", 1), engine)
        assert isinstance(found.outcome, Scored)
        return found.outcome.values

    assert reply() == {"score": 1.0, "truncated": 0.0, "empty": 0.0, "looping": 0.0}
    assert reply(finish="length")["truncated"] == 1.0
    assert reply(text=" \n ")["empty"] == 1.0
    assert reply(text=" \n ")["score"] == 0.0
    assert reply(token_ids=(4,) * 40, times=(0.1,) * 40)["looping"] == 1.0


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "transformers"}, "engine.kind"),
        ({"version": "2"}, "engine.version"),
        ({"dtype": "bfloat16"}, "engine.dtype"),
        ({"device": "cuda"}, "engine.device"),
        ({"threads": 9}, "engine.threads"),
        ({"quantization": "bitsandbytes int8: 100%"}, "quantization"),
        ({"max_sequence": 9}, "limits.max_sequence"),
    ],
)
def test_what_the_engine_says_it_is_must_be_what_is_declared(change: dict[str, Any], path: str) -> None:
    engine = InProcess()
    check_identity(make_arm(engine))
    engine.identity = engine.identity.model_copy(update=change)
    with pytest.raises(PinMismatch, match=path):
        check_identity(make_arm(engine))
