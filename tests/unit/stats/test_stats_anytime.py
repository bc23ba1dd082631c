"""Always-valid bounds against published numbers and against what defines them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from checkweigh.stats.anytime import (
    asymptotic_sequence,
    bernoulli_above,
    bernoulli_sequence,
    mixture_rho,
    normal_mixture_boundary,
)


def test_the_normal_mixture_is_confseqs() -> None:
    """confseq, test/uniform_boundaries_unittest.cpp: v_opt 100, alpha .05, bound at v = 100."""
    assert mixture_rho(100, 0.05, 2) == pytest.approx(12.60056, abs=1e-5)
    two = normal_mixture_boundary(100, rho=mixture_rho(100, 0.05, 2), alpha=0.05, sides=2)
    one = normal_mixture_boundary(100, rho=mixture_rho(100, 0.05, 1), alpha=0.05, sides=1)
    assert float(two) == pytest.approx(30.35209, abs=1e-5)
    assert float(one) == pytest.approx(27.66071, abs=1e-5)


@pytest.mark.parametrize("v", [0.5, 30.0, 4000.0])
def test_the_one_sided_boundary_is_where_the_half_normal_mixture_reaches_its_level(v: float) -> None:
    rho, alpha = 9.0, 0.02
    s = float(normal_mixture_boundary(v, rho=rho, alpha=alpha, sides=1))
    sd = 1 / math.sqrt(rho)
    density = lambda x: 2 * stats.norm.pdf(x, scale=sd) * math.exp(x * s - x**2 * v / 2)  # noqa: E731
    peak = s / (v + rho)
    total = sum(
        integrate.quad(density, a, b, epsabs=0, epsrel=1e-10)[0]
        for a, b in ((0, peak), (peak, peak + 12 / math.sqrt(v + rho)))
    )
    assert total == pytest.approx(1 / alpha, rel=1e-6)


def test_boundaries_take_arrays_and_keep_missing_times_missing() -> None:
    found = normal_mixture_boundary([0.0, 10.0, np.nan], rho=3.0, alpha=0.05, sides=1)
    assert np.isfinite(found[:2]).all()
    assert found[0] < found[1]
    assert np.isnan(found[2])


def test_the_asymptotic_sequence_is_gbstats() -> None:
    """gbstats, tests/frequentist: two arms by sum, sum of squares and n; N* = 5,000; one-sided .05."""
    arms = ((1396.87, 52377.9767, 3000), (2422.7, 134698.29, 3461))
    means = [total / n for total, _, n in arms]
    variances = [(squares - total**2 / n) / (n - 1) for total, squares, n in arms]
    se = math.sqrt(sum(v / n for v, (_, _, n) in zip(variances, arms, strict=True)))
    lower, upper = asymptotic_sequence(means[1] - means[0], se, 3000 + 3461, best_at=5000, alpha=0.05)
    assert float(lower) == pytest.approx(-0.12656844172804982, abs=1e-9)
    assert float(upper) == pytest.approx(2 * (means[1] - means[0]) + 0.12656844172804982, abs=1e-9)


@pytest.mark.parametrize(("se", "n"), [(0.0, 100), (np.nan, 100), (np.inf, 100), (0.1, 0), (-0.1, 100)])
def test_no_width_is_never_a_result(se: float, n: int) -> None:
    lower, upper = asymptotic_sequence(0.3, se, n, best_at=1000, alpha=0.05)
    assert (float(lower), float(upper)) == (-np.inf, np.inf)


def test_the_bernoulli_sequence_is_confseqs() -> None:
    """confseq's own example: 700 of 1,000, tuned to 100."""
    lower, upper = bernoulli_sequence(700, 1000, best_at=100, alpha=0.05)
    assert (float(lower), float(upper)) == pytest.approx((0.651629, 0.745949), abs=2e-6)


def test_the_bernoulli_sequence_at_its_ends() -> None:
    lower, upper = bernoulli_sequence([0, 0, 50, 8], [0, 50, 50, 50], best_at=100, alpha=0.05)
    assert lower[:2].tolist() == [0, 0]
    assert upper[0] == upper[2] == 1
    assert upper[1] == pytest.approx(1 - lower[2], abs=1e-9)
    assert 0 < lower[3] < 0.16 < upper[3] < 1


@pytest.mark.parametrize(("best_at", "alpha"), [(10, 0.05), (300, 0.01)])
def test_above_is_where_the_sequences_lower_bound_lies(best_at: float, alpha: float) -> None:
    for n in (0, 1, 7, 100, 2000):
        for good in {0, n // 50, n // 2, n - n // 10, n}:
            lower = float(bernoulli_sequence(good, n, best_at=best_at, alpha=alpha)[0])
            for p in (0.0, 0.01, 0.12, 0.55, 0.92):
                assert bernoulli_above(good, n, p, best_at=best_at, alpha=alpha) == (lower > p), (good, n, p)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mixture_rho(0, 0.05, 2),
        lambda: normal_mixture_boundary(-1.0, rho=1.0, alpha=0.05, sides=2),
        lambda: normal_mixture_boundary(1.0, rho=0.0, alpha=0.05, sides=2),
        lambda: asymptotic_sequence(0.0, 1.0, 10, best_at=0, alpha=0.05),
        lambda: asymptotic_sequence(0.0, 1.0, 10, best_at=100, alpha=0.7),
        lambda: bernoulli_sequence(5, 4, best_at=100, alpha=0.05),
        lambda: bernoulli_sequence(np.nan, 4, best_at=100, alpha=0.05),
        lambda: bernoulli_above(5, 4, 0.5, best_at=100, alpha=0.05),
        lambda: bernoulli_above(1, 4, 1.0, best_at=100, alpha=0.05),
        lambda: bernoulli_above(1, 4, np.nan, best_at=100, alpha=0.05),
    ],
)
def test_impossible_arguments_are_errors(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"expected|alpha|finite"):
        call()
