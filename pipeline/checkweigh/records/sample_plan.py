"""Plan: what a policy can settle on its sets, before anything is spent on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from checkweigh.records.base import Digest, Name, Record


class PlannedCheck(Record):
    """One gating check. Margins and ``detectable`` are on the scale of the comparison."""

    check: Name
    tier: Literal["critical", "supporting"]
    metric: str
    margin: float
    items: int = Field(description="at hand: items, or pairs of blocks")
    clusters: int
    effective_clusters: float
    design_effect: float
    flips: float | None = Field(default=None, description="share of 0/1 items that change between the arms")
    se: float = Field(description="expected standard error of the difference, clusters counted")
    passes: float | None = Field(
        description="chance that an equal candidate passes it; None: not by being equal"
    )
    needed_80: int | None = Field(description="items for a joint pass of 80% over all critical checks")
    needed_90: int | None
    detectable: float | None = Field(description="smallest margin these items hold at a joint pass of 80%")
    impossible: str = Field(default="", description="why no data at all could pass; empty when some could")
    note: str = ""
    source: str = Field(description="where the noise is known from")


class Expected(Record):
    """What a gate is expected to use, from simulated gates with this noise."""

    candidate: str
    items: float
    minutes: float | None = Field(description="None when nothing has been measured to tell by")


class Plan(Record):
    """All gating checks of a policy together."""

    schema_: Literal["checkweigh/plan@1"] = Field(default="checkweigh/plan@1", alias="schema")
    policy: Digest
    policy_name: str
    looks: tuple[float, ...]
    items: int = Field(description="items of all sets together")
    checks: tuple[PlannedCheck, ...]
    joint: float | None = Field(
        description="chance that an equal candidate passes all critical checks, were they independent"
    )
    minutes: float | None = Field(description="of both arms on all items, what is stored left out")
    cost: str = Field(description="what the minutes rest on")
    expected: tuple[Expected, ...] = ()
    problems: tuple[str, ...] = Field(
        default=(), description="why this plan cannot settle; empty when it can"
    )
