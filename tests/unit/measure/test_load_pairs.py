"""Pairs of blocks under load: one plan for both arms, honest ends, and nothing that fails open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.builders import IDENTITY, check
from tests.unit.measure.conftest import InProcess, encode, make_arm

from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.engines.protocol import Messages, Resources, Telemetry
from checkweigh.errors import BadInput, EngineDied, EngineError
from checkweigh.measure.arrivals import PromptSupply, plan_block
from checkweigh.measure.load_pairs import PairUnderLoad, run_load
from checkweigh.measure.paired_blocks import ARMS, StopRules
from checkweigh.measure.served_arm import ServedArm
from checkweigh.records.comparison import Estimate, Inestimable
from checkweigh.records.load_spec import Load, Objective, Poisson
from checkweigh.records.measurement import PairedRun
from checkweigh.records.policy import Check, Timing

NOWHERE = Endpoint(url="http://127.0.0.1:9/v1", model="mock")


@dataclass
class Serving(InProcess):
    """An engine of this process whose requests a mock server answers."""

    endpoint: Endpoint = NOWHERE
    telemetry: list[Telemetry] = field(default_factory=list)

    def resources(self, *, reset_peak: bool = False) -> Resources:
        found = super().resources(reset_peak=reset_peak)
        counted = self.telemetry.pop(0) if self.telemetry else None
        return Resources(resident=found.resident, peak=found.peak, swapped=0, telemetry=counted)


def timing(
    pairs: int = 6, *, rate: float = 150.0, requests: int = 12, grow_to: int | None = None, **load: Any
) -> Timing:
    common = {"slo": Objective(e2e=0.4), "timeout": 3.0, "washout": 0.0, "max_late": 0.5}
    rules = Load(**{"arrivals": Poisson(kind="poisson", rate=rate)} | common | load)
    return Timing(pairs=pairs, requests=requests, output_tokens=4, load=rules, grow_to=grow_to)


@contextmanager
def mocks(**knobs: MockKnobs) -> Iterator[tuple[dict[str, Serving], dict[str, MockApp]]]:
    with ExitStack() as stack:
        arms, apps = {}, {}
        for role in ARMS:
            endpoint, app = stack.enter_context(
                in_thread(knobs.get(role, MockKnobs(first_ms=20.0, token_ms=2.0)))
            )
            arms[str(role)], apps[str(role)] = Serving(name=role, endpoint=endpoint), app
        yield arms, apps


def timed(
    arms: dict[str, Serving], conversations: list[Messages], rules: Timing | StopRules, seed: int = 1
) -> PairedRun:
    running = {role: make_arm(engine) for role, engine in arms.items()}
    if isinstance(rules, Timing):
        rules = StopRules(timing=rules, deadline=time.monotonic() + 60)
    return run_load(loaded(running, conversations, rules, seed))


def loaded(
    running: dict[str, ServedArm], conversations: list[Messages], rules: StopRules, seed: int = 1
) -> PairUnderLoad:
    assert rules.timing.load is not None
    return PairUnderLoad(
        arm_for=running.__getitem__, supply=PromptSupply.of(conversations, (), encode), rules=rules, seed=seed,
        load=rules.timing.load,
    )  # fmt: skip


def a_check(metric: str, statistic: str = "p50", **changes: Any) -> Check:
    better = "higher" if metric == "goodput" else "lower"
    scale = "absolute" if metric in ("goodput", "error_rate") else "relative"
    values = check(
        id=metric, metric=metric, statistic=statistic, evalset=[], direction=better, scale=scale, margin=0.2,
        min_items=6, min_clusters=6,
    )  # fmt: skip
    return Check.model_validate(values | {"evalset": ()} | changes)


def test_both_arms_get_one_frozen_plan_a_pair_in_a_drawn_order(conversations: list[Messages]) -> None:
    rules = timing(12)
    with mocks() as (arms, _):
        run = timed(arms, conversations, rules)
    assert rules.load is not None
    supply = PromptSupply.of(conversations, (), encode)
    assert [b.plan for b in run.blocks] == [
        plan_block(rules.load, rules, supply, pair, 1).digest for pair in range(12)
    ]
    assert {b.order for b in run.blocks} == {ARMS, ARMS[::-1]}
    assert all(b.requests == 12 and b.unlike["error_rate"] == (0, 0) for b in run.blocks)
    assert run.load == "Poisson arrivals, 150 requests/s, 12 requests a block"
    assert run.looks == (1.0,)
    assert all(b.baseline["ttft.p50"] > 0.018 and b.baseline["peak_memory"] == 1000 for b in run.blocks)
    assert run.peak_memory == {"baseline": 1000, "candidate": 1000}


def test_the_idle_arm_is_asked_nothing(conversations: list[Messages]) -> None:
    """Each arm's server sees its own warm-up and blocks, and the memory of an arm is read around its own blocks."""
    with mocks() as (arms, _):
        timed(arms, conversations, timing(6))
    for engine in arms.values():
        assert [what for kind, what in engine.calls] == [True, False] * 7
        assert {kind for kind, _ in engine.calls} == {"resources"}


