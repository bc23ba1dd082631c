"""Simulation: how often a policy ships, blocks and stays open, for candidates whose truth is known."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from checkweigh.records.base import Digest, Name, Record


class Rates(Record):
    """What one kind of candidate came to in ``runs`` simulated gates. Shares lie in [0, 1]."""

    scenario: str
    check: Name | None = Field(description="the check that is worse; None when all are equal")
    margins: float = Field(description="its true effect in margins, negative is worse")
    runs: int
    ship: float
    block: float
    inconclusive: float
    items: float = Field(description="mean number of items an arm was measured on when the gate stopped")
    share: float = Field(description="that, as a share of all items")
    first_look: float = Field(description="share of runs blocked at the first look")

    def error(self, rate: float) -> float:
        """Monte-Carlo standard error of one of the shares; by one run at 0 and 1, where the formula says 0."""
        spread = (rate * (1.0 - rate) / self.runs) ** 0.5
        return float(max(spread, 1.0 / self.runs))


class Simulation(Record):
    """All scenarios of one policy through the decision code of a gate."""

    schema_: Literal["checkweigh/simulation@1"] = Field(default="checkweigh/simulation@1", alias="schema")
    policy: Digest
    policy_name: str
    seed: int
    runs: int
    correlation: float = Field(description="between the checks' estimates, whatever sets they are on")
    items: int = Field(description="items of all sets together")
    looks: tuple[float, ...]
    noise: dict[str, str] = Field(
        description="set and metric -> what was drawn, and where that is known from"
    )
    left_out: dict[str, str] = Field(default_factory=dict, description="check -> why it was not drawn")
    scenarios: tuple[Rates, ...]
