"""When a candidate that takes nobody is switched off, and when that says nothing of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from checkweigh.monitors.absence import AbsenceMonitor, ArmsState

LONG_S = 60.0


def arms(**changed: Any) -> ArmsState:
    """Both are well, but for ``changed``."""
    state: dict[str, Any] = {
        "gave_up": False, "blind": "", "breaker_lasts": False, "breaker_reason": "", "baseline_ready": True,
        "baseline_opened": -math.inf,
    }  # fmt: skip
    return ArmsState(**state | changed)


OPEN: dict[str, Any] = {"breaker_lasts": True, "breaker_reason": "a probe failed: 502"}


@pytest.mark.parametrize("now", [0.0, 0.5, 1000.0, 1e9])
def test_what_lasts_is_reason_at_once_however_young_the_clock(now: float) -> None:
    assert AbsenceMonitor(long_s=LONG_S).look(arms(), now) == ""
    assert AbsenceMonitor(long_s=LONG_S).look(arms(gave_up=True), now) == "its engine stays down"
    assert AbsenceMonitor(long_s=LONG_S).look(arms(**OPEN), now) == (
        "its breaker stays open (a probe failed: 502)"
    )


def test_what_befalls_both_arms_is_no_reason_until_the_baseline_was_well_for_long() -> None:
    monitor = AbsenceMonitor(long_s=LONG_S)
    assert not monitor.look(arms(baseline_ready=False, **OPEN), 100.0)
    assert not monitor.look(arms(baseline_opened=100.0, **OPEN), 159.9)
    assert monitor.look(arms(baseline_opened=100.0, **OPEN), 160.0)
    assert monitor.look(arms(baseline_ready=False, gave_up=True), 100.0), "an end of its own"


def test_blindness_is_reason_when_it_has_lasted() -> None:
    monitor, blind = AbsenceMonitor(long_s=LONG_S), arms(blind="metrics are frozen")
    assert not monitor.look(blind, 0.0)
    assert not monitor.look(blind, 59.9)
    assert monitor.look(blind, 60.0) == "its metrics are frozen"
    assert not monitor.look(arms(), 61.0)
    assert not monitor.look(blind, 62.0), "it begins again"
    assert not monitor.look(blind, 121.9)
    monitor.restart()
    assert not monitor.look(blind, 122.0), "what was seen is forgotten"
    assert monitor.look(blind, 182.0)
