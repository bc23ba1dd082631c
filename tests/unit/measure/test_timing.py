"""Interleaved timing: the same requests for both arms, an order drawn by seed, and no impossible times."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.measure.conftest import InProcess, make_arm

from checkweigh.engines.protocol import GenerateResult, ItemFailure, Messages
from checkweigh.errors import EngineDied, EngineError
from checkweigh.measure.paired_blocks import StopRules
from checkweigh.measure.timing import run_pairs
from checkweigh.records.measurement import PairedRun, Speculated
from checkweigh.records.policy import Timing

TIMING = Timing(pairs=40, requests=3, output_tokens=4, max_seconds=60)
METRICS = {f"{m}.{q}" for m in ("ttft", "tpot", "e2e") for q in ("p50", "p90", "p99")} | {
    "peak_memory",
    "swapped",
}


def timed(
    conversations: list[Messages], seed: int = 1, timing: Timing = TIMING, **engines: InProcess
) -> PairedRun:
    arms = {name: make_arm(engines.get(name, InProcess(name=name))) for name in ("baseline", "candidate")}
    rules = StopRules(timing=timing, deadline=time.monotonic() + timing.max_seconds)
    return run_pairs(arms.__getitem__, conversations, rules, seed)


def asked(engine: InProcess) -> list[Any]:
    return [what for kind, what in engine.calls if kind == "generate"]


def test_both_arms_get_the_same_requests_in_every_pair(conversations: list[Messages]) -> None:
    first, second = InProcess(name="b"), InProcess(name="c")
    run = timed(conversations, baseline=first, candidate=second)
    assert asked(first) == asked(second)
    assert len(asked(first)) == 1 + TIMING.pairs * TIMING.requests
    assert all(exact == 4 for call in asked(first) for _, _, exact in call)
    assert len({str(call[0][1]) for call in asked(first)}) == len(conversations), "all prompts are drawn from"
    assert all(set(b.baseline) == set(b.candidate) == METRICS for b in run.blocks)


def test_the_order_of_the_arms_is_drawn_by_the_seed(conversations: list[Messages]) -> None:
    orders = {seed: [b.order for b in timed(conversations, seed).blocks] for seed in (1, 1, 2)}
    again = [b.order for b in timed(conversations, 1).blocks]
    assert orders[1] == again
    assert orders[1] != orders[2]
    first = sum(order[0] == "baseline" for order in again)
    assert 10 <= first <= 30, "about half of the pairs begin with the baseline"
    assert all(sorted(order) == ["baseline", "candidate"] for order in again)


def test_the_recorded_order_is_the_executed_one(conversations: list[Messages]) -> None:
    log: list[str] = []

    def note(name: str) -> Any:
        return lambda result: log.append(name) or result

    engines = {name: InProcess(name=name, change=note(name)) for name in ("baseline", "candidate")}
    run = timed(conversations, timing=TIMING.model_copy(update={"requests": 1}), **engines)
    assert log == ["baseline", "candidate", *(name for block in run.blocks for name in block.order)]


def test_memory_is_that_of_each_block(conversations: list[Messages]) -> None:
    engine = InProcess(peak=5000)
    run = timed(conversations, candidate=engine)
    kinds = [what for kind, what in engine.calls if kind == "resources"]
    assert kinds == [True, False] * (TIMING.pairs + 1), "the peak starts anew in every block"
    assert all(b.candidate["peak_memory"] == 5000 and b.baseline["peak_memory"] == 1000 for b in run.blocks)
    assert run.peak_memory == {"baseline": 1000, "candidate": 5000}
    assert run.swapped == {"baseline": 7, "candidate": 7}


def test_it_stops_when_its_seconds_are_over_and_says_so(conversations: list[Messages]) -> None:
    timing = TIMING.model_copy(update={"max_seconds": 0.1, "requests": 1})
    run = timed(conversations, timing=timing, candidate=InProcess(seconds=0.03))
    assert 0 < len(run.blocks) < 40
    assert run.notes == (f"stopped after {len(run.blocks)} of 40 pairs: the time for it was over",)


@pytest.mark.parametrize(
    "times", [(9.0, 9.1, 9.2, 9.3), (-0.1, 0.0, 0.0, 0.0), (3e-4, 2e-4, 1e-4, 0.0), (1e-6,) * 3, (1e-6,) * 5]
)
@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_impossible_times_are_the_engines_fault(
    conversations: list[Messages], times: tuple[float, ...], role: str
) -> None:
    def lie(result: GenerateResult) -> GenerateResult:
        return replace(result, times=times)

    with pytest.raises(EngineError, match=r"cannot be|does not fit the request") as caught:
        timed(conversations, **{role: InProcess(change=lie)})
    assert caught.value.arm == role


@pytest.mark.parametrize("lives", [0, 3, 2 * TIMING.pairs + 1])
@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_an_engine_that_dies_is_named_wherever_it_dies(
    conversations: list[Messages], role: str, lives: int
) -> None:
    class Dies(InProcess):
        def resources(self, *, reset_peak: bool = False) -> Any:
            if len([kind for kind, _ in self.calls if kind == "resources"]) == lives:
                raise EngineDied("gone")
            return super().resources(reset_peak=reset_peak)

    with pytest.raises(EngineDied) as caught:
        timed(conversations, **{role: Dies()})
    assert caught.value.arm == role


def test_a_request_without_an_answer_ends_the_timing_without_a_result(conversations: list[Messages]) -> None:
    def fail(result: GenerateResult) -> Any:
        return (
            ItemFailure(id=result.id, reason="too_long", detail="for this model")
            if result.id == "5-0"
            else result
        )

    run = timed(conversations, candidate=InProcess(change=fail))
    assert run.blocks == ()
    assert run.notes == (
        "given up after 5 pairs, which are not used: "
        "the candidate cannot answer a timing request (too_long: for this model)",
    )


def test_tokens_that_arrive_together_are_counted_one_by_one(conversations: list[Messages]) -> None:
    """Three forwards of 4, 3 and 2 tokens: most gaps are 0, the time per token is not."""
    timing = TIMING.model_copy(update={"output_tokens": 9, "pairs": 3})

    def chunks(result: GenerateResult) -> GenerateResult:
        times = (0.001,) * 4 + (0.002,) * 3 + (0.005,) * 2
        counts = Speculated(forwards=3, drafted=8, accepted=6)
        return replace(result, times=times, speculated=counts)

    run = timed(conversations, timing=timing, candidate=InProcess(change=chunks, seconds=0.01))
    for block in run.blocks:
        assert block.candidate["tpot.p50"] == pytest.approx(0.004 / 8)
        assert block.candidate["ttft.p50"] + 8 * block.candidate["tpot.p50"] == pytest.approx(0.005)
        assert block.candidate["acceptance_length"] == 3
        assert "acceptance_length" not in block.baseline
    (note,) = run.notes
    assert note.startswith(
        "the candidate speculates: acceptance length 3.00 tokens a forward in replies of 9"
    )
