"""When the guard switches a candidate off, as its monitors say, and compares it from the start when it is revived."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.unit.monitors import traffic
from tests.unit.monitors.traffic import ARMS, Engine, Service, outcome

from checkweigh.engines.http.client import Endpoint
from checkweigh.guard.guard import Guard, GuardSetup
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.http.request_schema import Bounds
from checkweigh.guard.routing import ArmName
from checkweigh.monitors.finished_request import FinishedRequest

BOUNDS = Bounds(model="mock", max_sequence=512, max_tokens=256, default_tokens=16, count=len)
SLOW = Engine(first=0.5, token=0.1)


class Bench:
    """A guard of two arms that nobody asks, shown simulated requests; its clock is the requests'."""

    def __init__(self, seed: int, *, shadow: bool = False) -> None:
        arms = {arm: Endpoint(url=f"http://127.0.0.1:1/{arm}/v1", model="mock") for arm in ARMS}
        share = 0.0 if shadow else 0.5
        setup = GuardSetup(policy=GuardPolicy(), bounds=BOUNDS, slots=4, share=share, shadow=shadow, **arms)  # type: ignore[arg-type]
        self.messages: list[str] = []
        self.guard = Guard(setup, self.messages.append)
        self.traffic = Service(random.Random(seed))

    @property
    def off(self) -> str:
        return self.guard.router.killed

    def draw(self, seconds: float, candidate: Engine) -> list[FinishedRequest]:
        """Twenty requests a second, routed now, in the order in which they end."""
        traffic, drawn = self.traffic, []
        for i in range(int(20 * seconds)):
            arm = ARMS[traffic.rng.random() < 0.5]
            one = traffic.draw(traffic.now + i / 20, arm, candidate if arm == "candidate" else Engine())
            drawn.append(replace(one, revivals=self.guard.router.revivals))
        return sorted(drawn, key=lambda finished: finished.finished)

    def show(self, requests: list[FinishedRequest]) -> str:
        for finished in requests:
            self.traffic.now = max(self.traffic.now, finished.finished)
            self.guard._on_finished(finished)
        return self.off

    def open(self, arm: ArmName, times: int, now: float) -> float:
        """Open an arm's breaker so often; when the last time was over."""
        breaker = self.guard.arms[arm].breaker
        while breaker.trips < times:
            permit = breaker.allow(now)
            if permit is not None:
                breaker.failed(permit, now, "502")
            now += 1
        return now


def test_a_slow_candidate_is_switched_off_and_a_revived_one_is_compared_from_the_start() -> None:
    bench = Bench(5)
    assert bench.show(bench.draw(30, SLOW)).startswith("ttft ")
    assert bench.messages == [f"ALARM: candidate switched off: {bench.off}"]
    assert bench.guard.router.weight == 0
    bench.guard.router.revive()  # nothing was served in between
    assert not bench.show(bench.draw(60, Engine())), "what it was is forgotten"
    assert bench.show(bench.draw(30, SLOW))
    bench.guard.router.revive()
    assert bench.show(bench.draw(30, SLOW)), "and it can fall again"


def test_what_was_routed_before_a_revival_is_not_compared() -> None:
    bench = Bench(6)
    lasting = bench.draw(30, SLOW)
    bench.guard.router.kill("an operator")
    bench.guard.router.revive()
    assert not bench.show(lasting)
    assert [bench.guard.comparison.latency["ttft"].requests(arm) for arm in ARMS] == [0, 0]


def test_a_revival_of_what_is_not_off_forgets_nothing() -> None:
    bench = Bench(8)
    for _ in range(10):
        if bench.show(bench.draw(4, SLOW)):
            break
        bench.guard.router.revive()
    assert bench.off


def test_what_is_served_while_the_candidate_is_off_is_not_compared() -> None:
    bench = Bench(9)
    bench.guard.router.kill("an operator")
    bench.show(bench.draw(5, SLOW))
    assert [bench.guard.comparison.latency["ttft"].requests(arm) for arm in ARMS] == [0, 0]


@pytest.mark.parametrize("trips", [0, 1])
def test_failures_count_unless_a_breaker_has_opened_since(trips: int) -> None:
    bench = Bench(1)
    for _ in range(9):
        failed = outcome("candidate", "failed", trips=trips)
        session = f"{bench.traffic.rng.random()}"
        bench.show([traffic.request(bench.traffic.now, failed, session=session, unhurried=True)])
        bench.traffic.now += 1.1
    assert not bench.off
    bench.show([traffic.request(bench.traffic.now + 5, outcome("baseline"))])
    assert ("sessions that an engine refused or failed" in bench.off) == (trips == 0)


def test_with_copies_one_arm_is_as_likely_to_fail_as_the_other() -> None:
    failures = Bench(1, shadow=True).guard.comparison.failures
    fired = [failures.add("candidate", f"{i}", failed=True) for i in range(9)]
    assert fired.index(True) == 8


@pytest.fixture(params=[0.0, 1000.0, 1e9], ids=["a host just booted", "soon after", "long after"])
def start(request: pytest.FixtureRequest) -> float:
    """Where the monotonic clock stands when the guard starts: on Linux the seconds since the host was booted."""
    return float(request.param)


def test_a_breaker_that_opens_again_and_again_beside_a_baseline_that_is_well(start: float) -> None:
    bench = Bench(1)
    bench.open("candidate", 5, start)
    bench.guard._look_for_candidate(start + 10)
    assert not bench.off, "four times more"
    bench.open("candidate", 6, start + 10)
    bench.guard._look_for_candidate(start + 20)
    assert "its breaker stays open" in bench.off


def test_a_baseline_whose_breaker_was_closed_long_ago_is_well(start: float) -> None:
    bench = Bench(1)
    bench.open("baseline", 1, start)
    bench.guard._look_for_candidate(bench.open("candidate", 6, start) + 60)
    assert "its breaker stays open" in bench.off


def test_what_befalls_both_arms_is_no_reason(start: float) -> None:
    bench = Bench(1)
    now = bench.open("baseline", 1, bench.open("candidate", 6, start))
    bench.guard._look_for_candidate(now)
    assert not bench.off
    bench.guard._look_for_candidate(now + 60)
    assert bench.off
