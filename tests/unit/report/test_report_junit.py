from __future__ import annotations

import re
from pathlib import Path

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase
from tests.unit.report import sample
from tests.unit.report.sample import check, estimate, result

from checkweigh.records.comparison import Inestimable
from checkweigh.records.decision import CheckResult, Decision, Verdict
from checkweigh.report.junit import junit


def cases(decision: Decision, tmp_path: Path) -> dict[str, TestCase]:
    path = tmp_path / "junit.xml"
    path.write_text(junit(decision), encoding="utf-8")
    (suite,) = JUnitXml.fromfile(str(path))
    found = {case.name: case for case in suite}
    kinds = [type(r) for case in found.values() for r in case.result]
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (
        len(found),
        kinds.count(Failure),
        kinds.count(Error),
        kinds.count(Skipped),
    )
    return found


def with_checks(verdict: Verdict, *checks: CheckResult) -> Decision:
    return sample.decision(verdict).model_copy(update={"checks": checks})


@pytest.mark.parametrize(
    ("verdict", "kind"), [(Verdict.BLOCK, Failure), (Verdict.INCONCLUSIVE, Error), (Verdict.ERROR, Error)]
)
def test_only_a_pass_passes(verdict: Verdict, kind: type, tmp_path: Path) -> None:
    (found,) = cases(sample.decision(verdict), tmp_path)["verdict"].result
    assert isinstance(found, kind)
    assert found.type == verdict.value


def test_a_passing_gate_has_neither_failure_nor_error(tmp_path: Path) -> None:
    found = cases(sample.decision(Verdict.PASS), tmp_path)
    assert found["verdict"].is_passed
    bad = {name: case.result for name, case in found.items() if case.result}
    assert list(bad) == ["arithmetic"]  # supporting and undecided: neither passed nor failed
    assert isinstance(bad["arithmetic"][0], Skipped)


def test_checks(tmp_path: Path) -> None:
    found = cases(sample.decision(Verdict.BLOCK), tmp_path)
    assert isinstance(found["log-perplexity"].result[0], Failure)
    assert isinstance(found["task-score"].result[0], Error)
    assert found["task-score"].result[0].type == "inconclusive"
    for name in ("bad-endings", "copy-words", "longer-replies", "failures"):
        assert found[name].is_passed
    for name in ("ttft-p50", "memory", "shorter-replies"):
        assert found[name].is_passed
        assert "this check gates nothing" in (found[name].system_out or "")
    assert found["ttft-p50"].classname == "checkweigh.default.advisory"


def test_supporting_checks_that_hold_back_a_pass_are_errors(tmp_path: Path) -> None:
    none = result(
        check("none", "score", 0.03, tier="supporting"), Inestimable(reason="r"), "inconclusive", "none"
    )
    odd = result(check("odd", "score", 0.03, tier="supporting"), estimate(0.2, 0.01), "anomalous", "too good")
    found = cases(with_checks(Verdict.INCONCLUSIVE, none, odd), tmp_path)
    assert [type(found[name].result[0]) for name in ("none", "odd")] == [Error, Error]


def test_a_pass_that_contradicts_its_checks_still_fails(tmp_path: Path) -> None:
    found = cases(with_checks(Verdict.PASS, sample.perplexity(blocked=True)), tmp_path)
    assert isinstance(found["log-perplexity"].result[0], Failure)


def test_hostile_text_is_legal_xml(tmp_path: Path) -> None:
    decision = sample.decision(Verdict.BLOCK, hostile=True)
    assert "<script>" in cases(decision, tmp_path)["verdict"].result[0].text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\u202e]", junit(decision))
