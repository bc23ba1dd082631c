"""Calibration through whole runs with the fake engine, and what gates make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.builders import evalset
from tests.unit.usecases.desk import ENDINGS, LONGER, PERPLEXITY, SCORE, TPOT, Desk
from tests.unit.usecases.test_gate_divergence import KL

from checkweigh import canonical
from checkweigh.records.calibration import Calibration

GATING = {**KL, "tier": "critical"}
JITTER = {"jitter": 0.05, "noise_nats": 0.0}


@pytest.fixture(autouse=True)
def _policy(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS, GATING)


def calibrated(desk: Desk, manifest: Path, *more: str) -> Calibration:
    code = desk.run("calibrate", str(manifest), "--policy", "gates/test.yaml", "--json", *more)
    assert code == 0, desk.stderr
    return Calibration.model_validate_json(desk.stdout)


def gate(desk: Desk, manifest: Path, **knobs: Any) -> int:
    return desk.run(*desk.arguments(manifest, desk.manifest("candidate", JITTER | knobs)))


def test_every_check_gets_its_floor(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT, GATING)
    found = calibrated(desk, desk.manifest("baseline", JITTER))
    assert [(e.batches, e.threads) for e in found.executions] == [(0, 1), (1, 1), (0, 2), (2, 2), (3, 1)]
    floors = {f.metric: f for f in found.floors}
    assert set(floors) == {"log_perplexity", "score", "bad_ending", "log_length", "kl", "failed"}
    assert all(len(f.contrasts) == 10 for f in found.floors)
    for metric in ("log_perplexity", "kl"):
        assert min(floors[metric].contrasts) > 0, "batches and threads matter to this engine"
        assert floors[metric].honest >= 3 * floors[metric].floor > 0
    assert 1e-3 < floors["kl"].floor < 0.02
    assert floors["kl"].upper == max(floors["kl"].contrasts)
    assert floors["log_length"].floor == 0
    assert found.unmeasured == {"tpot": "both arms of a gate are timed in one run"}
    assert "TOO SMALL" not in desk.stderr
    assert "executions in" in desk.stderr


def test_a_divergence_gates_once_its_floor_is_known(desk: Desk) -> None:
    manifest = desk.manifest("baseline", JITTER)
    assert gate(desk, manifest, divergence=1.0) == 0, "without a floor it only informs"
    assert "kl informs only: no noise floor" in desk.stderr.replace("\n", " ")
    assert desk.result("kl").check.tier == "advisory"
    calibrated(desk, manifest)
    assert gate(desk, manifest, divergence=1.0) == 1, desk.stderr
    assert desk.result("kl").outcome == "blocked"
    assert "the candidate's divergence is" in desk.result("kl").sentence
    assert "informs only" not in desk.stderr
    assert gate(desk, manifest, divergence=0.05) == 0, desk.stderr
    assert desk.result("kl").outcome in ("passed", "warning")
    assert desk.run(*desk.arguments(manifest, manifest)) == 0, desk.stderr
    assert desk.result("kl").check.tier == "critical"


def test_a_margin_that_noise_may_use_up_is_refused(desk: Desk) -> None:
    manifest = desk.manifest("baseline", JITTER)
    calibrated(desk, manifest)
    desk.policy({**PERPLEXITY, "margin": 0.001}, ENDINGS, {**GATING, "margin": 0.004})
    assert gate(desk, manifest) == 2
    for path in ("checks[0].margin", "checks[2].margin"):
        assert path in desk.stderr
    assert "three times what the baseline differs from itself" in desk.stderr
    assert not (desk.out / "decision.json").exists()
    code = desk.run("calibrate", str(manifest), "--policy", "gates/test.yaml")
    assert code == 0, "the policy that is too tight can still be calibrated"
    assert "TOO SMALL" in desk.stderr


def test_a_floor_of_something_else_is_no_floor(desk: Desk) -> None:
    manifest = desk.manifest("baseline", JITTER)
    calibrated(desk, manifest)
    (path,) = (desk.home / "calibrations").iterdir()
    kept = path.read_bytes()
    body = json.loads(kept)["body"] | {"protocol": 99}
    path.write_text(json.dumps({"digest": canonical.digest(body), "body": body}))
    assert gate(desk, manifest, divergence=1.0) == 0
    assert desk.result("kl").check.tier == "advisory", "of another protocol"
    path.write_bytes(kept)
    shutil.rmtree(desk.home / "attempts")  # another set would be an undeclared later try
    desk.put(evalset("text", 321, name="prose"))
    assert gate(desk, manifest, divergence=1.0) == 0
    assert desk.result("kl").check.tier == "advisory", "of another set"
    desk.put(evalset("text", 320, name="prose"))
    manifest = desk.manifest("baseline", JITTER | {"seed": 5})
    gate(desk, manifest, divergence=1.0, seed=5)
    assert desk.result("kl").check.tier == "advisory", "of another manifest"


def test_a_damaged_calibration_is_not_read_as_absent(desk: Desk) -> None:
    manifest = desk.manifest("baseline", JITTER)
    calibrated(desk, manifest)
    (path,) = (desk.home / "calibrations").iterdir()
    kept = path.read_bytes()
    for damage in (b"", b"{}", b"{", kept.replace(b"0.0", b"9.0", 1)):
        path.write_bytes(damage)
        assert gate(desk, manifest, divergence=1.0) == 4
        assert "damaged calibration" in desk.stderr
        assert path.name in desk.stderr.replace("\n", "")


def test_what_was_executed_is_not_executed_again(desk: Desk) -> None:
    manifest = desk.manifest("baseline", JITTER)
    first = calibrated(desk, manifest)
    records = len(desk.records())
    assert records == 5 * 2
    assert gate(desk, manifest, divergence=1.0) == 1
    assert all(s.stored for s in desk.decision.stages if s.arm == "baseline"), (
        "the first execution is the baseline's"
    )
    second = calibrated(desk, manifest)
    assert [f.contrasts for f in second.floors] == [f.contrasts for f in first.floors]


def test_time_that_runs_out_leaves_no_calibration(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS, GATING, max_minutes=0.0001)
    manifest = desk.manifest("baseline", JITTER)
    assert desk.run("calibrate", str(manifest), "--policy", "gates/test.yaml") == 2
    assert "max_minutes" in desk.stderr
    assert not (desk.home / "calibrations").exists()


def test_documents_that_fail_leave_no_floor(desk: Desk) -> None:
    manifest = desk.manifest("baseline", JITTER | {"nan_share": 0.02})
    found = calibrated(desk, manifest)
    assert "kl" in found.unmeasured
    assert not any(f.metric == "kl" for f in found.floors)
