"""Four specimens of the regression zoo through the real gate; the whole zoo is ``make zoo``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.zoo.specimens import QUICK, SPECIMENS

from checkweigh.sources.pin import Resolved

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_the_gate_stops_the_defects_and_lets_the_harmless_pass(resolved: Resolved, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.zoo",
        "--quick",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path),
    ]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _path()}
    )
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in QUICK}
    assert ran.returncode == 0, ran.stdout + ran.stderr + json.dumps(found, indent=1)
    musts = {s.name: s.must for s in SPECIMENS if s.name in QUICK}
    assert sorted(musts.values()) == ["block", "block", "pass", "refuse"]
    for name, result in found.items():
        stopped = {"block": ("block", "refuse")}.get(musts[name], (musts[name],))  # met: for the right cause
        assert result["verdict"] in stopped, result
        assert (result["met"], result["traceback"]) == (True, False), result
    assert "perplexity" in found["bnb-nf4"]["caught"]
    assert found["bnb-nf4"]["looks"] == 1  # a clear regression costs half


def _path() -> str:
    return os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])
