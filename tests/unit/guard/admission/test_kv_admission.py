"""Admission as pure books: budgets, reserves, order, sheds; every entry settled once, and everything given back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkweigh.guard.admission.kv_admission import KvAdmission, ReplyLengths
from checkweigh.guard.admission.queueing import QueueEntry, Shed
from checkweigh.guard.guard_policy import (
    AdmissionLimits,
    PriorityTier,
    TierLimits,
    Tiers,
)

FREE = Tiers(
    interactive=TierLimits(reserve=0.0, queue=4, deadline_s=5, age_s=2),
    standard=TierLimits(reserve=0.0, queue=4, deadline_s=5, age_s=2),
    bulk=TierLimits(reserve=0.0, queue=4, deadline_s=60, age_s=30),
)


class Asker:
    """Offers entries and keeps how each was settled."""

    def __init__(
        self, tiers: Tiers = FREE, *, budget: int = 100, slots: int = 10, queue: int = 256, scoring: int = 2
    ):
        self.gate = KvAdmission(
            AdmissionLimits(tiers=tiers, queue=queue, scoring=scoring), budget=budget, slots=slots
        )
        self.settled: dict[str, Shed | None] = {}
        self.entries: dict[str, QueueEntry] = {}

    def offer(
        self, name: str, tier: PriorityTier = "standard", cost: int = 10, now: float = 0.0, wait: float = 1e9,
        scoring: bool = False,
    ) -> None:  # fmt: skip
        def settle(shed: Shed | None) -> None:
            assert name not in self.settled, "settled twice"
            self.settled[name] = shed

        entry = QueueEntry(
            tier=tier, cost=cost, scoring=scoring, asked=now, deadline=now + wait, settle=settle, expected=4
        )
        self.entries[name] = entry
        self.gate.offer(entry, now)

    def leave(self, name: str, now: float = 0.0, whole: bool = True) -> None:
        self.gate.leave(self.entries[name], now, whole=whole)

    def inside(self) -> list[str]:
        return [name for name, shed in self.settled.items() if shed is None]


def test_the_budget_holds_and_what_leaves_makes_room() -> None:
    asker = Asker(budget=25)
    for name in "abc":
        asker.offer(name)
    assert asker.inside() == ["a", "b"]
    assert asker.gate.tokens == 20
    asker.leave("a")
    assert asker.inside() == ["a", "b", "c"]
    asker.leave("b")
    asker.leave("c")
    assert (asker.gate.tokens, asker.gate.inside) == (0, 0)


def test_a_cost_beyond_the_whole_budget_is_refused_at_once() -> None:
    asker = Asker(budget=25)
    asker.offer("a", cost=26)
    shed = asker.settled["a"]
    assert shed is not None
    assert shed.status == 429


def test_a_full_queue_is_429_with_a_time_and_never_grows() -> None:
    asker = Asker(slots=1)
    for i in range(7):
        asker.offer(str(i))
    shed = [s for s in asker.settled.values() if s is not None]
    assert [s.status for s in shed] == [429, 429]
    assert all(s.retry_after >= 1 for s in shed)
    assert asker.gate.queues.length("standard") == 4


def test_a_deadline_in_the_queue_is_503() -> None:
    asker = Asker(slots=1)
    asker.offer("a")
    asker.offer("b", now=0.0, wait=3.0)
    asker.gate.turn(2.9)
    assert "b" not in asker.settled
    asker.gate.turn(3.0)
    shed = asker.settled["b"]
    assert shed is not None
    assert shed.status == 503
    assert len(asker.gate.queues) == 0


def test_the_more_urgent_goes_first_until_another_is_over_age() -> None:
    asker = Asker(slots=1)
    asker.offer("running")
    asker.offer("old bulk", "bulk", now=0.0)
    asker.offer("young", "interactive", now=29.0)
    asker.leave("running", now=29.5)
    assert asker.inside()[-1] == "young"
    asker.offer("younger", "interactive", now=29.9)
    asker.leave("young", now=30.0)
    assert asker.inside()[-1] == "old bulk"


def test_nobody_overtakes_one_that_is_over_age_and_does_not_fit() -> None:
    asker = Asker(budget=100)
    asker.offer("running", cost=50)
    asker.offer("large", "bulk", cost=80, now=0.0)
    asker.offer("small", "interactive", cost=10, now=31.0)
    assert "small" not in asker.settled
    asker.leave("running", now=31.0)
    assert asker.inside() == ["running", "large", "small"]


def test_a_reserve_is_for_its_tier_alone() -> None:
    tiers = FREE.model_copy(update={"interactive": TierLimits(reserve=0.3, queue=4, deadline_s=5, age_s=2)})
    asker = Asker(tiers)
    for i in range(10):
        asker.offer(f"bulk {i}", "bulk")
    assert len(asker.inside()) == 7
    for i in range(3):
        asker.offer(f"now {i}", "interactive")
    assert asker.inside()[7:] == ["now 0", "now 1", "now 2"]


def test_bulk_is_pushed_out_when_all_queues_are_full() -> None:
    asker = Asker(slots=1, queue=2)
    asker.offer("running")
    asker.offer("bulk 0", "bulk")
    asker.offer("bulk 1", "bulk")
    asker.offer("urgent", "interactive")
    shed = asker.settled["bulk 1"]
    assert shed is not None
    assert shed.status == 429
    assert len(asker.gate.queues) == 2
    asker.offer("bulk 2", "bulk")
    assert asker.settled["bulk 2"] is not None, "an equal is not pushed out"
    asker.leave("running")
    assert asker.inside()[-1] == "urgent"


def test_scoring_has_a_cap_of_its_own_that_stops_nobody_else() -> None:
    asker = Asker()
    for i in range(3):
        asker.offer(f"score {i}", scoring=True)
    asker.offer("chat", "bulk")
    asker.offer("behind it in its own line")
    assert asker.inside() == ["score 0", "score 1", "chat", "behind it in its own line"]
    asker.leave("score 0")
    assert asker.inside()[-1] == "score 2"


def test_what_was_served_is_forgotten_in_the_end() -> None:
    asker = Asker()
    for i in range(5000):
        asker.offer(str(i), now=i)
        asker.leave(str(i), now=i)
    assert len(asker.gate._done) < 5000, "one that is never full sheds nobody, and must not grow"


def test_while_paused_nobody_enters_and_who_may_wait_waits() -> None:
    asker = Asker()
    asker.gate.paused = True
    asker.offer("a", wait=1.0)
    assert asker.settled == {}
    asker.gate.paused = False
    asker.gate.turn(0.5)
    assert asker.inside() == ["a"]


def test_a_flush_tells_all_who_wait() -> None:
    asker = Asker(slots=1)
    asker.offer("a")
    asker.offer("b")
    asker.gate.flush(Shed(503, "down", 1))
    assert asker.settled["b"] == Shed(503, "down", 1)
    assert asker.inside() == ["a"]


def test_one_that_goes_away_gives_back_whether_it_waited_or_was_just_let_in() -> None:
    asker = Asker(slots=1)
    for name in "abc":
        asker.offer(name)
    asker.gate.withdraw(asker.entries["c"], 0.0)
    assert len(asker.gate.queues) == 1
    asker.leave("a")
    asker.gate.withdraw(asker.entries["b"], 0.0)
    assert (asker.gate.inside, asker.gate.tokens, len(asker.gate.queues)) == (0, 0, 0)


def test_a_reply_beyond_its_cost_is_charged_for_it() -> None:
    asker = Asker(budget=30)
    asker.offer("a", cost=10)
    asker.gate.produced(asker.entries["a"], 4)
    assert asker.gate.tokens == 10
    asker.gate.produced(asker.entries["a"], 15)
    assert asker.gate.tokens == 25
    asker.offer("b", cost=10)
    assert asker.inside() == ["a"]
    asker.leave("a")
    assert asker.gate.tokens == 10


def test_the_cost_of_a_reply_is_the_rolling_p95() -> None:
    outputs = ReplyLengths()
    assert outputs.expected(500) == 500
    for i in range(64):
        outputs.add(10 if i % 32 else 400)
    assert outputs.expected(500) == 10
    assert outputs.expected(5) == 5


@given(seed=st.integers(0, 10_000), paused=st.booleans())
def test_whatever_happens_the_books_balance(seed: int, paused: bool) -> None:
    rng = random.Random(seed)
    asker = Asker(Tiers(), budget=200, slots=6, queue=8)
    inside: list[str] = []
    now = 0.0
    for i in range(120):
        now += rng.random()
        asker.gate.paused = paused and rng.random() < 0.3
        done = [n for n in asker.inside() if n not in inside]
        if done and rng.random() < 0.45:
            name = rng.choice(done)
            inside.append(name)
            asker.leave(name, now, whole=rng.random() < 0.5)
        else:
            asker.offer(
                str(i), rng.choice(("interactive", "standard", "bulk")), rng.randint(1, 120), now,
                rng.uniform(0.1, 20), rng.random() < 0.2,
            )  # fmt: skip
        live = [n for n in asker.inside() if n not in inside]
        gate = asker.gate
        assert gate.inside == len(live) <= 6
        assert gate.tokens == sum(asker.entries[n].cost for n in live) <= 200
        assert len(gate.queues) <= 8
        assert sum(asker.entries[n].scoring for n in live) <= 2
    asker.gate.paused = False
    for _ in range(200):
        live = [n for n in asker.inside() if n not in inside]
        if not live:
            break
        inside.append(live[0])
        asker.leave(live[0], now)
    asker.gate.turn(now + 100)
    assert (asker.gate.inside, asker.gate.tokens, len(asker.gate.queues)) == (0, 0, 0)
    assert len(asker.settled) == len(asker.entries)


def test_reserves_beyond_everything_are_bad_input() -> None:
    with pytest.raises(ValueError, match="sum to at most 1"):
        Tiers(interactive=TierLimits(reserve=0.8), bulk=TierLimits(reserve=0.3))
