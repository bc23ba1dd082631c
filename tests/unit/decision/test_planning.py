"""What sets can settle: expected errors against drawn ones, measured noise, and what nothing can pass."""

from __future__ import annotations

import numpy as np
import pytest
from tests.builders import check, evalset, measured, policy

from checkweigh.decision.pairing import pair
from checkweigh.decision.planning import (
    Noise,
    assumed_noise,
    joint_pass_probability,
    measured_noise,
    plan_checks,
    plan_problems,
)
from checkweigh.records.evalset import EvalSet
from checkweigh.records.policy import Check, Policy
from checkweigh.records.sample_plan import PlannedCheck

LENGTH = check(id="length", metric="log_length", direction="lower", scale="relative", margin=0.1)


def rows(of: Policy, source: EvalSet, noise: Noise) -> dict[str, PlannedCheck]:
    quiet = Noise(sd=0.0, flips=0.0)
    found = plan_checks(of, [source], lambda s, c: quiet if c.metric == "failed" else noise, ())
    return {row.check: row for row in found}


def test_a_mean_of_independent_items() -> None:
    row = rows(policy(check(margin=0.02)), evalset("choice", 900, strata=1), Noise(sd=0.3, correlation=0.0))[
        "quality"
    ]
    assert row.se == pytest.approx(0.01)
    assert row.design_effect == pytest.approx(1)
    assert row.passes == pytest.approx(0.638, abs=0.002)  # Phi(2 - 1.646)
    # K = 2 with the failures: k = 1.6449 + z(.8^(1/2)) = 2.8954, at .9 3.2772; n = (.3 k / .02)^2
    assert (row.needed_80, row.needed_90) == (1887, 2417)
    assert row.detectable == pytest.approx(0.0289, abs=1e-4)
    assert (row.impossible, row.flips) == ("", None)


def test_clusters_and_weights_of_strata_cost_what_they_cost() -> None:
    source = evalset("choice", 1000, cluster_size=5, strata=1)
    row = rows(policy(check()), source, Noise(sd=0.3, correlation=0.5))["quality"]
    assert row.design_effect == pytest.approx(1 + 4 * 0.5)
    assert row.se == pytest.approx(0.3 * np.sqrt(3 / 1000))
    assert row.effective_clusters == pytest.approx(200)
    lopsided = source.model_copy(
        update={
            "items": tuple(
                i.model_copy(update={"stratum": "rare"}) if n < 10 else i for n, i in enumerate(source.items)
            )
        }
    )
    weighted = rows(policy(check()), lopsided, Noise(sd=0.3, correlation=0.0))["quality"]
    assert weighted.se == pytest.approx(0.3 * np.sqrt((1 / 10 + 1 / 990) / 4))


def test_flips_are_planned_by_tangos_null_variance() -> None:
    source = evalset("generation", 844, strata=1)
    row = rows(policy(check(margin=0.02, min_items=1)), source, Noise(sd=0.2236, flips=0.05))["quality"]
    assert row.flips == 0.05
    # 844 items for 5% flips, one check, 80%; a joint pass of two needs more of both
    assert row.passes == pytest.approx(0.80, abs=0.002)
    assert row.needed_80 is not None
    assert row.needed_80 > 844
    assert row.detectable is not None
    assert row.detectable > 0.02


@pytest.mark.parametrize(
    ("source", "changes", "why"),
    [
        (evalset("generation", 130), {"margin": 0.02}, "130 effective items, 133 needed"),
        (evalset("choice", 90), {}, "90 items, 100 needed"),
        (evalset("choice", 195, cluster_size=5), {}, "39 clusters, 40 needed"),
        (evalset("choice", 195, cluster_size=5), {"min_clusters": 2}, "39 effective clusters, 40 needed"),
    ],
)
def test_what_nothing_can_pass_is_said(source: EvalSet, changes: dict[str, float], why: str) -> None:
    of = policy(check(**changes))
    noise = assumed_noise(source.card.kind, "score")
    row = rows(of, source, noise)["quality"]
    assert why in row.impossible
    assert row.passes == 0
    assert any(
        "nothing can pass" in line and why in line
        for line in plan_problems(list(rows(of, source, noise).values()))
    )


