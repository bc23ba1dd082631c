"""An anchor release: small losses that each gate lets pass add up against it."""

from __future__ import annotations

import pytest
from tests.unit.usecases.gate.test_gate_divergence import KL
from tests.unit.usecases.gate_bench import ENDINGS, PERPLEXITY, TPOT, GateBench

EROSION = {**PERPLEXITY, "id": "erosion", "evalset": ["prose"], "against": "anchor", "margin": 0.10}


@pytest.fixture(autouse=True)
def _policy(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS, EROSION, anchor="../anchor.yaml")
    bench.manifest("anchor", {"noise_seed": 3})


def test_twenty_small_steps_do_not_slip_by(bench: GateBench) -> None:
    codes = []
    for step in range(5):
        codes.append(
            bench.gate(
                {"bias_nats": 0.03 * (step + 1), "noise_seed": 10 + step},
                {"bias_nats": 0.03 * step, "noise_seed": 9 + step},
            )
        )
        assert bench.result("perplexity").outcome == "warning", "every step alone may pass"
    assert codes == [0, 0, 0, 1, 1], "0.03, 0.06, 0.09 nats lie inside the cumulative margin"
    assert bench.result("erosion").outcome == "blocked"
    assert bench.result("erosion").sentence.endswith("; against the anchor release")
    assert bench.decision.anchor is not None
    assert bench.decision.anchor.name == "anchor"
    assert set(bench.decision.anchor.measurements) == {"prose"}, (
        "what no check against it uses is not measured"
    )


def test_a_roll_back_to_the_anchor_is_executed_anew(bench: GateBench) -> None:
    baseline = bench.manifest("baseline", {"bias_nats": 0.02})
    assert bench.run(*bench.arguments(baseline, bench.folder / "anchor.yaml")) == 0, bench.stderr
    assert bench.decision.candidate.replicate == 1
    assert bench.result("erosion").comparison.kind == "identical"


def test_an_anchor_that_is_not_what_its_lock_says_is_refused(bench: GateBench) -> None:
    bench.manifest("anchor", {"noise_seed": 3})
    path = bench.folder / "anchor.yaml"
    path.write_text(path.read_text().replace("max_tokens: 64", "max_tokens: 63"))
    assert bench.gate() == 2
    assert "anchor" in bench.stderr


def test_an_anchor_that_breaks_is_no_verdict(bench: GateBench) -> None:
    bench.manifest("anchor", {"crash_at": 1})
    assert bench.gate() == 4
    assert "the anchor's engine failed" in bench.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("checks", "anchor", "message"),
    [
        ([PERPLEXITY, ENDINGS], "../anchor.yaml", "an anchor where checks are against it"),
        ([PERPLEXITY, ENDINGS, EROSION], None, "an anchor where checks are against it"),
        (
            [PERPLEXITY, ENDINGS, EROSION, {**TPOT, "against": "anchor"}],
            "../anchor.yaml",
            "against baseline for tpot",
        ),
        (
            [PERPLEXITY, ENDINGS, EROSION, {**KL, "against": "anchor"}],
            "../anchor.yaml",
            "against baseline for kl",
        ),
        ([PERPLEXITY, ENDINGS, EROSION], "../none.yaml", "none.yaml"),
    ],
)
def test_anchors_that_make_no_sense_are_refused(
    bench: GateBench, checks: list[dict[str, object]], anchor: str | None, message: str
) -> None:
    bench.policy(*checks, **({"anchor": anchor} if anchor else {}))
    assert bench.gate() == 2
    assert message in bench.stderr
