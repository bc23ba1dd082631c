"""Latency of two running servers under load, in interleaved blocks. Never stored for another gate.

1. Every arm is warmed up with part of a plan before its first block, and again after a restart.
2. For each pair of blocks a plan is frozen; both arms get it, in an order drawn anew, after a silence. While one arm
   is under load the other one runs nothing.
3. A pair in which this sender was too late is no measurement: it is measured again, a few times at most.
4. A candidate that the load over-saturates is measured as slow and cannot pass. A baseline that the load
   over-saturates ends the timing: a load that today's server cannot carry tells nothing about tomorrow's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from checkweigh.engines.http.client import (
    Client,
    Deadlines,
    Endpoint,
    Streamed,
    StreamRequest,
)
from checkweigh.engines.protocol import Telemetry
from checkweigh.engines.vllm.server_metrics import require_cold
from checkweigh.errors import EngineError
from checkweigh.measure.arrivals import BlockPlan, PlannedRequest, PromptSupply, plan_block
from checkweigh.measure.block_metrics import block_values, describe_failures, discordant_counts
from checkweigh.measure.open_loop import OfferedBlock, OfferedOutcome, offer
from checkweigh.measure.paired_blocks import (
    ARMS,
    ArmProvider,
    CollectedBlocks,
    GivenUp,
    Role,
    StopRules,
    arm_order,
    collect_blocks,
)
from checkweigh.measure.served_arm import ServedArm
from checkweigh.measure.timing import acceptance_notes, engine_resources, memory_values, paired_run
from checkweigh.records.load_spec import Load, Poisson, Trace
from checkweigh.records.measurement import Block, EngineIdentity, PairedRun

WARM_UP = 10  # requests
WATCH_S = 2.0
KV_USE = re.compile(r"^vllm:kv_cache_usage_perc(?:\{[^}]*\})? ([\d.eE+-]+)$", re.MULTILINE)
REDONE = 10  # one pair in so many may be measured again, and at least two


@runtime_checkable
class HttpEngine(Protocol):
    """An engine that also answers over HTTP."""

    @property
    def endpoint(self) -> Endpoint:
        """Where."""


@dataclass(kw_only=True)
class PairUnderLoad:
    """Both arms under one load. ``redone`` counts the pairs in which the sender was late."""

    arm_for: ArmProvider
    supply: PromptSupply
    rules: StopRules
    seed: int
    load: Load
    redone: int = 0
    why: str = ""
    failed: dict[Role, list[OfferedOutcome]] = field(default_factory=lambda: {role: [] for role in ARMS})

    def pairs(self) -> Iterator[Block]:
        """Pairs of blocks, as many as are taken; they end early with a baseline that cannot carry the load."""
        warm = _WarmArms(self)
        for pair in range(self.rules.timing.looks[-1]):
            plan = plan_block(self.load, self.rules.timing, self.supply, pair, self.seed)
            order = arm_order(np.random.default_rng([self.seed, pair, 1]).random())
            block = None
            while block is None:
                block = self._pair(plan, (order[0], order[1]), warm)
            yield block
            if block.baseline["saturated"]:
                return

    def _pair(self, plan: BlockPlan, order: tuple[Role, Role], warm: _WarmArms) -> Block | None:
        """One pair; None when it has to be measured again. Raises GivenUp when that was too often."""
        offered: dict[Role, OfferedBlock] = {}
        values: dict[Role, dict[str, float]] = {}
        for role in order:
            offered[role], values[role] = self.block(role, warm(role), plan)
            if why := offered[role].too_late(self.load):
                self.redone += 1
                self.why = why
                if self.redone > max(2, self.rules.timing.looks[-1] // REDONE):
                    raise GivenUp(f"in {self.redone} pairs {why}")
                return None
        for role in ARMS:
            self.failed[role] += [o for o in offered[role].outcomes if o.failure]
        return Block(
            pair=plan.pair, order=order, requests=len(plan.requests), plan=plan.digest,
            baseline=values["baseline"], candidate=values["candidate"],
            unlike=discordant_counts(offered["baseline"], offered["candidate"], self.load),
        )  # fmt: skip

    def block(self, role: Role, arm: ServedArm, plan: BlockPlan) -> tuple[OfferedBlock, dict[str, float]]:
        """One block on one arm, after a silence: its outcomes, and its numbers by name.

        Raises EngineError, with ``arm`` set, when the engine is gone.
        """
        time.sleep(self.load.washout)
        before = engine_resources(role, arm, reset_peak=True)
        salt = secrets.token_hex(8)  # of this block: the same plan may have been sent before
        with punctual():
            offered, kv_peak = asyncio.run(_offer_plan(arm, plan, self.load, salt=salt))
        after = engine_resources(role, arm)
        values = block_values(offered, self.load, role) | memory_values(after)
        if before.telemetry is not None and after.telemetry is not None:
            require_cold(before.telemetry, after.telemetry)
            values |= _server_counts(before.telemetry, after.telemetry) | {"kv_peak": kv_peak}
        return offered, values


class _WarmArms:
    """An arm that has answered part of a plan; again after each restart."""

    def __init__(self, loaded: PairUnderLoad) -> None:
        self.loaded = loaded
        self.seen: dict[Role, ServedArm] = {}
        whole = plan_block(loaded.load, loaded.rules.timing, loaded.supply, 0, loaded.seed)
        self.plan = replace(whole, requests=whole.requests[:WARM_UP])

    def __call__(self, role: Role) -> ServedArm:
        arm = self.loaded.arm_for(role)
        if self.seen.get(role) is not arm:
            self.loaded.block(role, arm, self.plan)
            self.seen[role] = arm
        return arm


def run_load(loaded: PairUnderLoad) -> PairedRun:
    """Pairs of blocks until the rules say stop."""
    rules = loaded.rules
    started = time.monotonic()
    collected = CollectedBlocks()
    try:
        collect_blocks(loaded.pairs(), rules, collected)
    except GivenUp as error:
        collected.notes.append(f"given up after {len(collected.blocks)} pairs, which are not used: {error}")
        collected.blocks.clear()
    notes = [*_notes(loaded, collected), *acceptance_notes(collected.blocks, rules.timing.output_tokens)]
    return paired_run(collected, rules.timing, loaded.seed, started, notes, describe_load(rules))


def describe_load(rules: StopRules) -> str:
    """The load in words."""
    load, timing = rules.timing.load, rules.timing
    if load is None:
        return ""
    arrivals = load.arrivals
    if isinstance(arrivals, Trace):
        how = f"{arrivals.file} replayed at {arrivals.speed:g} times its speed"
    else:
        how = f"{'Poisson arrivals' if isinstance(arrivals, Poisson) else 'bursts'}, {arrivals.rate:g} requests/s"
    return f"{how}, {timing.requests} requests a block"


def _notes(loaded: PairUnderLoad, collected: CollectedBlocks) -> Iterator[str]:
    if loaded.redone and collected.blocks:
        yield f"{loaded.redone} pairs were measured again: {loaded.why}"
    for role in ARMS:
        values: list[Mapping[str, float]] = [getattr(block, role) for block in collected.blocks]
        saturated = sum(bool(v["saturated"]) for v in values)
        if saturated:
            yield f"the {role} was over-saturated in {saturated} of {len(values)} blocks: {describe_load(loaded.rules)}"
        if values and (failed := describe_failures(loaded.failed[role])):
            yield f"the {role} left requests unanswered: {failed}"


def _server_counts(before: Telemetry, after: Telemetry) -> dict[str, float]:
    """What the server itself counted during a block."""
    drafts = after.drafts - before.drafts
    values = {"preemptions": float(after.preemptions - before.preemptions)}
    if drafts > 0:
        values["acceptance_length"] = 1 + (after.accepted - before.accepted) / drafts
    return values


async def _offer_plan(
    arm: ServedArm, plan: BlockPlan, load: Load, *, salt: str
) -> tuple[OfferedBlock, float]:
    """The plan, offered over connections of the block's own; and the most of its cache that the server had in use."""
    if not isinstance(arm.engine, HttpEngine):
        raise EngineError(f"{arm.manifest.name}: its engine has no address that a load could be sent to")
    exact = _speaks_vllm(arm.engine.identity)
    waits = Deadlines(connect=load.timeout, idle=load.timeout, total=2 * load.timeout)
    async with Client(arm.engine.endpoint, waits) as client:

        async def stream(planned: PlannedRequest) -> Streamed:
            return await client.stream(_stream_request(arm, planned, exact=exact, salt=salt))

        peak = [0.0]
        watching = asyncio.create_task(_watch_cache(client, peak)) if exact else None
        try:
            return await offer(stream, plan, load, exact=exact), peak[0]
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


