"""Gates sent to a real MLflow server, and to servers that are down, slow, cut off, or lie."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from tests.conftest import WriteManifest
from tests.mlflow_server import Api, Gateway, free_port, kept, named
from tests.unit.report import sample
from tests.unit.usecases.gate_bench import LONGER, PERPLEXITY, SCORE, TIMING, TPOT, GateBench

from checkweigh import canonical
from checkweigh.records.decision import Verdict
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.sender_process import LIMIT
from checkweigh.sources.pin import verify
from checkweigh.usecases.deliver.mlflow import send

PASSWORD = "hunter2/p@ss"
SLOW = {"token_latency_s": 0.001}


@pytest.fixture
def bench(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_manifest: WriteManifest,
    capfd: pytest.CaptureFixture[str],
) -> GateBench:
    found = GateBench(tmp_path, monkeypatch, write_manifest, capfd)
    found.policy(PERPLEXITY)
    return found


def waiting(bench: GateBench) -> list[Path]:
    """Folders of the outbox."""
    return sorted(bench.home.glob("outbox/[!.]*"))


def family(api: Api, bench: GateBench) -> dict[str, Any]:
    """Role -> run of the bench's last decision; fails when one is there twice."""
    runs = api.runs(bench.decision.record_digest())
    found = {named(run["data"]["tags"])["checkweigh.role"]: run for run in runs}
    assert len(runs) == len(found) == 3, [run["info"]["run_name"] for run in runs]
    return found


def compared(bench: GateBench, name: str) -> str:
    """A metric's key, as MLflow names its own comparisons."""
    return f"compare/{bench.decision.baseline.pins.removeprefix('sha256:')[:8]}/{name}"


def assert_complete(api: Api, bench: GateBench) -> None:
    """All of the last decision is there, once."""
    runs = family(api, bench)
    gate = runs["gate"]["info"]["run_id"]
    assert named(runs["gate"]["data"]["tags"])["checkweigh.complete"] == "true"
    for role in ("baseline", "candidate"):
        assert named(runs[role]["data"]["tags"])["mlflow.parentRunId"] == gate
        assert named(runs[role]["data"]["metrics"])["prose/items"] == 320
    assert {run["info"]["status"] for run in runs.values()} == {"FINISHED"}
    history = api.get("metrics/get-history", run_id=gate, metric_key=compared(bench, "perplexity/diff"))[
        "metrics"
    ]
    assert len(history) == 1
    assert api.artifact(gate, "decision.json") == (bench.out / "decision.json").read_bytes()
    found = api.artifacts(gate) | api.artifacts(gate, "plots")
    assert found["report.html"] == (bench.out / "report.html").stat().st_size
    assert {"summary.md", "junit.xml", "items.json", "plots/forest.svg"} <= set(found)
    traces = api.traces(bench.decision.record_digest(), runs["gate"]["info"]["experiment_id"])
    keys = {trace["tags"]["checkweigh.trace"] for trace in traces}
    assert len(traces) == len(keys) == 10
    assert {trace["trace_metadata"]["mlflow.sourceRun"] for trace in traces} == {gate}


def test_a_gate_is_found_by_its_digests_with_all_it_rests_on(server: Api, bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, LONGER, TPOT)
    code = bench.gate(SLOW | {"bias_nats": 0.2}, SLOW, more=["--mlflow", server.url])
    assert code == 1, bench.stderr
    assert_complete(server, bench)
    assert waiting(bench) == []
    decision, runs = bench.decision, family(server, bench)
    gate = runs["gate"]["data"]
    tags, metrics = named(gate["tags"]), named(gate["metrics"])
    assert runs["gate"]["info"]["run_id"] in bench.stderr
    assert (tags["checkweigh.verdict"], tags["checkweigh.exit_code"]) == ("block", "1")
    assert tags["checkweigh.policy"] == decision.policy
    assert tags["checkweigh.evalset.prose"] == decision.evalsets["prose"]
    assert tags["checkweigh.candidate.manifest"] == decision.candidate.manifest
    assert tags["checkweigh.baseline.measurement.prose"] == decision.baseline.measurements["prose"]
    comparison = bench.result("perplexity").comparison
    assert comparison.kind == "estimate"
    assert metrics[compared(bench, "perplexity/diff")] == -comparison.effect, "in the metric's own direction"
    assert (
        metrics[compared(bench, "perplexity/ci_low")]
        < metrics[compared(bench, "perplexity/diff")]
        < metrics[compared(bench, "perplexity/ci_high")]
    )
    assert metrics[compared(bench, "perplexity/ci_low")] == -comparison.high
    assert (metrics[compared(bench, "perplexity/margin")], metrics[compared(bench, "perplexity/passed")]) == (
        0.05,
        0,
    )
    assert metrics[compared(bench, "score/passed")] == 1
    inputs = {i["dataset"]["name"]: i["dataset"] for i in runs["gate"]["inputs"]["dataset_inputs"]}
    assert set(inputs) == set(decision.evalsets)
    assert json.loads(inputs["prose"]["profile"])["sha256"] == decision.evalsets["prose"]
    candidate = runs["candidate"]["data"]
    params, levels = named(candidate["params"]), named(candidate["metrics"])
    assert (params["engine.kind"], params["engine.options.bias_nats"]) == ("fake", "0.2")
    assert params["reported.version"] == "1"
    assert params["pins.manifest"] == decision.candidate.manifest
    assert levels["prose/log_perplexity"] == pytest.approx(comparison.candidate, rel=1e-6)
    assert {"choices/score", "answers/reply_tokens_p50"} <= set(levels)
    assert decision.timing is None, "what quality blocks is not timed"
    assert not any(name.startswith(("timing/", "memory/")) for name in levels)
    table = json.loads(server.artifact(runs["gate"]["info"]["run_id"], "items.json"))
    assert len(table["data"]) == 960
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "items.json", "type": "table"}]


