"""What gates of a change of engine came to: their decisions, shortened, in benchmarks/engine_gates.json.

    checkweigh gate manifests/smollm2-135m-vllm-0.31.yaml manifests/smollm2-135m-vllm.yaml \\
        --policy gates/engine.yaml --out runs/engine-0.31
    python benchmarks/engine_gates.py runs/engine-0.31 ...

A gate of the same two manifests under the same policy replaces the one that is there.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from checkweigh.files import write_atomic
from checkweigh.records.decision import Decision
from checkweigh.usecases.read_decision import read_decision

OUT = Path(__file__).with_suffix(".json")


def shortened(decision: Decision) -> dict[str, Any]:
    """A decision without its blocks, digests and items."""
    took = [datetime.fromisoformat(at) for at in (decision.provenance.started, decision.provenance.ended)]
    return {
        "gate": f"{decision.baseline.name} -> {decision.candidate.name}", "policy": decision.policy_name,
        "verdict": decision.verdict, "exit": int(decision.verdict.exit_code), "reasons": decision.reasons,
        "seconds": (took[1] - took[0]).total_seconds(),
        "checks": {
            r.check.id: {"tier": r.check.tier, "outcome": r.outcome, "sentence": r.sentence}
            for r in decision.checks
        },
        "notes": decision.notes, "changes": [c.model_dump(mode="json") for c in decision.changes],
        "provenance": decision.provenance.model_dump(mode="json"),
    }  # fmt: skip


def main(runs: list[str]) -> None:
    """See the module."""
    kept = {(g["gate"], g["policy"]): g for g in (json.loads(OUT.read_text()) if OUT.exists() else [])}
    for run in runs:
        found = shortened(read_decision(Path(run)))
        kept[found["gate"], found["policy"]] = json.loads(json.dumps(found))
    rows = [kept[key] for key in sorted(kept)]
    write_atomic(OUT, (json.dumps(rows, indent=1) + "\n").encode())
    for row in rows:
        print(f"{row['gate']:48} {row['policy']:10} {row['verdict']:12} {row['seconds']:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
