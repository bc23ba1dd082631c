"""Holm's procedure and the bound for identical arms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from checkweigh.stats import MIN_CLUSTERS, differing_share_upper, holm


@pytest.mark.parametrize("checks", [1, 2, 7, 30])
def test_holm_agrees_with_statsmodels(checks: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(checks).uniform(0.0, 0.2, size=(5, checks)) ** 2
    expected = np.stack([multipletests(row, method="holm")[1] for row in p])
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)


def test_holms_own_steps() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_a_missing_p_counts_as_one_and_does_not_shrink_the_family() -> None:
    np.testing.assert_allclose(holm([0.01, np.nan, np.nan]), [0.03, 1.0, 1.0])
    np.testing.assert_array_equal(holm([np.nan]), [1.0])


@pytest.mark.parametrize("p", [[-0.1], [1.1], 0.05])
def test_what_is_no_family_of_p_values_is_an_error(p: object) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm(p)  # type: ignore[arg-type]


def test_identical_arms_leave_this_much_open() -> None:
    assert MIN_CLUSTERS == 59
    assert differing_share_upper(MIN_CLUSTERS) <= 0.05 < differing_share_upper(MIN_CLUSTERS - 1)
    assert differing_share_upper(0) == 1.0
    assert differing_share_upper(1) == pytest.approx(0.95)
    for clusters, level in ((59, 0.05), (20, 0.01)):
        exact = stats.binomtest(0, clusters).proportion_ci(1 - 2 * level, method="exact").high
        assert differing_share_upper(clusters, level) == pytest.approx(exact)
    with pytest.raises(ValueError, match="negative"):
        differing_share_upper(-1)
    with pytest.raises(ValueError, match="alpha"):
        differing_share_upper(59, 0.0)
