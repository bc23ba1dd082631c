"""The verdict rule, one rule a test, through pairing and comparison."""

from __future__ import annotations

import numpy as np
import pytest
from tests.builders import check, evalset, judge, measured, policy

from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.decision.verdict import Judgement, all_checks, decide
from checkweigh.records.comparison import Estimate, Identical, Inestimable
from checkweigh.records.decision import Verdict
from checkweigh.records.measurement import Block, PairedRun
from checkweigh.records.policy import FAILURES

N = 600
SET = evalset("choice", N)
RNG = np.random.default_rng(11)
BASE = np.clip(RNG.normal(0.5, 0.15, N), 0.01, 0.99)


def shifted(by: float, noise: float = 0.05) -> np.ndarray:
    """A candidate that differs by ``by`` on average, exactly, with noise an item."""
    jitter = np.random.default_rng(3).normal(0, noise, N)
    return np.clip(BASE + by + jitter - jitter.mean(), 0, 1)


def estimate(effect: float, se: float = 0.01, **changes: float) -> Estimate:
    """A comparison with a normal estimate."""
    from scipy.special import ndtr

    fields = {
        "effect": effect, "low": effect - 1.645 * se, "high": effect + 1.645 * se, "confidence": 0.95,
        "method": "made up", "pairs": N, "clusters": N, "effective_clusters": float(N), "design_effect": 1.0,
        "se": se, "p_pass": float(ndtr(-(effect + 0.05) / se)), "p_worse": float(ndtr(effect / se)),
        "baseline": 0.5, "candidate": 0.5 + effect,
    }  # fmt: skip
    return Estimate.model_validate(fields | changes)


def test_an_equal_candidate_passes() -> None:
    judgement = judge(policy(), SET, BASE, shifted(0.0))
    assert judgement.verdict is Verdict.PASS
    assert [r.outcome for r in judgement.results] == ["passed", "passed"]


def test_a_loss_beyond_the_margin_blocks_and_says_by_how_much() -> None:
    judgement = judge(policy(), SET, BASE, shifted(-0.1))
    assert judgement.verdict is Verdict.BLOCK
    assert "quality" in judgement.reasons[0]
    assert "-10" in judgement.reasons[0]


def test_a_certain_loss_inside_the_margin_warns_and_passes() -> None:
    judgement = judge(policy(), SET, BASE, shifted(-0.02))
    assert judgement.verdict is Verdict.PASS
    assert judgement.results[0].outcome == "warning"
    assert "certainly worse" in judgement.reasons[1]


def test_a_loss_about_the_margin_is_inconclusive_and_says_what_would_settle() -> None:
    judgement = decide(policy(), {"quality": estimate(-0.03, se=0.015), FAILURES: estimate(0.0)})
    assert judgement.verdict is Verdict.INCONCLUSIVE
    settle = judgement.results[0].items_to_settle
    assert settle is not None
    assert settle > N
    assert f"about {settle - N} more items would settle it" in judgement.reasons[0]


def test_holm_counts_every_gating_check() -> None:
    """p = .004 blocks alone at .01 (two tests with the implicit one), not among ten."""
    effect = -0.06
    alone = decide(policy(), {"quality": estimate(effect, p_worse=0.004), FAILURES: estimate(0.0)})
    assert alone.verdict is Verdict.BLOCK
    many = [check(id=f"q{i}") for i in range(9)]
    comparisons = {c["id"]: estimate(0.0) for c in many} | {FAILURES: estimate(0.0)}
    comparisons["q0"] = estimate(effect, p_worse=0.004)
    assert decide(policy(*many), comparisons).verdict is Verdict.INCONCLUSIVE
    comparisons["q0"] = estimate(effect, p_worse=0.0009)
    assert decide(policy(*many), comparisons).verdict is Verdict.BLOCK


def test_inestimable_checks_still_count_in_holm() -> None:
    rules = policy(*[check(id=f"q{i}", tier="supporting" if i else "critical") for i in range(9)])
    comparisons = {f"q{i}": Inestimable(reason="none") for i in range(1, 9)}
    judgement = decide(rules, comparisons | {"q0": estimate(-0.06, p_worse=0.004)})
    assert judgement.results[0].p_adjusted == pytest.approx(0.04)
    assert judgement.verdict is Verdict.INCONCLUSIVE


def test_significance_without_the_margin_does_not_block() -> None:
    comparisons = {"quality": estimate(-0.049, se=0.001), FAILURES: estimate(0.0)}
    assert decide(policy(), comparisons).results[0].outcome != "blocked"


def test_supporting_checks_block_but_need_not_pass() -> None:
    rules = policy(check(), check(id="second", tier="supporting"))
    fine = {"quality": estimate(0.0), FAILURES: estimate(0.0)}
    unsure, bad = estimate(-0.04, se=0.03), estimate(-0.2)
    assert decide(rules, fine | {"second": unsure}).verdict is Verdict.PASS
    assert decide(rules, fine | {"second": bad}).verdict is Verdict.BLOCK


