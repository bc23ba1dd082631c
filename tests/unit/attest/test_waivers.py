"""Waivers: signed, expiring, of one decision, said everywhere, and refused when anything about them is not right."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import junitparser
import pytest
from junitparser import Error, Failure
from tests.signing import keys
from tests.unit.attest.conftest import Door

from checkweigh.attest.envelope import seal
from checkweigh.attest.keys import private_key
from checkweigh.attest.statement import waiver_statement
from checkweigh.cli import main
from checkweigh.errors import BadInput, ExitCode
from checkweigh.records.attestation import Waiver
from checkweigh.records.decision import Decision, Verdict
from checkweigh.report.pull_request import ChangeOutcome, CiRun
from checkweigh.sources.pin import verify
from checkweigh.usecases.ci import run as ci
from checkweigh.usecases.release.waive import sign_waiver

DAY = timedelta(days=1)
REASON = "customers are down; <script>alert(1)</script> **bold** @octocat"


@pytest.fixture
def blocked(door: Door) -> Decision:
    return door.decide(Verdict.BLOCK)


def written(door: Door, **changes: Any) -> Waiver:
    fields: dict[str, Any] = {
        "run": door.out, "manifest": door.manifest, "reason": REASON, "owner": "Ann", "lifetime": DAY,
        "key": private_key(str(door.private)),
    }  # fmt: skip
    return sign_waiver(**(fields | changes))


def codes(door: Door, now: datetime | None = None, **changes: Any) -> set[str]:
    return door.codes(now, waiver=door.out / "waiver.json", **changes)


def test_a_waived_block_is_admitted_and_says_so(
    door: Door, blocked: Decision, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.codes() == {"verdict"}
    arguments = ["waive", str(door.out), str(door.manifest), "--reason", REASON, "--owner", "Ann"]
    assert main([*arguments, "--key", str(door.private), "--expires", "2h"]) == 0
    assert "WAIVED by Ann until" in capsys.readouterr().err
    found = door.admit(waiver=door.out / "waiver.json")
    assert found.admitted, found.refusals
    assert found.notes[0].startswith("WAIVED by Ann until")
    assert "the verdict stays block" in found.notes[0]
    assert blocked.verdict is Verdict.BLOCK
    assert door.codes() == {"verdict"}, "it is never taken by itself"
    assert main(["report", str(door.out)]) == 1
    assert "WAIVED by Ann until" in capsys.readouterr().err


@pytest.mark.usefixtures("blocked")
def test_reports_show_it_once_and_harmlessly(door: Door) -> None:
    before = (door.out / "report.html").read_text(), (door.out / "summary.md").read_text()
    written(door, owner="Bob")
    written(door)
    page, comment = (door.out / "report.html").read_text(), (door.out / "summary.md").read_text()
    for text in (page, comment):
        assert text.count("WAIVED by") == 1
        assert "Ann" in text
        assert "Bob" not in text
        assert "<script>alert" not in text
    assert "**bold**" not in comment
    assert "@octocat" not in comment
    assert page.index("WAIVED by") < page.index("What changed")
    assert comment.index("WAIVED by") < comment.index("exit code")
    left = [line for line in comment.splitlines() if line and "aive" not in line and "WAIVED" not in line]
    assert left == [line for line in before[1].splitlines() if line], "nothing else changed"
    assert len(page) - len(before[0]) < 600


def junit_cases(path: Path) -> dict[str, junitparser.TestCase]:
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    return {case.name: case for case in suite}


@pytest.mark.usefixtures("blocked")
def test_junit_shows_it_beside_what_it_lets_ship_and_nothing_passes_by_it(door: Door) -> None:
    path = door.out / "junit.xml"
    before = junit_cases(path)
    bad = {name for name, case in before.items() if any(isinstance(r, Failure | Error) for r in case.result)}
    assert {"verdict", "log-perplexity"} <= bad
    written(door, owner="Bob")
    written(door)
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    (told,) = suite.properties()
    assert told.name == "waived"
    assert told.value.startswith("WAIVED by Ann until")
    after = junit_cases(path)
    assert {name for name, case in after.items() if "WAIVED by Ann" in (case.system_out or "")} == bad
    assert [(n, c.result, c.is_passed) for n, c in after.items()] == [
        (n, c.result, c.is_passed) for n, c in before.items()
    ]
    assert "Bob" not in path.read_text()
    assert "<script>alert" not in path.read_text()


@pytest.mark.usefixtures("blocked")
def test_json_says_it_where_the_decision_alone_cannot(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    record = (door.out / "decision.json").read_bytes()
    assert main(["report", str(door.out), "--json"]) == 1
    assert "waived" not in json.loads(capsys.readouterr().out)
    written(door)
    assert main(["report", str(door.out), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value.pop("waived").startswith("WAIVED by Ann until")
    assert value == json.loads(record)
    assert (door.out / "decision.json").read_bytes() == record, "what was signed stays"


def ci_run(door: Door) -> Path:
    """Results of `ci gate`, of which the door's gate is one of two."""
    reports = door.folder / "ci" / "gates" / "00-candidate.yaml"
    reports.parent.mkdir(parents=True)
    door.out.rename(reports)
    door.out = reports
    common = {"status": "modified", "need": "gate", "because": "weights", "baseline": "candidate.yaml"}
    outcomes = tuple(
        ChangeOutcome(path=path, exit_code=ExitCode.BLOCK, text="worse", reports=f"gates/{reports}", **common)
        for path, reports in (("candidate.yaml", "00-candidate.yaml"), ("other.yaml", "01-other"))
    )
    run = CiRun(key="checkweigh", base="main", merge_base=None, head=None, policy="p", outcomes=outcomes)
    ci.write_results(run, door.folder / "ci")
    return door.folder / "ci"


