"""What two engines loaded, held against what is declared: before the candidate's minutes, and in every report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from tests.unit.sources.test_effective_differences import ACCOUNT, rotary
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh.engines.worker.engine import WorkerEngine
from checkweigh.records.measurement import EngineIdentity

Load = Callable[..., None]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """``load(candidate={field: value})``: what the engine of each arm says that it has loaded."""

    def loaded(**arms: Mapping[str, str] | None) -> None:
        read = WorkerEngine._read_identity

        def read_identity(engine: WorkerEngine, answer: object) -> EngineIdentity:
            more = arms.get(engine.spec.manifest.name, {})
            account = {} if more is None else ACCOUNT | dict(more)
            return read(engine, answer).model_copy(update={"effective": account})

        monkeypatch.setattr(WorkerEngine, "_read_identity", read_identity)

    return loaded


@pytest.mark.parametrize("arm", ["baseline", "candidate"])
def test_what_nothing_declared_explains_is_refused_before_the_candidate_is_measured(
    bench: GateBench, load: Load, arm: str
) -> None:
    load(**{arm: {"rotary": rotary(scaling=1.1), "attention": "eager"}})
    bench.policy(PERPLEXITY)
    assert bench.gate(baseline={"noise_seed": 2}, sampling={"seed": 1, "max_tokens": 64}) == 2, bench.stderr
    assert "rotary: " in bench.stderr
    assert "attention: " in bench.stderr
    assert "candidate: prose" not in bench.stderr
    assert not (bench.out / "decision.json").exists()
    assert not list((bench.home / "attempts").rglob("*.json"))


def test_what_is_explained_is_listed_in_every_report(bench: GateBench, load: Load) -> None:
    load(candidate={"attention": "eager"})
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0, bench.stderr
    decision = bench.decision
    (difference,) = decision.effective_differences
    assert (difference.field, difference.baseline, difference.candidate) == ("attention", "sdpa", "eager")
    assert difference.explained == ("engine.options.noise_seed",)
    assert decision.candidate.effective == ACCOUNT | {"attention": "eager"}
    assert decision.candidate.unverified == decision.baseline.unverified == ()
    line = "loaded attention: sdpa -> eager (engine.options.noise_seed)"
    assert line in " ".join(bench.stderr.split())
    assert line.replace(">", "&gt;") in (bench.out / "junit.xml").read_text()
    assert "| attention | sdpa | eager |" in (bench.out / "summary.md").read_text()
    assert 'id="loaded"' in (bench.out / "report.html").read_text()


def test_an_engine_that_gives_no_account_is_unverified_and_said_so(bench: GateBench, load: Load) -> None:
    load(candidate=None)
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0, bench.stderr
    decision = bench.decision
    assert decision.candidate.unverified == ("configuration",)
    assert decision.effective_differences == ()
    line = "unverified: configuration of the candidate, candidate"
    for name in ("report.html", "junit.xml"):
        assert line in (bench.out / name).read_text()
    assert line in " ".join(bench.stderr.split())
