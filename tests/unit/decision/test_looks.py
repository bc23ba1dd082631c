"""Looks: what a check may spend at each, and the decision at a look."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from tests.builders import check, evalset, measured, policy

from checkweigh.decision.compare import compare
from checkweigh.decision.looks import (
    Look,
    design_looks,
    effective_items,
    information_fractions,
    looks_for_sets,
    pass_levels,
)
from checkweigh.decision.pairing import pair
from checkweigh.decision.slices import restrict_items, slice_items
from checkweigh.decision.verdict import (
    Judgement,
    all_checks,
    decide,
    hypothesis_count,
)
from checkweigh.errors import BadDocument
from checkweigh.records.comparison import Comparison, Estimate, Identical
from checkweigh.records.decision import Verdict
from checkweigh.records.evalset import EvalSet
from checkweigh.records.policy import ADAPTIVE, FAILURES, Check, Policy
from checkweigh.stats.estimators.binary import PRIOR_CORRELATION
from checkweigh.stats.partition import Partition

N = 1600
SET = evalset("choice", N)
RNG = np.random.default_rng(11)
BASE = RNG.uniform(0.3, 0.7, N)
NOISE = RNG.normal(0, 0.05, N)


def rules(*checks: dict[str, object], **changes: object) -> Policy:
    """A policy of looks at an eighth, a quarter, a half and all."""
    return policy(*checks, **{"looks": "adaptive", "failure_margin": 0.05} | changes)


def design(of: Policy, source: EvalSet = SET) -> tuple[Look, ...]:
    return looks_for_sets(of, all_checks(of), [source], hypothesis_count(of))


def judged(of: Policy, number: int, by: float, noise: float = 1.0, source: EvalSet = SET) -> Judgement:
    """The judgement at a look on a candidate that is ``by`` points away."""
    look = design(of, source)[number - 1]
    parts = slice_items(source, of.looks, of.seed)[:number]
    part = restrict_items(source, [item for items in parts for item in items])
    values = dict(
        zip((i.id for i in source.items), zip(BASE, BASE + by + noise * NOISE, strict=True), strict=False)
    )
    arms = [
        measured(part, [float(np.clip(values[i.id][k], 0, 1)) for i in part.items], arm=name)
        for k, name in enumerate(("baseline", "candidate"))
    ]
    found: dict[str, Comparison] = {
        c.id: compare(c, pair(c.metric, [part], {"set": arms[0]}, {"set": arms[1]}), alpha=look.levels[c.id])
        for c in all_checks(of)
    }
    return decide(of, found, (), look)


def test_effective_items_are_kishs_for_equal_weights() -> None:
    clustered = evalset("choice", 300, cluster_size=3, strata=1)
    partition = Partition.from_labels([item.cluster for item in clustered.items])
    expected = 300 / (1 + (partition.k - 1) * PRIOR_CORRELATION)
    of = rules().checks[0]
    assert effective_items(of, [clustered]) == pytest.approx(expected)
    assert effective_items(all_checks(rules())[-1], [clustered]) == 300, "failures are no cluster's habit"
    lopsided = evalset("choice", 300, strata=1)
    items = tuple(
        i.model_copy(update={"stratum": "rare" if n < 30 else "common"}) for n, i in enumerate(lopsided.items)
    )
    w = np.array([1 / 30] * 30 + [1 / 270] * 270)
    assert effective_items(of, [lopsided.model_copy(update={"items": items})]) == pytest.approx(
        w.sum() ** 2 / (w**2).sum()
    )


def test_information_is_by_design_and_ends_at_one() -> None:
    of = rules()
    t = information_fractions(of.checks[0], [SET], ADAPTIVE, 0)
    assert t == pytest.approx(ADAPTIVE)
    some = Check.model_validate({**of.checks[0].model_dump(), "where": {"stratum": "s1"}})
    assert information_fractions(some, [SET], ADAPTIVE, 0) == pytest.approx(ADAPTIVE, abs=0.005)
    assert information_fractions(some, [evalset("choice", 3, strata=1)], ADAPTIVE, 0)[-1] == 1.0


def test_the_pass_boundary_is_the_one_of_the_design() -> None:
    """z = 3.750, 2.540, 1.662 at a quarter, a half and all; an eighth only blocks ("Looks" in docs/statistics.md)."""
    levels = pass_levels(ADAPTIVE, ADAPTIVE, 0.05)
    assert levels[0] == 0
    assert levels[1:] == pytest.approx((8.86e-5, 0.00554, 0.0482), rel=2e-3)
    assert -special.ndtri(levels[1:]) == pytest.approx((3.750, 2.540, 1.662), abs=1e-3)
    assert pass_levels((1.0,), (1.0,), 0.05) == (0.05,)
    assert (
        pass_levels((0.5, 0.5, 1.0), (0.4, 0.5, 1.0), 0.05)[0] == pass_levels((0.5, 1.0), (0.5, 1.0), 0.05)[0]
    )
    assert pass_levels((0.001, 1.0), (0.5, 1.0), 0.05)[0] == 0, "a level that underflows is none"


def test_the_boundary_keeps_its_promise() -> None:
    """Candidates at exactly -m through the levels: 5% pass at some look; at each look's own 5% it would be 9%."""
    draws, n = 40_000, np.array(ADAPTIVE) * 400
    steps = np.diff(np.concatenate([[0], n]))
    rng = np.random.default_rng(3)
    z = np.cumsum(rng.normal(size=(draws, 4)) * np.sqrt(steps), axis=1) / np.sqrt(n)
    p = special.ndtr(-z)
    levels = np.array(pass_levels(ADAPTIVE, ADAPTIVE, 0.05))
    shipped = (p < levels).any(axis=1).mean()
    assert shipped == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / draws))
    assert (p < 0.05).any(axis=1).mean() > 0.08


