"""How many simulations a cell gets, and how far a rate may lie from what is claimed.

Every generator is seeded, so a cell either always passes or always fails; the bands say how far chance alone
would have taken it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

RUNS = 2000 if os.environ.get("CHECKWEIGH_LONG") == "1" else 400
Hits = np.ndarray[Any, np.dtype[np.bool_]]
Claim = Callable[..., float]


def _band(rate: float, runs: int) -> float:
    return 3.0 * math.sqrt(rate * (1.0 - rate) / runs)


@pytest.fixture(scope="session")
def runs() -> int:
    """Simulations a cell: 400, or 2000 with CHECKWEIGH_LONG=1."""
    return RUNS


@pytest.fixture(scope="session")
def at_most() -> Claim:
    """``at_most(hits, claim)``: the share of hits is no more than claimed, three standard errors allowed."""

    def check(hits: Hits, claim: float) -> float:
        rate = float(np.mean(hits))
        assert rate <= claim + _band(claim, np.size(hits)), f"{rate:.4f} of {np.size(hits)}, claimed {claim}"
        return rate

    return check


@pytest.fixture(scope="session")
def at_least() -> Claim:
    """``at_least(hits, claim)``: the share of hits is no less than claimed, three standard errors allowed."""

    def check(hits: Hits, claim: float) -> float:
        rate = float(np.mean(hits))
        assert rate >= claim - _band(claim, np.size(hits)), f"{rate:.4f} of {np.size(hits)}, claimed {claim}"
        return rate

    return check


@pytest.fixture(scope="session")
def close_to(at_most: Claim, at_least: Claim) -> Claim:
    """``close_to(hits, claim)``: three standard errors to either side."""

    def check(hits: Hits, claim: float) -> float:
        at_least(hits, claim)
        return at_most(hits, claim)

    return check