def test_a_supporting_check_that_no_evidence_could_pass_holds_the_gate_back() -> None:
    rules = policy(check(), check(id="second", tier="supporting"))
    fine = {"quality": estimate(0.0), FAILURES: estimate(0.0)}
    unable = estimate(0.0).model_copy(update={"low": None, "p_pass": 1.0})
    judgement = decide(rules, fine | {"second": unable})
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "second" in judgement.reasons[0]


def test_advisory_checks_never_gate_and_are_not_counted() -> None:
    rules = policy(check(), check(id="second", tier="advisory"))
    judgement = decide(rules, {"quality": estimate(0.0), "second": estimate(-0.5), FAILURES: estimate(0.0)})
    assert judgement.verdict is Verdict.PASS
    assert judgement.results[1].outcome == "blocked"
    assert judgement.results[1].p_adjusted is None


def test_block_outranks_inconclusive() -> None:
    rules = policy(check(), check(id="second"))
    comparisons = {"quality": Inestimable(reason="none"), "second": estimate(-0.2), FAILURES: estimate(0.0)}
    assert decide(rules, comparisons).verdict is Verdict.BLOCK


def test_identical_arms_pass_from_59_clusters_on() -> None:
    for clusters, verdict in ((58, Verdict.INCONCLUSIVE), (59, Verdict.PASS)):
        same = Identical(
            pairs=600,
            clusters=clusters,
            differing_share_upper=1 - 0.05 ** (1 / clusters),
            baseline=0.5,
            candidate=0.5,
        )
        assert decide(policy(), {"quality": same, FAILURES: estimate(0.0)}).verdict is verdict
        rules = policy(check(), check(id="second", tier="supporting"))
        fine = {"quality": estimate(0.0), FAILURES: estimate(0.0)}
        assert decide(rules, fine | {"second": same}).verdict is verdict, "it must be estimable"


def test_identical_outputs_of_two_executions_are_identical() -> None:
    judgement = judge(policy(), SET, BASE, BASE)
    assert judgement.verdict is Verdict.PASS
    assert isinstance(judgement.results[0].comparison, Identical)


def test_superiority_needs_the_bound_above_the_margin() -> None:
    rules = policy(check(kind="superiority"))
    assert judge(rules, SET, BASE, shifted(0.0)).verdict is Verdict.INCONCLUSIVE
    assert judge(rules, SET, BASE, shifted(0.1)).verdict is Verdict.PASS
    assert judge(rules, SET, BASE, BASE).verdict is Verdict.INCONCLUSIVE, "equal is not superior"


def test_equivalence_blocks_both_ways_and_counts_twice() -> None:
    rules = policy(check(kind="equivalence"))
    for by, verdict in ((0.0, Verdict.PASS), (0.12, Verdict.BLOCK), (-0.12, Verdict.BLOCK)):
        assert judge(rules, SET, BASE, shifted(by)).verdict is verdict
    up = judge(rules, SET, BASE, shifted(0.12)).results[0].comparison
    assert isinstance(up, Estimate)
    assert up.p_better is not None
    assert up.p_better < 1e-6
    assert up.p_pass > 0.9


def test_absolute_checks_look_at_the_candidate_alone() -> None:
    rules = policy(check(kind="absolute", margin=0.4))
    assert judge(rules, SET, np.full(N, 0.9), BASE).verdict is Verdict.INCONCLUSIVE, "constant baseline"
    assert judge(rules, SET, BASE * 0.1, BASE).verdict is Verdict.PASS
    assert judge(rules, SET, BASE, BASE * 0.5).verdict is Verdict.BLOCK


def test_log_perplexity_and_bits_per_byte_agree_on_a_loss() -> None:
    text = evalset("text", 320)
    nll = RNG.normal(3, 0.3, 320)
    worse = nll + 0.1 + RNG.normal(0, 0.02, 320)
    for metric, scale, margin in (("log_perplexity", "log", 0.03), ("bits_per_byte", "absolute", 0.01)):
        rules = policy(check(metric=metric, direction="lower", scale=scale, margin=margin))
        judgement = judge(rules, text, nll, worse)
        assert judgement.verdict is Verdict.BLOCK
    assert judge(rules, text, nll, nll + RNG.normal(0, 0.01, 320)).verdict is Verdict.PASS


def test_lengths_are_guarded_by_side() -> None:
    replies = evalset("generation", N)
    tokens = RNG.integers(5, 40, N)
    first = measured(replies, (BASE > 0.5) * 1.0, tokens=tokens)
    second = measured(replies, (BASE > 0.5) * 1.0, arm="candidate", tokens=tokens * 2 + RNG.integers(0, 3, N))
    length = {"metric": "log_length", "scale": "relative", "margin": 0.1}
    rules = policy(
        check(direction="lower", **length),
        check(id="shorter", direction="higher", tier="supporting", **length),
    )
    judgement = judge(rules, replies, first, second)
    assert judgement.verdict is Verdict.BLOCK
    assert [r.outcome for r in judgement.results[:2]] == ["blocked", "passed"]
    assert "longer" not in judgement.reasons[0]
    swapped = judge(
        rules,
        replies,
        second.model_copy(update={"key": first.key}),
        first.model_copy(update={"key": second.key}),
    )
    assert [r.outcome for r in swapped.results[:2]] == ["passed", "blocked"]


