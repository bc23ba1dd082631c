"""Drawn candidates: the fast path is the gate's own, the truth is what the scenario says, and chance is seeded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.builders import check, evalset, policy

from checkweigh.decision.compare import compare, compare_many
from checkweigh.decision.looks import Level, looks_for_sets
from checkweigh.decision.pairing import PairedSample
from checkweigh.decision.planning import Noise, assumed_noise, plan_checks
from checkweigh.decision.simulation import (
    PolicySimulator,
    Scenario,
    latent_correlation,
    simulate,
)
from checkweigh.decision.verdict import all_checks, hypothesis_count
from checkweigh.records.comparison import Estimate, Inestimable
from checkweigh.records.evalset import EvalSet
from checkweigh.records.policy import Check, Policy

RUNS = 60
PROGRESS: list[str] = []
LENGTH = check(id="length", metric="log_length", direction="lower", scale="relative", margin=0.1)
ENDINGS = check(id="endings", metric="bad_ending", direction="lower", margin=0.03)
PERPLEXITY = check(
    id="perplexity", metric="log_perplexity", direction="lower", margin=0.03, scale="log", evalset=["prose"]
)


def noises(evalset: EvalSet, of: Check) -> Noise:
    return assumed_noise(evalset.card.kind, of.metric)


def bench(*checks: dict[str, Any], sets: tuple[EvalSet, ...] = (), **changes: Any) -> PolicySimulator:
    return PolicySimulator(policy(*checks, **changes), sets or (evalset("generation", 400),), noises)


def tell(text: str, done: int, total: int) -> None:
    PROGRESS.append(f"{text} {done}/{total}")


def numbers(found: Estimate) -> dict[str, float]:
    return {name: value for name, value in found.model_dump().items() if isinstance(value, float)}


@pytest.mark.parametrize("looks", [[1.0], "adaptive"])
@pytest.mark.parametrize(
    "kind", ["normal", "flips", "events", "ratio", "length", "equivalence", "superiority", "absolute"]
)
def test_many_comparisons_at_once_are_the_same_one_by_one(kind: str, looks: Any) -> None:
    rng = np.random.default_rng(len(kind))
    n, source = 320, evalset("text" if kind == "ratio" else "generation", 320, cluster_size=2)
    own = {
        "events": ENDINGS, "length": LENGTH, "ratio": {**PERPLEXITY, "evalset": ["set"]},
        "equivalence": check(kind="equivalence"), "superiority": check(kind="superiority"),
        "absolute": check(kind="absolute", margin=0.4),
    }.get(kind, check())  # fmt: skip
    of = policy(own, looks=looks)
    levels = [
        look.levels[of.checks[0].id]
        for look in looks_for_sets(of, all_checks(of), [source], hypothesis_count(of))
    ]
    size = rng.integers(50, 200, n).astype(float) if kind == "ratio" else np.ones(n)
    baseline = rng.uniform(0.2, 0.8, (RUNS, n)) * size
    candidate = baseline + 0.1 * rng.normal(size=(RUNS, n)) * size
    if kind in ("flips", "events"):
        baseline = (rng.random((RUNS, n)) < 0.1).astype(float)
        candidate = np.where(rng.random((RUNS, n)) < 0.02, 1 - baseline, baseline)
    baseline[3] = candidate[3] = 0.0  # constant arms in the middle of the others
    if kind == "length":
        candidate[4] = 0.0
    sample = PairedSample(
        metric=of.checks[0].metric, baseline=baseline, candidate=candidate, size=size,
        weights=rng.uniform(0.5, 1, n), clusters=tuple(f"c{i // 2}" for i in range(n)), identical=False,
    )  # fmt: skip
    for level in levels:
        many = compare_many(of.checks[0], sample, alpha=level)
        assert len(many) == RUNS
        for i, found in enumerate(many):
            alone = compare(
                of.checks[0], replace(sample, baseline=baseline[i], candidate=candidate[i]), alpha=level
            )
            assert type(found) is type(alone)
            if isinstance(alone, Estimate):
                assert isinstance(found, Estimate)
                assert numbers(found) == pytest.approx(numbers(alone), rel=1e-9, abs=1e-12)
                assert found.model_copy(update=numbers(alone)) == alone
            else:
                assert found == alone
        assert any(isinstance(found, Estimate) for found in many)
        assert isinstance(many[3], Estimate if kind == "events" else Inestimable)


def test_samples_with_failures_do_not_go_this_way() -> None:
    ones = np.ones((2, 3))
    whole = PairedSample(
        metric="score", baseline=ones, candidate=ones, size=ones[0], weights=ones[0], clusters=tuple("abc"),
        identical=False,
    )  # fmt: skip
    missing = np.where(np.eye(2, 3) > 0, np.nan, ones)
    for wrong in (replace(whole, candidate=missing), replace(whole, identical=True)):
        with pytest.raises(ValueError, match="complete samples"):
            compare_many(policy().checks[0], wrong, alpha=0.05)


def estimates(of: PolicySimulator, name: str, scenario: Scenario, runs: int = 600) -> np.ndarray:  # type: ignore[type-arg]
    """Estimated effects of one check, in its margins, at the last look."""
    rng = np.random.default_rng(1)
    drawn = of._draw(scenario, runs, rng)
    (own,) = (c for c in of.checks if c.id == name)
    found = of._compared(own, of.looks[-1], drawn, {}, np.arange(runs))
    return np.array([c.effect for c in found if isinstance(c, Estimate)])


@pytest.mark.parametrize(("own", "margin"), [(check(), 0.05), (LENGTH, np.log(1.1)), (ENDINGS, 0.03)])
def test_the_truth_is_what_the_scenario_says(own: dict[str, Any], margin: float) -> None:
    of = bench(own)
    for margins in (0.0, -1.0, -3.0):
        scenario = Scenario(check=own["id"], margins=margins) if margins else Scenario()
        found = estimates(of, own["id"], scenario)
        error = found.std() / np.sqrt(len(found))
        assert found.mean() == pytest.approx(margins * margin, abs=4 * error + 1e-9)


def test_expected_errors_are_those_of_the_draws() -> None:
    sets = (evalset("generation", 600, cluster_size=3), evalset("text", 300, name="prose", cluster_size=2))
    of = bench(check(), LENGTH, ENDINGS, PERPLEXITY, sets=sets)
    for row in plan_checks(of.policy, sets, noises, ()):
        if row.check == "failures":
            continue
        drawn = estimates(of, row.check, Scenario(), 1500).std()
        shrinkage = 1.0 if row.flips is None else np.sqrt(row.design_effect / (1 + 2 * 0.2))
        assert drawn * shrinkage == pytest.approx(row.se, rel=0.1), row.check


def test_checks_on_different_sets_are_correlated_as_said() -> None:
    sets = (evalset("generation", 450, cluster_size=3), evalset("text", 200, name="prose"))
    of = bench(LENGTH, PERPLEXITY, sets=sets)
    rng = np.random.default_rng(2)
    drawn = of._draw(Scenario(), 4000, rng)
    for look in of.looks:
        effects = [
            np.array(
                [
                    c.effect
                    for c in of._compared(c, look, drawn, {}, np.arange(4000))
                    if isinstance(c, Estimate)
                ]
            )
            for c in of.checks[:2]
        ]
        assert np.corrcoef(*effects)[0, 1] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("flips", "wanted"), [(0.01, 0.2), (0.1, 0.5), (0.5, 0.3)])
def test_flips_are_as_correlated_as_wanted(flips: float, wanted: float) -> None:
    r = latent_correlation(flips, wanted)
    rng = np.random.default_rng(6)
    x = rng.normal(size=2_000_000)
    y = r * x + np.sqrt(1 - r**2) * rng.normal(size=x.size)
    t = stats.norm.isf(flips / 2)
    turned = [(z > t).astype(float) - (z < -t) for z in (x, y)]
    assert np.corrcoef(*turned)[0, 1] == pytest.approx(wanted, abs=0.02)
    assert latent_correlation(flips, 0.0) == latent_correlation(0.0, 0.5) == 0.0


def test_a_worse_check_takes_those_on_the_same_values_with_it_and_no_other() -> None:
    other = check(id="other", evalset=["more"])
    pooled = check(id="pooled", evalset=["set", "more"])
    sets = (evalset("generation", 400), evalset("choice", 400, name="more"))
    of = bench(check(), other, pooled, ENDINGS, sets=sets)
    scenario = Scenario(check="quality", margins=-3.0)
    assert estimates(of, "quality", scenario).mean() == pytest.approx(-0.15, abs=0.005)
    assert estimates(of, "pooled", scenario).mean() == pytest.approx(-0.075, abs=0.005)
    assert abs(estimates(of, "other", scenario).mean()) < 0.002
    assert abs(estimates(of, "endings", scenario).mean()) < 0.002


def test_gates_of_equal_and_of_broken_candidates() -> None:
    sets = (evalset("choice", 1600),)
    of = bench(check(), sets=sets, looks="adaptive")
    equal, _, _, broken, *_ = simulate(of, of.scenarios(), 100, 0, tell)
    assert (equal.scenario, broken.scenario) == ("equal", "quality at -3 m")
    assert equal.ship > 0.9
    assert equal.block <= 0.05
    assert broken.block == 1.0
    assert broken.first_look > 0.9
    assert broken.share < 0.2 < equal.share < 0.7, "an equal candidate passes before the last look"
    assert broken.items == pytest.approx(1600 * broken.share)
    for rates in (equal, broken):
        assert rates.ship + rates.block + rates.inconclusive == pytest.approx(1)
    assert equal.error(0.5) == pytest.approx(0.05)
    assert equal.error(0.0) == pytest.approx(0.01), "a rate of zero is not known without error"


def test_the_same_seed_gives_the_same_numbers_whatever_else_is_simulated() -> None:
    of = bench(check(margin=0.03), ENDINGS)
    every = simulate(of, of.scenarios(), 60, 7, tell)
    alone = simulate(of, of.scenarios()[2:3], 60, 7, tell)
    assert alone == every[2:3]
    assert simulate(of, of.scenarios(), 60, 8, tell) != every


def test_timing_checks_go_through_blocks() -> None:
    slow = check(id="tpot", metric="tpot", evalset=[], statistic="p50", direction="lower", scale="relative", margin=0.1,
                 min_items=20, min_clusters=20)  # fmt: skip
    of = bench(check(), slow, timing={"pairs": 30, "requests": 100})
    equal, *_, worse = simulate(of, [Scenario(), Scenario(check="tpot", margins=-3.0)], 60, 0, tell)
    assert equal.ship > 0.8
    assert worse.block > 0.9


@pytest.mark.parametrize(("metric", "direction"), [("goodput", "higher"), ("error_rate", "lower")])
def test_rates_under_a_load_are_counted_in_blocks(metric: str, direction: str) -> None:
    rate = check(
        id="rate", metric=metric, evalset=[], direction=direction, margin=0.03, min_items=100, min_clusters=20
    )
    load = {"arrivals": {"kind": "poisson", "rate": 5.0}, "slo": {"e2e": 5.0}}
    of = bench(check(), rate, timing={"pairs": 20, "grow_to": 40, "requests": 100, "load": load})
    row = next(r for r in plan_checks(of.policy, list(of.sets.values()), noises, ()) if r.check == "rate")
    assert (row.items, row.clusters) == (4000, 40)
    equal, worse = simulate(of, [Scenario(), Scenario(check="rate", margins=-3.0)], 60, 0, tell)
    assert equal.ship > 0.8
    assert worse.block > 0.9


def test_what_cannot_be_drawn_is_said_and_does_not_gate() -> None:
    kl = check(id="kl", metric="kl", direction="lower", evalset=["prose"])
    sets = (evalset("generation", 400), evalset("text", 200, name="prose"))
    of = bench(check(), kl, sets=sets)
    assert of.left_out == {"kl": "divergences are not drawn"}
    assert "kl" not in {c.id for c in of.checks}
    assert all(s.check != "kl" for s in of.scenarios())


def test_too_few_clusters_never_pass_in_a_simulation_either() -> None:
    of = bench(check(min_items=1, min_clusters=2), sets=(evalset("choice", 350, cluster_size=10),))
    (rates,) = simulate(of, [Scenario()], 50, 0, tell)
    assert (rates.ship, rates.inconclusive) == (0, 1)
    assert isinstance(of.looks[0].levels["quality"], Level)
    assert isinstance(of.policy, Policy)
