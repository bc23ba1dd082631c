"""The block rule at a fixed n: Holm over K at .01, and estimated beyond the margin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from checkweigh.stats import Partition, clustered_mean, holm

Array = np.ndarray[Any, Any]
Claim = Callable[..., float]
CHECKS, ITEMS, CORRELATION, BLOCK_ALPHA = 30, 200, 0.3, 0.01


def decisions(seed: int, runs: int, ratio: float, shift: float = 0.0) -> tuple[Array, Array, Array]:
    """(block, pass, naive) of each run; ``shift`` margins on the first check, margin / se = ``ratio``."""
    rng = np.random.default_rng([seed, int(10 * ratio)])
    margin = ratio / np.sqrt(ITEMS)
    effect, worse, lower = [], [], []
    for _ in range(10):  # in tenths, to keep memory small
        common = rng.normal(size=(runs // 10, 1, ITEMS))
        own = rng.normal(size=(runs // 10, CHECKS, ITEMS))
        delta = np.sqrt(CORRELATION) * common + np.sqrt(1.0 - CORRELATION) * own
        delta[:, 0] += shift * margin
        found = clustered_mean(delta, Partition.singletons(ITEMS), margin=margin)
        effect.append(found.effect)
        worse.append(found.p_worse)
        lower.append(found.lower)
    p = np.concatenate(worse)
    beyond = np.concatenate(effect) <= -margin
    blocked = ((holm(p) <= BLOCK_ALPHA) & beyond).any(axis=-1)
    return blocked, (np.concatenate(lower) > -margin).all(axis=-1), (p < 0.05).any(axis=-1)


def test_equal_arms_are_blocked_at_most_one_percent(runs: int, at_most: Claim, at_least: Claim) -> None:
    for ratio in (3.0, 4.5):
        blocked, _, naive = decisions(501, runs, ratio)
        at_most(blocked, 0.01)
        at_least(naive, 0.45)  # what an uncorrected p < .05 does


def test_equal_arms_pass_thirty_checks_at_the_planned_size(runs: int, at_least: Claim) -> None:
    assert np.mean(decisions(502, runs, 3.0)[1]) < 0.5
    at_least(decisions(502, runs, 4.5)[1], 0.93)


def test_one_check_beyond_the_margin_is_blocked(runs: int, at_least: Claim, at_most: Claim) -> None:
    blocked, passed, _ = decisions(503, runs, 4.5, shift=-1.5)
    at_least(blocked, 0.95)
    at_most(passed, 0.001)


@pytest.mark.parametrize("ratio", [3.5, 4.5])
def test_one_check_at_the_margin_ships_five_percent_and_blocks_half(
    ratio: float, runs: int, at_most: Claim, at_least: Claim
) -> None:
    """A block means worse, and estimated beyond: at exactly -margin it falls about half of the time."""
    blocked, passed, _ = decisions(504, runs, ratio, shift=-1.0)
    at_most(passed, 0.05)
    assert 0.35 < np.mean(blocked) < 0.6
