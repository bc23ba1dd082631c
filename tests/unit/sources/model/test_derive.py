"""Derived models: what was made once stays what it was, or is named. No conversion runs here but one that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.builders import tensor_digest
from tests.conftest import WriteManifest

from checkweigh.canonical import short
from checkweigh.errors import PinMismatch, SourceError
from checkweigh.progress import no_progress
from checkweigh.records.manifest import Derive
from checkweigh.sources.digests import file_digest
from checkweigh.sources.model import derive
from checkweigh.sources.model.derive import derive_model
from checkweigh.sources.pin import verify
from checkweigh.sources.sealed_cache import SEAL, build_sealed

RECIPE = Derive(recipe="gguf-to-safetensors")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, some say")
    return path


@pytest.fixture
def made(gguf: Path, checkweigh_home: Path, tiny_model_dir: Path) -> Path:
    """The directory that the recipe would have made of ``gguf``: here the tiny model."""
    name = f"{short(file_digest(gguf))}-gguf-to-safetensors-v1"
    return build_sealed(
        checkweigh_home / "derived" / name,
        lambda folder: shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True),
    )


@pytest.fixture
def manifest(made: Path, write_manifest: WriteManifest) -> Path:
    return write_manifest(
        "derived", model={"source": "path:model.gguf", "derive": {"recipe": "gguf-to-safetensors"}}
    )


def said(manifest: Path) -> str:
    with pytest.raises(PinMismatch) as caught:
        verify(manifest)
    return str(caught.value)


def reseal(folder: Path) -> None:
    """What whoever damages a cache with care would do as well."""
    sealed = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps({name: file_digest(folder / name) for name in sealed}))


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_derived_model_is_verified_by_its_tensors(manifest: Path, made: Path) -> None:
    pins = verify(manifest).pins
    assert pins.tensors
    assert pins.weights == {"model.safetensors": tensor_digest(made / "model.safetensors")}


@pytest.mark.parametrize(
    ("name", "at"),
    [("model.safetensors", -1), ("model.safetensors", 3), ("model.safetensors", 40), ("tokenizer.json", 0),
     ("config.json", 0), ("chat_template.jinja", 5)],
)  # fmt: skip
def test_damage_is_named_with_how_to_mend_it(manifest: Path, made: Path, name: str, at: int) -> None:
    before = file_digest(made / name)
    change(made / name, at)
    text = said(manifest)
    assert f"{made / name}: expected {before}, as it was made, found {file_digest(made / name)}" in text
    assert f"remove {made}: it is made again" in text


@pytest.mark.parametrize("at", [-1, 3, 40])
def test_damage_under_a_forged_seal_is_named_too(manifest: Path, made: Path, at: int) -> None:
    pinned = verify(manifest).pins.weights["model.safetensors"]
    change(made / "model.safetensors", at)
    reseal(made)
    text = said(manifest)
    assert (
        f"{made}/model.safetensors: pins.weights.model.safetensors: expected {pinned}, found sha256:" in text
    )
    assert f"remove {made}: it is made again" in text


def test_another_source_file(manifest: Path, made: Path, gguf: Path, tiny_model_dir: Path) -> None:
    pinned = verify(manifest).pins.source
    gguf.write_bytes(b"GGUF, others say")
    name = f"{short(file_digest(gguf))}-gguf-to-safetensors-v1"
    build_sealed(
        made.parent / name, lambda folder: shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    )
    assert said(manifest) == f"{gguf}: pins.source: expected {pinned}, found {file_digest(gguf)}"


@pytest.mark.usefixtures("checkweigh_home")
def test_a_recipe_that_takes_too_long(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "TIMEOUT_S", 0.05)
    with pytest.raises(SourceError, match=r"gguf-to-safetensors took more than 0\.05 s"):
        derive_model(gguf, file_digest(gguf), RECIPE, no_progress)


def test_a_file_that_is_no_gguf(gguf: Path, checkweigh_home: Path) -> None:
    pytest.importorskip("transformers")
    make: Callable[[], Path] = lambda: derive_model(gguf, file_digest(gguf), RECIPE, no_progress)  # noqa: E731
    with pytest.raises(SourceError, match=r"model\.gguf: gguf-to-safetensors failed: .*"):
        make()
    assert [p for p in (checkweigh_home / "derived").iterdir() if p.is_dir()] == []


def test_a_file_with_other_tensors_than_its_models_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    """By what transformers itself says of a model that lacks a tensor and has one that no layer takes."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "holes"))

    def loading() -> dict[str, object]:
        _, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        return dict(found)

    derive.refuse_other_tensors(loading())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.gate.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        SystemExit, match=r"otherwise 2: .*gate\.weight \(unexpected .*up_proj\.weight \(missing"
    ):
        derive.refuse_other_tensors(loading())
