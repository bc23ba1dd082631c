"""Measurement behind the guard's admission: a batch that fits is untouched, one that does not goes in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from checkweigh.engines.protocol import GenerateRequest, Resources, ScoreRequest, Telemetry
from checkweigh.guard.admission.guarded_engine import GuardedEngine
from checkweigh.records.evalset import Message


class Recorder:
    """An engine that notes what comes together."""

    endpoint = "here"

    def __init__(self, kv_tokens: int | None) -> None:
        self.kv_tokens = kv_tokens
        self.batches: list[list[str]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def resources(self, *, reset_peak: bool = False) -> Resources:
        counted = Telemetry(
            prompt_tokens=0, generated_tokens=0, preemptions=0, cache_queries=0, cache_hits=0, drafts=0, drafted=0,
            accepted=0, kv_use=0.0, kv_tokens=self.kv_tokens,
        )  # fmt: skip
        return Resources(resident=1, peak=1, swapped=0, telemetry=counted)

    def score(self, batch: Sequence[Any]) -> list[Any]:
        self.batches.append([request.id for request in batch])
        return [request.id for request in batch]

    generate = score


def guarded(inner: Recorder, scoring: int = 8) -> GuardedEngine:
    return GuardedEngine(inner, headroom=0.25, slots=16, scoring=scoring, max_tokens=50)  # type: ignore[arg-type]


def text(name: str, tokens: int) -> ScoreRequest:
    return ScoreRequest(id=name, messages=None, continuations=("abc" * tokens,))


def test_a_batch_that_fits_is_one_call() -> None:
    inner = Recorder(kv_tokens=1000)
    with guarded(inner) as engine:
        assert engine.score([text(str(i), 100) for i in range(7)]) == [str(i) for i in range(7)]
        assert engine.endpoint == "here"
    assert len(inner.batches) == 1


def test_one_that_does_not_goes_in_turns_and_in_order() -> None:
    inner = Recorder(kv_tokens=1000)
    with guarded(inner) as engine:
        assert engine.score([text(str(i), 300) for i in range(5)]) == list("01234")
        requests = [
            GenerateRequest(id=str(i), messages=(Message(role="user", content="hi"),)) for i in range(20)
        ]
        engine.generate(requests)
    assert inner.batches == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
        [str(i) for i in range(12)],
        [str(i) for i in range(12, 20)],
    ]


def test_scoring_is_capped_and_an_item_alone_is_never_held_back() -> None:
    inner = Recorder(kv_tokens=1000)
    with guarded(inner, scoring=2) as engine:
        engine.score([text("a", 1), text("b", 1), text("c", 1), text("huge", 5000), text("d", 1)])
    assert inner.batches == [["a", "b"], ["c"], ["huge"], ["d"]]


def test_without_a_cache_nothing_is_held_back() -> None:
    inner = Recorder(kv_tokens=None)
    with guarded(inner, scoring=1) as engine:
        engine.score([text(str(i), 900) for i in range(9)])
    assert len(inner.batches) == 1


@given(sizes=st.lists(st.integers(1, 400), max_size=30), kv=st.integers(200, 2000))
def test_every_item_is_asked_once_in_order_within_the_budget(sizes: list[int], kv: int) -> None:
    inner = Recorder(kv_tokens=kv)
    with guarded(inner, scoring=4) as engine:
        engine.score([text(str(i), size) for i, size in enumerate(sizes)])
    assert [name for batch in inner.batches for name in batch] == [str(i) for i in range(len(sizes))]
    for batch in inner.batches:
        assert len(batch) <= 4
        assert len(batch) == 1 or sum(1 + sizes[int(name)] for name in batch) <= 0.75 * kv
