"""``gate --attest``: signed only when finished, never silently unsigned, and no secret anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.signing import keys
from tests.unit.usecases.desk import PERPLEXITY, Desk

SECRET = "hunter2-correct-horse"
WORSE = {"bias_nats": 0.5}


@pytest.fixture
def signed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("CHECKWEIGH_KEY_PASSPHRASE", SECRET)
    desk.policy(PERPLEXITY)
    return keys(desk.folder, "p256", passphrase=SECRET)


def admit(desk: Desk, public: Path, *more: str) -> int:
    attestation = desk.out / "attestation.json"
    return desk.run(
        "admit", "candidate.yaml", "--attestation", str(attestation), "--key", str(public),
        "--policy", "gates/test.yaml", *more,
    )  # fmt: skip


def test_a_pass_is_signed_and_admitted(desk: Desk, signed: tuple[Path, Path]) -> None:
    private, public = signed
    assert desk.gate(more=["--attest", str(private)]) == 0, desk.stderr
    said = desk.stderr
    assert "attestation: " in said
    assert "an OpenSSF model signature" in said
    assert admit(desk, public) == 0, desk.stderr
    shutil.copytree(desk.out, desk.folder / "copy")
    assert desk.gate() == 0
    assert not (desk.out / "attestation.json").exists(), "an earlier one must not pass for this gate's"
    assert not (desk.out / "weights.sig").exists()
    pem = private.read_text().splitlines()[1]
    for path in [
        p for root in (desk.out, desk.home, desk.folder / "copy") for p in root.rglob("*") if p.is_file()
    ]:
        data = path.read_bytes()
        assert SECRET.encode() not in data, path
        assert pem.encode() not in data, path
    assert SECRET not in said
    assert pem not in said


def test_a_block_is_signed_and_refused_unless_waived(desk: Desk, signed: tuple[Path, Path]) -> None:
    private, public = signed
    assert desk.gate(WORSE, more=["--attest", str(private)]) == 1
    assert admit(desk, public) == 1
    assert "verdict: the verdict is block" in desk.stderr
    waive = [
        "waive",
        str(desk.out),
        "candidate.yaml",
        "--reason",
        "the other model is on fire",
        "--owner",
        "Ann",
    ]
    assert desk.run(*waive, "--key", str(private)) == 0, desk.stderr
    assert admit(desk, public, "--waiver", str(desk.out / "waiver.json")) == 0, desk.stderr
    assert "WAIVED by Ann" in desk.stderr


def test_a_key_that_is_none_stops_the_gate_before_it_begins(desk: Desk) -> None:
    assert desk.gate(more=["--attest", "nowhere.pem"]) == 2
    assert not desk.out.exists()
    assert "nowhere.pem" in desk.stderr


def test_what_cannot_be_signed_is_no_pass(
    desk: Desk, signed: tuple[Path, Path], tiny_model_dir: Path
) -> None:
    private, _ = signed
    model = desk.folder / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / "extra").mkdir()
    (model / "extra" / "notes.txt").symlink_to(
        "nowhere"
    )  # the gate needs it not; the model signature cannot be made
    source = {"source": f"path:{model}"}
    assert desk.gate(model=source, more=["--attest", str(private)]) == 4, desk.stderr
    assert desk.decision.verdict == "pass"
    assert "attestation: NOT SIGNED" in desk.stderr
    assert not (desk.out / "attestation.json").exists()
    assert not (desk.out / "weights.sig").exists()
    (model / "extra" / "notes.txt").unlink()
    assert desk.gate(model=source, more=["--attest", str(private)]) == 0, desk.stderr


def test_a_gate_that_broke_signs_nothing(desk: Desk, signed: tuple[Path, Path]) -> None:
    private, _ = signed
    assert desk.gate(baseline={"crash_at": 1}, more=["--attest", str(private)]) == 4, desk.stderr
    assert not (desk.out / "attestation.json").exists()
    assert "NOT SIGNED: the gate broke" in desk.stderr


def test_the_statement_is_what_in_toto_says(desk: Desk, signed: tuple[Path, Path]) -> None:
    import base64

    private, _ = signed
    assert desk.gate(more=["--attest", str(private)]) == 0
    envelope = json.loads((desk.out / "attestation.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate, ours = statement["predicate"], statement["predicate"]["checkweigh"]
    assert predicate["result"] == "PASSED"
    assert predicate["passedTests"] == [r.check.id for r in desk.decision.checks]
    assert ours["decision"] == desk.decision.record_digest()
    assert ours["evalsets"] == desk.decision.evalsets
    assert {s["name"] for s in statement["subject"]} >= {"pins", "weights/model.safetensors", "chat_template"}
    effect = next(c for c in ours["checks"] if c["id"] == "perplexity")["effect"]
    assert effect == desk.result("perplexity").comparison.effect  # type: ignore[union-attr]
