"""Goodput and errors in pairs of blocks whose requests succeed or fail together; pairs that grow look by look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from checkweigh.stats import block_log_ratio, block_rates, nominal_level

Array = np.ndarray[Any, Any]
Claim = Callable[..., float]


def outcomes(rng: np.random.Generator, shape: tuple[int, int, int], rate: float, rho: float) -> Array:
    """(runs, blocks, requests) successes; each block has a rate of its own, so that requests correlate by rho."""
    spread = 1.0 / rho - 1.0
    own = rng.beta(rate * spread, (1.0 - rate) * spread, shape[:2])
    return np.asarray(rng.random(shape) < own[..., None])


def unlike(first: Array, second: Array) -> tuple[Array, Array]:
    return (~first & second).sum(-1), (first & ~second).sum(-1)


@pytest.mark.parametrize("rho", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("rate", [0.999, 0.97, 0.9, 0.6])
@pytest.mark.parametrize(("blocks", "each"), [(20, 40), (40, 40)])
def test_a_candidate_at_the_margin_ships_rarely(
    blocks: int, each: int, rate: float, rho: float, runs: int, at_most: Claim
) -> None:
    """At most 5% where blocks break independently; 6.5% where they break whole (rho .3, nearly no misses)."""
    rng = np.random.default_rng([501, blocks, int(1000 * rate), int(100 * rho)])
    shape = (runs, blocks, each)
    better, worse = unlike(outcomes(rng, shape, rate, rho), outcomes(rng, shape, rate - 0.1, rho))
    found = block_rates(better, worse, [each] * blocks, margin=0.1)
    at_most(found.p_noninferior < 0.05, 0.065 if rho == 0.3 else 0.05)


@pytest.mark.parametrize("rho", [0.02, 0.3])
@pytest.mark.parametrize("rate", [0.999, 0.97, 0.6])
def test_equal_arms_seldom_look_worse(rate: float, rho: float, runs: int, at_most: Claim) -> None:
    rng = np.random.default_rng([502, int(1000 * rate), int(100 * rho)])
    shape = (runs, 20, 40)
    better, worse = unlike(outcomes(rng, shape, rate, rho), outcomes(rng, shape, rate, rho))
    at_most(block_rates(better, worse, [40] * 20, margin=0.1).p_worse <= 0.01, 0.011)


def test_a_served_load_that_is_nearly_always_kept_passes_ten_points(runs: int, at_least: Claim) -> None:
    rng = np.random.default_rng(503)
    shape = (runs, 20, 40)
    better, worse = unlike(outcomes(rng, shape, 0.97, 0.1), outcomes(rng, shape, 0.97, 0.1))
    at_least(block_rates(better, worse, [40] * 20, margin=0.1).p_noninferior < 0.05, 0.95)


@pytest.mark.parametrize("looks", [(20, 40), (20, 40, 60)])
def test_growing_pairs_spend_five_percent_in_all(
    looks: tuple[int, ...], runs: int, at_most: Claim, at_least: Claim
) -> None:
    """Each look at its nominal level of the signed-rank test: at the margin one of them passes 5% of the time."""
    rng = np.random.default_rng([504, len(looks)])
    most, margin = looks[-1], 0.2
    blocks = rng.normal(0.0, 0.25, (runs, most)) + rng.standard_t(3, (runs, most)) * 0.1
    passed, equal = np.zeros(runs, bool), np.zeros(runs, bool)
    for k, pairs in enumerate(looks):
        level = nominal_level([n / most for n in looks[: k + 1]], 0.05)
        passed |= (
            block_log_ratio(blocks[:, :pairs] - margin, margin=margin, alpha=level).p_noninferior <= level
        )
        equal |= block_log_ratio(blocks[:, :pairs], margin=margin, alpha=level).p_noninferior <= level
    at_most(passed, 0.05)
    at_least(passed, 0.03)
    at_least(equal, 0.9)
