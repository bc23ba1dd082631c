"""An anchor release: small losses that each gate lets pass add up against it."""

from __future__ import annotations

import pytest
from tests.unit.usecases.desk import ENDINGS, PERPLEXITY, TPOT, Desk
from tests.unit.usecases.test_gate_divergence import KL

EROSION = {**PERPLEXITY, "id": "erosion", "evalset": ["prose"], "against": "anchor", "margin": 0.10}


@pytest.fixture(autouse=True)
def _policy(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS, EROSION, anchor="../anchor.yaml")
    desk.manifest("anchor", {"noise_seed": 3})


def test_twenty_small_steps_do_not_slip_by(desk: Desk) -> None:
    codes = []
    for step in range(5):
        codes.append(
            desk.gate(
                {"bias_nats": 0.03 * (step + 1), "noise_seed": 10 + step},
                {"bias_nats": 0.03 * step, "noise_seed": 9 + step},
            )
        )
        assert desk.result("perplexity").outcome == "warning", "every step alone may pass"
    assert codes == [0, 0, 0, 1, 1], "0.03, 0.06, 0.09 nats lie inside the cumulative margin"
    assert desk.result("erosion").outcome == "blocked"
    assert desk.result("erosion").sentence.endswith("; against the anchor release")
    assert desk.decision.anchor is not None
    assert desk.decision.anchor.name == "anchor"
    assert set(desk.decision.anchor.measurements) == {"prose"}, (
        "what no check against it uses is not measured"
    )


def test_a_roll_back_to_the_anchor_is_executed_anew(desk: Desk) -> None:
    baseline = desk.manifest("baseline", {"bias_nats": 0.02})
    assert desk.run(*desk.arguments(baseline, desk.folder / "anchor.yaml")) == 0, desk.stderr
    assert desk.decision.candidate.replicate == 1
    assert desk.result("erosion").comparison.kind == "identical"


def test_an_anchor_that_is_not_what_its_lock_says_is_refused(desk: Desk) -> None:
    desk.manifest("anchor", {"noise_seed": 3})
    path = desk.folder / "anchor.yaml"
    path.write_text(path.read_text().replace("max_tokens: 64", "max_tokens: 63"))
    assert desk.gate() == 2
    assert "anchor" in desk.stderr


def test_an_anchor_that_breaks_is_no_verdict(desk: Desk) -> None:
    desk.manifest("anchor", {"crash_at": 1})
    assert desk.gate() == 4
    assert "the anchor's engine failed" in desk.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("checks", "anchor", "said"),
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
    desk: Desk, checks: list[dict[str, object]], anchor: str | None, said: str
) -> None:
    desk.policy(*checks, **({"anchor": anchor} if anchor else {}))
    assert desk.gate() == 2
    assert said in desk.stderr