def _speaks_vllm(identity: EngineIdentity) -> bool:
    """Whether it can be asked for a reply of so many tokens, and for a salted cache.

    It can when it is ours, or says its token ids, by which an attached one is recognised.
    """
    silent = "prompt token ids" in identity.settings.get("unverified", "")
    return identity.kind == "vllm" or (identity.kind == "openai" and not silent)


async def _watch_cache(client: Client, peak: list[float]) -> None:
    """Look every other second how full the server's cache is."""
    while True:
        await asyncio.sleep(WATCH_S)
        with suppress(EngineError):
            text = await client.get_text(f"{client.endpoint.root}/metrics")
            # One number: reading all of them would take as long as a request may be late.
            peak[0] = max(peak[0], *(float(value) for value in KV_USE.findall(text)), 0.0)


def _stream_request(arm: ServedArm, planned: PlannedRequest, *, exact: bool, salt: str) -> StreamRequest:
    sampling = arm.manifest.sampling
    extra: dict[str, Any] = {"cache_salt": f"{salt}-{planned.id}"} if exact else {}
    return StreamRequest(
        id=planned.id, messages=arm.manifest.prompts.compose(planned.messages), max_tokens=planned.output_tokens,
        temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed, stop=sampling.stop,
        exact=exact, extra=extra,
    )  # fmt: skip


@contextmanager
def punctual() -> Iterator[None]:
    """While it lasts this thread collects no garbage, and comes before busier ones where the system allows it.

    Real-time, because a nicer priority counts only within a session where Linux groups processes by session; the little
    that a sender computes cannot starve a server.
    """
    before = _schedule() if hasattr(os, "sched_setscheduler") else None
    gc.disable()
    try:
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
        yield
    finally:
        gc.enable()
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, *before)


def _schedule() -> tuple[int, os.sched_param]:
    return os.sched_getscheduler(0), os.sched_getparam(0)
