"""One gate of the real model, with all that it reports: what ``make demo`` shows, in two minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.real_model import ROOT, SLICES, gate

from checkweigh.sources.pin import Resolved, verify


def test_nf4_is_blocked_on_perplexity(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, decision = gate(workplace, monkeypatch, "smollm2-135m-nf4")
    assert code == 1
    assert decision.verdict == "block"
    assert "perplexity" in decision.reasons[0]
    assert {change.path for change in decision.changes} == {
        "quantization.bits",
        "quantization.method",
        "quantization.type",
    }
    assert decision.timing is None, "what quality blocks is not timed"
    (divergence,) = decision.divergence
    assert divergence.documents == SLICES["prose"]
    assert 0.15 < divergence.typical < 0.5, "nats a token; .28 on the whole set"
    assert 0.6 < divergence.agreement < 0.8
    assert divergence.worst[0].token.before
    for name in ("report.html", "junit.xml", "summary.md"):
        assert "perplexity" in (workplace / "runs" / "smollm2-135m-nf4" / name).read_text()


@pytest.mark.parametrize("name", ["int8", "fp4", "terse", "prompt-lookup"])
def test_every_shipped_candidate_is_what_its_lock_says(name: str, resolved: Resolved) -> None:
    found = verify(ROOT / "manifests" / f"smollm2-135m-{name}.yaml")
    assert found.pins.weights == resolved.pins.weights
    assert found.pins.manifest != resolved.pins.manifest
