"""Sending a gate is nobody's verdict: whatever goes wrong, decision and exit code stand. Needs no MLflow."""

from __future__ import annotations

import sys

import pytest
from tests.mlflow_server import free_port
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh import report
from checkweigh.cli import main
from checkweigh.sinks import outbox


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment names an MLflow that nobody runs."""
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.delenv("CHECKWEIGH_MLFLOW")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_what_cannot_be_sent_waits_whole_and_the_exit_code_stands(bench: GateBench, dead: str) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.2}, more=["--json"]) == 1
    assert f"mlflow: sending to {dead}" in bench.stderr
    assert "mlflow: WARNING: not sent (" in bench.stderr
    assert "checkweigh mlflow sync" in bench.stderr
    assert bench.stdout.startswith("{"), "the decision alone is on stdout"
    (folder,) = outbox.waiting_folders(bench.home / "outbox")
    bundle = outbox.read_bundle(folder)
    decision = bench.decision
    assert bundle.decision == decision.record_digest()
    assert bundle.destination == dead
    assert bundle.experiment.startswith("checkweigh/tiny-model"), "an experiment a model"
    assert [run.role for run in bundle.runs] == ["gate", "baseline", "candidate"]
    assert bundle.runs[0].tags["checkweigh.verdict"] == "block"
    assert {dataset.name for dataset in bundle.datasets} == set(decision.evalsets)
    for name in ("decision.json", "report.html", "junit.xml", "summary.md"):
        assert (folder / "files" / name).read_bytes() == (bench.out / name).read_bytes()
    assert {"items.json", "plots/forest.svg", "arms/candidate/manifest.lock.json"} <= set(bundle.files)
    assert len(bundle.traces) == 10
    assert {trace.facts["set"] for trace in bundle.traces} == {"prose"}


def test_an_outbox_that_cannot_be_written_changes_nothing(bench: GateBench, dead: str) -> None:
    bench.policy(PERPLEXITY)
    bench.home.mkdir()
    (bench.home / "outbox").write_text("in the way")
    assert bench.gate() == 0, bench.stderr
    assert "it could not be kept for later" in bench.stderr
    assert (bench.out / report.DECISION).is_file()


def test_none_sends_nothing(bench: GateBench, dead: str) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate(more=["--mlflow", "none"]) == 0
    assert "mlflow" not in bench.stderr
    assert not (bench.home / "outbox").exists()


def test_bad_input_is_said_before_anything_is_measured(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.gate(more=["--mlflow", "localhost:5000"]) == 2
    assert "expected an address such as http://HOST:5000" in bench.stderr
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert bench.gate(more=["--mlflow", "http://localhost:5000"]) == 2
    assert "pip install 'checkweigh[mlflow]'" in bench.stderr
    assert main(["mlflow", "sync"]) == 2
    assert bench.records() == []
    assert not bench.out.exists()
