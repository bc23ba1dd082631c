"""When a candidate is switched off for what it refuses: no more often than promised, and soon."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from checkweigh.guard.alarms import Refuses

ALPHA = 0.05


def fired_after(
    rng: random.Random,
    *,
    share: float = 0.5,
    rates: tuple[float, float] = (0.05, 0.05),
    shed: float = 0.0,
    session: Callable[[int], str] = str,
    requests: int = 4000,
    watch: Refuses | None = None,
) -> int | None:
    """Requests until it fires. ``rates``: refused by the baseline and by the candidate; ``shed`` of the baseline's."""
    watch = watch or Refuses(share=share, margin=0.2, alpha=ALPHA)
    for i in range(requests):
        name = session(i)
        candidate = (rng if name == str(i) else random.Random(name)).random() < share
        if not candidate and rng.random() < shed:
            continue
        refused = rng.random() < rates[candidate]
        if watch.add("candidate" if candidate else "baseline", name, refused=refused):
            return i + 1
    return None


EQUAL = {
    "half": {"share": 0.5},
    "a tenth": {"share": 0.1},
    "nearly all": {"share": 0.9},
    "many refusals": {"share": 0.5, "rates": (0.8, 0.8)},
    "a baseline that sheds": {"share": 0.5, "shed": 0.6},
    "a baseline that sheds most of a small share": {"share": 0.1, "shed": 0.9},
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_arms_stay(case: str) -> None:
    fired = [fired_after(random.Random(seed), **EQUAL[case]) for seed in range(60)]  # type: ignore[arg-type]
    assert sum(f is not None for f in fired) <= 3, fired


@pytest.mark.parametrize(
    ("share", "rates", "requests"),
    [
        (0.5, (0.0, 1.0), 30),
        (0.5, (0.0, 0.05), 800),
        (0.1, (0.0, 0.05), 1500),
        (0.1, (0.01, 0.1), 3000),
        (0.5, (0.05, 0.2), 1000),
        (0.9, (0.0, 0.5), 150),
    ],
)
def test_a_candidate_that_refuses_is_seen(share: float, rates: tuple[float, float], requests: int) -> None:
    fired = [
        fired_after(random.Random(seed), share=share, rates=rates, requests=requests) for seed in range(20)
    ]
    assert sum(f is not None for f in fired) >= 19, fired


def test_a_baseline_that_refuses_more_is_no_alarm() -> None:
    assert not any(fired_after(random.Random(seed), rates=(0.2, 0.05)) for seed in range(20))


def test_one_session_however_often_refused_counts_once() -> None:
    assert not any(
        fired_after(random.Random(seed), rates=(1.0, 1.0), session=lambda i: f"{i % 3}") for seed in range(20)
    )
    watch = Refuses(share=0.5, margin=0.2, alpha=ALPHA)
    assert not any(watch.add("candidate", "one", refused=True) for _ in range(1000))


def test_a_long_time_of_equal_refusals_hides_little() -> None:
    found = []
    for seed in range(10):
        rng, watch = random.Random(seed), Refuses(share=0.5, margin=0.2, alpha=ALPHA)
        fired_after(rng, requests=20_000, watch=watch)
        if not watch.fired:
            found.append(
                fired_after(rng, rates=(0.0, 1.0), requests=300, session=lambda i: f"new {i}", watch=watch)
            )
    assert len(found) >= 9
    assert None not in found, found


def test_what_is_known_of_sessions_is_bounded() -> None:
    watch = Refuses(share=0.5, margin=0.2, alpha=ALPHA)
    for i in range(30_000):
        watch.add(("baseline", "candidate")[i % 2], str(i), refused=True)
    assert len(watch._known) <= 10_000
    assert not watch.fired
