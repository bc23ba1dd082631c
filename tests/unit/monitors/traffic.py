"""Simulated traffic of two arms: finished requests with drawn times, shown to a comparison as they end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from checkweigh.monitors.arm_comparison import ArmComparison
from checkweigh.monitors.finished_request import EngineOutcome, FinishedRequest

ARMS = ("baseline", "candidate")


@dataclass(kw_only=True)
class Engine:
    """Its times (s), spread by ``sd`` in log; after ``stalls`` tokens nothing comes."""

    first: float = 0.1
    token: float = 0.02
    sd: float = 0.2
    stalls: float = math.inf


def outcome(arm: str, became: str = "ok", *, trips: int = 0, degraded: bool = False) -> EngineOutcome:
    """What ``arm`` did: ``ok``, ``failed`` by the engine, or anything else."""
    return EngineOutcome(
        arm=arm, answered=became == "ok", failed=became == "failed", degraded=degraded, trips=trips
    )


def request(at: float, own: EngineOutcome, **changed: Any) -> FinishedRequest:
    """One that was sent and ended ``at``, of a session of its own arm, without a token; ``changed`` fields replace."""
    fields: dict[str, Any] = {
        "outcome": own, "assigned": own.arm, "session": "s", "revivals": 0, "stream": True, "given_up": False,
        "tokens": 0, "arrived": at, "sent": at, "first": None, "last": None, "engine_done": at, "finished": at,
        "unhurried": False, "copy_missing": False, "copied": False,
    }  # fmt: skip
    return FinishedRequest(**fields | changed)


@dataclass
class Service:
    """Two arms that are compared, with the default policy's limits."""

    rng: random.Random
    now: float = 1000.0
    share: float = 0.5
    leave_with_first: dict[str, float] = field(default_factory=dict)  # share of an arm's clients
    fired: str = ""

    def __post_init__(self) -> None:
        self.comparison = ArmComparison(share=self.share, margin=0.2, alpha=0.05, least=30)

    def show(self, finished: FinishedRequest, trips: int = 0) -> str:
        """Show one request; why the candidate was switched off, by this or an earlier one."""
        self.fired = self.fired or self.comparison.add(finished, trips=trips)
        return self.fired

    def revive(self) -> None:
        self.fired = ""
        self.comparison.restart()

    def serve(
        self,
        baseline: Engine,
        candidate: Engine,
        *,
        seconds: float,
        patience: Callable[[str], float] = lambda arm: math.inf,
        stream: bool = True,
        degraded: Callable[[float, str], bool] = lambda at, arm: False,
        share: float = 0.5,
    ) -> str:
        """Twenty requests a second for so long; why the candidate was switched off."""
        ended = []
        for i in range(int(20 * seconds)):
            at = self.now + i / 20
            arm = "candidate" if self.rng.random() < share else "baseline"
            engine = candidate if arm == "candidate" else baseline
            ended.append(self.draw(at, arm, engine, patience(arm), stream=stream, degraded=degraded(at, arm)))
        for finished in sorted(ended, key=lambda one: one.finished):
            self.now = max(self.now, finished.finished)
            self.show(finished)
        return self.fired

    def draw(
        self, at: float, arm: str, engine: Engine, patience: float = math.inf, *, stream: bool = True,
        degraded: bool = False,
    ) -> FinishedRequest:  # fmt: skip
        """One request that came ``at``, whose client leaves after ``patience`` seconds."""
        drawn = self.rng.lognormvariate
        first, token = drawn(math.log(engine.first), engine.sd), drawn(math.log(engine.token), engine.sd)
        tokens = 8 if degraded else self.rng.randint(20, 60)
        total = first + token * (tokens - 1) if tokens <= engine.stalls else math.inf
        if self.rng.random() < self.leave_with_first.get(arm, 0):
            patience = first + 0.0003
        gone = patience < total
        end = min(total, patience)
        begun = first <= end if stream else not gone
        came = 0 if not begun else min(tokens, engine.stalls, 1 + (end - first) // token) if gone else tokens
        return request(
            at + end, outcome(arm, "gone" if gone else "ok", degraded=degraded), arrived=at, sent=at,
            stream=stream, given_up=gone, tokens=int(came),
            first=None if not begun else at + (first if stream else end),
            last=None if not begun else at + (first + token * (came - 1) if stream else end),
        )  # fmt: skip
