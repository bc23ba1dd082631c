"""The batch plan: pure, whole, within its limits, and the same for both arms."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import evalset

from checkweigh.measure.batching import BYTES_PER_TOKEN, plan_batches
from checkweigh.records.evalset import EvalSet, Text
from checkweigh.records.manifest import EngineSection


def engine(**changes: object) -> EngineSection:
    return EngineSection.model_validate({"kind": "fake", "version": "1"} | changes)


def texts(lengths: list[int]) -> EvalSet:
    card = evalset("text", 1).card
    items = tuple(
        Text(id=f"i{i}", cluster="c", stratum="s", text="x" * length) for i, length in enumerate(lengths)
    )
    return EvalSet(card=card, items=items)


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=120),
    most=st.integers(1, 40),
    tokens=st.integers(16, 4096),
)
@settings(max_examples=60, deadline=None)
def test_every_item_once_and_within_the_limits(lengths: list[int], most: int, tokens: int) -> None:
    source, settings = texts(lengths), engine(max_batch=most, max_batch_tokens=tokens)
    batches = plan_batches(source, settings)
    assert sorted(item.id for batch in batches for item in batch.items) == sorted(i.id for i in source.items)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    for batch in batches:
        longest = max(len(item.text) for item in batch.items if isinstance(item, Text))
        assert 1 <= len(batch.items) <= most
        assert len(batch.items) == 1 or longest * len(batch.items) <= tokens * BYTES_PER_TOKEN


@pytest.mark.parametrize("kind", ["text", "choice", "generation"])
def test_a_pure_function_of_set_and_limits(kind: str) -> None:
    source = evalset(kind, 100)
    shuffled = source.model_copy(update={"items": source.items[::-1]})
    settings = engine()
    assert (
        plan_batches(source, settings) == plan_batches(source, settings) == plan_batches(shuffled, settings)
    )
    other_arm = engine(options={"seed": 3}, threads=7, dtype="float32", device="cuda")
    assert plan_batches(source, settings) == plan_batches(source, other_arm)
    assert [b.digest for b in plan_batches(source, settings)] != [
        b.digest for b in plan_batches(source, engine(max_batch=3))
    ]


def test_a_batch_digest_names_its_items_in_order() -> None:
    batches = plan_batches(evalset("choice", 40), engine(max_batch=10))
    assert len({batch.digest for batch in batches}) == len(batches) == 4
