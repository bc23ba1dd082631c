"""The Engine protocol: what measurement asks of anything that serves a model.

One call is one batch: the engine runs the requests of a call together, in the given order, and returns one
result for each, in that order. A result is a value or an ``ItemFailure``; an engine that dies, hangs or
does not fit raises an ``EngineError``. Times are seconds of a monotonic clock since the call was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from checkweigh.records.evalset import Message
from checkweigh.records.measurement import EngineIdentity, FailureKind, Speculated, WorstToken

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Log-probabilities of each continuation given the rendered conversation.

    With ``messages`` None a continuation is raw text, scored from its first token after the tokenizer's
    prefix token (BOS, else EOS). ``top_k`` alternatives a position are returned when it is above 0.
    """

    id: str
    messages: Messages | None
    continuations: tuple[str, ...]
    top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One scored continuation of T tokens."""

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]  # (T,), natural logarithm
    top_ids: NDArray[np.int32] | None = None  # (T, k)
    top_logprobs: NDArray[np.float32] | None = None  # (T, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """Scores of one request; ``prompt_ids`` are the ids the engine rendered (the prefix token for raw text)."""

    id: str
    prompt_ids: tuple[int, ...]
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A reply to a conversation. ``exact_tokens`` ignores EOS and stops, for timing only."""

    id: str
    messages: Messages
    exact_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """A reply. ``times`` holds one arrival time for each token, in seconds since the call was sent."""

    id: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # without the end-of-sequence token
    text: str
    finish: Literal["stop", "length"]
    times: tuple[float, ...]
    speculated: Speculated | None = None  # with speculation; tokens of one forward then share their time


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """A text whose hidden states were written to a file."""

    id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far this engine's next-token distributions are from the other's, for one text of T tokens."""

    id: str
    token_ids: tuple[int, ...]
    kl: NDArray[np.float32]  # (T,) nats, KL(other || this) over the whole vocabulary
    agree: NDArray[np.int32]  # (T,) 1 where both find the same token likeliest
    worst: tuple[WorstToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailure:
    """No result for one request, and why."""

    id: str
    reason: FailureKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a server counted since it started; ``kv_use`` is the largest share of its cache seen in use."""

    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    cache_queries: int  # tokens looked up in the prefix cache
    cache_hits: int  # tokens found there
    drafts: int
    drafted: int
    accepted: int
    kv_use: float
    kv_tokens: int | None = None  # the cache's size


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Memory of the engine's processes: now, most since the last reset, and in swap. Bytes.

    ``gpu`` is its memory on the accelerator, ``utilization`` the accelerator's share of busy time; where there is one.
    """

    resident: int
    peak: int
    swapped: int
    gpu: int | None = None
    utilization: float | None = None
    telemetry: Telemetry | None = None


class Engine(Protocol):
    """Anything that serves one pinned model. Use it as a context manager: entering starts it."""

    @property
    def identity(self) -> EngineIdentity:
        """What the running engine reports of itself."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt token ids as the engine itself renders them, generation prompt included."""

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Score one batch."""

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Write the final hidden states of each raw text, and the head they need, to ``folder``."""

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """Compare the states of each raw text that another engine wrote with those that this one wrote."""

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """Generate one batch of replies with the pinned sampling."""

    def resources(self, *, reset_peak: bool = False) -> Resources:
        """Memory now; afterwards the peak starts anew when asked to."""
