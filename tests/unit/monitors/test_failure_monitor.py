"""When a candidate is said to fail more sessions than the baseline: no more often than promised, and soon."""

from __future__ import annotations

import random

import pytest

from checkweigh.monitors.failures import FailureMonitor

ARMS = ("baseline", "candidate")
ALPHA = 0.05


def watching(share: float = 0.5) -> FailureMonitor:
    return FailureMonitor(share=share, margin=0.2, alpha=ALPHA)


def fired_after(
    rng: random.Random,
    *,
    share: float = 0.5,
    rates: tuple[float, float] = (0.05, 0.05),
    users: int = 0,
    requests: int = 4000,
    watch: FailureMonitor | None = None,
) -> int | None:
    """Requests until it fires. ``rates`` of failures: baseline, candidate; 0 ``users``: each request is its own."""
    watch = watch or watching(share)
    for i in range(requests):
        name = str(rng.randrange(users)) if users else f"{rng.random()}"
        candidate = random.Random(name).random() < share
        if watch.add(ARMS[candidate], name, failed=rng.random() < rates[candidate]):
            return i + 1
    return None


EQUAL = {
    "half": {"share": 0.5},
    "a tenth": {"share": 0.1},
    "nearly all": {"share": 0.9},
    "all": {"share": 1.0},
    "many failures": {"share": 0.5, "rates": (0.8, 0.8)},
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_arms_stay(case: str) -> None:
    fired = [fired_after(random.Random(seed), **EQUAL[case]) for seed in range(60)]  # type: ignore[arg-type]
    assert sum(f is not None for f in fired) <= 3, fired


@pytest.mark.parametrize(
    ("share", "rates", "requests"),
    [
        (0.5, (0.0, 1.0), 40),
        (0.5, (0.0, 0.05), 800),
        (0.5, (0.05, 0.2), 1500),
        (0.5, (0.1, 0.2), 10_000),  # twice as many: by the count without an end
        (0.1, (0.0, 0.05), 1500),
        (0.1, (0.01, 0.1), 4000),
        (0.1, (0.1, 0.2), 20_000),
        (0.9, (0.0, 0.5), 300),
    ],
)
def test_a_candidate_that_fails_more_is_seen(share: float, rates: tuple[float, float], requests: int) -> None:
    fired = [
        fired_after(random.Random(seed), share=share, rates=rates, requests=requests) for seed in range(20)
    ]
    assert sum(f is not None for f in fired) >= 18, fired


@pytest.mark.parametrize(("share", "alone", "of_100"), [(0.5, 9, 72), (0.1, 4, 25), (0.05, 3, 16)])
def test_so_many_as_the_page_says(share: float, alone: int, of_100: int) -> None:
    for before, wanted in ((0, alone), (100 - of_100, of_100)):
        watch = watching(share)
        assert not any(watch.add("baseline", f"{i}", failed=True) for i in range(before))
        fired = [watch.add("candidate", f"{i}", failed=True) for i in range(wanted)]
        assert wanted - 2 < fired.index(True) + (before > 0) <= wanted  # of 99, one less may do


def test_a_baseline_that_fails_more_is_no_alarm() -> None:
    assert not any(fired_after(random.Random(seed), rates=(0.2, 0.05)) for seed in range(20))


def test_one_session_however_often_it_fails_counts_once() -> None:
    watch = watching()
    assert not any(watch.add("candidate", "one", failed=True) for _ in range(1000))
    assert any(watch.add("candidate", f"{i}", failed=True) for i in range(9)), "nine are enough"


@pytest.mark.parametrize("users", [0, 60, 2000])
def test_a_long_time_of_equal_failures_hides_little(users: int) -> None:
    delays = []
    for seed in range(10):
        rng, watch = random.Random(seed), watching()
        fired_after(rng, requests=30_000, rates=(0.02, 0.02), users=users, watch=watch)
        if not watch.fired:
            delays.append(fired_after(rng, rates=(0.0, 1.0), requests=12_000, users=users, watch=watch))
    assert len(delays) >= 9
    assert None not in delays, delays


def test_what_is_known_of_sessions_is_bounded() -> None:
    watch = watching()
    for i in range(30_000):
        watch.add(ARMS[i % 2], str(i), failed=True)
    assert all(len(count._known) <= 10_000 for count in watch._counts)
    assert not watch.fired