def test_cut_off_anywhere_it_is_completed_later_and_never_doubled(
    server: Api, gate_way: Gateway, bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHECKWEIGH_MLFLOW")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate_way.url)
    gate_way.left = 0
    assert bench.gate({"bias_nats": 0.2}) == 1
    before = (bench.out / "decision.json").read_bytes()
    assert "WARNING: not sent" in bench.stderr
    assert "checkweigh mlflow sync" in bench.stderr
    (folder,) = waiting(bench)
    spare = shutil.copytree(folder, bench.folder / "spare")
    for cut in (5, 9, 14, 20, 26):
        gate_way.left = cut
        assert bench.run("mlflow", "sync") == 4, f"after {cut} requests: {bench.stderr}"
        assert waiting(bench) == [folder]
        assert len(server.runs(bench.decision.record_digest(), "gate")) == 1
    shutil.rmtree(bench.out / "logs")  # what CI deletes is not needed any more
    gate_way.left = None
    assert bench.run("mlflow", "sync", "--json") == 0, bench.stderr
    said = json.loads(bench.stdout)
    assert [sent["decision"] for sent in said["sent"]] == [bench.decision.record_digest()]
    assert said["waiting"] == waiting(bench) == []
    assert_complete(server, bench)
    spare.rename(folder)  # as if the sender had been killed before it forgot what had arrived
    assert bench.run("mlflow", "sync") == 0
    assert_complete(server, bench)
    assert waiting(bench) == []
    assert (bench.out / "decision.json").read_bytes() == before


def test_two_at_once_send_once_with_what_was_timed(server: Api, bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, LONGER, TPOT)
    dead = f"http://127.0.0.1:{free_port()}"
    assert bench.gate(SLOW, SLOW, more=["--mlflow", dead]) == 0, bench.stderr
    assert "WARNING: not sent" in bench.stderr
    both = [bench.spawn("mlflow", "sync", "--mlflow", server.url) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=150)
        assert process.returncode == 0, err.decode()
    assert_complete(server, bench)
    assert waiting(bench) == []
    assert bench.decision.timing is not None
    assert len(bench.decision.timing.blocks) == TIMING["pairs"]
    levels = named(family(server, bench)["candidate"]["data"]["metrics"])
    assert levels["timing/tpot.p50"] > 0
    assert levels["memory/peak_bytes"] > 0


def test_a_server_that_never_answers_costs_a_bounded_warning(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "6")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert bench.gate(more=["--mlflow", uri]) == 0, bench.stderr
        assert "no answer that could be used in 6 s" in bench.stderr
        assert bench.decision.verdict is Verdict.PASS
        assert len(waiting(bench)) == 1
        started = time.monotonic()
        shutil.copytree(waiting(bench)[0], bench.home / "outbox" / ("0" * 64))  # not whole: another address
        assert bench.run("mlflow", "sync", "--mlflow", uri) == 4
        assert "does not belong to its address" in bench.stderr
        assert time.monotonic() - started < 60
    assert [
        p for p in psutil.Process().children(recursive=True) if "checkweigh.sinks.mlflow" in p.cmdline()
    ] == []


def test_an_interruption_while_sending_leaves_the_verdict(bench: GateBench) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        arms = [bench.manifest("baseline"), bench.manifest("candidate", {"bias_nats": 0.2})]
        gate = bench.spawn(*bench.arguments(*arms, "--mlflow", uri))
        silent.settimeout(120)
        link, _ = silent.accept()  # it is sending
        gate.send_signal(signal.SIGINT)
        _, err = gate.communicate(timeout=60)
        link.close()
    assert gate.returncode == 1, err.decode()
    assert b"WARNING: not sent (KeyboardInterrupt); it waits in the outbox" in err
    assert len(waiting(bench)) == 1
    assert bench.decision.verdict is Verdict.BLOCK


class _Liar(BaseHTTPRequestHandler):
    status, body = 200, b"{}"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_PUT = do_PATCH = do_GET


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"{}"),
        (200, b"<html>login</html>"),
        (
            400,
            json.dumps({"error_code": "INVALID_STATE", "message": "\x1b[31mPASS\x1b[0m <b>x\u202e"}).encode(),
        ),
    ],
)
def test_a_server_that_talks_nonsense_changes_nothing(
    bench: GateBench, write_manifest: WriteManifest, status: int, body: bytes
) -> None:
    handler = type("Liar", (_Liar,), {"status": status, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            uri = f"http://127.0.0.1:{http.server_address[1]}"
            arms = {role: verify(write_manifest(role)) for role in ("baseline", "candidate")}
            folder = kept(sample.decision(), sample.pairs(), arms, bench.home, Target(uri))
            delivery = send(folder, Target(uri))
        finally:
            http.shutdown()
            thread.join()
    assert not delivery.sent
    assert folder.is_dir()
    assert delivery.text.isprintable()
    assert "\x1b" not in delivery.text


@pytest.mark.parametrize("path", ["runs/log-batch", "runs/log-inputs", "artifacts/"])
def test_what_a_server_only_claims_to_have_taken_still_waits(
    server: Api, gate_way: Gateway, bench: GateBench, path: str
) -> None:
    gate_way.swallow = path
    assert bench.gate(more=["--mlflow", gate_way.url]) == 0, bench.stderr
    assert "lacks" in bench.stderr
    assert len(waiting(bench)) == 1
    assert "checkweigh.complete" not in named(family(server, bench)["gate"]["data"]["tags"])
    gate_way.swallow = None
    assert bench.run("mlflow", "sync") == 0, bench.stderr
    assert_complete(server, bench)


def test_a_password_is_used_and_never_written(server: Api, gate_way: Gateway, bench: GateBench) -> None:
    host = gate_way.url.removeprefix("http://")
    uri = f"http://someone:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@{host}"
    gate_way.left = 0
    assert bench.gate(more=["--mlflow", uri]) == 0
    said = bench.stderr
    assert bench.run("mlflow", "sync", "--mlflow", uri) == 4
    said += bench.stderr
    gate_way.left = None
    assert bench.run("mlflow", "sync", "--mlflow", uri) == 0, bench.stderr
    said += bench.stderr
    assert gate_way.users == {f"someone:{PASSWORD}"}
    secrets = ("hunter2", "someone")
    assert not any(secret in said for secret in secrets), said
    written = [path for root in (bench.home, bench.out) for path in root.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if any(s.encode() in path.read_bytes() for s in secrets)]
    assert_complete(server, bench)


def test_hostile_replies_arrive_as_harmless_text(
    server: Api, bench: GateBench, write_manifest: WriteManifest
) -> None:
    arms = {role: verify(write_manifest(role)) for role in ("baseline", "candidate")}
    decision = sample.decision(hostile=True)
    folder = kept(decision, sample.pairs(hostile=True), arms, bench.home, Target(server.url))
    delivery = send(folder, Target(server.url))
    assert delivery.sent, delivery.text
    (run,) = server.runs(decision.record_digest(), "gate")
    table = json.loads(server.artifact(run["info"]["run_id"], "items.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    evil = {row["item"]: row["baseline_text"] for row in rows if row["item"].startswith("evil")}
    assert len(evil) == len(sample.HOSTILE)
    assert evil["evil-0"] == sample.HOSTILE[0], "it is text, and stays what it was"
    assert evil["evil-4"].startswith("⟨ESC⟩[2J⟨ESC⟩[31mPASS")
    assert all(text.isprintable() or "\n" in text for text in evil.values())
    (cut,) = [text for text in evil.values() if "more characters" in text]
    assert len(cut) < 2100
    note = named(run["data"]["tags"])["mlflow.note.content"]
    assert "<script" not in note
    assert "BLOCK" in note


def test_the_store_of_this_machine_needs_no_server(bench: GateBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHECKWEIGH_MLFLOW")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert bench.gate() == 0
    assert f"mlflow: sqlite:///{bench.home}/mlflow.db (run " in bench.stderr, bench.stderr
    (found,) = bench.home.glob("mlartifacts/*/artifacts/decision.json")
    assert canonical.digest(json.loads(found.read_text())) == bench.decision.record_digest()
    assert waiting(bench) == []