def test_levels_of_the_whole_policy() -> None:
    of = rules(
        check(),
        check(id="side", tier="supporting"),
        check(id="note", tier="advisory"),
        check(id="both", kind="equivalence"),
        check(
            id="tpot", metric="tpot", statistic="p50", evalset=[], direction="lower", scale="relative",
            min_clusters=20,
        ),
        attempts=2,
    )  # fmt: skip
    looks = design(of)
    assert [look.share for look in looks] == list(ADAPTIVE)
    assert [look.levels["quality"].passing == 0 for look in looks] == [True, False, False, False]
    assert [look.last for look in looks] == [False, False, False, True]
    assert {look.block for look in looks} == {0.01 / 2 / 4}
    assert hypothesis_count(of) == 6, (
        "five gating checks and the implicit one, one of them two-sided, one advisory"
    )
    assert [look.levels["quality"].passing for look in looks] == pytest.approx(
        pass_levels(ADAPTIVE, ADAPTIVE, 0.025)
    )
    assert {look.levels["quality"].high for look in looks} == {0.01 / 2 / 4 / 6}
    assert {look.levels["note"].passing for look in looks} == {0.05}
    assert {(look.levels["tpot"].passing, look.levels["tpot"].information) for look in looks} == {
        (0.025, 1.0)
    }
    assert (looks[0].levels["quality"].items, looks[0].levels["quality"].clusters) == (N, N)


def test_one_look_is_what_it_was() -> None:
    of = policy()
    (look,) = design_looks(of, all_checks(of), {}, hypothesis_count(of))
    assert {(v.passing, v.high, v.final, v.information) for v in look.levels.values()} == {
        (0.05, 0.05, 0.05, 1)
    }
    assert look.block == 0.01


def test_a_clear_regression_is_blocked_at_the_first_look() -> None:
    judgement = judged(rules(), 1, -0.1)
    assert judgement.verdict is Verdict.BLOCK
    result = judgement.results[0]
    assert (result.information, result.level, result.planned) == (pytest.approx(0.125), 0.0, N)
    assert isinstance(result.comparison, Estimate)
    assert result.comparison.low is None, "this look cannot pass: there is no lower bound"
    assert result.comparison.high < 0
    assert result.comparison.confidence_high == pytest.approx(1 - 0.01 / 4 / 2)


def test_an_equal_candidate_cannot_pass_at_an_eighth_and_passes_later() -> None:
    """Ever so sure, the first look only blocks."""
    verdicts = [judged(rules(), j, 0.0, noise=0.2).verdict for j in (1, 2, 3, 4)]
    assert verdicts[0] is Verdict.INCONCLUSIVE
    assert verdicts[-1] is Verdict.PASS
    low = judged(rules(), 3, 0.0).results[0].comparison
    wider = judged(rules(), 2, 0.0).results[0].comparison
    assert isinstance(low, Estimate)
    assert isinstance(wider, Estimate)
    assert low.confidence == pytest.approx(1 - 0.00554, abs=1e-4)
    assert wider.confidence == pytest.approx(1 - 8.86e-5, abs=1e-6)


def test_what_passes_at_one_level_is_open_at_an_early_look() -> None:
    """p between the nominal level of the look and .05 is no pass there."""
    alone = judged(policy(check(margin=0.006), failure_margin=0.05), 1, 0.0)
    assert alone.verdict is Verdict.PASS
    for number, verdict in ((2, Verdict.INCONCLUSIVE), (4, Verdict.PASS)):
        judgement = judged(rules(check(margin=0.006)), number, 0.0)
        assert judgement.verdict is verdict
        comparison = judgement.results[0].comparison
        assert isinstance(comparison, Estimate)
        assert comparison.p_pass < 0.05
        assert comparison.low is not None
        assert (comparison.low > -0.006) == (verdict is Verdict.PASS), "bound and test agree"


