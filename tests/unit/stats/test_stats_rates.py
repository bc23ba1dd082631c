"""Rates of two independent groups against published intervals and exact enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from checkweigh.stats.rates import _restricted_variance, rare_rate_ratio, rate_difference


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((48, 80, 56, 70), 0.0533, 0.3377), ((3, 10, 9, 10), 0.1821, 0.8370)],
)
def test_newcombes_examples(counts: tuple[int, ...], low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17:873, table II, method 5 (Mee)."""
    assert [float(x) for x in rate_difference(*counts, alpha=0.025)] == pytest.approx([low, high], abs=5e-5)


@pytest.mark.parametrize("null", [-0.16, -0.02, 0.0, 0.1, 0.32])
def test_the_restricted_variance_is_the_constrained_likelihoods(null: float) -> None:
    b, n_b, c, n_c = 7.0, 25.0, 11.0, 30.0
    grid = np.linspace(max(0, -null), min(1, 1 - null), 2_000_001)[1:-1]
    likelihood = (
        b * np.log(grid)
        + (n_b - b) * np.log1p(-grid)
        + c * np.log(grid + null)
        + (n_c - c) * np.log1p(-grid - null)
    )
    p = grid[likelihood.argmax()]
    expected = p * (1 - p) / n_b + (p + null) * (1 - p - null) / n_c
    found = _restricted_variance(*(np.array(x) for x in (b, n_b, c, n_c, null)))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_no_events_still_have_a_width_and_arms_mirror() -> None:
    low, high = rate_difference([0, 3], [100, 50], [0, 7], [100, 60], alpha=0.05)
    assert low[0] == pytest.approx(-high[0])
    assert high[0] > 0.02
    mirrored = rate_difference([7], [60], [3], [50], alpha=0.05)
    assert (float(mirrored[0][0]), float(mirrored[1][0])) == pytest.approx((-high[1], -low[1]), abs=1e-12)


def test_the_conditional_test_is_rs_poisson_test() -> None:
    """R, help(poisson.test): 11 of 800 against 21 of 3,011, the 95% interval of the ratio."""
    found = rare_rate_ratio(21, 3011, 11, 800, alpha=0.025)
    assert float(found.ratio) == pytest.approx(1.971488, abs=1e-6)
    assert (float(found.lower), float(found.upper)) == pytest.approx((0.8584264, 4.2772659), abs=1e-6)
    exact = stats.binomtest(11, 32, 800 / 3811, alternative="greater").pvalue
    assert float(found.p_worse) == pytest.approx(exact, rel=1e-12)


def test_what_was_never_seen_is_not_known() -> None:
    found = rare_rate_ratio([0, 0, 4], [500, 500, 500], [0, 3, 0], [400, 400, 400], alpha=0.05)
    assert np.isnan(found.ratio[0])
    assert (found.lower[0], found.upper[0], found.p_worse[0]) == (0, np.inf, 1)
    assert found.upper[1] == np.inf
    assert found.lower[1] > 0
    assert (found.lower[2], found.p_worse[2]) == (0, 1)
    assert found.upper[2] < 1.4, "four and none may be chance"


@pytest.mark.parametrize("counts", [(-1, 10, 0, 10), (0, 0, 0, 10), (np.nan, 10, 0, 10)])
def test_impossible_counts_are_errors(counts: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        rare_rate_ratio(*counts, alpha=0.05)
    with pytest.raises(ValueError, match="expected"):
        rate_difference(*counts, alpha=0.05)


def test_more_events_than_trials_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected"):
        rate_difference(11, 10, 0, 10, alpha=0.05)
