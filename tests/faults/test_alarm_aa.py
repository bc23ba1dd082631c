"""Fault 17: two arms of one manifest on real vLLM servers, and how often the alarm takes one for slower."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from tests.faults.harness import body, guarded, open_loop, policy
from tests.integration.test_vllm_engine import installed

from checkweigh.guard.launching import vllm_plan

# No margin to speak of: what protects an equal candidate is the alarm's level alone.
LIMITS = """
routing: {margin: 1.0e-9, alpha: 0.05, min_requests: 30}
timeouts: {first_s: 120.0, idle_s: 60.0}
warmup: {lengths: [8, 64]}
"""
RUNS, SECONDS, RATE, TOKENS = 20, 60.0, 4.0, 16
FALSE = 3  # of 20 at a level of 5%


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fault_17_equal_arms_seldom_raise_the_alarm(tmp_path: Path) -> None:
    spec = installed("smollm2-135m-vllm")
    arms = [vllm_plan(spec, tmp_path / f"{name}.log") for name in ("baseline", "candidate")]
    drawn, fired = random.Random(17), []
    with guarded(arms[0], policy(LIMITS), candidate=arms[1], share=0.5, slots=16, max_sequence=2048) as run:
        run.ready(300.0)
        guard = run.guard
        for number in range(RUNS):
            guard.router.revive()
            guard._slower = guard._watches()  # a run of its own; the engines stay
            words = [
                " ".join(drawn.choices(("red", "rain", "river", "bread", "stone"), k=drawn.randint(5, 60)))
                for _ in range(int(RATE * SECONDS))
            ]

            def asked(i: int, number: int = number, words: list[str] = words) -> dict[str, object]:
                return body(f"{number}.{i} {words[i]}", TOKENS, stream=True, temperature=0)

            replies = asyncio.run(
                open_loop(run.url, RATE, SECONDS, asked, lambda i, n=number: {"x-session-id": f"{n}.{i}"})  # type: ignore[misc]
            )
            assert all(r.ok for r in replies), [r.error for r in replies if not r.ok][:3]
            watches = guard._slower
            served = [arm.n for arm in watches["ttft"]._arms.values()]
            words_of = "; ".join(watch.fired for watch in watches.values() if watch.fired)
            # A switched-off candidate gets no more: its share ends there.
            assert words_of or min(served) > 0.3 * len(replies), served
            fired += [words_of] if words_of else []
            print(f"run {number + 1}: {served} requests; {words_of or 'silent'}", flush=True)
    assert len(fired) <= FALSE, fired
