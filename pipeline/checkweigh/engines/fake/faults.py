"""How the fake engine fails, as its knobs tell it to: it dies, hangs, runs out of memory or lies."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import NoReturn

import numpy as np

from checkweigh.engines.fake.knobs import FakeKnobs
from checkweigh.engines.protocol import GenerateResult, ItemFailure, ScoreResult


def misbehave(knobs: FakeKnobs, call: int) -> None:
    """Fail if this is the call to fail in; call 0 is the start of the process."""
    if call == knobs.crash_at:
        os.abort()
    if call == knobs.kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if call == knobs.exit_at:
        os._exit(0)
    if call == knobs.hang_at:
        _hang()
    if call == knobs.oom_at:
        raise MemoryError("the fake engine was told to run out of memory")
    if call == knobs.raise_at:
        raise ArithmeticError("the fake engine was told to raise")
    if call == knobs.lie_at and knobs.lie == "garbage":
        _write_garbage()


def lie_in_scores(results: list[ScoreResult | ItemFailure], lie: str) -> list[ScoreResult | ItemFailure]:
    """The scores with the lie in them: one too few, another id, or a first continuation that cannot be."""
    if lie == "count":
        return results[:-1]
    first, rest = results[0], results[1:]
    assert isinstance(first, ScoreResult)
    if lie == "ids":
        return [replace(first, id=first.id + "?"), *rest]
    continuation = first.continuations[0]
    logprobs = continuation.logprobs[:-1] if lie == "lengths" else np.ones_like(continuation.logprobs)
    spoilt = replace(continuation, logprobs=logprobs)
    return [replace(first, continuations=(spoilt, *first.continuations[1:])), *rest]


def lie_in_replies(
    results: list[GenerateResult | ItemFailure], lie: str
) -> list[GenerateResult | ItemFailure]:
    """The replies with the lie in them: one too few, another id, or a time too many."""
    if lie == "count":
        return results[:-1]
    first, rest = results[0], results[1:]
    assert isinstance(first, GenerateResult)
    if lie == "ids":
        return [replace(first, id=first.id + "?"), *rest]
    return [replace(first, times=(*first.times, 0.0)), *rest]


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _write_garbage() -> NoReturn:
    """Write bytes that are no frame into the protocol's own descriptor, then hang."""
    for descriptor in range(3, 20):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:"):
                os.write(descriptor, b"\xff\xff\xff\xff not a frame")
        except OSError:
            continue
    sys.stderr.flush()
    _hang()
