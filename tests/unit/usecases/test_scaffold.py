"""``checkweigh init``: what it writes is what a gate takes, and it overwrites nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkweigh.cli import main
from checkweigh.sources.documents import read_manifest, read_policy
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import verify
from checkweigh.usecases.diff import diff
from checkweigh.usecases.scaffold import SETS, WORKFLOWS, shipped_root

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]


def quiet(label: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path, checkweigh_home: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "models" / "My Model"))


def init(model: Path | str, root: Path, *more: str) -> int:
    return main(["init", str(model), "--into", str(root), *more])


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_written_is_what_a_gate_takes(model: Path, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "repo"
    assert init(model, root, "--json") == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert set(said["written"]) == set(files(root))
    assert said["gate"] in err
    baseline, candidate = (root / f"manifests/my-model{suffix}.yaml" for suffix in ("", "-int8"))
    assert verify(baseline).model_dir == model
    assert read_manifest(baseline).limits.max_sequence == 512, "no more than the model has"
    assert read_manifest(baseline).engine.dtype == "float32", "the model's own"
    assert not diff(baseline, candidate, quiet).undeclared
    policy = read_policy(root / "gates/default.yaml")
    assert [c.tier for c in policy.checks if c.id == "questions"] == ["advisory"], (
        "ten questions decide nothing"
    )
    for name in policy.evalsets():
        assert len(load_evalset(root / "evalsets" / name).items) >= 10
    assert len((root / "evalsets/questions/card.yaml").read_text().splitlines()) == 10
    for source, target in WORKFLOWS.items():
        assert (root / target).read_bytes() == (ROOT / source).read_bytes()


def test_again_it_writes_what_is_missing_and_leaves_locks_alone(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "repo"
    init(model, root)
    before = files(root)
    (root / "manifests/my-model.lock.json").write_text("{}")
    (root / "evalsets/questions/card.yaml").unlink()
    (root / "manifests/my-model-int8.lock.json").unlink()
    assert init(model, root) == 0
    after = files(root)
    assert after.pop("manifests/my-model.lock.json") == b"{}", "a lock that stands is not pinned anew"
    assert after == {name: data for name, data in before.items() if name != "manifests/my-model.lock.json"}
    assert f"was there already: {root / 'gates/default.yaml'}" in capsys.readouterr().err


def test_nothing_of_somebody_elses_is_overwritten(model: Path, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "repo"
    (root / "manifests").mkdir(parents=True)
    (root / "manifests/my-model.yaml").write_text("mine")
    (root / "evalsets/questions").mkdir(parents=True)
    (root / "evalsets/questions/card.yaml").write_text("mine too")
    before = files(root)
    assert init(model, root) == 2
    err = capsys.readouterr().err
    assert files(root) == before
    assert all(str(root / name) in err for name in before), "all at once"
    (root / "evalsets/questions/card.yaml").unlink()
    assert init(model, root, "--name", "other") == 0
    assert (root / "manifests/other.yaml").exists()


def test_another_policy_keeps_its_place(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    (root / "gates").mkdir(parents=True)
    (root / "gates/default.yaml").write_text("mine")
    assert init(model, root) == 0
    assert (root / "gates/default.yaml").read_text() == "mine"
    assert read_policy(root / "gates/my-model.yaml").name == "my-model"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda m: (m / "model.bin").write_bytes(b""), "pickles are refused"),
        (lambda m: (m / "model.safetensors").unlink(), r"expected \*.safetensors, found none"),
        (lambda m: (m / "config.json").unlink(), "expected config.json, found none"),
        (lambda m: (m / "modeling.py").write_text(""), "remote code"),
    ],
)
def test_a_model_that_no_gate_takes_leaves_no_file(
    model: Path, tmp_path: Path, capsys: Capture, damage: Any, said: str
) -> None:
    damage(model)
    assert init(model, tmp_path / "repo") == 2
    assert said.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing-here", "expected a model directory or OWNER/NAME of a hub"),
     ("./nowhere", "found nothing there"), ("owner/model@main", "a branch or tag moves")],
)  # fmt: skip
def test_names_of_nothing(name: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    assert init(name, tmp_path / "repo") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()


def test_a_hub_without_a_commit_and_without_a_hub(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert init("owner/model", tmp_path / "repo") == 2
    err = capsys.readouterr().err
    assert "owner/model" in err
    assert "Traceback" not in err


def test_a_tokenizer_without_a_chat_template_gets_a_plain_one(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    (model / "chat_template.jinja").unlink()
    assert init(model, tmp_path / "repo") == 0
    resolved = verify(tmp_path / "repo/manifests/my-model.yaml")
    assert "Question: " in resolved.chat_template
    assert "my-model.jinja asks plain questions" in capsys.readouterr().err


def test_an_installation_ships_what_is_copied() -> None:
    """Where there is no checkout, the wheel's data files stand in for it."""
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    shipped = {
        f"{folder.removeprefix('share/checkweigh/')}/{path.name}"
        for folder, globs in data.items()
        for pattern in globs
        for path in ROOT.glob(pattern)
    }
    needed = {f"evalsets/{name}/{file}" for name in SETS for file in ("card.yaml", "items.jsonl")}
    assert {"gates/default.yaml", *needed, *WORKFLOWS} <= shipped
    assert shipped_root() == ROOT
    assert yaml.safe_load((ROOT / "gates/default.yaml").read_text())["name"] == "default"
