"""OUT/gpu.json of a finished benchmarks/gpu/run.sh: what ran where, and every verdict. Exit 1 when a gate gave none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from checkweigh.measure import host_facts
from checkweigh.sources.documents import read_manifest
from checkweigh.sources.engine_environment import packages_of

VERDICTS = (0, 1, 3)


def main(out: Path) -> int:
    """See the module."""
    gates = []
    for line in (out / "gates.tsv").read_text().splitlines():
        baseline, candidate, code, seconds = line.split("\t")
        file = out / f"{baseline}-{candidate}" / "decision.json"
        decision = json.loads(file.read_text()) if file.is_file() else None
        gates.append(
            {"baseline": baseline, "candidate": candidate, "exit": int(code), "seconds": int(seconds),
             "verdict": decision and decision["verdict"], "reasons": decision and decision["reasons"],
             "checks": decision and [check["sentence"] for check in decision["checks"]],
             "notes": decision and decision["notes"]}
        )  # fmt: skip
    smi, manifest = out / "nvidia-smi.txt", out / "vllm.yaml"
    engine = packages_of(manifest, read_manifest(manifest).engine)
    assert engine is not None
    found = {
        "gates": gates, "tests": (out / "tests.txt").read_text().strip(), "hardware": host_facts.hardware(),
        "nvidia_smi": smi.read_text() if smi.is_file() else None,
        "engine": {"version": engine.version, "packages": engine.computing},
        "provenance": host_facts.provenance_of_tree(host_facts.now()).model_dump(mode="json"),
    }  # fmt: skip
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    print(out / "gpu.json")
    return 0 if gates and all(gate["exit"] in VERDICTS and gate["verdict"] for gate in gates) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
