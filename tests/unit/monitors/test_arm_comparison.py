"""Which requests are compared, and as what: clients that leave, slow arms that nobody waits for, failures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.monitors.traffic import ARMS, Engine, Service, outcome, request

from checkweigh.monitors.arm_comparison import _APART_S, _SETTLED_S

Drawn = Callable[[random.Random], float]
LEAVING: dict[str, Drawn] = {  # in first tokens, or whole replies
    "nobody": lambda rng: math.inf,
    "before it comes": lambda rng: rng.uniform(0.1, 2.0),
    "at any time": lambda rng: rng.expovariate(0.1),
    "all at one": lambda rng: 1.1,
}


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "whole"])
@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("leaving", LEAVING)
def test_equal_arms_stay(leaving: str, share: float, stream: bool) -> None:
    fired = 0
    for seed in range(10):
        here, rng, unit = Service(random.Random(seed)), random.Random(seed), 0.1 if stream else 0.9
        patience = lambda arm, rng=rng, unit=unit: unit * LEAVING[leaving](rng)  # noqa: E731
        fired += bool(
            here.serve(Engine(), Engine(), seconds=120, share=share, stream=stream, patience=patience)
        )
        assert min(map(here.comparison.latency["ttft"].requests, ARMS)) > 30
    assert fired <= 1


@pytest.mark.parametrize("sessions", ARMS)
@pytest.mark.parametrize("after", [0.03, None], ids=["before the first token", "with it"])
def test_who_leaves_at_once_says_nothing(sessions: str, after: float | None) -> None:
    """A client of one arm, with many requests."""
    here = Service(random.Random(1))
    if after is None:
        here.leave_with_first = {sessions: 0.4}
    patience = lambda arm: after if after and arm == sessions and here.rng.random() < 0.4 else math.inf  # noqa: E731
    assert not here.serve(Engine(), Engine(), seconds=120, patience=patience)
    for watch in here.comparison.latency.values():
        assert abs(sum(watch._blocks)) < 0.1 * len(watch._blocks)


def test_a_slow_candidate_does_not_hide_behind_clients_that_leave_with_the_first_token() -> None:
    here = Service(random.Random(1))
    here.leave_with_first = dict.fromkeys(ARMS, 0.6)
    assert here.serve(Engine(), Engine(token=0.04), seconds=60)


def test_a_deadline_just_above_what_both_take_makes_no_arm_slow() -> None:
    here = Service(random.Random(2))
    baseline, candidate = Engine(sd=0.05), Engine(first=0.105, sd=0.05)
    assert not here.serve(baseline, candidate, seconds=120, patience=lambda arm: 0.103)


def bursts(at: float, arm: str) -> bool:
    """Both arms degraded half of the time."""
    return at % 4 < 2


def own(at: float, arm: str) -> bool:
    """Each arm by itself."""
    return (at + (2 if arm == "candidate" else 0)) % 4 < 2


def busy(at: float, arm: str) -> bool:
    """Only the arm that has most of the sessions."""
    return arm == "baseline"


def other(at: float, arm: str) -> bool:
    """Only the candidate, half of the time."""
    return arm == "candidate" and at % 4 < 2


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "whole"])
@pytest.mark.parametrize("degraded", [bursts, own, busy, other])
def test_degraded_replies_make_no_arm_slow(degraded: Callable[[float, str], bool], stream: bool) -> None:
    fired = [
        Service(random.Random(seed)).serve(Engine(), Engine(), seconds=120, degraded=degraded, stream=stream)
        for seed in range(5)
    ]
    assert not any(fired), fired


SLOW = Engine(first=0.5, token=0.1)


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "whole"])
@pytest.mark.parametrize(
    ("candidate", "patience"),
    [
        (SLOW, lambda rng: math.inf),
        (SLOW, lambda rng: rng.expovariate(1.0)),
        (Engine(first=1e9), lambda rng: 1.2),
        (Engine(stalls=1), lambda rng: 2.0),
        (Engine(stalls=10), lambda rng: 5.0),
    ],
    ids=["slow", "left", "patience above the baseline's", "stalls at once", "stalls"],
)
def test_a_slow_candidate_is_seen_whatever_its_clients_do(
    candidate: Engine, patience: Drawn, stream: bool
) -> None:
    here, rng = Service(random.Random(3)), random.Random(3)
    assert here.serve(
        Engine(),
        candidate,
        seconds=40,
        stream=stream,
        patience=lambda arm: patience(rng),
    )


def test_patience_just_above_what_the_baseline_takes_hides_nothing() -> None:
    here = Service(random.Random(7))
    assert here.serve(Engine(), SLOW, seconds=40, patience=lambda arm: 0.115)


def test_a_slow_candidate_does_not_hide_behind_its_degraded_streams() -> None:
    here = Service(random.Random(4))
    assert here.serve(Engine(), SLOW, seconds=40, degraded=lambda at, arm: arm == "candidate")


def test_what_was_found_before_a_restart_is_forgotten() -> None:
    here = Service(random.Random(5))
    assert here.serve(Engine(), SLOW, seconds=30)
    here.revive()  # nothing was served in between
    assert not here.serve(Engine(), Engine(), seconds=60)
    assert here.serve(Engine(), SLOW, seconds=30)
    here.revive()
    assert here.serve(Engine(), SLOW, seconds=30), "and it can fall again"


def test_what_has_no_copy_is_not_compared_with_copies() -> None:
    here = Service(random.Random(9))
    for missing, counted in ((True, 0), (False, 1)):
        here.show(replace(here.draw(here.now, "baseline", Engine()), copy_missing=missing))
        assert here.comparison.latency["ttft"].requests("baseline") == counted


def test_what_the_baseline_serves_for_a_candidate_that_is_away_is_not_compared() -> None:
    here = Service(random.Random(10))
    here.show(replace(here.draw(here.now, "baseline", Engine()), assigned="candidate"))
    assert [here.comparison.latency["ttft"].requests(arm) for arm in ARMS] == [0, 0]


def ended(here: Service, arm: str, became: str = "failed", **changed: Any) -> str:
    """Show a request of a session of its own that both arms would have sent at once."""
    own = {name: changed.pop(name) for name in ("trips", "degraded") if name in changed}
    fields = {"session": f"{here.rng.random()}", "unhurried": True, **changed}
    return here.show(request(here.now, outcome(arm, became, **own), **fields))


def fails(
    here: Service,
    arm: str,
    *,
    times: int = 30,
    apart: float = _APART_S + 0.01,
    after: float = _SETTLED_S,
    **changed: Any,
) -> str:
    """Whether so many failures switch the candidate off, once it is known what became of the engine."""
    for _ in range(times):
        ended(here, arm, **changed)
        here.now += apart
    here.now += after
    return ended(here, "baseline", "ok")


def test_what_the_candidate_fails_counts_once_it_is_settled_and_a_restart_forgets_it() -> None:
    here = Service(random.Random(1))
    for _ in range(2):
        assert not fails(here, "candidate", times=9, after=_SETTLED_S - 1.1), "not before it is known"
        here.now += 0.2
        assert "sessions that an engine refused or failed" in fails(here, "baseline", times=0)
        here.revive()
        assert not fails(here, "baseline", times=0), "what was before is forgotten"


@pytest.mark.parametrize(
    "changed",
    [
        {"unhurried": False},  # an arm was full or away: it was not drawn
        {"degraded": True},  # which only one arm may be
        {"assigned": "baseline"},  # which was away
        {"trips": -1},  # a breaker has opened since, or an engine died
        {"apart": 0.01},  # all at once
        {"became": "shed"},
        {"became": "client_gone", "given_up": True},
    ],
)
def test_what_says_nothing_of_an_engine_is_not_counted(changed: dict[str, Any]) -> None:
    assert not fails(Service(random.Random(1)), "candidate", **changed)


PAIRS = [
    ("ok", "failed", True), ("failed", "failed", False), ("ok", "ok", False), ("failed", "ok", False),
    ("gone", "failed", False), ("shed", "failed", False),
]  # fmt: skip


@pytest.mark.parametrize(("original", "copy", "off"), PAIRS)
@pytest.mark.parametrize("copy_first", [True, False])
def test_of_a_request_and_its_copy_only_what_one_failed_counts(
    original: str, copy: str, off: bool, copy_first: bool
) -> None:
    here = Service(random.Random(1))
    outcomes = [outcome("baseline", original), outcome("candidate", copy)]
    if copy_first:
        outcomes.reverse()
    for _ in range(30):
        session = f"{here.rng.random()}"
        for own, twin in ((outcomes[0], None), (outcomes[1], outcomes[0])):
            here.show(request(here.now, own, session=session, copied=True, twin=twin))
        here.now += _APART_S + 0.01
    here.now += _SETTLED_S
    ended(here, "baseline", "gone")
    assert bool(here.fired) == off
