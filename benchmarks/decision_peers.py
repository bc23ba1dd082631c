"""What decision.py runs in the peers' own environment: paired comparisons of the same values, one peer after another.

    PEERS/bin/python benchmarks/decision_peers.py DATA.npz SECONDS

DATA has arrays ``NAME.baseline`` and ``NAME.candidate`` for each metric. Each peer gets the metrics in order until
SECONDS have passed, at least one of each kind of value. Prints JSON: seconds a metric, what the peer answered, or why
it could not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

# The environment of a peer's process: it reports to nobody, and computes on one core.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}
MARGIN = 0.02
SEED = 42  # as in statgate's documentation, which asks for one in CI
Answer = Callable[[np.ndarray, np.ndarray], Callable[[], Any]]


def mlflow_pair(baseline: np.ndarray, candidate: np.ndarray) -> Callable[[], Any]:
    """The statistics behind ``mlflow.genai.compare_evaluations``, which itself reads traces of two runs."""
    from mlflow.genai.evaluation.comparison.paired_comparison import _compare_paired_values

    def run() -> Any:
        found = _compare_paired_values("metric", baseline, candidate, value_type="numeric")
        return {
            "status": found.status, "method": found.method, "p": found.p_value, "difference": found.diff,
            "low": found.ci_low, "high": found.ci_high,
        }  # fmt: skip

    return run


def statgate_pair(baseline: np.ndarray, candidate: np.ndarray) -> Callable[[], Any]:
    """statgate's non-inferiority gate on one metric, by default a BCa bootstrap of 10,000 resamples."""
    from statgate import EvalRecord, GateSettings, evaluate_gate

    arms = [
        [EvalRecord(case_id=f"i{i}", score=float(v)) for i, v in enumerate(values)]
        for values in (baseline, candidate)
    ]

    def run() -> Any:
        found = evaluate_gate(*arms, GateSettings(metric="score", margin=MARGIN, seed=SEED))
        return {
            "verdict": str(found.verdict), "p": found.p_value, "difference": found.mean_diff,
            "low": found.interval.low, "high": found.interval.high,
        }  # fmt: skip

    return run


def nemo_pair(baseline: np.ndarray, candidate: np.ndarray, **settings: float) -> Callable[[], Any]:
    """NeMo Evaluator's ``compare_results``: McNemar for 0 and 1, else a permutation test of the mean."""
    from nemo_evaluator.engine.comparison import compare_results

    arms = [
        {(i, 0): {"problem_idx": i, "repeat": 0, "reward": float(v)} for i, v in enumerate(values)}
        for values in (baseline, candidate)
    ]

    def run() -> Any:
        found = compare_results(*arms, **settings)
        test = {"mcnemar": "mcnemar", "permutation": "permutation_test"}[found["test_used"]]
        return {
            "test": found["test_used"], "p": found[test]["p_value"], "verdict": found["verdict"],
            "reasons": found["verdict_reasons"],
        }  # fmt: skip

    return run


PEERS: dict[str, tuple[str, Answer]] = {
    "mlflow": ("mlflow", mlflow_pair),
    "statgate": ("statgate", statgate_pair),
    "nemo-evaluator": ("nemo-evaluator", nemo_pair),
}


def timed(peer: Answer, data: dict[str, np.ndarray], names: list[str], budget: float) -> dict[str, Any]:
    """Seconds a metric, by kind; loading the records into the peer's own types is left out."""
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    kinds = {name.rsplit("-", 1)[0] for name in names}
    for name in names:
        kind = name.rsplit("-", 1)[0]
        if time.perf_counter() - began > budget and any(row["kind"] == kind for row in rows):
            continue
        work = peer(data[f"{name}.baseline"], data[f"{name}.candidate"])
        started = time.perf_counter()
        answer = work()
        rows.append(
            {"kind": kind, "metric": name, "seconds": time.perf_counter() - started, "answer": answer}
        )
    by_kind = {k: float(np.median([r["seconds"] for r in rows if r["kind"] == k])) for k in sorted(kinds)}
    whole = sum(by_kind[name.rsplit("-", 1)[0]] for name in names)
    return {
        "metrics_run": len(rows),
        "median_seconds_a_metric": by_kind,
        "seconds_for_all": whole,
        "first": rows[0],
    }


def main() -> None:
    """Run every peer that is installed."""
    data = dict(np.load(sys.argv[1]))
    names = list(dict.fromkeys(key.rsplit(".", 1)[0] for key in data))
    found: dict[str, Any] = {}
    for name, (package, peer) in PEERS.items():
        try:
            found[name] = {
                "version": metadata.version(package),
                **timed(peer, data, names, float(sys.argv[2])),
            }
        except (ImportError, metadata.PackageNotFoundError) as error:
            found[name] = {"could_not": f"not installed: {error}"}
        except Exception as error:  # a peer that cannot take the data is a result
            found[name] = {"could_not": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
