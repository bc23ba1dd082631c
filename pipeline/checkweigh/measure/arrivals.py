"""What a block will send, and when: a pure function of the load, the pair and the seed, frozen before it starts.

Both arms of a pair get the same plan: the same requests at the same moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checkweigh import canonical
from checkweigh.records.evalset import Message
from checkweigh.records.load_spec import (
    Bursts,
    Load,
    Poisson,
    Trace,
)
from checkweigh.records.policy import Timing
from checkweigh.sources.load_trace import TraceRequest

Conversation = tuple[Message, ...]
MICRO = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request: due ``at`` seconds after its block begins."""

    id: str
    at: float
    messages: Conversation
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """All requests of a block, in the order in which they are due; the first is due at 0."""

    pair: int
    requests: tuple[PlannedRequest, ...]

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].at

    @property
    def digest(self) -> str:
        """Of everything that is sent, and when, to the microsecond."""
        rows = [
            [r.id, round(r.at / MICRO), [[m.role, m.content] for m in r.messages], r.output_tokens]
            for r in self.requests
        ]
        return canonical.digest(rows)


def gaps(arrivals: Poisson | Bursts, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count,) seconds between arrivals, of mean 1 / rate; Gamma of shape 1 / variation for bursts."""
    if isinstance(arrivals, Poisson):
        return rng.exponential(1.0 / arrivals.rate, count)
    return rng.gamma(1.0 / arrivals.variation, arrivals.variation / arrivals.rate, count)


def arrival_times(arrivals: Poisson | Bursts, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count,) seconds from the first arrival, increasing from 0."""
    return np.concatenate([[0.0], np.cumsum(gaps(arrivals, count - 1, rng))])


@dataclass(frozen=True, kw_only=True)
class PromptSupply:
    """What plans are made of: conversations, and for a trace its rows and the tokens that a word has on average."""

    conversations: Sequence[Conversation]
    rows: Sequence[TraceRequest] = ()
    tokens_a_word: float = 1.0

    @classmethod
    def of(
        cls,
        conversations: Sequence[Conversation],
        rows: Sequence[TraceRequest],
        encode: Callable[[str], tuple[int, ...]],
    ) -> PromptSupply:
        """``encode`` gives the token ids of a text; it is asked once, for all words there are."""
        text = " ".join(_words(conversations))
        words = len(text.split())
        ratio = len(encode(text)) / words if rows and words else 1.0
        return cls(conversations=conversations, rows=rows, tokens_a_word=max(ratio, 0.1))


def plan_block(load: Load, timing: Timing, supply: PromptSupply, pair: int, seed: int) -> BlockPlan:
    """The plan of one pair of blocks: a pure function of its arguments.

    Raises ValueError when a trace is replayed and ``supply.rows`` holds no window of requests for the pair.
    """
    rng = np.random.default_rng([seed, pair])
    if isinstance(load.arrivals, Trace):
        return BlockPlan(pair=pair, requests=_replayed(load.arrivals, timing.requests, supply, pair, rng))
    times = arrival_times(load.arrivals, timing.requests, rng)
    picked = rng.integers(len(supply.conversations), size=timing.requests)
    return BlockPlan(
        pair=pair,
        requests=tuple(
            PlannedRequest(
                id=f"{pair}-{i}", at=float(at), messages=supply.conversations[int(index)],
                output_tokens=timing.output_tokens,
            )
            for i, (at, index) in enumerate(zip(times, picked, strict=True))
        ),
    )  # fmt: skip


def _replayed(
    trace: Trace, count: int, supply: PromptSupply, pair: int, rng: np.random.Generator
) -> tuple[PlannedRequest, ...]:
    """The pair's window of the trace. Texts are runs of the conversations' words, as long as the trace's prompts."""
    window = supply.rows[pair * count : (pair + 1) * count]
    if len(window) < count:
        raise ValueError(f"the trace has no window of {count} requests for pair {pair}")
    words = _words(supply.conversations)
    requests = []
    for i, row in enumerate(window):
        wanted = max(1, round(min(row.prompt_tokens, trace.max_prompt_tokens) / supply.tokens_a_word))
        start = int(rng.integers(len(words)))
        text = " ".join(words[(start + k) % len(words)] for k in range(wanted))
        requests.append(
            PlannedRequest(
                id=f"{pair}-{i}", at=(row.at - window[0].at) / trace.speed,
                messages=(Message(role="user", content=text),),
                output_tokens=max(2, min(row.output_tokens, trace.max_output_tokens)),
            )
        )  # fmt: skip
    return tuple(requests)


def _words(conversations: Sequence[Conversation]) -> list[str]:
    return [word for messages in conversations for m in messages for word in m.content.split()]
