"""Identical arms: what equal outputs everywhere still leave possible."""

from __future__ import annotations

from checkweigh.stats._tails import checked_alpha

MIN_CLUSTERS = 59
"""The fewest identical clusters whose 95% bound on the share that could differ is at most 5%."""


def differing_share_upper(clusters: int, level: float = 0.05) -> float:
    """Upper 1 - level confidence bound on the share of clusters that differ, when none of G did.

    Estimand: the share of clusters, in the population the set was drawn from, on which two independent
    executions differ. Assumptions: clusters drawn independently. 1 - level**(1/G), Clopper-Pearson's bound
    at zero. Degenerate: without clusters the share may be anything: 1. Raises ValueError below 0 clusters.
    """
    if clusters < 0:
        raise ValueError(f"clusters must not be negative, got {clusters}")
    return 1.0 - float(checked_alpha(level) ** (1.0 / clusters)) if clusters else 1.0
