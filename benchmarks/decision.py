"""A whole decision on large data: 40 closed-form checks of 100,000 paired items each, on one core.

    python benchmarks/decision.py [--items N] [--repeats R] [--out FILE]

Paired samples are in memory; estimation, Holm and the verdict run through the gate's own code. Each kind of estimator
is timed apart as well. Where `statgate` (PyPI) is installed its gate on one metric, a BCa bootstrap of
10,000 resamples by default, runs on the same values in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from checkweigh.compare import compare
from checkweigh.decide import decide
from checkweigh.measure import host
from checkweigh.pairing import PairedSample
from checkweigh.records.document import parse
from checkweigh.records.policy import Check, Policy

KINDS = {"score": 16, "accuracy": 8, "log_perplexity": 8, "log_length": 8}  # metric -> checks
LIMIT_S = 2.0


def policy() -> Policy:
    """40 checks, four of them critical."""
    checks: list[dict[str, Any]] = []
    for metric, count in KINDS.items():
        evalset = {"log_perplexity": "text", "log_length": "replies"}.get(metric, "choices")
        for i in range(count):
            checks.append(
                {
                    "id": f"{metric.replace('_', '-')}-{i}", "metric": metric, "evalset": [evalset], "margin": 0.02,
                    "direction": "lower" if metric.startswith("log") else "higher",
                    "scale": "log" if metric.startswith("log") else "absolute",
                    "because": "a benchmark", "tier": "critical" if i == 0 else "supporting",
                }
            )  # fmt: skip
    document = {"schema": "checkweigh/policy@1", "name": "benchmark", "checks": checks}
    return parse(Policy, json.dumps(document).encode(), "benchmark")


def sample(check: Check, items: int, rng: np.random.Generator, clusters: tuple[str, ...]) -> PairedSample:
    """Equal arms with 10% flips (0/1), or noise."""
    size = np.ones(items)
    if check.metric == "accuracy":
        baseline = (rng.random(items) < 0.6).astype(float)
        candidate = np.where(rng.random(items) < 0.05, 1 - baseline, baseline)
    elif check.metric == "score":
        baseline = rng.random(items)
        candidate = np.clip(baseline + 0.1 * rng.normal(size=items), 0, 1)
    elif check.metric == "log_perplexity":
        size = rng.integers(50, 400, items).astype(float)
        baseline = rng.normal(3, 0.3, items) * size
        candidate = baseline + 0.05 * size * rng.normal(size=items)
    else:
        baseline = rng.normal(4, 1, items)
        candidate = baseline + 0.3 * rng.normal(size=items)
    return PairedSample(
        metric=check.metric, baseline=baseline, candidate=candidate, size=size, weights=np.ones(items),
        clusters=clusters, identical=False,
    )  # fmt: skip


def seconds(work: Callable[[], Any]) -> float:
    """Wall clock of one run."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def statgate_gate(baseline: np.ndarray, candidate: np.ndarray) -> Callable[[], Any] | None:
    """statgate's paired non-inferiority gate on one metric; None where it is not installed."""
    try:
        from statgate import EvalRecord, GateSettings, evaluate_gate
    except ImportError:
        return None
    arms = [
        [EvalRecord(case_id=f"i{i}", score=float(value)) for i, value in enumerate(values)]
        for values in (baseline, candidate)
    ]
    return lambda: evaluate_gate(*arms, GateSettings(metric="score", margin=0.02))


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """All timings."""
    rng, rules = np.random.default_rng(0), policy()
    clusters = tuple(f"c{i // 4}" for i in range(arguments.items))
    samples = {check.id: sample(check, arguments.items, rng, clusters) for check in rules.checks}
    whole: list[float] = []
    by_kind: dict[str, list[float]] = {metric: [] for metric in KINDS}
    for _ in range(arguments.repeats):
        found = {}
        spent = 0.0
        for check in rules.checks:
            started = time.perf_counter()
            found[check.id] = compare(check, samples[check.id], alpha=0.05)
            taken = time.perf_counter() - started
            by_kind[check.metric].append(taken)
            spent += taken
        judged: list[Any] = []
        whole.append(spent + seconds(lambda found=found, judged=judged: judged.append(decide(rules, found))))
    one = samples["score-0"]
    peer = statgate_gate(one.baseline, one.candidate)
    peer_seconds = [seconds(peer) for _ in range(2)] if peer else None
    return {
        "statgate_one_check_seconds": peer_seconds,
        "statgate_over_checkweigh_a_check": float(np.median(peer_seconds) / np.median(by_kind["score"]))
        if peer_seconds else None,
        "date": host.now(), "hardware": host.hardware(), "load_average": os.getloadavg(),
        "versions": {name: metadata.version(name) for name in ("checkweigh", "numpy", "scipy")},
        "items": arguments.items, "clusters": len(set(clusters)), "checks": len(rules.checks),
        "seconds": {"median": float(np.median(whole)), "all": whole, "limit": LIMIT_S},
        "milliseconds_a_check": {metric: 1e3 * float(np.median(times)) for metric, times in by_kind.items()},
        "verdict": judged[0].verdict,
    }  # fmt: skip


def main() -> None:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = report(arguments)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
