"""Load: when requests arrive, what a user would call fast enough, and when a block is given up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from checkweigh.records.base import Record

Rate = Annotated[float, Field(gt=0, le=100_000, description="requests a second, on average")]


class Poisson(Record):
    """Arrivals that know nothing of each other."""

    kind: Literal["poisson"]
    rate: Rate


class Bursts(Record):
    """Arrivals in clumps: gaps are Gamma-distributed."""

    kind: Literal["bursts"]
    rate: Rate
    variation: float = Field(
        gt=1, le=100, description="squared coefficient of variation of the gaps; 1 would be Poisson"
    )


class Trace(Record):
    """Arrivals and lengths of recorded traffic, a window of it for each pair of blocks."""

    kind: Literal["trace"]
    file: str = Field(
        min_length=1,
        description="CSV with TIMESTAMP, ContextTokens, GeneratedTokens; relative to the policy",
    )
    speed: float = Field(default=1.0, gt=0, le=10_000, description="2 replays an hour in thirty minutes")
    max_prompt_tokens: int = Field(default=1024, ge=1, le=10_000_000, description="longer prompts are cut")
    max_output_tokens: int = Field(default=256, ge=2, le=1_000_000, description="longer replies are cut")


Arrivals = Annotated[Poisson | Bursts | Trace, Field(discriminator="kind")]


class Objective(Record):
    """What a request must keep to count as goodput, in seconds; times run from when it should have been sent."""

    ttft: float | None = Field(default=None, gt=0)
    tpot: float | None = Field(default=None, gt=0)
    e2e: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _something(self) -> Objective:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise ValueError("at least one of ttft, tpot and e2e")
        return self


class Load(Record):
    """An open loop: requests are sent when they are due, whether or not earlier ones were answered."""

    arrivals: Arrivals
    slo: Objective
    timeout: float = Field(
        default=60, gt=0, le=3600, description="seconds a request may take from when it is due"
    )
    washout: float = Field(default=1, ge=0, le=600, description="seconds of silence before each block")
    max_late: float = Field(
        default=0.05,
        gt=0,
        description="seconds; a block of which more than 1% was sent later than this is unusable",
    )
