"""What two engines loaded, held against what is declared: before the candidate's minutes, and in every report."""

from __future__ import annotations

import pytest
from tests.unit.sources.test_effective_differences import rotary
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh import canonical
from checkweigh.engines.worker.engine import WorkerEngine
from checkweigh.records.measurement import EngineIdentity


@pytest.mark.parametrize("arm", ["baseline", "candidate"])
def test_what_nothing_declared_explains_is_refused_before_the_candidate_is_measured(
    bench: GateBench, arm: str
) -> None:
    other = {"effective": canonical.dumps({"rotary": rotary(scaling=1.1), "window": "[[512,1]]"})}
    bench.policy(PERPLEXITY)
    assert bench.gate(**{arm: other}) == 2, bench.stderr
    assert "rotary: " in bench.stderr
    assert "window: " in bench.stderr
    assert "candidate: prose" not in bench.stderr
    assert not (bench.out / "decision.json").exists()
    assert not list((bench.home / "attempts").rglob("*.json"))


def test_what_is_explained_is_listed_in_every_report(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate({"effective": '{"attention": "eager"}', "noise_seed": 1}) == 0, bench.stderr
    decision = bench.decision
    (difference,) = decision.effective_differences
    assert (difference.field, difference.baseline, difference.candidate) == ("attention", "fake", "eager")
    assert difference.explained == ("engine.options.effective",)
    assert decision.candidate.effective == decision.baseline.effective | {"attention": "eager"}
    assert decision.candidate.unverified == decision.baseline.unverified == ()
    line = "loaded attention: fake -> eager (engine.options.effective)"
    assert line in " ".join(bench.stderr.split())
    assert line.replace(">", "&gt;") in (bench.out / "junit.xml").read_text()
    assert "| attention | fake | eager |" in (bench.out / "summary.md").read_text()
    assert 'id="loaded"' in (bench.out / "report.html").read_text()


def test_an_engine_that_gives_no_account_is_unverified_and_said_so(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = WorkerEngine._read_identity

    def silent(engine: WorkerEngine, answer: object) -> EngineIdentity:
        account = {"effective": {}} if engine.spec.manifest.name == "candidate" else {}
        return read(engine, answer).model_copy(update=account)

    monkeypatch.setattr(WorkerEngine, "_read_identity", silent)
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0, bench.stderr
    decision = bench.decision
    assert decision.candidate.unverified == ("configuration",)
    assert decision.effective_differences == ()
    line = "unverified: configuration of the candidate, candidate"
    for name in ("report.html", "junit.xml"):
        assert line in (bench.out / name).read_text()
    assert line in " ".join(bench.stderr.split())
