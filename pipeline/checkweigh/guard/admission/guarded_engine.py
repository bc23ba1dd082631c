"""Measurement behind the same admission: an Engine that never gives the inner one more than its KV cache can hold.

A batch that fits is passed on as it is, so the batch plan, and the numbers that depend on it, stay what they were. A
larger one is given in turns, which are a pure function of the batch and the budget. An item that is alone is never held
back; the engine itself refuses what is longer than a sequence may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from checkweigh.engines.protocol import (
    Divergence,
    Engine,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.guard.admission.kv_admission import KvAdmission
from checkweigh.guard.admission.queueing import QueueEntry, Shed
from checkweigh.guard.guard_policy import AdmissionLimits, TierLimits, Tiers
from checkweigh.records.measurement import EngineIdentity

_BYTES_A_TOKEN = 3  # fewer than text has: a cost that is too high only makes turns shorter
_ALL = Tiers(interactive=TierLimits(), standard=TierLimits(queue=0), bulk=TierLimits())
R = TypeVar("R", ScoreRequest, GenerateRequest)
T = TypeVar("T")


class GuardedEngine:
    """Wraps an engine that says how large its cache is; one that has none is never held back."""

    def __init__(self, inner: Engine, *, headroom: float, slots: int, scoring: int, max_tokens: int) -> None:
        self._inner = inner
        self._headroom = headroom
        self._slots = slots
        self._scoring = scoring
        self._max_tokens = max_tokens
        self._gate: KvAdmission | None = None

    def __enter__(self) -> Self:
        self._inner.__enter__()
        try:
            telemetry = self._inner.resources().telemetry
        except BaseException:
            self._inner.__exit__(None, None, None)
            raise
        if telemetry is not None and telemetry.kv_tokens:
            limits = AdmissionLimits(tiers=_ALL, queue=0, scoring=self._scoring)
            budget = max(1, int(telemetry.kv_tokens * (1 - self._headroom)))
            self._gate = KvAdmission(limits, budget=budget, slots=self._slots)
        return self

    def __exit__(self, *exc: object) -> None:
        self._gate = None
        self._inner.__exit__(*exc)

    def __getattr__(self, name: str) -> Any:
        """What only the inner engine has, such as where it listens."""
        return getattr(self._inner, name)

    @property
    def identity(self) -> EngineIdentity:
        """The inner engine's."""
        return self._inner.identity

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Passed on."""
        return self._inner.render(conversations)

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """In turns, where it must be."""
        return self._in_turns(batch, _score_cost, self._inner.score, scoring=True)

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """In turns, where it must be."""

        def cost(request: GenerateRequest) -> int:
            return _tokens(request.messages) + (request.exact_tokens or self._max_tokens)

        return self._in_turns(batch, cost, self._inner.generate, scoring=False)

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """In turns, where it must be."""
        return self._in_turns(batch, _score_cost, lambda part: self._inner.states(part, folder), scoring=True)

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """Passed on."""
        return self._inner.divergence(batch, their_states, own_states)

    def resources(self, *, reset_peak: bool = False) -> Resources:
        """The inner engine's."""
        return self._inner.resources(reset_peak=reset_peak)

    def _in_turns(
        self,
        batch: Sequence[R],
        cost: Callable[[R], int],
        work: Callable[[Sequence[R]], list[T]],
        *,
        scoring: bool,
    ) -> list[T]:
        if self._gate is None:
            return work(batch)
        return [result for part in turns(self._gate, batch, cost, scoring=scoring) for result in work(part)]


def turns(
    gate: KvAdmission, batch: Sequence[R], cost: Callable[[R], int], *, scoring: bool
) -> Iterator[list[R]]:
    """``batch`` in order, cut where the gate lets no more in; a turn leaves when the next one is asked for."""
    inside: list[QueueEntry] = []
    part: list[R] = []
    for request in batch:
        entry = _offer(gate, min(gate.budget, cost(request)), scoring=scoring)
        if not entry.inside:
            yield part
            _leave(gate, inside)
            part = []
            entry = _offer(gate, min(gate.budget, cost(request)), scoring=scoring)
        inside.append(entry)
        part.append(request)
    if part:
        yield part
    _leave(gate, inside)


def _offer(gate: KvAdmission, cost: int, *, scoring: bool) -> QueueEntry:
    entry = QueueEntry(
        tier="standard", cost=cost, scoring=scoring, asked=0.0, deadline=math.inf, settle=_unheard
    )
    gate.offer(entry, 0.0)
    return entry


def _unheard(shed: Shed | None) -> None:
    """Nothing to do: ``QueueEntry.inside`` says whether it was let in."""


def _leave(gate: KvAdmission, inside: list[QueueEntry]) -> None:
    for entry in inside:
        gate.leave(entry, 0.0, whole=False)
    inside.clear()


def _tokens(messages: Messages) -> int:
    return sum(8 + len(m.content.encode()) // _BYTES_A_TOKEN for m in messages)


def _score_cost(request: ScoreRequest) -> int:
    """Each continuation is scored behind its own copy of the prompt."""
    prompt = 0 if request.messages is None else _tokens(request.messages)
    return sum(
        1 + prompt + len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN
        for text in request.continuations
    )
