"""The breaker: trips, probes, generations, holds."""

from __future__ import annotations

from checkweigh.guard.breaker import Breaker, BreakerState, Permit
from checkweigh.guard.guard_policy import BreakerLimits

LIMITS = BreakerLimits(failures=3, share=0.5, window_s=10, open_s=2, open_max_s=6)


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(given(breaker, now), now, "502")


def given(breaker: Breaker, now: float) -> Permit:
    permit = breaker.allow(now)
    assert permit is not None
    return permit


def test_failures_within_the_window_open_it_and_a_probe_closes_it() -> None:
    breaker = Breaker(LIMITS)
    fail(breaker, 0.0, 2)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 1.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.allow(2.9) is None
    assert breaker.retry_after(1.0) == 2
    probe = given(breaker, 3.0)
    assert probe.probe
    assert breaker.allow(3.0) is None, "one probe"
    breaker.succeeded(probe, 3.1)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.trips == 1


def test_few_failures_among_many_successes_do_not_open_it() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(10):
        breaker.succeeded(given(breaker, 0.0), 0.0)
    fail(breaker, 0.0, 5)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 0.0, 5)
    assert breaker.state is BreakerState.OPEN


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker(LIMITS)
    fail(breaker, 0.0, 2)
    fail(breaker, 11.0)
    assert breaker.state is BreakerState.CLOSED


def test_a_failed_probe_doubles_the_wait_up_to_its_bound() -> None:
    breaker = Breaker(LIMITS)
    fail(breaker, 0.0, 3)
    now = 0.0
    for wait in (2.0, 4.0, 6.0, 6.0):
        assert breaker.allow(now + wait - 0.1) is None
        now += wait
        breaker.failed(given(breaker, now), now, "502")


def test_a_dropped_probe_lets_another_probe_and_a_stale_success_closes_nothing() -> None:
    breaker = Breaker(LIMITS)
    early = given(breaker, 0.0)
    fail(breaker, 0.0, 3)
    first = given(breaker, 2.0)
    breaker.dropped(first)
    breaker.succeeded(first, 2.0)
    assert breaker.state is BreakerState.HALF_OPEN, "a permit speaks once"
    breaker.succeeded(early, 2.0)
    assert breaker.state is BreakerState.HALF_OPEN, "sent before the trip"
    second = given(breaker, 2.0)
    assert second.probe
    breaker.succeeded(second, 2.1)
    assert breaker.state is BreakerState.CLOSED


def test_a_stale_failure_opens_nothing() -> None:
    breaker = Breaker(LIMITS)
    early = [given(breaker, 0.0) for _ in range(5)]
    fail(breaker, 0.0, 3)
    breaker.succeeded(given(breaker, 2.0), 2.0)
    for permit in early:
        breaker.failed(permit, 2.0, "late")
    assert breaker.state is BreakerState.CLOSED


def test_holds_are_independent_and_the_last_release_leads_to_a_probe() -> None:
    breaker = Breaker(LIMITS)
    breaker.hold("memory", "memory is critical")
    breaker.hold("process", "down")
    assert breaker.refuses(0.0)
    breaker.reset("process")
    assert breaker.allow(100.0) is None
    breaker.release("memory", 100.0)
    probe = given(breaker, 100.0)
    assert probe.probe
    assert breaker.refuses(100.0)
    breaker.succeeded(probe, 100.0)
    assert not breaker.refuses(100.0)
    breaker.hold("process", "down")
    breaker.reset("process")
    assert breaker.state is BreakerState.CLOSED


def test_it_lasts_when_it_opens_again_soon_after_each_probe() -> None:
    breaker, now = Breaker(LIMITS), 0.0
    for times in range(6):
        fail(breaker, now, 3)
        assert breaker.lasting == (times == 5)
        breaker.succeeded(given(breaker, now := now + 2), now)
        assert not breaker.lasting, "it is closed"
    fail(breaker, now + 20, 3)
    assert not breaker.lasting, "it was well for twice the window"


def test_it_lasts_when_probe_after_probe_failed_and_not_for_a_hold() -> None:
    breaker = Breaker(LIMITS)
    breaker.hold("process", "starting")
    assert not breaker.lasting
    breaker.reset("process")
    fail(breaker, 0.0, 3)
    for now in (2.0, 6.0, 12.0, 18.0, 24.0):
        assert not breaker.lasting
        breaker.failed(given(breaker, now), now, "502")
    assert breaker.lasting
    breaker.hold("memory", "memory is critical")
    assert not breaker.lasting, "a cause that both arms may have"
    breaker.release("memory", 25.0)
    for now in (25.0, 29.0, 35.0, 41.0, 47.0):
        assert not breaker.lasting
        breaker.failed(given(breaker, now), now, "502")
    assert breaker.lasting
    breaker.again(48.0)
    assert not breaker.lasting
    breaker.succeeded(given(breaker, 48.0), 48.0)
    assert breaker.state is BreakerState.CLOSED
