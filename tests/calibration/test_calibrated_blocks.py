"""Latency: pairs of alternating blocks on a host that drifts and stalls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from checkweigh.stats import Partition, block_log_ratio, clustered_mean

Array = np.ndarray[Any, Any]
Claim = Callable[..., float]


def requests(rng: np.random.Generator, runs: int, blocks: int, each: int) -> Array:
    """Latencies (runs, blocks, 2 arms, requests): drift shared by a pair, a tenth of the blocks stalls."""
    drift = np.cumsum(rng.normal(0.0, 0.3 / np.sqrt(blocks), size=(runs, blocks)), axis=-1)
    within = rng.normal(0.0, 0.05, size=(runs, blocks, 2))
    stalls = np.where(rng.random((runs, blocks, 2)) < 0.1, rng.exponential(0.3, size=(runs, blocks, 2)), 0.0)
    level = drift[..., None] + within + stalls
    return np.asarray(np.exp(level[..., None] + 0.3 * rng.normal(size=(runs, blocks, 2, each))))


def log_ratios(latency: Array, q: float) -> Array:
    """Higher is better: the log of the baseline's block quantile over the candidate's."""
    quantiles = np.log(stats.quantile(latency, q, axis=-1, method="harrell-davis"))
    return np.asarray(quantiles[..., 0] - quantiles[..., 1])


CELLS = [
    (20, 100, 0.5, 0.10),
    (20, 100, 0.9, 0.20),
    (20, 100, 0.99, 0.30),
    (6, 50, 0.5, 0.10),
    (60, 20, 0.5, 0.05),
]


@pytest.mark.parametrize(("blocks", "each", "q", "slower"), CELLS)
def test_a_candidate_at_the_margin_ships_five_percent(
    blocks: int, each: int, q: float, slower: float, runs: int, close_to: Claim
) -> None:
    rng = np.random.default_rng([401, blocks, int(100 * q)])
    margin = float(np.log1p(slower))
    equal = log_ratios(requests(rng, runs, blocks, each), q)
    found = block_log_ratio(equal - margin, margin=margin)
    close_to(found.lower > -margin, 0.048)
    same = block_log_ratio(equal, margin=margin)
    close_to(same.lower > 0.0, 0.048)
    close_to(same.upper < 0.0, 0.048)
    close_to(same.p_worse <= 0.05, 0.048)


def test_above_sixty_pairs_single_requests_alternate(runs: int, close_to: Claim) -> None:
    rng = np.random.default_rng(402)
    margin = float(np.log(1.05))
    equal = log_ratios(requests(rng, runs, 180, 1), 0.5)
    close_to(block_log_ratio(equal - margin, margin=margin).lower > -margin, 0.05)


def test_an_equal_candidate_settles(runs: int, at_least: Claim) -> None:
    """On a noisy host 20 pairs of 100 settle p50 at 10% about 93% and p90 at 20% about 99% of the time."""
    for q, slower, claim in ((0.5, 0.10, 0.90), (0.9, 0.20, 0.98)):
        rng = np.random.default_rng([403, int(100 * q)])
        margin = float(np.log1p(slower))
        found = block_log_ratio(log_ratios(requests(rng, runs, 20, 100), q), margin=margin)
        at_least(found.lower > -margin, claim)


def test_requests_are_not_independent(runs: int) -> None:
    """The simulation can fail: every request a datum of its own."""
    rng = np.random.default_rng(404)
    latency = np.log(requests(rng, runs, 20, 50))
    margin = float(np.log(1.1))
    delta = (latency[..., 0, :] - latency[..., 1, :] - margin).reshape(runs, -1)
    naive = clustered_mean(delta, Partition.singletons(1000), margin=margin)
    assert np.mean(naive.lower > -margin) > 0.2
