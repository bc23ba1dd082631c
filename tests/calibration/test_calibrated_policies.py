"""Whole policies at adaptive looks, through ``compare_many`` and ``decide``: the first table of docs/calibration.md.

K critical checks of ITEMS independent items each, correlated by .3, and the implicit one on failed items, which never
fail here. Looks at .125, .25, .5 and all of them, each check K / (K + 1) of the Holm family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.builders import check, evalset, policy

from checkweigh.decision.planning import Noise, assumed_noise
from checkweigh.decision.simulation import PolicySimulator, Scenario
from checkweigh.progress import no_progress
from checkweigh.records.evalset import EvalSet
from checkweigh.records.operating_characteristics import Rates
from checkweigh.records.policy import Check
from checkweigh.usecases.gate.inputs import read_policy_inputs

Claim = Callable[..., float]
ROOT = Path(__file__).resolve().parents[2]
ITEMS, MARGIN, CHUNK = 800, 0.02, 400
QUIET = Noise(sd=0.0, flips=0.0, correlation=0.0)
# K, m/se: A/A ship, block, inconclusive; ship at -m; block and mean n of 4,000 at -1.5 m; first slice at -3 m
TABLE = {
    (10, 3.5): (0.77, 0.009, 0.22, 0.046, 0.961, 2502, 0.58),
    (10, 4.5): (0.974, 0.007, 0.020, 0.048, 0.993, 1641, 0.90),
    (30, 3.5): (0.59, 0.010, 0.40, 0.041, 0.933, 2790, 0.47),
    (30, 4.5): (0.942, 0.007, 0.051, 0.046, 0.989, 1864, 0.84),
}
CELLS = list(TABLE)


@cache
def bench(checks: int, ratio: float) -> PolicySimulator:
    """K checks whose margin is ``ratio`` standard errors at the last look."""
    noise = Noise(sd=MARGIN * math.sqrt(ITEMS) / ratio, correlation=0.0)
    sets = tuple(evalset("choice", ITEMS, name=f"s{i}", strata=1) for i in range(checks))
    rules = policy(
        *(check(id=f"c{i}", evalset=[f"s{i}"], margin=MARGIN) for i in range(checks)), looks="adaptive"
    )

    def noise_of(evalset: EvalSet, of: Check) -> Noise:
        return QUIET if of.metric == "failed" else noise

    return PolicySimulator(rules, sets, noise_of)


@cache
def rates(checks: int, ratio: float, margins: float, runs: int) -> Rates:
    """The rates of ``runs`` gates, drawn in chunks to keep memory small."""
    scenario = Scenario(check="c0", margins=margins) if margins else Scenario()
    found = [
        bench(checks, ratio).run(
            scenario, CHUNK, np.random.default_rng([701, checks, int(10 * ratio), int(-10 * margins), chunk])
        )
        for chunk in range(runs // CHUNK)
    ]
    means = {
        name: float(np.mean([getattr(r, name) for r in found]))
        for name in ("ship", "block", "inconclusive", "items", "share", "first_look")
    }
    return found[0].model_copy(update={"runs": runs, **means})


def hits(share: float, runs: int) -> np.ndarray:  # type: ignore[type-arg]
    """As many hits as the share says, for the claims to count."""
    return np.arange(runs) < round(share * runs)


@pytest.mark.parametrize(("checks", "ratio"), CELLS)
def test_the_table_of_operating_characteristics(
    checks: int, ratio: float, runs: int, publish: Callable[[dict[str, float]], None]
) -> None:
    """Reproduced within Monte-Carlo error; the table's two digits and the t of a small first look add a little."""
    ship, block, inconclusive, at_margin, beyond, items, first = TABLE[checks, ratio]
    equal, worse, far = (rates(checks, ratio, margins, runs) for margins in (0.0, -1.5, -3.0))
    at_the_margin = rates(checks, ratio, -1.0, runs)
    publish(
        {
            "checks": checks, "ratio": ratio, "ship": equal.ship, "block": equal.block,
            "inconclusive": equal.inconclusive, "at_margin_ship": at_the_margin.ship, "beyond_block": worse.block,
            "beyond_items": 4000 * worse.share, "far_first": far.first_look, "runs": runs,
        }
    )  # fmt: skip

    def about(share: float, expected: float) -> None:
        slack = 0.02 + 3 * math.sqrt(max(expected * (1 - expected), 0.01) / runs)
        assert share == pytest.approx(expected, abs=slack)

    about(equal.ship, ship)
    about(equal.block, block)
    about(equal.inconclusive, inconclusive)
    about(at_the_margin.ship, at_margin)
    about(worse.block, beyond)
    assert 4000 * worse.share == pytest.approx(items, rel=0.12)
    assert far.first_look == pytest.approx(first, abs=0.12)


