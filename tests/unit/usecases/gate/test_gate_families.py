"""Gates between two vocabularies: bits per byte decides, and every output says why nothing else can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.builders import check
from tests.family import write_gemma
from tests.unit.usecases.gate_bench import ENDINGS, LONGER, PERPLEXITY, SCORE, TIMING, TPOT, GateBench

BITS = check(id="bits", metric="bits_per_byte", evalset=["prose"], direction="lower", margin=0.2)
KL = check(id="kl", metric="kl", evalset=["prose"], direction="lower", margin=0.05, tier="advisory")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma(tmp_path_factory.mktemp("gemma"))


def gate(bench: GateBench, gemma: Path, **knobs: Any) -> int:
    return bench.gate(knobs, model={"source": f"path:{gemma}"})


def test_bits_per_byte_decides_and_the_reports_say_why(bench: GateBench, gemma: Path) -> None:
    bench.policy(BITS, ENDINGS, KL, TPOT, timing=TIMING)
    gate(bench, gemma)
    result = bench.result("bits")
    assert result.comparison.kind == "estimate"
    per_byte = result.comparison.baseline
    assert per_byte is not None
    (note,) = (note for note in bench.decision.notes if "vocabularies differ" in note)
    assert "perplexity is compared as bits per byte, which counts the text itself" in note
    for output in ("report.html", "summary.md"):
        assert "compared as bits per byte" in (bench.out / output).read_text()
    assert "compared as bits per byte" in " ".join(bench.stderr.split())
    for name, said in (("kl", "no divergence"), ("tpot", "use e2e")):
        comparison = bench.result(name).comparison
        assert comparison.kind == "inestimable"
        assert said in comparison.reason


def test_worse_bits_per_byte_block(bench: GateBench, gemma: Path) -> None:
    bench.policy(BITS, ENDINGS)
    assert gate(bench, gemma, bias_nats=6.0) == 1, bench.stderr
    assert bench.result("bits").outcome == "blocked"


def test_tokens_of_two_vocabularies_pass_nothing(bench: GateBench, gemma: Path) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER)
    assert gate(bench, gemma) == 3, bench.stderr
    assert "use bits_per_byte" in bench.result("perplexity").comparison.reason
    assert "different tokens" in bench.result("longer").comparison.reason
    (note,) = (note for note in bench.decision.notes if "vocabularies differ" in note)
    assert "no check of this policy does" in note
