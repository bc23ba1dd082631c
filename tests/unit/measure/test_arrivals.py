"""Plans of blocks: pure functions of load, pair and seed, with the gaps that the load names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from checkweigh.measure.arrivals import BlockPlan, PromptSupply, arrival_times, gaps, plan_block
from checkweigh.records.evalset import Message
from checkweigh.records.load_spec import (
    Arrivals,
    Bursts,
    Load,
    Objective,
    Poisson,
    Trace,
)
from checkweigh.records.policy import Timing
from checkweigh.sources.load_trace import TraceRequest

CONVERSATIONS = [(Message(role="user", content=f"question {i} of several words"),) for i in range(7)]
TRACE = Trace(kind="trace", file="t.csv", speed=4.0, max_prompt_tokens=30, max_output_tokens=9)
ROWS = [TraceRequest(at=float(i * i), prompt_tokens=3 + 10 * i, output_tokens=1 + i) for i in range(40)]
SUPPLY = PromptSupply(conversations=CONVERSATIONS, rows=ROWS)


def load(arrivals: Any, requests: int = 12) -> tuple[Load, Timing]:
    found = Load(arrivals=arrivals, slo=Objective(e2e=1.0))
    return found, Timing(requests=requests, output_tokens=5, load=found)


def plan(arrivals: Any, pair: int = 0, seed: int = 1, requests: int = 12) -> BlockPlan:
    return plan_block(*load(arrivals, requests), SUPPLY, pair, seed)


KINDS: list[Any] = [
    Poisson(kind="poisson", rate=3.0), Bursts(kind="bursts", rate=3.0, variation=6.0), TRACE,
]  # fmt: skip


@pytest.mark.parametrize("arrivals", KINDS, ids=lambda a: a.kind)
def test_a_plan_is_a_pure_function_of_pair_and_seed(arrivals: Any) -> None:
    first = plan(arrivals)
    assert first == plan(arrivals)
    assert first.digest == plan(arrivals).digest
    digests = {plan(arrivals, pair, seed).digest for pair in (0, 1, 2) for seed in (1, 2)}
    assert len(digests) == 6, "every pair and seed has a plan of its own"
    assert len({r.id for r in first.requests}) == len(first.requests) == 12


@pytest.mark.parametrize("change", ["at", "messages", "output_tokens"])
def test_the_digest_covers_times_texts_and_lengths(change: str) -> None:
    from dataclasses import replace

    whole = plan(KINDS[0])
    values = {"at": 0.5, "messages": CONVERSATIONS[-1], "output_tokens": 77}
    last = replace(whole.requests[-1], **{change: values[change]})
    assert replace(whole, requests=(*whole.requests[:-1], last)).digest != whole.digest


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS[:2]),
    st.integers(2, 200),
    st.integers(0, 2**31),
    st.floats(0.01, 1000),
)
def test_arrivals_start_at_zero_and_never_run_backwards(
    arrivals: Any, count: int, seed: int, rate: float
) -> None:
    times = arrival_times(arrivals.model_copy(update={"rate": rate}), count, np.random.default_rng(seed))
    assert times.shape == (count,)
    assert times[0] == 0
    assert np.isfinite(times).all()
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize(
    ("arrivals", "variation"),
    [(Poisson(kind="poisson", rate=20.0), 1.0), (Bursts(kind="bursts", rate=20.0, variation=9.0), 9.0)],
)
def test_gaps_have_the_declared_mean_and_variation(arrivals: Any, variation: float) -> None:
    found = gaps(arrivals, 200_000, np.random.default_rng(3))
    assert found.mean() == pytest.approx(1 / 20, rel=0.03)
    assert found.var() / found.mean() ** 2 == pytest.approx(variation, rel=0.08)


def test_a_trace_is_replayed_window_by_window_at_its_speed() -> None:
    for pair in (0, 1, 2):
        found, window = plan(TRACE, pair), ROWS[12 * pair : 12 * pair + 12]
        assert [r.at for r in found.requests] == pytest.approx(
            [(row.at - window[0].at) / 4 for row in window]
        )
        assert [r.output_tokens for r in found.requests] == [
            max(2, min(row.output_tokens, 9)) for row in window
        ]
        words = [len(r.messages[0].content.split()) for r in found.requests]
        assert words == [min(row.prompt_tokens, 30) for row in window], "one token a word, cut at 30"


def test_a_trace_that_ends_is_not_wrapped_around() -> None:
    with pytest.raises(ValueError, match="no window of 12 requests for pair 3"):
        plan(TRACE, 3)


def test_prompts_of_a_trace_are_as_long_in_tokens_as_the_trace_says() -> None:
    def encode(text: str) -> tuple[int, ...]:
        return tuple(range(3 * len(text.split())))  # three tokens a word

    supply = PromptSupply.of(CONVERSATIONS, ROWS, encode)
    found = plan_block(*load(TRACE), supply, 0, 1)
    for request, row in zip(found.requests, ROWS, strict=False):
        wanted = min(row.prompt_tokens, 30)
        assert abs(len(encode(request.messages[0].content)) - wanted) <= 2


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "poisson", "rate": 0.0}, {"kind": "poisson"}, {"kind": "poisson", "rate": float("inf")},
        {"kind": "bursts", "rate": 1.0, "variation": 1.0}, {"kind": "trace", "file": ""},
        {"kind": "trace", "file": "x", "speed": 0.0}, {"kind": "steady", "rate": 1.0},
    ],
)  # fmt: skip
def test_loads_that_are_none_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        TypeAdapter(Arrivals).validate_python(value)


def test_an_objective_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of ttft, tpot and e2e"):
        Objective()
