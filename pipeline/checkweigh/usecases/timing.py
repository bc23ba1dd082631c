"""Time both arms of a gate against each other: one lock a host, both up where they fit, by restarts where not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from checkweigh.compare import compare_blocks
from checkweigh.decide import decide
from checkweigh.errors import EngineError, EngineOutOfMemory
from checkweigh.files import lock
from checkweigh.measure.arrivals import Supply
from checkweigh.measure.load_pairs import run_load
from checkweigh.measure.pairs import ARMS, Looks, Role, Rules, Turn
from checkweigh.measure.quality import Arm
from checkweigh.measure.timing import run_pairs
from checkweigh.records.evalset import Message
from checkweigh.records.measurement import Block, PairedRun
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Policy
from checkweigh.sources.trace import Row
from checkweigh.usecases.arms import ArmRun, Progress

TIMING_WAIT_S = 1800
BY_RESTARTS = (
    "both arms do not fit into this host's memory at once: one was stopped whenever the other was timed"
)
Conversations = Sequence[tuple[Message, ...]]


def time_arms(
    policy: Policy,
    runs: Mapping[str, ArmRun],
    conversations: Conversations,
    rows: Sequence[Row],
    progress: Progress,
) -> PairedRun:
    """Blocks of both arms in turn, until the policy's timing checks are settled or its time is over.

    An engine that fails is started again once, and timing with it; the second failure is raised.
    """
    with lock(
        Path(tempfile.gettempdir()) / "checkweigh-timing.lock",
        timeout_s=TIMING_WAIT_S,
        what="is timing on this host",
        waiting=lambda: progress("timing: another checkweigh is timing on this host; waiting for it", 0, 0),
    ):
        rules = Rules(
            timing=policy.timing,
            deadline=min(
                time.monotonic() + policy.timing.max_seconds, *(runs[role].deadline for role in ARMS)
            ),
            settled=lambda blocks, looks: settled(policy, blocks, looks),
            progress=lambda done, total: progress("timing, both arms", done, total),
        )
        while True:
            turn, alone = _turns(runs)
            try:
                run = _run(turn, conversations, rows, rules, policy.seed)
            except EngineError as error:
                runs[error.arm or "baseline"].failed(error)
                continue
            return run.model_copy(update={"notes": (*run.notes, BY_RESTARTS)}) if alone else run


def _run(turn: Turn, conversations: Conversations, rows: Sequence[Row], rules: Rules, seed: int) -> PairedRun:
    if rules.timing.load is None:
        return run_pairs(turn, conversations, rules, seed)
    return run_load(turn, Supply.of(conversations, rows, turn("baseline").encode), rules, seed)


def _turns(runs: Mapping[str, ArmRun]) -> tuple[Turn, bool]:
    """How an arm's turn comes, and whether the arms take turns in memory as well.

    Both run where both fit. Otherwise an arm is started when its turn comes, after the other one was stopped; each
    fitted alone when it was measured, so that being refused for memory then is the engine's failure again.
    """
    try:
        for role in ARMS:
            runs[role].survive(lambda arm: arm)
    except EngineOutOfMemory:
        if not any(run.unfit for run in runs.values()):
            raise
        for role in ARMS:
            runs[role].forgive()
        return _alone(runs), True
    return lambda role: runs[role].running(), False


def _alone(runs: Mapping[str, ArmRun]) -> Callable[[Role], Arm]:
    def turn(role: Role) -> Arm:
        for other in ARMS:
            if other != role:
                runs[other].close()
        return runs[role].survive(lambda arm: arm)

    return turn


def settled(policy: Policy, blocks: tuple[Block, ...], looks: Looks) -> bool:
    """Whether the timing checks need no more pairs: one of them blocks, or all critical ones pass.

    Judged as the gate will be, over all of its checks; those that are not timed count as saying nothing.
    """
    timed = [check for check in policy.checks if METRICS[check.metric].estimator == "blocks"]
    run = PairedRun(
        seed=policy.seed, blocks=blocks, seconds=0.0, looks=looks, planned_looks=len(policy.timing.looks)
    )
    alpha = policy.error_budget.false_pass
    found = decide(policy, {check.id: compare_blocks(check, run, alpha=alpha) for check in timed})
    gating = [result for result in found.results if result.gating and result.check in timed]
    critical = [r for r in gating if r.check.tier == "critical"]
    return any(r.outcome == "blocked" for r in gating) or (
        bool(critical) and all(r.outcome in ("passed", "warning") for r in critical)
    )
