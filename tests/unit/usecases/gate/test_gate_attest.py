"""``gate --attest``: signed only when finished, never silently unsigned, and no secret anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.builders import evalset
from tests.signing import keys
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

SECRET = "hunter2-correct-horse"
WORSE = {"bias_nats": 0.5}


@pytest.fixture
def signed(bench: GateBench, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("CHECKWEIGH_KEY_PASSPHRASE", SECRET)
    bench.policy(PERPLEXITY)
    return keys(bench.folder, "p256", passphrase=SECRET)


def admit(bench: GateBench, public: Path, *more: str) -> int:
    attestation = bench.out / "attestation.json"
    return bench.run(
        "admit", "candidate.yaml", "--attestation", str(attestation), "--key", str(public),
        "--policy", "gates/test.yaml", *more,
    )  # fmt: skip


def test_a_pass_is_signed_and_admitted(bench: GateBench, signed: tuple[Path, Path]) -> None:
    private, public = signed
    assert bench.gate(more=["--attest", str(private)]) == 0, bench.stderr
    stderr = bench.stderr
    assert "attestation: " in stderr
    assert "an OpenSSF model signature" in stderr
    assert admit(bench, public) == 0, bench.stderr
    shutil.copytree(bench.out, bench.folder / "copy")
    assert bench.gate() == 0
    assert not (bench.out / "attestation.json").exists(), "an earlier one must not pass for this gate's"
    assert not (bench.out / "weights.sig").exists()
    pem = private.read_text().splitlines()[1]
    for path in [
        p for root in (bench.out, bench.home, bench.folder / "copy") for p in root.rglob("*") if p.is_file()
    ]:
        data = path.read_bytes()
        assert SECRET.encode() not in data, path
        assert pem.encode() not in data, path
    assert SECRET not in stderr
    assert pem not in stderr


def test_another_baseline_than_what_serves_is_named_and_can_be_refused(
    bench: GateBench, signed: tuple[Path, Path]
) -> None:
    """A candidate that is far below the champion passes against something that is as bad."""
    private, public = signed
    champion = bench.manifest("champion", {"noise_seed": 3})
    assert bench.gate(WORSE, baseline=WORSE, more=["--attest", str(private)]) == 0, bench.stderr
    pins = bench.decision.baseline.pins
    assert admit(bench, public) == 0, bench.stderr
    assert f"baseline: baseline, pins {pins[7:19]}" in bench.stderr
    assert admit(bench, public, "--baseline", "baseline.yaml") == 0, bench.stderr
    assert admit(bench, public, "--baseline", str(champion)) == 1
    assert f"refused: baseline: compared with baseline, pins {pins[7:19]}; champion" in bench.stderr


def test_sets_of_the_same_names_beside_another_copy_of_the_policy_are_refused(
    bench: GateBench, signed: tuple[Path, Path]
) -> None:
    """The policy is the same to the byte; the items are ones that the candidate gets right."""
    private, public = signed
    elsewhere = bench.folder / "elsewhere"
    shutil.copytree(bench.folder / "gates", elsewhere / "gates")
    folder, bench.folder = bench.folder, elsewhere
    bench.put(evalset("text", 330, name="prose"))
    bench.folder = folder
    more = ["--attest", str(private), "--policy", str(elsewhere / "gates/test.yaml")]
    assert bench.gate(more=more) == 0, bench.stderr
    assert admit(bench, public) == 1
    assert "refused: evalsets: prose: measured on other items or by another scorer" in bench.stderr
    promote = ["promote", str(bench.out), "--policy", "gates/test.yaml", "--model", "m", "--first"]
    assert bench.run(*promote, "--mlflow", "http://127.0.0.1:1") == 1
    assert "refused: evalsets: prose: measured on other items or by another scorer" in bench.stderr


def test_sets_in_the_second_place_where_a_gate_looks_are_bad_input(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    shutil.copytree(bench.folder / "evalsets/prose", bench.folder / "gates/evalsets/prose")
    assert bench.gate() == 2
    said = " ".join(bench.stderr.split())
    assert (
        f"expected one place for it, found {bench.folder}/gates/evalsets/prose and {bench.folder}/evalsets/prose"
        in said
    )


def test_a_block_is_signed_and_refused_unless_waived(bench: GateBench, signed: tuple[Path, Path]) -> None:
    private, public = signed
    assert bench.gate(WORSE, more=["--attest", str(private)]) == 1
    assert admit(bench, public) == 1
    assert "verdict: the verdict is block" in bench.stderr
    waive = [
        "waive",
        str(bench.out),
        "candidate.yaml",
        "--reason",
        "the other model is on fire",
        "--owner",
        "Ann",
    ]
    assert bench.run(*waive, "--key", str(private)) == 0, bench.stderr
    assert admit(bench, public, "--waiver", str(bench.out / "waiver.json")) == 0, bench.stderr
    assert "WAIVED by Ann" in bench.stderr


def test_a_key_that_is_none_stops_the_gate_before_it_begins(bench: GateBench) -> None:
    assert bench.gate(more=["--attest", "nowhere.pem"]) == 2
    assert not bench.out.exists()
    assert "nowhere.pem" in bench.stderr


def test_what_cannot_be_signed_is_no_pass(
    bench: GateBench, signed: tuple[Path, Path], tiny_model_dir: Path
) -> None:
    private, _ = signed
    model = bench.folder / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / ".cache").mkdir()
    (model / ".cache" / "notes.txt").symlink_to(
        "nowhere"
    )  # the gate needs it not; the model signature cannot be made
    source = {"source": f"path:{model}"}
    assert bench.gate(model=source, more=["--attest", str(private)]) == 4, bench.stderr
    assert bench.decision.verdict == "pass"
    assert "attestation: NOT SIGNED" in bench.stderr
    assert not (bench.out / "attestation.json").exists()
    assert not (bench.out / "weights.sig").exists()
    (model / ".cache" / "notes.txt").unlink()
    assert bench.gate(model=source, more=["--attest", str(private)]) == 0, bench.stderr


def test_a_gate_that_broke_signs_nothing(bench: GateBench, signed: tuple[Path, Path]) -> None:
    private, _ = signed
    assert bench.gate(baseline={"crash_at": 1}, more=["--attest", str(private)]) == 4, bench.stderr
    assert not (bench.out / "attestation.json").exists()
    assert "NOT SIGNED: the gate broke" in bench.stderr


def test_the_statement_is_what_in_toto_says(bench: GateBench, signed: tuple[Path, Path]) -> None:
    import base64

    private, _ = signed
    assert bench.gate(more=["--attest", str(private)]) == 0
    envelope = json.loads((bench.out / "attestation.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate, ours = statement["predicate"], statement["predicate"]["checkweigh"]
    assert predicate["result"] == "PASSED"
    assert predicate["passedTests"] == [r.check.id for r in bench.decision.checks]
    assert ours["decision"] == bench.decision.record_digest()
    assert ours["evalsets"] == bench.decision.evalsets
    assert {s["name"] for s in statement["subject"]} >= {"pins", "weights/model.safetensors", "chat_template"}
    effect = next(c for c in ours["checks"] if c["id"] == "perplexity")["effect"]
    assert effect == bench.result("perplexity").comparison.effect  # type: ignore[union-attr]
