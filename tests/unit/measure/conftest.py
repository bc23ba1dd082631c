"""An engine inside the test, for measuring what measurement itself does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tests.builders import IDENTITY

from checkweigh.engines.protocol import (
    Continuation,
    Engine,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.measure.served_arm import ServedArm
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import EngineIdentity

MANIFEST = {
    "schema": "checkweigh/manifest@1",
    "name": "arm",
    "model": {"source": "path:x"},
    "engine": {"kind": "fake", "version": "1", "dtype": "float32", "threads": 1},
    "limits": {"max_sequence": 512},
}


def render(messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids of a conversation, a byte each."""
    return tuple(b for m in messages for b in (m.role + m.content).encode())


def encode(text: str) -> tuple[int, ...]:
    """Ids of a text, a byte each."""
    return tuple(text.encode())


@dataclass
class InProcess:
    """Implements the Protocol; ``change`` may spoil each result, ``calls`` says what was asked in which order."""

    name: str = "arm"
    change: Callable[[Any], Any] = lambda result: result
    seconds: float = 0.0
    calls: list[tuple[str, Any]] = field(default_factory=list)
    identity: EngineIdentity = IDENTITY
    peak: int = 1000

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        return [render(c) for c in conversations]

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        return [self.change(self._score(r)) for r in batch]

    def _score(self, request: ScoreRequest) -> ScoreResult:
        scored = []
        for text in request.continuations:
            ids = encode(text)
            scored.append(Continuation(token_ids=ids, logprobs=-np.full(len(ids), 0.5, np.float32)))
        prompt = (0,) if request.messages is None else render(request.messages)
        return ScoreResult(id=request.id, prompt_ids=prompt, continuations=tuple(scored))

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        self.calls.append(("generate", [(r.id, r.messages, r.exact_tokens) for r in batch]))
        time.sleep(self.seconds)
        return [self.change(self._reply(r)) for r in batch]

    def _reply(self, request: GenerateRequest) -> GenerateResult:
        count = request.exact_tokens or 3
        return GenerateResult(
            id=request.id, prompt_ids=render(request.messages), token_ids=tuple(range(count)), text="yes indeed",
            finish="stop", times=tuple(1e-6 * (i + 1) for i in range(count)),
        )  # fmt: skip

    def resources(self, *, reset_peak: bool = False) -> Resources:
        self.calls.append(("resources", reset_peak))
        return Resources(resident=self.peak, peak=self.peak, swapped=7)


def make_arm(engine: InProcess) -> ServedArm:
    """The engine with the pinned rendering it should have."""
    import json

    manifest = Manifest.model_validate_json(json.dumps(MANIFEST | {"name": engine.name}))
    return ServedArm(manifest, engine, render, encode, 0)


@pytest.fixture
def conversations() -> list[Messages]:
    """Five questions."""
    return [(Message(role="user", content=f"question {i}"),) for i in range(5)]
