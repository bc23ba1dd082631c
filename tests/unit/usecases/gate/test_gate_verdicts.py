"""What a gate says about candidates whose faults are known, and what it leaves behind."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tests.unit.usecases.gate_bench import ENDINGS, LONGER, PERPLEXITY, SCORE, TIMING, TPOT, GateBench

from checkweigh.records.decision import Verdict
from checkweigh.records.measurement import PROTOCOL


def test_an_equal_candidate_passes_and_everything_is_written(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, TPOT)
    slow = {"token_latency_s": 0.001}
    assert bench.gate(slow, slow) == 0, bench.stderr
    decision = bench.decision
    assert decision.verdict is Verdict.PASS
    assert [r.check.id for r in decision.checks] == [
        "perplexity",
        "score",
        "bad-endings",
        "longer",
        "tpot",
        "failures",
    ]
    assert all(r.outcome in ("passed", "warning") for r in decision.checks if r.gating)
    assert [c.path for c in decision.changes] == ["engine.options.noise_seed"]
    assert set(decision.baseline.measurements) == set(decision.evalsets) == {"prose", "choices", "answers"}
    assert not set(decision.baseline.measurements.values()) & set(decision.candidate.measurements.values())
    assert not any(bench.stages().values())
    assert decision.timing is not None
    assert len(decision.timing.blocks) == TIMING["pairs"]
    assert decision.timing.protocol == PROTOCOL
    written = {path.relative_to(bench.out).as_posix() for path in bench.out.rglob("*") if path.is_file()}
    assert written == {
        "decision.json", "report.html", "junit.xml", "summary.md", "logs/baseline.log", "logs/candidate.log",
    }  # fmt: skip
    suite = ET.parse(bench.out / "junit.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert "PASS" in (bench.out / "summary.md").read_text()
    assert bench.stdout == ""
    assert bench.half_written() == []


@pytest.mark.parametrize(
    ("knobs", "check", "number"),
    [
        ({"bias_nats": 0.2}, "perplexity", "nats"),
        ({"wrong_share": 0.25}, "score", "pp"),
        ({"truncate_share": 0.15}, "bad-endings", "pp"),
        ({"loop_share": 0.15}, "bad-endings", "pp"),
        ({"empty_share": 0.15}, "bad-endings", "pp"),
        ({"length_factor": 1.5}, "longer", "%"),
    ],
)
def test_a_known_fault_is_blocked_by_its_own_check(
    bench: GateBench, knobs: dict[str, Any], check: str, number: str
) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER)
    assert bench.gate(knobs) == 1, bench.stderr
    decision, result = bench.decision, bench.result(check)
    assert decision.verdict is Verdict.BLOCK
    assert result.outcome == "blocked"
    assert result.sentence in decision.reasons
    assert check in result.sentence
    assert number in result.sentence
    suite = ET.parse(bench.out / "junit.xml").getroot()
    assert check in {case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None}
    assert check in bench.stderr


def test_a_limit_that_leaves_no_room_to_grow_is_told(bench: GateBench) -> None:
    shorter = LONGER | {"id": "shorter", "direction": "higher", "evalset": ["answers"]}
    bench.policy(PERPLEXITY, LONGER, shorter)
    assert bench.gate({"truncate_share": 0.6}) == 1, bench.stderr
    assert not [note for note in bench.decision.notes if "room to grow" in note]
    level = bench.result("longer").comparison.baseline
    assert level is not None
    limit = round(1.05 * math.exp(level))
    bench.gate(sampling={"max_tokens": limit})
    (note,) = [note for note in bench.decision.notes if "room to grow" in note]
    assert note.startswith("longer: the baseline's replies leave")
    assert f"max_tokens ({limit}) cuts them all: the check cannot block" in note
    assert note in " ".join(bench.stderr.split())


def test_longer_replies_that_are_declared_do_not_gate(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, LONGER)
    assert bench.gate({"length_factor": 1.5}, intends=["longer"]) == 0, bench.stderr
    result = bench.result("longer")
    assert result.declared
    assert not result.gating
    assert bench.decision.intends == ("longer",)
    assert "longer" in bench.stderr


def test_an_unclear_candidate_holds_and_under_block_exits_one(bench: GateBench) -> None:
    bench.policy(SCORE | {"min_items": 10_000}, PERPLEXITY)
    assert bench.gate() == 3, bench.stderr
    assert bench.decision.verdict is Verdict.INCONCLUSIVE
    bench.policy(SCORE | {"min_items": 10_000}, PERPLEXITY, on_inconclusive="block")
    assert bench.gate() == 1
    assert bench.decision.verdict is Verdict.INCONCLUSIVE, (
        "the exit code blocks, the verdict stays what it is"
    )


def test_json_is_one_document_on_stdout(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"prints": True}, more=["--json"]) == 0
    assert json.loads(bench.stdout) == json.loads((bench.out / "decision.json").read_text())
    assert bench.stderr != ""


def test_identical_arms_pass_as_identical(bench: GateBench) -> None:
    """Another manifest that changes nothing: two executions, equal to the last bit."""
    bench.policy(PERPLEXITY, SCORE)
    assert bench.gate({"noise_seed": 1, "latency_s": 0.0001}) == 0, bench.stderr
    assert bench.result("perplexity").comparison.kind == "identical"
    assert bench.decision.candidate.replicate == 0


def test_a_better_candidate_beyond_belief_is_no_pass(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE)
    assert bench.gate({"bias_nats": -0.4}) == 3
    assert bench.result("perplexity").outcome == "anomalous"


def test_time_that_runs_out_is_inconclusive_and_named(bench: GateBench) -> None:
    assert bench.gate() == 0  # the baseline is stored
    bench.policy(PERPLEXITY, SCORE, ENDINGS, TPOT, max_minutes=0.15)
    assert bench.gate({"latency_s": 0.9}) == 3, bench.stderr
    for name in ("perplexity", "score", "bad-endings", "failures", "tpot"):
        comparison = bench.result(name).comparison
        assert comparison.kind == "inestimable", name
        assert "max_minutes (0.15) had passed before" in comparison.reason
    assert "prose on the candidate was measured" in bench.reasons
    assert "max_minutes" in bench.stderr.replace("\n", " ")
    assert bench.decision.timing is None
    kept = list((bench.home / "store").glob("*/batches/*.json"))
    assert kept, "what was measured in time is not lost"


def test_progress_is_one_line_a_stage(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE)
    assert bench.gate() == 0
    lines = [line.split(":")[0] + ":" + line.split(":")[1] for line in bench.stderr.splitlines()
             if line.startswith(("baseline:", "candidate:"))]  # fmt: skip
    assert lines == [
        f"{role}: {what}"
        for role in ("baseline", "candidate")
        for what in ("starting the engine", "prose", "choices", "answers")
    ]
    assert "baseline: prose: 320 in " in bench.stderr
    assert bench.gate({"noise_seed": 3}) == 0
    assert "baseline: prose (stored): 320 in " in bench.stderr
