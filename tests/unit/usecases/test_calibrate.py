"""Calibration through whole runs with the fake engine, and what gates make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.builders import evalset
from tests.unit.usecases.gate.test_gate_divergence import KL
from tests.unit.usecases.gate_bench import ENDINGS, LONGER, PERPLEXITY, SCORE, TPOT, GateBench

from checkweigh import canonical
from checkweigh.records.calibration import Calibration
from checkweigh.usecases import calibrate

GATING = {**KL, "tier": "critical"}
JITTER = {"jitter": 0.05, "noise_nats": 0.0}


@pytest.fixture(autouse=True)
def _policy(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS, GATING)


def calibrated(bench: GateBench, manifest: Path, *more: str) -> Calibration:
    code = bench.run("calibrate", str(manifest), "--policy", "gates/test.yaml", "--json", *more)
    assert code == 0, bench.stderr
    return Calibration.model_validate_json(bench.stdout)


def gate(bench: GateBench, manifest: Path, **knobs: Any) -> int:
    return bench.run(*bench.arguments(manifest, bench.manifest("candidate", JITTER | knobs)))


def test_every_check_gets_its_floor(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT, GATING)
    calibration = calibrated(bench, bench.manifest("baseline", JITTER))
    assert [(e.batches, e.threads) for e in calibration.executions] == [
        (0, 1),
        (1, 1),
        (0, 2),
        (2, 2),
        (3, 1),
    ]
    floors = {f.metric: f for f in calibration.floors}
    assert set(floors) == {"log_perplexity", "score", "bad_ending", "log_length", "kl", "failed"}
    assert all(len(f.contrasts) == 10 for f in calibration.floors)
    for metric in ("log_perplexity", "kl"):
        assert min(floors[metric].contrasts) > 0, "batches and threads matter to this engine"
        assert floors[metric].honest >= 3 * floors[metric].floor > 0
    assert 1e-3 < floors["kl"].floor < 0.02
    assert floors["kl"].upper == max(floors["kl"].contrasts)
    assert floors["log_length"].floor == 0
    assert calibration.unmeasured == {"tpot": "both arms of a gate are timed in one run"}
    assert "TOO SMALL" not in bench.stderr
    assert "executions in" in bench.stderr


def test_a_divergence_gates_once_its_floor_is_known(bench: GateBench) -> None:
    manifest = bench.manifest("baseline", JITTER)
    assert gate(bench, manifest, divergence=1.0) == 0, "without a floor it only informs"
    assert "kl informs only: no noise floor" in bench.stderr.replace("\n", " ")
    assert bench.result("kl").check.tier == "advisory"
    calibrated(bench, manifest)
    assert gate(bench, manifest, divergence=1.0) == 1, bench.stderr
    assert bench.result("kl").outcome == "blocked"
    assert "the candidate's divergence is" in bench.result("kl").sentence
    assert "informs only" not in bench.stderr
    assert gate(bench, manifest, divergence=0.05) == 0, bench.stderr
    assert bench.result("kl").outcome in ("passed", "warning")
    assert bench.run(*bench.arguments(manifest, manifest)) == 0, bench.stderr
    assert bench.result("kl").check.tier == "critical"


def test_a_margin_that_noise_may_use_up_is_refused(bench: GateBench) -> None:
    manifest = bench.manifest("baseline", JITTER)
    calibrated(bench, manifest)
    bench.policy({**PERPLEXITY, "margin": 0.001}, ENDINGS, {**GATING, "margin": 0.004})
    assert gate(bench, manifest) == 2
    for path in ("checks[0].margin", "checks[2].margin"):
        assert path in bench.stderr
    assert "three times what the baseline differs from itself" in bench.stderr
    assert not (bench.out / "decision.json").exists()
    code = bench.run("calibrate", str(manifest), "--policy", "gates/test.yaml")
    assert code == 0, "the policy that is too tight can still be calibrated"
    assert "TOO SMALL" in bench.stderr


def test_a_floor_of_something_else_is_no_floor(bench: GateBench) -> None:
    manifest = bench.manifest("baseline", JITTER)
    calibrated(bench, manifest)
    (path,) = (bench.home / "calibrations").iterdir()
    kept = path.read_bytes()
    body = json.loads(kept)["body"] | {"protocol": 99}
    path.write_text(json.dumps({"digest": canonical.digest(body), "body": body}))
    assert gate(bench, manifest, divergence=1.0) == 0
    assert bench.result("kl").check.tier == "advisory", "of another protocol"
    path.write_bytes(kept)
    shutil.rmtree(bench.home / "attempts")  # another set would be an undeclared later try
    bench.put(evalset("text", 321, name="prose"))
    assert gate(bench, manifest, divergence=1.0) == 0
    assert bench.result("kl").check.tier == "advisory", "of another set"
    bench.put(evalset("text", 320, name="prose"))
    manifest = bench.manifest("baseline", JITTER | {"seed": 5})
    gate(bench, manifest, divergence=1.0, seed=5)
    assert bench.result("kl").check.tier == "advisory", "of another manifest"


def test_a_damaged_calibration_is_not_read_as_absent(bench: GateBench) -> None:
    manifest = bench.manifest("baseline", JITTER)
    calibrated(bench, manifest)
    (path,) = (bench.home / "calibrations").iterdir()
    kept = path.read_bytes()
    for damage in (b"", b"{}", b"{", kept.replace(b"0.0", b"9.0", 1)):
        path.write_bytes(damage)
        assert gate(bench, manifest, divergence=1.0) == 4
        assert "damaged calibration" in bench.stderr
        assert path.name in bench.stderr.replace("\n", "")


def test_what_was_executed_is_not_executed_again(bench: GateBench) -> None:
    manifest = bench.manifest("baseline", JITTER)
    first = calibrated(bench, manifest)
    records = len(bench.records())
    assert records == 5 * 2
    assert gate(bench, manifest, divergence=1.0) == 1
    assert all(s.stored for s in bench.decision.stages if s.arm == "baseline"), (
        "the first execution is the baseline's"
    )
    second = calibrated(bench, manifest)
    assert [f.contrasts for f in second.floors] == [f.contrasts for f in first.floors]


def test_files_that_change_meanwhile_leave_no_calibration(
    bench: GateBench, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bench.folder / "model"
    shutil.copytree(tiny_model_dir, model)
    manifest = bench.manifest("baseline", JITTER, model={"source": f"path:{model}"})
    bench.policy(PERPLEXITY, ENDINGS, GATING)
    real = calibrate._contrast_kl

    def contrast(*arguments: Any) -> Any:
        (model / "config.json").write_bytes((model / "config.json").read_bytes())
        return real(*arguments)

    monkeypatch.setattr(calibrate, "_contrast_kl", contrast)
    assert bench.run("calibrate", str(manifest), "--policy", "gates/test.yaml") == 2
    assert "config.json" in bench.stderr
    assert not (bench.home / "calibrations").exists()


def test_time_that_runs_out_leaves_no_calibration(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS, GATING, max_minutes=0.0001)
    manifest = bench.manifest("baseline", JITTER)
    assert bench.run("calibrate", str(manifest), "--policy", "gates/test.yaml") == 2
    assert "max_minutes" in bench.stderr
    assert not (bench.home / "calibrations").exists()


def test_documents_that_fail_leave_no_floor(bench: GateBench) -> None:
    manifest = bench.manifest("baseline", JITTER | {"nan_share": 0.02})
    calibration = calibrated(bench, manifest)
    assert "kl" in calibration.unmeasured
    assert not any(f.metric == "kl" for f in calibration.floors)