def test_the_least_number_of_items_is_never_below_what_the_comparison_asks() -> None:
    source = evalset("choice", 2000, cluster_size=5)
    row = rows(policy(check(min_items=150)), source, Noise(sd=0.001))["quality"]
    assert row.needed_80 == 200, "40 clusters of five"


def test_joint_chances_multiply_and_the_weakest_is_named() -> None:
    of = policy(
        check(margin=0.02), LENGTH, check(id="side", tier="supporting"), check(id="aside", tier="advisory")
    )
    found = rows(of, evalset("generation", 900, strata=1), Noise(sd=0.3, flips=None, correlation=0.0))
    assert set(found) == {"quality", "length", "side", "failures"}
    chance = joint_pass_probability(list(found.values()))
    expected = [found[name].passes for name in ("quality", "length", "failures")]
    assert chance == pytest.approx(np.prod(expected))
    (line,) = plan_problems(list(found.values()))
    assert "weakest is quality" in line
    assert "64%" in line or "63%" in line
    assert (
        plan_problems(
            list(rows(of, evalset("generation", 9000, strata=1), Noise(sd=0.3, correlation=0.0)).values())
        )
        == ()
    )


def test_kinds_that_an_equal_candidate_is_not_meant_to_pass_count_in_no_chance() -> None:
    gain = check(id="gain", kind="superiority", margin=0.0)
    level = check(id="level", kind="absolute", margin=0.4)
    found = rows(policy(check(), gain, level), evalset("choice", 900), Noise(sd=0.1))
    assert found["gain"].passes is None
    assert "better candidate" in found["gain"].note
    assert found["level"].passes is None
    assert joint_pass_probability(list(found.values())) is not None


def test_timing_is_planned_in_pairs_of_blocks() -> None:
    slow = check(id="tpot", metric="tpot", evalset=[], statistic="p50", direction="lower", scale="relative", margin=0.1,
                 min_items=20, min_clusters=20)  # fmt: skip
    of = policy(check(), slow, timing={"pairs": 20, "requests": 100})
    row = rows(of, evalset("generation", 400), assumed_noise("generation", "score"))["tpot"]
    assert (row.items, row.clusters) == (20, 20)
    assert row.passes == pytest.approx(0.94, abs=0.02), "a p50 at a margin of 10%, about 95% of the time"


def test_noise_is_measured_between_two_executions() -> None:
    source = evalset("choice", 2000, cluster_size=4, strata=1)
    rng = np.random.default_rng(5)
    shared = np.repeat(rng.normal(size=500), 4)
    delta = 0.08 * (np.sqrt(0.3) * shared + np.sqrt(0.7) * rng.normal(size=2000))
    base = rng.uniform(0.3, 0.7, 2000)
    arms = [
        measured(source, v, arm=n)
        for n, v in (("baseline", base), ("candidate", np.clip(base + delta, 0, 1)))
    ]
    found = measured_noise(pair("score", [source], {"set": arms[0]}, {"set": arms[1]}), "measured: here")
    assert found is not None
    assert found.sd == pytest.approx(0.08, rel=0.1)
    assert found.correlation == pytest.approx(0.3, abs=0.12)
    assert (found.flips, found.source) == (None, "measured: here")


def test_flips_are_measured_and_equal_outputs_say_nothing() -> None:
    source = evalset("generation", 400)
    base = (np.arange(400) % 5 > 0).astype(float)
    other = np.where(np.arange(400) % 50 == 0, 1 - base, base)
    arms = [measured(source, v, arm=n) for n, v in (("baseline", base), ("candidate", other))]
    found = measured_noise(pair("score", [source], {"set": arms[0]}, {"set": arms[1]}), "here")
    assert found is not None
    assert found.flips == pytest.approx(8 / 400)
    assert found.rate == pytest.approx(0.8)
    same = pair("score", [source], {"set": arms[0]}, {"set": measured(source, base, arm="again")})
    assert measured_noise(same, "here") is None


def test_every_metric_has_an_assumption() -> None:
    for metric in (
        "log_perplexity",
        "bits_per_byte",
        "score",
        "accuracy",
        "log_length",
        "bad_ending",
        "failed",
    ):
        noise = assumed_noise("generation", metric)
        assert noise.sd >= 0
        assert "assumed" in noise.source
    assert Check.model_fields["metric"] is not None
