"""Whatever was judged: every report names the checks that decided, and no others."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.builders import check, evalset, measured, policy
from tests.conftest import WriteManifest
from tests.unit.report import sample

from checkweigh.decision.verdict import decide
from checkweigh.records.comparison import Comparison, Identical, Inestimable
from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.policy import FAILURES
from checkweigh.report import view
from checkweigh.report.html.page import page
from checkweigh.report.junit import junit
from checkweigh.report.markdown import summary
from checkweigh.report.pull_request import ChangeOutcome, CiRun, comment
from checkweigh.report.terminal import print_decision

LOUD = {"BLOCKED", "INCONCLUSIVE", "IMPLAUSIBLE", "NO ESTIMATE"}
QUIET = {
    "passed", "passed (worse)", "unclear", "fine", "fine (worse)", "worse", "implausible", "no estimate",
}  # fmt: skip
FIGURES = 4  # in the banner of the page


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    """Anything that a comparison may come to: clear or not, equal, without a lower bound, or no estimate at all."""
    kind = draw(st.sampled_from(("estimate", "unbounded", "identical", "inestimable")))
    if kind == "inestimable":
        return Inestimable(reason="too few items")
    if kind == "identical":
        share = draw(st.sampled_from((0.01, 0.05, 0.051, 0.3, 1.0)))
        return Identical(pairs=180, clusters=60, differing_share_upper=share, baseline=0.9, candidate=0.9)
    return sample.estimate(
        draw(st.sampled_from((-0.2, -0.04, -0.01, 0.0, 0.01, 0.3))),
        draw(st.sampled_from((0.005, 0.02, 0.06))),
        p_pass=draw(st.sampled_from((1e-6, 0.2, 1.0))),
        p_worse=draw(st.sampled_from((1e-9, 0.004, 0.5))),
        low=None if kind == "unbounded" else float("nan"),
    )


@st.composite
def judged(draw: st.DrawFn) -> Decision:
    """A decision on one to five checks and the implicit one, at the only look or at one that can only block."""
    tiers = draw(st.lists(st.sampled_from(("critical", "supporting", "advisory")), max_size=4))
    kinds = ("non_inferiority", "equivalence", "superiority")
    named = {f"check{i}": tier for i, tier in enumerate(("critical", *tiers))}
    rules = policy(
        *(
            check(id=name, tier=tier, kind=draw(st.sampled_from(kinds)), margin=0.03)
            for name, tier in named.items()
        )
    )
    found = {name: draw(comparisons()) for name in named if draw(st.integers(0, 9))}
    fine = sample.estimate(0.0, 0.004)
    found[FAILURES] = draw(st.one_of(st.just(fine), comparisons()))
    judgement = decide(rules, found)
    decision = sample.decision(judgement.verdict)
    return decision.model_copy(update={"checks": judgement.results, "reasons": judgement.reasons})


def in_junit(decision: Decision) -> dict[str, bool]:
    """Check -> whether its test case has failed or broken, neither passed nor been skipped."""
    cases = ET.fromstring(junit(decision)).iter("testcase")
    verdicts = {
        c.get("name", ""): c.find("failure") is not None or c.find("error") is not None for c in cases
    }
    assert verdicts.pop("verdict") is (decision.verdict is not Verdict.PASS)
    return verdicts


def in_markdown(text: str) -> dict[str, bool]:
    """Check -> whether its result is in bold; the words agree with it."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and re.fullmatch(r"check\d|failures", cells[0]):
            word = cells[5].strip("*").replace("\\", "")
            found[cells[0]] = loud(word)
            assert cells[5].startswith("**") is found[cells[0]]
    return found


def in_terminal(decision: Decision) -> dict[str, bool]:
    """Check -> whether its row says so in capitals."""
    console = Console(file=io.StringIO(), width=200, force_terminal=False, color_system=None, _environ={})
    print_decision(decision, console)
    rows = {}
    for line in console.file.getvalue().splitlines():  # type: ignore[attr-defined]
        cells = re.split(r" {2,}", line.strip())
        if line.startswith("  ") and re.fullmatch(r"check\d|failures", cells[0]):
            rows[cells[0]] = loud(cells[4])
    return rows


