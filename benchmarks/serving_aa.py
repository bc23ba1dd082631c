"""Two identical vLLM servers against each other under the load of gates/serving.yaml: what noise alone does.

The blocks are those of a gate. From their log ratios follows, for every latency metric, the smallest margin at which
an equal candidate passes 95% of the policy's gates: as many pairs as the policy has are resampled with random signs
(the arms are equal, so that either order is as likely) and go through the gate's own estimator. Pieces of a few pairs,
each with servers of its own, add up: a seed that is in the file already is refused.

    python benchmarks/serving_aa.py [--pairs 7] [--seed 1] [--policy gates/serving.yaml] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkweigh.measure import host_facts
from checkweigh.measure.arrivals import PromptSupply
from checkweigh.measure.load_pairs import PairUnderLoad, run_load
from checkweigh.measure.paired_blocks import ARMS, StopRules
from checkweigh.progress import no_progress
from checkweigh.records.evalset import Generation
from checkweigh.records.measurement import PairedRun
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import verify
from checkweigh.stats import block_log_ratio
from checkweigh.usecases.gate.arms.engine_session import EngineSession

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
    resolved = verify(manifest)
    deadline = time.monotonic() + 3600
    sessions = {
        role: EngineSession(role=role, resolved=resolved, logs=Path("runs/serving-aa"), progress=no_progress)
        for role in ARMS
    }
    answers = load_evalset(ROOT / "evalsets" / "answers")
    prompts = [item.messages for item in answers.items if isinstance(item, Generation)]
    rules = StopRules(
        timing=timing, deadline=deadline,
        progress=lambda done, total: print(f"pair {done} of {total}", flush=True),
    )  # fmt: skip
    try:
        supply = PromptSupply.of(prompts, (), sessions["baseline"].running().encode)
        assert timing.load is not None
        return run_load(
            PairUnderLoad(
                arm_for=lambda role: sessions[role].running(),
                supply=supply,
                rules=rules,
                seed=seed,
                load=timing.load,
            )
        )
    finally:
        for session in sessions.values():
            session.close()


def noise(
    blocks: Sequence[dict[str, Any]], pairs: int, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Metric -> spread of its log ratios, levels, and the smallest margin that an equal arm passes."""
    found = {}
    for name in METRICS:
        values = np.array([(b["baseline"][name], b["candidate"][name]) for b in blocks])
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


def piece(run: PairedRun, seed: int) -> dict[str, Any]:
    """One run, as it is kept."""
    return {
        "seed": seed, "load": run.load, "seconds": run.seconds, "notes": list(run.notes),
        "load_average": os.getloadavg(),
        "provenance": host_facts.provenance_of_tree(host_facts.now()).model_dump(mode="json"),
        "blocks": [
            {"order": b.order, "baseline": b.baseline, "candidate": b.candidate, "unlike": b.unlike} for b in run.blocks
        ],
    }  # fmt: skip


def mean_of(blocks: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """An arm's mean over all blocks."""
    return {arm: float(np.mean([b[arm][name] for b in blocks])) for arm in ARMS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", type=Path, default=ROOT / "manifests/smollm2-135m-vllm.yaml")
    parser.add_argument("--policy", type=Path, default=ROOT / "gates/serving.yaml")
    parser.add_argument("--pairs", type=int, help="default: the policy's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/serving_aa.json")
    options = parser.parse_args()
    pieces = json.loads(options.out.read_text())["pieces"] if options.out.exists() else []
    if options.seed in [one["seed"] for one in pieces]:
        raise SystemExit(f"{options.out} has a piece of seed {options.seed} already")
    run = measure(options.manifest, options.policy, options.pairs, options.seed)
    if not run.blocks:
        raise SystemExit("; ".join(run.notes))
    pieces.append(piece(run, options.seed))
    blocks = [block for one in pieces for block in one["blocks"]]
    pairs = read_policy(options.policy).timing.pairs
    result = {
        "what": "two identical vLLM servers, A against A", "manifest": options.manifest.stem,
        "policy": options.policy.stem, "pairs_measured": len(blocks), "pairs_of_a_gate": pairs,
        "metrics": noise(blocks, pairs, np.random.default_rng(0)), "goodput": mean_of(blocks, "goodput"),
        "error_rate": mean_of(blocks, "error_rate"),
        "sender_late_p99_s": float(max(b[arm]["late_p99"] for b in blocks for arm in ARMS)), "pieces": pieces,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in noise(blocks, pairs, np.random.default_rng(0)).items():
        print(f"{name:12} sd {row['sd_log_ratio']:.3f}  smallest margin {row['smallest_margin']}")


if __name__ == "__main__":
    main()
