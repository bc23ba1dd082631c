"""What peers.py runs in the peers' own environment: every metric of every specimen through every installed peer.

    PEERS/bin/python -m benchmarks.zoo.peers_run < VALUES.json

VALUES is ``{specimen: {metric: {"kind": ..., "baseline": [...], "candidate": [...]}}}``, higher being better. Prints,
as its last line, ``{"versions": ..., "says": {specimen: {metric: {peer: ...}}}}``: a peer's own words with the seconds
it took, or ``cannot`` with the reason.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from benchmarks.decision_peers import Answer, mlflow_pair, nemo_pair, statgate_pair

CORRECT = 0.5  # a graded score above it counts as correct; NeMo Evaluator's documentation says so for judges
MAX_DROP = 0.05  # the default of ``nel compare``; the library's own is .005
OPEN_SCALE = "takes scores between 0 and 1, higher being better: neither nats nor tokens"


def nemo_scores(baseline: np.ndarray, candidate: np.ndarray, **settings: float) -> Callable[[], Any]:
    """``compare_results`` on scores: graded ones with the documented cut for its count of flips."""
    if not set(np.unique([baseline, candidate])) <= {0.0, 1.0}:
        settings["reward_threshold"] = CORRECT
    return nemo_pair(baseline, candidate, **settings)


def evalgate_pair(baseline: np.ndarray, candidate: np.ndarray) -> Callable[[], Any]:
    """llm-evalgate's ``RegressionGate`` on the share of items that pass.

    Its accuracy is agreement with labels, so every item is labelled good. Its other default metric, the share of bad
    items that are caught, has nothing to measure and is left out: as a second test it would only halve the level.
    """
    from llm_evalgate import BenchmarkRunner, Dimension, RegressionGate
    from llm_evalgate.bench import BenchSample

    class Measured(Dimension):  # type: ignore[misc]
        """The score that an item was measured to have."""

        def __init__(self, scores: np.ndarray) -> None:
            super().__init__(threshold=CORRECT)
            self.scores = scores

        def evaluate(self, text: str) -> tuple[float, str]:
            return float(self.scores[int(text)]), ""

    samples = [BenchSample(text=str(i), label=True) for i in range(len(baseline))]
    before, after = (
        BenchmarkRunner(Measured(scores)).run(samples, ci=False) for scores in (baseline, candidate)
    )

    def run() -> Any:
        report = RegressionGate(metrics=("accuracy",)).check(after, before)
        (row,) = report.rows
        return {
            "verdict": "PASS" if report.passed else "FAIL", "row": row.verdict, "p": row.p_value,
            "difference": row.delta, "low": row.ci_low, "high": row.ci_high,
        }  # fmt: skip

    return run


# name -> package, how it is asked, whether it takes values on a scale without bounds
PEERS: dict[str, tuple[str, Answer, bool]] = {
    "mlflow": ("mlflow", mlflow_pair, True),
    "statgate": ("statgate", statgate_pair, True),
    "nemo-evaluator": ("nemo-evaluator", nemo_scores, False),
    "nel-compare": ("nemo-evaluator", partial(nemo_scores, min_effect=MAX_DROP), False),
    "llm-evalgate": ("llm-evalgate", evalgate_pair, False),
}


def says(name: str, metric: dict[str, Any]) -> dict[str, Any]:
    """One peer on one metric. The seconds leave out loading the records into the peer's own types."""
    _, peer, any_scale = PEERS[name]
    if metric["kind"] != "score" and not any_scale:
        return {"cannot": OPEN_SCALE}
    try:
        work = peer(np.array(metric["baseline"]), np.array(metric["candidate"]))
        started = time.perf_counter()
        found = work()
        return {**found, "seconds": round(time.perf_counter() - started, 3)}
    except ImportError as error:
        return {"cannot": f"not installed: {error}"}
    except Exception as error:  # a peer that cannot take the data is a result
        return {"cannot": f"{type(error).__name__}: {error}"}


def version(package: str) -> str | None:
    """Of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """See the module."""
    specimens = json.load(sys.stdin)
    found: dict[str, Any] = {}
    for number, (specimen, metrics) in enumerate(specimens.items(), 1):
        print(f"[{number}/{len(specimens)}] {specimen}", file=sys.stderr, flush=True)
        found[specimen] = {
            metric: {name: says(name, values) for name in PEERS} for metric, values in metrics.items()
        }
    versions = {name: version(package) for name, (package, _, _) in PEERS.items()}
    print(json.dumps({"versions": versions, "says": found}))


if __name__ == "__main__":
    main()
