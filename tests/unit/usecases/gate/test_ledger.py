"""The ledger of attempts: the same digests return the verdict, a later try is labelled and spends; no fail open."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.builders import evalset
from tests.unit.usecases.gate_bench import PERPLEXITY, SCORE, TPOT, GateBench, measured_files
from tests.waiting import until

from checkweigh import canonical
from checkweigh.measure import host_facts
from checkweigh.progress import no_progress
from checkweigh.records.decision import Decision, Verdict
from checkweigh.records.policy import Policy
from checkweigh.sources.load_trace import TraceRequest
from checkweigh.usecases.gate import ledger
from checkweigh.usecases.gate.inputs import read_inputs
from checkweigh.usecases.gate.ledger import hold_attempt, without_wording

OTHER_BUILD = canonical.digest("another build")
NAMES = ("decision.json", "report.html", "junit.xml", "summary.md")


def entries(bench: GateBench) -> list[Path]:
    """The ledger's files."""
    return sorted((bench.home / "attempts").glob("*/*/*.json"))


def more_prose(bench: GateBench, size: int = 400) -> None:
    """The set grows: the first 320 documents are as they were."""
    bench.put(evalset("text", size, name="prose"))


@pytest.mark.parametrize(
    ("knobs", "code"), [({"noise_seed": 2}, 0), ({"bias_nats": 0.3}, 1), ({"bias_nats": 0.0485}, 3)]
)
def test_the_same_digests_return_the_stored_verdict(
    bench: GateBench, knobs: dict[str, Any], code: int
) -> None:
    """Exit code, checks and reports are those of the first time; nothing is measured, and every output says so."""
    bench.policy(PERPLEXITY)
    assert bench.gate(knobs) == code, bench.stderr
    first = bench.decision
    kept = measured_files(entries(bench) + list((bench.home / "store").rglob("*.parquet")))
    shutil.rmtree(bench.out)
    assert bench.gate(knobs, more=["--json"]) == code
    again = bench.decision
    assert {name for name in NAMES if (bench.out / name).exists()} == set(NAMES)
    assert "starting the engine" not in bench.stderr
    assert measured_files([Path(path) for path in kept]) == kept
    assert (again.verdict, again.checks, again.reasons) == (first.verdict, first.checks, first.reasons)
    assert again.attempt is not None
    assert again.attempt.stored
    assert again.attempt.decided == first.provenance.ended
    assert json.loads(bench.stdout)["attempt"]["stored"] is True
    for text in (bench.stderr, *((bench.out / name).read_text() for name in NAMES[1:])):
        assert "STORED VERDICT of" in " ".join(text.replace("\\", "").split())
    assert bench.gate(knobs, more=["--out", "elsewhere"]) == code
    assert (bench.folder / "elsewhere" / "decision.json").exists()


def test_wording_makes_no_other_policy(bench: GateBench) -> None:
    """Other reasons, another name, more time or more attempts do not buy another try; a margin does make another."""
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    for changed in ({"name": "other"}, {"because": "of something else"}, {"max_minutes": 7}, {"attempts": 3}):
        bench.policy(PERPLEXITY | {"because": "said in other words"}, **changed)
        assert bench.gate({"bias_nats": 0.0485}) == 3
        assert bench.decision.attempt is not None
        assert bench.decision.attempt.stored
    bench.policy(PERPLEXITY | {"margin": 0.2})
    assert bench.gate({"bias_nats": 0.0485}) == 0
    assert bench.decision.attempt is not None
    assert not bench.decision.attempt.stored
    assert "1 earlier try of this candidate" in bench.decision.attempt.earlier[-1]
    assert "1 earlier try of this candidate" in bench.stderr.replace("\n", " ")


def test_only_wording_is_left_out() -> None:
    """A field that decides must never be taken for wording."""
    assert set(Policy.model_fields) - {"name", "because", "attempts", "max_minutes"} == set(
        without_wording(Policy.model_validate_json(json.dumps(
            {"schema": "checkweigh/policy@1", "name": "x", "no_effect": "warn", "checks": [PERPLEXITY]}
        )))
    ) - {"schema"} | {"schema_"}  # fmt: skip


