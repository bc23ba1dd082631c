"""The model registry of a real MLflow server: an alias moves only behind a pass against what is there now."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import WriteManifest
from tests.mlflow_server import Api, Gateway, free_port, named
from tests.signing import keys
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh.sinks.sender_process import LIMIT

MORE = {"noise_seed": 3}
WORSE = {"bias_nats": 0.5}


@pytest.fixture
def bench(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_manifest: WriteManifest,
    capfd: pytest.CaptureFixture[str],
    server: Api,
) -> GateBench:
    monkeypatch.setenv("CHECKWEIGH_MLFLOW", server.url)
    monkeypatch.setenv(LIMIT, "150")  # a busy machine
    found = GateBench(tmp_path, monkeypatch, write_manifest, capfd)
    found.policy(PERPLEXITY)
    return found


class Registry:
    """The registered model of one test, over REST."""

    def __init__(self, api: Api, bench: GateBench, name: str) -> None:
        self.api, self.bench, self.name = api, bench, name

    def promote(self, *more: str) -> int:
        policy = ["--policy", "gates/test.yaml", "--model", self.name]
        return self.bench.run("promote", str(self.bench.out), *policy, *more)

    def aliases(self) -> dict[str, str]:
        answer = self.api.get("registered-models/get", name=self.name)["registered_model"]
        return {a["alias"]: a["version"] for a in answer.get("aliases", [])}

    def version(self, number: str) -> dict[str, Any]:
        return dict(self.api.get("model-versions/get", name=self.name, version=number)["model_version"])

    def release(self, knobs: dict[str, Any] | None = None) -> None:
        """Gate a candidate against the champion, and promote it."""
        candidate = self.bench.manifest("candidate", knobs)
        assert self.bench.run(*self.bench.arguments(Path(f"models:/{self.name}@champion"), candidate)) == 0
        assert self.promote() == 0, self.bench.stderr


@pytest.fixture
def registry(server: Api, bench: GateBench, request: pytest.FixtureRequest) -> Registry:
    """With a first champion: the gate's candidate against its baseline."""
    found = Registry(server, bench, re.sub(r"[^a-z]", "-", request.node.name)[:80])
    assert bench.gate() == 0, bench.stderr
    assert found.promote() == 1, "there is no champion, and nobody said that this is the first"
    assert "--first" in bench.stderr
    assert found.promote("--first") == 0, bench.stderr
    assert found.aliases() == {"champion": "1"}
    return found


def test_the_alias_follows_passes_against_the_champion_and_goes_back(
    registry: Registry, bench: GateBench
) -> None:
    first = bench.decision
    version = registry.version("1")
    tags = named(version["tags"])
    assert tags["checkweigh.pins"] == first.candidate.pins
    assert tags["checkweigh.decision"] == first.record_digest()
    assert version["source"].startswith("runs:/")
    assert registry.promote() == 0, "the same again changes nothing"
    assert "is version 1 already" in bench.stderr

    registry.release(MORE)
    assert bench.decision.baseline.pins == first.candidate.pins
    assert any("was version 1, candidate" in note for note in bench.decision.notes), bench.decision.notes
    assert registry.aliases() == {"champion": "2", "previous": "1"}

    assert bench.run("rollback", "--model", registry.name, "--reason", "slow in Oslo") == 0, bench.stderr
    assert registry.aliases() == {"champion": "1"}
    assert named(registry.version("2")["tags"])["checkweigh.rolled_back"] == "slow in Oslo"
    assert bench.run("rollback", "--model", registry.name) == 1
    assert registry.aliases() == {"champion": "1"}
    assert (
        bench.run(*bench.arguments(Path(f"models:/{registry.name}/2"), bench.folder / "candidate.yaml")) == 0
    )


def test_what_did_not_pass_or_not_against_the_champion_moves_nothing(
    registry: Registry, bench: GateBench
) -> None:
    assert registry.promote("--first") == 0, "idempotent"
    assert bench.gate(WORSE) == 1
    assert registry.promote() == 1
    assert "verdict: block" in bench.stderr
    assert bench.gate(MORE) == 0
    assert registry.promote() == 1, "gated against another baseline"
    assert "the gate's baseline is not the champion" in bench.stderr
    assert registry.promote("--first") == 1
    assert "--first is for when there is none" in bench.stderr
    bench.policy(PERPLEXITY | {"margin": 0.04})
    assert registry.promote() == 1
    assert "policy: judged by" in bench.stderr
    assert registry.aliases() == {"champion": "1"}


def test_two_at_once_and_one_wins(registry: Registry, bench: GateBench) -> None:
    runs = []
    for seed in (11, 12):
        bench.out = bench.folder / f"out-{seed}"
        candidate = bench.manifest(f"candidate-{seed}", {"noise_seed": seed})
        assert bench.run(*bench.arguments(Path(f"models:/{registry.name}@champion"), candidate)) == 0, (
            bench.stderr
        )
        runs.append(bench.out)
    more = ["--policy", "gates/test.yaml", "--model", registry.name, "--json"]
    both = [bench.spawn("promote", str(run), *more) for run in runs]
    ended = [(process.communicate(timeout=100), process.returncode) for process in both]
    assert sorted(code for _, code in ended) == [0, 1], ended
    told = {code: json.loads(out) for (out, _), code in ended}
    (why,) = told[1]["refusals"]
    assert "another promotion came first" in why or "moved meanwhile" in why or "is not the champion" in why
    aliases = registry.aliases()
    assert aliases == {"champion": told[0]["version"], "previous": "1"}


