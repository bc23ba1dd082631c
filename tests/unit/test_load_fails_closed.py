"""Rows of never-fails-open for timing under load: what was not measured as it should be lets nothing pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.builders import check, policy

from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.decision.verdict import decide
from checkweigh.errors import BadDocument
from checkweigh.records.comparison import Comparison, Estimate, Inestimable
from checkweigh.records.decision import Verdict
from checkweigh.records.measurement import Block, PairedRun
from checkweigh.records.policy import Policy
from checkweigh.usecases.gate.arms.time_arms import settled

LOAD: dict[str, Any] = {"arrivals": {"kind": "poisson", "rate": 4.0}, "slo": {"e2e": 3.0}}
RATES = ("goodput", "error_rate")


def row(metric: str, **changes: Any) -> dict[str, Any]:
    rate = metric in RATES
    return check(
        id=metric.replace("_", "-"), metric=metric, statistic="mean" if rate else "p50", evalset=[],
        direction="higher" if metric == "goodput" else "lower", scale="absolute" if rate else "relative",
        margin=0.2, min_items=20, min_clusters=20,
    ) | changes  # fmt: skip


def rules(**timing: Any) -> Policy:
    timing = {"pairs": 20, "requests": 40, "load": LOAD} | timing
    return policy(row("e2e"), row("goodput"), row("error_rate"), timing=timing)


def run(blocks: int = 20, slower: float = 0.0, seed: int = 0, **changes: Any) -> PairedRun:
    """A run of equal arms but for a factor exp(slower); ``changes`` replace values of the candidate's blocks."""
    rng = np.random.default_rng(seed)
    measured_blocks = []
    for pair in range(blocks):
        shared = rng.normal(0, 0.2)
        arms = [
            {
                "e2e.p50": float(np.exp(shared + rng.normal(0, 0.03) + extra)), "goodput": 1.0, "error_rate": 0.0,
                "saturated": 0.0,
            }
            for extra in (0.0, slower)
        ]  # fmt: skip
        arms[1] |= {k: v for k, v in changes.items() if v is not None}
        arms[1] = {k: v for k, v in arms[1].items() if changes.get(k, 0) is not None}
        measured_blocks.append(
            Block.model_construct(
                pair=pair, order=("baseline", "candidate"), requests=40, baseline=arms[0], candidate=arms[1],
                unlike=dict.fromkeys(RATES, (0, 0)), plan=None,
            )
        )  # fmt: skip
    return PairedRun.model_construct(
        seed=0, blocks=tuple(measured_blocks), seconds=1.0, looks=(1.0,), planned_looks=1, notes=()
    )


def compared(policy_: Policy, timing: PairedRun | None) -> dict[str, Comparison]:
    return {c.id: compare_blocks(c, timing, alpha=0.05) for c in policy_.checks}


def verdict(timing: PairedRun | None) -> Verdict:
    return decide(rules(), compared(rules(), timing)).verdict


def test_the_plain_case_passes_and_a_slower_candidate_blocks() -> None:
    """What the rows below must not turn round."""
    assert verdict(run()) is Verdict.PASS
    assert verdict(run(slower=0.5)) is Verdict.BLOCK


@pytest.mark.parametrize("name", ["e2e.p50", "goodput", "error_rate"])
def test_a_value_that_is_missing_or_no_number(name: str) -> None:
    assert verdict(run(**{name: None})) is Verdict.INCONCLUSIVE
    assert verdict(run(**{name: float("nan")})) is Verdict.INCONCLUSIVE


def test_nothing_was_timed() -> None:
    assert verdict(None) is Verdict.INCONCLUSIVE
    assert verdict(run(blocks=0)) is Verdict.INCONCLUSIVE


def test_fewer_pairs_than_planned() -> None:
    assert verdict(run(blocks=19)) is Verdict.INCONCLUSIVE


def test_rates_without_the_requests_they_count() -> None:
    bare = run()
    for block in bare.blocks:
        object.__setattr__(block, "unlike", {})
    assert verdict(bare) is Verdict.INCONCLUSIVE