def test_a_later_try_that_was_not_declared_is_not_made(bench: GateBench) -> None:
    """More items, and the same candidate: the budget is spent, and nothing is measured."""
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    more_prose(bench)
    kept = measured_files(entries(bench))
    assert bench.gate({"bias_nats": 0.0485}) == 3
    decision = bench.decision
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "declares 1 attempt and its error budget for this candidate is spent" in decision.reasons[0]
    assert decision.checks == ()
    assert "starting the engine" not in bench.stderr
    assert measured_files([Path(path) for path in kept]) == kept
    assert bench.gate({"bias_nats": 0.0}) == 0, "another candidate has a budget of its own"


def test_a_verdict_of_other_libraries_does_not_come_back(
    bench: GateBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No manifest pins what the embedded engine computes with: of another version, an old pass says nothing."""
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0, bench.stderr
    upgraded = tmp_path / "upgraded/bitsandbytes-99.0.dist-info"
    upgraded.mkdir(parents=True)
    (upgraded / "METADATA").write_text("Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(upgraded.parent))
    assert bench.gate() == 3, bench.stderr
    assert bench.decision.verdict is Verdict.INCONCLUSIVE
    assert "error budget for this candidate is spent" in bench.reasons


def test_another_content_of_a_trace_makes_another_try(bench: GateBench) -> None:
    """The policy names a file; what is replayed is what it holds."""
    first, second = bench.manifest("baseline"), bench.manifest("candidate")
    inputs = read_inputs(first, second, bench.folder / "gates/test.yaml", no_progress)
    digests = set()
    for rows in ((), (TraceRequest(0.0, 10, 5),), (TraceRequest(0.0, 10, 6),)):
        with hold_attempt(replace(inputs, trace=rows), no_progress) as attempt:
            digests.add(attempt.entry.data)
    assert len(digests) == 3


def test_a_change_of_the_rules_judges_the_same_measurements_again(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0, bench.stderr
    monkeypatch.setattr(ledger, "JUDGING", ledger.JUDGING + 1)
    assert bench.gate() == 0, bench.stderr
    assert bench.decision.attempt is not None
    assert (bench.decision.attempt.number, bench.decision.attempt.stored) == (1, False)
    assert all(bench.stages().values()), "nothing is measured again"


def test_another_build_of_the_tool_judges_again_and_says_that_it_did(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored verdict of a build that judged otherwise is not repeated, nor signed, in another build's name."""
    bench.policy(PERPLEXITY)
    with monkeypatch.context() as other:
        other.setattr(host_facts, "tool_digest", lambda: OTHER_BUILD)
        assert bench.gate() == 0, bench.stderr
        assert bench.decision.provenance.build == OTHER_BUILD
    assert bench.gate() == 0, bench.stderr
    assert bench.decision.provenance.build == host_facts.tool_digest()
    assert bench.decision.attempt is not None
    assert (bench.decision.attempt.number, bench.decision.attempt.stored) == (1, False)
    assert all(bench.stages().values()), "nothing is measured again"


def test_declared_attempts_share_the_budget_and_are_labelled(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, attempts=2)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    first = bench.decision
    comparison = bench.result("perplexity").comparison
    assert comparison.kind == "estimate"
    assert comparison.confidence == pytest.approx(0.975), "half of the five percent"
    assert first.budget is not None
    assert first.budget.attempts == 2
    more_prose(bench)
    bench.gate({"bias_nats": 0.0485})
    decision = bench.decision
    assert decision.attempt is not None
    assert (decision.attempt.number, decision.attempt.of) == (2, 2)
    assert decision.attempt.earlier == (f"attempt 1, {first.provenance.ended}: inconclusive",)
    assert bench.result("perplexity").comparison.pairs == 400
    for text in (bench.stderr, *((bench.out / name).read_text() for name in NAMES[1:])):
        assert "Attempt 2 of 2 declared" in " ".join(text.replace("\\", "").split())
    more_prose(bench, 480)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    assert "declares 2 attempts" in bench.decision.reasons[0]


def test_attempts_declared_afterwards_buy_nothing(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    bench.policy(PERPLEXITY, attempts=5)
    more_prose(bench)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    assert "is spent" in bench.decision.reasons[0]


def test_new_items_pool_and_never_replace(bench: GateBench) -> None:
    """A second try on a set that has lost items is no extension of the first."""
    bench.policy(PERPLEXITY, SCORE, attempts=2)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    bench.put(evalset("text", 310, name="prose"))
    assert bench.gate({"bias_nats": 0.0485}) == 3
    assert "10 items of set prose that attempt 1 was decided on" in bench.decision.reasons[0]
    assert "starting the engine" not in bench.stderr


def test_an_older_verdict_does_not_come_back(bench: GateBench) -> None:
    """Blocked on more items: going back to the smaller set does not bring the earlier answer back."""
    bench.policy(PERPLEXITY, attempts=2)
    assert bench.gate({"bias_nats": 0.0485}) == 3
    more_prose(bench)
    bench.gate({"bias_nats": 0.0485})
    bench.put(evalset("text", 320, name="prose"))
    assert bench.gate({"bias_nats": 0.0485}) == 3
    assert "only the last verdict stands" in bench.decision.reasons[0]
    assert bench.decision.checks == ()


def test_an_error_spends_nothing(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate(baseline={"crash_at": 1}) == 4
    more_prose(bench)
    assert bench.gate() == 0
    assert bench.decision.attempt is not None
    assert (bench.decision.attempt.number, bench.decision.attempt.stored) == (1, False)


def test_a_gate_killed_before_its_look_spends_nothing(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"latency_s": 0.2})
    process = bench.spawn(*bench.arguments(first, second))
    until(lambda: entries(bench) and len(bench.records()) == 1, 60)
    process.kill()
    process.communicate()
    assert len(entries(bench)) == 1
    assert json.loads(entries(bench)[0].read_bytes())["body"]["decision"] is None
    assert bench.run(*bench.arguments(first, second)) == 0, "an entry without a verdict is no pass and no try"
    assert bench.decision.attempt is not None
    assert (bench.decision.attempt.number, bench.decision.attempt.stored) == (1, False)


@pytest.mark.parametrize("how", ["cut", "edited", "renamed", "emptied", "another's"])
def test_a_damaged_ledger_is_an_error_and_never_a_verdict(bench: GateBench, how: str) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.3}) == 1
    (path,) = entries(bench)
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[:-20])
        case "edited":
            path.write_bytes(data.replace(b'"verdict":"block"', b'"verdict":"pass"'))
        case "renamed":
            path.rename(path.with_name("02.json"))
        case "emptied":
            path.write_bytes(b"")
        case "another's":
            path.write_bytes(data.replace(b'"number":1', b'"number":2', 1))
    assert bench.gate({"bias_nats": 0.3}) == 4
    assert bench.decision.verdict is Verdict.ERROR
    assert "the ledger of attempts" in bench.reasons


