"""A running engine as measurement sees it: asked in one place, and every answer checked there.

1. Answers must fit their requests (``engines.validation``).
2. What the engine reports of itself must be what its manifest declares (``check_identity``).
3. Token ids must be those that the pinned tokenizer and template give (``same_tokens``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkweigh.engines import validation
from checkweigh.engines.identity import identity_problems
from checkweigh.engines.protocol import (
    Divergence,
    Engine,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.errors import PinMismatch, Problem
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest

Render = Callable[[Sequence[Message]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One running engine with what its manifest pins. ``prefix_id`` starts raw text, ``encode`` gives its ids.

    Whoever measures asks the engine through these methods and not by itself: they check every answer against its
    request, whatever the kind of engine. Beside the engine's own errors they raise EngineError for an answer that does
    not fit; numbers that are not finite come back as an ``ItemFailure``.
    """

    manifest: Manifest
    engine: Engine
    render: Render
    encode: Callable[[str], tuple[int, ...]]
    prefix_id: int

    def engine_prompts(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt ids as the engine itself renders them; ``render`` gives the pinned ones."""
        return validation.prompts(self.engine.render(conversations), conversations)

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Scores of one batch, in its order."""
        return validation.scores(self.engine.score(batch), batch)

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """Replies to one batch, in its order."""
        return validation.replies(self.engine.generate(batch), batch)

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Write the hidden states of one batch of raw texts to ``folder``."""
        return validation.states(self.engine.states(batch, folder), batch)

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """Divergences of one batch of raw texts, from the states that both engines wrote."""
        return validation.divergences(self.engine.divergence(batch, their_states, own_states), batch)


def check_identity(arm: ServedArm) -> None:
    """Compare what the engine reports with what its manifest declares; raises PinMismatch with all differences."""
    if problems := identity_problems(arm.manifest, arm.engine.identity):
        raise PinMismatch(problems)


def same_tokens(arm: ServedArm, what: str, pinned: tuple[int, ...], served: tuple[int, ...]) -> None:
    if served == pinned:
        return
    shorter = min(len(pinned), len(served))
    at = next((i for i, (a, b) in enumerate(zip(pinned, served, strict=False)) if a != b), shorter)
    raise PinMismatch(
        [
            Problem(
                file=arm.manifest.name, line=None, path=f"{what}, token {at}",
                expected=f"{len(pinned)} pinned ids, here {pinned[at : at + 5]}",
                found=f"{len(served)} ids, here {served[at : at + 5]}: the engine has other tokens",
            )
        ]
    )  # fmt: skip
