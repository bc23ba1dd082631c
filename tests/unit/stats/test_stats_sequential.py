"""Boundaries against published ones, and against simulated walks."""

from __future__ import annotations

import numpy as np
import pytest

from checkweigh.stats.sequential import alpha_spent, spending_boundary


def test_five_equal_looks_are_the_published_ones() -> None:
    assert spending_boundary([0.2, 0.4, 0.6, 0.8, 1.0], 0.025) == pytest.approx(
        [4.8769, 3.3570, 2.6803, 2.2898, 2.0310], abs=1e-4
    )


def test_the_designs_own_looks() -> None:
    """The levels in "Looks" of docs/statistics.md: z = 3.750, 2.540, 1.662 at t = .25, .5, 1."""
    assert spending_boundary([0.25, 0.5, 1.0], 0.05) == pytest.approx([3.750, 2.540, 1.662], abs=5e-4)


def test_one_look_is_the_plain_test() -> None:
    assert spending_boundary([1.0], 0.05) == pytest.approx([1.6448536], abs=1e-6)
    assert alpha_spent(1.0, 0.05) == pytest.approx(0.05)
    assert alpha_spent(0.25, 0.05) == pytest.approx(8.86e-5, rel=1e-2)


@pytest.mark.parametrize("fractions", [[0.125, 0.25, 0.5, 1.0], [0.3, 0.31, 1.0], [0.9, 1.0]])
def test_walks_cross_as_often_as_promised(fractions: list[float]) -> None:
    rng = np.random.default_rng(1)
    t = np.array(fractions)
    steps = rng.normal(size=(400_000, len(t))) * np.sqrt(np.diff(t, prepend=0))
    z = steps.cumsum(axis=1) / np.sqrt(t)
    crossed = (z > spending_boundary(fractions, 0.05)).any(axis=1).mean()
    assert crossed == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 400_000))


@pytest.mark.parametrize(
    "fractions", [[], [0.5], [0.5, 0.5, 1.0], [0.0, 1.0], [1.0, 0.5], [0.5, 1.5], [float("nan"), 1.0]]
)
def test_looks_that_are_no_plan_are_refused(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="fractions"):
        spending_boundary(fractions, 0.05)
