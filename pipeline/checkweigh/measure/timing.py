"""Latency and memory of two running engines, in interleaved blocks. Never stored for another gate.

1. Both arms are warmed up with the same prompt.
2. For each pair of blocks the order of the arms is drawn anew. Both get the same requests with the same number of
   output tokens, so that the drift of a shared machine falls on both.
3. A block's datum is a quantile over its requests. One pair of blocks is one datum (docs/statistics.md, "latency").

While one arm runs a block the other one runs nothing. A request that an arm cannot answer ends the timing without
a result: a block that lacks its slowest request says nothing.

The time per output token is the time of the reply after its first token, over the number of tokens after it. No gap
between two tokens is used, because with speculation several tokens of one forward arrive together. Replies of a fixed
number of tokens go on where they would have ended. Such text repeats itself and is drafted more easily, so the
acceptance length while timing is noted, to be compared with that of the sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from checkweigh.engines.protocol import GenerateRequest, ItemFailure, Resources
from checkweigh.errors import EngineError
from checkweigh.measure.block_metrics import QUANTILES
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
from checkweigh.records.evalset import Message
from checkweigh.records.measurement import Block, PairedRun, Speculated
from checkweigh.records.policy import Timing

Requests = Sequence[tuple[str, tuple[Message, ...]]]
T = TypeVar("T")


def run_pairs(
    arm_for: ArmProvider, conversations: Sequence[tuple[Message, ...]], rules: StopRules, seed: int
) -> PairedRun:
    """Time pairs of blocks until the rules say stop.

    ``arm_for`` gives an arm that runs; ``conversations`` are drawn from, with ``seed``. Raises EngineError, with
    ``arm`` set, when an engine fails or answers something impossible. Without usable pairs the notes say why.
    """
    started = time.monotonic()
    collected = CollectedBlocks()
    try:
        collect_blocks(
            _blocks(_warmed_up(arm_for, conversations[0], rules.timing), conversations, rules.timing, seed),
            rules,
            collected,
        )
    except GivenUp as error:
        collected.notes.append(f"given up after {len(collected.blocks)} pairs, which are not used: {error}")
        collected.blocks.clear()
    return paired_run(
        collected, rules.timing, seed, started, acceptance_notes(collected.blocks, rules.timing.output_tokens)
    )


def paired_run(
    collected: CollectedBlocks,
    timing: Timing,
    seed: int,
    started: float,
    notes: Sequence[str],
    load: str = "",
) -> PairedRun:
    """The record of what was collected, with what it says about memory."""
    return PairedRun(
        seed=seed, blocks=tuple(collected.blocks), seconds=time.monotonic() - started,
        looks=tuple(collected.looks) or (1.0,), planned_looks=len(timing.looks), load=load,
        notes=(*collected.notes, *notes),
        peak_memory={arm: int(_largest(collected.blocks, arm, "peak_memory")) for arm in ARMS},
        swapped={arm: int(_largest(collected.blocks, arm, "swapped")) for arm in ARMS},
    )  # fmt: skip


def _warmed_up(arm_for: ArmProvider, conversation: tuple[Message, ...], timing: Timing) -> ArmProvider:
    """``arm_for``, with a block of one request on every engine that is new."""
    warmed: dict[Role, ServedArm] = {}

    def warm(role: Role) -> ServedArm:
        arm = arm_for(role)
        if warmed.get(role) is not arm:
            _time_block(role, arm, [("warm-up", conversation)], timing.output_tokens)
            warmed[role] = arm
        return arm

    for role in ARMS:
        warm(role)
    return warm


def _blocks(
    arm_for: ArmProvider, conversations: Sequence[tuple[Message, ...]], timing: Timing, seed: int
) -> Iterator[Block]:
    """All pairs of blocks: requests and the order of the arms drawn for each."""
    rng = np.random.default_rng(seed)
    for pair in range(timing.looks[-1]):
        picked = rng.integers(len(conversations), size=timing.requests)
        requests = [(f"{pair}-{i}", conversations[int(index)]) for i, index in enumerate(picked)]
        order = arm_order(rng.random())
        values = {role: _time_block(role, arm_for(role), requests, timing.output_tokens) for role in order}
        yield Block(
            pair=pair, order=(order[0], order[1]), requests=timing.requests,
            baseline=values["baseline"], candidate=values["candidate"],
        )  # fmt: skip


def naming_the_arm(role: Role, call: Callable[[], T]) -> T:
    """The call's result; an engine's error names the arm."""
    try:
        return call()
    except EngineError as error:
        error.arm = role
        raise


def engine_resources(role: Role, arm: ServedArm, *, reset_peak: bool = False) -> Resources:
    """Memory of the arm's engine. EngineError, with ``arm`` set: the engine is gone."""
    return naming_the_arm(role, lambda: arm.engine.resources(reset_peak=reset_peak))


def _largest(blocks: Sequence[Block], arm: Role, name: str) -> float:
    return max((getattr(block, arm)[name] for block in blocks), default=0)


def _time_block(role: Role, arm: ServedArm, requests: Requests, output_tokens: int) -> dict[str, float]:
    """One block: requests one after the other; 'ttft.p50', ..., 'e2e.p99' in seconds, 'peak_memory' in bytes."""
    engine_resources(role, arm, reset_peak=True)
    rows = [
        naming_the_arm(role, partial(_time_request, role, arm, *request, output_tokens))
        for request in requests
    ]
    values = {
        f"{metric}.{name}": float(np.quantile([row[i] for row in rows], q))
        for i, metric in enumerate(("ttft", "tpot", "e2e"))
        for name, q in QUANTILES.items()
    }
    values |= memory_values(engine_resources(role, arm))
    counts = [row[3] for row in rows if row[3] is not None]
    if counts:
        values["acceptance_length"] = 1 + sum(c.accepted for c in counts) / sum(c.forwards for c in counts)
    return values


def memory_values(resources: Resources) -> dict[str, float]:
    """A block's memory, in bytes."""
    return {"peak_memory": float(resources.peak), "swapped": float(resources.swapped)}


def acceptance_notes(blocks: Sequence[Block], output_tokens: int) -> list[str]:
    """What drafts came to while timing, for every arm that speculates."""
    lengths_of = {
        arm: [b for block in blocks if (b := getattr(block, arm).get("acceptance_length"))] for arm in ARMS
    }
    return [
        f"the {arm} speculates: acceptance length {float(np.median(lengths)):.2f} tokens a forward in replies of "
        f"{output_tokens} tokens, which go on where a reply would end"
        for arm, lengths in lengths_of.items()
        if lengths
    ]


def _time_request(
    role: Role, arm: ServedArm, name: str, messages: tuple[Message, ...], output_tokens: int
) -> tuple[float, float, float, Speculated | None]:
    """Seconds to the first token, seconds per token after it, seconds in all, and how drafts did."""
    request = GenerateRequest(
        id=name, messages=arm.manifest.prompts.compose(messages), exact_tokens=output_tokens
    )
    sent = time.monotonic()
    (result,) = arm.generate([request])
    took = time.monotonic() - sent
    if isinstance(result, ItemFailure):
        raise GivenUp(f"the {role} cannot answer a timing request ({result.reason}: {result.detail})")
    first, last = result.times[0], result.times[-1]
    if last > took:
        raise EngineError(
            f"{arm.manifest.name}: token times that cannot be ({first:.3f} to {last:.3f} of {took:.3f} s)"
        )
    return first, (last - first) / (output_tokens - 1), took, result.speculated
