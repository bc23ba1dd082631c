"""Rates over pairs of blocks: the score deflated for blocks, the exact binomial when little differs, no zero width."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from checkweigh.stats import Partition, block_rates, clustered_tango, nominal_level
from checkweigh.stats.sequential import spending_boundary

SIZES = np.full(20, 40)


def test_it_is_the_clustered_score_of_the_same_requests() -> None:
    rng = np.random.default_rng(4)
    sizes = np.array([3, 5, 4, 6, 2, 4, 4, 5])
    first = [rng.random(n) < 0.8 for n in sizes]
    second = [rng.random(n) < 0.4 for n in sizes]
    better = [int((~a & b).sum()) for a, b in zip(first, second, strict=True)]
    worse = [int((a & ~b).sum()) for a, b in zip(first, second, strict=True)]
    found = block_rates(better, worse, sizes, margin=0.1)
    labels = [str(i) for i, n in enumerate(sizes) for _ in range(n)]
    expected = clustered_tango(
        np.concatenate(first).astype(float), np.concatenate(second).astype(float),
        Partition.from_labels(labels), margin=0.1,
    )  # fmt: skip
    for name in ("effect", "lower", "upper", "p_noninferior", "p_worse", "design_effect"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert sum(better) + sum(worse) > 10


def test_no_difference_at_all_still_has_an_interval() -> None:
    found = block_rates(np.zeros(20), np.zeros(20), SIZES, margin=0.1)
    assert bool(found.estimable)
    assert found.lower < 0 < found.upper
    assert found.p_worse == 1
    assert found.p_noninferior < 0.05
    assert block_rates(np.zeros(20), np.zeros(20), SIZES, margin=0.02).p_noninferior > 0.05


@pytest.mark.parametrize(("wins", "losses"), [(0, 1), (1, 7), (0, 9), (5, 5), (4, 0)])
def test_where_little_differs_deterioration_is_an_exact_binomial_of_blocks(wins: int, losses: int) -> None:
    better = np.array([1] * wins + [0] * (20 - wins))
    worse = np.array([0] * wins + [1] * losses + [0] * (20 - wins - losses))
    found = block_rates(better, worse, SIZES, margin=0.05)
    assert found.p_worse == pytest.approx(stats.binom.sf(losses - 1, wins + losses, 0.5) if losses else 1.0)


def test_ten_errors_in_one_block_are_one_event() -> None:
    together, apart = np.zeros(20), np.zeros(20)
    together[0], apart[:10] = 10, 1
    assert block_rates(np.zeros(20), together, SIZES, margin=0.05).p_worse == 0.5
    assert block_rates(np.zeros(20), apart, SIZES, margin=0.05).p_worse == pytest.approx(2**-10)


def test_simulations_ride_on_a_leading_axis() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.integers(0, 5, (6, 20)), rng.integers(0, 9, (6, 20))
    found = block_rates(better, worse, SIZES, margin=0.1)
    for i in range(6):
        one = block_rates(better[i], worse[i], SIZES, margin=0.1)
        assert found.p_noninferior[i] == pytest.approx(one.p_noninferior)
        assert found.p_worse[i] == pytest.approx(one.p_worse)


def test_a_count_that_is_no_number_says_nothing() -> None:
    found = block_rates([np.nan, *[0] * 19], np.zeros(20), SIZES, margin=0.1)
    assert not found.estimable
    assert np.isnan(found.p_noninferior)


@pytest.mark.parametrize(
    ("better", "worse", "sizes"),
    [
        ([30] * 20, [20] * 20, SIZES),
        ([-1] * 20, [0] * 20, SIZES),
        ([0] * 19, [0] * 19, SIZES),
        ([0], [0], [0]),
    ],
)
def test_impossible_counts_are_refused(better: list[int], worse: list[int], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"blocks|differ"):
        block_rates(better, worse, sizes, margin=0.1)


def test_one_block_is_no_sample() -> None:
    assert not block_rates([1], [0], [40], margin=0.1).estimable


def test_nominal_levels_are_those_of_the_boundary() -> None:
    assert nominal_level((1.0,), 0.05) == 0.05
    thirds = stats.norm.sf(spending_boundary((1 / 3, 2 / 3, 1.0), 0.05))
    assert nominal_level((1 / 3, 2 / 3, 1.0), 0.05) == pytest.approx(thirds[2])
    assert nominal_level((1 / 3,), 0.05) == pytest.approx(thirds[0]), "later looks do not change earlier ones"
    assert nominal_level((1 / 3, 2 / 3), 0.05) == pytest.approx(thirds[1])
    assert nominal_level((0.5,), 0.05) < 0.01 < nominal_level((0.5, 1.0), 0.05) < 0.05
