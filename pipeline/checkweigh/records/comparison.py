"""Comparison: what two arms' paired samples say about one check. Absent evidence is a type."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from checkweigh.records.base import Record


class Estimate(Record):
    """An estimated difference, oriented so that higher is better, in the check's scale.

    ``low`` (and ``p_pass``) count a candidate's failures as the worst value and a baseline's as the best;
    ``effect``, ``high`` and ``p_worse`` leave failed pairs out ("Failed items are evidence" in docs/statistics.md).
    """

    kind: Literal["estimate"] = "estimate"
    effect: float
    low: float | None = Field(description="one-sided lower confidence bound; None when failures forbid one")
    high: float = Field(description="one-sided upper confidence bound")
    confidence: float = Field(
        description="of the lower bound; of the upper one too where it has none of its own"
    )
    confidence_high: float | None = Field(
        default=None, description="of the upper bound, where looks give either test a level of its own"
    )
    method: str
    pairs: int
    clusters: int
    effective_clusters: float
    design_effect: float
    se: float = Field(description="standard error of the effect, clusters counted")
    flips: int | None = None
    p_pass: float = Field(description="p of the hypothesis that the check's pass condition does not hold")
    p_worse: float = Field(description="p of 'not worse'; small when the candidate is worse")
    p_better: float | None = Field(default=None, description="equivalence only: p of 'not better'")
    baseline: float
    candidate: float
    failed_baseline: int = 0
    failed_candidate: int = 0
    exclusions: tuple[str, ...] = ()


class Identical(Record):
    """Two independent executions gave equal raw outputs on every item."""

    kind: Literal["identical"] = "identical"
    pairs: int
    clusters: int
    differing_share_upper: float = Field(
        description="upper bound on the share of clusters that could differ, at ``confidence``"
    )
    confidence: float = 0.95
    baseline: float
    candidate: float


class Inestimable(Record):
    """Nothing can be said, and why. Never a pass."""

    kind: Literal["inestimable"] = "inestimable"
    reason: str
    baseline: float | None = None
    candidate: float | None = None


Comparison = Annotated[Estimate | Identical | Inestimable, Field(discriminator="kind")]
