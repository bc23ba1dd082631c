"""One try of a candidate against a baseline under a policy, as the ledger of attempts keeps it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from checkweigh.records.base import Digest, Record
from checkweigh.records.decision import Decision, LookMade


class LedgerEntry(Record):
    """What was tried, what was seen, and what was decided."""

    schema_: Literal["checkweigh/attempt@1"] = Field(default="checkweigh/attempt@1", alias="schema")
    number: int = Field(ge=1)
    of: int = Field(
        ge=1, description="attempts that the policy declared then; 1/of of the error budget was spent"
    )
    plan: Digest = Field(description="frozen before the first look")
    data: Digest = Field(description="of everything that decides what is measured")
    judged: Digest = Field(description="of that, and of the noise floors and rules it was judged by")
    items: dict[str, tuple[str, ...]] = Field(description="set -> a digest of each item's content")
    replicate: int = Field(ge=0)
    begun: str
    looks: tuple[LookMade, ...] = Field(default=(), description="made so far; none without spending")
    decision: Decision | None = Field(default=None, description="None until a verdict was reached")

    @property
    def spent(self) -> bool:
        """Whether somebody may have seen what it came to: an error before the first look spends nothing."""
        return bool(self.looks) or self.decision is not None

    @property
    def words(self) -> str:
        """For people."""
        if self.decision is None:
            return f"attempt {self.number}, {self.begun}: not finished after look {self.looks[-1].number}"
        return f"attempt {self.number}, {self.decision.provenance.ended}: {self.decision.verdict.value}"