def test_an_unservable_candidate_stays_blocked_until_an_attempt_is_spent(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, attempts=2)
    assert bench.gate({"crash_at": 1}) == 1
    assert bench.gate({"crash_at": 1}) == 1
    assert "STORED VERDICT" in bench.stderr
    assert bench.gate({"crash_at": 1}, more=["--again"]) == 1
    assert bench.decision.attempt is not None
    assert (bench.decision.attempt.number, bench.decision.attempt.stored) == (2, False)
    assert "candidate_unservable" in bench.reasons
    assert bench.gate({"crash_at": 1}, more=["--again"]) == 2
    assert "is spent" in bench.stderr.replace("\n", " ")


def test_again_needs_something_to_repeat(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, attempts=2)
    assert bench.gate(more=["--again"]) == 2
    assert "there is nothing to repeat" in bench.stderr


def test_two_gates_of_the_same_at_once_decide_once(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"latency_s": 0.02})
    outs = [bench.folder / f"out{i}" for i in range(2)]
    processes = [bench.spawn(*bench.arguments(first, second, "--out", str(out))) for out in outs]
    for process in processes:
        _, error = process.communicate(timeout=180)
        assert process.returncode == 0, error.decode()
    attempts = [Decision.model_validate_json((out / "decision.json").read_bytes()).attempt for out in outs]
    assert sorted(a.stored for a in attempts if a) == [False, True]
    assert len(entries(bench)) == 1


def test_evidence_that_is_gone_is_said_and_the_verdict_stands(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.3}) == 1
    shutil.rmtree(bench.home / "store")
    assert bench.gate({"bias_nats": 0.3}) == 1
    assert "no longer in the store: prose on the baseline, prose on the candidate" in " ".join(
        bench.decision.notes
    )


def test_timing_is_that_of_the_verdict(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, TPOT)
    slow = {"token_latency_s": 0.001}
    assert bench.gate(slow, slow) == 0
    first = bench.decision.timing
    assert bench.gate(slow, slow) == 0
    assert bench.decision.timing == first
    assert "latency and memory are those of then" in bench.stderr.replace("\n", " ")
