"""Latency and memory of two running engines, in interleaved blocks. Never stored for another gate.

1. Both arms have been warmed up with the same prompts.
2. For each pair of blocks the order of the arms is drawn anew, and both get the same requests with the same
   number of output tokens, so that the drift of a shared machine falls on both.
3. A block's datum is a quantile over its requests; one pair of blocks is one datum (STATISTICS, "latency").
While one arm runs a block the other one runs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from checkweigh.engines.protocol import GenerateRequest, GenerateResult
from checkweigh.errors import EngineError
from checkweigh.measure.quality import Arm
from checkweigh.records.evalset import Message
from checkweigh.records.measurement import Block, PairedRun
from checkweigh.records.policy import Timing

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Role = Literal["baseline", "candidate"]
ARMS: tuple[Role, Role] = ("baseline", "candidate")
Requests = Sequence[tuple[str, tuple[Message, ...]]]


def run_pairs(
    arms: dict[str, Arm],
    conversations: Sequence[tuple[Message, ...]],
    timing: Timing,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PairedRun:
    """Pairs of blocks until ``timing.pairs`` are done or ``timing.max_seconds`` have passed."""
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    blocks: list[Block] = []
    notes: list[str] = []
    for arm in ARMS:
        _of(arm, arms, [("warm-up", conversations[0])], timing)
    for pair in range(timing.pairs):
        if time.monotonic() - started > timing.max_seconds:
            notes.append(f"stopped after {pair} of {timing.pairs} pairs: {timing.max_seconds:g} s were allowed")
            break
        picked = rng.integers(len(conversations), size=timing.requests)
        requests = [(f"{pair}-{i}", conversations[int(index)]) for i, index in enumerate(picked)]
        order = ARMS if rng.random() < 0.5 else (ARMS[1], ARMS[0])
        values = {arm: _of(arm, arms, requests, timing) for arm in order}
        blocks.append(
            Block(
                pair=pair, order=order, requests=timing.requests,
                baseline=values["baseline"], candidate=values["candidate"],
            )
        )  # fmt: skip
        progress(pair + 1, timing.pairs)
    resources = {arm: arms[arm].engine.resources() for arm in ARMS}
    return PairedRun(
        seed=seed, blocks=tuple(blocks), seconds=time.monotonic() - started, notes=tuple(notes),
        peak_memory={arm: max(int(_value(blocks, arm)), r.peak) for arm, r in resources.items()},
        swapped={arm: r.swapped for arm, r in resources.items()},
    )  # fmt: skip


def _of(name: str, arms: dict[str, Arm], requests: Requests, timing: Timing) -> dict[str, float]:
    """One arm's block; an engine's error names the arm."""
    try:
        return _block(arms[name], requests, timing.output_tokens)
    except EngineError as error:
        error.arm = name
        raise


def _value(blocks: Sequence[Block], arm: str) -> float:
    return max((getattr(block, arm)["peak_memory"] for block in blocks), default=0)


def _block(arm: Arm, requests: Requests, output_tokens: int) -> dict[str, float]:
    """One block: requests one after the other; 'ttft.p50', ..., 'e2e.p99' in seconds, 'peak_memory' in bytes."""
    arm.engine.resources(reset_peak=True)
    rows = [_request(arm, name, messages, output_tokens) for name, messages in requests]
    values = {
        f"{metric}.{name}": float(np.quantile([row[i] for row in rows], q))
        for i, metric in enumerate(("ttft", "tpot", "e2e"))
        for name, q in QUANTILES.items()
    }
    values["peak_memory"] = float(arm.engine.resources().peak)
    return values


def _request(arm: Arm, name: str, messages: tuple[Message, ...], output_tokens: int) -> tuple[float, float, float]:
    request = GenerateRequest(id=name, messages=arm.manifest.prompts.compose(messages), exact_tokens=output_tokens)
    sent = time.monotonic()
    (result,) = arm.engine.generate([request])
    took = time.monotonic() - sent
    if not isinstance(result, GenerateResult) or len(result.times) != output_tokens:
        raise EngineError(f"{arm.manifest.name}: a timing request did not give its {output_tokens} tokens")
    first, last = result.times[0], result.times[-1]
    if not 0 <= first <= last <= took:
        raise EngineError(f"{arm.manifest.name}: token times that cannot be ({first:.3f} to {last:.3f} of {took:.3f} s)")
    return first, (last - first) / (output_tokens - 1), took
