"""A checkpoint that is not what its architecture needs is bad input on either arm, and no attempt is spent on it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests import awkward
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

DRAFT = {"method": "draft", "num_tokens": 3}
UNKNOWN = "model.layers.1.mlp.up_proj.lora_A.weight"


def real(**settings: Any) -> dict[str, Any]:
    """The transformers engine."""
    return {"kind": "transformers", "version": metadata.version("transformers"), "options": {}} | settings


@pytest.fixture
def spoilt(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model with a tensor that no layer takes."""
    folder = awkward.make("good", tiny_model_dir, tmp_path)
    values = awkward.tensors(folder)
    awkward.write_tensors(folder, values | {UNKNOWN: values["model.layers.1.mlp.up_proj.weight"][:4]})
    return folder


@pytest.mark.parametrize("role", ["baseline", "candidate that drafts"])
def test_it_is_refused_by_name_and_no_attempt_is_spent(bench: GateBench, spoilt: Path, role: str) -> None:
    bench.policy(PERPLEXITY)
    arms = {name: bench.manifest(name) for name in ("baseline", "candidate")}
    changes: dict[str, Any] = {"model": {"source": f"path:{spoilt}"}, "engine": real()}
    if "drafts" in role:
        changes = {"engine": real(speculative=DRAFT | {"model": {"source": f"path:{spoilt}"}})}
    arm = role.partition(" ")[0]
    arms[arm] = bench.write(arm, {}, limits={"max_sequence": 512}, **changes)
    assert bench.run(*bench.arguments(*arms.values())) == 2
    assert f"{UNKNOWN}: expected no such tensor" in bench.stderr
    assert ("engine.speculative.model" in bench.stderr) == ("drafts" in role)
    assert not (bench.out / "decision.json").exists()
    assert not list((bench.home / "attempts").rglob("*.json")), "the ledger knows of no attempt"
    assert not bench.records() or role != "baseline"
