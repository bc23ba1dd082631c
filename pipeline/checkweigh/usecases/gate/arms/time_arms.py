"""Time both arms of a gate against each other: one lock a host, both up where they fit, by restarts where not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.decision.verdict import decide, last_look
from checkweigh.engines import host_memory
from checkweigh.errors import EngineError
from checkweigh.files import lock
from checkweigh.measure.arrivals import PromptSupply
from checkweigh.measure.load_pairs import PairUnderLoad, run_load
from checkweigh.measure.paired_blocks import (
    ARMS,
    ArmProvider,
    LookFractions,
    Role,
    StopRules,
)
from checkweigh.measure.served_arm import ServedArm
from checkweigh.measure.sweep import knee_sentences, sweep
from checkweigh.measure.timing import run_pairs
from checkweigh.progress import Progress
from checkweigh.records.evalset import Generation, Message
from checkweigh.records.measurement import Block, PairedRun, Scored, SweepPoint
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Policy
from checkweigh.sources.load_trace import TraceRequest
from checkweigh.usecases.gate.arms.engine_session import EngineSession, start_together
from checkweigh.usecases.gate.measured import Measured

TIMING_WAIT_S = 1800
BY_RESTARTS = (
    "both arms do not fit into this host's memory at once: one was stopped whenever the other was timed"
)
SWEEP_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPrompts:
    """What is sent while timing: conversations, a trace's rows where one is replayed; ``sweep`` beyond the pairs."""

    conversations: Sequence[tuple[Message, ...]]
    rows: Sequence[TraceRequest] = ()
    sweep: bool = False


def needs_timing(policy: Policy) -> bool:
    """Whether a check looks at timing, memory or a rate."""
    return any(METRICS[check.metric].estimator == "blocks" for check in policy.checks)


def answered_by_both(measured: Measured) -> list[tuple[Message, ...]]:
    """Conversations to time: those that both arms answered. One that fails is a failed item, not a slow one."""
    answered = {
        role: {
            (name, o.item)
            for name, r in measured.records[role].items()
            for o in r.observations
            if isinstance(o.outcome, Scored)
        }
        for role in ARMS
    }
    return [
        item.messages
        for evalset in measured.sets
        for item in evalset.items
        if isinstance(item, Generation)
        and all((evalset.card.name, item.id) in items for items in answered.values())
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The pairs of blocks; ``late``: the gate's own time ended them before the checks were settled."""

    run: PairedRun
    late: bool


def time_arms(
    policy: Policy,
    sessions: Mapping[str, EngineSession],
    prompts: TimingPrompts,
    progress: Progress,
    *,
    deadline: float,
) -> Timed:
    """Blocks of both arms in turn, until the policy's timing checks are settled or the time for them is over.

    ``deadline``: of the gate, in monotonic seconds; the policy's ``timing.max_seconds`` ends timing too. An engine that
    fails is started again once, and timing with it. Raises the EngineError of its second failure, and HostBusy when
    another gate times on this host for half an hour.
    """
    with lock(
        Path(tempfile.gettempdir()) / "checkweigh-timing.lock",
        timeout_s=TIMING_WAIT_S,
        what="is timing on this host",
        waiting=lambda: progress("timing: another checkweigh is timing on this host; waiting for it", 0, 0),
    ):
        swapped = host_memory.swap_activity()
        while True:
            turn, alone = _turns(sessions)
            rules = StopRules(  # after the starts: a server on a GPU compiles for longer than it is timed
                timing=policy.timing,
                deadline=min(time.monotonic() + policy.timing.max_seconds, deadline),
                settled=lambda blocks, looks: settled(policy, blocks, looks),
                progress=lambda done, total: progress("timing, both arms", done, total),
            )
            try:
                run = _run(turn, prompts, rules, policy.seed)
            except EngineError as error:
                sessions[error.arm or "baseline"].count_failure(error)
                continue
            late = rules.deadline == deadline < time.monotonic() and _unfinished(run, policy)
            notes = [*run.notes, *([BY_RESTARTS] if alone else [])]
            if moved := host_memory.swap_activity() - swapped:
                notes.append(f"warning: this host moved {moved / 2**20:,.0f} MiB to and from swap meanwhile")
            return Timed(run=run.model_copy(update={"notes": tuple(notes)}), late=late)


def _unfinished(run: PairedRun, policy: Policy) -> bool:
    """Whether there are fewer pairs than planned although the checks were not settled."""
    return len(run.blocks) < policy.timing.looks[-1] and run.looks[-1] == 1.0


def _run(turn: ArmProvider, prompts: TimingPrompts, rules: StopRules, seed: int) -> PairedRun:
    load = rules.timing.load
    if load is None:
        return run_pairs(turn, prompts.conversations, rules, seed)
    supply = PromptSupply.of(prompts.conversations, prompts.rows, turn("baseline").encode)
    loaded = PairUnderLoad(arm_for=turn, supply=supply, rules=rules, seed=seed, load=load)
    run = run_load(loaded)
    if not prompts.sweep or not run.blocks:
        return run
    points: list[SweepPoint] = []
    notes = []
    try:
        points.extend(sweep(loaded, SWEEP_S))
    except EngineError as error:  # the pairs are measured, and no check rests on the sweep
        notes.append(f"the sweep ended early: {error}")
    return run.model_copy(
        update={"sweep": tuple(points), "notes": (*run.notes, *knee_sentences(points), *notes)}
    )


def _turns(sessions: Mapping[str, EngineSession]) -> tuple[ArmProvider, bool]:
    """How an arm's turn comes, and whether the arms take turns in memory as well.

    Both run where both fit. Otherwise an arm is started when its turn comes, after the other one was stopped; each
    fitted alone when it was measured, so that being refused for memory then is the engine's failure again.
    """
    if start_together([sessions[role] for role in ARMS]):
        return lambda role: sessions[role].running(), False
    return _alone(sessions), True


def _alone(sessions: Mapping[str, EngineSession]) -> Callable[[Role], ServedArm]:
    def turn(role: Role) -> ServedArm:
        for other in ARMS:
            if other != role:
                sessions[other].close()
        return sessions[role].survive(lambda arm: arm)

    return turn


def settled(policy: Policy, blocks: tuple[Block, ...], looks: LookFractions) -> bool:
    """Whether the timing checks need no more pairs: one of them blocks, or all critical ones pass.

    Judged as the gate will be, over all of its checks; those that are not timed count as saying nothing.
    """
    timed = [check for check in policy.checks if METRICS[check.metric].estimator == "blocks"]
    run = PairedRun(
        seed=policy.seed, blocks=blocks, seconds=0.0, looks=looks, planned_looks=len(policy.timing.looks)
    )
    levels = last_look(policy).levels
    judgement = decide(
        policy, {check.id: compare_blocks(check, run, alpha=levels[check.id]) for check in timed}
    )
    gating = [result for result in judgement.results if result.gating and result.check in timed]
    critical = [r for r in gating if r.check.tier == "critical"]
    return any(r.outcome == "blocked" for r in gating) or (
        bool(critical) and all(r.outcome in ("passed", "warning") for r in critical)
    )