def test_a_slower_candidate_is_slower_in_every_pair(conversations: list[Messages]) -> None:
    with mocks(candidate=MockKnobs(first_ms=90.0, token_ms=2.0)) as (arms, _):
        run = timed(arms, conversations, timing(10))
    found = compare_blocks(a_check("ttft"), run, alpha=0.05)
    assert isinstance(found, Estimate)
    assert found.effect < -0.5
    assert found.p_worse < 0.01
    assert found.p_pass > 0.5


def test_goodput_counts_what_kept_the_promise(conversations: list[Messages]) -> None:
    rules = timing(8, slo=Objective(ttft=0.3))
    slow = MockKnobs(first_ms=20.0, tail_share=0.5, tail_ms=600.0)
    with mocks(candidate=slow) as (arms, _):
        run = timed(arms, conversations, rules)
    shares = [b.candidate["goodput"] for b in run.blocks]
    assert 0.2 < sum(shares) / len(shares) < 0.8
    assert all(b.baseline["goodput"] > 0.9 for b in run.blocks)
    found = compare_blocks(a_check("goodput", "mean"), run, alpha=0.05)
    assert isinstance(found, Estimate)
    assert found.p_worse < 0.01
    assert found.effect == pytest.approx(
        sum(b.candidate["goodput"] - b.baseline["goodput"] for b in run.blocks) / 8
    )


def test_errors_of_the_candidate_forbid_a_pass_where_they_reach(conversations: list[Messages]) -> None:
    with mocks(candidate=MockKnobs(first_ms=20.0, token_ms=2.0, error_share=0.3)) as (arms, _):
        run = timed(arms, conversations, timing(10))
    found = compare_blocks(a_check("e2e", "p90", margin=0.5), run, alpha=0.05)
    assert isinstance(found, Estimate)
    assert found.p_pass > 0.5, "the failed ones would have been the slowest"
    assert found.effect > -0.3, "what was answered was answered in time"
    errors = compare_blocks(a_check("error_rate", "mean"), run, alpha=0.05)
    assert isinstance(errors, Estimate)
    assert errors.p_worse < 0.01
    assert any("refused with 500" in note for note in run.notes)


def test_an_over_saturated_candidate_is_named_and_cannot_pass(conversations: list[Messages]) -> None:
    rules = timing(6, rate=130.0, requests=60, timeout=1.0)
    with mocks(candidate=MockKnobs(slots=1, first_ms=40.0)) as (arms, _):
        run = timed(arms, conversations, rules)
    assert len(run.blocks) == 6
    assert any("the candidate was over-saturated in" in note for note in run.notes)
    for metric, statistic in (("ttft", "p50"), ("e2e", "p50")):
        found = compare_blocks(a_check(metric, statistic), run, alpha=0.05)
        assert isinstance(found, Estimate)
        assert found.low is None
        assert found.p_pass == 1
        assert found.effect < -0.2
    good = compare_blocks(a_check("goodput", "mean"), run, alpha=0.05)
    assert isinstance(good, Estimate)
    assert good.p_worse < 0.01


def test_an_over_saturated_baseline_ends_the_timing_and_nothing_passes(conversations: list[Messages]) -> None:
    rules = timing(6, rate=130.0, requests=60, timeout=1.0)
    with mocks(baseline=MockKnobs(slots=1, first_ms=40.0)) as (arms, _):
        run = timed(arms, conversations, rules)
    assert len(run.blocks) == 1
    assert any("the baseline was over-saturated in 1 of 1 blocks" in note for note in run.notes)
    more = run.model_copy(update={"blocks": run.blocks * 20})
    for metric in ("ttft", "goodput", "error_rate"):
        statistic = "p50" if metric == "ttft" else "mean"
        for shown in (run, more):
            found = compare_blocks(a_check(metric, statistic), shown, alpha=0.05)
            assert isinstance(found, Inestimable)
    assert isinstance(found, Inestimable)
    assert "the baseline was over-saturated" in found.reason


@pytest.mark.parametrize("role", ARMS)
def test_an_arm_that_answers_nothing_lets_nothing_pass(conversations: list[Messages], role: str) -> None:
    with mocks() as (arms, _):
        arms[role].endpoint = NOWHERE
        run = timed(arms, conversations, timing(6))
    for metric in ("ttft", "tpot", "e2e"):
        found = compare_blocks(a_check(metric), run, alpha=0.05)
        assert isinstance(found, Inestimable)
        assert "missing or not positive" in found.reason
    for metric in ("goodput", "error_rate"):
        found = compare_blocks(a_check(metric, "mean", margin=0.9), run, alpha=0.05)
        if role == "candidate":
            assert isinstance(found, Estimate)
            assert found.p_pass > 0.9
            assert found.p_worse < 0.02
        elif metric == "error_rate":
            assert isinstance(found, Inestimable)


def test_an_engine_that_is_gone_names_its_arm(conversations: list[Messages]) -> None:
    class Gone(Serving):
        def resources(self, *, reset_peak: bool = False) -> Resources:
            if len(self.calls) == 6:
                raise EngineDied("gone")
            return super().resources(reset_peak=reset_peak)

    with mocks() as (arms, _):
        arms["candidate"] = Gone(name="candidate", endpoint=arms["candidate"].endpoint)
        with pytest.raises(EngineDied) as caught:
            timed(arms, conversations, timing(6))
    assert caught.value.arm == "candidate"


