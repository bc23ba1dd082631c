"""Gates between two vocabularies: bits per byte decides, and every output says why nothing else can."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.builders import check
from tests.family import write_gemma
from tests.unit.usecases.gate_bench import ENDINGS, LONGER, PERPLEXITY, SCORE, TIMING, TPOT, GateBench

from checkweigh.sources.documents import read_policy
from checkweigh.sources.pin import verify
from checkweigh.usecases.gate.comparability import inestimable_checks

GATES = Path(__file__).parents[4] / "gates"
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


def refused(bench: GateBench) -> str:
    """What is said of a gate that was refused before an engine started and before the ledger knew of it."""
    assert "starting the engine" not in bench.stderr
    assert not list(bench.home.glob("attempts/**/*.json"))
    assert not (bench.out / "decision.json").exists()
    return bench.stderr


def test_critical_checks_without_an_estimate_are_refused_before_an_engine_starts(
    bench: GateBench, gemma: Path
) -> None:
    bench.policy(SCORE, PERPLEXITY, ENDINGS, LONGER)
    assert gate(bench, gemma) == 2, bench.stderr
    perplexity, longer = (line for line in refused(bench).splitlines() if "gates/test.yaml" in line)
    assert "checks[1].metric: expected for perplexity a metric that these two tokenizers share" in perplexity
    assert "as in gates/families.yaml" in perplexity
    assert "use bits_per_byte" in perplexity
    assert "checks[3].metric" in longer
    assert "different tokens" in longer
    plan = (
        "plan",
        "--policy",
        "gates/test.yaml",
        "--baseline",
        "baseline.yaml",
        "--candidate",
        "candidate.yaml",
    )
    assert bench.run(*plan) == 2
    assert "checks[1].metric: expected for perplexity a metric" in bench.stderr


def test_a_declared_change_needs_no_estimate(bench: GateBench, gemma: Path) -> None:
    """A critical check on longer replies does not gate where the candidate intends them."""
    bench.policy(BITS, ENDINGS, LONGER)
    assert bench.gate(model={"source": f"path:{gemma}"}, intends=["longer"]) in (0, 3), bench.stderr
    assert bench.result("longer").comparison.kind == "inestimable"


def test_a_supporting_check_without_an_estimate_is_said_before_the_engines_start(
    bench: GateBench, gemma: Path
) -> None:
    bench.policy(BITS, SCORE, ENDINGS, {**PERPLEXITY, "tier": "supporting"}, KL)
    assert gate(bench, gemma) == 3, bench.stderr
    said = " ".join(bench.stderr.split())
    warning = "may not settle: perplexity: nothing can pass: the vocabularies differ"
    note = "not estimated, because the tokenizers differ: perplexity (supporting), kl (advisory)"
    for text in (warning, note):
        assert said.index(text) < said.index("starting the engine")
    assert note in bench.decision.notes


def test_the_anchor_s_tokenizer_counts_as_well(bench: GateBench, gemma: Path) -> None:
    erosion = {**PERPLEXITY, "id": "erosion", "evalset": ["prose"], "against": "anchor"}
    bench.policy(PERPLEXITY, ENDINGS, erosion, anchor="../anchor.yaml")
    bench.manifest("anchor", model={"source": f"path:{gemma}"})
    assert bench.gate() == 2, bench.stderr
    assert "for erosion a metric" in refused(bench)
    assert "for perplexity" not in bench.stderr


def with_merges(model: Path, folder: Path, change: Callable[[list[Any]], list[Any]]) -> Path:
    """A copy of a model with other merges: the same vocabulary, other tokens for a text."""
    shutil.copytree(model, folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["merges"] = change(document["model"]["merges"])
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def test_one_vocabulary_that_splits_text_otherwise_is_refused_as_early(
    bench: GateBench, tiny_model_dir: Path
) -> None:
    shorter = with_merges(tiny_model_dir, bench.folder / "shorter", lambda merges: merges[:20])
    bench.policy(PERPLEXITY, SCORE, {**KL, "evalset": ["prose"], "tier": "critical"}, LONGER)
    assert gate(bench, shorter) == 2, bench.stderr
    said = refused(bench)
    assert len(re.findall(r"the tokenizers split \d+ of 320 texts of prose otherwise", said)) == 2
    assert re.search(r"\([\d,]+ against [\d,]+ tokens in all\)", said)
    assert "for longer" not in said, "a reply is counted in tokens of the one vocabulary"


def test_other_tokens_and_as_many_have_a_mean_and_no_divergence(
    bench: GateBench, tiny_model_dir: Path
) -> None:
    reversed_ = with_merges(tiny_model_dir, bench.folder / "reversed", lambda merges: merges[::-1])
    bench.policy(PERPLEXITY, SCORE, ENDINGS, LONGER, KL)
    assert gate(bench, reversed_) in (0, 3), bench.stderr
    for name in ("perplexity", "longer"):
        assert bench.result(name).comparison.kind in ("estimate", "identical")
    kl = bench.result("kl").comparison
    assert kl.kind == "inestimable"
    assert "the tokenizers split" in kl.reason
    assert "candidate: prose, look 1 KL" not in bench.stderr


def test_the_policy_that_is_named_needs_no_common_vocabulary(bench: GateBench, gemma: Path) -> None:
    policy = read_policy(GATES / "families.yaml")
    arms = [verify(bench.manifest("one")), verify(bench.manifest("other", model={"source": f"path:{gemma}"}))]
    assert arms[0].pins.vocabulary != arms[1].pins.vocabulary
    assert inestimable_checks(policy, (), arms[1], baseline=arms[0]) == {}
    left_out = inestimable_checks(read_policy(GATES / "full.yaml"), (), arms[1], baseline=arms[0])
    assert {"perplexity", "longer-replies", "tpot"} <= set(left_out)
