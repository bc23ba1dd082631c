"""Block log ratios: signed ranks against tables, scipy and a worked example; quantiles of a block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from checkweigh.stats import Partition, block_log_ratio, clustered_mean
from checkweigh.stats.estimators.blocks import signed_rank_tail

# Hamilton depression scale before and after treatment: Hollander and Wolfe, example 3.1.
BEFORE = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
AFTER = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])


def test_the_worked_example() -> None:
    found = block_log_ratio(AFTER - BEFORE, margin=0.0)
    assert found.p_worse == pytest.approx(0.01953, abs=5e-6)
    assert found.effect == pytest.approx(-0.46, abs=5e-3)
    # The book's 96.1% interval is (-.786, -.010): each side at 1.95%.
    both = block_log_ratio(AFTER - BEFORE, margin=0.0, alpha=0.0196)
    assert (both.lower, both.upper) == (pytest.approx(-0.786), pytest.approx(-0.010))


@pytest.mark.parametrize(("blocks", "w", "p"), [(20, 150, 0.0487), (10, 45, 0.0420), (10, 47, 0.0244)])
def test_the_tail_agrees_with_the_printed_table(blocks: int, w: int, p: float) -> None:
    assert signed_rank_tail(blocks)[w] == pytest.approx(p, abs=5e-5)


def test_the_tail_agrees_with_counting_and_ends_exactly() -> None:
    sums = [sum(itertools.compress(range(1, 9), signs)) for signs in itertools.product((0, 1), repeat=8)]
    expected = [np.mean([s >= w for s in sums]) for w in range(37)]
    np.testing.assert_allclose(signed_rank_tail(8), expected, rtol=1e-12)
    assert signed_rank_tail(60)[-1] == 0.5**60
    assert signed_rank_tail(60)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("blocks", [6, 20, 60])
def test_p_values_agree_with_scipy(blocks: int) -> None:
    d = np.random.default_rng(blocks).normal(0.02, 0.1, size=blocks)
    found = block_log_ratio(d, margin=0.05)
    for p, data, side in (
        (found.p_noninferior, d + 0.05, "greater"),
        (found.p_superior, d - 0.05, "greater"),
        (found.p_worse, d, "less"),
    ):
        assert p == pytest.approx(stats.wilcoxon(data, alternative=side, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_bounds_are_where_the_test_turns(alpha: float) -> None:
    d = np.random.default_rng(15).normal(size=20)
    found = block_log_ratio(d, margin=0.05, alpha=alpha)
    for bound, sign in ((float(found.lower), 1.0), (float(found.upper), -1.0)):
        shifted = sign * (d - bound)
        just_in = stats.wilcoxon(shifted - 1e-9, alternative="greater", method="exact").pvalue
        just_out = stats.wilcoxon(shifted + 1e-9, alternative="greater", method="exact").pvalue
        assert just_out <= alpha < just_in
    assert found.effect == pytest.approx(np.median([(a + b) / 2 for i, a in enumerate(d) for b in d[i:]]))
    ordinary = block_log_ratio(d, margin=0.05).upper - block_log_ratio(d, margin=0.05).lower
    assert found.se == pytest.approx(ordinary / (2 * 1.6448536), rel=1e-6)


def test_ties_and_zeros_count_against_the_candidate_passing_and_against_blocking_it() -> None:
    d = np.array([0.0, 0.0, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5])
    found = block_log_ratio(d, margin=0.1)
    # Only pairs with a loss on average are evidence of one: 36 Walsh averages, 6 of them among the zeros.
    assert found.p_worse == signed_rank_tail(8)[30]
    at_margin = block_log_ratio(d - 0.25, margin=0.25)
    assert at_margin.p_noninferior == 1.0  # no Walsh average lies above the margin, six lie on it
    assert found.p_worse > stats.wilcoxon(d, alternative="less", zero_method="wilcox").pvalue


def test_above_sixty_pairs_it_is_t() -> None:
    d = np.random.default_rng(16).normal(size=61)
    found = block_log_ratio(d, margin=0.05)
    expected = clustered_mean(d, Partition.singletons(61), margin=0.05)
    assert (found.lower, found.p_worse, found.df) == (expected.lower, expected.p_worse, 60.0)
    assert block_log_ratio(d[:60], margin=0.05).method != found.method


def test_simulations_one_by_one() -> None:
    d = np.random.default_rng(17).normal(size=(4, 20))
    d[2, 3] = np.nan
    found = block_log_ratio(d, margin=0.05)
    assert found.estimable.tolist() == [True, True, False, True]
    for i in (0, 1, 3):
        assert found.lower[i] == block_log_ratio(d[i], margin=0.05).lower


@pytest.mark.parametrize(
    ("d", "alpha"),
    [
        (np.arange(5.0), 0.05),
        (np.zeros(20), 0.05),
        (np.full(20, 0.3), 0.05),
        (np.where(np.arange(20) < 10, 0.3, np.nextafter(0.3, 1.0)), 0.05),
        (np.append(np.full(19, 0.3), 0.4), 0.05),
        (np.zeros(100), 0.05),
        (np.arange(6.0), 0.01),
        (np.append(np.arange(19.0), np.inf), 0.05),
    ],
    ids=[
        "five",
        "all zero",
        "all equal",
        "all equal but for rounding",
        "all equal but one",
        "many zeros",
        "too few for alpha",
        "infinite",
    ],
)
def test_what_says_nothing_is_not_estimable(d: np.ndarray, alpha: float) -> None:  # type: ignore[type-arg]
    found = block_log_ratio(d, margin=0.05, alpha=alpha)
    assert not found.estimable
    assert np.isnan(found.lower)


def test_a_single_number_is_no_series() -> None:
    with pytest.raises(ValueError, match="last axis"):
        block_log_ratio(0.3, margin=0.05)
