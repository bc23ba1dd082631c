"""Bounded queues, one a tier: which request is next, waited too long, is pushed out. Pure; times are arguments."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from checkweigh.guard.guard_policy import PRIORITY_TIERS, PriorityTier, Tiers


@dataclass(frozen=True, slots=True)
class Shed:
    """Why a request is not let in. ``retry_after`` in whole seconds."""

    status: int  # 429: more was asked than there is room for; 503: it cannot be served
    reason: str
    retry_after: int


@dataclass(slots=True, eq=False)
class QueueEntry:
    """One request that waits for a place or has one. ``settle`` is called once: None when let in, else why not."""

    tier: PriorityTier
    cost: int  # KV tokens
    scoring: bool  # it asks for the log probabilities of its prompt, which few at a time may
    asked: float  # when it came
    deadline: float  # of the wait
    settle: Callable[[Shed | None], None] = field(repr=False)
    waits: bool = True  # False: let in at once or shed
    inside: bool = False
    produced: int = 0  # tokens of the reply so far
    expected: int = 0  # tokens of the reply that the cost contains


class Queues:
    """First come, first served within a tier; the more urgent tier first, unless another's head is over age."""

    def __init__(self, tiers: Tiers, cap: int) -> None:
        self._tiers = tiers
        self._cap = cap
        self._soonest = math.inf  # no deadline lies before it
        self._lines: dict[PriorityTier, deque[QueueEntry]] = {tier: deque() for tier in PRIORITY_TIERS}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def length(self, tier: PriorityTier) -> int:
        """How many requests of one tier wait."""
        return len(self._lines[tier])

    def tokens(self) -> int:
        """KV tokens that all waiting requests would cost."""
        return sum(entry.cost for line in self._lines.values() for entry in line)

    def full(self, tier: PriorityTier | None = None) -> bool:
        """Whether no other request of ``tier`` may wait; None: of any tier."""
        if tier is None:
            return len(self) >= self._cap
        return len(self._lines[tier]) >= self._tiers.of(tier).queue

    def push(self, entry: QueueEntry) -> None:
        """Put an entry last in its line."""
        self._lines[entry.tier].append(entry)
        self._soonest = min(self._soonest, entry.deadline)

    def remove(self, entry: QueueEntry) -> bool:
        """Take out an entry; False when it is not here."""
        try:
            self._lines[entry.tier].remove(entry)
        except ValueError:
            return False
        return True

    def oldest(self, now: float) -> float:
        """Longest wait so far, in seconds."""
        return max((now - line[0].asked for line in self._lines.values() if line), default=0.0)

    def order(self, now: float, passed: Callable[[QueueEntry], bool]) -> Iterator[tuple[QueueEntry, bool]]:
        """The first of each line that is not ``passed`` over, in the order of service, with whether it is over age.

        Entries over age come first, the oldest of them first; then the others by tier.
        """
        firsts = (next((e for e in line if not passed(e)), None) for line in self._lines.values())
        heads = [entry for entry in firsts if entry is not None]
        aged = [e for e in heads if now - e.asked >= self._tiers.of(e.tier).age_s]
        for entry in sorted(aged, key=lambda e: e.asked):
            yield entry, True
        for entry in heads:
            if entry not in aged:
                yield entry, False

    def expired(self, now: float) -> list[QueueEntry]:
        """Take out the entries whose deadline has passed."""
        if now < self._soonest:
            return []
        every = [entry for line in self._lines.values() for entry in line]
        late = [entry for entry in every if entry.deadline <= now]
        for entry in late:
            self.remove(entry)
        self._soonest = min((e.deadline for e in every if e.deadline > now), default=math.inf)
        return late

    def displaced(self, by: PriorityTier) -> QueueEntry | None:
        """Take out the youngest entry of the least urgent tier below ``by``; None: there is none."""
        for tier in reversed(PRIORITY_TIERS[PRIORITY_TIERS.index(by) + 1 :]):
            if self._lines[tier]:
                return self._lines[tier].pop()
        return None

    def drained(self) -> list[QueueEntry]:
        """Take out every entry."""
        every = [entry for line in self._lines.values() for entry in line]
        for line in self._lines.values():
            line.clear()
        return every
