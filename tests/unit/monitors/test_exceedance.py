"""When a p99 is said to have moved beyond its threshold, and when to be back."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.unit.monitors.traffic import outcome, request

from checkweigh.monitors.exceedance import ExceedanceMonitor


def test_p99_beyond_its_norm_is_noticed_and_its_end_too() -> None:
    rng = random.Random(5)
    alarm = ExceedanceMonitor(threshold_s=1.0, alpha=0.01, window=500)
    changes = [alarm.add(2.0 if rng.random() < 0.08 else 0.5) for _ in range(500)]
    assert sum(changes) == 1
    assert alarm.deviating
    assert sum(alarm.add(0.5) for _ in range(1500)) == 1
    assert not alarm.deviating


def test_p99_at_its_norm_seldom_alarms() -> None:
    rng = random.Random(6)
    fired = 0
    for _ in range(100):
        alarm = ExceedanceMonitor(threshold_s=1.0, alpha=0.01, window=2000)
        fired += any(alarm.add(2.0 if rng.random() < 0.01 else 0.5) for _ in range(2000))
    assert fired <= 4


def slow_tokens(**changed: Any) -> bool:
    """Whether a hundred streams of the baseline, two seconds to the first token each, are called a deviation."""
    monitor = ExceedanceMonitor(threshold_s=1.0, alpha=0.01)
    fields = {"first": 2.0, "engine_done": 9.0, "finished": 9.0} | changed
    own = fields.pop("outcome", outcome("baseline"))
    return any(monitor.add_first_token(request(0.0, own, **fields)) for _ in range(100))


@pytest.mark.parametrize(
    ("changed", "deviates"),
    [
        ({}, True),
        ({"first": 0.9}, False),
        ({"outcome": outcome("candidate")}, False),
        ({"stream": False}, False),  # it has no first token
        ({"outcome": outcome("baseline", "failed")}, False),
        ({"outcome": outcome("baseline", "gone"), "given_up": True}, True),
        ({"outcome": outcome("baseline", "gone"), "given_up": True, "first": None}, True),
        ({"outcome": outcome("baseline", "gone"), "given_up": True, "first": None, "finished": 1.0}, False),
    ],
)
def test_first_tokens_of_the_baselines_streams_count_as_far_as_they_were_waited_for(
    changed: dict[str, Any], deviates: bool
) -> None:
    assert slow_tokens(**changed) == deviates
