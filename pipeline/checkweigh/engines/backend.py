"""What the worker process asks of the code that computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from checkweigh import canonical
from checkweigh.engines.protocol import (
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.records.measurement import EngineIdentity


class Backend(Protocol):
    """``Engine`` without its process: the methods mean the same, and run inside the worker.

    ``sent`` is the moment the call left the parent, on ``time.monotonic``'s clock, which all processes of a
    host share. After ``BadInput`` the worker lives on; anything else a backend raises ends it.
    """

    @property
    def identity(self) -> EngineIdentity:
        """What is really loaded."""

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt ids, generation prompt included."""

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """One result for each request, in order."""

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """One result for each request, in order; a text's file appears whole or not at all."""

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """One result for each request, in order."""

    def generate(
        self, batch: Sequence[GenerateRequest], *, sent: float
    ) -> list[GenerateResult | ItemFailure]:
        """One result for each request, in order."""

    def resources(self, *, reset_peak: bool) -> Resources:
        """Memory now, in bytes."""


def states_file(folder: Path, request_id: str) -> Path:
    """Where the hidden states of one request lie."""
    return folder / f"{canonical.short(canonical.digest(request_id))}.states"


def too_long(request_id: str, tokens: int, limit: int, what: str) -> ItemFailure | None:
    """A failure when ``tokens`` exceed ``limits.max_sequence``; nothing is ever truncated."""
    if tokens <= limit:
        return None
    detail = f"{tokens} tokens ({what}) exceed limits.max_sequence = {limit}"
    return ItemFailure(id=request_id, reason="too_long", detail=detail)
