"""Further gates of the real model: the baseline against itself, then a pull request, from what is stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.actions import machine
from tests.github_server import running
from tests.integration.real_model import SLICES, gate
from tests.scratch import Repo

from checkweigh.records.decision import Decision


def test_the_baseline_passes_against_itself_from_two_executions(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, decision = gate(workplace, monkeypatch, "smollm2-135m")
    assert code == 0, decision.reasons
    stages = {(stage.arm, stage.name): stage.stored for stage in decision.stages}
    assert not any(stages[arm, name] for arm in ("baseline", "candidate") for name in SLICES)
    assert decision.candidate.replicate == 1
    assert decision.timing is not None
    assert len(decision.timing.blocks) == 8
    assert all(memory > 2**28 for memory in decision.timing.peak_memory.values())
    assert decision.divergence[0].largest == 0, "the same batches give the same distributions, to the bit"
    assert not set(decision.baseline.measurements.values()) & set(decision.candidate.measurements.values())


def test_in_ci_a_pull_request_that_switches_to_nf4_is_blocked_and_a_rename_passes(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GitHub workflow's own steps on the real model, with what was measured before."""
    _, measured = gate(workplace, monkeypatch, "smollm2-135m-nf4")
    baseline = {stage.name: stage.stored for stage in measured.stages if stage.arm == "baseline"}
    assert all(baseline[name] for name in SLICES), "the baseline was stored by the gate before"
    repo = Repo(tmp_path / "origin")
    repo.root.mkdir()
    for name in ("manifests", "evalsets"):
        shutil.copytree(workplace / name, repo.root / name)
    shutil.copy(workplace / "policy.yaml", repo.root / "policy.yaml")
    repo.git("init", "-q", "-b", "main")
    repo.with_workflow()
    repo.commit("what is served")
    served, nf4 = (repo.root / "manifests" / f"smollm2-135m{suffix}.yaml" for suffix in ("", "-nf4"))
    with running("token") as github:

        def job() -> tuple[int, str]:
            runner = machine(repo, github, tmp_path / "machine", workplace / "home", "token")
            workflow = runner.workspace / ".github/workflows/checkweigh.yml"
            code = runner.job(workflow, "gate", {"policy": "policy.yaml"})
            return code, runner.log

        repo.git("checkout", "-q", "-b", "change")
        served.write_text(nf4.read_text().replace("name: smollm2-135m-nf4", "name: smollm2-135m"))
        shutil.copy(nf4.with_suffix(".lock.json"), served.with_suffix(".lock.json"))
        repo.commit("switch to nf4")
        code, log = job()
        assert code == 1, log
        (decided,) = (tmp_path / "machine/work/runs/ci/gates").glob("*/decision.json")
        decision = Decision.model_validate_json(decided.read_bytes())
        assert decision.candidate.pins == measured.candidate.pins
        assert all(stage.stored for stage in decision.stages), "nothing is measured twice"
        assert "⛔ block: perplexity" in github.comments[7][0]["body"]

        repo.git("checkout", "-q", "-B", "change", "main")
        for suffix in (".yaml", ".lock.json"):
            repo.git("mv", f"manifests/smollm2-135m{suffix}", f"manifests/served{suffix}")
        repo.edit("manifests/served.yaml", name="served")
        repo.commit("rename")
        code, log = job()
        assert code == 0, log
        assert "✅ checkweigh: pass" in github.comments[7][0]["body"]
