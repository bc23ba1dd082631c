"""Gates that time servers under load, end to end, with servers of the scripted vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import check
from tests.unit.usecases.gate.test_gate_served import Arms
from tests.unit.usecases.gate_bench import SCORE, GateBench

from checkweigh.measure import sweep
from checkweigh.records.comparison import Estimate
from checkweigh.records.decision import Verdict

ARRIVALS = {"kind": "bursts", "rate": 60.0, "variation": 4.0}
LOAD = {"arrivals": ARRIVALS, "slo": {"e2e": 2.0}, "washout": 0.0, "timeout": 10.0, "max_late": 1.0}
TIMING = {"pairs": 20, "requests": 10, "output_tokens": 4, "max_seconds": 120, "load": LOAD}


def row(metric: str, **changes: Any) -> dict[str, Any]:
    rate = metric in ("goodput", "error_rate")
    return check(
        id=metric.replace("_", "-"), metric=metric, statistic="mean" if rate else "p50", evalset=[],
        direction="higher" if metric == "goodput" else "lower", scale="absolute" if rate else "relative",
        margin=0.9, min_items=200, min_clusters=20, tier="supporting",
    ) | changes  # fmt: skip


@pytest.fixture
def arms(bench: GateBench) -> Arms:
    return Arms(bench)


def test_two_equal_servers_pass_under_load_and_the_report_shows_it(
    arms: Arms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "POINT_SECONDS", 0.3)
    arms.bench.policy(SCORE, row("e2e"), row("goodput", tier="critical"), row("error_rate"), timing=TIMING)
    first, second = arms.manifest("baseline"), arms.manifest("candidate", args={"max_num_seqs": 4})
    code = arms.bench.run(*arms.bench.arguments(first, second, "--sweep"))
    assert code == 0, arms.bench.stderr
    decision = arms.bench.decision
    assert decision.timing is not None
    assert len(decision.timing.blocks) == 20
    assert decision.timing.load == "bursts, 60 requests/s, 10 requests a block"
    assert all(block.plan and block.baseline["error_rate"] == 0 for block in decision.timing.blocks)
    assert all("kv_peak" in block.candidate for block in decision.timing.blocks)
    for name in ("e2e", "goodput", "error-rate"):
        assert isinstance(arms.bench.result(name).comparison, Estimate), name
    assert {point.arm for point in decision.timing.sweep} == {"baseline", "candidate"}
    assert any("the candidate's knee" in note for note in decision.timing.notes)
    page = (arms.bench.out / "report.html").read_text()
    assert "Goodput against offered load" in page
    assert "requests/s that kept the slo" in page
    assert arms.bench.run("report", str(arms.bench.out)) == 0, "a decision with blocks under load reads back"


def test_a_candidate_that_dies_under_load_is_never_a_pass(arms: Arms) -> None:
    arms.bench.policy(SCORE, row("e2e", tier="critical"), timing=TIMING)
    arms.script("candidate", die="stream", code=0)
    assert arms.gate() == 1
    assert arms.bench.decision.verdict is Verdict.BLOCK
    assert "candidate_unservable" in arms.bench.reasons


def test_a_server_whose_cache_stays_warm_refuses_to_compare(arms: Arms) -> None:
    arms.bench.policy(SCORE, row("e2e", tier="critical"), timing=TIMING)
    arms.script("candidate", warm=True)
    assert arms.gate() == 2
    assert "prefix cache knew" in arms.bench.stderr
    assert not (arms.bench.out / "decision.json").exists()
