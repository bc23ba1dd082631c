"""Engines that die, hang, lie or do not fit: never a pass, and blamed on the right side."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import psutil
import pytest
from tests.builders import evalset
from tests.unit.usecases.gate_bench import PERPLEXITY, SCORE, TPOT, GateBench

from checkweigh.engines.spec import Timeouts
from checkweigh.progress import no_progress
from checkweigh.records.decision import Decision, Verdict
from checkweigh.sources.pin import verify
from checkweigh.usecases.gate.inputs import read_inputs
from checkweigh.usecases.gate.run import gate

DEATHS: list[tuple[dict[str, Any], str]] = [
    ({"crash_at": 0}, "SIGABRT"),
    ({"kill_at": 2}, "SIGKILL"),
    ({"exit_at": 2}, "exited with code 0"),
    ({"raise_at": 2}, "ArithmeticError"),
    ({"oom_at": 2}, "out of memory"),
    ({"lie_at": 2, "lie": "count"}, "results expected"),
    ({"lie_at": 2, "lie": "positive"}, "probability above 1"),
]


@pytest.fixture(autouse=True)
def no_engine_is_left_behind() -> Any:
    """Whatever happened, no worker outlives its gate."""
    yield
    left = [
        p
        for p in psutil.Process().children(recursive=True)
        if "checkweigh.engines.worker.main" in p.cmdline()
    ]
    assert left == []


def starts(bench: GateBench, role: str) -> int:
    return bench.stderr.count(f"{role}: starting the engine")


@pytest.mark.parametrize(("knobs", "why"), DEATHS)
def test_a_candidate_that_fails_twice_is_unservable(
    bench: GateBench, knobs: dict[str, Any], why: str
) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate(knobs) == 1, bench.stderr
    decision = bench.decision
    assert decision.verdict is Verdict.BLOCK
    assert decision.reasons[0].startswith("candidate_unservable: its engine failed twice: ")
    assert why in bench.reasons
    assert decision.checks == ()
    assert set(decision.baseline.measurements) == {"prose"}
    assert decision.candidate.measurements == {}
    suite = ET.parse(bench.out / "junit.xml").getroot()
    assert int(suite.get("failures") or 0) > 0
    assert "candidate_unservable" in (bench.out / "report.html").read_text()
    assert "unservable" in (bench.out / "summary.md").read_text()


def test_the_decision_quotes_the_candidates_log(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"raise_at": 1}) == 1
    assert "Traceback" in bench.reasons
    assert "the fake engine was told to raise" in bench.reasons
    assert (bench.out / "logs" / "candidate.log").read_text().count("told to raise") >= 2, (
        "it was tried twice"
    )


def run(
    bench: GateBench, candidate: dict[str, Any], baseline: dict[str, Any], timeouts: Timeouts
) -> Decision:
    inputs = read_inputs(
        bench.manifest("baseline", baseline),
        bench.manifest("candidate", candidate),
        bench.folder / "gates/test.yaml",
        no_progress,
    )
    return gate(inputs, bench.out, no_progress, timeouts).decision


def test_a_hanging_candidate_is_unservable_and_a_hanging_baseline_an_error(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    short = Timeouts(start=20, call=0.7, render=20)
    decision = run(bench, {"hang_at": 2}, {}, short)
    assert decision.verdict is Verdict.BLOCK
    assert "no answer within 0.7 s" in decision.reasons[0]
    decision = run(bench, {}, {"hang_at": 2}, short)
    assert decision.verdict is Verdict.ERROR


@pytest.mark.parametrize(
    ("candidate", "baseline"), [({}, {"crash_at": 2}), ({"crash_at": 2}, {"crash_at": 2})]
)
def test_a_baseline_that_fails_is_an_error(
    bench: GateBench, candidate: dict[str, Any], baseline: dict[str, Any]
) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate(candidate, baseline) == 4
    assert bench.decision.verdict is Verdict.ERROR
    assert "the baseline's engine failed" in bench.decision.reasons[0]
    suite = ET.parse(bench.out / "junit.xml").getroot()
    assert int(suite.get("errors") or 0) > 0
    assert suite.get("failures") == "0"
    assert starts(bench, "baseline") == 2
    assert starts(bench, "candidate") == 0


def test_engines_that_do_not_fit_are_errors_of_the_host(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"oom_at": 0}) == 4, "refused before it answered anything"
    assert bench.decision.verdict is Verdict.ERROR
    assert "the candidate's engine does not fit into this host's memory" in bench.decision.reasons[0]
    assert bench.gate(baseline={"oom_at": 0}) == 4
    assert "the baseline's engine does not fit" in bench.decision.reasons[0]


def test_a_real_candidate_beyond_its_headroom_is_an_error(bench: GateBench) -> None:
    """The memory check of the transformers engine, before torch is loaded."""
    from importlib import metadata

    bench.policy(PERPLEXITY)
    first = bench.manifest("baseline")
    real = {"kind": "transformers", "version": metadata.version("transformers"), "options": {}}
    limits = {"max_sequence": 512, "memory_headroom": 0.999}
    second = bench.write("candidate", engine=real, limits=limits)
    assert bench.run(*bench.arguments(first, second)) == 4
    assert bench.decision.verdict is Verdict.ERROR
    assert "does not fit" in bench.reasons
    assert "memory_headroom" in bench.reasons


ONE_CALL_A_SET = {"max_batch": 512, "max_batch_tokens": 100_000}


def test_an_engine_that_dies_once_is_started_again(bench: GateBench) -> None:
    """The eighth call comes once: the rest of the sets takes fewer, and so does the fresh engine that is timed."""
    bench.policy(
        PERPLEXITY, SCORE, TPOT, timing={"pairs": 6, "requests": 1, "output_tokens": 4, "max_seconds": 30}
    )
    first, second = (
        bench.manifest("baseline"),
        bench.manifest("candidate", {"crash_at": 8}, engine={"max_batch": 80, "max_batch_tokens": 100_000}),
    )
    assert bench.run(*bench.arguments(first, second)) == 0, bench.stderr
    assert starts(bench, "candidate") == 3
    assert starts(bench, "baseline") == 2
    assert "SIGABRT" not in bench.reasons


@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_a_death_during_timing_is_blamed_on_the_arm_that_died(bench: GateBench, role: str) -> None:
    """Crashing at call 5 of every process: during timing at first, and during the repeated timing."""
    bench.policy(PERPLEXITY, SCORE, TPOT)
    paths = [
        bench.manifest(name, {"crash_at": 5} if name == role else None, engine=ONE_CALL_A_SET)
        for name in ("baseline", "candidate")
    ]
    code = bench.run(*bench.arguments(*paths))
    assert (code, bench.decision.verdict) == ((1, "block") if role == "candidate" else (4, "error"))
    assert ("candidate_unservable" in bench.reasons) == (role == "candidate")
    assert len(bench.records()) == 6, "what was measured before is kept"
    assert (starts(bench, "baseline"), starts(bench, "candidate")) == (
        (3, 2) if role == "baseline" else (2, 3)
    )


@pytest.mark.parametrize("knobs", [{"nan_share": 0.3}, {"error_share": 1.0}])
def test_items_without_a_result_never_pass(bench: GateBench, knobs: dict[str, Any]) -> None:
    bench.policy(PERPLEXITY, SCORE)
    assert bench.gate(knobs) in (1, 3)
    assert bench.result("failures").outcome == "blocked"
    assert bench.decision.verdict is Verdict.BLOCK
    assert "failures" in bench.reasons


def test_a_wrong_template_is_bad_input_and_names_the_probe(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"wrong_template": True}) == 2
    assert "probe conversation 0" in bench.stderr
    assert "rendered by the engine" in bench.stderr
    assert not (bench.out / "decision.json").exists()


def test_an_engine_of_another_version_is_bad_input(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"claim_version": "2"}) == 2
    assert "engine.version" in bench.stderr
    assert "expected 1, found 2 (the engine says)" in bench.stderr
    assert bench.gate(baseline={"claim_version": "2"}) == 2


def test_replies_that_cannot_be_timed_are_no_fault_of_an_engine(bench: GateBench) -> None:
    """More timed tokens than fit: both arms refuse, timing has no result, and the gate says why."""
    timing = {"pairs": 20, "requests": 1, "output_tokens": 4000, "max_seconds": 30}
    bench.policy(PERPLEXITY, SCORE, TPOT | {"tier": "supporting", "min_clusters": 20}, timing=timing)
    assert bench.gate() == 3, bench.stderr
    assert "cannot answer a timing request (too_long" in bench.reasons
    assert bench.decision.timing is not None
    assert bench.decision.timing.blocks == ()


def test_items_that_failed_are_not_timed(bench: GateBench) -> None:
    """They count as failed items; a request that cannot succeed is no measure of speed."""
    bench.put(evalset("generation", 320, name="answers"), too_long=32)
    timing = {"pairs": 40, "requests": 1, "output_tokens": 2, "max_seconds": 30}
    bench.policy(PERPLEXITY, SCORE, TPOT, failure_margin=0.2, timing=timing)
    slow = {"token_latency_s": 0.001}
    assert bench.gate(slow, slow) in (0, 3), bench.stderr
    comparison = bench.result("score").comparison
    assert comparison.kind == "estimate"
    assert (comparison.failed_baseline, comparison.failed_candidate) == (32, 32)
    assert bench.decision.timing is not None
    assert len(bench.decision.timing.blocks) == 40
    assert bench.decision.timing.notes == ()


def test_a_name_of_nothing_is_said_before_any_file_is_digested(bench: GateBench) -> None:
    baseline = bench.manifest("baseline")
    baseline.with_suffix(".yaml").write_text(
        baseline.read_text().replace("source: path:", "source: path:gone")
    )
    assert bench.run("pin", str(baseline)) == 2, "what it names cannot be had"
    assert bench.run(*bench.arguments(baseline, bench.folder / "nobody.yaml")) == 2
    assert "nobody.yaml: expected a manifest, found no such file" in bench.stderr
    assert "digests of" not in bench.stderr
    assert bench.stderr.count("expected") == 1, "where files lie is no pin: the lock is not stale"


def test_reports_inside_a_pinned_folder_are_refused_before_one_is_written(bench: GateBench) -> None:
    candidate = bench.manifest("candidate")
    bench.out = verify(candidate).model_dir / "runs"
    assert bench.run(*bench.arguments(bench.manifest("baseline"), candidate)) == 2
    assert "expected a place outside" in bench.stderr
    assert not bench.out.exists()
