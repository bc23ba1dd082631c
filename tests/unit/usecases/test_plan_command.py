"""``plan``, ``simulate`` and what ``gate`` says beforehand, from the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.unit.usecases.gate_bench import ENDINGS, LONGER, PERPLEXITY, SCORE, TPOT, GateBench

from checkweigh.records.operating_characteristics import Simulation
from checkweigh.records.sample_plan import Plan

PLAN = ("plan", "--policy", "gates/test.yaml", "--json")
SIMULATE = ("simulate", "--policy", "gates/test.yaml", "--runs", "50")
TIGHT = {**SCORE, "margin": 0.004}


def planned(bench: GateBench, *more: str, code: int = 0) -> Plan:
    assert bench.run(*PLAN, *more) == code, bench.stderr
    return Plan.model_validate_json(bench.stdout)


def test_a_plan_without_measurements_says_what_it_assumes(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT)
    plan = planned(bench)
    assert [row.check for row in plan.checks] == ["perplexity", "score", "bad-endings", "longer", "failures"]
    assert all("assumed" in row.source for row in plan.checks)
    assert plan.joint is not None
    assert plan.joint > 0.8
    assert (plan.minutes, plan.problems) == (None, ())
    assert "nothing measured" in plan.cost
    assert [expected.candidate for expected in plan.expected] == [
        "equal",
        "worse by three margins on one check",
    ]
    for text in ("equal passes", "an equal candidate passes all critical checks", "assumed", "for 80%"):
        assert text in bench.stderr


def test_a_plan_that_cannot_settle_says_so_and_exits_3(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, TIGHT, ENDINGS)
    plan = planned(bench, code=3)
    (line,) = plan.problems
    assert "weakest is score" in line
    assert "cannot settle" in bench.stderr
    bench.policy(PERPLEXITY, SCORE, {**ENDINGS, "margin": 0.005, "min_items": 100})
    (line,) = planned(bench, code=3).problems
    assert "bad-endings: nothing can pass" in line
    assert "even without a single flip" in line


def test_after_a_gate_the_plan_rests_on_what_was_measured(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT)
    assert bench.gate(candidate={"noise_seed": 2}) == 0, bench.stderr
    manifests = ("--baseline", "baseline.yaml", "--candidate", "candidate.yaml")
    rows = {row.check: row for row in planned(bench, *manifests).checks}
    assert "measured: baseline against candidate, 20" in rows["perplexity"].source
    assert rows["perplexity"].se == pytest.approx(bench.result("perplexity").comparison.se, rel=0.02)  # type: ignore[union-attr]
    assert "assumed" in rows["bad-endings"].source, (
        "no ending differs, so that nothing is known of how many might"
    )
    found_plan = planned(bench, *manifests)
    assert found_plan.minutes is not None
    assert "seconds of stored measurements" in found_plan.cost
    alone = planned(bench, "--baseline", "baseline.yaml")
    assert all("assumed" in row.source for row in alone.checks)
    assert alone.minutes is not None


def test_one_manifest_against_itself_is_two_executions(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE)
    manifest = bench.manifest("baseline", {"noise_nats": 0.02, "jitter": 0.05})
    arguments = ("--baseline", str(manifest), "--candidate", str(manifest))
    assert bench.run(*bench.arguments(manifest, manifest)) == 0, bench.stderr
    plan = planned(bench, *arguments)
    assert all("assumed" in row.source for row in plan.checks), "equal outputs tell no noise"


def test_gate_warns_before_it_starts(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, TIGHT, ENDINGS)
    bench.gate(candidate={"noise_seed": 2})
    warning = bench.stderr.index("warning: this gate may not settle: an equal candidate")
    assert warning < bench.stderr.index("baseline: starting the engine")
    bench.policy(PERPLEXITY, SCORE, ENDINGS)
    bench.gate(candidate={"noise_seed": 2})
    assert "may not settle" not in bench.stderr


def test_bad_input_is_said_all_at_once(bench: GateBench) -> None:
    bench.policy({**PERPLEXITY, "evalset": ["choices"]}, {**SCORE, "evalset": ["nowhere"]})
    for command in (PLAN, SIMULATE):
        assert bench.run(*command) == 2
        assert "nowhere" in bench.stderr
        assert "a set of kind text" in bench.stderr
        assert bench.stdout == ""
    assert bench.run("plan", "--policy", "gates/none.yaml") == 2
    assert bench.run("simulate", "--policy", "gates/test.yaml", "--runs", "3") == 2


def simulated(bench: GateBench, *more: str) -> Simulation:
    assert bench.run(*SIMULATE, "--json", *more) == 0, bench.stderr
    return Simulation.model_validate_json(bench.stdout)


def test_rates_of_a_policy(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, looks="adaptive")
    simulation = simulated(bench)
    names = [rates.scenario for rates in simulation.scenarios]
    assert names[0] == "equal"
    assert names[1:4] == ["perplexity at -1 m", "perplexity at -1.5 m", "perplexity at -3 m"]
    assert names[-1] == "failures at -3 m"
    assert simulation.scenarios[0].ship > 0.8
    assert all(rates.block > 0.8 for rates in simulation.scenarios if rates.margins == -3.0)
    assert all(rates.ship < 0.2 for rates in simulation.scenarios if rates.margins == -1.0)
    assert simulation.looks == (0.125, 0.25, 0.5, 1.0)
    assert any(rates.share < 1 for rates in simulation.scenarios)
    assert simulation == simulated(bench), "seeded"
    assert simulation != simulated(bench, "--seed", "1")
    assert "by look 1" in bench.stderr


def test_the_page_is_inert_and_has_the_numbers(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, name="<script>alert(1)</script>"[1:7])
    assert bench.run(*SIMULATE, "--out", "out") == 0, bench.stderr
    page = (bench.folder / "out" / "simulation.html").read_text()
    assert "simulation.html" in bench.stderr
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)
    assert "<svg" in page
    assert page.count("<rect") >= 3 + 3 * 10
    for text in ("perplexity at -1.5 m", "ship", "default-src 'none'", "assumed"):
        assert text in page
    assert not list((bench.folder / "out").glob(".*"))


def test_json_is_all_that_stands_on_stdout(bench: GateBench) -> None:
    for command in (PLAN, (*SIMULATE, "--json")):
        assert bench.run(*command) == 0
        document: dict[str, Any] = json.loads(bench.stdout)
        assert document["schema"] in ("checkweigh/plan@1", "checkweigh/simulation@1")
