"""Admission by KV cost: reserves of tiers, bounded queues, refusals of what does not fit. Pure; times are arguments.

The cost of a request is its prompt's tokens and the smaller of max_tokens and the rolling 95th percentile of outputs;
the budget is the engine's KV cache less the headroom. A request that outgrows its cost is charged for it at once.
"""

from __future__ import annotations

import math
from collections import deque

from checkweigh.guard.admission.queueing import QueueEntry, Queues, Shed
from checkweigh.guard.guard_policy import PRIORITY_TIERS, AdmissionLimits, PriorityTier

_OUTPUTS = 512  # replies remembered
_ENOUGH = 32  # before the percentile counts
_LOAD_S = 10.0  # over which the rate of service is measured, by at most
_SERVED = 2048  # requests


class ReplyLengths:
    """The lengths of the last replies, and their 95th percentile, refreshed every 32 replies."""

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=_OUTPUTS)
        self._since = 0
        self._p95: int | None = None

    def add(self, tokens: int) -> None:
        """Remember one reply's length."""
        self._last.append(tokens)
        self._since += 1
        if self._since >= _ENOUGH:
            self._since = 0
            self._p95 = sorted(self._last)[math.ceil(0.95 * len(self._last)) - 1]

    def expected(self, max_tokens: int) -> int:
        """Tokens to reserve for a reply of at most ``max_tokens``."""
        return max_tokens if self._p95 is None else min(max_tokens, max(1, self._p95))


