"""Latency and memory of two running engines, in interleaved blocks. Never stored for another gate.

1. Both arms have been warmed up with the same prompts.
2. For each pair of blocks the order of the arms is drawn anew, and both get the same requests with the same
   number of output tokens, so that the drift of a shared machine falls on both.
3. A block's datum is a quantile over its requests; one pair of blocks is one datum (STATISTICS, "latency").
While one arm runs a block the other one runs nothing. A request that an arm cannot answer ends the timing without
a result: a block that lacks its slowest request says nothing.

With speculation several tokens of one forward arrive together. No gap between two tokens is ever looked at: the time
per output token is that of the whole reply after its first token, over the number of tokens after it, so that time to
the first token + (tokens - 1) x time per output token is the arrival of the last one, however they come. Replies of
a fixed number of tokens go on where they would have ended, and such text repeats itself and is drafted more easily:
the acceptance length while timing is noted, to be held against that of the sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from checkweigh.engines.protocol import GenerateRequest, ItemFailure, Resources
from checkweigh.errors import EngineError
from checkweigh.measure.quality import Arm
from checkweigh.records.evalset import Message
from checkweigh.records.measurement import Block, PairedRun, Speculated
from checkweigh.records.policy import Timing

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Role = Literal["baseline", "candidate"]
ARMS: tuple[Role, Role] = ("baseline", "candidate")
Requests = Sequence[tuple[str, tuple[Message, ...]]]
T = TypeVar("T")


class _Unanswered(Exception):
    """An arm that is alive has no answer to a request."""


def run_pairs(
    arms: dict[str, Arm],
    conversations: Sequence[tuple[Message, ...]],
    timing: Timing,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PairedRun:
    """Pairs of blocks until ``timing.pairs`` are done or ``timing.max_seconds`` have passed."""
    started = time.monotonic()
    blocks: list[Block] = []
    notes: list[str] = []
    try:
        for arm in ARMS:
            _block(arm, arms[arm], [("warm-up", conversations[0])], timing.output_tokens)
        for block in _blocks(arms, conversations, timing, np.random.default_rng(seed)):
            blocks.append(block)
            progress(len(blocks), timing.pairs)
            if time.monotonic() - started > timing.max_seconds and len(blocks) < timing.pairs:
                allowed = f"{timing.max_seconds:g} s were allowed"
                notes.append(f"stopped after {len(blocks)} of {timing.pairs} pairs: {allowed}")
                break
    except _Unanswered as error:
        notes.append(f"given up after {len(blocks)} pairs, which are not used: {error}")
        blocks = []
    notes += _acceptance(blocks, timing.output_tokens)
    resources = {arm: _resources(arm, arms[arm]) for arm in ARMS}
    return PairedRun(
        seed=seed, blocks=tuple(blocks), seconds=time.monotonic() - started, notes=tuple(notes),
        peak_memory={arm: max(int(_value(blocks, arm)), r.peak) for arm, r in resources.items()},
        swapped={arm: r.swapped for arm, r in resources.items()},
    )  # fmt: skip


def _blocks(
    arms: dict[str, Arm],
    conversations: Sequence[tuple[Message, ...]],
    timing: Timing,
    rng: np.random.Generator,
) -> Iterator[Block]:
    """All pairs of blocks: requests and the order of the arms drawn for each."""
    for pair in range(timing.pairs):
        picked = rng.integers(len(conversations), size=timing.requests)
        requests = [(f"{pair}-{i}", conversations[int(index)]) for i, index in enumerate(picked)]
        order = ARMS if rng.random() < 0.5 else (ARMS[1], ARMS[0])
        values = {arm: _block(arm, arms[arm], requests, timing.output_tokens) for arm in order}
        yield Block(
            pair=pair, order=order, requests=timing.requests,
            baseline=values["baseline"], candidate=values["candidate"],
        )  # fmt: skip


def _named(role: Role, call: Callable[[], T]) -> T:
    """The call's result; an engine's error names the arm."""
    try:
        return call()
    except EngineError as error:
        error.arm = role
        raise


def _resources(role: Role, arm: Arm, *, reset_peak: bool = False) -> Resources:
    return _named(role, lambda: arm.engine.resources(reset_peak=reset_peak))


def _value(blocks: Sequence[Block], arm: str) -> float:
    return max((getattr(block, arm)["peak_memory"] for block in blocks), default=0)


def _block(role: Role, arm: Arm, requests: Requests, output_tokens: int) -> dict[str, float]:
    """One block: requests one after the other; 'ttft.p50', ..., 'e2e.p99' in seconds, 'peak_memory' in bytes."""
    _resources(role, arm, reset_peak=True)
    rows = [_named(role, partial(_request, role, arm, *request, output_tokens)) for request in requests]
    values = {
        f"{metric}.{name}": float(np.quantile([row[i] for row in rows], q))
        for i, metric in enumerate(("ttft", "tpot", "e2e"))
        for name, q in QUANTILES.items()
    }
    values["peak_memory"] = float(_resources(role, arm).peak)
    counts = [row[3] for row in rows if row[3] is not None]
    if counts:
        values["acceptance_length"] = 1 + sum(c.accepted for c in counts) / sum(c.forwards for c in counts)
    return values


def _acceptance(blocks: Sequence[Block], output_tokens: int) -> list[str]:
    """What drafts came to while timing, for every arm that speculates."""
    found = {
        arm: [b for block in blocks if (b := getattr(block, arm).get("acceptance_length"))] for arm in ARMS
    }
    return [
        f"the {arm} speculates: acceptance length {float(np.median(lengths)):.2f} tokens a forward in replies of "
        f"{output_tokens} tokens, which go on where a reply would end"
        for arm, lengths in found.items()
        if lengths
    ]


def _request(
    role: Role, arm: Arm, name: str, messages: tuple[Message, ...], output_tokens: int
) -> tuple[float, float, float, Speculated | None]:
    """Seconds to the first token, seconds per token after it, seconds in all, and how drafts did."""
    request = GenerateRequest(
        id=name, messages=arm.manifest.prompts.compose(messages), exact_tokens=output_tokens
    )
    sent = time.monotonic()
    (result,) = arm.engine.generate([request])
    took = time.monotonic() - sent
    if isinstance(result, ItemFailure):
        raise _Unanswered(f"the {role} cannot answer a timing request ({result.reason}: {result.detail})")
    if len(result.times) != output_tokens:
        raise EngineError(f"{arm.manifest.name}: a timing request did not give its {output_tokens} tokens")
    first, last = result.times[0], result.times[-1]
    if not 0 <= first <= last <= took:
        raise EngineError(
            f"{arm.manifest.name}: token times that cannot be ({first:.3f} to {last:.3f} of {took:.3f} s)"
        )
    return first, (last - first) / (output_tokens - 1), took, result.speculated
