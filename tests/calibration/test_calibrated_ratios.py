"""Log-perplexity: long and short documents, heavy tails, works of several documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from checkweigh.stats import Partition, ratio_difference

Array = np.ndarray[Any, Any]
Claim = Callable[..., float]
MARGIN = 0.03


def lengths(documents: int) -> Array:
    """Tokens of each document: log-normal, clipped to 50..4000 as a context window would."""
    return np.clip(np.random.default_rng(documents).lognormal(6.0, 1.0, documents), 50, 4000).round()


def losses(rng: np.random.Generator, runs: int, tokens: Array, partition: Partition, tails: str) -> Array:
    """Gain in nats a token of each document, (runs, documents), mean 0; shorter documents are noisier."""
    shape = (runs, tokens.size)
    noise = rng.normal(size=shape) if tails == "normal" else rng.standard_t(3, size=shape) / np.sqrt(3.0)
    shared = rng.normal(size=(runs, partition.clusters))[:, partition.codes]
    common = 0.0 if partition.clusters == tokens.size else 0.12
    return 0.1 * noise * (400.0 / tokens) ** 0.25 + common * shared


def works(documents: int, each: int) -> Partition:
    return Partition(np.arange(documents) // each, np.full(documents // each, each))


CELLS = [(96, 1, "normal"), (96, 1, "heavy"), (200, 2, "heavy"), (400, 4, "normal"), (400, 4, "heavy")]


@pytest.mark.parametrize(("documents", "each", "tails"), CELLS)
def test_each_cell_ships_five_percent_at_the_margin(
    documents: int, each: int, tails: str, runs: int, close_to: Claim
) -> None:
    tokens, partition = lengths(documents), works(documents, each)
    rng = np.random.default_rng([301, documents, each, len(tails)])
    gain = (losses(rng, runs, tokens, partition, tails) - MARGIN) * tokens
    found = ratio_difference(gain, tokens, partition, margin=MARGIN)
    assert found.g_eff > 40
    close_to(found.lower > -MARGIN, 0.05)
    close_to(found.upper < -MARGIN, 0.05)


def test_all_cells_together_leave_a_narrower_band(runs: int, close_to: Claim) -> None:
    hits = []
    for documents, each, tails in CELLS:
        tokens, partition = lengths(documents), works(documents, each)
        rng = np.random.default_rng([302, documents, each, len(tails)])
        gain = (losses(rng, runs, tokens, partition, tails) - MARGIN) * tokens
        hits.append(ratio_difference(gain, tokens, partition, margin=MARGIN).lower > -MARGIN)
    close_to(np.concatenate(hits), 0.05)


def test_documents_of_one_work_are_not_independent(runs: int) -> None:
    """The simulation can fail: the same data with every document its own cluster."""
    tokens, partition = lengths(400), works(400, 4)
    rng = np.random.default_rng(303)
    gain = (losses(rng, runs, tokens, partition, "normal") - MARGIN) * tokens
    naive = ratio_difference(gain, tokens, Partition.singletons(400), margin=MARGIN)
    assert np.mean(naive.lower > -MARGIN) > 0.09


def test_known_failure_a_few_ruined_documents(runs: int, fails: Claim) -> None:
    """5% of the documents lose .5 nats a token, the others gain a little: true loss exactly the margin.

    Measured with 4,000 runs: 19% ship with 96 documents, 18% with 200 in works of two. KL has a guard against
    it, log-perplexity has none: recorded, so that a change is noticed.
    """
    tokens = lengths(96)
    rng = np.random.default_rng(304)
    ruined = rng.random((runs, 96)) < 0.05
    gain = np.where(ruined, -0.5, 0.0) + 0.025 - MARGIN + 0.03 * rng.normal(size=(runs, 96))
    found = ratio_difference(gain * tokens, tokens, Partition.singletons(96), margin=MARGIN)
    fails(found.lower > -MARGIN, 0.12, 0.27, 0.05)
