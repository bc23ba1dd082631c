"""The mock's engine core: slots, a KV cache, a queue without bound, and time that passes as the knobs say."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from enum import Enum

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.mock_metrics import MockMetrics


class Fate(Enum):
    """What becomes of a request."""

    WHOLE = "whole"
    ERROR = "error"
    TRUNCATED = "truncated"
    RESET = "reset"


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine."""

    prompt: int  # tokens
    wanted: int  # tokens of the reply
    arrived: float = field(default_factory=time.monotonic)
    made: int = 0
    admitted: asyncio.Future[None] | None = None

    @property
    def tokens(self) -> int:
        """What it holds of the KV cache."""
        return self.prompt + self.made


class Schedule:
    """First come, first served, up to ``slots`` at once and as far as the KV cache reaches."""

    def __init__(self, knobs: MockKnobs, die: Callable[[int], None]) -> None:
        self.knobs = knobs
        self.metrics = MockMetrics(knobs.model, knobs.kv_tokens)
        self.seen = 0
        self.aborted = 0
        self._die = die
        self._random = random.Random(knobs.seed)
        self._running: set[Sequence] = set()
        self._waiting: deque[Sequence] = deque()
        self._resumed = asyncio.Event()
        self._frozen: bytes | None = None
        self.turn(knobs)

    def turn(self, knobs: MockKnobs) -> None:
        """Take new knobs while running; the size of the cache and the model's name stay as they were."""
        self.knobs = knobs
        if knobs.hang:
            self._resumed.clear()
        else:
            self._resumed.set()
        if not knobs.frozen_metrics:
            self._frozen = None
        self._admit()

    def fate(self) -> Fate:
        """Drawn once for each request, whatever the others do. May end the process."""
        self.seen += 1
        if self.knobs.crash_after and self.seen >= self.knobs.crash_after:
            self._die(self.knobs.crash_code)
        draw = self._random.random()
        if self.knobs.dead:
            return Fate.ERROR
        for fate, share in (
            (Fate.ERROR, self.knobs.error_share),
            (Fate.TRUNCATED, self.knobs.truncate_share),
            (Fate.RESET, self.knobs.reset_share),
        ):
            if draw < share:
                return fate
            draw -= share
        return Fate.WHOLE

    async def run(self, sequence: Sequence) -> AsyncGenerator[int, None]:
        """The number of new tokens of each update, when it is due. Closing the iterator aborts the request."""
        tail = self._random.random() < self.knobs.tail_share
        try:
            await self._enter(sequence)
            started = time.monotonic()
            self.metrics.queued.observe(started - sequence.arrived)
            self.metrics.prompt_tokens.inc(sequence.prompt)
            due = started + (self.knobs.first_ms + sequence.prompt * self.knobs.prefill_ms) / 1e3
            due += self.knobs.tail_ms / 1e3 if tail else 0.0
            credit = 0.0
            while sequence.made < sequence.wanted:
                await self._until(due)
                credit += self.knobs.acceptance
                step = min(max(1, int(credit)), sequence.wanted - sequence.made)
                credit -= step
                self._stepped(sequence, step)
                yield step
                due += self.knobs.token_ms * (1 + self.knobs.batch_slope * (len(self._running) - 1)) / 1e3
            self._finished(sequence)
        finally:
            self._leave(sequence)

    def text(self) -> bytes:
        """/metrics, or what it was when it froze."""
        if self._frozen is not None:
            return self._frozen
        used = sum(s.tokens for s in self._running)
        self.metrics.running.set(len(self._running))
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.kv.set(max(self.knobs.kv_floor, min(1.0, used / self.knobs.kv_tokens)))
        text = self.metrics.text()
        if self.knobs.frozen_metrics:
            self._frozen = text
        return text

    @property
    def inside(self) -> int:
        """Requests running and waiting."""
        return len(self._running) + len(self._waiting)

    async def _enter(self, sequence: Sequence) -> None:
        if self.knobs.oom_tokens:
            held = sum(s.prompt + s.wanted for s in (*self._running, *self._waiting, sequence))
            if held > self.knobs.oom_tokens:
                self._die(137)
        self._waiting.append(sequence)
        self._admit()
        if sequence not in self._running:
            sequence.admitted = asyncio.get_running_loop().create_future()
            await sequence.admitted

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.knobs.slots:
            used = sum(s.tokens for s in self._running)
            if self._running and used + self._waiting[0].prompt > self.knobs.kv_tokens:
                return
            sequence = self._waiting.popleft()
            self._running.add(sequence)
            if sequence.admitted is not None and not sequence.admitted.done():
                sequence.admitted.set_result(None)

    async def _until(self, due: float) -> None:
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.knobs.hang:
            await self._resumed.wait()

    def _stepped(self, sequence: Sequence, step: int) -> None:
        now = time.monotonic()
        if sequence.made == 0:
            self.metrics.first.observe(now - sequence.arrived)
        sequence.made += step
        self.metrics.generation_tokens.inc(step)
        self.metrics.iterations.observe(step)
        if self.knobs.drafted:
            self.metrics.drafts.inc()
            self.metrics.draft_tokens.inc(self.knobs.drafted)
            self.metrics.accepted_tokens.inc(min(step - 1, self.knobs.drafted))

    def _finished(self, sequence: Sequence) -> None:
        took = time.monotonic() - sequence.arrived
        self.metrics.whole.observe(took)
        self.metrics.each.observe(took / max(1, sequence.made))

    def _leave(self, sequence: Sequence) -> None:
        if sequence.made < sequence.wanted:
            self.aborted += 1
        self._running.discard(sequence)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._admit()
