"""Calibration: how far a manifest differs from itself, executed again in other batches and on other threads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from checkweigh.records.base import Digest, Name, Record

HONEST = 3.0  # times the floor: the smallest honest margin ("Noise floors" in docs/statistics.md)
LEAST_KL = 3e-3  # nats: no margin on a divergence is smaller, however quiet the host


class Execution(Record):
    """One execution of the manifest, on an engine of its own."""

    threads: int
    batches: int = Field(description="seed of the batch plan; 0 is the plan of a gate")
    seconds: float


class Floor(Record):
    """One measured quantity's noise: what two executions of one manifest differ by."""

    metric: str
    statistic: str
    evalsets: dict[str, Digest]
    where: dict[str, str] = Field(default_factory=dict)
    contrasts: tuple[float, ...] = Field(
        description="size of the difference, one for each pair of executions"
    )
    floor: float = Field(description="95th percentile of the contrasts")
    honest: float = Field(description="the smallest margin this noise allows")
    upper: float = Field(default=0.0, description="divergence: largest upper bound of a contrast")
    kappa: float = Field(default=0.0, description="divergence: median over all documents and contrasts")


class Calibration(Record):
    """All floors of one manifest on one kind of hardware."""

    schema_: Literal["checkweigh/calibration@1"] = Field(default="checkweigh/calibration@1", alias="schema")
    name: Name
    pins: Digest
    identity: Digest
    hardware: str
    protocol: int
    made: str
    executions: tuple[Execution, ...] = Field(min_length=2)
    floors: tuple[Floor, ...]
    unmeasured: dict[str, str] = Field(default_factory=dict, description="check -> why it has no floor")
