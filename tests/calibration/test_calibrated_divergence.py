"""The typical divergence: log-normal documents, heavy tails, ruined ones, works of several documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from checkweigh.stats.estimators.mean_kl import KAPPA, divergence_evidence
from checkweigh.stats.partition import Partition

Array = np.ndarray[Any, Any]
Claim = Callable[..., float]
MARGIN, FLOOR = 0.05, 0.002
CELLS = [(120, 1, "normal"), (120, 1, "heavy"), (300, 1, "heavy"), (240, 2, "normal"), (300, 3, "normal")]


def works(documents: int, each: int) -> Partition:
    return Partition(np.arange(documents) // each, np.full(documents // each, each))


def divergences(rng: np.random.Generator, runs: int, partition: Partition, theta: float, tails: str) -> Array:
    """(runs, documents) with a typical divergence of exactly theta; heavy: a t(3) on the log scale."""
    shape = (runs, partition.n)
    noise = rng.normal(size=shape) if tails == "normal" else rng.standard_t(3, size=shape) / np.sqrt(3.0)
    shared = rng.normal(size=(runs, partition.clusters))[:, partition.codes]
    common = 0.0 if partition.clusters == partition.n else 0.4
    return np.maximum(np.exp(np.log(theta) + 0.6 * noise + common * shared) - KAPPA, 0)


@pytest.mark.parametrize(("documents", "each", "tails"), CELLS)
def test_five_percent_pass_at_the_margin(
    documents: int, each: int, tails: str, runs: int, close_to: Claim, at_most: Claim
) -> None:
    partition = works(documents, each)
    rng = np.random.default_rng([401, documents, each, len(tails)])
    found = divergence_evidence(
        divergences(rng, runs, partition, MARGIN, tails), partition, margin=MARGIN, floor=FLOOR
    )
    close_to(-found.lower < MARGIN, 0.05)
    at_most(found.p_noninferior < 0.05, 0.05)
    close_to(-found.upper > MARGIN, 0.05)


@pytest.mark.parametrize(("documents", "each", "tails"), CELLS)
def test_noise_at_the_floor_is_not_worse(
    documents: int, each: int, tails: str, runs: int, close_to: Claim
) -> None:
    partition = works(documents, each)
    rng = np.random.default_rng([402, documents, each, len(tails)])
    found = divergence_evidence(
        divergences(rng, runs, partition, FLOOR, tails), partition, margin=MARGIN, floor=FLOOR
    )
    close_to(found.p_worse < 0.05, 0.05)
    assert (found.p_noninferior < 0.05).all(), "noise passes"


def test_the_arithmetic_mean_would_pass_far_more(runs: int) -> None:
    """Why it is the geometric mean: with a heavy tail the plain t test on the same documents has no such size."""
    partition = works(120, 1)
    rng = np.random.default_rng(403)
    kl = np.exp(1.6 * rng.normal(size=(runs, 120)))
    mean, truth = kl.mean(axis=1), np.exp(1.6**2 / 2)
    upper = mean + 1.658 * kl.std(axis=1, ddof=1) / np.sqrt(120)
    assert (upper < truth).mean() > 0.10
    assert partition.n == 120


def test_a_tenth_of_ruined_documents_does_not_pass(runs: int, at_most: Claim) -> None:
    partition = works(300, 1)
    rng = np.random.default_rng(404)
    kl = divergences(rng, runs, partition, MARGIN / 10, "normal")
    ruined = rng.random(kl.shape) < 0.10
    found = divergence_evidence(np.where(ruined, 50 * MARGIN, kl), partition, margin=MARGIN, floor=FLOOR)
    at_most(found.p_noninferior < 0.05, 0.05)
    assert (-found.lower < MARGIN).mean() > 0.9, "the geometric mean alone would have let them pass"
