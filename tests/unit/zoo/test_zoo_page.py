"""The zoo's catalogue is whole, its results are the catalogue's, and its page says what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.zoo.__main__ import chosen
from benchmarks.zoo.gating import TIMED, defect_source, inputs, met, timing_rules, zoo
from benchmarks.zoo.page import PAGE, PLOT, harm, page, plot, results, summary, unsettled
from benchmarks.zoo.specimens import QUALITY_SPECIMENS, QUICK, SPECIMENS, TIMING, Specimen
from pydantic import TypeAdapter

from checkweigh.records.base import Name
from checkweigh.records.metrics import METRICS
from checkweigh.sources.documents import read_policy

GATES = Path(__file__).resolve().parents[3] / "gates"
BY_NAME = {specimen.name: specimen for specimen in SPECIMENS}


def _result(must: str, verdict: str, **more: object) -> dict[str, object]:
    return {"must": must, "verdict": verdict, "traceback": False, "specimen": "x"} | more


def _specimen(must: str) -> Specimen:
    return Specimen(kind="x", family="weights", what="", must=must, causes=("perplexity",))  # type: ignore[arg-type]


def test_names_are_unique_and_every_defect_names_its_cause() -> None:
    assert len(BY_NAME) == len(SPECIMENS)
    assert set(QUICK) <= set(BY_NAME)
    for specimen in SPECIMENS:
        TypeAdapter(Name).validate_python(f"zoo-{specimen.name}")  # its manifest's
        caused = specimen.must not in ("block", "refuse") or specimen.causes or specimen.words
        assert caused, f"{specimen.name} could be stopped for any cause"
        differs = specimen.recipe or specimen.changes or specimen.defect or specimen.busy
        assert differs or specimen.name in ("itself", "timed-itself"), specimen.name
        assert (specimen.family == "timing") == bool(specimen.timed), specimen.name


def test_every_defect_of_the_engine_exists() -> None:
    assert all(len(defect_source(s.defect)) > 1 for s in SPECIMENS if s.defect)
    with pytest.raises(KeyError, match="has no nothing"):
        defect_source("nothing 1")


def test_a_third_is_held_out() -> None:
    measured = [s for s in QUALITY_SPECIMENS if s.family != "bytes"]
    for part in (measured, TIMING):
        assert sum(s.held_out for s in part) == len(part) // 3
    assert not any(s.held_out for s in QUALITY_SPECIMENS if s.family == "bytes"), (
        "no margin has to do with bytes"
    )


def test_what_is_timed_runs_only_when_it_is_asked_for() -> None:
    assert chosen([], None, quick=False) == list(QUALITY_SPECIMENS)
    assert chosen([], "timing", quick=False) == list(TIMING)
    assert [s.name for s in chosen(["leak-5mb"], None, quick=False)] == ["leak-5mb"]


@pytest.mark.parametrize("how", TIMED)
def test_what_is_timed_is_gated_by_the_shipped_margins(how: str, tmp_path: Path) -> None:
    """The policy is a sound one; a check differs from the shipped one in the items that it has at most."""
    policy, shipped = read_policy(zoo(tmp_path, how=how).policy), read_policy(GATES / f"{TIMED[how][0]}.yaml")
    theirs = {check.id: check for check in shipped.checks}
    for check in policy.checks:
        own = theirs[check.id].model_copy(update={"min_items": check.min_items})
        assert check == own
        assert METRICS[check.metric].estimator == "blocks" or check.tier == "supporting"
    asked = {c.id for c in shipped.checks if METRICS[c.metric].estimator == "blocks"}
    left_out = {"goodput", "errors"} if policy.timing.load is None else set()
    if policy.timing.requests == 1:
        left_out |= {c.id for c in shipped.checks if c.statistic in ("p90", "p99")}
    assert {c.id for c in policy.checks} == asked - left_out | {"bad-endings"}
    assert policy.evalsets() == ("answers",), "whose prompts are sent"
    causes = {cause for s in TIMING if s.timed == how for cause in s.causes}
    assert causes <= {c.id for c in policy.checks if c.tier != "advisory"}, "an advisory check blocks nothing"


def test_the_margins_lie_between_the_doses() -> None:
    tpot = next(c for c in timing_rules("single")["checks"] if c["id"] == "tpot")
    for specimen in TIMING:
        if specimen.kind == "slower-token":
            assert specimen.size is not None
            assert (specimen.size / 100 > tpot["margin"]) == (specimen.must == "block"), specimen.name


def test_the_timing_plan_decides_the_result_of_what_is_timed_only() -> None:
    slow, rules = BY_NAME["slower-token-20pct"], timing_rules("single")
    other = rules | {"timing": rules["timing"] | {"requests": 6}}
    assert inputs(slow, rules) != inputs(slow, other)
    assert inputs(BY_NAME["copied"], rules) == inputs(BY_NAME["copied"], other)


@pytest.mark.parametrize(
    ("must", "verdict", "cause", "expected"),
    [
        ("pass", "pass", False, True),
        ("pass", "inconclusive", False, False),
        ("pass", "block", True, False),
        ("pass", "error", False, False),
        ("block", "block", True, True),
        ("block", "block", False, False),
        ("block", "pass", False, False),
        ("block", "inconclusive", True, False),
        ("block", "error", True, False),
        ("refuse", "refuse", True, True),
        ("refuse", "refuse", False, False),
        ("refuse", "block", True, False),
        ("not-block", "pass", False, True),
        ("not-block", "inconclusive", False, True),
        ("not-block", "block", True, False),
        ("not-block", "refuse", True, False),
        ("not-block", "error", False, False),
        ("open", "pass", False, None),
    ],
)  # fmt: skip
def test_what_counts_as_met(must: str, verdict: str, cause: bool, expected: bool | None) -> None:
    assert met(_specimen(must), _result(must, verdict, right_cause=cause)) is expected


def test_what_broke_never_counts() -> None:
    assert met(_specimen("open"), _result("open", "error", right_cause=False)) is False
    assert met(_specimen("open"), _result("open", "pass", right_cause=False, traceback=True)) is False
    assert met(_specimen("pass"), _result("pass", "pass", right_cause=True, traceback=True)) is False


def test_harm_is_the_worst_check_in_its_margins() -> None:
    checks = {
        "perplexity": {"comparison": {"kind": "estimate", "effect": -0.06}, "margin": 0.03},
        "task-score": {"comparison": {"kind": "estimate", "effect": 0.5}, "margin": 0.03},
        "bad-endings": {"comparison": {"kind": "identical"}, "margin": 0.03},
    }
    assert harm({"checks": checks}) == (2.0, "perplexity")
    assert harm({"message": "refused"}) is None


def test_the_results_are_of_the_catalogue() -> None:
    for result in results():
        specimen = BY_NAME[result["specimen"]]
        assert result["must"] == specimen.must, "what must be was written down before the first run"
        assert result["met"] == met(specimen, result)
        assert not result["traceback"], result["specimen"]


def test_the_page_counts_what_is_timed_apart() -> None:
    plain = [r for r in results() if r["family"] != "timing"]
    timed = [
        plain[0] | {"family": "timing", "must": must, "verdict": verdict, "met": good, "held_out": False}
        | {"specimen": name, "seconds": 60.0}
        for name, must, verdict, good in (
            ("slower-token-5pct", "not-block", "inconclusive", True), ("slower-token-20pct", "block", "pass", False),
            ("slower-token-50pct", "block", "block", True), ("leak-1mb", "open", "pass", None),
            ("timed-itself", "pass", "pass", True),
        )
    ]  # fmt: skip
    lines = list(summary([*plain, *timed]))
    assert lines[:2] == list(summary(plain))[:2], "quality is counted as it was"
    counted = "1 of 2 defects blocked for the right cause; of 2 that must not be blocked 1 passed, 0 blocked."
    assert f"- **timed**: {counted}" in lines
    assert any(line.startswith("- 5 minutes in all") for line in lines)
    assert "## Latency and memory" in page([*plain, *timed])


def test_what_is_not_as_it_must_is_named() -> None:
    wrong = [r for r in results() if r["met"] is False]
    named = "".join(unsettled(results()))
    assert all(f"**{result['specimen']}**" in named for result in wrong)


def test_the_page_is_what_the_results_say() -> None:
    found = results()
    assert PAGE.read_text() == page(found), "run python -m benchmarks.zoo.page"
    assert PLOT.read_text() == plot(found), "run python -m benchmarks.zoo.page"
