"""``run_gate`` as one call: what comes after the verdict, and in which order."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.signing import keys
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh.errors import ExitCode
from checkweigh.progress import no_progress
from checkweigh.records.decision import Decision
from checkweigh.usecases.run_gate import GateRequest, run_gate


@pytest.fixture
def gate_request(bench: GateBench) -> GateRequest:
    bench.policy(PERPLEXITY)
    private, _ = keys(bench.folder, "p256")
    return GateRequest(
        baseline=bench.manifest("baseline"), candidate=bench.manifest("candidate"), policy=Path("gates/test.yaml"),
        out=bench.out, mlflow="none", attest=str(private),
    )  # fmt: skip


def test_the_verdict_is_shown_when_reports_are_written_and_before_anything_is_signed(
    gate_request: GateRequest,
) -> None:
    events: list[str] = []

    def show(decision: Decision) -> None:
        assert (gate_request.out / "decision.json").exists()
        assert not (gate_request.out / "attestation.json").exists()
        events.append("shown")

    outcome = run_gate(gate_request, no_progress, events.append, show)
    assert events[0] == "shown"
    assert events[1].startswith("attestation: ")
    assert (outcome.signing, outcome.exit_code) == (ExitCode.PASS, ExitCode.PASS)


def test_files_that_change_between_verdict_and_signature_are_not_signed(
    gate_request: GateRequest, bench: GateBench, tiny_model_dir: Path
) -> None:
    """The verdict stands, for it is about what was measured; what lies there now is something else."""
    model = bench.folder / "model"
    shutil.copytree(tiny_model_dir, model)
    said: list[str] = []
    for changed, arm in ((model / "model.safetensors", "candidate"), (model / "tokenizer.json", "baseline")):
        own = {"model": {"source": f"path:{model}"}}
        request = replace(
            gate_request, **{arm: bench.manifest(arm, {"noise_seed": 7}, **own)}, out=bench.folder / arm
        )
        before = changed.read_bytes()

        def swap(decision: Decision, changed: Path = changed) -> None:
            changed.write_bytes(changed.read_bytes()[:-1] + b"x")

        outcome = run_gate(request, no_progress, said.append, swap)
        changed.write_bytes(before)
        assert outcome.exit_code is ExitCode.BAD_INPUT
        assert outcome.decision.verdict == "pass"
        assert any("NOT SIGNED" in line and changed.name in line for line in said)
        assert not (request.out / "attestation.json").exists()
        assert not (request.out / "weights.sig").exists()


def test_a_verdict_that_cannot_be_shown_is_not_signed(gate_request: GateRequest) -> None:
    def show(decision: Decision) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_gate(gate_request, no_progress, lambda line: None, show)
    assert not (gate_request.out / "attestation.json").exists()
