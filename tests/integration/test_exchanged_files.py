"""Weights that are overwritten and put back while a real gate runs: exit 2, nothing stored, nothing signed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from tests.conftest import WriteManifest
from tests.integration.gates import ROLES, Bench
from tests.signing import keys
from tests.unit.usecases.gate_bench import PERPLEXITY
from tests.waiting import until

pytest.importorskip("torch")


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: WriteManifest, capfd: pytest.CaptureFixture[str]
) -> Bench:  # fmt: skip
    return Bench(tmp_path, monkeypatch, write_manifest, capfd)


def measuring(bench: Bench, role: str) -> Callable[[], bool]:
    """Whether the arm has stored its first batch; the candidate is measured once the baseline's record counts."""

    def begun() -> bool:
        batches = list((bench.home / "store").glob("*/batches/[0-9]*.json"))
        own = [path for path in batches if not (path.parent.parent / "record.json").exists()]
        return bool(own) and bool(bench.records()) == (role == "candidate")

    return begun


@pytest.mark.parametrize("role", ROLES)
def test_a_gate_whose_weights_are_put_back_leaves_nothing(
    bench: Bench, tiny_model_dir: Path, role: str
) -> None:
    """The gate stands still while the file is overwritten; its engine goes on, and answers from what it loaded."""
    private, _ = keys(bench.folder)
    bench.policy(PERPLEXITY)
    engine = {
        "kind": "transformers",
        "version": metadata.version("transformers"),
        "options": {},
        "max_batch": 4,
    }
    manifests = []
    for name in ROLES:
        folder = bench.folder / "models" / name
        shutil.copytree(tiny_model_dir, folder)
        (folder / "generation_config.json").unlink()
        source = {"model": {"source": f"path:{folder}"}, "limits": {"max_sequence": 512}}
        manifests.append(bench.write(name, {}, engine=engine, **source))
    weights = bench.folder / "models" / role / "model.safetensors"
    whole = weights.read_bytes()

    gate = bench.start(*bench.arguments(*manifests, "--attest", str(private)))
    until(measuring(bench, role), 120)
    gate.send_signal(signal.SIGSTOP)
    weights.write_bytes(bytes(len(whole)))
    weights.write_bytes(whole)
    gate.send_signal(signal.SIGCONT)

    assert gate.wait(120) == 2, bench.said.read_text()
    said = bench.said.read_text().replace("\n", "")
    assert (
        f"models/{role}/model.safetensors: pins.weights.model.safetensors: expected the file that was" in said
    )
    assert "/served/" not in said
    assert len(bench.records()) == (1 if role == "candidate" else 0), (
        "what the other arm was measured on stays"
    )
    assert not list((bench.home / "store").glob("*/batches/[0-9]*.json"))
    for name in ("decision.json", "attestation.json", "weights.sig"):
        assert not (bench.out / name).exists()
    for entry in (bench.home / "attempts").rglob("[0-9]*.json"):
        body = json.loads(entry.read_bytes())["body"]
        assert (body["looks"], body["decision"]) == ([], None)
    assert not list((bench.home / "served").glob("*/model"))
    assert bench.orphans() == []