def test_replies_that_all_run_on_to_the_limit_block_and_one_length_never_passes() -> None:
    replies, rng = evalset("generation", N), np.random.default_rng(2)
    scores = (BASE > 0.5) * 1.0
    lengths = {"varied": rng.integers(20, 48, N), "cut": np.full(N, 48), "near": 48 - (np.arange(N) % 2)}
    length = {"metric": "log_length", "scale": "relative", "margin": 0.1}
    rules = policy(
        check(direction="lower", **length),
        check(id="shorter", direction="higher", tier="supporting", **length),
    )

    def judged(first: str, second: str) -> Judgement:
        arms = [
            measured(replies, scores, arm=arm, tokens=lengths[name])
            for arm, name in (("baseline", first), ("candidate", second))
        ]
        return judge(rules, replies, *arms)

    assert [r.outcome for r in judged("varied", "cut").results[:2]] == ["blocked", "inconclusive"]
    assert [r.outcome for r in judged("cut", "varied").results[:2]] == ["inconclusive", "blocked"]
    held = judged("near", "cut")
    assert held.verdict is Verdict.INCONCLUSIVE
    assert all(
        reason.endswith("; every reply of the candidate has exactly 48 tokens: no pass")
        for reason in held.reasons
    )
    both = judged("cut", "cut").results[0].comparison
    assert isinstance(both, Inestimable)
    one = "every reply of the {} has exactly 48 tokens"
    assert both.reason == f"{one.format('baseline')} and {one.format('candidate')}"


def run(ratio: float, pairs: int = 20, noise: float = 0.05) -> PairedRun:
    """A paired run in which the candidate takes ``ratio`` times as long."""
    rng = np.random.default_rng(5)
    blocks = []
    for pair in range(pairs):
        drift = float(np.exp(rng.normal(0, 0.5)))
        values = {"tpot.p50": 0.05 * drift}
        slower = {"tpot.p50": 0.05 * drift * ratio * float(np.exp(rng.normal(0, noise)))}
        blocks.append(
            Block(pair=pair, order=("baseline", "candidate"), baseline=values, candidate=slower, requests=10)
        )
    return PairedRun(seed=5, blocks=tuple(blocks), seconds=1.0)


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, Verdict.PASS), (1.3, Verdict.BLOCK), (1.1, Verdict.INCONCLUSIVE)]
)
def test_latency_by_blocks_under_shared_drift(ratio: float, verdict: Verdict) -> None:
    timing = check(
        id="tpot", metric="tpot", statistic="p50", evalset=[], direction="lower", scale="relative", margin=0.1,
        min_clusters=20,
    )  # fmt: skip
    rules = policy(timing)
    comparison = compare_blocks(rules.checks[0], run(ratio), alpha=0.05)
    assert decide(rules, {"tpot": comparison}).verdict is verdict


def test_too_few_blocks_cannot_pass_and_broken_ones_say_nothing() -> None:
    timing = check(
        id="tpot",
        metric="tpot",
        statistic="p50",
        evalset=[],
        direction="lower",
        scale="relative",
        min_clusters=20,
    )
    rules = policy(timing)
    few = compare_blocks(rules.checks[0], run(1.0, pairs=19), alpha=0.05)
    assert decide(rules, {"tpot": few, FAILURES: estimate(0.0)}).verdict is Verdict.INCONCLUSIVE
    slow = compare_blocks(rules.checks[0], run(2.0, pairs=19), alpha=0.05)
    assert decide(rules, {"tpot": slow, FAILURES: estimate(0.0)}).verdict is Verdict.BLOCK
    blocks = run(1.0).blocks
    zero = blocks[0].model_copy(update={"candidate": {"tpot.p50": 0.0}})
    absent = blocks[0].model_copy(update={"candidate": {}})
    for broken in (run(1.0).model_copy(update={"blocks": (b, *blocks[1:])}) for b in (zero, absent)):
        assert isinstance(compare_blocks(rules.checks[0], broken, alpha=0.05), Inestimable)


def test_every_policy_has_the_implicit_check_on_failures() -> None:
    implicit = all_checks(policy())[-1]
    assert (implicit.id, implicit.tier, implicit.margin) == (FAILURES, "critical", 0.01)


def test_two_percent_of_failures_do_not_pass() -> None:
    values = shifted(0.0)
    values[::50] = np.nan
    judgement = judge(policy(), SET, BASE, values)
    assert judgement.verdict is not Verdict.PASS


def test_strata_weigh_the_same() -> None:
    """A loss in the one small stratum is not drowned by the large one."""
    items = tuple(
        item.model_copy(update={"stratum": "small" if i < 60 else "large"})
        for i, item in enumerate(SET.items)
    )
    source = SET.model_copy(update={"items": items})
    values = shifted(0.0, noise=0.01)
    values[:60] -= 0.3
    comparison = judge(policy(), source, BASE, np.clip(values, 0, 1)).results[0].comparison
    assert isinstance(comparison, Estimate)
    assert comparison.effect == pytest.approx(-0.15, abs=0.02)
