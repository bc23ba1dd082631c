"""Gates between two vocabularies: bits per byte decides, and every output says why nothing else can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.builders import check
from tests.family import write_gemma
from tests.unit.usecases.desk import ENDINGS, LONGER, PERPLEXITY, SCORE, TIMING, TPOT, Desk

BITS = check(id="bits", metric="bits_per_byte", evalset=["prose"], direction="lower", margin=0.2)
KL = check(id="kl", metric="kl", evalset=["prose"], direction="lower", margin=0.05, tier="advisory")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma(tmp_path_factory.mktemp("gemma"))


def gate(desk: Desk, gemma: Path, **knobs: Any) -> int:
    return desk.gate(knobs, model={"source": f"path:{gemma}"})


def test_bits_per_byte_decides_and_the_reports_say_why(desk: Desk, gemma: Path) -> None:
    desk.policy(BITS, ENDINGS, KL, TPOT, timing=TIMING)
    gate(desk, gemma)
    result = desk.result("bits")
    assert result.comparison.kind == "estimate"
    per_byte = result.comparison.baseline
    assert per_byte is not None
    (note,) = (note for note in desk.decision.notes if "vocabularies differ" in note)
    assert "perplexity is compared as bits per byte, which counts the text itself" in note
    for output in ("report.html", "summary.md"):
        assert "compared as bits per byte" in (desk.out / output).read_text()
    assert "compared as bits per byte" in " ".join(desk.stderr.split())
    for name, said in (("kl", "no divergence"), ("tpot", "use e2e")):
        comparison = desk.result(name).comparison
        assert comparison.kind == "inestimable"
        assert said in comparison.reason


def test_worse_bits_per_byte_block(desk: Desk, gemma: Path) -> None:
    desk.policy(BITS, ENDINGS)
    assert gate(desk, gemma, bias_nats=6.0) == 1, desk.stderr
    assert desk.result("bits").outcome == "blocked"


def test_tokens_of_two_vocabularies_pass_nothing(desk: Desk, gemma: Path) -> None:
    desk.policy(PERPLEXITY, SCORE, ENDINGS, LONGER)
    assert gate(desk, gemma) == 3, desk.stderr
    assert "use bits_per_byte" in desk.result("perplexity").comparison.reason
    assert "different tokens" in desk.result("longer").comparison.reason
    (note,) = (note for note in desk.decision.notes if "vocabularies differ" in note)
    assert "no check of this policy does" in note
