"""Sticky routing, and the two alarms."""

from __future__ import annotations

import math
import random

import pytest

from checkweigh.guard.alarms import Beyond, Slower
from checkweigh.guard.routing import Router


def test_sessions_stick_and_the_share_is_what_was_asked() -> None:
    router = Router(candidate_share=0.1, shadow=False, salt="s")
    sessions = [f"session {i}" for i in range(5000)]
    first = {s: router.route(s).served for s in sessions}
    assert first == {s: router.route(s).served for s in reversed(sessions)}
    share = sum(arm == "candidate" for arm in first.values()) / len(sessions)
    assert abs(share - 0.1) < 4 * math.sqrt(0.09 / 5000)
    router.share = 0.3
    assert all(router.route(s).served == "candidate" for s in sessions if first[s] == "candidate")
    other = Router(candidate_share=0.1, shadow=False, salt="t")
    assert any(other.route(s).served != first[s] for s in sessions)


def test_a_kill_serves_the_baseline_and_keeps_the_assignment() -> None:
    router = Router(candidate_share=1.0, shadow=False, salt="s")
    router.kill("slow")
    route = router.route("a")
    assert (route.assigned, route.served, router.weight) == ("candidate", "baseline", 0.0)
    router.revive()
    assert router.route("a").served == "candidate"


def test_a_shadow_is_a_copy() -> None:
    route = Router(candidate_share=0.0, shadow=True, salt="s").route("a")
    assert (route.served, route.shadow) == ("baseline", True)


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_equal_or_tolerable_arms_seldom_fire(effect: float) -> None:
    rng = random.Random(3)
    fired = 0
    for _ in range(200):
        alarm = Slower(margin=0.2 if effect else 1e-9, alpha=0.025, least=30)
        for _ in range(1000):  # two windows and a half
            alarm.add("baseline", math.exp(rng.gauss(-2, 0.5)))
            alarm.add("candidate", math.exp(rng.gauss(-2 + effect, 0.5)))
        fired += bool(alarm.fired)
    assert fired <= (10 if effect == 0 else 60), (
        "five are allowed, and chance; half the margin: worse, and sometimes estimated beyond it"
    )


def test_a_slow_candidate_fires_once_and_says_how_slow() -> None:
    alarm = Slower(margin=0.2, alpha=0.025, least=30)
    rng = random.Random(4)
    said = []
    for _ in range(200):
        said.append(alarm.add("baseline", math.exp(rng.gauss(-2, 0.3))))
        said.append(alarm.add("candidate", math.exp(rng.gauss(-1, 0.3))))
    assert sum(said) == 1
    assert "against the baseline" in alarm.fired
    silent = Slower(margin=0.2, alpha=0.025, least=30)
    for _ in range(100):
        silent.add("candidate", 9.0)
        silent.add("baseline", math.nan)
    assert not silent.fired, "an arm without evidence is no comparison"


def test_a_candidate_that_was_good_for_long_is_still_caught_soon() -> None:
    rng = random.Random(7)
    alarm = Slower(margin=0.2, alpha=0.025, least=30)
    for _ in range(20_000):
        alarm.add("baseline", math.exp(rng.gauss(-2.8, 0.3)))
        alarm.add("candidate", math.exp(rng.gauss(-2.8, 0.3)))
    assert not alarm.fired
    slow = 0
    while not alarm.fired:
        slow += 1
        alarm.add("baseline", math.exp(rng.gauss(-2.8, 0.3)))
        alarm.add("candidate", 0.5 + math.exp(rng.gauss(-2.8, 0.3)))
    assert slow <= 100, "ten seconds of ten a second"


def test_p99_beyond_its_norm_is_noticed_and_its_end_too() -> None:
    rng = random.Random(5)
    alarm = Beyond(threshold_s=1.0, alpha=0.01, window=500)
    changes = [alarm.add(2.0 if rng.random() < 0.08 else 0.5) for _ in range(500)]
    assert sum(changes) == 1
    assert alarm.deviating
    assert sum(alarm.add(0.5) for _ in range(1500)) == 1
    assert not alarm.deviating


def test_p99_at_its_norm_seldom_alarms() -> None:
    rng = random.Random(6)
    fired = 0
    for _ in range(100):
        alarm = Beyond(threshold_s=1.0, alpha=0.01, window=2000)
        fired += any(alarm.add(2.0 if rng.random() < 0.01 else 0.5) for _ in range(2000))
    assert fired <= 4
