"""A whole decision on large data: 40 closed-form checks of 100,000 paired items each, on one core.

    python benchmarks/decision.py [--items N] [--repeats R] [--peers PYTHON] [--out FILE]

Paired samples are in memory; estimation, Holm and the verdict run through the gate's own code. Each kind of estimator
is timed apart as well. With ``--peers``, MLflow's paired comparison, statgate's gate and NeMo Evaluator's compare get
the same values in the same run on the same core. They run in an environment of their own, made as below. MLflow's
comparison is of 3.18; NeMo Evaluator 0.3 asks for a newer Python than it needs here; llm-evalgate, which knows only
pass and fail, is for ``zoo/peers.py``.

    python -m venv VENV && VENV/bin/pip install statgate==0.1.1 llm-evalgate==0.6.0 mlflow
    VENV/bin/pip install --no-deps mlflow==3.18.0
    VENV/bin/pip install --ignore-requires-python nemo-evaluator==0.3.0
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from decision_peers import QUIET

from checkweigh.decision.compare import compare
from checkweigh.decision.pairing import PairedSample
from checkweigh.decision.verdict import decide
from checkweigh.measure import host_facts
from checkweigh.records.policy import Check, Policy
from checkweigh.records.yaml.document import parse

KINDS = {"score": 16, "accuracy": 8, "log_perplexity": 8, "log_length": 8}  # metric -> checks
LIMIT_S = 2.0
PEERS_CANNOT = {
    "mlflow": "no margin, no clusters, no correction over metrics, no verdict; ratios of sums only as means of "
    "documents. Timed are the statistics of each metric, not reading traces",
    "statgate": "no clusters, no correction over metrics, one metric a gate; ratios of sums only as means of documents",
    "nemo-evaluator": "no margin in the test (a least effect only), clusters in its gate but not in its compare, no "
    "correction over metrics; ratios of sums only as means of documents",
}


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


def peers(python: Path, samples: dict[str, PairedSample], budget: float) -> dict[str, Any]:
    """The same values through the peers, in their own environment, on this core, in this run."""
    arrays = {}
    for name, sample in samples.items():
        arrays[f"{name}.baseline"] = sample.baseline / sample.size
        arrays[f"{name}.candidate"] = sample.candidate / sample.size
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "values.npz"
        np.savez(data, **arrays)
        script = Path(__file__).with_name("decision_peers.py")
        command = [str(python), str(script), str(data), str(budget)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env={"PATH": os.environ["PATH"], **QUIET}
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


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
    ours = float(np.median(whole))
    others = peers(arguments.peers, samples, arguments.peer_seconds) if arguments.peers else {}
    for found_peer in others.values():
        if "seconds_for_all" in found_peer:
            found_peer["times_checkweigh"] = found_peer["seconds_for_all"] / ours
    return {
        "date": host_facts.now(), "hardware": host_facts.hardware(), "load_average": os.getloadavg(),
        "versions": {name: metadata.version(name) for name in ("checkweigh", "numpy", "scipy")},
        "items": arguments.items, "clusters": len(set(clusters)), "checks": len(rules.checks),
        "seconds": {"median": ours, "best": min(whole), "all": whole, "limit": LIMIT_S},
        "milliseconds_a_check": {metric: 1e3 * float(np.median(times)) for metric, times in by_kind.items()},
        "verdict": judged[0].verdict, "peers": others, "peers_cannot": PEERS_CANNOT if others else {},
    }  # fmt: skip


def main() -> None:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="python of an environment with the peers")
    parser.add_argument("--peer-seconds", type=float, default=60, help="each peer stops after so many")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = report(arguments)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
