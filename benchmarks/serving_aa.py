"""Two identical vLLM servers against each other under the load of gates/serving.yaml: what noise alone does.

The blocks are those of a gate. From their log ratios follows, for every latency metric, the smallest margin at which
an equal candidate passes 95% of gates of as many pairs: pairs are resampled with random signs (the arms are equal, so
that either order is as likely) and go through the gate's own estimator.

    python benchmarks/serving_aa.py [--policy gates/serving.yaml] [--out benchmarks/serving_aa.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from checkweigh.measure import host
from checkweigh.measure.arrivals import Supply
from checkweigh.measure.load_pairs import Loaded, run_load
from checkweigh.measure.pairs import ARMS, Rules
from checkweigh.records.evalset import Generation
from checkweigh.records.measurement import PairedRun
from checkweigh.sources.cache import cache_root
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets import load_evalset
from checkweigh.sources.pin import verify
from checkweigh.stats import MIN_BLOCKS, block_log_ratio
from checkweigh.store import Store
from checkweigh.usecases.arms import ArmRun

ROOT = Path(__file__).resolve().parents[1]
MARGINS = [round(0.01 * i, 2) for i in range(1, 101)]
METRICS = [f"{m}.{q}" for m in ("ttft", "tpot", "e2e") for q in ("p50", "p90", "p99")] + ["peak_memory"]
GATES = 2000
WANTED = 0.95


def measure(manifest: Path, policy: Path, pairs: int | None, seed: int) -> PairedRun:
    """The blocks of two servers of one manifest."""
    timing = read_policy(policy).timing
    if pairs:
        timing = timing.model_copy(update={"pairs": pairs, "grow_to": None})
    resolved, store = verify(manifest), Store(cache_root() / "store")
    deadline = time.monotonic() + 3600
    runs = {
        role: ArmRun(
            role=role, resolved=resolved, store=store, logs=Path("runs/serving-aa"), deadline=deadline,
            progress=lambda *_: None,
        )
        for role in ARMS
    }  # fmt: skip
    answers = load_evalset(ROOT / "evalsets" / "answers")
    prompts = [item.messages for item in answers.items if isinstance(item, Generation)]
    rules = Rules(
        timing=timing, deadline=deadline,
        progress=lambda done, total: print(f"pair {done} of {total}", flush=True),
    )  # fmt: skip
    try:
        supply = Supply.of(prompts, (), runs["baseline"].running().encode)
        assert timing.load is not None
        return run_load(
            Loaded(
                turn=lambda role: runs[role].running(),
                supply=supply,
                rules=rules,
                seed=seed,
                load=timing.load,
            )
        )
    finally:
        for run in runs.values():
            run.close()


def noise(run: PairedRun, pairs: int, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Metric -> spread of its log ratios, levels, and the smallest margin that an equal arm passes."""
    found = {}
    for name in METRICS:
        values = np.array([(b.baseline[name], b.candidate[name]) for b in run.blocks])
        d = np.log(values[:, 1] / values[:, 0])
        drawn = rng.choice(d, (GATES, pairs)) * rng.choice([-1.0, 1.0], (GATES, pairs))
        lower = block_log_ratio(drawn, margin=0.0).lower
        passed = {m: float(np.mean(lower > -np.log1p(m))) for m in MARGINS}
        found[name] = {
            "median_baseline": float(np.median(values[:, 0])),
            "median_candidate": float(np.median(values[:, 1])),
            "sd_log_ratio": float(np.std(d, ddof=1)),
            "median_log_ratio": float(np.median(d)),
            "smallest_margin": next((m for m in MARGINS if passed[m] >= WANTED), None),
            "equal_passes": {f"{m:.0%}": passed[m] for m in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", type=Path, default=ROOT / "manifests/smollm2-135m-vllm.yaml")
    parser.add_argument("--policy", type=Path, default=ROOT / "gates/serving.yaml")
    parser.add_argument("--pairs", type=int, help="default: the policy's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/serving_aa.json")
    options = parser.parse_args()
    run = measure(options.manifest, options.policy, options.pairs, options.seed)
    count = len(run.blocks)
    if count < MIN_BLOCKS:
        raise SystemExit(f"{count} pairs of blocks: {'; '.join(run.notes)}")
    result = {
        "what": "two identical vLLM servers, A against A", "load": run.load, "pairs": count, "seconds": run.seconds,
        "manifest": options.manifest.stem, "policy": options.policy.stem, "seed": options.seed,
        "notes": list(run.notes), "provenance": host.provenance(host.now()).model_dump(mode="json"),
        "metrics": noise(run, count, np.random.default_rng(options.seed)),
        "goodput": {arm: float(np.mean([getattr(b, arm)["goodput"] for b in run.blocks])) for arm in ARMS},
        "error_rate": {arm: float(np.mean([getattr(b, arm)["error_rate"] for b in run.blocks])) for arm in ARMS},
        "sender_late_p99_s": float(max(getattr(b, arm)["late_p99"] for b in run.blocks for arm in ARMS)),
        "unlike": [b.unlike for b in run.blocks],
        "blocks": [{"order": b.order, "baseline": b.baseline, "candidate": b.candidate} for b in run.blocks],
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["metrics"].items():  # type: ignore[attr-defined]
        print(f"{name:12} sd {row['sd_log_ratio']:.3f}  smallest margin {row['smallest_margin']}")


if __name__ == "__main__":
    main()
