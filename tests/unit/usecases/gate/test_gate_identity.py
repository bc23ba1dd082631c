"""Identity is content: what is pinned, stored, decided and attested knows bytes and settings, never where they lie."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.signing import keys
from tests.unit.usecases.gate_bench import ENDINGS, PERPLEXITY, SCORE, GateBench

from checkweigh.sources.documents import read_policy
from checkweigh.sources.pin import pin, verify

DEEP = "elsewhere/a/b/clone"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, *paths: str) -> str:
    """Commit these files of a folder; the commit."""
    git(folder, "init", "-q")
    git(folder, "add", "--", *paths)
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


def moved(manifest: Path, place: Path, source: str, **changes: Any) -> Path:
    """The same manifest in another folder, with its model at ``source``, and pinned there anew."""
    document = yaml.safe_load(manifest.read_text())
    document["model"] = document["model"] | {"source": source}
    path = place / f"{changes.get('name', manifest.stem)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document | changes, sort_keys=False))
    pin(path)
    return path


def wheel_of(model: Path, index: Path) -> str:
    """A wheel that holds a model's folder; the source that names it."""
    index.mkdir()
    with zipfile.ZipFile(index / "tinymodel-1.0-py3-none-any.whl", "w") as archive:
        for file in model.iterdir():
            archive.write(file, f"tinymodel/model/{file.name}")
        info = "tinymodel-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return "package:tinymodel==1.0/tinymodel/model"


@pytest.fixture
def clone(bench: GateBench, tiny_model_dir: Path) -> Path:
    """The bench's policy and sets and a copy of the model, at another depth."""
    folder = bench.folder / DEEP
    for name in ("gates", "evalsets"):
        shutil.copytree(bench.folder / name, folder / name)
    shutil.copytree(tiny_model_dir, folder / "models/other-name")
    return folder


def gate(bench: GateBench, folder: Path, baseline: Path, candidate: Path, *more: str) -> int:
    return bench.run(
        "gate", str(baseline), str(candidate), "--policy", str(folder / "gates/test.yaml"),
        "--out", str(folder / "out"), *more,
    )  # fmt: skip