def test_a_registry_that_changes_between_check_and_move(
    registry: Registry, bench: GateBench, gate_way: Gateway, server: Api
) -> None:
    """Somebody moves the alias by hand just after the claim was made."""
    candidate = bench.manifest("candidate", MORE)
    assert bench.run(*bench.arguments(Path(f"models:/{registry.name}@champion"), candidate)) == 0

    def by_hand() -> None:
        body = {"name": registry.name, "alias": "champion", "version": "2"}
        server.raw("api/2.0/mlflow/registered-models/alias", json.dumps(body).encode())

    gate_way.then["model-versions/create"] = by_hand
    assert registry.promote("--mlflow", gate_way.url) == 1, bench.stderr
    assert "champion moved meanwhile, from version 1 to 2" in bench.stderr
    assert registry.aliases() == {"champion": "2"}
    assert named(registry.version("2")["tags"])["checkweigh.state"] == "yielded"


@pytest.mark.parametrize("path", ["registered-models/alias", "model-versions/create", "runs/search"])
def test_a_server_that_only_claims_to_do_it(
    registry: Registry, bench: GateBench, gate_way: Gateway, path: str
) -> None:
    candidate = bench.manifest("candidate", MORE)
    assert bench.run(*bench.arguments(Path(f"models:/{registry.name}@champion"), candidate)) == 0
    gate_way.swallow = path
    assert registry.promote("--mlflow", gate_way.url) != 0
    assert registry.aliases()["champion"] == "1"
    gate_way.swallow = None


def test_a_server_that_is_down_or_stops_in_the_middle(
    registry: Registry, bench: GateBench, gate_way: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv(LIMIT, "20")
    assert registry.promote("--mlflow", dead) == 4
    assert f"{dead}: does not answer" in bench.stderr
    assert bench.run("gate", f"models:/{registry.name}@champion", "candidate.yaml", "--mlflow", dead) == 4
    candidate = bench.manifest("candidate", MORE)
    monkeypatch.setenv(LIMIT, "150")  # or the gate passes, but is not sent in time to be promoted: a refusal
    assert bench.run(*bench.arguments(Path(f"models:/{registry.name}@champion"), candidate)) == 0
    monkeypatch.setenv(LIMIT, "20")
    gate_way.left = 6
    assert registry.promote("--mlflow", gate_way.url) == 4, bench.stderr
    assert registry.aliases()["champion"] == "1"


def test_with_a_key_only_a_signed_pass_promotes(registry: Registry, bench: GateBench) -> None:
    private, public = keys(bench.folder, "ed25519")
    champion = Path(f"models:/{registry.name}@champion")
    candidate = bench.manifest("candidate", MORE)
    assert bench.run(*bench.arguments(champion, candidate)) == 0
    assert registry.promote("--key", str(public)) == 1
    assert "a signed pass is required" in bench.stderr
    assert bench.run(*bench.arguments(champion, candidate, "--attest", str(private))) == 0
    _, other = keys(bench.folder, "ed25519", name="other")
    assert registry.promote("--key", str(other)) == 1
    assert "key: signed by another key" in bench.stderr
    another = bench.manifest("another", {"noise_seed": 4})
    assert bench.run(*bench.arguments(champion, another, "--attest", str(private))) == 0
    replayed = (bench.out / "attestation.json").read_bytes()
    assert bench.run(*bench.arguments(champion, candidate)) == 0
    (bench.out / "attestation.json").write_bytes(replayed)
    assert registry.promote("--key", str(public)) == 1
    assert "decision: signed was" in bench.stderr
    assert registry.aliases() == {"champion": "1"}
    assert bench.run(*bench.arguments(champion, candidate, "--attest", str(private))) == 0
    admit = [
        "admit",
        str(candidate),
        "--attestation",
        str(bench.out / "attestation.json"),
        "--key",
        str(public),
    ]
    admit += ["--policy", "gates/test.yaml", "--baseline", str(champion)]
    assert bench.run(*admit) == 0, bench.stderr
    assert registry.promote("--key", str(public)) == 0, bench.stderr
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert bench.run(*admit) == 1, "the champion is another one now"
    assert "refused: baseline: compared with candidate" in bench.stderr
    assert named(registry.version("2")["tags"])["checkweigh.signed"] == "yes"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("models:/nothing-of-that-name@champion", "the registry has no"),
        ("models:/nothing-of-that-name/1", "the registry has no"),
        ("models:/x", "expected models:/NAME@ALIAS"),
        ("models:/x@previous", "expected models:/NAME@ALIAS"),
        ("models:/x/0", "expected models:/NAME@ALIAS"),
        ("models:/../../x@champion", "expected models:/NAME@ALIAS"),
    ],
)
def test_a_baseline_that_the_registry_does_not_have(bench: GateBench, source: str, said: str) -> None:
    candidate = bench.manifest("candidate")
    assert bench.run(*bench.arguments(Path(source), candidate)) == 2
    assert said in bench.stderr
    assert not bench.out.exists()


def test_a_waiver_is_on_the_run(server: Api, bench: GateBench) -> None:
    private, _ = keys(bench.folder)
    assert bench.gate(WORSE) == 1
    waive = [
        "waive",
        str(bench.out),
        "candidate.yaml",
        "--reason",
        "the old one **is** down",
        "--owner",
        "Ann",
    ]
    for _ in range(2):
        assert bench.run(*waive, "--key", str(private)) == 0, bench.stderr
        assert "mlflow: the waiver is on the run" in bench.stderr
    (run,) = server.runs(bench.decision.record_digest(), "gate")
    tags = named(run["data"]["tags"])
    assert (tags["checkweigh.waiver.owner"], tags["checkweigh.verdict"]) == ("Ann", "block")
    note = tags["mlflow.note.content"]
    assert note.startswith("**WAIVED by Ann until")
    assert note.count("WAIVED") == 1
    assert "BLOCK" in note
    assert bench.run("promote", str(bench.out), "--policy", "gates/test.yaml", "--model", "waived") == 1