def test_an_engine_without_an_address_is_an_error(conversations: list[Messages]) -> None:
    arms = {role: make_arm(InProcess(name=role)) for role in ARMS}
    rules = StopRules(timing=timing(6), deadline=time.monotonic() + 9)
    with pytest.raises(EngineError, match="no address that a load could be sent to"):
        run_load(loaded(arms, conversations, rules))


def test_a_late_sender_makes_the_timing_unusable(conversations: list[Messages]) -> None:
    with mocks() as (arms, _):
        run = timed(arms, conversations, timing(6, max_late=1e-9))
    assert run.blocks == ()
    assert "given up after 0 pairs, which are not used: in 3 pairs the sender was late" in run.notes[0]
    assert isinstance(compare_blocks(a_check("ttft"), run, alpha=0.05), Inestimable)


def test_the_time_allowed_ends_it_and_says_so(conversations: list[Messages]) -> None:
    with mocks() as (arms, _):
        run = timed(arms, conversations, StopRules(timing=timing(50), deadline=time.monotonic() + 1.5))
    assert 0 < len(run.blocks) < 50
    assert run.notes == (f"stopped after {len(run.blocks)} of 50 pairs: the time for it was over",)
    found = compare_blocks(a_check("ttft", min_clusters=50), run, alpha=0.05)
    assert isinstance(found, Inestimable)


def test_pairs_grow_look_by_look_until_they_are_settled(conversations: list[Messages]) -> None:
    asked: list[tuple[int, tuple[float, ...]]] = []

    def settled(blocks: Any, looks: Any) -> bool:
        asked.append((len(blocks), looks))
        return len(asked) == 2

    rules = StopRules(timing=timing(6, grow_to=24), deadline=time.monotonic() + 60, settled=settled)
    with mocks() as (arms, _):
        run = timed(arms, conversations, rules)
    assert asked == [(6, (0.25,)), (12, (0.25, 0.5))]
    assert len(run.blocks) == 12
    assert run.looks == (0.25, 0.5)
    assert run.planned_looks == 4
    assert run.notes == ("settled after 12 of at most 24 pairs",)


def test_a_last_look_spends_what_is_left_however_it_came(conversations: list[Messages]) -> None:
    rules = StopRules(timing=timing(6, grow_to=12), deadline=time.monotonic() + 60)
    with mocks() as (arms, _):
        run = timed(arms, conversations, rules)
    assert len(run.blocks) == 12
    assert run.looks == (0.5, 1.0)


def counters(**changes: Any) -> Telemetry:
    names = "prompt_tokens generated_tokens preemptions cache_queries cache_hits drafts drafted accepted"
    zero = dict.fromkeys(names.split(), 0)
    return Telemetry(**{**zero, "kv_use": 0.0} | changes)


def test_what_the_server_counts_is_kept_for_each_block(conversations: list[Messages]) -> None:
    rows = [counters(drafts=10 * i, accepted=15 * i, preemptions=2 * i) for i in range(14)]
    with mocks() as (arms, _):
        arms["candidate"].telemetry = rows
        run = timed(arms, conversations, timing(6))
    assert all(b.candidate["acceptance_length"] == 2.5 for b in run.blocks)
    assert all(b.candidate["preemptions"] == 2 for b in run.blocks)
    assert "acceptance_length" not in run.blocks[0].baseline
    assert any("acceptance length 2.50" in note for note in run.notes)


def test_a_warm_prefix_cache_refuses_to_compare(conversations: list[Messages]) -> None:
    with mocks() as (arms, _):
        arms["baseline"].telemetry = [counters(), counters(cache_queries=1000, cache_hits=500)]
        with pytest.raises(BadInput, match="prefix cache knew 50% of the timed prompts"):
            timed(arms, conversations, timing(6))


@pytest.mark.parametrize(
    ("kind", "unverified", "exact"),
    [("vllm", "", True), ("openai", "weights, memory", True), ("openai", "weights, prompt token ids", False)],
)
def test_vllm_is_asked_for_the_exact_length(
    conversations: list[Messages], kind: str, unverified: str, exact: bool
) -> None:
    identity = IDENTITY.model_copy(update={"kind": kind, "settings": {"unverified": unverified}})
    with mocks(baseline=MockKnobs(reply_tokens=2, token_ms=5.0)) as (arms, _):
        for engine in arms.values():
            engine.identity = identity
        run = timed(arms, conversations, timing(6))
    assert all(b.baseline["error_rate"] == 0 for b in run.blocks), "a length only where it can be asked for"
    spans = [b.baseline["e2e.p50"] - b.baseline["ttft.p50"] for b in run.blocks]
    assert (min(spans) > 0.013) is exact, "ignore_eos and min_tokens give all 4 tokens, else 2 come"
    assert "kv_peak" not in run.blocks[0].baseline, "these engines of a test have no counters"