def test_pins_are_the_same_by_path_copied_or_by_package(
    bench: GateBench, clone: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = {"chat_template": f"path:{tiny_model_dir}/chat_template.jinja"}
    manifest = bench.manifest("candidate", prompts=template)
    index = bench.folder / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    elsewhere = {"chat_template": "path:../models/other-name/chat_template.jinja"}
    copies = [
        moved(manifest, clone / "manifests", "path:../models/other-name", prompts=elsewhere),
        moved(manifest, bench.folder / "by-package", wheel_of(tiny_model_dir, index)),
        moved(manifest, bench.folder / "in-place", f"path:{tiny_model_dir}", prompts={}),
    ]
    pins = verify(manifest).pins
    for copy in copies:
        found = verify(copy).pins
        assert found.record_digest() == pins.record_digest(), copy
        assert found.prompts == pins.prompts
    assert verify(copies[1]).pins.wheel is not None


def test_a_verdict_is_shown_again_in_another_place_under_both_names(
    bench: GateBench, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0, bench.stderr
    first = bench.decision
    commit = repository(clone, "gates")
    (clone / "gates/test.yaml").write_text((bench.folder / "gates/test.yaml").read_text() + "because: said\n")
    manifests = [
        moved(
            bench.folder / f"{role}.yaml",
            clone / "manifests",
            "path:../models/other-name",
            name=f"new-{role}",
        )
        for role in ("baseline", "candidate")
    ]
    monkeypatch.chdir(clone)
    assert gate(bench, clone, *manifests) == 0, bench.stderr
    assert "starting the engine" not in bench.stderr
    bench.out = clone / "out"
    decision = bench.decision
    assert decision.attempt is not None
    assert decision.attempt.stored
    assert (decision.baseline, decision.candidate) == (first.baseline, first.candidate)
    now = decision.attempt.now
    assert now is not None
    assert (now.baseline, now.candidate, now.policy) == ("new-baseline", "new-candidate", "test")
    assert now.provenance.commit == commit
    assert now.provenance.documents["candidate"] == "manifests/new-candidate.yaml"
    assert "manifests/new-candidate.lock.json" in now.provenance.uncommitted
    for file in ("summary.md", "report.html", "junit.xml"):
        text = " ".join((bench.out / file).read_text().replace("\\", "").split())
        assert "Names of then: candidate candidate" in text, file
        assert "Names of now: candidate new-candidate (manifests/new-candidate.yaml)" in text, file
    assert "Names of now" in " ".join(bench.stderr.split())
    assert str(bench.folder) not in json.dumps(now.model_dump(mode="json"))


def test_stored_measurements_of_a_model_are_used_in_another_place(bench: GateBench, clone: Path) -> None:
    assert bench.gate() == 0, bench.stderr
    baseline = moved(bench.folder / "baseline.yaml", clone / "manifests", "path:../models/other-name")
    candidate = bench.manifest("candidate", {"noise_seed": 5})
    assert bench.run(*bench.arguments(baseline, candidate)) == 0, bench.stderr
    assert {role for (role, _), stored in bench.stages().items() if stored} == {"baseline"}
    assert all(stored for (role, _), stored in bench.stages().items() if role == "baseline")


def test_an_attestation_admits_the_same_bytes_in_another_place(bench: GateBench, clone: Path) -> None:
    private, public = keys(bench.folder)
    assert bench.gate(more=["--attest", str(private)]) == 0, bench.stderr
    copy = moved(
        bench.folder / "candidate.yaml", clone / "manifests", "path:../models/other-name", name="copy"
    )
    arguments = [
        "admit", str(copy), "--attestation", str(bench.out / "attestation.json"), "--key", str(public),
        "--policy", str(clone / "gates/test.yaml"),
    ]  # fmt: skip
    assert bench.run(*arguments) == 0, bench.stderr
    weights = clone / "models/other-name/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert bench.run(*arguments) == 1, "other bytes in that place are not the same"


def test_an_anchor_is_known_by_what_it_is(bench: GateBench, clone: Path) -> None:
    """Where the policy looks for it is no part of the policy; another anchor is another gate."""
    erosion = {**PERPLEXITY, "id": "erosion", "evalset": ["prose"], "against": "anchor"}
    bench.policy(PERPLEXITY, SCORE, ENDINGS, erosion, anchor="../anchor.yaml")
    anchor = bench.manifest("anchor", {"noise_seed": 3})
    assert bench.gate() == 0, bench.stderr
    moved(anchor, clone / "releases/of/old", "path:../../../models/other-name")
    policy = yaml.safe_load((bench.folder / "gates/test.yaml").read_text())
    here = clone / "gates/test.yaml"
    here.write_text(yaml.safe_dump(policy | {"anchor": "../releases/of/old/anchor.yaml"}))
    assert read_policy(here).record_digest() == read_policy(bench.folder / "gates/test.yaml").record_digest()
    arms = bench.folder / "baseline.yaml", bench.folder / "candidate.yaml"
    assert gate(bench, clone, *arms) == 0, bench.stderr
    assert "STORED VERDICT" in bench.stderr
    other = bench.manifest("anchor", {"noise_seed": 4})
    moved(other, clone / "releases/of/old", "path:../../../models/other-name")
    assert gate(bench, clone, *arms) == 0, bench.stderr
    assert "STORED VERDICT" not in bench.stderr


def test_a_policy_s_digest_knows_no_place_of_a_trace(tmp_path: Path) -> None:
    load = {"arrivals": {"kind": "trace", "file": "a.csv"}, "slo": {"e2e": 1.0}}
    digests = set()
    for name, change in (("a", {}), ("b", {"file": "../other/b.csv"}), ("c", {"speed": 2.0})):
        timing = {"requests": 10, "load": load | {"arrivals": load["arrivals"] | change}}  # type: ignore[operator]
        path = tmp_path / f"{name}.yaml"
        document = {"schema": "checkweigh/policy@1", "name": "x", "timing": timing, "checks": [PERPLEXITY]}
        path.write_text(json.dumps(document))
        digests.add(read_policy(path).record_digest())
    assert len(digests) == 2, "another speed is another policy"


def test_provenance_is_of_the_start_and_of_what_was_read(bench: GateBench, tmp_path: Path) -> None:
    """What lies about unread makes nothing dirty; a card that was read does."""
    bench.policy(PERPLEXITY)
    manifests = [bench.manifest("baseline"), bench.manifest("candidate")]
    locks = [path.with_suffix(".lock.json") for path in manifests]
    read = [path.name for path in (*manifests, *locks)]
    commit = repository(bench.folder, "gates", "evalsets", *read)
    (bench.folder / "unread.txt").write_text("of somebody's")
    assert bench.run(*bench.arguments(*manifests)) == 0, bench.stderr
    provenance = bench.decision.provenance
    assert (provenance.commit, provenance.dirty, provenance.uncommitted) == (commit, False, ())
    assert provenance.repository == bench.folder.name
    assert provenance.documents == {
        "baseline": "baseline.yaml", "candidate": "candidate.yaml", "policy": "gates/test.yaml",
    }  # fmt: skip
    assert "Read otherwise than committed" not in bench.stderr
    card = bench.folder / "evalsets/prose/card.yaml"
    card.write_text(card.read_text() + "# a remark\n")
    bench.policy(PERPLEXITY, seed=1)
    assert bench.run(*bench.arguments(*manifests)) == 0, bench.stderr
    assert bench.decision.provenance.uncommitted == ("evalsets/prose/card.yaml", "gates/test.yaml")
    said = "Read otherwise than committed: evalsets/prose/card.yaml, gates/test.yaml"
    assert said in " ".join(bench.stderr.split())