def in_page(decision: Decision) -> dict[str, bool]:
    """Check -> whether its row of the table says so in capitals."""
    text = page(decision, [])
    assert text.count('<div class="figure">') == len(view.deciding_checks(decision))
    row = r'<th scope="row">(check\d|failures) <small.*?class="word w-\w+">([^<]*)<'
    return {name: loud(word) for name, word in re.findall(row, text, re.DOTALL)}


def in_pull_request(decision: Decision) -> dict[str, bool]:
    """Check -> whether the comment on a pull request has its result in bold."""
    gate = ChangeOutcome(
        path="candidate.yaml", status="changed", need="gate", because="", baseline="baseline.yaml", reports="gates/00",
        exit_code=decision.exit_code, text=decision.reasons[0],
    )  # fmt: skip
    run = CiRun(
        key="k", base="main", merge_base=None, head=None, policy="gates/default.yaml", outcomes=(gate,)
    )
    return in_markdown(comment(run, {"gates/00": summary(decision, [])}))


def loud(word: str) -> bool:
    """Whether the word is one of a check that decided; no report has others."""
    assert word in LOUD | QUIET, word
    return word in LOUD


REPORTS: Mapping[str, Callable[[Decision], dict[str, bool]]] = {
    "JUnit": in_junit,
    "Markdown": lambda decision: in_markdown(summary(decision, [])),
    "terminal": in_terminal,
    "HTML": in_page,
    "pull request": in_pull_request,
}


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(judged())
def test_reports_agree_with_the_verdict_on_every_check_that_decided(decision: Decision) -> None:
    stored = {result.check.id: result.prevents_pass for result in decision.checks}
    deciding = [name for name, prevents in stored.items() if prevents]
    blocked = [r.check.id for r in decision.checks if r.gating and r.outcome == "blocked"]
    assert (decision.verdict is Verdict.BLOCK) is bool(blocked)
    assert (decision.verdict is Verdict.PASS) is (not deciding)
    assert set(blocked) <= set(deciding)
    for report, shown in REPORTS.items():
        assert shown(decision) == stored, report
    named = blocked or deciding
    if named:
        assert [reason.partition(":")[0] for reason in decision.reasons] == named
        figures = [row.id for row in view.deciding_checks(decision)]
        assert set(figures) <= set(named)
        assert len(figures) == min(len(named), FIGURES)
    settling = {name for name, _, _ in view.settling_checks(decision)}
    wanted = {r.check.id for r in decision.checks if r.prevents_pass and r.items_to_settle is not None}
    assert settling == (wanted if decision.verdict is Verdict.INCONCLUSIVE else set())


@st.composite
def first_lines(draw: st.DrawFn) -> Decision:
    """A decision with or without an effect, some of whose arms nobody could verify."""
    names = st.lists(st.sampled_from(("weights", "configuration", "dtype")), unique=True, max_size=3)
    decision = sample.decision(draw(st.sampled_from(Verdict)))
    effect = draw(st.sampled_from(("", "NO EFFECT of sampling.stop: every output is identical")))
    arms = {
        role: getattr(decision, role).model_copy(update={"unverified": tuple(draw(names))})
        for role in ("baseline", "candidate")
    }
    return decision.model_copy(update=arms | {"no_effect": effect})


