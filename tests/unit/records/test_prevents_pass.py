"""What keeps a gate from passing is decided once and stored, and derived for decisions written before it was stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.builders import check, policy
from tests.unit.report import sample

from checkweigh import canonical
from checkweigh.decision.verdict import decide
from checkweigh.errors import BadInput
from checkweigh.files import write_sealed
from checkweigh.records.comparison import Comparison, Identical, Inestimable
from checkweigh.records.decision import CheckOutcome, CheckResult, Decision, LedgerEntry, LookMade, Verdict
from checkweigh.records.policy import FAILURES
from checkweigh.report import decision_json
from checkweigh.usecases.gate.ledger import highest_replicate
from checkweigh.usecases.read_decision import read_decision

ESTIMATE = sample.estimate(-0.03, 0.05)
NO_BOUND = sample.estimate(-0.03, 0.05, low=None)
NO_ESTIMATE = Inestimable(reason="8 items, 100 needed")
SAME, SAME_BUT_FEW = (
    Identical(pairs=180, clusters=n, differing_share_upper=share, baseline=0.9, candidate=0.9)
    for n, share in ((60, 0.0487), (20, 0.139))
)
EVERY = (ESTIMATE, NO_BOUND, NO_ESTIMATE, SAME, SAME_BUT_FEW)


@pytest.mark.parametrize(
    ("tier", "outcome", "prevents"),
    [
        # An estimate, one without a lower bound, none, identical, identical on too few clusters.
        ("critical", "passed", (False, False, False, False, False)),
        ("critical", "warning", (False, False, False, False, False)),
        ("critical", "inconclusive", (True, True, True, True, True)),
        ("critical", "anomalous", (True, True, True, True, True)),
        ("critical", "blocked", (True, True, True, True, True)),
        ("supporting", "passed", (False, True, True, False, True)),
        ("supporting", "warning", (False, True, True, False, True)),
        ("supporting", "inconclusive", (False, True, True, False, True)),
        ("supporting", "anomalous", (True, True, True, True, True)),
        ("supporting", "blocked", (True, True, True, True, True)),
        ("advisory", "inconclusive", (False, False, False, False, False)),
        ("advisory", "blocked", (False, False, False, False, False)),
    ],
)
def test_prevents_pass_case_by_case(tier: Any, outcome: CheckOutcome, prevents: tuple[bool, ...]) -> None:
    of = sample.check("s", "score", 0.03, tier=tier)
    for comparison, expected in zip(EVERY, prevents, strict=True):
        assert sample.result(of, comparison, outcome, "").prevents_pass is expected
        assert not sample.result(of, comparison, outcome, "", declared=True).prevents_pass


@pytest.mark.parametrize("comparison", [NO_BOUND, NO_ESTIMATE, SAME_BUT_FEW])
def test_the_verdict_stores_that_a_supporting_check_prevents_pass(comparison: Comparison) -> None:
    rules = policy(check(), check(id="second", tier="supporting"))
    fine = {"quality": sample.estimate(0.0, 0.01), FAILURES: sample.estimate(0.0, 0.004)}
    judgement = decide(rules, fine | {"second": comparison})
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert [r.check.id for r in judgement.results if r.prevents_pass] == ["second"]
    assert all("prevents_pass" in r.model_dump(mode="json") for r in judgement.results)


def written_before(decision: Decision) -> Any:
    """The decision as the version of before wrote it."""
    body = json.loads(decision_json(decision))
    for result in body["checks"]:
        result.pop("prevents_pass", None)
    return body


def inconclusive() -> Decision:
    """A decision that only a supporting check holds back, one that was identical on too few clusters."""
    held = sample.result(
        sample.check("s", "score", 0.03, tier="supporting"), SAME_BUT_FEW, "inconclusive", "few"
    )
    results = (*sample.checks(Verdict.PASS), held)
    decision = sample.decision(Verdict.INCONCLUSIVE)
    return decision.model_copy(update={"checks": results, "reasons": (held.sentence,)})


def test_prevents_pass_is_derived_where_decision_json_does_not_have_it(tmp_path: Path) -> None:
    body = written_before(inconclusive())
    (tmp_path / "decision.json").write_text(json.dumps(body))
    decision = read_decision(tmp_path)
    assert [r.check.id for r in decision.checks if r.prevents_pass] == ["s"]


def test_a_decision_without_prevents_pass_keeps_its_digest_and_one_with_it_too(tmp_path: Path) -> None:
    before = written_before(inconclusive())
    results = decide(policy(), {"quality": ESTIMATE}).results
    now = json.loads(decision_json(inconclusive().model_copy(update={"checks": results})))
    assert all("prevents_pass" in result for result in now["checks"])
    for body in (before, now):
        decision = Decision.model_validate_json(json.dumps(body))
        assert json.loads(decision_json(decision)) == body
        assert decision.record_digest() == canonical.digest(body)


def test_a_ledger_entry_without_prevents_pass_is_not_damaged(tmp_path: Path) -> None:
    digest = sample.digest("any")
    look = LookMade(number=1, share=1.0, items={"set": 100}, verdict=Verdict.INCONCLUSIVE, seconds=1.0)
    entry = LedgerEntry(
        number=1, of=1, plan=digest, data=digest, judged=digest, items={"set": ("a",)}, replicate=7, looks=(look,),
        begun="2026-01-01T00:00:00Z", decision=inconclusive(),
    )  # fmt: skip
    body = entry.model_dump(mode="json") | {"decision": written_before(inconclusive())}
    path = tmp_path / "candidate" / "gated" / "01.json"
    write_sealed(path, body)
    assert highest_replicate(path) == 7
    read = LedgerEntry.model_validate_json(json.dumps(body))
    assert read.decision is not None
    assert [r.check.id for r in read.decision.checks if r.prevents_pass] == ["s"]
    assert read.model_dump(mode="json") == body


def test_prevents_pass_adds_no_problem_of_its_own_to_a_broken_decision(tmp_path: Path) -> None:
    body = written_before(inconclusive())
    body["checks"][0]["outcome"] = "fine"
    (tmp_path / "decision.json").write_text(json.dumps(body))
    with pytest.raises(BadInput, match=r"checks\[0\]\.outcome") as error:
        read_decision(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_prevents_pass_is_a_truth_value_where_it_is_given() -> None:
    result: CheckResult = inconclusive().checks[0]
    with pytest.raises(ValueError, match="prevents_pass"):
        CheckResult.model_validate_json(json.dumps(result.model_dump(mode="json") | {"prevents_pass": None}))