def test_a_candidate_that_was_over_saturated_even_if_it_looks_fast() -> None:
    assert verdict(run(saturated=1.0)) is Verdict.INCONCLUSIVE


def test_a_candidate_that_left_requests_without_an_answer() -> None:
    """The answered half is as fast as the baseline's; the other half would have been slower than anything."""
    assert verdict(run(**{"e2e.p50.bound": 60.0})) is Verdict.INCONCLUSIVE


def test_a_baseline_that_left_requests_without_an_answer() -> None:
    timing = run()
    for block in timing.blocks:
        block.baseline["e2e.p50.bound"] = 0.0
    assert verdict(timing) is Verdict.INCONCLUSIVE


def test_constant_blocks_have_no_zero_width_interval() -> None:
    timing = run()
    for block in timing.blocks:
        block.baseline["e2e.p50"] = block.candidate["e2e.p50"] = 0.5
    assert isinstance(compared(rules(), timing)["e2e"], Inestimable)


def test_a_free_peek_is_not_free() -> None:
    """The same 20 pairs say less when 20 more were held in reserve, and the last look less than a single one."""
    grows = run(seed=3, slower=0.16)
    levels = {
        looks: compare_blocks(
            rules().checks[0], grows.model_copy(update={"looks": looks, "planned_looks": planned}), alpha=0.05
        )
        for looks, planned in (((1.0,), 1), ((0.5,), 2), ((0.5, 1.0), 2))
    }
    single, first, last = (levels[key] for key in ((1.0,), (0.5,), (0.5, 1.0)))
    assert isinstance(single, Estimate)
    assert isinstance(first, Estimate)
    assert isinstance(last, Estimate)
    assert first.p_pass > last.p_pass > single.p_pass
    assert first.low is not None
    assert single.low is not None
    assert first.low < single.low
    assert first.p_worse == pytest.approx(2 * single.p_worse)
    assert (first.low > -np.log1p(0.2)) == (first.p_pass < 0.05)
    assert "look 1 of at most 2" in first.method


@pytest.mark.parametrize(("slower", "ends"), [(0.0, True), (0.5, True), (0.17, False)])
def test_growth_ends_when_checks_pass_or_block_and_goes_on_in_between(slower: float, ends: bool) -> None:
    policy_ = rules(grow_to=40)
    assert settled(policy_, run(slower=slower).blocks, (0.5,)) is ends


def test_growth_does_not_end_on_what_cannot_be_estimated() -> None:
    assert not settled(rules(grow_to=40), run(goodput=None).blocks, (0.5,))


@pytest.mark.parametrize(
    ("timing", "wanted"),
    [
        ({"pairs": 20, "requests": 40}, "timing.load for goodput"),
        ({"pairs": 20, "requests": 5, "load": LOAD}, "requests of at least 10"),
        ({"pairs": 20, "requests": 40, "load": LOAD, "grow_to": 30}, "a multiple of pairs"),
        ({"pairs": 20, "requests": 40, "load": LOAD, "grow_to": 20}, "above it"),
        ({"pairs": 10, "requests": 40, "load": LOAD, "grow_to": 40}, "min_clusters"),
        ({"pairs": 20, "requests": 40, "load": LOAD | {"slo": {}}}, "at least one of"),
    ],
)
def test_a_timing_plan_that_cannot_gate_is_refused(timing: dict[str, Any], wanted: str) -> None:
    with pytest.raises(BadDocument, match=wanted):
        policy(row("goodput"), timing=timing)


def test_p99_under_load_gates_only_with_a_hundred_requests() -> None:
    critical = row("e2e", statistic="p99")
    with pytest.raises(BadDocument, match="requests of at least 100"):
        policy(critical, timing={"pairs": 20, "requests": 40, "load": LOAD})
    policy(critical, timing={"pairs": 20, "requests": 100, "load": LOAD})
