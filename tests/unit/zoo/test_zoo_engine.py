"""The zoo's slow and leaking engines are slow and leak by their dose, on a clock that stands still between calls."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkweigh.engines.hf import generate

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "zoo" / "engine" / "sitecustomize.py"
PREFILL_S, STEP_S, HEAD_S, TOKENS = 0.1, 0.03, 0.01, 8


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def taking(self, seconds: float) -> Callable[..., None]:
        return lambda *_: self.sleep(seconds)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with its defects, none of which has struck; what they strike is put back afterwards."""
    monkeypatch.delenv("CHECKWEIGH_ZOO", raising=False)
    spec = importlib.util.spec_from_file_location("zoo_engine", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    for name, seconds in (("_prefill", PREFILL_S), ("_step", STEP_S)):
        monkeypatch.setattr(module, name.strip("_").upper(), clock.taking(seconds))
        monkeypatch.setattr(generate, name, clock.taking(seconds))
    return module


def reply(engine: Any) -> tuple[float, float]:
    """Seconds to the first token, and per token after it, of a reply as ``hf_generate.generate`` makes it."""
    clock, times = engine.time, []
    began = clock.now
    generate._prefill(None, [])  # type: ignore[arg-type]
    for _ in range(TOKENS):
        clock.sleep(HEAD_S)
        times.append(clock.now - began)
        generate._step(None, [], None, None)  # type: ignore[arg-type]
    return times[0], (times[-1] - times[0]) / (TOKENS - 1)


@pytest.mark.parametrize("dose", [0.05, 0.2, 0.5])
def test_every_token_after_the_first_is_slower_by_the_dose(engine: Any, dose: float) -> None:
    engine.slow(dose)
    for _ in range(3):
        first, token = reply(engine)
        assert first == pytest.approx(PREFILL_S + HEAD_S)
        assert token == pytest.approx((1 + dose) * (STEP_S + HEAD_S))


def test_one_reply_in_twenty_is_slower_and_the_others_are_not(engine: Any) -> None:
    engine.slow_tail(3)
    found = [reply(engine) for _ in range(100)]
    slow = [i for i, (first, _) in enumerate(found) if first > 0.2]
    assert slow == [19, 39, 59, 79, 99]
    for i, (first, token) in enumerate(found):
        factor = 3 if i in slow else 1
        assert first == pytest.approx(factor * PREFILL_S + HEAD_S)
        assert token == pytest.approx(factor * (STEP_S + HEAD_S))


def test_every_reply_leaves_its_dose_of_memory_behind(engine: Any) -> None:
    engine.leak(5)
    # What other tests of this process have freed would be taken first, and resident memory would not grow.
    ctypes.CDLL(None).malloc_trim(0)
    before = psutil.Process().memory_info().rss
    for _ in range(20):
        reply(engine)
    assert 95e6 < psutil.Process().memory_info().rss - before < 120e6
