"""The ledger of attempts: the same digests return the verdict, a later try is labelled and spends; no fail open."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.builders import evalset
from tests.unit.usecases.desk import PERPLEXITY, SCORE, TPOT, Desk, measured_files, wait_for

from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.policy import Policy
from checkweigh.sources.load_trace import Row
from checkweigh.sources.pin import quiet
from checkweigh.usecases.gate import ledger
from checkweigh.usecases.gate.inputs import read_inputs
from checkweigh.usecases.gate.ledger import attempt, rules

NAMES = ("decision.json", "report.html", "junit.xml", "summary.md")


def entries(desk: Desk) -> list[Path]:
    """The ledger's files."""
    return sorted((desk.home / "attempts").glob("*/*/*.json"))


def more_prose(desk: Desk, size: int = 400) -> None:
    """The set grows: the first 320 documents are as they were."""
    desk.put(evalset("text", size, name="prose"))


@pytest.mark.parametrize(
    ("knobs", "code"), [({"noise_seed": 2}, 0), ({"bias_nats": 0.3}, 1), ({"bias_nats": 0.0485}, 3)]
)
def test_the_same_digests_return_the_stored_verdict(desk: Desk, knobs: dict[str, Any], code: int) -> None:
    """Exit code, checks and reports are those of the first time; nothing is measured, and every output says so."""
    desk.policy(PERPLEXITY)
    assert desk.gate(knobs) == code, desk.stderr
    first = desk.decision
    kept = measured_files(entries(desk) + list((desk.home / "store").rglob("*.parquet")))
    shutil.rmtree(desk.out)
    assert desk.gate(knobs, more=["--json"]) == code
    again = desk.decision
    assert {name for name in NAMES if (desk.out / name).exists()} == set(NAMES)
    assert "starting the engine" not in desk.stderr
    assert measured_files([Path(path) for path in kept]) == kept
    assert (again.verdict, again.checks, again.reasons) == (first.verdict, first.checks, first.reasons)
    assert again.attempt is not None
    assert again.attempt.stored
    assert again.attempt.decided == first.provenance.ended
    assert json.loads(desk.stdout)["attempt"]["stored"] is True
    for text in (desk.stderr, *((desk.out / name).read_text() for name in NAMES[1:])):
        assert "STORED VERDICT of" in " ".join(text.replace("\\", "").split())
    assert desk.gate(knobs, more=["--out", "elsewhere"]) == code
    assert (desk.folder / "elsewhere" / "decision.json").exists()


def test_wording_makes_no_other_policy(desk: Desk) -> None:
    """Other reasons, another name, more time or more attempts do not buy another try; a margin does make another."""
    desk.policy(PERPLEXITY)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    for changed in ({"name": "other"}, {"because": "of something else"}, {"max_minutes": 7}, {"attempts": 3}):
        desk.policy(PERPLEXITY | {"because": "said in other words"}, **changed)
        assert desk.gate({"bias_nats": 0.0485}) == 3
        assert desk.decision.attempt is not None
        assert desk.decision.attempt.stored
    desk.policy(PERPLEXITY | {"margin": 0.2})
    assert desk.gate({"bias_nats": 0.0485}) == 0
    assert desk.decision.attempt is not None
    assert not desk.decision.attempt.stored
    assert "1 earlier try of this candidate" in desk.decision.attempt.earlier[-1]
    assert "1 earlier try of this candidate" in desk.stderr.replace("\n", " ")


def test_only_wording_is_left_out() -> None:
    """A field that decides must never be taken for wording."""
    assert set(Policy.model_fields) - {"name", "because", "attempts", "max_minutes"} == set(
        rules(Policy.model_validate_json(json.dumps(
            {"schema": "checkweigh/policy@1", "name": "x", "checks": [PERPLEXITY]}
        )))
    ) - {"schema"} | {"schema_"}  # fmt: skip


def test_a_later_try_that_was_not_declared_is_not_made(desk: Desk) -> None:
    """More items, and the same candidate: the budget is spent, and nothing is measured."""
    desk.policy(PERPLEXITY)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    more_prose(desk)
    kept = measured_files(entries(desk))
    assert desk.gate({"bias_nats": 0.0485}) == 3
    decision = desk.decision
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "declares 1 attempt and its error budget for this candidate is spent" in decision.reasons[0]
    assert decision.checks == ()
    assert "starting the engine" not in desk.stderr
    assert measured_files([Path(path) for path in kept]) == kept
    assert desk.gate({"bias_nats": 0.0}) == 0, "another candidate has a budget of its own"