def first_block(decision: Decision) -> dict[str, list[str]]:
    """Report -> the lines of its first block, without the layout's own marks."""
    console = Console(file=io.StringIO(), width=400, force_terminal=False, color_system=None, _environ={})
    print_decision(decision, console)
    verdict = next(case for case in ET.fromstring(junit(decision)).iter("testcase"))
    said = verdict.find("system-out") if decision.verdict is Verdict.PASS else verdict[0]
    assert said is not None
    banner = page(decision, []).partition("</header>")[0]
    heading = re.search(r'<h1 id="verdict">(.*?) <span>(.*?)</span>', banner)
    assert heading is not None
    text = summary(decision, []).split("\n\n")
    lines = [line.removeprefix("- ").strip("*") for line in text[2].splitlines()]
    return {
        "terminal": [line.strip() for line in console.file.getvalue().splitlines()],  # type: ignore[attr-defined]
        "JUnit": str(said.text).splitlines(),
        "HTML": [": ".join(heading.groups()), *re.findall(r'<p class="first"><bdi>(.*?)</bdi>', banner)],
        "Markdown": [text[0].splitlines()[1].partition(" ")[2].partition(" ")[2], *lines],
    }


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(first_lines())
def test_reports_agree_on_the_first_lines_of_a_verdict(decision: Decision) -> None:
    wanted = view.first_lines(decision)
    assert len(wanted) == bool(decision.no_effect) + sum(
        bool(arm.unverified) for arm in (decision.baseline, decision.candidate)
    )
    blocks = first_block(decision)
    for report, lines in blocks.items():
        assert lines[0] == view.headline(decision), report
        assert ("altered no output" in lines[0]) is bool(decision.no_effect), report
    assert tuple(blocks["HTML"][1:]) == wanted
    assert tuple(blocks["JUnit"][1 : 1 + len(wanted)]) == wanted
    assert tuple(line.replace("\\", "") for line in blocks["Markdown"][1 : 1 + len(wanted)]) == wanted
    assert tuple(blocks["terminal"][2 : 2 + len(wanted)]) == wanted
    for arm in (decision.baseline, decision.candidate):
        if arm.unverified:
            assert any(f"unverified: {', '.join(arm.unverified)} of" in line for line in wanted)


UNABLE: dict[str, Comparison] = {
    "no estimate": Inestimable(reason="too few items"),
    "no lower bound": sample.estimate(0.0, 0.01, low=None),
    "identical on too few clusters": Identical(
        pairs=180, clusters=20, differing_share_upper=0.139, baseline=0.9, candidate=0.9
    ),
}


def held(comparison: Comparison) -> Decision:
    """A decision that one supporting check alone holds back."""
    rules = policy(check(), check(id="check1", tier="supporting"))
    fine: dict[str, Comparison] = {
        "quality": sample.estimate(0.0, 0.01),
        FAILURES: sample.estimate(0.0, 0.004),
    }
    judgement = decide(rules, fine | {"check1": comparison})
    assert judgement.verdict is Verdict.INCONCLUSIVE
    decision = sample.decision(Verdict.INCONCLUSIVE)
    return decision.model_copy(update={"checks": judgement.results, "reasons": judgement.reasons})


@pytest.mark.parametrize("why", UNABLE)
def test_reports_agree_on_a_supporting_check_that_no_evidence_could_have_passed(why: str) -> None:
    decision = held(UNABLE[why])
    for report, shown in REPORTS.items():
        assert shown(decision)["check1"], report
    assert [row.id for row in view.deciding_checks(decision)] == ["check1"]


@pytest.mark.parametrize("why", UNABLE)
def test_reports_agree_with_what_mlflow_is_told(why: str, write_manifest: WriteManifest) -> None:
    from checkweigh.sinks.mlflow_content import ArmEvidence, FinishedGate, build_bundle
    from checkweigh.sinks.mlflow_target import Target
    from checkweigh.sources.pin import verify

    resolved = verify(write_manifest("arm"))
    answers = evalset("generation", 4, name="answers")
    arm = ArmEvidence(
        manifest=resolved.manifest, pins=resolved.pins, records={"answers": measured(answers, [1, 0, 1, 1])}
    )
    finished = FinishedGate(
        decision=held(UNABLE[why]), arms=dict.fromkeys(("baseline", "candidate"), arm), evalsets=(answers,), pairs=()
    )  # fmt: skip
    gate = build_bundle(finished, Target("http://host:5000"), "checkweigh", ["decision.json"]).runs[0]
    assert in_markdown(gate.tags["mlflow.note.content"]) == {
        "check1": True,
        "failures": False,
    }
