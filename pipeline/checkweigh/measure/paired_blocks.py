"""Pairs of blocks, one after the other, until there are enough. What a block is does not matter here.

With ``timing.grow_to`` the number of pairs is not fixed: the checks are looked at after every ``timing.pairs``, and
measuring ends when they are settled. Each look spends its share of the error rates (``stats.sequential``). The record
therefore says at which fractions of the most pairs there was a look. A look that comes because the time is over is the
last one, whatever it has: when the time ends does not depend on what the checks say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from checkweigh.measure.served_arm import ServedArm
from checkweigh.records.measurement import Block
from checkweigh.records.policy import Timing

Role = Literal["baseline", "candidate"]
ARMS: tuple[Role, Role] = ("baseline", "candidate")
ArmProvider = Callable[
    [Role], ServedArm
]  # the arm, running; where both do not fit, the other one is stopped for it
LookFractions = tuple[float, ...]
Settled = Callable[[tuple[Block, ...], LookFractions], bool]


class GivenUp(Exception):
    """Timing cannot go on, and what it has so far says nothing: why, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """When to stop. ``deadline``: monotonic. ``settled``: whether the checks are, from the blocks and looks so far."""

    timing: Timing
    deadline: float
    settled: Settled = lambda blocks, looks: False
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(slots=True)
class CollectedBlocks:
    """Blocks in their order, the looks spent, and what there is to say."""

    blocks: list[Block] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect_blocks(blocks: Iterable[Block], rules: StopRules, into: CollectedBlocks) -> None:
    """Fill ``into``; what it holds when an exception passes through is what there was."""
    most = rules.timing.looks[-1]
    for block in blocks:
        into.blocks.append(block)
        done = len(into.blocks)
        rules.progress(done, most)
        if done == most:
            break
        if time.monotonic() > rules.deadline:
            into.notes.append(f"stopped after {done} of {most} pairs: the time for it was over")
            break
        if done in rules.timing.looks:
            into.looks.append(done / most)
            if rules.settled(tuple(into.blocks), tuple(into.looks)):
                into.notes.append(f"settled after {done} of at most {most} pairs")
                return
    into.looks.append(1.0)


def arm_order(draw: float) -> Sequence[Role]:
    """The order of the arms in a pair, from a number drawn uniformly from [0, 1)."""
    return ARMS if draw < 0.5 else (ARMS[1], ARMS[0])
