"""Bounds that are looked at a hundred times, and rates of independent groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from checkweigh.stats.anytime import (
    asymptotic_sequence,
    bernoulli_sequence,
    mixture_rho,
    normal_mixture_boundary,
)
from checkweigh.stats.rates import rare_rate_ratio, rate_difference

Claim = Callable[..., float]
LOOKS, EACH = 100, 50


@pytest.mark.parametrize("tails", ["normal", "skewed"])
def test_a_hundred_looks_at_no_effect(tails: str, runs: int, at_most: Claim) -> None:
    """A test at 5% at each of a hundred looks would alarm 31% of the time."""
    rng = np.random.default_rng([601, len(tails)])
    shape = (runs, LOOKS, EACH)
    delta = rng.normal(size=shape) if tails == "normal" else rng.exponential(size=shape) - 1.0
    n = EACH * np.arange(1, LOOKS + 1)
    mean = delta.sum(axis=-1).cumsum(axis=-1) / n
    sd = np.sqrt((delta**2).sum(axis=-1).cumsum(axis=-1) / n - mean**2)
    lower, upper = asymptotic_sequence(mean, sd / np.sqrt(n), n, best_at=2500, alpha=0.05)
    begun = n >= 250
    at_most((upper[:, begun] < 0).any(axis=-1), 0.05)
    at_most((lower[:, begun] > 0).any(axis=-1), 0.05)
    assert (mean + 1.645 * sd / np.sqrt(n) < 0).any(axis=-1).mean() > 0.2, "the simulation can fail"


def test_walks_stay_below_the_mixture(runs: int, at_most: Claim) -> None:
    rng = np.random.default_rng(602)
    walk = rng.normal(size=(runs, 1000)).cumsum(axis=-1)
    v = np.arange(1.0, 1001.0)
    one = normal_mixture_boundary(v, rho=mixture_rho(300, 0.05, 1), alpha=0.05, sides=1)
    two = normal_mixture_boundary(v, rho=mixture_rho(300, 0.05, 2), alpha=0.05, sides=2)
    at_most((walk >= one).any(axis=-1), 0.05)
    at_most((np.abs(walk) >= two).any(axis=-1), 0.05)
    assert (walk >= one).any(axis=-1).mean() > 0.01


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5])
def test_probabilities_stay_inside_their_sequence(p: float, runs: int, at_most: Claim) -> None:
    rng = np.random.default_rng([603, int(100 * p)])
    good = rng.binomial(20, p, size=(runs, 100)).cumsum(axis=-1)
    lower, upper = bernoulli_sequence(good, 20 * np.arange(1, 101), best_at=500, alpha=0.05)
    at_most(((lower > p) | (upper < p)).any(axis=-1), 0.05)


@pytest.mark.parametrize(("n_b", "n_c", "p"), [(300, 300, 0.1), (1000, 200, 0.05), (2000, 2000, 0.01)])
def test_score_bounds_of_a_difference(n_b: int, n_c: int, p: float, runs: int, close_to: Claim) -> None:
    rng = np.random.default_rng([604, n_b, n_c])
    b, c = rng.binomial(n_b, p, runs), rng.binomial(n_c, p + 0.02, runs)
    lower, upper = rate_difference(b, n_b, c, n_c, alpha=0.05)
    close_to(lower > 0.02, 0.05)
    close_to(upper < 0.02, 0.05)


@pytest.mark.parametrize("rate", [0.001, 0.004])
def test_rare_events_are_exact_and_so_never_alarm_too_often(rate: float, runs: int, at_most: Claim) -> None:
    rng = np.random.default_rng([605, int(1000 * rate)])
    b, c = rng.poisson(rate * 1500, runs), rng.poisson(rate * 2.0 * 500, runs)
    found = rare_rate_ratio(b, 1500, c, 500, alpha=0.05)
    at_most(found.lower > 2.0, 0.05)
    at_most(found.upper < 2.0, 0.05)
    equal = rare_rate_ratio(b, 1500, rng.poisson(rate * 500, runs), 500, alpha=0.05)
    at_most(equal.p_worse <= 0.05, 0.05)
