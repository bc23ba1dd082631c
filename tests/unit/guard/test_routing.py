"""Sticky routing, and the kill switch."""

from __future__ import annotations

import math

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
