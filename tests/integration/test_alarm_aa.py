"""Two arms of one manifest on real vLLM servers, and how often the alarm takes one for slower."""

from __future__ import annotations

import asyncio
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.faults.harness import body, guarded, open_loop, policy
from tests.integration.test_vllm_engine import installed

from checkweigh.guard.supervision.launch_plan import vllm_plan
from checkweigh.monitors.latency import LatencyMonitor

LIMITS = """
routing: {{margin: 10.0}}
timeouts: {{first_s: 120.0, idle_s: 60.0}}
warmup: {{lengths: [8, 64]}}
traffic: {{path: {path}}}
"""
RUNS, SECONDS, RATE, TOKENS = 20, 60.0, 4.0, 16
FALSE = 3  # of 20 at a level of 5%
SHIPPED = policy().routing
OTHER = {"baseline": "candidate", "candidate": "baseline"}


def replayed(lines: list[dict[str, Any]], margin: float, *, turned: bool) -> bool:
    """Whether the alarm as shipped, but for its margin, speaks; ``turned``: with the arms in each other's place."""
    watches = {
        name: LatencyMonitor(margin=margin, alpha=SHIPPED.alpha / 2, least=SHIPPED.min_requests)
        for name in ("ttft", "tpot")
    }
    for line in lines:  # as they ended
        arm = OTHER[line["served"]] if turned else line["served"]
        ended = {"now": line["at"] + line["total_s"], "took": line["total_s"]}
        watches["ttft"].add(arm, line["ttft_s"] - line["queue_s"], **ended)
        watches["tpot"].add(arm, line["tpot_s"], **ended)
    return any(watch.fired for watch in watches.values())


def holds(log: Path, count: int) -> bool:
    """Whether the log has so many lines."""
    return len(log.read_text().splitlines()) >= count


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fault_17_equal_arms_seldom_raise_the_alarm(tmp_path: Path) -> None:
    """The margin in force is one that nothing exceeds, so that every run is whole; what the alarm says follows."""
    spec = installed("smollm2-135m-vllm")
    arms = [vllm_plan(spec, tmp_path / f"{name}.log") for name in ("baseline", "candidate")]
    log, drawn = tmp_path / "traffic.jsonl", random.Random(17)
    said: dict[str, list[bool]] = {"as shipped": [], "without a margin": [], "without, arms turned": []}
    with guarded(
        arms[0], policy(LIMITS.format(path=log)), candidate=arms[1], share=0.5, slots=16, max_sequence=2048
    ) as run:
        run.ready(300.0)
        for number in range(RUNS):
            words = [
                " ".join(drawn.choices(("red", "rain", "river", "bread", "stone"), k=drawn.randint(5, 60)))
                for _ in range(int(RATE * SECONDS))
            ]

            def asked(i: int, number: int = number, words: list[str] = words) -> dict[str, Any]:
                return body(f"{number}.{i} {words[i]}", TOKENS, stream=True, temperature=0, ignore_eos=True)

            replies = asyncio.run(
                open_loop(run.url, RATE, SECONDS, asked, lambda i, n=number: {"x-session-id": f"{n}.{i}"})  # type: ignore[misc]
            )
            assert all(r.ok for r in replies), [r.error for r in replies if not r.ok][:3]
            run.until(partial(holds, log, (number + 1) * len(replies)))
            lines = [json.loads(line) for line in log.read_text().splitlines()[number * len(replies) :]]
            assert min(sum(line["served"] == arm for line in lines) for arm in OTHER) > len(lines) / 3
            for name, margin, turned in zip(
                said, (SHIPPED.margin, 1e-9, 1e-9), (False, False, True), strict=True
            ):
                said[name].append(replayed(lines, margin, turned=turned))
            spoke = [name for name, found in said.items() if found[-1]]
            print(f"run {number + 1}: {', '.join(spoke) or 'silent'}", flush=True)
    assert not run.guard.router.killed
    assert all(sum(found) <= FALSE for found in said.values()), said
    # At this load a minute has fewer blocks than the alarm needs: five together have enough.
    lines, size = [json.loads(line) for line in log.read_text().splitlines()], 5 * int(RATE * SECONDS)
    quarters = [
        replayed(lines[i : i + size], 1e-9, turned=turned)
        for i in range(0, len(lines), size)
        for turned in (False, True)
    ]
    assert sum(quarters) <= 1, quarters
