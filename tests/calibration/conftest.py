"""How many simulations a cell gets, how far a rate may lie from what is claimed, and what the long tier publishes.

Every generator is seeded, so a cell either always passes or always fails; the bands say how far chance alone would have
taken it. ``pytest tests/calibration -m long`` runs 2,000 simulations a cell instead of 400; with
CHECKWEIGH_CALIBRATION_JSON=FILE every rate that was held against a claim is written there.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Hits = np.ndarray[Any, np.dtype[np.bool_]]
Claim = Callable[..., float]
FOUND: list[dict[str, Any]] = []


def _band(rate: float, runs: int) -> float:
    return 3.0 * math.sqrt(rate * (1.0 - rate) / runs)


@pytest.fixture(scope="session", params=[400, pytest.param(2000, marks=pytest.mark.long)])
def runs(request: pytest.FixtureRequest) -> int:
    """Simulations a cell: 400, or 2,000 with ``-m long``."""
    return int(request.param)


def _said(depth: int) -> str:
    """The first argument of the claim as it stands in the test: what was counted."""
    context = inspect.stack()[depth].code_context or [""]
    found = re.search(r"\w+\((.*), [^,]+\)$", context[0].split("  #")[0].strip())
    return found.group(1) if found else ""


def _note(request: pytest.FixtureRequest, kind: str, hits: Hits, claim: float) -> float:
    rate = float(np.mean(hits))
    test, _, cell = request.node.nodeid.split("/")[-1].partition("[")
    cell = re.sub(r"^(400|2000)-?|-?(400|2000)$", "", cell.rstrip("]"))
    found = {"kind": kind, "claim": claim, "rate": rate, "of": int(np.size(hits))}
    FOUND.append({"test": test, "cell": cell, "what": _said(3), **found})
    return rate


@pytest.fixture
def at_most(request: pytest.FixtureRequest) -> Claim:
    """``at_most(hits, claim)``: the share of hits is no more than claimed, three standard errors allowed."""

    def check(hits: Hits, claim: float) -> float:
        rate = _note(request, "at most", hits, claim)
        assert rate <= claim + _band(claim, np.size(hits)), f"{rate:.4f} of {np.size(hits)}, claimed {claim}"
        return rate

    return check


@pytest.fixture
def at_least(request: pytest.FixtureRequest) -> Claim:
    """``at_least(hits, claim)``: the share of hits is no less than claimed, three standard errors allowed."""

    def check(hits: Hits, claim: float) -> float:
        rate = _note(request, "at least", hits, claim)
        assert rate >= claim - _band(claim, np.size(hits)), f"{rate:.4f} of {np.size(hits)}, claimed {claim}"
        return rate

    return check


@pytest.fixture
def close_to(request: pytest.FixtureRequest) -> Claim:
    """``close_to(hits, claim)``: three standard errors to either side."""

    def check(hits: Hits, claim: float) -> float:
        rate = _note(request, "close to", hits, claim)
        assert abs(rate - claim) <= _band(claim, np.size(hits)), (
            f"{rate:.4f} of {np.size(hits)}, claimed {claim}"
        )
        return rate

    return check


@pytest.fixture
def fails(request: pytest.FixtureRequest) -> Claim:
    """``fails(hits, low, high, claim)``: a failure that is known and published: between low and high, not ``claim``."""

    def check(hits: Hits, low: float, high: float, claim: float) -> float:
        rate = _note(request, "known failure", hits, claim)
        assert low < rate < high, f"{rate:.4f} of {np.size(hits)}, known as {low} to {high}"
        return rate

    return check


@pytest.fixture
def publish(request: pytest.FixtureRequest) -> Callable[[dict[str, float]], None]:
    """``publish(numbers)``: a row of a table, beside the claims."""

    def keep(numbers: dict[str, float]) -> None:
        test = request.node.nodeid.split("/")[-1].partition("[")
        FOUND.append({"test": test[0], "kind": "table", "numbers": numbers})

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was found, where that is asked for."""
    path = os.environ.get("CHECKWEIGH_CALIBRATION_JSON")
    if path and FOUND:
        rows = "\n".join(json.dumps(row) + "," for row in FOUND).rstrip(",")
        with open(path, "w") as file:
            file.write(f"[\n{rows}\n]\n")
