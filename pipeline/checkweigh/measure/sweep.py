"""Goodput against offered load: where each arm's knee is. For people; no check rests on it.

The rate rises by a factor a step. Both arms get the same plan at each rate, in an order drawn anew, until an arm has
fallen: it was over-saturated, or less than ``KNEE`` of what was offered kept the load's slo, twice in a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from checkweigh.measure.arrivals import plan_block
from checkweigh.measure.load_pairs import PairUnderLoad
from checkweigh.measure.paired_blocks import ARMS, Role, arm_order
from checkweigh.records.load_spec import Load, Trace
from checkweigh.records.measurement import KNEE, SweepPoint

FIRST = 0.5  # of the load's own rate
FACTOR = math.sqrt(2.0)
STEPS = 14  # up to 45 times the load's own rate
POINT_SECONDS = 8.0  # a point lasts at least so long: a short one ends before its queue has grown
FALLS = 2


def sweep(loaded: PairUnderLoad, seconds: float) -> Iterator[SweepPoint]:
    """Points of both arms, by rising rate; ends early after ``seconds``."""
    until = time.monotonic() + seconds
    fallen: dict[Role, int] = dict.fromkeys(ARMS, 0)
    for step, scale in enumerate(FIRST * FACTOR**i for i in range(STEPS)):
        order = arm_order(np.random.default_rng([loaded.seed, step, 2]).random())
        for role in order:
            if fallen[role] >= FALLS or time.monotonic() > until:
                continue
            point = _point(loaded, role, step, scale)
            fallen[role] = fallen[role] + 1 if point.fell else 0
            yield point
        if all(count >= FALLS for count in fallen.values()):
            return


def _point(loaded: PairUnderLoad, role: Role, step: int, scale: float) -> SweepPoint:
    timing = loaded.rules.timing
    load = scaled_load(loaded.load, scale)
    rate = _rate(load, loaded, timing.requests)
    requests = max(timing.requests, math.ceil(rate * POINT_SECONDS))
    if isinstance(load.arrivals, Trace):
        requests = min(requests, len(loaded.supply.rows))
    plan = plan_block(
        load, timing.model_copy(update={"requests": requests}), loaded.supply, 0, loaded.seed + step
    )
    offered, values = replace(loaded, load=load).block(role, loaded.arm_for(role), plan)
    return SweepPoint(
        arm=role, offered=rate, goodput=rate * values["goodput"], share=values["goodput"], requests=requests,
        saturated=bool(offered.saturated), late=bool(offered.too_late(load)),
        ttft=values.get("ttft.p50"), e2e=values.get("e2e.p50"),
    )  # fmt: skip


def _rate(load: Load, loaded: PairUnderLoad, requests: int) -> float:
    """Requests a second, on average; of a trace's first window."""
    arrivals = load.arrivals
    if not isinstance(arrivals, Trace):
        return arrivals.rate
    rows = loaded.supply.rows[:requests]
    return len(rows) * arrivals.speed / max(rows[-1].at - rows[0].at, 1e-6)


def scaled_load(load: Load, scale: float) -> Load:
    """The same load, so many times as fast."""
    arrivals = load.arrivals
    faster = (
        {"speed": arrivals.speed * scale} if isinstance(arrivals, Trace) else {"rate": arrivals.rate * scale}
    )
    return load.model_copy(update={"arrivals": arrivals.model_copy(update=faster)})


def knee_sentences(points: Sequence[SweepPoint]) -> Iterator[str]:
    """A sentence for each arm that was swept."""
    for role in ARMS:
        arm_points = [p for p in points if p.arm == role]
        carried = []
        for point in arm_points:
            if point.fell:
                break
            carried.append(point.offered)
        if carried:
            more = "" if len(carried) < len(arm_points) else ", the highest rate tried"
            yield f"the {role}'s knee: {KNEE:.0%} of requests keep the slo up to {carried[-1]:.3g} requests/s{more}"
        elif arm_points:
            yield f"the {role}'s knee lies below {arm_points[0].offered:.3g} requests/s"
