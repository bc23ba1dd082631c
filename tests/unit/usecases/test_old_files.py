"""Files that commit 2f432cc wrote, on the fake engine: refused, shown or kept, as docs/upgrading.md says."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.signing import keys

from checkweigh.cli import main
from checkweigh.errors import BadInput
from checkweigh.files import read_sealed, write_sealed
from checkweigh.records.decision import Decision
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sources.pin import pin, read_pinned
from checkweigh.usecases.calibration_store import for_pins
from checkweigh.usecases.read_decision import read_decision
from checkweigh.usecases.release import registry

FILES = Path(__file__).resolve().parents[2] / "old_files"
POLICY = ["--policy", "gates/test.yaml"]
GATE = ["gate", "base.yaml", "cand.yaml", *POLICY, "--out", "new"]
ADMIT = ["admit", "cand.yaml", "--attestation", "run/attestation.json", "--key", "key.pub", *POLICY]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files, in the current directory, with the home that they were made in."""
    shutil.copytree(FILES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("CHECKWEIGH_HOME", str(tmp_path / "old/home"))
    return tmp_path / "old"


@pytest.fixture
def pinned(old: Path) -> Path:
    """The same, with locks of today."""
    for name in ("base", "cand"):
        pin(old / f"{name}.yaml")
    return old


def ledger(old: Path) -> dict[str, bytes]:
    """Entries of the ledger by their place."""
    return {
        str(path.relative_to(old)): path.read_bytes() for path in (old / "home/attempts").glob("*/*/*.json")
    }


def attested(old: Path) -> dict[str, Any]:
    envelope = json.loads((old / "run/attestation.json").read_text())
    return dict(json.loads(base64.b64decode(envelope["payload"]))["predicate"]["checkweigh"])


def test_they_are_of_version_one_and_name_no_place() -> None:
    assert json.loads((FILES / "base.lock.json").read_text())["schema"] == "checkweigh/lock@1"
    assert attested(FILES)["schema"] == "checkweigh/attestation@1"
    for path in FILES.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(place in data for place in (b"/tmp", b"/home/", b"/root", b"/work")), path


@pytest.mark.parametrize("command", [["verify", "cand.yaml"], GATE, ADMIT])
def test_a_lock_is_bad_input_with_the_command_that_renews_it(
    old: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (old / "cand.lock.json").read_bytes()
    assert main(command) == 2
    assert "checkweigh pin cand.yaml" in capsys.readouterr().err
    assert (old / "cand.lock.json").read_bytes() == before
    assert main(["pin", "cand.yaml"]) == 0
    assert main(["verify", "cand.yaml"]) == 0


def test_a_report_shows_the_decision_to_the_byte_and_says_that_it_is_unverified(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_decision(old / "run").record_digest() == attested(old)["decision"], "what was signed then"
    assert main(["report", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((old / "run/decision.json").read_text())
    assert "UNVERIFIED: decided by an older version" in err


def test_an_attestation_admits_nothing(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ADMIT) == 1
    refused = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 1
    assert refused[0].startswith("refused: outdated: made by an older version (checkweigh/attestation@1)")


def test_a_decision_is_neither_promoted_nor_waived(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model", "m", "--first", "--mlflow", "http://127.0.0.1:1"]
    assert main(["promote", "run", *POLICY, *where]) == 1
    assert "refused: outdated: " in capsys.readouterr().err
    private, _ = keys(pinned, name="mine")
    waive = [
        "waive",
        "run",
        "cand.yaml",
        "--reason",
        "the other one burns",
        "--owner",
        "Ann",
        "--key",
        str(private),
    ]
    assert main(waive) == 2
    assert "decided by an older version" in capsys.readouterr().err


def test_a_registered_version_is_no_baseline_and_says_what_to_do(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"manifest.yaml": "base.yaml", "manifest.lock.json": "base.lock.json"}
    answer = {
        "version": "3",
        "pins": "sha256:x",
        "files": {k: (old / v).read_text() for k, v in files.items()},
    }
    monkeypatch.setattr(registry, "_ask", lambda *a, **k: answer)
    for source in (Path("models:/m@champion"), Path("models:/m/3")):
        with pytest.raises(
            BadInput, match=r"version 3 was registered by an older Checkweigh.*docs/upgrading\.md"
        ):
            registry.registered_baseline(source, Target("http://127.0.0.1:1"))


def test_the_ledger_keeps_its_attempts(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = ledger(pinned)
    assert len(before) == 1
    assert main(GATE) == 3
    decision = read_decision(pinned / "new")
    assert "error budget for this candidate is spent (attempt 1 (of an older version)" in decision.reasons[0]
    assert decision.checks == ()
    assert main([*GATE, "--again"]) == 2
    for change in ({"attempts": 3}, {"no_effect": "warn"}, {"name": "other"}):
        document = yaml.safe_load((FILES / "gates/test.yaml").read_text())
        (pinned / "gates/test.yaml").write_text(yaml.safe_dump(document | change))
        assert main(GATE) == 3, change
    assert ledger(pinned) == before


def test_another_candidate_or_policy_has_a_budget_of_its_own(pinned: Path) -> None:
    document = yaml.safe_load((pinned / "gates/test.yaml").read_text())
    document["checks"][0]["margin"] = 0.06
    (pinned / "gates/test.yaml").write_text(yaml.safe_dump(document))
    assert main(GATE) == 0
    attempt = read_decision(pinned / "new").attempt
    assert attempt is not None
    assert attempt.number == 1
    assert (
        "1 earlier try of this candidate against other baselines or under other policies"
        in attempt.earlier[0]
    )


def test_an_attempt_after_old_ones_is_numbered_after_them_and_needs_them(
    pinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (pinned / "home/attempts").glob("*/*/01.json")
    write_sealed(path, read_sealed(path) | {"of": 2})
    document = yaml.safe_load((pinned / "gates/test.yaml").read_text())
    (pinned / "gates/test.yaml").write_text(yaml.safe_dump(document | {"attempts": 2}))
    for stored in (False, True):
        assert main(GATE) == 0, capsys.readouterr().err
        attempt = read_decision(pinned / "new").attempt
        assert attempt is not None
        assert (attempt.number, attempt.of, attempt.stored) == (2, 2, stored)
        assert attempt.earlier[0].startswith("attempt 1 (of an older version)")
    shutil.rmtree(path.parent)
    assert main(GATE) == 4
    assert "an entry of the ledger of attempts is missing" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_entry_is_no_other_attempt(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (pinned / "home/attempts").glob("*/*/01.json")
    path.write_bytes(path.read_bytes()[:-40])
    assert main(GATE) == 4
    assert "damaged entry in the ledger" in " ".join(capsys.readouterr().err.split())


def test_a_measurement_and_a_calibration_are_not_used(
    pinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = (pinned / "home/store").glob("*/record.json")
    before = record.read_bytes()
    document = yaml.safe_load((pinned / "cand.yaml").read_text())
    document["engine"]["options"]["noise_seed"] = 3
    (pinned / "cand.yaml").write_text(yaml.safe_dump(document))
    pin(pinned / "cand.yaml")
    assert main(GATE) == 0, capsys.readouterr().err
    decision = read_decision(pinned / "new")
    assert not any(stage.stored for stage in decision.stages), "the baseline is measured again"
    assert record.read_bytes() == before
    old_key = Decision.model_validate_json((pinned / "run/decision.json").read_bytes()).baseline.measurements
    assert set(old_key.values()).isdisjoint(decision.baseline.measurements.values())
    assert list((pinned / "home/calibrations").glob("*.json"))
    assert for_pins(read_pinned(pinned / "base.yaml")[1].pins.record_digest()) == ()
