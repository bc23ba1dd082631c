"""When a p99 is said to have moved beyond its threshold, and when to be back."""

from __future__ import annotations

import random

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