def test_identical_arms_need_the_looks_own_level() -> None:
    found = {}
    for number in (1, 2, 4):
        comparison = judged(rules(), number, 0.0, noise=0.0).results[0].comparison
        assert isinstance(comparison, Identical)
        found[number] = comparison.differing_share_upper
    assert found[1] == 1.0
    assert found[2] == pytest.approx(1 - 8.86e-5 ** (1 / 400), rel=1e-3)
    assert found[4] == pytest.approx(1 - 0.0482 ** (1 / N), rel=1e-3)
    small = evalset("choice", 160)
    for number, outcome in ((3, "inconclusive"), (4, "passed")):
        result = judged(rules(check(min_items=1)), number, 0.0, noise=0.0, source=small).results[0]
        assert (result.comparison.kind, result.outcome) == ("identical", outcome)


def test_least_items_are_asked_of_the_plan() -> None:
    """A check that wants 1,000 items may block on the first 200; a plan of 900 satisfies it nowhere."""
    of = rules(check(min_items=1000))
    assert judged(of, 1, -0.1).verdict is Verdict.BLOCK
    assert judged(of, 3, 0.0).results[0].outcome == "passed"
    few = judged(of, 1, -0.1, source=evalset("choice", 900)).results[0]
    assert few.sentence == "quality: cannot be estimated: 900 items, 1000 needed"


def test_few_clusters_say_nothing_however_large_the_plan() -> None:
    clustered = evalset("choice", N, cluster_size=8)
    judgement = judged(rules(check(min_clusters=100)), 1, -0.2, source=clustered)
    assert "effective clusters, 40 needed" in judgement.results[0].sentence
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judged(rules(check(min_clusters=100)), 4, -0.2, source=clustered).verdict is Verdict.BLOCK


def test_the_block_level_is_shared_by_looks_and_never_carried_over() -> None:
    """.004 rejects at one look of two hypotheses (.008 <= .01) and at none of four."""
    worse = Estimate(
        effect=-0.06, low=-0.1, high=-0.02, confidence=0.95, method="m", pairs=N, clusters=N, effective_clusters=N,
        design_effect=1, se=0.02, p_pass=0.9, p_worse=0.004, baseline=0.5, candidate=0.44,
    )  # fmt: skip
    fine = worse.model_copy(update={"effect": 0.0, "p_pass": 1e-9, "p_worse": 0.5, "low": -0.01})
    found: dict[str, Comparison] = {"quality": worse, FAILURES: fine}
    assert decide(policy(), found).verdict is Verdict.BLOCK
    for look in design(rules()):
        assert decide(rules(), found, (), look).verdict is Verdict.INCONCLUSIVE
    certain: dict[str, Comparison] = {"quality": worse.model_copy(update={"p_worse": 0.001}), FAILURES: fine}
    for look in design(rules()):
        assert decide(rules(), certain, (), look).verdict is Verdict.BLOCK


def test_all_checks_pass_at_the_same_look() -> None:
    """One check open at the second look and the other at the third: no look passes."""
    of = rules(check(), check(id="second"))
    sure = Estimate(
        effect=0.0, low=-0.01, high=0.02, confidence=0.95, method="m", pairs=N, clusters=N, effective_clusters=N,
        design_effect=1, se=0.01, p_pass=1e-9, p_worse=0.5, baseline=0.5, candidate=0.5,
    )  # fmt: skip
    unsure = sure.model_copy(update={"p_pass": 0.2})
    looks = design(of)
    for look, pair_ in ((looks[1], (sure, unsure)), (looks[2], (unsure, sure))):
        found: dict[str, Comparison] = {"quality": pair_[0], "second": pair_[1], FAILURES: sure}
        assert decide(of, found, (), look).verdict is Verdict.INCONCLUSIVE
    assert decide(of, {"quality": sure, "second": sure, FAILURES: sure}, (), looks[2]).verdict is Verdict.PASS


def test_items_to_settle_count_from_what_was_looked_at() -> None:
    of = rules(check(margin=0.0025))
    result = judged(of, 3, 0.0).results[0]
    assert result.outcome == "inconclusive"
    assert result.items_to_settle is not None
    assert result.items_to_settle > N / 2
    assert f"about {result.items_to_settle - N // 2} more items would settle it" in result.sentence


@pytest.mark.parametrize("looks", [[0.5], [], [0.5, 0.5, 1.0], [1.0, 0.5], [0, 1], [0.5, 1.2], "often",
                                   [i / 11 for i in range(1, 12)]])  # fmt: skip
def test_looks_that_make_no_plan_are_refused(looks: object) -> None:
    with pytest.raises(BadDocument, match="looks"):
        policy(looks=looks)


def test_adaptive_stands_for_the_four_looks() -> None:
    assert policy(looks="adaptive") == policy(looks=[0.125, 0.25, 0.5, 1.0])
    assert policy().looks == (1.0,)
