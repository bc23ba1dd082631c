"""``run_gate`` as one call: what comes after the verdict, and in which order."""

from __future__ import annotations

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


def test_a_verdict_that_cannot_be_shown_is_not_signed(gate_request: GateRequest) -> None:
    def show(decision: Decision) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_gate(gate_request, no_progress, lambda line: None, show)
    assert not (gate_request.out / "attestation.json").exists()