@pytest.mark.parametrize(("checks", "ratio"), CELLS)
def test_an_equal_candidate_is_not_blocked(checks: int, ratio: float, runs: int, at_most: Claim) -> None:
    blocked = hits(rates(checks, ratio, 0.0, runs).block, runs)
    at_most(blocked, 0.01)


@pytest.mark.parametrize(("checks", "ratio"), [cell for cell in CELLS if cell[1] >= 4])
def test_at_the_planned_size_few_stay_open(checks: int, ratio: float, runs: int, at_most: Claim) -> None:
    still_open = hits(rates(checks, ratio, 0.0, runs).inconclusive, runs)
    at_most(still_open, 0.10)


@pytest.mark.parametrize(("checks", "ratio"), CELLS)
def test_a_candidate_at_the_margin_rarely_ships(checks: int, ratio: float, runs: int, at_most: Claim) -> None:
    shipped = hits(rates(checks, ratio, -1.0, runs).ship, runs)
    at_most(shipped, 0.055)


@pytest.mark.parametrize(("checks", "ratio"), [cell for cell in CELLS if cell[1] >= 4])
def test_half_a_margin_beyond_is_blocked(checks: int, ratio: float, runs: int, at_least: Claim) -> None:
    blocked = hits(rates(checks, ratio, -1.5, runs).block, runs)
    at_least(blocked, 0.95)


@pytest.mark.parametrize(("checks", "ratio"), CELLS)
def test_far_beyond_the_first_slice_often_suffices(
    checks: int, ratio: float, runs: int, at_least: Claim
) -> None:
    found = rates(checks, ratio, -3.0, runs)
    blocked = hits(found.block, runs)
    at_least(blocked, 0.999)
    assert found.share < 0.25, "what stopping early saves"


@cache
def shipped() -> PolicySimulator:
    """gates/default.yaml on its own sets: clusters, strata and weights as shipped, noise as assumed without a store."""
    rules, sets = read_policy_inputs(ROOT / "gates" / "default.yaml", no_progress)
    return PolicySimulator(rules, sets, lambda evalset, of: assumed_noise(evalset.card.kind, of.metric))


@cache
def of_shipped(check: str, margins: float, runs: int) -> Rates:
    scenario = Scenario(check=check, margins=margins) if check else Scenario()
    return shipped().run(scenario, runs, np.random.default_rng([702, len(check), int(-10 * margins)]))


def test_the_shipped_policy_on_an_equal_candidate(runs: int, at_most: Claim, at_least: Claim) -> None:
    equal = of_shipped("", 0.0, runs)
    blocked, passed = hits(equal.block, runs), hits(equal.ship, runs)
    at_most(blocked, 0.01)
    at_least(passed, 0.9)


@pytest.mark.parametrize("name", ["perplexity", "bad-endings", "longer-replies", "failures"])
def test_the_shipped_policy_at_and_beyond_each_margin(
    name: str, runs: int, at_most: Claim, at_least: Claim
) -> None:
    shipped_at_margin = hits(of_shipped(name, -1.0, runs).ship, runs)
    at_most(shipped_at_margin, 0.055)
    blocked_beyond = hits(of_shipped(name, -3.0, runs).block, runs)
    at_least(blocked_beyond, 0.99)


def test_known_failure_the_shipped_pooled_score(runs: int, fails: Claim) -> None:
    """At its margin the pooled score ships 6.4% (6,000 runs): replies of 0 and 1 in small strata of heavy weight are
    skewed towards losses, and t knows no skewness."""
    shipped_at_margin = hits(of_shipped("task-score", -1.0, runs).ship, runs)
    fails(shipped_at_margin, 0.035, 0.095, 0.055)
    assert of_shipped("task-score", -1.5, runs).ship < 0.005


@pytest.mark.parametrize(("checks", "ratio"), CELLS)
def test_known_failure_half_a_margin_is_blocked_now_and_then(
    checks: int, ratio: float, runs: int, fails: Claim
) -> None:
    """The price of early blocks: of candidates that lose half a margin, which is allowed, 3 to 6% are blocked."""
    blocked = hits(rates(checks, ratio, -0.5, runs).block, runs)
    fails(blocked, 0.01, 0.09, 0.01)
