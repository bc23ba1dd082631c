"""Saturation, memory, hangs and backoff: hysteresis, staleness, frozen counters; all on a clock of the test's own."""

from __future__ import annotations

import math
import random
from pathlib import Path

from checkweigh.engines.vllm.server_metrics import Scrape
from checkweigh.guard.admission.saturation import MemoryPressure, Saturation
from checkweigh.guard.guard_policy import MemoryLimits, SaturationLimits, Supervision
from checkweigh.guard.host_gauges import HostGauges
from checkweigh.guard.supervision.watchdog import HeartbeatWatch, RestartBackoff

LIMITS = SaturationLimits(scrape_s=0.5, stale_s=2, kv_high=0.92, kv_low=0.8, waiting_high=8, hold_s=1)


def reading(at: float, kv: float = 0.1, waiting: float = 0, steps: float | None = None) -> Scrape:
    return Scrape(at=at, kv=kv, running=1, waiting=waiting, steps=at if steps is None else steps, tokens=0)


def test_before_the_first_reading_and_when_it_is_old_it_counts_as_full() -> None:
    saturation = Saturation(LIMITS)
    assert saturation.why(0.0)
    saturation.read(reading(1.0))
    assert not saturation.why(2.9)
    assert "old" in saturation.why(3.1)
    saturation.reset()
    assert saturation.why(1.0)


def test_it_stops_at_high_and_goes_on_only_after_a_while_below_low() -> None:
    saturation = Saturation(LIMITS)
    saturated = []
    levels = [0.5, 0.95, 0.9, 0.95, 0.85, 0.79, 0.85, 0.79, 0.79, 0.79, 0.9]
    for i, kv in enumerate(levels):
        saturation.read(reading(i / 2, kv))
        saturated.append(bool(saturation.why(i / 2)))
    assert saturated == [False] + [True] * 8 + [False, False], "no flapping between low and high"


def test_the_engines_own_queue_counts_too() -> None:
    saturation = Saturation(LIMITS)
    saturation.read(reading(0.0, waiting=8))
    assert saturation.why(0.0)


def test_counters_that_stand_still_while_tokens_come_are_frozen() -> None:
    saturation = Saturation(LIMITS)
    for i in range(6):
        saturation.read(reading(i / 2, steps=7))
        saturation.delivered()
    assert "frozen" in saturation.why(2.5)
    saturation.read(reading(3.0, steps=8))
    assert not saturation.why(3.0)


def test_an_idle_engine_is_not_frozen_nor_is_one_late_token() -> None:
    saturation = Saturation(LIMITS)
    saturation.read(reading(0.0, steps=7))
    saturation.delivered()
    for i in range(1, 40):
        saturation.read(reading(i / 2, steps=7))
    assert not saturation.why(19.5)


def test_memory_has_hysteresis_and_a_reading_that_is_none_is_critical() -> None:
    memory = MemoryPressure(MemoryLimits(free_low=0.05, free_high=0.1, gpu_free_low=0.02))
    critical = [memory.read(share) for share in (0.5, 0.04, 0.07, 0.04, 0.09, 0.11, 0.07)]
    assert critical == [False, True, True, True, True, False, False]
    assert memory.read(math.nan)
    assert not memory.read(0.5)
    assert memory.read(0.5, 0.01)
    assert memory.read(0.5, 0.03)
    assert not memory.read(0.5, 0.04)


def test_the_free_share_is_the_lesser_of_the_host_and_a_containers_limit(tmp_path: Path) -> None:
    assert HostGauges(tmp_path).read().free_share > 0.001
    for name, size in {"max": 8 << 20, "current": (8 << 20) - 1024}.items():
        (tmp_path / f"memory.{name}").write_text(f"{size}\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1024\n")
    assert HostGauges(tmp_path).read().free_share == 2048 / (8 << 20)


def test_a_watch_suspects_silence_with_work_inside_and_not_a_long_prompt() -> None:
    watch = HeartbeatWatch(Supervision(heartbeat_s=10, prefill_grace_s=60, long_prompt=1000))
    watch.started(0.0)
    watch.scraped(1.0, 5, inside=1)
    for now in range(2, 12):
        watch.scraped(now, 5, inside=1)
    assert watch.suspect(11.5, longest_prompt=10)
    assert not watch.suspect(11.5, longest_prompt=1000), "within its grace"
    assert watch.suspect(61.5, longest_prompt=1000)
    watch.scraped(62.0, 6, inside=1)
    assert not watch.suspect(70.0, longest_prompt=10), "it steps"
    for now in range(70, 200):
        watch.scraped(now, 6, inside=0)
    assert not watch.suspect(200.0, longest_prompt=0), "idle"
    assert watch.suspect(211.0, longest_prompt=0), "no word at all"


def test_backoff_doubles_with_jitter_and_gives_up() -> None:
    limits = Supervision(backoff_s=1, backoff_max_s=3, crashes=4, crash_window_s=100)
    backoff = RestartBackoff(limits, random.Random(1))
    waits = [backoff.crashed(now) for now in (0.0, 1.0, 2.0, 3.0)]
    assert waits[3] is None
    for wait, full in zip(waits[:3], (1, 2, 3), strict=True):
        assert wait is not None
        assert full / 2 <= wait <= full
    assert backoff.restarts == 3
    assert backoff.crashed(500.0) is not None, "long ago, ready since, does not count"
