"""Which visits the guard compares, and as what: equal arms whose clients leave, and slow ones that nobody waits for."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from checkweigh.engines.http.client import Endpoint
from checkweigh.guard import guard as module
from checkweigh.guard.guard import Guard, Setup
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.http.request_schema import Bounds, read
from checkweigh.guard.request_handler import Visit
from checkweigh.guard.routing import Arm, Route

BOUNDS = Bounds(model="mock", max_sequence=512, max_tokens=256, default_tokens=16, count=len)
ASKED = {
    stream: read(
        json.dumps({"model": "mock", "prompt": "a", "stream": stream}).encode(), chat=False, bounds=BOUNDS
    )
    for stream in (True, False)
}
ARMS: tuple[Arm, Arm] = ("baseline", "candidate")


@dataclass(kw_only=True)
class Engine:
    """Its times (s), spread by ``sd`` in log; after ``stalls`` tokens nothing comes."""

    first: float = 0.1
    token: float = 0.02
    sd: float = 0.2
    stalls: float = math.inf


@dataclass
class Service:
    """A guard that is told of visits, at the times at which they end."""

    monkeypatch: pytest.MonkeyPatch
    rng: random.Random
    said: list[str] = field(default_factory=list)
    now: float = 1000.0
    leave_with_first: dict[Arm, float] = field(default_factory=dict)  # share of an arm's clients

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        arms = {arm: Endpoint(url=f"http://127.0.0.1:1/{arm}/v1", model="mock") for arm in ARMS}
        setup = Setup(policy=GuardPolicy(), bounds=BOUNDS, slots=4, share=0.5, **arms)
        self.guard = Guard(setup, self.said.append)

    @property
    def fired(self) -> str:
        return self.guard.router.killed

    def serve(
        self,
        baseline: Engine,
        candidate: Engine,
        *,
        seconds: float,
        patience: Callable[[Arm], float] = lambda arm: math.inf,
        stream: bool = True,
        deadlines: bool = False,
        degraded: Callable[[float, Arm], str] = lambda at, arm: "",
        share: float = 0.5,
    ) -> str:
        """Twenty requests a second for so long; why the candidate was switched off."""
        ended = []
        for i in range(int(20 * seconds)):
            at = self.now + i / 20
            arm: Arm = "candidate" if self.rng.random() < share else "baseline"
            engine = candidate if arm == "candidate" else baseline
            ended.append(
                self.visit(at, arm, engine, patience(arm), stream, degraded(at, arm), deadlines=deadlines)
            )
        for end, visit in sorted(ended, key=lambda pair: pair[0]):
            self.now = max(self.now, end)
            self.guard._heard(visit)
        return self.fired

    def visit(
        self, at: float, arm: Arm, engine: Engine, patience: float, stream: bool, degraded: str, *, deadlines: bool
    ) -> tuple[float, Visit]:  # fmt: skip
        """One request that came ``at``: (its end, what is known of it)."""
        drawn = self.rng.lognormvariate
        first, token = drawn(math.log(engine.first), engine.sd), drawn(math.log(engine.token), engine.sd)
        tokens = 8 if degraded else self.rng.randint(20, 60)
        total = first + token * (tokens - 1) if tokens <= engine.stalls else math.inf
        if self.rng.random() < self.leave_with_first.get(arm, 0):
            patience = first + 0.0003
        gone = patience < total
        end = min(total, patience)
        begun = first <= end if stream else not gone
        came = 0 if not begun else min(tokens, engine.stalls, 1 + (end - first) // token) if gone else tokens
        visit = Visit(
            id="v", tier="standard", asked=ASKED[stream], session="s", deadline_s=None, arrived=at, sent=at,
            route=Route(arm, arm, revivals=self.guard.router.revivals), degraded=degraded,
            outcome="ok" if not gone else "timeout" if deadlines else "client_gone",
            status=200 if not gone else 504 if deadlines else 499,
            first=None if not begun else at + (first if stream else end),
            last=None if not begun else at + (first + token * (came - 1) if stream else end),
            ended=at + end, tokens=int(came),
        )  # fmt: skip
        return at + end, visit


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Service]:
    return lambda seed: Service(monkeypatch, random.Random(seed))


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
def test_equal_arms_stay(service: Callable[[int], Service], leaving: str, share: float, stream: bool) -> None:
    fired = 0
    for seed in range(10):
        here, rng, unit = service(seed), random.Random(seed), 0.1 if stream else 0.9
        patience = lambda arm, rng=rng, unit=unit: unit * LEAVING[leaving](rng)  # noqa: E731
        fired += bool(
            here.serve(Engine(), Engine(), seconds=120, share=share, stream=stream, patience=patience)
        )
        assert min(here.guard._slower["ttft"]._seen.values()) > 30
    assert fired <= 1


@pytest.mark.parametrize("sessions", ARMS)
@pytest.mark.parametrize("after", [0.03, None], ids=["before the first token", "with it"])
def test_who_leaves_at_once_says_nothing(
    service: Callable[[int], Service], sessions: Arm, after: float | None
) -> None:
    """A client of one arm, with many requests."""
    here = service(1)
    if after is None:
        here.leave_with_first = {sessions: 0.4}
    patience = lambda arm: after if after and arm == sessions and here.rng.random() < 0.4 else math.inf  # noqa: E731
    assert not here.serve(Engine(), Engine(), seconds=120, patience=patience)
    for watch in here.guard._slower.values():
        assert abs(sum(watch._blocks)) < 0.1 * len(watch._blocks)


def test_a_slow_candidate_does_not_hide_behind_clients_that_leave_with_the_first_token(
    service: Callable[[int], Service],
) -> None:
    here = service(1)
    here.leave_with_first = dict.fromkeys(ARMS, 0.6)
    assert here.serve(Engine(), Engine(token=0.04), seconds=60)


def test_a_deadline_just_above_what_both_take_makes_no_arm_slow(service: Callable[[int], Service]) -> None:
    here = service(2)
    baseline, candidate = Engine(sd=0.05), Engine(first=0.105, sd=0.05)
    assert not here.serve(baseline, candidate, seconds=120, deadlines=True, patience=lambda arm: 0.103)


def bursts(at: float, arm: Arm) -> str:
    """Both arms degraded half of the time."""
    return "max_tokens=8" if at % 4 < 2 else ""


def own(at: float, arm: Arm) -> str:
    """Each arm by itself."""
    return "max_tokens=8" if (at + (2 if arm == "candidate" else 0)) % 4 < 2 else ""


def busy(at: float, arm: Arm) -> str:
    """Only the arm that has most of the sessions."""
    return "max_tokens=8" if arm == "baseline" else ""


def other(at: float, arm: Arm) -> str:
    """Only the candidate, half of the time."""
    return "max_tokens=8" if arm == "candidate" and at % 4 < 2 else ""


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "whole"])
@pytest.mark.parametrize("degraded", [bursts, own, busy, other])
def test_degraded_replies_make_no_arm_slow(
    service: Callable[[int], Service], degraded: Callable[[float, Arm], str], stream: bool
) -> None:
    fired = [
        service(seed).serve(Engine(), Engine(), seconds=120, degraded=degraded, stream=stream)
        for seed in range(5)
    ]
    assert not any(fired), fired


SLOW = Engine(first=0.5, token=0.1)


@pytest.mark.parametrize("deadlines", [True, False], ids=["deadline", "left"])
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
    service: Callable[[int], Service], candidate: Engine, patience: Drawn, stream: bool, deadlines: bool
) -> None:
    here, rng = service(3), random.Random(3)
    assert here.serve(
        Engine(),
        candidate,
        seconds=40,
        stream=stream,
        deadlines=deadlines,
        patience=lambda arm: patience(rng),
    ), here.said


def test_patience_just_above_what_the_baseline_takes_hides_nothing(service: Callable[[int], Service]) -> None:
    here = service(7)
    assert here.serve(Engine(), SLOW, seconds=40, patience=lambda arm: 0.115)


def test_a_slow_candidate_does_not_hide_behind_its_degraded_streams(
    service: Callable[[int], Service],
) -> None:
    here = service(4)
    assert here.serve(Engine(), SLOW, seconds=40, degraded=lambda at, arm: "x" if arm == "candidate" else "")


def test_a_candidate_that_is_revived_is_compared_anew(service: Callable[[int], Service]) -> None:
    here = service(5)
    assert here.serve(Engine(), SLOW, seconds=30)
    here.guard.router.revive()  # nothing was served in between
    assert not here.serve(Engine(), Engine(), seconds=60), "what it was is forgotten"
    assert here.serve(Engine(), SLOW, seconds=30)
    here.guard.router.revive()
    assert here.serve(Engine(), SLOW, seconds=30), "and it can fall again"


def test_what_was_routed_before_a_revival_is_not_compared(service: Callable[[int], Service]) -> None:
    here = service(6)
    lasting = [
        here.visit(here.now, arm, SLOW, 9.0, True, "", deadlines=False) for arm in ARMS for _ in range(50)
    ]
    here.guard.router.kill("an operator")
    here.guard.router.revive()
    for _, visit in lasting:
        here.now += 1
        here.guard._heard(visit)
    assert {sum(watch._seen.values()) for watch in here.guard._slower.values()} == {0}


def test_a_revival_of_what_is_not_off_forgets_nothing(service: Callable[[int], Service]) -> None:
    here = service(8)
    for _ in range(10):
        here.serve(Engine(), SLOW, seconds=4)
        if here.fired:
            break
        here.guard.router.revive()
    assert here.fired


def test_what_has_no_copy_is_not_compared_with_copies(service: Callable[[int], Service]) -> None:
    here = service(9)
    for shadow, counted in ((None, 0), (object(), 1)):
        _, visit = here.visit(here.now, "baseline", Engine(), math.inf, True, "", deadlines=False)
        visit.route = Route("baseline", "baseline", shadow=True)
        visit.shadow = shadow  # type: ignore[assignment]
        here.guard._heard(visit)
        assert here.guard._slower["ttft"]._seen["baseline"] == counted


def test_what_the_baseline_serves_for_a_candidate_that_is_away_is_not_compared(
    service: Callable[[int], Service],
) -> None:
    here = service(10)
    _, visit = here.visit(here.now, "baseline", Engine(), math.inf, True, "", deadlines=False)
    visit.route = Route("candidate", "baseline")
    here.guard._heard(visit)
    assert here.guard._slower["ttft"]._seen == {"baseline": 0, "candidate": 0}
