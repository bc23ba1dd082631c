from __future__ import annotations

import pytest
from tests.unit.report import sample
from tests.unit.report.sample import check, estimate, result

from checkweigh.decision.verdict import all_checks, decide
from checkweigh.records.decision import Verdict
from checkweigh.records.policy import Policy
from checkweigh.report import view
from checkweigh.report.html.page import page
from checkweigh.report.junit import junit
from checkweigh.report.markdown import summary


def test_the_severest_gating_check_comes_first_and_advisory_ones_last() -> None:
    rows = view.check_rows(sample.decision(Verdict.BLOCK))
    assert [r.id for r in rows][:3] == ["log-perplexity", "task-score", "longer-replies"]
    assert [r.tier for r in rows][-3:] == ["declared", "advisory", "advisory"]


@pytest.mark.parametrize(
    ("verdict", "ids"),
    [
        (Verdict.BLOCK, ["log-perplexity"]),
        (Verdict.INCONCLUSIVE, ["task-score"]),
        (Verdict.ERROR, []),
        (Verdict.PASS, ["failures", "task-score", "bad-endings", "longer-replies"]),
    ],
)
def test_deciding(verdict: Verdict, ids: list[str]) -> None:
    assert [r.id for r in view.deciding_checks(sample.decision(verdict))] == ids


def test_how_sure_and_how_much() -> None:
    rows = {r.id: r for r in view.check_rows(sample.decision(Verdict.BLOCK))}
    assert rows["log-perplexity"].magnitude == "11× the margin"
    assert rows["log-perplexity"].sure == "worse, p < 0.0001"
    assert rows["task-score"].sure == "open, p = 0.141"
    assert rows["copy-words"].sure == "≤ 4.9% may differ"
    assert rows["memory"].word == "no estimate"
    assert rows["arithmetic"].word == "unclear"
    assert not rows["arithmetic"].result.prevents_pass


def test_an_implausible_gain_of_a_supporting_check_holds_back() -> None:
    row = view.check_row(
        result(check("s", "score", 0.03, tier="supporting"), estimate(0.2, 0.01), "anomalous", "too good")
    )
    assert row.result.prevents_pass
    assert row.word == "IMPLAUSIBLE"


def test_bounds_are_named_by_their_confidence() -> None:
    decision = sample.decision()
    assert view.bounds_head(decision) == "95% bounds"
    of = check("s", "score", 0.03)
    strict = estimate(0, 0.01).model_copy(update={"confidence": 0.99})
    rows = (result(of, strict, "passed", ""), result(of, estimate(0, 0.01), "passed", ""))
    assert view.bounds_head(decision.model_copy(update={"checks": rows[:1]})) == "99% bounds"
    assert view.bounds_head(decision.model_copy(update={"checks": rows})) == "bounds"


def test_declared_and_advisory_checks_use_quiet_words() -> None:
    rows = {r.id: r for r in view.check_rows(sample.decision(Verdict.BLOCK))}
    assert (rows["ttft-p50"].word, rows["shorter-replies"].word) == ("worse", "fine")


def test_notes_say_what_must_be_said() -> None:
    decision = sample.decision(Verdict.INCONCLUSIVE, hostile=True).model_copy(
        update={"on_inconclusive": "block"}
    )
    said = " | ".join(view.notes(decision))
    for wanted in (
        "UNSAFE",
        "unsafe_pickle",
        "intends: shorter",
        "treats inconclusive as a block",
        "24 of 40 pairs",
    ):
        assert wanted in said


def test_reports_take_what_decide_makes() -> None:
    policy = Policy.model_validate(
        {
            "schema": "checkweigh/policy@1",
            "name": "p",
            "checks": (
                check("ppl", "log_perplexity", 0.03),
                check("s", "score", 0.03, kind="equivalence"),
                check("up", "score", 0.03, kind="superiority", tier="supporting"),
                check("abs", "bad_ending", 0.05, kind="absolute", tier="supporting"),
                check("none", "score", 0.03, tier="supporting"),
            ),
        }
    )
    found = {
        "ppl": estimate(-0.3, 0.02, p_worse=1e-9, p_pass=1.0),
        "s": estimate(0.0, 0.01),
        "up": estimate(0.01, 0.03),
        "abs": estimate(0.02, 0.01, low=None),
        "failures": estimate(0.0, 0.004),
    }
    judged = decide(policy, found)
    assert judged.verdict is Verdict.BLOCK
    assert len(judged.results) == len(all_checks(policy))
    decision = sample.decision().model_copy(update={"checks": judged.results, "reasons": judged.reasons})
    for text in (page(decision, []), junit(decision), summary(decision, [])):
        assert "BLOCK: the candidate must not ship" in text.replace(" <span>", ": ").replace(
            "BLOCK:: ", "BLOCK: "
        )
