"""Degradation as the policy declares it: shorter replies under pressure, marked everywhere, and gone with it."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from pathlib import Path

import pytest
from tests.faults.harness import Reply, Running, body, guarded, logged, open_loop, policy

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.guard.http.request_schema import Bounds, parse_request

# 4 at once, 16 tokens in 350 ms: 11 requests a second; of 4 tokens, 110 ms: 36.
SLOW = MockKnobs(slots=4, first_ms=30, token_ms=20, reply_tokens=16)
LIMITS = (
    "admission: {{slots: 4, tiers: {{standard: {{queue: 6, deadline_s: 5.0}}}}}}\ntraffic: {{path: '{log}'}}"
)
LOWER = "\ndegradation: {max_tokens: 4, enter: 0.8, leave: 0.4}"


def load(
    run: Running, rate: float, seconds: float, *, stream: bool = False, tier: str = "standard"
) -> list[Reply]:
    headers = {"x-checkweigh-tier": tier}
    data = body("weigh this", 16, stream=stream)
    return asyncio.run(open_loop(run.url, rate, seconds, lambda i: data, lambda i: headers))


def header(reply: Reply, name: str) -> str | None:
    return {key.lower(): value for key, value in reply.headers.items()}.get(name)


def counted(run: Running) -> float:
    text = urllib.request.urlopen(run.url + "/metrics", timeout=5).read().decode()
    return sum(float(v) for v in re.findall(r"^checkweigh_degraded_total\{.*\} (\S+)$", text, re.M))


def ready(run: Running) -> None:
    run.ready()
    run.until(lambda: not run.guard.arms["baseline"].admission.paused)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_under_pressure_replies_are_shorter_and_say_so_until_it_ends(stream: bool, tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    with in_thread(SLOW) as (endpoint, _), guarded(endpoint, policy(LIMITS.format(log=log) + LOWER)) as run:
        ready(run)
        before = load(run, 2, 1, stream=stream)
        pressed = load(run, 40, 2, stream=stream)
        run.until(lambda: run.guard.arms["baseline"].admission.inside == 0)
        run.until(lambda: not run.guard.arms["baseline"].degraded)
        after = load(run, 2, 1, stream=stream)
        lines = {line["id"]: line for line in logged(log, len(before + pressed + after))}
        count = counted(run)
    marked = [r for r in pressed if header(r, "x-checkweigh-degraded")]
    assert len(marked) > 20
    assert {header(r, "x-checkweigh-degraded") for r in marked} == {"max_tokens=4"}
    assert all(r.ok for r in marked)
    assert not [r for r in before + after if not r.ok or header(r, "x-checkweigh-degraded")]
    for reply in before + pressed + after:
        if not reply.ok:
            continue
        line = lines[header(reply, "x-request-id") or ""]
        cut = header(reply, "x-checkweigh-degraded") or ""
        assert line["degraded"] == cut
        assert (line["max_tokens"], line["output_tokens"]) == ((4, 4) if cut else (16, 16))
    assert count == len(marked), "a refusal gave nothing up"
    assert {r.status for r in pressed} <= {200, 429}


def test_only_the_declared_tiers_are_degraded(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    with in_thread(SLOW) as (endpoint, _), guarded(endpoint, policy(LIMITS.format(log=log) + LOWER)) as run:
        ready(run)
        pressed = load(run, 40, 1, tier="interactive")
        assert any(r.ok for r in pressed)
        assert not any(line["degraded"] for line in logged(log, len(pressed)))


def test_without_a_declaration_nothing_is_degraded(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    with in_thread(SLOW) as (endpoint, _), guarded(endpoint, policy(LIMITS.format(log=log))) as run:
        ready(run)
        pressed = load(run, 40, 1)
        run.until(lambda: run.guard.arms["baseline"].admission.inside == 0)
        assert any(r.status == 429 for r in pressed), "there was pressure"
        assert not any(header(r, "x-checkweigh-degraded") for r in pressed)
        lines = logged(log, len(pressed))
        assert not any(line["degraded"] for line in lines)
        assert {line["output_tokens"] for line in lines if line["outcome"] == "ok"} == {16}
        assert counted(run) == 0


def test_nothing_is_degraded_before_there_is_anything_to_see(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    late = "\nsaturation: {scrape_s: 1.0}"
    with (
        in_thread(SLOW) as (endpoint, _),
        guarded(endpoint, policy(LIMITS.format(log=log) + LOWER + late)) as run,
    ):
        run.until(
            lambda: run.guard.arms["baseline"].admission.paused
        )  # it counts as full, for want of metrics
        assert [r.ok for r in load(run, 1, 1)] == [True]
        assert [line["degraded"] for line in logged(log, 1)] == [""]


def test_a_least_length_is_lowered_with_the_longest() -> None:
    """vLLM answers 400 to min_tokens above max_tokens: a degraded request must not become a refused one."""
    bounds = Bounds(model="mock", max_sequence=512, max_tokens=256, default_tokens=64, count=len)
    asked = parse_request(json.dumps(body("x", 200, min_tokens=100)).encode(), chat=True, bounds=bounds)
    assert json.loads(asked.upstream("mock", 50))["min_tokens"] == 50
    assert json.loads(asked.upstream("mock", 200))["min_tokens"] == 100
