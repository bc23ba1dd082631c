"""Sample sizes: reference tables, and what an inconclusive answer still needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from checkweigh.stats import (
    Partition,
    clustered_mean,
    clustered_tango,
    items_to_settle,
    least_n_without_flips,
    minimum_detectable,
    pass_probability,
    required_n,
    required_n_binary,
    standard_errors_needed,
)
from checkweigh.stats.power import detectable_binary, pass_probability_binary


@pytest.mark.parametrize(
    ("checks", "at_80", "at_95"),
    [(1, 2.49, 3.29), (10, 3.66, 4.21), (20, 3.93, 4.44), (30, 4.08, 4.57), (50, 4.26, 4.73)],
)
def test_the_table_of_k(checks: int, at_80: float, at_95: float) -> None:
    assert standard_errors_needed(checks) == pytest.approx(at_80, abs=5e-3)
    assert standard_errors_needed(checks, 0.95) == pytest.approx(at_95, abs=5e-3)


@pytest.mark.parametrize(("flips", "items"), [(0.005, 236), (0.02, 430), (0.05, 844)])
def test_the_table_for_few_flips(flips: float, items: int) -> None:
    # Rounded up here, to the nearest in the table.
    assert items <= required_n_binary(flips, 0.02, checks=1) <= items + 1


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.03, 0.5])
def test_without_flips_the_floor_holds(margin: float) -> None:
    floor = least_n_without_flips(margin)
    assert floor <= required_n_binary(0.0, margin, checks=1)
    assert required_n_binary(0.0, margin, checks=1, design_effect=3.0) >= 3 * floor
    assert required_n_binary(0.0, 0.02, checks=1) == pytest.approx(133, abs=3)
    # However little is asked of the power, no data pass below the floor.
    assert required_n_binary(0.001, margin, checks=1, joint_pass=0.01) >= floor


@pytest.mark.parametrize(
    ("margin", "n", "one", "six"),
    [(0.03, 300, 0.50, 0.015), (0.05, 300, 0.86, 0.41), (0.03, 1000, 0.91, 0.58)],
)
def test_what_that_means_on_two_cores(margin: float, n: int, one: float, six: float) -> None:
    assert pass_probability(math.sqrt(0.1), margin, n) == pytest.approx(one, abs=5e-3)
    assert pass_probability(math.sqrt(0.1), margin, n, checks=6) == pytest.approx(six, abs=5e-3)


@pytest.mark.parametrize(("flips", "n"), [(0.005, 236), (0.02, 430), (0.05, 844)])
def test_few_flips_the_other_ways_round(flips: float, n: int) -> None:
    assert pass_probability_binary(flips, 0.02, n) == pytest.approx(0.8, abs=0.003)
    smallest = detectable_binary(flips, n + 1, checks=1)
    assert smallest == pytest.approx(0.02, abs=2e-4)
    assert required_n_binary(flips, smallest, checks=1) <= n + 1
    assert pass_probability_binary(flips, 0.02, 100) == 0, "below the floor nothing passes"
    assert (pass_probability_binary(0.0, 0.02, 132), pass_probability_binary(0.0, 0.02, 133)) == (0, 1)
    assert pass_probability_binary(flips, 0.02, 3 * n, design_effect=3.0) == pytest.approx(
        pass_probability_binary(flips, 0.02, n)
    )
    assert detectable_binary(0.0, 1, checks=1, design_effect=50.0) is None
    with pytest.raises(ValueError, match="flip_share"):
        pass_probability_binary(1.5, 0.02, 100)


@pytest.mark.parametrize("flips", [0.02, 0.1])
def test_the_chance_with_flips_is_that_of_the_score_test(flips: float) -> None:
    rng = np.random.default_rng(8)
    n, runs = 500, 4000
    z = rng.random((runs, n))
    after = np.where(z < flips / 2, 0.0, 1.0)
    before = np.where(z > 1 - flips / 2, 0.0, 1.0)
    found = clustered_tango(before, after, Partition.singletons(n), margin=0.03)
    assert np.mean(found.lower > -0.03) == pytest.approx(pass_probability_binary(flips, 0.03, n), abs=0.03)


@pytest.mark.parametrize("alpha", [0.05, 0.0482])
def test_the_three_ways_round_agree(alpha: float) -> None:
    n = required_n(0.4, 0.03, checks=4, joint_pass=0.9, design_effect=1.7, alpha=alpha)
    chance = pass_probability(0.4, 0.03, n, checks=4, design_effect=1.7, alpha=alpha)
    assert chance == pytest.approx(0.9, abs=2e-3)
    assert chance >= 0.9
    margin = minimum_detectable(0.4, n, checks=4, joint_pass=0.9, design_effect=1.7, alpha=alpha)
    assert margin == pytest.approx(0.03, rel=1e-3)


def test_sizes_scale_as_they_should() -> None:
    base = required_n(1.0, 0.1, checks=1)
    assert base == math.ceil((2.4865 / 0.1) ** 2)
    assert required_n(2.0, 0.1, checks=1) == pytest.approx(4 * base, abs=4)
    assert required_n(1.0, 0.1, checks=1, design_effect=3.0) == pytest.approx(3 * base, abs=3)
    assert required_n(1.0, 0.1, checks=30) > base
    assert required_n_binary(0.05, 0.02, checks=1, design_effect=2.0) == pytest.approx(2 * 844, abs=2)
    assert required_n_binary(0.05, 0.02, checks=30) > 844


def test_items_to_settle_brings_the_candidate_to_the_asked_power() -> None:
    """By simulation through the real test: this many items, this effect, this often settled."""
    n = items_to_settle(effect=0.0, se=0.02, n=100, margin=0.03)
    assert n == math.ceil(100 * (2.4865 * 0.02 / 0.03) ** 2)
    x = np.random.default_rng(19).normal(0.0, 0.2, size=(2000, n))
    found = clustered_mean(x, Partition.singletons(n), margin=0.03)
    assert np.mean(found.lower > -0.03) == pytest.approx(0.8, abs=0.03)


def test_items_to_settle_towards_a_block_needs_both_of_its_conditions() -> None:
    n = items_to_settle(effect=-0.05, se=0.02, n=100, margin=0.03, checks=4)
    assert n is not None
    x = np.random.default_rng(20).normal(-0.05, 0.2, size=(2000, n))
    found = clustered_mean(x, Partition.singletons(n), margin=0.03)
    blocked = (found.p_worse < 0.01 / 4) & (found.effect <= -0.03)
    assert np.mean(blocked) >= 0.77
    near = items_to_settle(effect=-0.035, se=0.02, n=100, margin=0.03)
    assert near == math.ceil(100 * (0.841621 * 0.02 / 0.005) ** 2)


def test_items_to_settle_never_asks_for_fewer_than_there_are() -> None:
    assert items_to_settle(effect=0.1, se=0.001, n=100, margin=0.03) == 100


@pytest.mark.parametrize(
    ("effect", "se"),
    [(-0.03, 0.02), (-0.0299, 0.02), (-0.0301, 0.02), (math.nan, 0.02), (0.0, math.nan), (0.0, 0.0)],
)
def test_nothing_settles_at_the_margin_or_without_an_estimate(effect: float, se: float) -> None:
    assert items_to_settle(effect, se, n=100, margin=0.03) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: required_n(0.0, 0.02, checks=1),
        lambda: required_n(math.nan, 0.02, checks=1),
        lambda: required_n(1.0, 0.0, checks=1),
        lambda: required_n(1.0, 0.02, checks=0),
        lambda: required_n(1.0, 0.02, checks=1, joint_pass=1.0),
        lambda: required_n(1.0, 0.02, checks=1, design_effect=0.0),
        lambda: required_n_binary(1.1, 0.02, checks=1),
        lambda: required_n_binary(0.1, 0.0, checks=1),
        lambda: pass_probability(1.0, 0.02, 0),
        lambda: minimum_detectable(1.0, 0, checks=1),
        lambda: items_to_settle(0.0, 1.0, 0, 0.02),
        lambda: items_to_settle(0.0, 1.0, 10, 0.02, power=1.0),
    ],
)
def test_impossible_plans_are_errors(call: Any) -> None:
    with pytest.raises(ValueError, match=r"must|expected"):
        call()