class KvAdmission:
    """The books of one engine: which requests are inside, which wait. Every entry is settled exactly once."""

    def __init__(self, limits: AdmissionLimits, *, budget: int, slots: int) -> None:
        self._limits = limits
        self.budget = budget
        self.slots = slots
        self.queues = Queues(limits.tiers, limits.queue)
        self.outputs = ReplyLengths()
        self.paused = False  # the engine is saturated: nothing is let in, what may wait waits
        self._tokens: dict[PriorityTier, int] = dict.fromkeys(PRIORITY_TIERS, 0)
        self._inside: dict[PriorityTier, int] = dict.fromkeys(PRIORITY_TIERS, 0)
        self._scoring = 0
        self._done: deque[tuple[float, int]] = deque(maxlen=_SERVED)

    @property
    def tokens(self) -> int:
        """KV tokens charged to what is inside."""
        return sum(self._tokens.values())

    @property
    def inside(self) -> int:
        """Requests inside."""
        return sum(self._inside.values())

    def offer(self, entry: QueueEntry, now: float) -> None:
        """Let an entry in, queue it or refuse it. Its ``settle`` may be called before this returns."""
        if entry.cost > self.budget:
            self._shed(entry, 429, "costs more than the whole budget", now)
        elif entry.deadline <= now:
            self._shed(entry, 503, "its deadline has passed", now)
        elif self.takes(entry):
            self._enter(entry)
        elif not entry.waits:
            self._shed(entry, 429, "there is no room", now)
        elif self.queues.full(entry.tier):
            self._shed(entry, 429, f"the {entry.tier} queue is full", now)
        elif not self.queues.full():
            self.queues.push(entry)
            self.turn(now)
        elif (pushed := self.queues.displaced(entry.tier)) is not None:
            self._shed(pushed, 429, "pushed out by a more urgent request", now)
            self.queues.push(entry)
            self.turn(now)
        else:
            self._shed(entry, 429, "the queue is full", now)

    def takes(self, entry: QueueEntry) -> bool:
        """Whether an entry would be let in at once."""
        return not self.paused and not len(self.queues) and self._fits(entry, aged=False)

    def turn(self, now: float) -> None:
        """Refuse what waited too long, then let in what fits, in order."""
        for late in self.queues.expired(now):
            self._shed(late, 503, "waited longer than its deadline", now)
        while not self.paused and (entry := self._next(now)) is not None:
            self.queues.remove(entry)
            self._enter(entry)

    def flush(self, why: Shed) -> None:
        """Refuse everything that waits."""
        for entry in self.queues.drained():
            entry.settle(why)

    def produced(self, entry: QueueEntry, tokens: int) -> None:
        """Note ``tokens`` more of an entry that is inside; what goes beyond its cost is charged."""
        entry.produced += tokens
        if (beyond := entry.produced - entry.expected) > 0:
            entry.expected += beyond
            entry.cost += beyond
            self._tokens[entry.tier] += beyond

    def leave(self, entry: QueueEntry, now: float, *, whole: bool) -> None:
        """Give back an entry's place. ``whole``: its reply ended by itself, so that its length counts."""
        entry.inside = False
        self._tokens[entry.tier] -= entry.cost
        self._inside[entry.tier] -= 1
        self._scoring -= entry.scoring
        if whole:
            self.outputs.add(entry.produced)
        self._done.append((now, entry.cost))
        self.turn(now)

    def withdraw(self, entry: QueueEntry, now: float) -> None:
        """Take back an entry that waits, or that was let in and does not know it yet."""
        if entry.inside:
            self.leave(entry, now, whole=False)
        elif self.queues.remove(entry):
            self.turn(now)

    def share(self) -> float:
        """The larger of tokens and requests inside, as a share of what may be; 1 when a request waits.

        Reserves of other tiers keep one tier's load from ever filling everything: its queue tells.
        """
        return 1.0 if len(self.queues) else max(self.tokens / self.budget, self.inside / self.slots)

    def _enter(self, entry: QueueEntry) -> None:
        entry.inside = True
        self._tokens[entry.tier] += entry.cost
        self._inside[entry.tier] += 1
        self._scoring += entry.scoring
        entry.settle(None)

    def _shed(self, entry: QueueEntry, status: int, why: str, now: float) -> None:
        entry.settle(Shed(status, why, self._patience(now)))

    def _next(self, now: float) -> QueueEntry | None:
        for entry, aged in self.queues.order(now, self._scoring_full):
            if self._fits(entry, aged=aged):
                return entry
            if aged:
                return None  # nobody overtakes one that is over age
        return None

    def _fits(self, entry: QueueEntry, *, aged: bool) -> bool:
        """Whether there is room beside what other tiers reserved; an entry over age, or alone, may use that too."""
        if self._scoring_full(entry) or self.inside >= self.slots or self.tokens + entry.cost > self.budget:
            return False
        if aged or self.inside == 0:
            return True
        others = [tier for tier in PRIORITY_TIERS if tier != entry.tier]
        spare_tokens = (
            self.budget - self.tokens - sum(self._unused(self.budget, self._tokens, t) for t in others)
        )
        spare_slots = (
            self.slots - self.inside - sum(self._unused(self.slots, self._inside, t) for t in others)
        )
        return (
            entry.cost <= max(spare_tokens, self._unused(self.budget, self._tokens, entry.tier))
            and max(spare_slots, self._unused(self.slots, self._inside, entry.tier)) >= 1
        )

    def _unused(self, whole: int, used: dict[PriorityTier, int], tier: PriorityTier) -> int:
        """How much of a tier's reserve is free."""
        return max(0, math.floor(whole * self._limits.tiers.of(tier).reserve) - used[tier])

    def _scoring_full(self, entry: QueueEntry) -> bool:
        return entry.scoring and self._scoring >= self._limits.scoring

    def _patience(self, now: float) -> int:
        """Seconds until what waits now would be served at the rate of the last moments; from 1 to 60."""
        while self._done and self._done[0][0] < now - _LOAD_S:
            self._done.popleft()
        served = sum(cost for _, cost in self._done)
        if not served:
            return 1 if not len(self.queues) else 5
        rate = served / max(1.0, now - self._done[0][0])
        return max(1, min(60, math.ceil(self.queues.tokens() / rate)))
