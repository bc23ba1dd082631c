"""When a candidate is switched off for what it refuses or fails: no more often than promised, and soon."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.guard.test_comparison import Engine, Service

from checkweigh.guard.guard import _APART_S, _SETTLED_S, Guard
from checkweigh.guard.request_handler import Visit
from checkweigh.guard.routing import Arm, Route


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(monkeypatch, random.Random(1))


def ended(service: Service, arm: Arm, outcome: str = "upstream_error", **changed: object) -> Visit:
    """A visit of a session of its own, that is over."""
    _, visit = service.visit(service.now, arm, Engine(), math.inf, True, "", deadlines=False)
    visit.session, visit.outcome, visit.status = f"{service.rng.random()}", outcome, 502  # type: ignore[assignment]
    visit.failed, visit.quiet, visit.over = outcome == "upstream_error", True, True
    for name, value in changed.items():
        setattr(visit, name, value)
    return visit


def heard(
    service: Service,
    arm: Arm,
    *,
    times: int = 30,
    apart: float = _APART_S + 0.01,
    after: float = _SETTLED_S,
    **changed: object,
) -> str:
    """Whether so many failures switch the candidate off, once it is seen what became of the engine."""
    for _ in range(times):
        service.guard._heard(ended(service, arm, **changed))
        service.now += apart
    service.now += after
    service.guard._heard(ended(service, "baseline", "ok"))
    return service.fired


def test_what_the_candidate_fails_switches_it_off_and_a_revival_begins_anew(service: Service) -> None:
    for _ in range(2):
        assert not heard(service, "candidate", times=9, after=_SETTLED_S - 1.1), "not before it is known"
        service.now += 0.2
        assert "sessions that an engine refused or failed" in heard(service, "baseline", times=0)
        service.guard.router.revive()
        assert not heard(service, "baseline", times=0), "what was before is forgotten"


@pytest.mark.parametrize(
    "changed",
    [
        {"quiet": False},  # an arm was full or away: it was not drawn
        {"degraded": "max_tokens=8"},  # which only one arm may be
        {"route": Route("candidate", "baseline")},  # away
        {"failed": False},  # it was full
        {"trips": 1},  # a breaker has opened, or an engine died
        {"apart": 0.01},  # all at once
        {"outcome": "shed"},
        {"outcome": "timeout"},
        {"outcome": "client_gone"},
        {"outcome": "refused"},
    ],
)
def test_what_says_nothing_of_an_engine_is_not_counted(service: Service, changed: dict[str, Any]) -> None:
    assert not heard(service, "candidate", **changed)


PAIRS = [
    ("ok", "upstream_error", True), ("upstream_error", "upstream_error", False), ("ok", "ok", False),
    ("upstream_error", "ok", False), ("client_gone", "upstream_error", False), ("shed", "upstream_error", False),
]  # fmt: skip


@pytest.mark.parametrize(("original", "copy", "off"), PAIRS)
@pytest.mark.parametrize("copy_first", [True, False])
def test_of_a_request_and_its_copy_only_what_one_failed_counts(
    service: Service, original: str, copy: str, off: bool, copy_first: bool
) -> None:
    for _ in range(30):
        one = ended(
            service, "baseline", original, route=Route("baseline", "baseline", shadow=True), shadow=object()
        )
        other = ended(service, "candidate", copy, session=one.session, twin=one, quiet=False)
        one.twin = other
        pair = (other, one) if copy_first else (one, other)
        pair[1].over = False
        service.guard._heard(pair[0])
        pair[1].over = True
        service.guard._heard(pair[1])
        service.now += _APART_S + 0.01
    service.now += _SETTLED_S
    service.guard._heard(ended(service, "baseline", "client_gone"))
    assert bool(service.fired) == off


def test_with_copies_one_arm_is_as_likely_to_fail_as_the_other(service: Service) -> None:
    guard = Guard(replace(service.guard._setup, shadow=True, share=0.0), service.said.append)
    fired = [guard._fails.add("candidate", f"{i}", failed=True) for i in range(9)]
    assert fired.index(True) == 8


def open_again_and_again(service: Service, arm: Arm, times: int) -> None:
    breaker = service.guard.arms[arm].breaker
    while breaker.trips < times:
        permit = breaker.allow(service.now)
        if permit is not None:
            breaker.failed(permit, service.now, "502")
        service.now += 1


def test_a_breaker_that_opens_again_and_again_beside_a_baseline_that_is_well(service: Service) -> None:
    open_again_and_again(service, "baseline", 1)
    open_again_and_again(service, "candidate", 5)
    service.guard._gone()
    assert not service.fired, "four times more"
    open_again_and_again(service, "candidate", 6)
    service.guard._gone()
    assert "its breaker stays open" in service.fired


def test_what_befalls_both_arms_is_no_reason(service: Service) -> None:
    open_again_and_again(service, "candidate", 6)
    open_again_and_again(service, "baseline", 1)
    service.guard._gone()
    assert not service.fired
    service.now += 60
    service.guard._gone()
    assert service.fired
