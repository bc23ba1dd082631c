"""The sweep: rising rates until an arm falls, and a knee that says so."""

from __future__ import annotations

import time

import pytest
from tests.unit.measure.conftest import make_arm
from tests.unit.measure.test_load_pairs import loaded, mocks, timing

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.protocol import Messages
from checkweigh.measure import sweep as module
from checkweigh.measure.paired_blocks import ARMS, StopRules
from checkweigh.measure.sweep import FACTOR, knee_sentences, scaled_load, sweep
from checkweigh.records.load_spec import (
    Load,
    Objective,
    Poisson,
    Trace,
)
from checkweigh.records.measurement import SweepPoint
from checkweigh.report.html.load_plot import sweep as plot


def point(arm: str, offered: float, share: float, *, saturated: bool = False) -> SweepPoint:
    return SweepPoint(
        arm=arm, offered=offered, goodput=offered * share, share=share, requests=40, saturated=saturated, late=False
    )  # type: ignore[arg-type]  # fmt: skip


def test_the_slower_arm_falls_first(conversations: list[Messages], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINT_SECONDS", 0.8)
    slots = {"baseline": MockKnobs(slots=3, first_ms=60.0), "candidate": MockKnobs(slots=1, first_ms=60.0)}
    with mocks(**slots) as (arms, _):
        running = {role: make_arm(engine) for role, engine in arms.items()}
        rules = StopRules(timing=timing(6, rate=20.0, slo=Objective(e2e=0.3)), deadline=time.monotonic() + 60)
        points = list(sweep(loaded(running, conversations, rules), 60.0))
    by_arm = {role: [p for p in points if p.arm == role] for role in ARMS}
    rates = [p.offered for p in by_arm["candidate"]]
    assert rates[0] == 10
    assert rates[1] == pytest.approx(10 * FACTOR)
    assert len(by_arm["candidate"]) < len(by_arm["baseline"])
    assert [p.fell for p in by_arm["candidate"]][-2:] == [True, True]
    assert by_arm["baseline"][0].share > 0.9
    first, second = knee_sentences(points)
    assert "baseline's knee" in first
    assert "candidate's knee" in second


def test_it_ends_when_its_time_is_over(conversations: list[Messages]) -> None:
    with mocks() as (arms, _):
        running = {role: make_arm(engine) for role, engine in arms.items()}
        rules = StopRules(timing=timing(6), deadline=time.monotonic() + 60)
        assert list(sweep(loaded(running, conversations, rules), 0.0)) == []


def test_a_knee_is_the_last_rate_before_the_first_fall() -> None:
    points = [point("baseline", rate, share) for rate, share in ((2, 1.0), (4, 0.95), (8, 0.5), (16, 0.99))]
    assert list(knee_sentences(points)) == [
        "the baseline's knee: 90% of requests keep the slo up to 4 requests/s"
    ]
    assert list(knee_sentences([point("candidate", 2, 0.95, saturated=True)])) == [
        "the candidate's knee lies below 2 requests/s"
    ]
    assert list(knee_sentences([point("candidate", 2, 0.95)])) == [
        "the candidate's knee: 90% of requests keep the slo up to 2 requests/s, the highest rate tried"
    ]
    assert list(knee_sentences([])) == []


def test_a_trace_goes_faster_by_its_speed() -> None:
    slo = Objective(e2e=1.0)
    trace = scaled_load(Load(arrivals=Trace(kind="trace", file="t.csv", speed=2.0), slo=slo), 3.0).arrivals
    assert isinstance(trace, Trace)
    assert trace.speed == 6
    rate = scaled_load(Load(arrivals=Poisson(kind="poisson", rate=2.0), slo=slo), 3.0).arrivals
    assert isinstance(rate, Poisson)
    assert rate.rate == 6


def test_the_plot_shows_both_arms_and_names_what_happened() -> None:
    svg = plot([point("baseline", 2, 1.0), point("candidate", 2, 0.4, saturated=True)], "s")
    assert svg.count("<circle") == 4
    assert "candidate, 2 requests/s: 40% kept the slo, over-saturated" in svg
    assert "at most: baseline 2 requests/s, candidate 0.8 requests/s" in svg
    assert plot([], "s") == ""