def test_a_verdict_of_other_libraries_does_not_come_back(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No manifest pins what the embedded engine computes with: of another version, an old pass says nothing."""
    desk.policy(PERPLEXITY)
    assert desk.gate() == 0, desk.stderr
    upgraded = tmp_path / "upgraded/bitsandbytes-99.0.dist-info"
    upgraded.mkdir(parents=True)
    (upgraded / "METADATA").write_text("Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(upgraded.parent))
    assert desk.gate() == 3, desk.stderr
    assert desk.decision.verdict is Verdict.INCONCLUSIVE
    assert "error budget for this candidate is spent" in desk.reasons


def test_another_content_of_a_trace_makes_another_try(desk: Desk) -> None:
    """The policy names a file; what is replayed is what it holds."""
    first, second = desk.manifest("baseline"), desk.manifest("candidate")
    inputs = read_inputs(first, second, desk.folder / "gates/test.yaml", quiet)
    found = set()
    for rows in ((), (Row(0.0, 10, 5),), (Row(0.0, 10, 6),)):
        with attempt(replace(inputs, trace=rows), quiet) as mine:
            found.add(mine.entry.data)
    assert len(found) == 3


def test_a_change_of_the_rules_judges_the_same_measurements_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.policy(PERPLEXITY)
    assert desk.gate() == 0, desk.stderr
    monkeypatch.setattr(ledger, "JUDGING", ledger.JUDGING + 1)
    assert desk.gate() == 0, desk.stderr
    assert desk.decision.attempt is not None
    assert (desk.decision.attempt.number, desk.decision.attempt.stored) == (1, False)
    assert all(desk.stages().values()), "nothing is measured again"


def test_declared_attempts_share_the_budget_and_are_labelled(desk: Desk) -> None:
    desk.policy(PERPLEXITY, attempts=2)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    first = desk.decision
    comparison = desk.result("perplexity").comparison
    assert comparison.kind == "estimate"
    assert comparison.confidence == pytest.approx(0.975), "half of the five percent"
    assert first.budget is not None
    assert first.budget.attempts == 2
    more_prose(desk)
    desk.gate({"bias_nats": 0.0485})
    decision = desk.decision
    assert decision.attempt is not None
    assert (decision.attempt.number, decision.attempt.of) == (2, 2)
    assert decision.attempt.earlier == (f"attempt 1, {first.provenance.ended}: inconclusive",)
    assert desk.result("perplexity").comparison.pairs == 400
    for text in (desk.stderr, *((desk.out / name).read_text() for name in NAMES[1:])):
        assert "Attempt 2 of 2 declared" in " ".join(text.replace("\\", "").split())
    more_prose(desk, 480)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    assert "declares 2 attempts" in desk.decision.reasons[0]


def test_attempts_declared_afterwards_buy_nothing(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    desk.policy(PERPLEXITY, attempts=5)
    more_prose(desk)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    assert "is spent" in desk.decision.reasons[0]


def test_new_items_pool_and_never_replace(desk: Desk) -> None:
    """A second try on a set that has lost items is no extension of the first."""
    desk.policy(PERPLEXITY, SCORE, attempts=2)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    desk.put(evalset("text", 310, name="prose"))
    assert desk.gate({"bias_nats": 0.0485}) == 3
    assert "10 items of set prose that attempt 1 was decided on" in desk.decision.reasons[0]
    assert "starting the engine" not in desk.stderr


def test_an_older_verdict_does_not_come_back(desk: Desk) -> None:
    """Blocked on more items: going back to the smaller set does not bring the earlier answer back."""
    desk.policy(PERPLEXITY, attempts=2)
    assert desk.gate({"bias_nats": 0.0485}) == 3
    more_prose(desk)
    desk.gate({"bias_nats": 0.0485})
    desk.put(evalset("text", 320, name="prose"))
    assert desk.gate({"bias_nats": 0.0485}) == 3
    assert "only the last verdict stands" in desk.decision.reasons[0]
    assert desk.decision.checks == ()


def test_an_error_spends_nothing(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    assert desk.gate(baseline={"crash_at": 1}) == 4
    more_prose(desk)
    assert desk.gate() == 0
    assert desk.decision.attempt is not None
    assert (desk.decision.attempt.number, desk.decision.attempt.stored) == (1, False)


def test_a_gate_killed_before_its_look_spends_nothing(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate", {"latency_s": 0.2})
    process = desk.spawn(*desk.arguments(first, second))
    wait_for(lambda: entries(desk) and len(desk.records()) == 1, 60)
    process.kill()
    process.communicate()
    assert len(entries(desk)) == 1
    assert json.loads(entries(desk)[0].read_bytes())["body"]["decision"] is None
    assert desk.run(*desk.arguments(first, second)) == 0, "an entry without a verdict is no pass and no try"
    assert desk.decision.attempt is not None
    assert (desk.decision.attempt.number, desk.decision.attempt.stored) == (1, False)


@pytest.mark.parametrize("how", ["cut", "edited", "renamed", "emptied", "another's"])
def test_a_damaged_ledger_is_an_error_and_never_a_verdict(desk: Desk, how: str) -> None:
    desk.policy(PERPLEXITY)
    assert desk.gate({"bias_nats": 0.3}) == 1
    (path,) = entries(desk)
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[:-20])
        case "edited":
            path.write_bytes(data.replace(b'"verdict":"block"', b'"verdict":"pass"'))
        case "renamed":
            path.rename(path.with_name("02.json"))
        case "emptied":
            path.write_bytes(b"")
        case "another's":
            path.write_bytes(data.replace(b'"number":1', b'"number":2', 1))
    assert desk.gate({"bias_nats": 0.3}) == 4
    assert desk.decision.verdict is Verdict.ERROR
    assert "the ledger of attempts" in desk.reasons


def test_an_unservable_candidate_stays_blocked_until_an_attempt_is_spent(desk: Desk) -> None:
    desk.policy(PERPLEXITY, attempts=2)
    assert desk.gate({"crash_at": 1}) == 1
    assert desk.gate({"crash_at": 1}) == 1
    assert "STORED VERDICT" in desk.stderr
    assert desk.gate({"crash_at": 1}, more=["--again"]) == 1
    assert desk.decision.attempt is not None
    assert (desk.decision.attempt.number, desk.decision.attempt.stored) == (2, False)
    assert "candidate_unservable" in desk.reasons
    assert desk.gate({"crash_at": 1}, more=["--again"]) == 2
    assert "is spent" in desk.stderr.replace("\n", " ")


def test_again_needs_something_to_repeat(desk: Desk) -> None:
    desk.policy(PERPLEXITY, attempts=2)
    assert desk.gate(more=["--again"]) == 2
    assert "there is nothing to repeat" in desk.stderr


def test_two_gates_of_the_same_at_once_decide_once(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate", {"latency_s": 0.02})
    outs = [desk.folder / f"out{i}" for i in range(2)]
    processes = [desk.spawn(*desk.arguments(first, second, "--out", str(out))) for out in outs]
    for process in processes:
        _, error = process.communicate(timeout=180)
        assert process.returncode == 0, error.decode()
    found = [Decision.model_validate_json((out / "decision.json").read_bytes()).attempt for out in outs]
    assert sorted(a.stored for a in found if a) == [False, True]
    assert len(entries(desk)) == 1


def test_evidence_that_is_gone_is_said_and_the_verdict_stands(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    assert desk.gate({"bias_nats": 0.3}) == 1
    shutil.rmtree(desk.home / "store")
    assert desk.gate({"bias_nats": 0.3}) == 1
    assert "no longer in the store: prose on the baseline, prose on the candidate" in " ".join(
        desk.decision.notes
    )


def test_timing_is_that_of_the_verdict(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, TPOT)
    slow = {"token_latency_s": 0.001}
    assert desk.gate(slow, slow) == 0
    first = desk.decision.timing
    assert desk.gate(slow, slow) == 0
    assert desk.decision.timing == first
    assert "latency and memory are those of then" in desk.stderr.replace("\n", " ")
