"""``checkweigh diff``: what two manifests declare, which pinned files differ, and what is only a place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import WriteManifest

from checkweigh.cli import main
from checkweigh.progress import no_progress
from checkweigh.records.manifest import PLACE_KEYS
from checkweigh.usecases.diff import MOST_FILES, diff, is_place


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_another_place_is_shown_as_one(write_manifest: WriteManifest, copy: Path) -> None:
    found = diff(write_manifest("one"), write_manifest("two", model={"source": f"path:{copy}"}), no_progress)
    text = found.text()
    assert f"-> path:{copy} (a place: it decides nothing)" in text
    assert "every pinned file is the same in both" in text
    assert found.files == {}
    assert found.undeclared == ()


def test_every_file_that_differs_is_named(
    write_manifest: WriteManifest, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for number in range(MOST_FILES):
        (copy / f"extra{number:02}.txt").write_text(str(number))
    first, second = write_manifest("one"), write_manifest("two", model={"source": f"path:{copy}"})
    found = diff(first, second, no_progress)
    assert found.files["model/extra00.txt"][0] is None
    assert None not in found.files["chat template"]
    assert "model.safetensors" not in found.files
    text = found.text()
    assert "file chat template: " in text
    assert "file model/extra00.txt: none -> " in text
    assert "more files differ (--json lists all)" in text
    capsys.readouterr()
    assert main(["diff", str(first), str(second), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["files"]
    assert len(shown) == len(found.files) > MOST_FILES


def test_a_place_is_known_by_its_key() -> None:
    assert all(is_place(f"engine.speculative.model.{key}") for key in PLACE_KEYS)
    assert is_place("model.adapters[0].source")
    assert not is_place("model.adapters[0].scale")
    assert not is_place("prompts.system")
