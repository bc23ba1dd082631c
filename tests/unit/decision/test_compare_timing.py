"""Timing: what pairs of blocks say about a check, and when they cannot be compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.builders import check, policy

from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.records.comparison import Estimate, Inestimable
from checkweigh.records.measurement import Block, PairedRun
from checkweigh.records.policy import Check


def blocks(ratio: float, pairs: int = 30, key: str = "tpot.p50", **changes: float) -> PairedRun:
    rng = np.random.default_rng(2)
    first, second = rng.lognormal(0, 0.02, (2, pairs))
    rows = tuple(
        Block(pair=i, order=("baseline", "candidate"), requests=5, baseline={key: float(first[i])},
              candidate={key: float(second[i]) * ratio} | changes)
        for i in range(pairs)
    )  # fmt: skip
    return PairedRun(seed=0, blocks=rows, seconds=1.0)


def timing(**changes: Any) -> Check:
    fields: dict[str, Any] = {
        "metric": "tpot",
        "statistic": "p50",
        "evalset": [],
        "direction": "lower",
        "scale": "relative",
    }
    fields |= {"id": "timing", "tier": "advisory", "min_items": 20, "min_clusters": 6, "margin": 0.2}
    return policy(check(id="other"), check(**fields | changes)).checks[-1]


def estimated(run: PairedRun, **changes: Any) -> Estimate:
    comparison = compare_blocks(timing(**changes), run, alpha=0.05)
    assert isinstance(comparison, Estimate), comparison
    return comparison


def test_timing_compares_logs_of_ratios() -> None:
    slow = estimated(blocks(1.1))
    assert slow.effect == pytest.approx(-math.log(1.1), abs=0.01)
    assert slow.p_pass < 0.05
    assert estimated(blocks(1.3)).p_pass > 0.5


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (None, "timing was not measured"),
        (blocks(1, pairs=5), "5 pairs of blocks, 6 needed"),
        (blocks(1, pairs=0), "0 pairs of blocks"),
        (blocks(1, key="ttft.p50"), "'tpot.p50' is missing"),
        (blocks(1, **{"tpot.p50": 0.0}), "not positive"),
    ],
)
def test_timing_that_cannot_be_compared(run: PairedRun | None, why: str) -> None:
    comparison = compare_blocks(timing(), run, alpha=0.05)
    assert isinstance(comparison, Inestimable)
    assert why in comparison.reason


@pytest.mark.parametrize("needs", [{"min_clusters": 20}, {"min_items": 80}])
def test_fewer_pairs_than_asked_for_may_block_and_never_pass(needs: dict[str, int]) -> None:
    """A slow candidate is what makes a run too long: it must not get away with it."""
    for ratio, worse in ((3.0, True), (1.0, False)):
        found = estimated(blocks(ratio, pairs=15), **needs)
        assert (found.low, found.p_pass, found.pairs) == (None, 1.0, 15)
        assert (found.p_worse < 0.001) is worse
        assert "needed: no pass" in found.exclusions[-1]
    whole = estimated(blocks(1.0, pairs=20), **needs)
    assert whole.low is not None
    assert whole.p_pass < 0.05
