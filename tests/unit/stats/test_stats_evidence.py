"""Evidence that says nothing compares false with everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkweigh.stats import Evidence

NUMBERS = ("effect", "lower", "upper", "p_noninferior", "p_worse", "p_superior", "se", "df", "design_effect")


def evidence(**changes: Any) -> Evidence:
    fine: dict[str, Any] = {
        "effect": 0.0, "lower": -1.0, "upper": 1.0, "p_noninferior": 0.1, "p_worse": 0.5, "p_superior": 0.9,
        "se": 0.5, "df": np.inf, "design_effect": 1.0, "estimable": True,
        "n": 9, "clusters": 9, "g_eff": 9.0, "method": "test",
    }  # fmt: skip
    return Evidence(**(fine | changes))


def test_sound_numbers_stay_and_infinite_degrees_of_freedom_are_the_normal() -> None:
    sound = evidence()
    assert bool(sound.estimable)
    assert sound.effect.shape == ()
    assert np.isposinf(sound.df)


@pytest.mark.parametrize("name", NUMBERS)
def test_one_missing_number_voids_all(name: str) -> None:
    void = evidence(**{name: np.nan})
    assert not void.estimable
    assert all(np.isnan(getattr(void, each)) for each in NUMBERS)
    assert not void.lower > -1e9
    assert not void.p_worse < 2.0


@pytest.mark.parametrize("changes", [{"lower": 1.0}, {"lower": 2.0}, {"lower": -np.inf}, {"se": np.inf}])
def test_an_interval_without_width_or_without_an_end_is_no_evidence(changes: dict[str, float]) -> None:
    assert not evidence(**changes).estimable


def test_each_simulation_is_judged_by_itself() -> None:
    both = evidence(effect=np.array([0.0, 0.0]), estimable=np.array([True, False]), flips=np.array([3, 4]))
    assert both.estimable.tolist() == [True, False]
    assert both.lower[0] == -1.0
    assert np.isnan(both.lower[1])
    assert both.flips is not None
    assert both.flips.tolist() == [3, 4]


def test_the_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        evidence(effect=np.zeros(2)).lower[0] = 5.0
