"""``plan``, ``simulate`` and what ``gate`` says beforehand, from the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.unit.usecases.desk import ENDINGS, LONGER, PERPLEXITY, SCORE, TPOT, Desk

from checkweigh.records.operating_characteristics import Simulation
from checkweigh.records.sample_plan import Plan

PLAN = ("plan", "--policy", "gates/test.yaml", "--json")
SIMULATE = ("simulate", "--policy", "gates/test.yaml", "--runs", "50")
TIGHT = {**SCORE, "margin": 0.004}


def planned(desk: Desk, *more: str, code: int = 0) -> Plan:
    assert desk.run(*PLAN, *more) == code, desk.stderr
    return Plan.model_validate_json(desk.stdout)


def test_a_plan_without_measurements_says_what_it_assumes(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT)
    found = planned(desk)
    assert [row.check for row in found.checks] == ["perplexity", "score", "bad-endings", "longer", "failures"]
    assert all("assumed" in row.source for row in found.checks)
    assert found.joint is not None
    assert found.joint > 0.8
    assert (found.minutes, found.problems) == (None, ())
    assert "nothing measured" in found.cost
    assert [one.candidate for one in found.expected] == ["equal", "worse by three margins on one check"]
    for text in ("equal passes", "an equal candidate passes all critical checks", "assumed", "for 80%"):
        assert text in desk.stderr


def test_a_plan_that_cannot_settle_says_so_and_exits_3(desk: Desk) -> None:
    desk.policy(PERPLEXITY, TIGHT, ENDINGS)
    found = planned(desk, code=3)
    (line,) = found.problems
    assert "weakest is score" in line
    assert "cannot settle" in desk.stderr
    desk.policy(PERPLEXITY, SCORE, {**ENDINGS, "margin": 0.005, "min_items": 100})
    (line,) = planned(desk, code=3).problems
    assert "bad-endings: nothing can pass" in line
    assert "even without a single flip" in line


def test_after_a_gate_the_plan_rests_on_what_was_measured(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT)
    assert desk.gate(candidate={"noise_seed": 2}) == 0, desk.stderr
    manifests = ("--baseline", "baseline.yaml", "--candidate", "candidate.yaml")
    found = {row.check: row for row in planned(desk, *manifests).checks}
    assert "measured: baseline against candidate, 20" in found["perplexity"].source
    assert found["perplexity"].se == pytest.approx(desk.result("perplexity").comparison.se, rel=0.02)  # type: ignore[union-attr]
    assert "assumed" in found["bad-endings"].source, (
        "no ending differs, so that nothing is known of how many might"
    )
    found_plan = planned(desk, *manifests)
    assert found_plan.minutes is not None
    assert "seconds of stored measurements" in found_plan.cost
    alone = planned(desk, "--baseline", "baseline.yaml")
    assert all("assumed" in row.source for row in alone.checks)
    assert alone.minutes is not None


def test_one_manifest_against_itself_is_two_executions(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE)
    manifest = desk.manifest("baseline", {"noise_nats": 0.02, "jitter": 0.05})
    arguments = ("--baseline", str(manifest), "--candidate", str(manifest))
    assert desk.run(*desk.arguments(manifest, manifest)) == 0, desk.stderr
    found = planned(desk, *arguments)
    assert all("assumed" in row.source for row in found.checks), "equal outputs tell no noise"


def test_gate_warns_before_it_starts(desk: Desk) -> None:
    desk.policy(PERPLEXITY, TIGHT, ENDINGS)
    desk.gate(candidate={"noise_seed": 2})
    warning = desk.stderr.index("warning: this gate may not settle: an equal candidate")
    assert warning < desk.stderr.index("baseline: starting the engine")
    desk.policy(PERPLEXITY, SCORE, ENDINGS)
    desk.gate(candidate={"noise_seed": 2})
    assert "may not settle" not in desk.stderr


def test_bad_input_is_said_all_at_once(desk: Desk) -> None:
    desk.policy({**PERPLEXITY, "evalset": ["choices"]}, {**SCORE, "evalset": ["nowhere"]})
    for command in (PLAN, SIMULATE):
        assert desk.run(*command) == 2
        assert "nowhere" in desk.stderr
        assert "a set of kind text" in desk.stderr
        assert desk.stdout == ""
    assert desk.run("plan", "--policy", "gates/none.yaml") == 2
    assert desk.run("simulate", "--policy", "gates/test.yaml", "--runs", "3") == 2


def simulated(desk: Desk, *more: str) -> Simulation:
    assert desk.run(*SIMULATE, "--json", *more) == 0, desk.stderr
    return Simulation.model_validate_json(desk.stdout)


def test_rates_of_a_policy(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, looks="adaptive")
    found = simulated(desk)
    names = [rates.scenario for rates in found.scenarios]
    assert names[0] == "equal"
    assert names[1:4] == ["perplexity at -1 m", "perplexity at -1.5 m", "perplexity at -3 m"]
    assert names[-1] == "failures at -3 m"
    assert found.scenarios[0].ship > 0.8
    assert all(rates.block > 0.8 for rates in found.scenarios if rates.margins == -3.0)
    assert all(rates.ship < 0.2 for rates in found.scenarios if rates.margins == -1.0)
    assert found.looks == (0.125, 0.25, 0.5, 1.0)
    assert any(rates.share < 1 for rates in found.scenarios)
    assert found == simulated(desk), "seeded"
    assert found != simulated(desk, "--seed", "1")
    assert "by look 1" in desk.stderr


def test_the_page_is_inert_and_has_the_numbers(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, name="<script>alert(1)</script>"[1:7])
    assert desk.run(*SIMULATE, "--out", "out") == 0, desk.stderr
    page = (desk.folder / "out" / "simulation.html").read_text()
    assert "simulation.html" in desk.stderr
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)
    assert "<svg" in page
    assert page.count("<rect") >= 3 + 3 * 10
    for text in ("perplexity at -1.5 m", "ship", "default-src 'none'", "assumed"):
        assert text in page
    assert not list((desk.folder / "out").glob(".*"))


def test_json_is_all_that_stands_on_stdout(desk: Desk) -> None:
    for command in (PLAN, (*SIMULATE, "--json")):
        assert desk.run(*command) == 0
        document: dict[str, Any] = json.loads(desk.stdout)
        assert document["schema"] in ("checkweigh/plan@1", "checkweigh/simulation@1")