@pytest.mark.usefixtures("blocked")
def test_the_results_of_ci_show_it_which_are_the_job_summary_and_the_comment(door: Door) -> None:
    out = ci_run(door)
    assert not any("WAIVED" in (out / name).read_text() for name in ("comment.md", "junit.xml", "ci.json"))
    written(door, owner="Bob")
    written(door)
    body = (out / "comment.md").read_text()
    assert body.startswith("<!-- checkweigh-ci:checkweigh -->\n## ⛔ checkweigh: block")
    (row,) = [line for line in body.splitlines() if line.startswith("| candidate")]
    assert "WAIVED by Ann until" in row
    assert body.count("WAIVED by Ann") == 2, "in the row and in the gate's own summary"
    assert "**bold**" not in body
    assert "@octocat" not in body
    cases = junit_cases(out / "junit.xml")
    assert "WAIVED by Ann" in (cases["candidate.yaml: gate"].system_out or "")
    assert "WAIVED" not in (cases["other.yaml: gate"].system_out or "")
    assert not any(case.is_passed for case in cases.values())
    value = json.loads((out / "ci.json").read_text())
    assert value["exit_code"] == 1
    assert [o["waived"][:13] for o in value["outcomes"]] == ["WAIVED by Ann", ""]
    assert "Bob" not in body + (out / "ci.json").read_text() + (out / "junit.xml").read_text()


@pytest.mark.usefixtures("blocked")
def test_nothing_is_waived_where_the_results_of_ci_would_not_show_it(door: Door) -> None:
    out = ci_run(door)
    (out / "ci.json").write_text("[]")
    with pytest.raises(BadInput, match=r"ci\.json"):
        written(door)
    assert not (door.out / "waiver.json").exists()


def forged(**changes: Any) -> Callable[[Door], set[str]]:
    """A waiver with other fields, signed with the right key."""

    def forge(door: Door) -> set[str]:
        made = written(door).model_copy(update=changes)
        data = seal(waiver_statement(made, verify(door.manifest).pins), private_key(str(door.private)))
        (door.out / "waiver.json").write_bytes(data)
        return codes(door)

    return forge


def expired(door: Door) -> set[str]:
    written(door)
    return codes(door, datetime.now(UTC) + DAY)


def not_yet(door: Door) -> set[str]:
    written(door)
    return codes(door, datetime.now(UTC) - timedelta(hours=1)) - {"future"}


def by_another(door: Door) -> set[str]:
    private, _ = keys(door.folder, name="other")
    written(door, key=private_key(str(private)))
    return codes(door)


def changed(door: Door) -> set[str]:
    written(door)
    path = door.out / "waiver.json"
    value = json.loads(path.read_text())
    value["payload"] = value["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(value))
    return codes(door) - {"waiver-statement"}


def attestation_as_waiver(door: Door) -> set[str]:
    return door.codes(waiver=door.attestation)


def of_an_earlier_decision(door: Door) -> set[str]:
    written(door)
    door.decide(Verdict.BLOCK)
    return codes(door)


OTHER = "sha256:" + "0" * 64
REFUSED: dict[str, tuple[Callable[[Door], set[str]], str]] = {
    "expired": (expired, "waiver-expired"),
    "not yet issued": (not_yet, "waiver-future"),
    "by another key": (by_another, "waiver-key"),
    "changed": (changed, "waiver-signature"),
    "an attestation in its place": (attestation_as_waiver, "waiver-predicate-type"),
    "of an earlier decision": (of_an_earlier_decision, "waiver-decision"),
    "of another candidate": (forged(candidate=OTHER), "waiver-candidate"),
    "of another policy": (forged(policy=OTHER), "waiver-policy"),
    "without an end": (forged(expires="never"), "waiver-time"),
    "that ends before it begins": (forged(expires="2020-01-01T00:00:00+00:00"), "waiver-time"),
    "without a reason": (forged(reason=""), "waiver"),
}


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize("name", REFUSED)
def test_a_waiver_that_does_not_hold_is_refused(door: Door, name: str) -> None:
    tamper, code = REFUSED[name]
    assert tamper(door) == {code, "verdict"}


@pytest.mark.usefixtures("blocked")
def test_only_who_may_waive_can(door: Door) -> None:
    private, public = keys(door.folder, "ed25519", name="chief")
    written(door, key=private_key(str(private)))
    assert codes(door) == {"waiver-key", "verdict"}
    assert codes(door, waiver_key=public) == set()


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.ERROR])
def test_there_must_be_something_to_waive(door: Door, verdict: Verdict) -> None:
    from checkweigh.report import write_all

    write_all(door.decision(verdict), [], door.out)
    with pytest.raises(BadInput, match=r"needs no waiver|decided nothing"):
        written(door)


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reason": "short"}, "--reason"), ({"reason": "two lines\nof reasons here"}, "--reason"),
        ({"owner": ""}, "--owner"), ({"lifetime": timedelta(days=91)}, "--expires"),
    ],
)  # fmt: skip
def test_a_waiver_needs_a_reason_an_owner_and_an_end(door: Door, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        written(door, **changes)
    assert not (door.out / "waiver.json").exists()


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize("name", ["summary.md", "junit.xml"])
def test_nothing_is_waived_where_a_report_would_not_show_it(door: Door, name: str) -> None:
    (door.out / name).write_text("cut sho")
    with pytest.raises(BadInput, match=name):
        written(door)
    assert not (door.out / "waiver.json").exists()
    assert "WAIVED" not in (door.out / "report.html").read_text()
